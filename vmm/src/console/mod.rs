//! The guest's serial line on this process's terminal or pipes.
//!
//! Output goes through a bounded queue to a thread of its own ([`SerialOutput`]); input is read by
//! the main loop ([`ConsoleInput`]). A terminal is in raw mode meanwhile ([`RawTerminal`]), so
//! that every key reaches the guest; `Ctrl-A x` is the way out ([`Escape`]).

mod escape;
mod input;
mod output;
mod terminal;

pub use escape::{Escape, Key};
pub use input::ConsoleInput;
pub use output::SerialOutput;
pub use terminal::RawTerminal;
