//! The debug-exit port of QEMU's `isa-debug-exit`: a store ends the process with a status that
//! the guest chose. For payloads of tests; a machine has it only when asked for.

use std::sync::Arc;

use super::{MachineRequest, MachineRequests};
use crate::bus::PioDevice;

/// The device. One port range; every store is an exit.
pub struct DebugExit {
    machine: Arc<dyn MachineRequests>,
}

impl DebugExit {
    /// A port that ends `machine`.
    #[must_use]
    pub fn new(machine: Arc<dyn MachineRequests>) -> Self {
        Self { machine }
    }
}

impl PioDevice for DebugExit {
    fn read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _port: u16, data: &[u8]) {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(data) {
            *to = *from;
        }
        self.machine
            .raise(MachineRequest::DebugExit(u32::from_le_bytes(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::testing::Recorder;

    #[test]
    fn store_ends_the_machine_with_its_value() {
        let machine = Arc::new(Recorder::default());
        let port = DebugExit::new(machine.clone());
        port.write(0xf4, &[0x10]);
        port.write(0xf4, &[0x34, 0x12, 0, 0]);
        assert_eq!(
            *machine.0.lock(),
            [
                MachineRequest::DebugExit(0x10),
                MachineRequest::DebugExit(0x1234)
            ]
        );
    }
}
