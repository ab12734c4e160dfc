//! A BAR as a device of an address space.
//!
//! Called on vCPU threads.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::bus::{FLOATING, MmioDevice, PioDevice};
use crate::exits::ExitTimes;
use crate::pci::{BarIndex, PciFunction};

/// A BAR in an address space: turns absolute addresses into offsets.
pub(super) struct BarWindow {
    pub(super) function: Arc<dyn PciFunction>,
    pub(super) bar: BarIndex,
    pub(super) exits: Arc<ExitTimes>,
    pub(super) range: RangeInclusive<u64>,
}

impl BarWindow {
    /// Offset of an access, and how many of its bytes lie in the window.
    fn clip(&self, address: u64, len: usize) -> (u64, usize) {
        let offset = address.saturating_sub(*self.range.start());
        let room = self.range.end().saturating_sub(address).saturating_add(1);
        (
            offset,
            usize::try_from(room).map_or(len, |room| len.min(room)),
        )
    }

    fn read_at(&self, address: u64, data: &mut [u8]) {
        let (offset, len) = self.clip(address, data.len());
        data[len..].fill(FLOATING);
        self.function.bar_read(self.bar, offset, &mut data[..len]);
    }

    fn write_at(&self, address: u64, data: &[u8]) {
        let (offset, len) = self.clip(address, data.len());
        let write = || self.function.bar_write(self.bar, offset, &data[..len]);
        self.exits.time(write);
    }
}

impl PioDevice for BarWindow {
    fn read(&self, port: u16, data: &mut [u8]) {
        self.read_at(u64::from(port), data);
    }

    fn write(&self, port: u16, data: &[u8]) {
        self.write_at(u64::from(port), data);
    }
}

impl MmioDevice for BarWindow {
    fn read(&self, address: u64, data: &mut [u8]) {
        self.read_at(address, data);
    }

    fn write(&self, address: u64, data: &[u8]) {
        self.write_at(address, data);
    }
}
