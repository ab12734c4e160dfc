//! The rules file of `blkdebug` (`config=`), in QEMU's notation of configuration files:
//!
//! ```text
//! [inject-error]
//! event = "write_aio"
//! errno = "28"
//!
//! [set-state]
//! event = "flush_to_disk"
//! new_state = "2"
//! ```
//!
//! Empty lines and lines that begin with `#` say nothing. Error texts are QEMU's.

use std::path::Path;
use std::str::FromStr;

use super::event::{DebugEvent, IoType};
use super::rules::{InjectError, SetState};
use crate::error::{BlockError, Result};

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) errors: Vec<InjectError>,
    pub(super) changes: Vec<SetState>,
}

/// Reads the file; blocks.
///
/// # Errors
/// It can't be read, or says something unknown.
pub(super) fn read(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let reason = match error.raw_os_error() {
            Some(errno) => rustix::io::Errno::from_raw_os_error(errno).to_string(),
            None => error.to_string(),
        };
        refused(format!("Could not read blkdebug config file: {reason}"))
    })?;
    parse(&text)
}

fn refused(text: impl Into<String>) -> BlockError {
    BlockError::Refused(text.into())
}

/// One group as it stands in the file.
struct Group<'a> {
    is_error: bool,
    values: Vec<(&'a str, &'a str)>,
}

fn parse(text: &str) -> Result<Config> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(head) = line.strip_prefix('[') {
            groups.push(group(head)?);
            continue;
        }
        let group = groups
            .last_mut()
            .ok_or_else(|| refused("no group defined"))?;
        let parse_error = || refused(format!("parse error: '{line}'"));
        let (key, value) = line.split_once('=').ok_or_else(parse_error)?;
        let value = value
            .trim()
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'));
        group
            .values
            .push((key.trim(), value.ok_or_else(parse_error)?));
    }
    let mut config = Config::default();
    for group in groups {
        if group.is_error {
            config.errors.push(inject_error(&group)?);
        } else {
            config.changes.push(set_state(&group)?);
        }
    }
    Ok(config)
}

/// A header without its first bracket: `inject-error]` or `inject-error "name"]`.
fn group(head: &str) -> Result<Group<'_>> {
    let name = head.strip_suffix(']').unwrap_or(head);
    let name = name.split_whitespace().next().unwrap_or_default();
    let is_error = match name {
        "inject-error" => true,
        "set-state" => false,
        _ => return Err(refused(format!("There is no option group '{name}'"))),
    };
    Ok(Group {
        is_error,
        values: Vec::new(),
    })
}

fn inject_error(group: &Group<'_>) -> Result<InjectError> {
    let mut rule = InjectError::new(event(group)?, libc::EIO);
    for (key, value) in &group.values {
        match *key {
            "event" => {}
            "state" => rule.state = number(key, value)?,
            "iotype" => {
                let iotype = IoType::from_name(value).ok_or_else(|| invalid(value))?;
                rule.iotype = Some(iotype);
            }
            "errno" => rule.errno = number(key, value)?,
            "sector" => rule.sector = number(key, value)?,
            "once" => rule.once = boolean(key, value)?,
            "immediately" => rule.immediately = boolean(key, value)?,
            _ => return Err(unknown(key)),
        }
    }
    Ok(rule)
}

fn set_state(group: &Group<'_>) -> Result<SetState> {
    let mut rule = SetState {
        event: event(group)?,
        state: 0,
        new_state: 0,
    };
    for (key, value) in &group.values {
        match *key {
            "event" => {}
            "state" => rule.state = number(key, value)?,
            "new_state" => rule.new_state = number(key, value)?,
            _ => return Err(unknown(key)),
        }
    }
    Ok(rule)
}

fn event(group: &Group<'_>) -> Result<DebugEvent> {
    let name = group.values.iter().find(|(key, _)| *key == "event");
    let (_, name) = name.ok_or_else(|| refused("Missing event name for rule"))?;
    DebugEvent::from_name(name).ok_or_else(|| invalid(name))
}

fn invalid(value: &str) -> BlockError {
    refused(format!("invalid parameter value: {value}"))
}

fn unknown(key: &str) -> BlockError {
    refused(format!("Invalid parameter '{key}'"))
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T> {
    let parsed = value.parse();
    parsed.map_err(|_| refused(format!("Parameter '{key}' expects a number")))
}

fn boolean(key: &str, value: &str) -> Result<bool> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(refused(format!("Parameter '{key}' expects 'on' or 'off'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_the_same_as_options() {
        let text = r#"
            # ENOSPC, once, after the second flush
            [inject-error "full"]
            event = "write_aio"
            state = "2"
            iotype = "write"
            errno = "28"
            sector = "64"
            once = "on"
            immediately = "off"

            [set-state]
            event = "flush_to_disk"
            state = "1"
            new_state = "2"
        "#;
        let mut rule = InjectError::new(DebugEvent::WriteAio, 28);
        rule.state = 2;
        rule.iotype = Some(IoType::Write);
        rule.sector = 64;
        rule.once = true;
        let change = SetState {
            event: DebugEvent::FlushToDisk,
            state: 1,
            new_state: 2,
        };
        let expected = Config {
            errors: vec![rule],
            changes: vec![change],
        };
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn mistakes_are_named_in_qemus_words() {
        let cases = [
            ("event = \"read_aio\"", "no group defined"),
            ("[inject-erro]", "There is no option group 'inject-erro'"),
            ("[inject-error]", "Missing event name for rule"),
            (
                "[set-state]\nevent = \"reed\"",
                "invalid parameter value: reed",
            ),
            (
                "[inject-error]\nevent = \"read_aio\"\nbogus = \"1\"",
                "Invalid parameter 'bogus'",
            ),
            (
                "[inject-error]\nevent = \"read_aio\"\nstate = \"x\"",
                "Parameter 'state' expects a number",
            ),
            (
                "[inject-error]\nevent = \"read_aio\"\nonce = \"1\"",
                "Parameter 'once' expects 'on' or 'off'",
            ),
            (
                "[inject-error]\nevent = read_aio",
                "parse error: 'event = read_aio'",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text}");
        }
        let missing = read(Path::new("/nonexistent/rules"))
            .unwrap_err()
            .to_string();
        assert!(
            missing.starts_with("Could not read blkdebug config file: No such file"),
            "{missing}"
        );
    }
}
