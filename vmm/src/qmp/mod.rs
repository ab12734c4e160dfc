//! QMP: the machine protocol on Unix sockets, in QEMU's wire format.
//!
//! ```text
//!  socket ── Framer ── Session ── commands ──► Graph, jobs, VmControl, IoThreads
//!     ▲                   │ replies
//!     └──── Outbox ◄──────┴──────── EventBus ◄── block layer, machine (any thread)
//! ```
//!
//! The wire format, names, argument types and error texts are QEMU 10.0's for everything that is
//! implemented; `docs/qmp.md` lists the commands and where they differ. [`QmpServer`] is made by
//! `main` and lives in the main context; only [`EventBus`] is called from other threads.

pub mod blockdev;
mod commands;
mod error;
mod events;
pub mod input;
pub mod json;
pub mod object;
mod outbox;
mod server;
mod session;
mod socket;
#[cfg(test)]
mod tests;

pub use commands::Monitor;
pub use error::{ErrorClass, QmpError};
pub use events::EventBus;
pub use server::QmpServer;
pub use socket::{SocketError, SocketFile, connect, listen};

/// How a line on the wire ends, as in QEMU.
const LINE_END: &str = "\r\n";
