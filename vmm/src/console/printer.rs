//! Where requests by hand print: standard output, as QEMU's do, unless a protocol is spoken there.
//!
//! Used by commands in tasks of the main context. The process closes it when it ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use super::QueuedOutput;

/// What is said of the output, and its thread's name.
const WHAT: &str = "printed text";

/// Where a [`Printer`] prints.
#[derive(Clone)]
pub enum PrintPlace {
    /// Standard output.
    StandardOutput,
    /// Standard error: messages on standard output must not be broken by text.
    StandardError,
    /// Where others write too; they close it.
    Shared(Arc<QueuedOutput>),
}

/// Prints texts. Its thread begins with the first of them.
pub struct Printer {
    place: PrintPlace,
    own: OnceLock<Option<QueuedOutput>>,
}

impl Printer {
    /// One that prints there.
    #[must_use]
    pub fn new(place: PrintPlace) -> Self {
        Self {
            place,
            own: OnceLock::new(),
        }
    }

    /// Prints a text and waits until it is there; where nobody reads, not for long, and where it can't be written, not at
    /// all. In a task of the main context.
    pub async fn print(&self, text: &str) {
        if text.is_empty() {
            return;
        }
        let output = match &self.place {
            PrintPlace::Shared(output) => Some(&**output),
            PrintPlace::StandardOutput => self.own(|| io::stdout().as_fd().try_clone_to_owned()),
            PrintPlace::StandardError => self.own(|| io::stderr().as_fd().try_clone_to_owned()),
        };
        if let Some(output) = output {
            output.print(text).await;
        }
    }

    fn own(&self, open: impl FnOnce() -> io::Result<OwnedFd>) -> Option<&QueuedOutput> {
        let start = || {
            let started = open().and_then(|file| QueuedOutput::start(file, WHAT));
            let failed = |error| tracing::warn!(%error, "{WHAT} is lost from here on");
            started.map_err(failed).ok()
        };
        self.own.get_or_init(start).as_ref()
    }

    /// Waits until all is written, as long as somebody reads.
    pub fn close(&self) {
        let lost = self.own.get().and_then(Option::as_ref);
        if let Some(lost) = lost.map(QueuedOutput::close).filter(|lost| *lost > 0) {
            tracing::warn!("{lost} bytes of {WHAT} were lost: nobody read them");
        }
    }
}
