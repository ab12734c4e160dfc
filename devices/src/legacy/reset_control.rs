//! The reset control register of Intel's chip sets at port 0xcf9 (PIIX3 datasheet §2.5.4), which
//! the ACPI tables name as the machine's reset register.

use std::sync::Arc;

use bitflags::bitflags;
use parking_lot::Mutex;

use super::{MachineRequest, MachineRequests};
use crate::bus::PioDevice;

bitflags! {
    /// The register's bits.
    #[derive(Debug, Clone, Copy)]
    struct Control: u8 {
        /// What a reset is: of the whole system, or of the CPU alone.
        const SYSTEM_RESET = 1 << 1;
        /// The rising edge of this bit starts the reset.
        const RESET_CPU = 1 << 2;
    }
}

/// The register.
pub struct ResetControl {
    control: Mutex<Control>,
    machine: Arc<dyn MachineRequests>,
}

impl ResetControl {
    /// The register's port.
    pub const PORT: u16 = 0xcf9;
    /// What a guest stores for a reset of the whole system.
    pub const FULL_RESET: u8 = Control::SYSTEM_RESET.union(Control::RESET_CPU).bits();

    /// A register that resets `machine`.
    #[must_use]
    pub fn new(machine: Arc<dyn MachineRequests>) -> Self {
        Self {
            control: Mutex::new(Control::empty()),
            machine,
        }
    }
}

impl PioDevice for ResetControl {
    fn read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = self.control.lock().bits();
        }
    }

    fn write(&self, _port: u16, data: &[u8]) {
        let Some(value) = data.first() else { return };
        let new = Control::from_bits_truncate(*value);
        // The reset bit reads back as zero: the reset clears the register.
        *self.control.lock() = new.difference(Control::RESET_CPU);
        if new.contains(Control::RESET_CPU) {
            self.machine.raise(MachineRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::testing::Recorder;

    #[test]
    fn reset_starts_with_the_reset_bit_only() {
        let machine = Arc::new(Recorder::default());
        let register = ResetControl::new(machine.clone());
        register.write(ResetControl::PORT, &[0x02]);
        assert!(machine.0.lock().is_empty());
        let mut value = [0];
        register.read(ResetControl::PORT, &mut value);
        assert_eq!(value, [0x02]);
        register.write(ResetControl::PORT, &[ResetControl::FULL_RESET]);
        assert_eq!(*machine.0.lock(), [MachineRequest::Reset]);
        register.read(ResetControl::PORT, &mut value);
        assert_eq!(value, [0x02]);
    }
}
