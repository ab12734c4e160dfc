//! What is left of the keyboard controller: the command that pulses the CPU's reset line.
//!
//! There is no keyboard and no mouse, and the ACPI tables say so (FADT boot flags), so that a
//! guest does not wait for them. Guests told to (`reboot=k`) still reset the machine this way.

use std::sync::Arc;

use super::{MachineRequest, MachineRequests};
use crate::bus::PioDevice;

/// Write to the command port: pulse output line 0, which resets the CPU
/// (IBM PC/AT Technical Reference, 8042 commands F0h to FFh).
const COMMAND_RESET_CPU: u8 = 0xfe;

/// The controller's command and status port.
pub struct I8042 {
    machine: Arc<dyn MachineRequests>,
}

impl I8042 {
    /// The command (write) and status (read) port.
    pub const COMMAND_PORT: u16 = 0x64;

    /// A controller that resets `machine`.
    #[must_use]
    pub fn new(machine: Arc<dyn MachineRequests>) -> Self {
        Self { machine }
    }
}

impl PioDevice for I8042 {
    fn read(&self, _port: u16, data: &mut [u8]) {
        // Both buffers empty: whoever wants to send a command may.
        data.fill(0);
    }

    fn write(&self, _port: u16, data: &[u8]) {
        if data.first() == Some(&COMMAND_RESET_CPU) {
            self.machine.raise(MachineRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::testing::Recorder;

    #[test]
    fn only_the_reset_command_resets() {
        let machine = Arc::new(Recorder::default());
        let controller = I8042::new(machine.clone());
        controller.write(I8042::COMMAND_PORT, &[0xaa]);
        assert!(machine.0.lock().is_empty());
        controller.write(I8042::COMMAND_PORT, &[COMMAND_RESET_CPU]);
        assert_eq!(*machine.0.lock(), [MachineRequest::Reset]);
    }

    #[test]
    fn input_buffer_is_always_empty() {
        let controller = I8042::new(Arc::new(Recorder::default()));
        let mut status = [0xff];
        controller.read(I8042::COMMAND_PORT, &mut status);
        assert_eq!(status[0] & 0b10, 0);
    }
}
