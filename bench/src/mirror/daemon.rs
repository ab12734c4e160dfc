//! The reference: `qemu-storage-daemon`, asked by QMP to do the same mirror.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Copied, Way};
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

fn node(name: &str, path: &Path, way: Way) -> String {
    let path = path.display();
    let more = match way {
        Way::Buffered => "",
        Way::Direct => ",cache.direct=on,aio=native",
    };
    format!("driver=file,node-name={name},discard=unmap,filename={path}{more}")
}

/// As [`super::ours::mirror`], by a daemon that is started for it.
///
/// # Errors
/// It can't be run, or refuses.
pub fn mirror(source: &Path, target: &Path, way: Way) -> Result<Copied> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("qmp");
    let listener = UnixListener::bind(&socket)?;
    let mut command = Command::new(PROGRAM);
    command
        .args(["--blockdev", &node("source", source, way)])
        .args(["--blockdev", &node("target", target, way)])
        .arg("--chardev")
        .arg(format!("socket,id=qmp,path={}", socket.display()))
        .args(["--monitor", "chardev=qmp"]);
    let before = children::processor_time();
    let mut child = command.spawn().context("can't run the daemon")?;
    let talk = || -> Result<f64> {
        let (stream, _) = listener.accept()?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let mut stream = stream;
        let mut next = move || -> Result<Value> {
            let line = lines.next().context("the daemon has ended")??;
            Ok(serde_json::from_str(&line)?)
        };
        let mut say = |command: &str, arguments: Value| -> Result<()> {
            let message = json!({"execute": command, "arguments": arguments});
            Ok(writeln!(stream, "{message}")?)
        };
        next()?;
        say("qmp_capabilities", json!({}))?;
        next()?;
        let began = Instant::now();
        let arguments =
            json!({"device": "source", "target": "target", "job-id": "job", "sync": "full"});
        say("blockdev-mirror", arguments)?;
        loop {
            let message = next()?;
            if message.get("error").is_some() || message["event"] == "BLOCK_JOB_COMPLETED" {
                bail!("the daemon's mirror failed: {message}");
            }
            if message["event"] == "BLOCK_JOB_READY" {
                break;
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        say("quit", json!({}))?;
        // A connection that is closed takes along the command that was not read yet.
        while next().is_ok() {}
        Ok(seconds)
    };
    let seconds = talk();
    if seconds.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    let seconds = seconds?;
    ensure!(status.success(), "{PROGRAM} failed");
    Ok(Copied {
        seconds,
        computed: children::processor_time() - before,
    })
}
