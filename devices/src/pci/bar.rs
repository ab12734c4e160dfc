//! Base address registers: kinds, sizes and what the register's bytes say.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.2.5.1. Pure functions on values;
//! [`super::PciConfig`] keeps the bytes.

use super::PciError;
use super::layout::{Command, offset};

/// One of the six base address registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BarIndex(u8);

impl BarIndex {
    /// BAR 0, at offset 0x10.
    pub const BAR0: Self = Self(0);
    /// BAR 1, at offset 0x14.
    pub const BAR1: Self = Self(1);
    /// BAR 2, at offset 0x18.
    pub const BAR2: Self = Self(2);
    /// BAR 3, at offset 0x1c.
    pub const BAR3: Self = Self(3);
    /// BAR 4, at offset 0x20.
    pub const BAR4: Self = Self(4);
    /// BAR 5, at offset 0x24.
    pub const BAR5: Self = Self(5);
    /// How many there are.
    pub const COUNT: usize = 6;
    /// All of them, in order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::BAR0,
        Self::BAR1,
        Self::BAR2,
        Self::BAR3,
        Self::BAR4,
        Self::BAR5,
    ];

    /// The BAR with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its number as an array index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Its number as capabilities carry it.
    pub fn number(self) -> u8 {
        self.0
    }

    /// The following register: the upper half of a 64-bit BAR.
    pub(super) fn next(self) -> Option<Self> {
        Self::from_number(self.0 + 1)
    }

    /// Offset of the register in configuration space.
    pub(super) fn offset(self) -> usize {
        offset::BAR0 + 4 * self.index()
    }
}

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two registers.
    Memory64,
}

/// Bit 0 of a BAR: I/O space.
const SPACE_IO: u64 = 0b01;
/// Bits 2:1 of a memory BAR: 64-bit.
const TYPE_64: u64 = 0b100;
/// The address bits of an I/O BAR.
const IO_ADDRESS: u64 = !0b11;
/// The address bits of a memory BAR.
const MEMORY_ADDRESS: u64 = !0b1111;

impl BarKind {
    /// Number of 32-bit registers it takes.
    pub fn registers(self) -> usize {
        match self {
            Self::Io | Self::Memory32 => 1,
            Self::Memory64 => 2,
        }
    }

    /// The read-only bits that tell its kind.
    pub(super) fn type_bits(self) -> u64 {
        match self {
            Self::Io => SPACE_IO,
            Self::Memory32 => 0,
            Self::Memory64 => TYPE_64,
        }
    }

    /// The address bits of a register value.
    fn address_mask(self) -> u64 {
        match self {
            Self::Io => IO_ADDRESS,
            Self::Memory32 | Self::Memory64 => MEMORY_ADDRESS,
        }
    }

    /// The bit of the command register that makes it answer.
    pub(super) fn enable(self) -> Command {
        match self {
            Self::Io => Command::IO,
            Self::Memory32 | Self::Memory64 => Command::MEMORY,
        }
    }

    /// First address that this kind cannot reach.
    fn limit(self) -> u64 {
        match self {
            Self::Io => 1 << 16,
            Self::Memory32 => 1 << 32,
            Self::Memory64 => u64::MAX,
        }
    }

    /// Whether a BAR of this kind can have `size` bytes.
    pub(super) fn check_size(self, bar: BarIndex, size: u64) -> Result<(), PciError> {
        let (least, most) = match self {
            Self::Io => (4, 256),
            Self::Memory32 => (16, 1 << 31),
            Self::Memory64 => (16, 1 << 62),
        };
        if size.is_power_of_two() && (least..=most).contains(&size) {
            Ok(())
        } else {
            Err(PciError::BarSize {
                bar: bar.index(),
                size,
            })
        }
    }
}

/// A BAR that a function has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bar {
    pub(super) kind: BarKind,
    /// Bytes; a power of two.
    pub(super) size: u64,
}

impl Bar {
    /// The bits that software can write: the address bits above the size.
    pub(super) fn writable(self) -> u64 {
        !(self.size - 1)
    }

    /// The address that a register value stands for, if the BAR can answer there.
    ///
    /// Zero, what a reset leaves, and the all-ones of a size probe are no places.
    pub(super) fn place(self, register: u64) -> Option<u64> {
        let base = register & self.kind.address_mask() & self.writable();
        let end = base.checked_add(self.size)?;
        (base != 0 && end <= self.kind.limit()).then_some(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_value_and_zero_are_no_places() {
        let bar = Bar {
            kind: BarKind::Memory32,
            size: 0x1000,
        };
        assert_eq!(bar.place(0), None);
        assert_eq!(bar.place(0xe000_0000), Some(0xe000_0000));
        assert_eq!(bar.place(0xffff_f000), Some(0xffff_f000));
        let wide = Bar {
            kind: BarKind::Memory64,
            size: 0x1000,
        };
        assert_eq!(wide.place(u64::MAX), None);
        assert_eq!(wide.place(0x12_0000_0004), Some(0x12_0000_0000));
        let io = Bar {
            kind: BarKind::Io,
            size: 16,
        };
        assert_eq!(io.place(0xc001), Some(0xc000));
        assert_eq!(io.place(0xffff_fff1), None);
    }

    #[test]
    fn sizes_are_checked() {
        assert!(BarKind::Io.check_size(BarIndex::BAR0, 16).is_ok());
        assert!(BarKind::Io.check_size(BarIndex::BAR0, 512).is_err());
        assert!(BarKind::Memory32.check_size(BarIndex::BAR0, 24).is_err());
        assert!(BarKind::Memory64.check_size(BarIndex::BAR0, 0).is_err());
    }
}
