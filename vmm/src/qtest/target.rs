//! What commands work on, and carrying them out.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use sluice_aio::Clock;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::QtestInterrupts;
use super::base64;
use super::command::{Command, Encoding, Failure};
use crate::kvm::Buses;
use crate::machine::routing::IOAPIC_INPUTS;
use crate::memory::GuestRam;

/// The interrupt controller whose inputs can be watched and driven.
const INTERRUPT_CONTROLLER: &str = "ioapic";
/// The list of those inputs.
const UNNAMED_INPUTS: &str = "unnamed-gpio-in";

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
    /// Whether a device has this id or path.
    pub has_device: Box<dyn Fn(&str) -> bool>,
}

/// A device that a command names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    InterruptController,
    /// One whose interrupts are the bus's, as those of every disk: nothing of its own can be intercepted.
    Other,
}

impl Target {
    /// Carries a command out.
    ///
    /// # Errors
    /// Why it can't be.
    pub(super) fn execute(&self, command: Command) -> Result<String, Failure> {
        match command {
            Command::ClockStep(by) => self.step_clock(by),
            Command::ClockSet(to) => {
                self.clock
                    .advance(Duration::from_nanos(to.saturating_sub(self.now())));
                let now = self.now();
                if now == to {
                    Ok(now.to_string())
                } else {
                    Err(now.to_string().into())
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
            Command::InterceptIn(device) => match self.device(&device)? {
                Device::InterruptController => {
                    self.interrupts.intercept(true);
                    Ok(String::new())
                }
                Device::Other => Err(self.nothing_to_intercept()),
            },
            Command::InterceptNamedIn(device) => {
                self.device(&device)?;
                Err("Interception of named in-GPIOs not yet supported".into())
            }
            Command::InterceptOut(device) => match self.device(&device)? {
                // Asked again, for the device that is intercepted, it is done whatever the list's name is.
                Device::InterruptController if self.interrupts.is_intercepted() => {
                    Ok(String::new())
                }
                // Its outputs are the processors' inputs, of which there are none.
                _ => Err(self.nothing_to_intercept()),
            },
            Command::SetIrqIn {
                device,
                list,
                number,
                level,
            } => {
                let has_inputs = self.device(&device)? == Device::InterruptController;
                if !has_inputs || list != UNNAMED_INPUTS || number >= IOAPIC_INPUTS {
                    return Err("no such input".into());
                }
                self.interrupts.set(number, level);
                Ok(String::new())
            }
            Command::ModuleLoad => Ok(String::new()),
        }
    }

    fn device(&self, path: &str) -> Result<Device, Failure> {
        // A path may be partial, as in QEMU.
        let name = path.rsplit('/').next().unwrap_or(path);
        if name == INTERRUPT_CONTROLLER {
            Ok(Device::InterruptController)
        } else if (self.has_device)(path) {
            Ok(Device::Other)
        } else {
            Err("Unknown device".into())
        }
    }

    /// What is said of a device that has nothing to intercept, or of one beside the one that is intercepted.
    fn nothing_to_intercept(&self) -> Failure {
        if self.interrupts.is_intercepted() {
            "IRQ intercept already enabled".into()
        } else {
            "No intercepts installed".into()
        }
    }

    /// Moves the clock by so many nanoseconds, or to the next timer.
    fn step_clock(&self, by: Option<u64>) -> Result<String, Failure> {
        let before = self.now();
        let by = match (by, self.clock.next_deadline()) {
            (Some(by), _) => Duration::from_nanos(by),
            (None, Some(deadline)) => deadline.saturating_sub(self.clock.now()),
            (None, None) => {
                let why = "cannot advance clock to the next deadline because there is no pending \
                           deadline";
                return Err(why.into());
            }
        };
        self.clock.advance(by);
        let now = self.now();
        if now > before {
            Ok(now.to_string())
        } else {
            Err("could not advance time".into())
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
            for (offset, byte) in (0..).zip(data) {
                // Behind the last address is the first.
                self.read(address.wrapping_add(offset), std::slice::from_mut(byte));
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
            for (offset, byte) in (0..).zip(data) {
                self.write(address.wrapping_add(offset), std::slice::from_ref(byte));
            }
        }
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
