//! This process's terminal or pipes: the guest's serial line on them, and what requests by hand print.
//!
//! Output goes through a bounded queue to a thread of its own ([`QueuedOutput`]), that of requests by hand by way of
//! a [`Printer`]; input is read by
//! the main loop ([`ConsoleInput`]). A terminal is in raw mode meanwhile ([`RawTerminal`]), so
//! that every key reaches the guest; `Ctrl-A x` is the way out ([`Escape`]).

mod escape;
mod input;
mod output;
mod printer;
mod terminal;

pub use escape::{Escape, Key};
pub use input::ConsoleInput;
pub use output::QueuedOutput;
pub use printer::{PrintPlace, Printer};
pub use terminal::RawTerminal;
