//! The log of the traffic, in QEMU's form: what was received and sent, with the seconds since the client came.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use parking_lot::Mutex;

/// `--qtest-log`: where the traffic is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum QtestLog {
    /// To standard error, where nothing else was asked for.
    #[default]
    Stderr,
    /// Nowhere.
    None,
    /// Into this file, which is emptied first.
    File(PathBuf),
}

/// An open log. Any thread: interrupts are raised in all of them.
pub(super) struct Log(Mutex<State>);

struct State {
    place: Option<Box<dyn Write + Send>>,
    /// When the present client came.
    opened: Option<Instant>,
}

impl Log {
    /// Opens the log; a file that can't be written to is warned of, and nothing is logged then.
    pub(super) fn open(config: &QtestLog) -> Self {
        let place: Option<Box<dyn Write + Send>> = match config {
            QtestLog::Stderr => Some(Box::new(io::stderr())),
            QtestLog::None => None,
            QtestLog::File(path) => match File::create(path) {
                Ok(file) => Some(Box::new(file)),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "qtest's traffic isn't logged");
                    None
                }
            },
        };
        Self(Mutex::new(State {
            place,
            opened: None,
        }))
    }

    /// A client has come.
    pub(super) fn opened(&self) {
        let mut state = self.0.lock();
        state.opened = Some(Instant::now());
        // QEMU's form has no plus sign here alone.
        state.write(|seconds| format!("[I {seconds:.6}] OPENED\n"));
    }

    /// The client has gone.
    pub(super) fn closed(&self) {
        let mut state = self.0.lock();
        state.write(|seconds| format!("[I +{seconds:.6}] CLOSED\n"));
        state.opened = None;
    }

    /// A command has come.
    pub(super) fn received(&self, line: &str) {
        let mut state = self.0.lock();
        state.write(|seconds| format!("[R +{seconds:.6}] {line}\n"));
    }

    /// An answer goes, or word of an interrupt.
    pub(super) fn sent(&self, line: impl Display) {
        let mut state = self.0.lock();
        state.write(|seconds| format!("[S +{seconds:.6}] {line}\n"));
    }
}

impl State {
    fn write(&mut self, line: impl FnOnce(f64) -> String) {
        if let (Some(place), Some(opened)) = (&mut self.place, self.opened)
            && let Err(error) = place.write_all(line(opened.elapsed().as_secs_f64()).as_bytes())
        {
            tracing::debug!(%error, "qtest's traffic isn't logged any more");
            self.place = None;
        }
    }
}
