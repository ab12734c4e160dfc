//! Building a configuration space: who the function is, its BARs, its capabilities.
//!
//! Used by device models at machine build; nothing here runs afterwards.

use std::sync::atomic::AtomicU16;

use parking_lot::Mutex;

use super::{Bytes, PciConfig, Registers};
use crate::irq::LineChanges;
use crate::pci::PciError;
use crate::pci::bar::{Bar, BarIndex, BarKind};
use crate::pci::layout::{
    CONFIG_SPACE_LEN, CapabilityId, ClassCode, Command, HEADER_MULTIFUNCTION, InterruptPin, Status,
    offset,
};

/// Who a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code.
    pub class: ClassCode,
}

/// Collects the parts of a [`PciConfig`].
pub struct ConfigBuilder {
    bytes: Bytes,
    writable: Bytes,
    clear_by_one: Bytes,
    bars: [Option<Bar>; BarIndex::COUNT],
    /// Registers taken as upper halves.
    upper: [bool; BarIndex::COUNT],
    next_capability: usize,
    /// Where the offset of the next capability goes.
    last_link: usize,
}

impl ConfigBuilder {
    /// A header of type 0 with the given identity and nothing else.
    pub fn new(identity: Identity) -> Self {
        let mut builder = Self {
            bytes: [0; CONFIG_SPACE_LEN],
            writable: [0; CONFIG_SPACE_LEN],
            clear_by_one: [0; CONFIG_SPACE_LEN],
            bars: [None; BarIndex::COUNT],
            upper: [false; BarIndex::COUNT],
            next_capability: offset::DEVICE_SPECIFIC,
            last_link: offset::CAPABILITIES,
        };
        builder.put(offset::VENDOR, &identity.vendor.to_le_bytes());
        builder.put(offset::DEVICE, &identity.device.to_le_bytes());
        builder.put(offset::REVISION, &[identity.revision]);
        let class = identity.class;
        builder.put(offset::CLASS, &[class.interface, class.sub, class.base]);
        builder.allow(offset::COMMAND, &Command::all().bits().to_le_bytes());
        for scratch in [offset::CACHE_LINE, offset::LATENCY, offset::INTERRUPT_LINE] {
            builder.allow(scratch, &[0xff]);
        }
        for (at, byte) in (offset::STATUS..).zip(Status::ERRORS.bits().to_le_bytes()) {
            builder.clear_by_one[at] = byte;
        }
        builder
    }

    /// Sets the subsystem's vendor and ID.
    #[must_use]
    pub fn subsystem(mut self, vendor: u16, device: u16) -> Self {
        self.put(offset::SUBSYSTEM_VENDOR, &vendor.to_le_bytes());
        self.put(offset::SUBSYSTEM, &device.to_le_bytes());
        self
    }

    /// Says that the device has further functions; for function 0.
    #[must_use]
    pub fn multifunction(mut self) -> Self {
        self.bytes[offset::HEADER_TYPE] |= HEADER_MULTIFUNCTION;
        self
    }

    /// Sets read-only bits of the status register.
    #[must_use]
    pub fn status(mut self, bits: Status) -> Self {
        self.put_status(bits);
        self
    }

    /// Gives the function an INTx pin; [`PciConfig::connect_intx`] gives it a line.
    #[must_use]
    pub fn interrupt_pin(mut self, pin: InterruptPin) -> Self {
        self.bytes[offset::INTERRUPT_PIN] = pin as u8;
        self
    }

    /// Adds a BAR of `size` bytes, a power of two. A 64-bit one takes the following register as
    /// well.
    pub fn bar(mut self, index: BarIndex, kind: BarKind, size: u64) -> Result<Self, PciError> {
        kind.check_size(index, size)?;
        let mut registers = vec![index];
        if kind == BarKind::Memory64 {
            registers.push(index.next().ok_or(PciError::BarTaken(index.index()))?);
        }
        for register in &registers {
            let number = register.index();
            if self.bars[number].is_some() || self.upper[number] {
                return Err(PciError::BarTaken(number));
            }
        }
        for register in &registers[1..] {
            self.upper[register.index()] = true;
        }
        let bar = Bar { kind, size };
        self.bars[index.index()] = Some(bar);
        let width = 4 * kind.registers();
        self.put(index.offset(), &kind.type_bits().to_le_bytes()[..width]);
        self.allow(index.offset(), &bar.writable().to_le_bytes()[..width]);
        Ok(self)
    }

    /// Appends a capability with the given `body` (what follows the ID and the link) and the mask
    /// of its writable bits (short masks are filled with zeroes). Returns the offset of the
    /// capability.
    pub fn capability(
        &mut self,
        id: CapabilityId,
        body: &[u8],
        writable: &[u8],
    ) -> Result<usize, PciError> {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        let Ok(link) = u8::try_from(at) else {
            return Err(PciError::CapabilityRoom(body.len()));
        };
        if end > CONFIG_SPACE_LEN || writable.len() > body.len() {
            return Err(PciError::CapabilityRoom(body.len()));
        }
        self.put_status(Status::CAPABILITIES);
        self.bytes[self.last_link] = link;
        self.put(at, &[id as u8, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.last_link = at + 1;
        self.next_capability = end.next_multiple_of(4);
        Ok(at)
    }

    /// Sets device-specific registers: their power-on bytes and the bits software can write.
    #[must_use]
    pub fn registers(mut self, at: usize, bytes: &[u8], writable: &[u8]) -> Self {
        self.put(at, bytes);
        self.allow(at, writable);
        self
    }

    /// The finished space, at its power-on values.
    pub fn build(self) -> PciConfig {
        PciConfig {
            registers: Mutex::new(Registers {
                bytes: self.bytes,
                intx: false,
                line: LineChanges::default(),
            }),
            command: AtomicU16::new(0),
            writable: self.writable,
            clear_by_one: self.clear_by_one,
            power_on: self.bytes,
            bars: self.bars,
            line: None,
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_status(&mut self, bits: Status) {
        for (at, byte) in (offset::STATUS..).zip(bits.bits().to_le_bytes()) {
            self.bytes[at] |= byte;
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}
