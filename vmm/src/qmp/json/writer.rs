//! Writes JSON the way QEMU does, byte for byte but for the order of an object's members.
//!
//! A space follows each colon and comma, whatever is not printable ASCII is escaped, and doubles have 17 digits.
//! There are programs that compare texts, its own tests among them. Called by monitors from any thread; nothing
//! here blocks.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use crate::qmp::LINE_END;

/// How a message is laid out.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Layout {
    /// On a line.
    Line,
    /// A line for each member and element, indented.
    Pretty,
}

/// Writes `value` as a message, with its line end.
///
/// # Errors
/// JSON has nothing for what is in it.
pub fn write(value: &impl Serialize, layout: Layout) -> serde_json::Result<String> {
    let mut text = Vec::new();
    let writer = Writer { layout, depth: 0 };
    value.serialize(&mut Serializer::with_formatter(&mut text, writer))?;
    text.extend_from_slice(LINE_END.as_bytes());
    String::from_utf8(text).map_err(serde::ser::Error::custom)
}

/// Spaces for each level of what is indented.
const INDENT: usize = 4;
/// Significant decimal digits that tell every double from all others.
const DIGITS: i32 = 17;
/// The exponents below which, from which on doubles are written with an exponent (C's `%g`).
const WITHOUT_EXPONENT: std::ops::Range<i32> = -4..DIGITS;

struct Writer {
    layout: Layout,
    depth: usize,
}

impl Writer {
    fn new_line<W: ?Sized + Write>(&self, to: &mut W) -> io::Result<()> {
        match self.layout {
            Layout::Line => Ok(()),
            Layout::Pretty => write!(to, "{LINE_END}{:1$}", "", self.depth * INDENT),
        }
    }

    fn begin<W: ?Sized + Write>(&mut self, bracket: &[u8], to: &mut W) -> io::Result<()> {
        self.depth += 1;
        to.write_all(bracket)
    }

    /// Also what is empty takes two lines.
    fn end<W: ?Sized + Write>(&mut self, bracket: &[u8], to: &mut W) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        self.new_line(to)?;
        to.write_all(bracket)
    }

    fn next<W: ?Sized + Write>(&self, first: bool, to: &mut W) -> io::Result<()> {
        match (first, self.layout) {
            (true, _) => {}
            (false, Layout::Line) => to.write_all(b", ")?,
            (false, Layout::Pretty) => to.write_all(b",")?,
        }
        self.new_line(to)
    }
}

impl Formatter for Writer {
    fn begin_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.begin(b"[", to)
    }

    fn end_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.end(b"]", to)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.next(first, to)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.begin(b"{", to)
    }

    fn end_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.end(b"}", to)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.next(first, to)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        to: &mut W,
        text: &str,
    ) -> io::Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(|character| !is_plain(character)) {
            let (plain, others) = rest.split_at(at);
            to.write_all(plain.as_bytes())?;
            let mut others = others.chars();
            if let Some(character) = others.next() {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(to, "\\u{unit:04X}")?;
                }
            }
            rest = others.as_str();
        }
        to.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        to: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        let letter = match escape {
            CharEscape::Quote => b'"',
            CharEscape::ReverseSolidus => b'\\',
            CharEscape::Solidus => b'/',
            CharEscape::Backspace => b'b',
            CharEscape::FormFeed => b'f',
            CharEscape::LineFeed => b'n',
            CharEscape::CarriageReturn => b'r',
            CharEscape::Tab => b't',
            CharEscape::AsciiControl(code) => return write!(to, "\\u{code:04X}"),
        };
        to.write_all(&[b'\\', letter])
    }

    fn write_f64<W: ?Sized + Write>(&mut self, to: &mut W, value: f64) -> io::Result<()> {
        to.write_all(double(value).as_bytes())
    }
}

/// Whether a character stands for itself.
fn is_plain(character: char) -> bool {
    matches!(character, ' '..='~')
}

/// As C's `%.17g` has it.
fn double(value: f64) -> String {
    let scientific = format!("{value:.*e}", DIGITS as usize - 1);
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if WITHOUT_EXPONENT.contains(&exponent) {
        let decimals = usize::try_from(DIGITS - 1 - exponent).unwrap_or(0);
        return trimmed(&format!("{value:.decimals$}")).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", trimmed(digits), exponent.unsigned_abs())
}

/// Without zeros at the end of its decimals.
fn trimmed(number: &str) -> &str {
    match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn line(value: &Value) -> String {
        write(value, Layout::Line).unwrap()
    }

    /// Each was seen in a reply of QEMU's.
    #[test]
    fn messages_are_qemus_bytes() {
        for (value, expected) in [
            (json!({"return": {}}), r#"{"return": {}}"#),
            (
                json!({"a": [1, -2, true, null], "b": []}),
                r#"{"a": [1, -2, true, null], "b": []}"#,
            ),
            (json!([{}, [[]], [{}]]), "[{}, [[]], [{}]]"),
            (json!(u64::MAX), "18446744073709551615"),
            (
                json!("~\u{7f}\u{80}é\u{7ff}\u{2028}\u{fffd}"),
                r#""~\u007F\u0080\u00E9\u07FF\u2028\uFFFD""#,
            ),
            (json!("a😀b\u{10ffff}"), r#""a\uD83D\uDE00b\uDBFF\uDFFF""#),
            (
                json!("\u{0}\u{1}\u{1f}\u{8}\u{c}\n\r\t"),
                r#""\u0000\u0001\u001F\b\f\n\r\t""#,
            ),
            (json!("/<>&'\"\\"), r#""/<>&'\"\\""#),
            (json!({"é\"": 1}), r#"{"\u00E9\"": 1}"#),
        ] {
            assert_eq!(line(&value), format!("{expected}\r\n"));
        }
    }

    /// Each was seen in a reply of QEMU's, but for the last three, which C's `printf` gave.
    #[test]
    fn doubles_are_qemus_bytes() {
        for (value, expected) in [
            (1.5, "1.5"),
            (1e300, "1.0000000000000001e+300"),
            (1e-7, "9.9999999999999995e-08"),
            (1e20, "1e+20"),
            (0.1, "0.10000000000000001"),
            (3.0, "3"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e22, "1e+22"),
            (-0.0, "-0"),
            (123_456.0, "123456"),
            (0.0001, "0.0001"),
            (-12_345_678_901_234_568.0, "-12345678901234568"),
        ] {
            assert_eq!(line(&json!(value)), format!("{expected}\r\n"));
        }
    }

    #[test]
    fn pretty_messages_are_qemus_bytes() {
        let value = json!({"id": [1, [], {}, [{"a": [1, 2]}]], "return": {}});
        let expected = r#"{
    "id": [
        1,
        [
        ],
        {
        },
        [
            {
                "a": [
                    1,
                    2
                ]
            }
        ]
    ],
    "return": {
    }
}
"#;
        let text = write(&value, Layout::Pretty).unwrap();
        assert_eq!(text, expected.replace('\n', "\r\n"));
    }

    #[test]
    fn what_was_written_reads_the_same() {
        let values = [
            0.0,
            5e-324,
            f64::MAX,
            f64::MIN_POSITIVE,
            1e16,
            1e17,
            123e-6,
            -9.87e-5,
        ];
        for value in values {
            assert_eq!(
                double(value).parse::<f64>().unwrap().to_bits(),
                value.to_bits()
            );
        }
        let text = json!({"a😀": ["\u{7f}\u{e000}", 1.25]});
        for layout in [Layout::Line, Layout::Pretty] {
            let written = write(&text, layout).unwrap();
            assert_eq!(super::super::parse(written.as_bytes()).unwrap(), text);
        }
    }
}
