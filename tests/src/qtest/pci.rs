//! PCI functions by configuration mechanism #1: finding them, and giving their BARs addresses.

use super::{Qtest, QtestError};

const CONFIG_ADDRESS: u64 = 0xcf8;
const CONFIG_DATA: u64 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Where BARs go.
const FIRST_PORT: u32 = 0xc000;
const FIRST_ADDRESS: u64 = 0xe000_0000;

/// Registers of a configuration space.
pub mod register {
    /// Vendor in the low half, device in the high one.
    pub const ID: u8 = 0x00;
    /// What the function may do.
    pub const COMMAND: u8 = 0x04;
    /// The first of six base addresses.
    pub const BAR0: u8 = 0x10;
    /// The first capability.
    pub const CAPABILITIES: u8 = 0x34;
}

/// Bits of the command register: ports, memory, bus master.
pub const ENABLE_ALL: u16 = 7;
/// Ports and memory alone.
pub const ENABLE_DECODING: u16 = 3;

/// A function on bus 0.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    selector: u32,
}

/// A base address that was assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Ports from here on.
    Ports(u64),
    /// Addresses from here on.
    Memory(u64),
}

impl Bar {
    /// Where it begins, in its own space.
    #[must_use]
    pub const fn base(self) -> u64 {
        match self {
            Self::Ports(base) | Self::Memory(base) => base,
        }
    }
}

/// Gives BARs addresses, upwards.
#[derive(Debug)]
pub struct Allocator {
    next_port: u32,
    next_address: u64,
}

impl Default for Allocator {
    fn default() -> Self {
        Self {
            next_port: FIRST_PORT,
            next_address: FIRST_ADDRESS,
        }
    }
}

impl Function {
    /// The function at this place.
    #[must_use]
    pub const fn new(device: u8, function: u8) -> Self {
        Self {
            selector: ENABLE | (device as u32) << 11 | (function as u32) << 8,
        }
    }

    fn select(self, qtest: &mut Qtest, register: u8) -> Result<(), QtestError> {
        qtest.out32(CONFIG_ADDRESS, self.selector | u32::from(register))
    }

    /// Reads a doubleword.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn read(self, qtest: &mut Qtest, register: u8) -> Result<u32, QtestError> {
        self.select(qtest, register)?;
        qtest.in32(CONFIG_DATA)
    }

    /// Writes a doubleword.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn write(self, qtest: &mut Qtest, register: u8, value: u32) -> Result<(), QtestError> {
        self.select(qtest, register)?;
        qtest.out32(CONFIG_DATA, value)
    }

    /// Writes the command register.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn set_command(self, qtest: &mut Qtest, value: u16) -> Result<(), QtestError> {
        self.select(qtest, register::COMMAND)?;
        qtest.out16(CONFIG_DATA, value)
    }

    /// Finds out how large a BAR is, and gives it a place. None if there is no such BAR.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn map(
        self,
        qtest: &mut Qtest,
        allocator: &mut Allocator,
        bar: u8,
    ) -> Result<Option<Bar>, QtestError> {
        let at = register::BAR0 + 4 * bar;
        self.write(qtest, at, u32::MAX)?;
        let probed = self.read(qtest, at)?;
        if probed == 0 {
            return Ok(None);
        }
        if probed & 1 != 0 {
            let size = !(probed & !3 | 0xffff_0000) + 1;
            let base = allocator.next_port.next_multiple_of(size);
            allocator.next_port = base + size;
            self.write(qtest, at, base)?;
            return Ok(Some(Bar::Ports(base.into())));
        }
        let size = u64::from(!(probed & !0xf)) + 1;
        let base = allocator.next_address.next_multiple_of(size);
        allocator.next_address = base + size;
        // Below 4 GiB, whatever the width.
        let low = u32::try_from(base).unwrap_or(u32::MAX);
        self.write(qtest, at, low)?;
        if probed & 0b110 == 0b100 {
            self.write(qtest, at + 4, 0)?;
        }
        Ok(Some(Bar::Memory(base)))
    }

    /// The places of the capabilities with this id, in their order.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn capabilities(self, qtest: &mut Qtest, id: u8) -> Result<Vec<u8>, QtestError> {
        let mut found = Vec::new();
        let mut at = self.read(qtest, register::CAPABILITIES)?.to_le_bytes()[0] & !3;
        // A list that bites its own tail is one of at most so many.
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let [own, next, ..] = self.read(qtest, at)?.to_le_bytes();
            if own == id {
                found.push(at);
            }
            at = next & !3;
        }
        Ok(found)
    }
}
