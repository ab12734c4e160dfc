//! Monitors: QMP, the machine protocol, in QEMU's wire format, and a line mode for people.
//!
//! ```text
//!  stream ── Framer ── queue ── Session ── commands ──► Graph, jobs, VmControl, IoThreads
//!     ▲                             │ replies
//!     └──── Outbox ◄────────────────┴──────── EventBus ◄── block layer, machine (any thread)
//! ```
//!
//! The wire format, names, argument types and error texts are QEMU 10.0's for everything that is
//! implemented; `docs/qmp.md` lists the commands and where they differ. [`QmpServer`] is made by
//! `main` and lives in the main context; only [`EventBus`] is called from other threads.

pub mod blockdev;
mod commands;
mod console;
mod control;
mod descriptors;
mod error;
mod events;
pub(crate) mod image_name;
pub mod input;
pub mod json;
pub mod object;
mod outbox;
pub mod schema;
mod server;
mod session;
#[cfg(test)]
mod tests;

pub use commands::{Devices, Monitor};
pub use descriptors::Descriptors;
pub use error::{ErrorClass, QmpError};
pub use events::EventBus;
pub use server::{MonitorMode, QmpServer};

/// How a line on the wire ends, as in QEMU.
const LINE_END: &str = "\r\n";
