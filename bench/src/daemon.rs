//! The reference for jobs: `qemu-storage-daemon`, talked to by QMP.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::children;

/// The program's name.
const PROGRAM: &str = "qemu-storage-daemon";

/// Whether it can be run.
#[must_use]
pub fn is_installed() -> bool {
    let mut command = Command::new(PROGRAM);
    command
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok()
}

/// A daemon that runs and listens to us. Dropped, it is killed.
pub struct Daemon {
    child: Child,
    stream: UnixStream,
    lines: Lines<BufReader<UnixStream>>,
    /// Processor time of children before it began.
    computed_before: f64,
    directory: tempfile::TempDir,
}

impl Daemon {
    /// Starts it; `arguments` may name files in the directory that they are given.
    ///
    /// # Errors
    /// It can't be run, or does not answer.
    pub fn start(arguments: impl FnOnce(&Path) -> Vec<String>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("qmp");
        let listener = UnixListener::bind(&socket)?;
        let computed_before = children::processor_time();
        let child = Command::new(PROGRAM)
            .args(arguments(directory.path()))
            .arg("--chardev")
            .arg(format!("socket,id=qmp,path={}", socket.display()))
            .args(["--monitor", "chardev=qmp"])
            .spawn()
            .context("can't run the daemon")?;
        let (stream, _) = listener.accept()?;
        let lines = BufReader::new(stream.try_clone()?).lines();
        let mut daemon = Self {
            child,
            stream,
            lines,
            computed_before,
            directory,
        };
        daemon.next()?;
        daemon.say("qmp_capabilities", &json!({}))?;
        daemon.next()?;
        Ok(daemon)
    }

    /// A file of the directory that its arguments were made with.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Sends a command.
    ///
    /// # Errors
    /// It has ended.
    pub fn say(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let message = json!({"execute": command, "arguments": arguments});
        // At once: told to quit, it does not wait for the end of the line.
        Ok(self.stream.write_all(format!("{message}\n").as_bytes())?)
    }

    fn next(&mut self) -> Result<Value> {
        let line = self.lines.next().context("the daemon has ended")??;
        Ok(serde_json::from_str(&line)?)
    }

    /// Waits for an event of a block job.
    ///
    /// # Errors
    /// A command was refused, the job failed, or the daemon has ended.
    pub fn wait_for(&mut self, event: &str) -> Result<()> {
        loop {
            let message = self.next()?;
            let completed = message["event"] == "BLOCK_JOB_COMPLETED";
            let failed = completed && message["data"].get("error").is_some();
            if message.get("error").is_some() || failed {
                bail!("the daemon's job failed: {message}");
            }
            if message["event"] == event {
                return Ok(());
            }
            ensure!(!completed, "the daemon's job ended before {event}");
        }
    }

    /// Has it end; returns the processor time that it took, in seconds.
    ///
    /// # Errors
    /// It fails.
    pub fn quit(mut self) -> Result<f64> {
        self.say("quit", &json!({}))?;
        // A connection that is closed takes along the command that was not read yet.
        while self.next().is_ok() {}
        let status = self.child.wait()?;
        ensure!(status.success(), "{PROGRAM} failed");
        Ok(children::processor_time() - self.computed_before)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that has quit is no longer there.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
