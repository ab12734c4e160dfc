//! `human-monitor-command`: the few commands of QEMU's human monitor that storage people test with.
//!
//! What goes wrong is not an error of QMP: its text is the answer. Lines end as QEMU's monitor ends
//! them, with CR and LF. What a request by hand (`qemu-io`) has to say is printed by the process itself, as in QEMU; it is the answer
//! only for who asks for that, and for people ([`Show`]).

mod info;
mod jobs;
mod numbers;
mod qemu_io;

use std::sync::Arc;

use serde::Deserialize;

use super::Monitor;
use crate::control::{Cause, ControlError};
use crate::qmp::error::QmpError;
pub use qemu_io::QemuIo;

const HELP: &str = "\
block_job_cancel [-f] device -- stop a block job; one that is ready finishes its copy unless -f is given
block_job_complete device -- let a block job that is ready end
block_job_pause device -- have a block job rest
block_job_resume device -- have it go on
block_job_set_speed device value -- limit its speed, in MiB a second or by a suffix; 0: no limit
block_stream device [speed [base]] -- copy the images below a disk into its own
cont|c -- let the machine run
drive_backup [-n] [-f] [-c] device target [format] -- back a disk up to a file; -n: an existing one, -f: all of it
drive_mirror [-n] [-f] device target [format] -- mirror a disk to a file; -n: an existing one, -f: all of it
qemu-io [-d] device \"command\" -- make a request by hand
quit|q -- end the process
stop|s -- stop the machine
system_powerdown -- press the power button
system_reset -- reset the machine
";

const INFO_HELP: &str = "\
info block [-n] [-v] [device] -- show disks or, with -n, nodes
info block-jobs -- show block jobs
info status -- show what the machine does
";

/// Arguments of `human-monitor-command`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HumanMonitorCommand {
    command_line: String,
    /// Our own: what a request by hand says is wanted in the answer.
    x_output: Option<bool>,
    /// No command here is about a processor; `qmp-shell` names one all the same.
    #[expect(dead_code, reason = "accepted as QEMU does, and without meaning here")]
    cpu_index: Option<i64>,
}

pub(super) async fn human_monitor_command(
    monitor: Arc<Monitor>,
    arguments: HumanMonitorCommand,
) -> Result<String, QmpError> {
    let show = match arguments.x_output {
        Some(true) => Show::Answer,
        Some(false) | None => Show::Print,
    };
    Ok(human_line(&monitor, &arguments.command_line, show).await)
}

/// Where a request by hand says what it has to say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::qmp) enum Show {
    /// The process prints it, as in QEMU.
    Print,
    /// In the answer.
    Answer,
}

/// Executes a line of the human monitor; returns what is shown.
pub(in crate::qmp) async fn human_line(monitor: &Monitor, line: &str, show: Show) -> String {
    let text = match words(line) {
        Ok(words) => run(monitor, &words, show).await,
        Err(error) => error,
    };
    text.replace('\n', "\r\n")
}

/// What is shown of a verb of the machine: nothing, or why it was refused.
fn verb(result: Result<(), ControlError>) -> String {
    match result {
        Ok(()) => String::new(),
        Err(error) => format!("Error: {error}\n"),
    }
}

async fn run(monitor: &Monitor, words: &[String], show: Show) -> String {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => String::new(),
        ["info", "status"] => info::status(monitor),
        ["info", "block", options @ ..] => info::block(monitor, options).await,
        ["info", "block-jobs"] => jobs::info(monitor),
        ["info", topic, ..] => format!("unknown command: 'info {topic}'\n"),
        ["info"] | ["help" | "?", "info"] => INFO_HELP.to_owned(),
        ["qemu-io", "-d", device, command] | ["qemu-io", device, command] => {
            qemu_io::run(monitor, device, command, words.len() == 4, show).await
        }
        ["qemu-io", rest @ ..] => qemu_io_usage(rest),
        ["stop" | "s"] => verb(monitor.vm.pause().await),
        ["cont" | "c"] => verb(monitor.vm.resume().await),
        ["system_powerdown"] => verb(monitor.vm.powerdown()),
        ["system_reset"] => verb(monitor.vm.reset(Cause::HostQmpSystemReset).await),
        ["quit" | "q"] => {
            monitor.vm.quit(Cause::HostQmpQuit);
            String::new()
        }
        ["help" | "?"] => format!("{HELP}{INFO_HELP}"),
        ["help" | "?", command] => help_on(command),
        [command, rest @ ..] => {
            let done = jobs::run(monitor, command, rest).await;
            done.unwrap_or_else(|| format!("unknown command: '{command}'\n"))
        }
    }
}

/// What is wrong with the arguments of `qemu-io`.
fn qemu_io_usage(arguments: &[&str]) -> String {
    let problem = match arguments {
        [] | ["-d"] => "block device name expected",
        [_] | ["-d", _] => "string expected",
        _ => "extraneous characters at the end of line",
    };
    format!("qemu-io: {problem}\nTry \"help qemu-io\" for more information\n")
}

/// The line on that command, if there is one.
fn help_on(command: &str) -> String {
    let is_its = |line: &&str| {
        let names = line.split(' ').next().unwrap_or_default();
        names.split('|').any(|name| name == command)
    };
    let lines = HELP.lines().filter(is_its);
    lines.map(|line| format!("{line}\n")).collect()
}

/// Splits a line at blanks; a part in double quotes is one word, with `\"` and `\\` inside.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = line.chars().peekable();
    while let Some(first) = rest.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut word = String::new();
        if first != '"' {
            word.push(first);
            while let Some(next) = rest.next_if(|next| !next.is_whitespace()) {
                word.push(next);
            }
            words.push(word);
            continue;
        }
        loop {
            match rest.next() {
                Some('"') => break,
                Some('\\') => match rest.next() {
                    Some('n') => word.push('\n'),
                    Some(escaped @ ('"' | '\\' | '\'')) => word.push(escaped),
                    Some(other) => return Err(format!("unsupported escape code: '\\{other}'\n")),
                    None => return Err("unterminated string\n".to_owned()),
                },
                Some(other) => word.push(other),
                None => return Err("unterminated string\n".to_owned()),
            }
        }
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_are_one() {
        let expected = ["qemu-io", "disk", "write -P 5 0 512", "a\"b\\c", ""];
        let line = r#"  qemu-io disk  "write -P 5 0 512" "a\"b\\c" """#;
        assert_eq!(words(line).unwrap(), expected);
        assert_eq!(words("a \"b").unwrap_err(), "unterminated string\n");
        assert!(words(r#""\x""#).unwrap_err().contains("\\x"));
        assert!(words("  ").unwrap().is_empty());
    }
}
