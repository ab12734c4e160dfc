//! The PIIX IDE function: two channels of ATA disks and ATAPI CD-ROM drives, with bus-master DMA.
//!
//! [`IdeController`] is function 1 of the south bridge (PCI 00:01.1). Its command and control
//! blocks sit at the PC's legacy ports, which the machine builder puts on the port bus; the bus
//! master's registers are BAR 4. Debian's `ata_piix` binds it.
//!
//! The guest pushes: a write of a port starts a disk request whenever the guest likes, in the middle of a drained
//! section too. Such a request is *postponed*: it is a value (`request`), which waits at the gate of the disk's
//! backend while BSY keeps the guest waiting, and runs when the section ends (design, section 5). A reset of
//! the channel settles first: what is parked is cancelled, what runs is waited for; only then registers change.
//!
//! | module | |
//! |---|---|
//! | `regs`, `ata` | the wire: registers, bits, command codes |
//! | `taskfile`, `disk`, `identify`, `smart`, `prd` | data: addresses, properties, tables |
//! | `atapi` | a CD-ROM drive: packet commands, tray, what is told of the medium |
//! | `core` | one channel's state machine: synchronous, without I/O |
//! | `request`, `serve` | a request as a value, and carrying it out |
//! | `removable` | the operator's way to a tray |
//! | `channel` | the lock, and the way from vCPU to loop and back |
//! | `controller` | the PCI function and its ports |
//!
//! Threads: registers are accessed on vCPU threads and never wait; requests are served in the context that the
//! controller was given, the main loop's.

mod ata;
mod atapi;
mod capacity;
mod channel;
mod controller;
mod core;
mod disk;
mod identify;
mod mailbox;
mod prd;
mod regs;
mod removable;
mod request;
mod serve;
mod smart;
mod stats;
mod taskfile;
#[cfg(test)]
mod tests;

pub use controller::{IdeConfig, IdeController, IdeVariant};
pub use disk::{DriveConfig, DriveKind};
pub use taskfile::Geometry;

use crate::pci::PciError;

/// Why a controller could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IdeError {
    /// A text property is too long or has characters other than printable ASCII.
    #[error(
        "'{value}' cannot be the property '{property}' of an IDE disk: at most {limit} printable ASCII characters"
    )]
    Text {
        /// The property.
        property: &'static str,
        /// What was asked for.
        value: String,
        /// How many characters fit.
        limit: usize,
    },
    /// A physical block that cannot be told of.
    #[error(
        "an IDE disk cannot have physical blocks of {0} bytes: a power of two from 512 to 16777216"
    )]
    PhysicalBlock(u32),
    /// A translation that addresses nothing, or more than the registers can.
    #[error("an IDE disk has 1 to 65535 cylinders, 1 to 16 heads, 1 to 255 sectors a track, not {}, {}, {}",
        .0.cylinders, .0.heads, .0.sectors)]
    Geometry(Geometry),
    /// The disk cannot be written; an ATA disk has no way to say so.
    #[error("IDE disk on {place} is read-only, which an ATA disk cannot be")]
    ReadOnly {
        /// Channel and device, such as `ide.0 unit 1`.
        place: String,
    },
    /// The disk has no sector.
    #[error("IDE disk on {place} has {bytes} bytes, less than a sector; make its image larger")]
    TooSmall {
        /// Channel and device.
        place: String,
        /// Length of the backend.
        bytes: u64,
    },
    /// The configuration space could not be laid out.
    #[error(transparent)]
    Pci(#[from] PciError),
}
