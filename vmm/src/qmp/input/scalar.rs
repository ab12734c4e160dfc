//! Scalars written as text.

/// A boolean as the command line writes it.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// A signed integer, decimal or with `0x`.
pub(super) fn parse_signed(text: &str) -> Option<i64> {
    match text.strip_prefix('-') {
        Some(magnitude) => 0_i64.checked_sub_unsigned(parse_unsigned(magnitude)?),
        None => parse_size(text)?.try_into().ok(),
    }
}

fn parse_unsigned(text: &str) -> Option<u64> {
    let starts_with_digit = text.starts_with(|c: char| c.is_ascii_digit());
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if digits.starts_with(|c: char| c.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None if starts_with_digit => text.parse().ok(),
        None => None,
    }
}

/// A size: an integer, decimal or with `0x`, or a decimal number with a fraction, and then one of
/// `b k M G T P E` in either case (powers of 1024) or nothing (the number as it stands). A
/// fraction needs a suffix larger than a byte and is cut to whole bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    const SUFFIXES: [char; 7] = ['b', 'k', 'm', 'g', 't', 'p', 'e'];
    const BITS_PER_SUFFIX: u32 = 10;
    if let Some(plain) = parse_unsigned(text) {
        return Some(plain);
    }
    let suffix = text.chars().next_back()?.to_ascii_lowercase();
    let steps = SUFFIXES.iter().position(|&known| known == suffix)?;
    let number = text.get(..text.len() - 1)?;
    let unit = 1_u64 << (BITS_PER_SUFFIX * u32::try_from(steps).ok()?);
    let Some((whole, fraction)) = number.split_once('.') else {
        return parse_unsigned(number)?.checked_mul(unit);
    };
    let decimal = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !decimal(whole) || !decimal(fraction) || unit == 1 {
        return None;
    }
    let fraction_bytes = fraction_of(fraction, unit);
    let whole: u64 = whole.parse().ok()?;
    whole.checked_mul(unit)?.checked_add(fraction_bytes)
}

/// `0.fraction` of `unit`, rounded down; `fraction` holds only digits.
fn fraction_of(fraction: &str, unit: u64) -> u64 {
    // Fifteen decimals resolve single bytes of a PiB, and both factors fit 128 bits with ease.
    const DECIMALS: usize = 15;
    let mut numerator = 0_u128;
    let mut denominator = 1_u128;
    for digit in fraction
        .chars()
        .take(DECIMALS)
        .filter_map(|c| c.to_digit(10))
    {
        numerator = numerator * 10 + u128::from(digit);
        denominator *= 10;
    }
    u64::try_from(numerator * u128::from(unit) / denominator).unwrap_or(u64::MAX)
}
