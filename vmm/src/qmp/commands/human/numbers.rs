//! Sizes and times as `qemu-io` reads and writes them.

use std::time::Duration;

/// Suffixes by power of 1024.
const SUFFIXES: &[u8] = b"BKMGTPE";
/// The same in what is printed.
const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// The suffix of numbers that count MiB if they have none.
pub(super) const MIB: u8 = b'M';

/// Reads a number of bytes: decimal with a fraction and a suffix, or hexadecimal.
///
/// # Errors
/// The message.
pub(super) fn read_size(text: &str) -> Result<u64, String> {
    read_size_in(text, b'B')
}

/// The same; a decimal number without a suffix has the one given.
///
/// # Errors
/// The message.
pub(super) fn read_size_in(text: &str, default: u8) -> Result<u64, String> {
    let malformed = || {
        format!(
            "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}\n"
        )
    };
    let too_large = || format!("Parsing error: argument too large -- {text}\n");
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).map_err(|_| malformed());
    }
    let (number, suffix) = match text.bytes().last() {
        Some(last) if last.is_ascii_alphabetic() => {
            (&text[..text.len() - 1], last.to_ascii_uppercase())
        }
        _ => (text, default),
    };
    let power = SUFFIXES.iter().position(|known| *known == suffix);
    let power = u32::try_from(power.ok_or_else(malformed)?).unwrap_or(0);
    let unit = 1u64 << (10 * power);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(malformed());
    }
    let bytes = whole
        .parse::<u64>()
        .ok()
        .and_then(|whole| whole.checked_mul(unit))
        .ok_or_else(too_large)?;
    if fraction.is_empty() {
        return Ok(bytes);
    }
    // In integers: a fraction of bytes is rounded down.
    let part = fraction
        .bytes()
        .take(9)
        .fold((0u64, 1u64), |(sum, scale), digit| {
            (sum * 10 + u64::from(digit - b'0'), scale * 10)
        });
    let part = u128::from(part.0) * u128::from(unit) / u128::from(part.1);
    u64::try_from(part)
        .ok()
        .and_then(|part| bytes.checked_add(part))
        .ok_or_else(too_large)
}

/// `1.500 MiB`, `64 KiB`, `512 bytes`.
pub(super) fn size(bytes: f64) -> String {
    let mut value = bytes;
    let mut unit = None;
    for name in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = Some(name);
    }
    match unit {
        None => {
            let text = format!("{value:.6}");
            format!("{} bytes", text.strip_suffix(".000000").unwrap_or(&text))
        }
        Some(unit) => {
            let text = format!("{value:.3}");
            format!("{} {unit}", text.strip_suffix(".000").unwrap_or(&text))
        }
    }
}

/// Three digits, as QEMU writes the sizes of images: `10 MiB`, `1.5 KiB`, `0 B`.
pub(super) fn rounded_size(bytes: u64) -> String {
    let mut value = to_float(bytes);
    let mut prefix = "";
    for unit in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        prefix = &unit[..2];
    }
    let digits = match value {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text} {prefix}B")
}

/// `00.04 sec`, or hours, minutes and seconds from a minute on.
fn time(took: Duration) -> String {
    let (seconds, hundredths) = (took.as_secs(), took.subsec_millis() / 10);
    if seconds < 60 {
        return format!("{seconds:02}.{hundredths:02} sec");
    }
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours}:{minutes:02}:{:02}.{hundredths:02}", seconds % 60)
}

/// The second line of a report on one request of `bytes` bytes.
pub(super) fn rate(bytes: u64, took: Duration) -> String {
    let seconds = took.max(Duration::from_nanos(1)).as_secs_f64();
    let bytes = to_float(bytes);
    format!(
        "{}, 1 ops; {} ({}/sec and {:.4} ops/sec)\n",
        size(bytes),
        time(took),
        size(bytes / seconds),
        1.0 / seconds
    )
}

/// For printing with a few digits.
pub(super) fn to_float(bytes: u64) -> f64 {
    let (high, low) = (bytes >> 32, bytes & u64::from(u32::MAX));
    let part = |bits| f64::from(u32::try_from(bits).unwrap_or(u32::MAX));
    part(high) * 4_294_967_296.0 + part(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_suffixes_and_fractions() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("1.5K", 1536),
            ("2M", 2 << 20),
            ("0x200", 512),
            ("3b", 3),
            ("7E", 7 << 60),
        ] {
            assert_eq!(read_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "k", "3x", "-1", "1.k5", "0xg", "1..5", "ü"] {
            assert!(
                read_size(text).unwrap_err().contains("non-numeric"),
                "{text}"
            );
        }
        for text in ["16E", "99999999999999999999"] {
            assert!(read_size(text).unwrap_err().contains("too large"), "{text}");
        }
    }

    #[test]
    fn sizes_of_images_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1536, "1.5 KiB"),
            (10 << 20, "10 MiB"),
            (200 << 10, "200 KiB"),
            ((10 << 20) + (1 << 19), "10.5 MiB"),
            (u64::MAX >> 1, "8 EiB"),
        ] {
            assert_eq!(rounded_size(bytes), text);
        }
    }

    #[test]
    fn sizes_and_times_are_printed_as_qemu_io_does() {
        for (bytes, text) in [
            (0.0, "0 bytes"),
            (512.0, "512 bytes"),
            (564.496_554, "564.496554 bytes"),
            (1024.0, "1 KiB"),
            (1_572_864.0, "1.500 MiB"),
            (9_223_372_036_854_775_808.0, "8 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(time(Duration::from_millis(49)), "00.04 sec");
        assert_eq!(time(Duration::from_millis(15_394_500)), "4:16:34.50");
        assert_eq!(
            rate(65536, Duration::from_millis(500)),
            "64 KiB, 1 ops; 00.50 sec (128 KiB/sec and 2.0000 ops/sec)\n"
        );
    }
}
