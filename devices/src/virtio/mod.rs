//! Virtio: devices over shared-memory rings, on the PCI bus.
//!
//! ```text
//! vCPU --BAR access--> VirtioPci --start_queue / stop_queue--> dyn VirtioDevice
//!   |                    ^   registers, negotiation,                |
//!   | store to a         |   status, MSI-X                          | one task per queue
//!   v doorbell           |                                          v
//! eventfd ---------------|-----------------------------> loop of the queue's AioContext
//!                        +------- Interrupts::queue ------- Ring: pop chains, push used
//! ```
//!
//! [`VirtioPci`] is the transport (registers on vCPU threads), a [`VirtioDevice`] serves queues in
//! event loops, and [`Ring`] is the only code that looks at a guest's ring. Modern devices only.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, cited as "VIRTIO 1.2".

pub mod blk;
mod device;
mod kick;
mod pci;
mod ring;
#[cfg(test)]
pub(crate) mod testing;

pub use blk::{Geometry, VirtioBlk, VirtioBlkConfig};
pub use device::{ActiveQueue, DeviceId, Interrupts, Settling, VirtioDevice};
pub use kick::Kick;
pub use pci::{VirtioPci, VirtioPciParts};
pub use ring::{Chain, Ring, RingError};

use crate::pci::PciError;

bitflags::bitflags! {
    /// The device status field (VIRTIO 1.2, section 2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The guest has seen the device.
        const ACKNOWLEDGE = 1 << 0;
        /// The guest knows how to drive it.
        const DRIVER = 1 << 1;
        /// The driver is set up: the device lives.
        const DRIVER_OK = 1 << 2;
        /// Feature negotiation is complete.
        const FEATURES_OK = 1 << 3;
        /// The device has met an error that only a reset cures.
        const NEEDS_RESET = 1 << 6;
        /// The guest has given up on the device.
        const FAILED = 1 << 7;
    }

    /// Feature bits that belong to rings and transport, not to a kind of device (VIRTIO 1.2,
    /// section 6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RingFeatures: u64 {
        /// A descriptor may refer to a table of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// Notifications are suppressed by index rather than by flag.
        const EVENT_IDX = 1 << 29;
        /// Not a legacy device.
        const VERSION_1 = 1 << 32;
        /// The device reaches memory by the platform's ways, such as through an IOMMU, if there is
        /// one; a driver that does not care may not use it.
        const ACCESS_PLATFORM = 1 << 33;
        /// Queues can be reset one by one.
        const RING_RESET = 1 << 40;
    }
}

impl RingFeatures {
    /// What is offered unless somebody wants it otherwise.
    pub const USUAL: Self = Self::all().difference(Self::ACCESS_PLATFORM);
}

/// Why a virtio device could not be made. Only the machine builder meets these.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// The PCI side.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// No eventfd for a queue.
    #[error("no eventfd for a virtqueue")]
    EventFd(#[source] std::io::Error),
    /// More queues than the registers can address, or none.
    #[error("a virtio device cannot have {0} queues")]
    QueueCount(usize),
    /// A queue size that is not a power of two from 4 to 1024.
    #[error("invalid queue-size property ({0}), must be a power of 2 from 4 to 1024")]
    QueueSize(u16),
    /// A block size that is not a power of two from 512 up, or does not fit the device.
    #[error("a virtio disk cannot have blocks of {0} bytes")]
    BlockSize(u32),
    /// A property in bytes that is not a number of logical blocks; its name.
    #[error("{0} must be a multiple of logical_block_size")]
    NotInBlocks(&'static str),
    /// `min_io_size` has 16 bits for a number of blocks.
    #[error("min_io_size must not exceed 65535 logical blocks, but is {0} bytes")]
    MinIoSize(u32),
    /// A geometry with nothing in it.
    #[error(
        "cyls, heads and secs must be at least 1, but are {}, {} and {}",
        .0.cylinders, .0.heads, .0.sectors
    )]
    Geometry(Geometry),
    /// A limit of a range to discard or zero that is none, or more than a request can have.
    #[error("invalid {name} property ({value}), must be between 1 and {most}", most = blk::MAX_DISCARD_SECTORS)]
    SectorLimit {
        /// The property.
        name: &'static str,
        /// What it was to be, in sectors.
        value: u32,
    },
    /// A serial number that does not fit.
    #[error("the serial number {0:?} has more than 20 bytes")]
    Serial(String),
}
