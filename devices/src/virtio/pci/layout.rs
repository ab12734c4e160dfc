//! The layout of virtio's PCI transport: identifiers, capabilities, the common configuration
//! structure.
//!
//! Source: VIRTIO 1.2, section 4.1. Nothing here has behaviour.

use crate::pci::BarIndex;

/// The vendor of every virtio device (section 4.1.2).
pub const VENDOR: u16 = 0x1af4;
/// PCI device ID of virtio device ID 0 (section 4.1.2).
pub const DEVICE_BASE: u16 = 0x1040;
/// Subsystem ID, at least 0x40 for a device that is not transitional.
pub const SUBSYSTEM: u16 = 0x1100;
/// Revision, at least 1 for a device that is not transitional.
pub const REVISION: u8 = 1;

/// "No vector" in the vector registers (section 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// The BAR with the virtio structures.
pub const STRUCTURES_BAR: BarIndex = BarIndex::BAR4;
/// Its size in bytes.
pub const STRUCTURES_LEN: u64 = 0x4000;
/// The BAR with MSI-X table and pending bits.
pub const MSIX_BAR: BarIndex = BarIndex::BAR1;

/// `cfg_type` of a capability (section 4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Structure {
    /// Common configuration.
    Common = 1,
    /// Notifications.
    Notify = 2,
    /// Interrupt status.
    Isr = 3,
    /// Device-specific configuration.
    Device = 4,
    /// Access to BARs by way of configuration space.
    PciAccess = 5,
}

impl Structure {
    /// The structures that lie in [`STRUCTURES_BAR`].
    pub const IN_BAR: [Self; 4] = [Self::Common, Self::Isr, Self::Device, Self::Notify];

    /// Where it lies in [`STRUCTURES_BAR`]: each has a page, so that it can be mapped alone.
    pub const fn offset(self) -> u32 {
        match self {
            Self::Common | Self::PciAccess => 0,
            Self::Isr => 0x1000,
            Self::Device => 0x2000,
            Self::Notify => 0x3000,
        }
    }

    /// Its length in bytes.
    pub const fn len(self) -> u32 {
        match self {
            Self::PciAccess => 0,
            Self::Common | Self::Isr | Self::Device | Self::Notify => 0x1000,
        }
    }

    /// The structure at an offset of [`STRUCTURES_BAR`], and the offset in it.
    pub fn at(offset: u64) -> Option<(Self, u64)> {
        Self::IN_BAR.into_iter().find_map(|structure| {
            let inner = offset.checked_sub(u64::from(structure.offset()))?;
            (inner < u64::from(structure.len())).then_some((structure, inner))
        })
    }
}

/// Bytes between the doorbells of two queues (`notify_off_multiplier`, section 4.1.4.4).
pub const NOTIFY_STRIDE: u32 = 4;
/// Most queues, so that all doorbells fit the structure.
pub const MAX_QUEUES: usize = (Structure::Notify.len() / NOTIFY_STRIDE) as usize;

/// Length of a capability behind ID and link: `virtio_pci_cap` (section 4.1.4).
pub const CAPABILITY_BODY_LEN: usize = 14;
/// Length of the additional field of the notification and the PCI access capabilities.
pub const CAPABILITY_EXTRA_LEN: usize = 4;
/// Offsets in a capability, from its ID.
pub mod capability {
    /// `bar`.
    pub const BAR: usize = 4;
    /// `offset`.
    pub const OFFSET: usize = 8;
    /// `length`.
    pub const LENGTH: usize = 12;
    /// `pci_cfg_data`, or `notify_off_multiplier`.
    pub const EXTRA: usize = 16;
}

/// Offsets of `virtio_pci_common_cfg` (section 4.1.4.3).
pub mod common {
    /// `device_feature_select`, 32 bits.
    pub const DEVICE_FEATURE_SELECT: usize = 0;
    /// `device_feature`, 32 bits, read-only.
    pub const DEVICE_FEATURE: usize = 4;
    /// `driver_feature_select`, 32 bits.
    pub const DRIVER_FEATURE_SELECT: usize = 8;
    /// `driver_feature`, 32 bits.
    pub const DRIVER_FEATURE: usize = 12;
    /// `config_msix_vector`, 16 bits.
    pub const CONFIG_MSIX_VECTOR: usize = 16;
    /// `num_queues`, 16 bits, read-only.
    pub const NUM_QUEUES: usize = 18;
    /// `device_status`, 8 bits.
    pub const DEVICE_STATUS: usize = 20;
    /// `config_generation`, 8 bits, read-only.
    pub const CONFIG_GENERATION: usize = 21;
    /// `queue_select`, 16 bits.
    pub const QUEUE_SELECT: usize = 22;
    /// `queue_size`, 16 bits.
    pub const QUEUE_SIZE: usize = 24;
    /// `queue_msix_vector`, 16 bits.
    pub const QUEUE_MSIX_VECTOR: usize = 26;
    /// `queue_enable`, 16 bits.
    pub const QUEUE_ENABLE: usize = 28;
    /// `queue_notify_off`, 16 bits, read-only.
    pub const QUEUE_NOTIFY_OFF: usize = 30;
    /// `queue_desc`, 64 bits.
    pub const QUEUE_DESC: usize = 32;
    /// `queue_driver`, 64 bits.
    pub const QUEUE_DRIVER: usize = 40;
    /// `queue_device`, 64 bits.
    pub const QUEUE_DEVICE: usize = 48;
    /// `queue_notify_data`, 16 bits, read-only; without the feature it is the queue's number.
    pub const QUEUE_NOTIFY_DATA: usize = 56;
    /// `queue_reset`, 16 bits.
    pub const QUEUE_RESET: usize = 58;
    /// Length of the structure.
    pub const LEN: usize = 60;
}

bitflags::bitflags! {
    /// Interrupt status (section 4.1.4.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Isr: u8 {
        /// A queue.
        const QUEUE = 1 << 0;
        /// The configuration changed.
        const CONFIG = 1 << 1;
    }
}
