//! PCI: functions, their configuration space, and the one bus of the machine.
//!
//! ```text
//! vCPU --port 0xcf8..=0xcff--> PciBus --(device, function, offset)--> dyn PciFunction
//!                                 |                                        |
//!                                 |  after a write: where are the BARs?    | owns a PciConfig
//!                                 v                                        v
//!                      PioBus / MmioBus  <-- BarWindow --> bar_read / bar_write(bar, offset, data)
//! ```
//!
//! A device model implements [`PciFunction`]: it owns a [`PciConfig`] made with a [`ConfigBuilder`]
//! and answers accesses to its BARs *by offset*; where a BAR sits in the guest's address space is
//! the bus's affair. The bus watches the command register and the BARs and moves the windows when
//! the guest does.
//!
//! ```text
//! struct Widget { config: PciConfig }
//!
//! impl PciFunction for Widget {
//!     fn config(&self) -> &PciConfig { &self.config }
//!     fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) { /* registers */ }
//!     fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) { /* registers */ }
//!     fn reset(&self) -> Resetting { /* settle what is in flight, then registers to power-on */ }
//! }
//! let config = ConfigBuilder::new(Identity { vendor: 0x8086, device: 0x7010, revision: 0, class: class::IDE })
//!     .bar(BarIndex::BAR4, BarKind::Io, 16)?
//!     .build();
//! bus.add(Address::new(1, 1), Arc::new(Widget { config }))?;
//! ```
//!
//! Threads: configuration accesses and BAR accesses come from vCPU threads, from several at a time.
//! The locks in here guard bytes only: none is held while something waits for I/O.

mod allocator;
mod bar;
mod bridges;
mod bus;
mod config;
mod function;
mod intx;
pub mod layout;
pub mod msix;

pub use allocator::BarAllocator;
pub use bar::{BarIndex, BarKind};
pub use bridges::{Bridge, VENDOR_INTEL};
pub use bus::{CONFIG_PORTS, PciBus};
pub use config::{ConfigBuilder, ConfigChange, Identity, PciConfig};
pub use function::PciFunction;
pub use intx::{IntxRouter, WIRES};
pub use layout::class;
pub use msix::Msix;

use std::fmt;

/// The place of a function on the bus: device 0 to 31, function 0 to 7 (PCI Local Bus 3.0, section
/// 3.2.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    device: u8,
    function: u8,
}

impl Address {
    /// Number of devices on a bus.
    pub const DEVICES: u8 = 32;
    /// Number of functions of a device.
    pub const FUNCTIONS: u8 = 8;

    /// The address of `function` of `device`; bits beyond the fields' widths are cut off.
    pub const fn new(device: u8, function: u8) -> Self {
        Self {
            device: device % Self::DEVICES,
            function: function % Self::FUNCTIONS,
        }
    }

    /// Device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// Function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.function
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.device, self.function)
    }
}

/// Why a function or a BAR could not be set up. Only the machine builder meets these.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// Another function sits there already.
    #[error("PCI slot {0} is taken")]
    SlotTaken(Address),
    /// All devices of the bus have a function 0.
    #[error("no free PCI slot")]
    BusFull,
    /// A BAR's size is not a power of two, or too small or too large for its kind.
    #[error("BAR {bar} cannot have {size} bytes")]
    BarSize {
        /// Which BAR.
        bar: usize,
        /// The size asked for, in bytes.
        size: u64,
    },
    /// A BAR (or the upper half of a 64-bit one) is defined already, or a 64-bit BAR would start at
    /// BAR 5.
    #[error("BAR {0} is not free")]
    BarTaken(usize),
    /// The capabilities do not fit between the header and the end of the configuration space.
    #[error("no room for a capability of {0} bytes")]
    CapabilityRoom(usize),
    /// The address window for BARs of this kind is used up.
    #[error("no room for a BAR of {0} bytes")]
    WindowFull(u64),
    /// More message-signalled vectors than the MSI-X table can have.
    #[error("{0} MSI-X vectors cannot be had")]
    VectorCount(usize),
    /// The interrupt controller refused a vector.
    #[error("no vector for MSI-X")]
    Vector(#[source] crate::irq::IrqError),
}

#[cfg(test)]
pub(crate) mod testing;
