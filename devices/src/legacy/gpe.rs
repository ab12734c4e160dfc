//! General-purpose events (ACPI 6.5 §4.8.5.1): the block GPE0, through which devices that are not part of
//! the fixed hardware have a guest run a method of the tables.
//!
//! Ports and numbers are those of PIIX4 boards as QEMU has them, for the clients that know them.

use std::sync::Arc;

use bitflags::bitflags;
use parking_lot::Mutex;

use crate::bus::PioDevice;
use crate::irq::IrqLine;
use crate::reset::{ResetHook, Resetting, settled};

bitflags! {
    /// The events, by the number of their method in the tables: bit N is `\_GPE._ENN`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct GeneralEvents: u16 {
        /// Something was plugged into the PCI bus, or is to be unplugged.
        const PCI_HOTPLUG = 1 << 1;
    }
}

#[derive(Default)]
struct Registers {
    status: u16,
    enable: u16,
}

/// The register block: status, then enable, 2 bytes each.
pub struct GpeBlock {
    registers: Mutex<Registers>,
    sci: Arc<dyn IrqLine>,
}

impl GpeBlock {
    /// First port of the block.
    pub const BASE: u16 = 0xafe0;
    /// Bytes of the block.
    pub const LENGTH: u8 = 4;
    /// Last port of the block.
    pub const LAST: u16 = Self::BASE + Self::LENGTH as u16 - 1;
    /// Where the enable register begins.
    const ENABLE: usize = 2;

    /// A block whose events drive `sci`, a level-triggered line.
    #[must_use]
    pub fn new(sci: Arc<dyn IrqLine>) -> Self {
        Self {
            registers: Mutex::default(),
            sci,
        }
    }

    /// Signals events. Any thread.
    pub fn raise(&self, events: GeneralEvents) {
        let mut registers = self.registers.lock();
        registers.status |= events.bits();
        self.update(&registers);
    }

    fn update(&self, registers: &Registers) {
        self.sci.set(registers.status & registers.enable != 0);
    }
}

impl PioDevice for GpeBlock {
    fn read(&self, port: u16, data: &mut [u8]) {
        let registers = self.registers.lock();
        let [s0, s1] = registers.status.to_le_bytes();
        let [e0, e1] = registers.enable.to_le_bytes();
        let start = usize::from(port.saturating_sub(Self::BASE));
        let from = [s0, s1, e0, e1].into_iter().chain(std::iter::repeat(0));
        for (to, from) in data.iter_mut().zip(from.skip(start)) {
            *to = from;
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        let mut registers = self.registers.lock();
        let start = usize::from(port.saturating_sub(Self::BASE));
        for (at, byte) in (start..).zip(data) {
            let shift = 8 * (at % Self::ENABLE);
            let value = u16::from(*byte) << shift;
            match at / Self::ENABLE {
                // A one clears the event.
                0 => registers.status &= !value,
                1 => registers.enable = (registers.enable & !(0xff << shift)) | value,
                _ => {}
            }
        }
        self.update(&registers);
    }
}

impl ResetHook for GpeBlock {
    fn reset(self: Arc<Self>) -> Resetting {
        let mut registers = self.registers.lock();
        *registers = Registers::default();
        self.update(&registers);
        drop(registers);
        settled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::testing::Line;

    const ENABLE: u16 = GpeBlock::BASE + 2;

    fn block() -> (Arc<GpeBlock>, Arc<Line>) {
        let sci = Arc::new(Line::default());
        (Arc::new(GpeBlock::new(sci.clone())), sci)
    }

    #[test]
    fn an_event_interrupts_while_it_is_enabled_and_not_acknowledged() {
        let (block, sci) = block();
        block.raise(GeneralEvents::PCI_HOTPLUG);
        assert!(!sci.level(), "not enabled yet");
        block.write(ENABLE, &[0x02]);
        assert!(sci.level());
        let mut all = [0xff; 4];
        block.read(GpeBlock::BASE, &mut all);
        assert_eq!(all, [2, 0, 2, 0]);
        block.write(GpeBlock::BASE, &[0xfd, 0xff]);
        assert!(sci.level(), "others were acknowledged");
        block.write(GpeBlock::BASE, &[0x02]);
        assert!(!sci.level());
        block.write(GpeBlock::BASE + 1, &[0xff, 0x00]);
        block.raise(GeneralEvents::PCI_HOTPLUG);
        assert!(!sci.level(), "a word over both registers disabled it");
    }

    #[test]
    fn a_reset_forgets_events() {
        let (block, sci) = block();
        block.write(ENABLE, &[0x02]);
        block.raise(GeneralEvents::PCI_HOTPLUG);
        drop(Arc::clone(&block).reset());
        assert!(!sci.level());
        block.raise(GeneralEvents::PCI_HOTPLUG);
        assert!(!sci.level(), "nothing is enabled");
    }
}
