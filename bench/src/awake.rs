//! Processors that never sleep.
//!
//! A write wakes whoever serves it. On a virtual machine that costs ten times the write itself if the processor was
//! idle, and nothing if something else kept it busy, as a copy beside the writes does. So whatever is compared with
//! and without a copy needs processors that are as awake without it.

use std::io;
use std::process::{Child, Command, Stdio};
use std::thread::available_parallelism;

use crate::timing::Effort;

/// Programs in the idle scheduling class (sched(7)), one for each processor that this process may use: they run
/// where nobody else wants to. They end when this is dropped, or with the thread that made it.
#[derive(Debug)]
pub struct Awake(Vec<Child>);

impl Awake {
    /// Starts them, or says why not.
    pub fn keep(effort: Effort) -> Option<Self> {
        if effort == Effort::Smoke {
            return None;
        }
        match Self::start() {
            Ok(awake) => Some(awake),
            Err(error) => {
                eprintln!(
                    "can't keep processors awake: {error}; copies will seem to quicken writes"
                );
                None
            }
        }
    }

    /// Starts them.
    ///
    /// # Errors
    /// util-linux's `setpriv` is missing.
    fn start() -> io::Result<Self> {
        let count = available_parallelism()?.get();
        let mut awake = Self(Vec::with_capacity(count));
        for _ in 0..count {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "chrt", "--idle", "0"]);
            command.args(["sh", "-c", "while :; do :; done"]);
            awake.0.push(command.stdin(Stdio::null()).spawn()?);
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if let Err(error) = child.kill().and_then(|()| child.wait()) {
                eprintln!("can't end the program that kept a processor awake: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_run_idly_and_end() {
        let awake = match Awake::start() {
            Ok(awake) => awake,
            Err(error) => return println!("SKIPPED: setpriv: {error}"),
        };
        let pids: Vec<u32> = awake.0.iter().map(Child::id).collect();
        assert_eq!(pids.len(), available_parallelism().unwrap().get());
        drop(awake);
        for pid in pids {
            let path = format!("/proc/{pid}");
            assert!(
                !std::path::Path::new(&path).exists(),
                "{path} is there still"
            );
        }
    }
}
