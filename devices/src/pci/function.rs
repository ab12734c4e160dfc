//! What a device model implements to sit on the PCI bus.
//!
//! Called by [`super::PciBus`]: accesses on vCPU threads, [`PciFunction::reset`] and
//! [`PciFunction::retire`] on the main loop's.

use super::{BarIndex, ConfigChange, PciConfig};
use crate::reset::{Resetting, settled};

/// One PCI function.
///
/// Every method may be called from several vCPU threads at once and returns without waiting for
/// I/O.
pub trait PciFunction: Send + Sync {
    /// Its configuration space.
    fn config(&self) -> &PciConfig;

    /// A read of configuration space: `data.len()` bytes (1 to 4) at `offset`, within one aligned
    /// doubleword.
    ///
    /// To be overridden only by functions with registers that are computed when read.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// A write of configuration space, as [`PciFunction::read_config`]. Returns what it changed, as
    /// [`PciConfig::write`] told; the bus moves the BARs.
    ///
    /// To be overridden by functions that act on a write: do `let change =
    /// self.config().write(offset, data)` first, then act on the state that is in force now.
    fn write_config(&self, offset: usize, data: &[u8]) -> ConfigChange {
        self.config().write(offset, data)
    }

    /// A read of `data.len()` bytes at `offset` of a BAR; never beyond the BAR's size.
    fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        let _ = (bar, offset);
        data.fill(0xff);
    }

    /// A write of `data` at `offset` of a BAR; never beyond the BAR's size.
    fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        let _ = (bar, offset, data);
    }

    /// A BAR answers at the address `place` from now on, or nowhere. For functions that bind
    /// doorbells to addresses.
    fn bar_placed(&self, bar: BarIndex, place: Option<u64>) {
        let _ = (bar, place);
    }

    /// A machine reset: ends what the function has in flight (finishes or drops every request,
    /// releases what is parked: design, section 5 rule 6), then brings the device's own registers
    /// to their power-on values. The bus resets the configuration space after that. Called on the
    /// main loop's thread with no vCPU running.
    fn reset(&self) -> Resetting;

    /// The machine ends for good: as a reset, but from now on the function begins nothing any more,
    /// whatever is written to it. When it is over, its disk may be taken away. Called on the main
    /// loop's thread with no vCPU running.
    fn retire(&self) -> Resetting {
        settled()
    }
}
