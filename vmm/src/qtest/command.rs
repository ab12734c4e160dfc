//! The commands, from text to values.

use super::base64;

/// The most bytes one command may move.
const LENGTH_LIMIT: u64 = 256 << 20;

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// `FAIL`, and the reason.
    Failed(String),
    /// `ERR`: QEMU's word for data that are too short.
    Invalid(&'static str),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        Self::Failed(reason.to_owned())
    }
}

/// What a test asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// Move the clock by so many nanoseconds; none: to the next timer.
    ClockStep(Option<u64>),
    /// Move the clock to so many nanoseconds.
    ClockSet(u64),
    /// Read a port of this width.
    In { port: u16, width: usize },
    /// Write a port of this width.
    Out { port: u16, width: usize, value: u64 },
    /// Read a number from memory.
    Read { address: u64, width: usize },
    /// Write a number to memory.
    Write {
        address: u64,
        width: usize,
        value: u64,
    },
    /// Read bytes, shown in hexadecimal or in base64.
    ReadBytes {
        address: u64,
        length: usize,
        encoding: Encoding,
    },
    /// Write these bytes.
    WriteBytes { address: u64, bytes: Vec<u8> },
    /// Which way round numbers are.
    Endianness,
    /// Tell of the level changes of this device's inputs.
    InterceptIn(String),
    /// The same for a list of inputs that has a name.
    InterceptNamedIn(String),
    /// Tell of the level changes of this device's outputs.
    InterceptOut(String),
    /// Drive an input of one of the device's lists.
    SetIrqIn {
        device: String,
        list: String,
        number: u32,
        level: bool,
    },
    /// Load a part of the program that may be missing; here none is.
    ModuleLoad,
}

/// How bytes are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Hexadecimal,
    Base64,
}

/// A number in any base that C's `strtoull` knows.
fn number(text: &str) -> Result<u64, Failure> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None if text.len() > 1 && text.starts_with('0') => u64::from_str_radix(&text[1..], 8),
        None => match text.strip_prefix('-') {
            Some(digits) => digits.parse().map(u64::wrapping_neg),
            None => text.parse(),
        },
    };
    parsed.map_err(|_| format!("'{text}' is not a number").into())
}

fn length(text: &str) -> Result<usize, Failure> {
    let length = number(text)?;
    let fits = usize::try_from(length)
        .ok()
        .filter(|_| length <= LENGTH_LIMIT);
    fits.ok_or_else(|| format!("{length} bytes are too many at once").into())
}

fn port(text: &str) -> Result<u16, Failure> {
    u16::try_from(number(text)?).map_err(|_| format!("'{text}' is not a port").into())
}

/// Written data have at least this many characters, in either encoding.
const SHORTEST_DATA: usize = 3;
const TOO_SHORT: Failure = Failure::Invalid("invalid argument size");

/// The bytes of `0x…`, filled up with zeroes to `length`.
fn hexadecimal(text: &str, length: usize) -> Result<Vec<u8>, Failure> {
    let bad = || Failure::from("the data are not hexadecimal");
    if text.len() < SHORTEST_DATA {
        return Err(TOO_SHORT);
    }
    let digits = text.strip_prefix("0x").ok_or_else(bad)?.as_bytes();
    let mut bytes = Vec::with_capacity(length);
    for pair in digits.chunks(2).take(length) {
        let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
        bytes.push(u8::from_str_radix(pair, 16).map_err(|_| bad())?);
    }
    bytes.resize(length, 0);
    Ok(bytes)
}

/// Bytes of the width that a command's name ends with.
fn width(suffix: u8) -> Option<usize> {
    match suffix {
        b'b' => Some(1),
        b'w' => Some(2),
        b'l' => Some(4),
        b'q' => Some(8),
        _ => None,
    }
}

/// The commands whose last letter is a width.
fn sized(name: &str, arguments: &[&str]) -> Option<Result<Command, Failure>> {
    let (stem, suffix) = name.split_at_checked(name.len().checked_sub(1)?)?;
    let width = width(*suffix.as_bytes().first()?)?;
    Some(match (stem, arguments) {
        ("in", [at]) if width < 8 => port(at).map(|port| Command::In { port, width }),
        ("out", [at, value]) if width < 8 => port(at).and_then(|port| {
            Ok(Command::Out {
                port,
                width,
                value: number(value)?,
            })
        }),
        ("read", [at]) => number(at).map(|address| Command::Read { address, width }),
        ("write", [at, value]) => number(at).and_then(|address| {
            Ok(Command::Write {
                address,
                width,
                value: number(value)?,
            })
        }),
        _ => return None,
    })
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(line: &str) -> Result<Command, Failure> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some((name, arguments)) = words.split_first() else {
        return Err("Unknown command ''".into());
    };
    match (*name, arguments) {
        ("clock_step", []) => Ok(Command::ClockStep(None)),
        ("clock_step", [by]) => Ok(Command::ClockStep(Some(number(by)?))),
        ("clock_set", [to]) => Ok(Command::ClockSet(number(to)?)),
        ("endianness", []) => Ok(Command::Endianness),
        ("irq_intercept_in", [device]) => Ok(Command::InterceptIn((*device).to_owned())),
        ("irq_intercept_in", [device, _]) => Ok(Command::InterceptNamedIn((*device).to_owned())),
        ("irq_intercept_out", [device] | [device, _]) => {
            Ok(Command::InterceptOut((*device).to_owned()))
        }
        ("set_irq_in", [device, list, input, level]) => Ok(Command::SetIrqIn {
            device: (*device).to_owned(),
            list: (*list).to_owned(),
            number: u32::try_from(number(input)?).map_err(|_| "no such input")?,
            level: number(level)? != 0,
        }),
        ("module_load", [_, _]) => Ok(Command::ModuleLoad),
        ("read", [_, count]) if length(count)? == 0 => Err("there is nothing to read".into()),
        ("read" | "b64read", [at, count]) => Ok(Command::ReadBytes {
            address: number(at)?,
            length: length(count)?,
            encoding: if *name == "read" {
                Encoding::Hexadecimal
            } else {
                Encoding::Base64
            },
        }),
        ("write", [at, count, data]) => Ok(Command::WriteBytes {
            address: number(at)?,
            bytes: hexadecimal(data, length(count)?)?,
        }),
        ("b64write", [at, count, data]) => {
            if data.len() < SHORTEST_DATA {
                return Err(TOO_SHORT);
            }
            let bytes = base64::decode(data).ok_or("the data are not base64")?;
            if bytes.len() != length(count)? {
                return Err("the data have another length".into());
            }
            Ok(Command::WriteBytes {
                address: number(at)?,
                bytes,
            })
        }
        ("memset", [at, count, value]) => Ok(Command::WriteBytes {
            address: number(at)?,
            bytes: vec![number(value)?.to_le_bytes()[0]; length(count)?],
        }),
        _ => sized(name, arguments)
            .unwrap_or_else(|| Err(format!("Unknown command '{name}'").into())),
    }
}
