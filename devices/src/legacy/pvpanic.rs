//! The panic port (QEMU's `pvpanic`, docs/specs/pvpanic): a guest kernel says that it panicked.

use std::sync::Arc;

use bitflags::bitflags;

use super::{GuestFailure, MachineRequest, MachineRequests};
use crate::bus::PioDevice;

bitflags! {
    /// What the port can report; a read tells which bits the machine understands.
    #[derive(Debug, Clone, Copy)]
    struct Events: u8 {
        /// The guest panicked.
        const PANICKED = 1 << 0;
        /// The guest panicked and runs its crash kernel now.
        const CRASH_LOADED = 1 << 1;
    }
}

/// The port.
pub struct PvPanic {
    machine: Arc<dyn MachineRequests>,
}

impl PvPanic {
    /// The port QEMU uses, which the ACPI tables name.
    pub const PORT: u16 = 0x505;

    /// A port that reports to `machine`.
    #[must_use]
    pub fn new(machine: Arc<dyn MachineRequests>) -> Self {
        Self { machine }
    }
}

impl PioDevice for PvPanic {
    fn read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = Events::all().bits();
        }
    }

    fn write(&self, _port: u16, data: &[u8]) {
        let Some(value) = data.first() else { return };
        let events = Events::from_bits_truncate(*value);
        if events.contains(Events::PANICKED) {
            self.machine
                .raise(MachineRequest::GuestFailed(GuestFailure::Panicked));
        } else if events.contains(Events::CRASH_LOADED) {
            self.machine
                .raise(MachineRequest::GuestFailed(GuestFailure::CrashLoaded));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::testing::Recorder;

    #[test]
    fn panic_is_told_and_unknown_bits_are_not() {
        let machine = Arc::new(Recorder::default());
        let port = PvPanic::new(machine.clone());
        let mut supported = [0];
        port.read(PvPanic::PORT, &mut supported);
        assert_eq!(supported, [3]);
        port.write(PvPanic::PORT, &[0x80]);
        assert!(machine.0.lock().is_empty());
        port.write(PvPanic::PORT, &[1]);
        port.write(PvPanic::PORT, &[2]);
        assert_eq!(
            *machine.0.lock(),
            [
                MachineRequest::GuestFailed(GuestFailure::Panicked),
                MachineRequest::GuestFailed(GuestFailure::CrashLoaded)
            ]
        );
    }
}
