//! Serial input: a subscriber of the main loop that reads standard input.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::fs::{FileType, fstat};
use sluice_devices::legacy::{SerialPort, SerialSink};

use super::escape::{Escape, HELP, Key};

const READ_SIZE: usize = 4096;

/// Reads standard input for the guest.
pub struct ConsoleInput {
    port: Arc<SerialPort>,
    /// Where help is written.
    output: Arc<dyn SerialSink>,
    /// Set for a terminal: pipes carry data that may hold any byte.
    escape: Option<Escape>,
    on_quit: Box<dyn Fn()>,
}

impl ConsoleInput {
    /// Input for `port`. With a `terminal`, `Ctrl-A x` calls `on_quit`.
    pub fn new(
        port: Arc<SerialPort>,
        output: Arc<dyn SerialSink>,
        terminal: bool,
        on_quit: impl Fn() + 'static,
    ) -> Self {
        let escape = terminal.then(Escape::default);
        Self {
            port,
            output,
            escape,
            on_quit: Box::new(on_quit),
        }
    }

    /// Whether standard input is of a kind that can be waited for: a terminal, a pipe, a socket.
    /// A file or `/dev/null` cannot, and there is no input then.
    #[must_use]
    pub fn possible() -> bool {
        let Ok(status) = fstat(io::stdin().as_fd()) else {
            return false;
        };
        match FileType::from_raw_mode(status.st_mode) {
            FileType::CharacterDevice => rustix::termios::isatty(io::stdin().as_fd()),
            FileType::Fifo | FileType::Socket => true,
            _ => false,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let Some(escape) = &mut self.escape else {
            self.port.receive(bytes);
            return;
        };
        let mut keys = Vec::with_capacity(bytes.len());
        for byte in bytes {
            match escape.take(*byte) {
                Key::Nothing => {}
                Key::Send(byte) => keys.push(byte),
                Key::Quit => (self.on_quit)(),
                Key::Help => HELP.bytes().for_each(|byte| self.output.send(byte)),
            }
        }
        self.port.receive(&keys);
    }
}

impl MutEventSubscriber for ConsoleInput {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&io::stdin(), EventSet::IN)) {
            tracing::warn!(
                ?error,
                "no serial input: standard input cannot be waited for"
            );
        }
    }

    fn process(&mut self, _: Events, ops: &mut EventOps<'_>) {
        let mut bytes = [0; READ_SIZE];
        match rustix::io::read(io::stdin().as_fd(), &mut bytes) {
            Ok(0) => {
                // The end of input is not the end of the machine.
                if let Err(error) = ops.remove(Events::empty(&io::stdin())) {
                    tracing::warn!(?error, "standard input stays watched");
                }
            }
            Ok(length) => self.take(&bytes[..length]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => {
                tracing::warn!(%error, "no serial input from here on");
                if let Err(error) = ops.remove(Events::empty(&io::stdin())) {
                    tracing::warn!(?error, "standard input stays watched");
                }
            }
        }
    }
}
