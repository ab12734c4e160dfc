//! Raw mode, and out of it again on every way out.

use std::io;
use std::os::fd::AsFd;

use parking_lot::Mutex;
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};

/// The terminal's settings before raw mode, while it is in raw mode.
static COOKED: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal on standard input is in raw mode while this lives. A panic on any thread ends
/// raw mode too, before its message is printed.
pub struct RawTerminal(());

impl RawTerminal {
    /// Switches the terminal on standard input to raw mode; none when there is no terminal.
    ///
    /// Control characters are not interpreted any more, so that Ctrl-C reaches the guest. Output
    /// is still processed: our own messages end their lines with a line feed only.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn enter() -> io::Result<Option<Self>> {
        let input = io::stdin();
        if !isatty(input.as_fd()) {
            return Ok(None);
        }
        let cooked = tcgetattr(input.as_fd())?;
        let mut raw = cooked.clone();
        raw.make_raw();
        raw.output_modes |= OutputModes::OPOST;
        *COOKED.lock() = Some(cooked);
        let guard = Self(());
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            next(panic);
        }));
        tcsetattr(input.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let Some(cooked) = COOKED.lock().take() else {
        return;
    };
    if let Err(error) = tcsetattr(io::stdin().as_fd(), OptionalActions::Flush, &cooked) {
        tracing::warn!(%error, "the terminal stays in raw mode (type: stty sane)");
    }
}
