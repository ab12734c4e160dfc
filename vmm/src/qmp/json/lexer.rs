//! The tokens of QEMU's dialect of JSON, byte by byte.
//!
//! A byte that no token goes on with spoils it: that byte, with what there is of the token, is what the error shows, as in
//! QEMU. Brackets and separators are tokens of one byte, and left to the callers, who count them. Pure functions.

use super::JsonError;

/// Below this, a byte is a control character that a JSON string must escape.
pub(super) const FIRST_PRINTABLE: u8 = 0x20;

/// The bytes that can never be part of JSON text in UTF-8; a client sends one to resynchronise.
pub(super) const RESET_BYTES: [u8; 2] = [0xfe, 0xff];

/// Bytes of a token that an error shows. (In QEMU it is all of them, 64 MiB if need be.)
pub(super) const SHOWN: usize = 1 << 10;

/// A token of which there is a part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Token {
    /// A string that ends with `quote`, perhaps behind a backslash.
    String { quote: u8, escaped: bool },
    /// A minus.
    Sign,
    /// A zero, which no digit follows.
    Zero,
    /// Digits before a point.
    Digits,
    /// The point itself.
    Point,
    /// Digits after it.
    Fraction,
    /// The `e` of an exponent.
    Exponent,
    /// Its sign.
    ExponentSign,
    /// Its digits.
    ExponentDigits,
    /// A word.
    Keyword,
}

/// What a byte is to a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// It goes on with it.
    On(Token),
    /// It ends with it.
    End,
    /// It has ended before it.
    Ended,
    /// It is spoiled by it.
    Stray,
}

/// Whether a byte is a bracket or a separator.
pub(super) const fn is_structural(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'[' | b']' | b',' | b':')
}

/// Whether a byte may stand between tokens.
pub(super) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

impl Token {
    /// The token that begins so.
    pub(super) const fn begin(byte: u8) -> Option<Self> {
        Some(match byte {
            b'"' | b'\'' => Self::String {
                quote: byte,
                escaped: false,
            },
            b'-' => Self::Sign,
            b'0' => Self::Zero,
            b'1'..=b'9' => Self::Digits,
            b'a'..=b'z' => Self::Keyword,
            _ => return None,
        })
    }

    /// What `byte` is to it.
    pub(super) fn step(self, byte: u8) -> Step {
        use Step::{Ended, On, Stray};
        match (self, byte) {
            (Self::String { .. }, ..FIRST_PRINTABLE) => Stray,
            (Self::String { .. }, _) if RESET_BYTES.contains(&byte) => Stray,
            (Self::String { quote, escaped }, _) if byte == quote && !escaped => Step::End,
            (Self::String { quote, escaped }, _) => On(Self::String {
                quote,
                escaped: byte == b'\\' && !escaped,
            }),
            (Self::Sign, b'0') => On(Self::Zero),
            (Self::Sign, b'1'..=b'9') | (Self::Digits, b'0'..=b'9') => On(Self::Digits),
            (Self::Zero | Self::Digits, b'.') => On(Self::Point),
            (Self::Point | Self::Fraction, b'0'..=b'9') => On(Self::Fraction),
            (Self::Zero | Self::Digits | Self::Fraction, b'e' | b'E') => On(Self::Exponent),
            (Self::Exponent, b'+' | b'-') => On(Self::ExponentSign),
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, b'0'..=b'9') => {
                On(Self::ExponentDigits)
            }
            (Self::Keyword, b'a'..=b'z') => On(Self::Keyword),
            (Self::Sign | Self::Point | Self::Exponent | Self::ExponentSign, _)
            | (Self::Zero, b'0'..=b'9') => Stray,
            (
                Self::Zero | Self::Digits | Self::Fraction | Self::ExponentDigits | Self::Keyword,
                _,
            ) => Ended,
        }
    }
}

/// The token at the head of `text`, which begins with none of one byte.
///
/// # Errors
/// There is none: what is shown of it.
pub(super) fn first(text: &[u8]) -> Result<&[u8], JsonError> {
    let spoiled = |bytes: usize| stray(text.get(..bytes).unwrap_or(text));
    let mut token = match text.first().copied().map(Token::begin) {
        Some(Some(token)) => token,
        _ => return Err(spoiled(1)),
    };
    for (at, &byte) in text.iter().enumerate().skip(1) {
        let length = match token.step(byte) {
            Step::On(next) => {
                token = next;
                continue;
            }
            Step::End => at + 1,
            Step::Ended => at,
            Step::Stray => return Err(spoiled(at + 1)),
        };
        return Ok(text.get(..length).unwrap_or(text));
    }
    // The end of the text ends what a space would end.
    match token.step(b' ') {
        Step::Ended => Ok(text),
        _ => Err(stray(text)),
    }
}

/// The error about a token that its last byte spoils, or about one byte that begins none. Bytes that no text can show stand
/// there as `\xNN`; QEMU shows them all alike, and a NUL not at all.
pub(super) fn stray(token: &[u8]) -> JsonError {
    let mut shown = String::new();
    for chunk in token.get(..SHOWN).unwrap_or(token).utf8_chunks() {
        shown.push_str(&chunk.valid().replace('\0', "\\x00"));
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    JsonError::syntax(format!("stray '{shown}'"))
}
