//! `info block-jobs`, and the verbs of block jobs: each is a command of QMP, in other words.

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_block::job::JobKind;

use super::numbers::{MIB, read_size_in};
use crate::qmp::commands::{Command, Monitor};

/// What a command's arguments are to be.
const DEVICE: &str = "block device name expected";
const STRING: &str = "string expected";
const TOO_MANY: &str = "extraneous characters at the end of line";

/// What is to be shown if the arguments are not understood.
struct Usage(String);

impl Usage {
    fn of(command: &str, problem: &str) -> Self {
        Self::bare(command, &format!("{command}: {problem}"))
    }

    fn bare(command: &str, problem: &str) -> Self {
        Self(format!(
            "{problem}\nTry \"help {command}\" for more information\n"
        ))
    }
}

/// A line's words, taken one after the other.
struct Words<'a> {
    command: &'a str,
    rest: &'a [&'a str],
}

impl<'a> Words<'a> {
    /// Takes the flags, each a letter of `known`, that come first. Returns those that were given.
    fn flags(&mut self, known: &str) -> Result<String, Usage> {
        let mut given = String::new();
        while let [first, rest @ ..] = self.rest
            && let Some(letters) = first.strip_prefix('-')
        {
            let mut letters = letters.chars();
            match (letters.next(), letters.next()) {
                (Some(letter), None) if known.contains(letter) => given.push(letter),
                _ => {
                    let problem = format!("unsupported option {first}");
                    return Err(Usage::of(self.command, &problem));
                }
            }
            self.rest = rest;
        }
        Ok(given)
    }

    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn expect(&mut self, what: &str) -> Result<&'a str, Usage> {
        let command = self.command;
        self.next().ok_or_else(|| Usage::of(command, what))
    }

    /// A size in MiB, or in what its suffix says.
    fn size(&mut self) -> Result<Value, Usage> {
        let text = self.next().unwrap_or_default();
        let size = read_size_in(text, MIB);
        let size = size.map_err(|_| Usage::bare(self.command, "invalid size"))?;
        Ok(size.into())
    }

    fn end(&self) -> Result<(), Usage> {
        match self.rest {
            [] => Ok(()),
            _ => Err(Usage::of(self.command, TOO_MANY)),
        }
    }
}

/// `info block-jobs`.
pub(super) fn info(monitor: &Monitor) -> String {
    let jobs = monitor.graph.jobs().query_block_jobs();
    if jobs.is_empty() {
        return "No active jobs\n".to_owned();
    }
    let line = |job: &sluice_block::job::BlockJobInfo| {
        let head = match job.kind {
            JobKind::Stream => "Streaming device".to_owned(),
            kind => format!("Type {kind}, device"),
        };
        format!(
            "{head} {}: Completed {} of {} bytes, speed limit {} bytes/s\n",
            job.device, job.offset, job.len, job.speed
        )
    };
    jobs.iter().map(line).collect()
}

/// Executes one of the commands here; none if it is not.
pub(super) async fn run(monitor: &Monitor, command: &str, rest: &[&str]) -> Option<String> {
    let words = Words { command, rest };
    let read = match command {
        "block_job_cancel" => cancel(words),
        "block_job_complete" => device_alone(words, "block-job-complete"),
        "block_job_pause" => device_alone(words, "block-job-pause"),
        "block_job_resume" => device_alone(words, "block-job-resume"),
        "block_job_set_speed" => set_speed(words),
        "block_stream" => stream(words),
        "drive_backup" => drive_backup(words),
        "drive_mirror" => drive_mirror(words),
        _ => return None,
    };
    Some(match read {
        Ok((name, arguments)) => execute(monitor, name, arguments).await,
        Err(Usage(text)) => text,
    })
}

/// A command of QMP with its arguments.
type Request = (&'static str, Value);

async fn execute(monitor: &Monitor, name: &str, arguments: Value) -> String {
    let Some(command) = Command::find(name) else {
        return format!("Error: The command {name} has not been found\n");
    };
    match command.run(Arc::new(monitor.clone()), arguments).await {
        Ok(_) => String::new(),
        Err(error) => format!("Error: {}\n", error.desc),
    }
}

fn device_alone(mut words: Words<'_>, name: &'static str) -> Result<Request, Usage> {
    let device = words.expect(DEVICE)?;
    words.end()?;
    Ok((name, json!({"device": device})))
}

fn cancel(mut words: Words<'_>) -> Result<Request, Usage> {
    let force = words.flags("f")?.contains('f');
    let (name, mut arguments) = device_alone(words, "block-job-cancel")?;
    arguments["force"] = force.into();
    Ok((name, arguments))
}

fn set_speed(mut words: Words<'_>) -> Result<Request, Usage> {
    let device = words.expect(DEVICE)?;
    let speed = words.size()?;
    words.end()?;
    Ok((
        "block-job-set-speed",
        json!({"device": device, "speed": speed}),
    ))
}

fn stream(mut words: Words<'_>) -> Result<Request, Usage> {
    let mut arguments = json!({"device": words.expect(DEVICE)?});
    if !words.rest.is_empty() {
        arguments["speed"] = words.size()?;
    }
    if let Some(base) = words.next() {
        arguments["base"] = base.into();
    }
    words.end()?;
    Ok(("block-stream", arguments))
}

/// What `drive_mirror` and `drive_backup` have in common.
fn copy(words: &mut Words<'_>, flags: &str) -> Result<Value, Usage> {
    let mut arguments = json!({"device": words.expect(DEVICE)?, "target": words.expect(STRING)?});
    if let Some(format) = words.next() {
        arguments["format"] = format.into();
    }
    words.end()?;
    let sync = if flags.contains('f') { "full" } else { "top" };
    arguments["sync"] = sync.into();
    if flags.contains('n') {
        arguments["mode"] = "existing".into();
    }
    Ok(arguments)
}

fn drive_mirror(mut words: Words<'_>) -> Result<Request, Usage> {
    let flags = words.flags("nf")?;
    Ok(("drive-mirror", copy(&mut words, &flags)?))
}

fn drive_backup(mut words: Words<'_>) -> Result<Request, Usage> {
    let flags = words.flags("nfc")?;
    let mut arguments = copy(&mut words, &flags)?;
    if flags.contains('c') {
        arguments["compress"] = true.into();
    }
    Ok(("drive-backup", arguments))
}
