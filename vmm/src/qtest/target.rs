//! What commands work on, and carrying them out.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use sluice_aio::Clock;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::QtestInterrupts;
use super::base64;
use super::command::{Command, Encoding};
use crate::kvm::Buses;
use crate::memory::GuestRam;

/// The interrupt controller whose inputs can be watched and driven.
const INTERRUPT_CONTROLLER: &str = "ioapic";

/// The parts of a machine that a test gets at.
pub struct Target {
    /// Its address spaces.
    pub buses: Buses,
    /// Its memory.
    pub ram: Arc<GuestRam>,
    /// Its interrupts.
    pub interrupts: Arc<QtestInterrupts>,
    /// The clock of its devices, which moves by command only.
    pub clock: Clock,
}

impl Target {
    /// Carries a command out.
    ///
    /// # Errors
    /// The text that follows `FAIL`.
    pub(super) fn execute(&self, command: Command) -> Result<String, String> {
        match command {
            Command::ClockStep(None) => Err("no timer is set".to_owned()),
            Command::ClockStep(Some(by)) => {
                self.clock.advance(Duration::from_nanos(by));
                Ok(self.now().to_string())
            }
            Command::ClockSet(to) => {
                self.clock
                    .advance(Duration::from_nanos(to.saturating_sub(self.now())));
                let now = self.now();
                if now == to {
                    Ok(now.to_string())
                } else {
                    Err(now.to_string())
                }
            }
            Command::In { port, width } => {
                let mut data = [0; 8];
                self.buses.pio.read(port, &mut data[..width]);
                Ok(format!("{:#06x}", u64::from_le_bytes(data)))
            }
            Command::Out { port, width, value } => {
                self.buses.pio.write(port, &value.to_le_bytes()[..width]);
                Ok(String::new())
            }
            Command::Read { address, width } => {
                let mut data = [0; 8];
                self.read(address, &mut data[..width]);
                Ok(format!("{:#018x}", u64::from_le_bytes(data)))
            }
            Command::Write {
                address,
                width,
                value,
            } => {
                self.write(address, &value.to_le_bytes()[..width]);
                Ok(String::new())
            }
            Command::ReadBytes {
                address,
                length,
                encoding,
            } => {
                let mut data = vec![0; length];
                self.read(address, &mut data);
                Ok(match encoding {
                    Encoding::Hexadecimal => hexadecimal(&data),
                    Encoding::Base64 => base64::encode(&data),
                })
            }
            Command::WriteBytes { address, bytes } => {
                self.write(address, &bytes);
                Ok(String::new())
            }
            Command::Endianness => Ok("little".to_owned()),
            Command::InterceptIn(device) => {
                known_device(&device)?;
                self.interrupts.intercept(true);
                Ok(String::new())
            }
            Command::SetIrqIn {
                device,
                number,
                level,
            } => {
                known_device(&device)?;
                self.interrupts.set(number, level);
                Ok(String::new())
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.now().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Reads memory or, where none is, registers.
    fn read(&self, address: u64, data: &mut [u8]) {
        let at = GuestAddress(address);
        if self.ram.check_range(at, data.len()) {
            // Checked just now, and memory does not go away.
            let _ = self.ram.read_slice(data, at);
        } else if data.len() <= size_of::<u64>() {
            self.buses.mmio.read(address, data);
        } else {
            for (place, byte) in (address..).zip(data) {
                self.read(place, std::slice::from_mut(byte));
            }
        }
    }

    /// Writes memory or, where none is, registers.
    fn write(&self, address: u64, data: &[u8]) {
        let at = GuestAddress(address);
        if self.ram.check_range(at, data.len()) {
            let _ = self.ram.write_slice(data, at);
        } else if data.len() <= size_of::<u64>() {
            self.buses.mmio.write(address, data);
        } else {
            for (place, byte) in (address..).zip(data) {
                self.write(place, std::slice::from_ref(byte));
            }
        }
    }
}

fn known_device(path: &str) -> Result<(), String> {
    // A path may be partial, as in QEMU.
    let name = path.rsplit('/').next().unwrap_or(path);
    if name == INTERRUPT_CONTROLLER {
        Ok(())
    } else {
        Err("Unknown device".to_owned())
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
