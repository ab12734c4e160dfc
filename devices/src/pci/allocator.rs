//! Where BARs go when the machine is built: the part of firmware that a directly booted kernel
//! relies on.
//!
//! Used by the machine builder on its own thread.

use std::ops::Range;

use super::{BarKind, PciError};

/// Hands out addresses from an I/O and a memory window, upwards, each aligned to its size.
#[derive(Clone, Debug)]
pub struct BarAllocator {
    io: Range<u64>,
    memory: Range<u64>,
}

/// What [`BarAllocator::default`] takes for the I/O window: above the legacy ports.
const IO_WINDOW: Range<u64> = 0xc000..0x1_0000;
/// The memory window of [`BarAllocator::default`]: the hole under 4 GiB, up to the I/O APIC.
const MEMORY_WINDOW: Range<u64> = 0xe000_0000..0xfec0_0000;

impl Default for BarAllocator {
    /// I/O from 0xc000, memory from 0xe000_0000 up to the I/O APIC.
    fn default() -> Self {
        Self::new(IO_WINDOW, MEMORY_WINDOW)
    }
}

impl BarAllocator {
    /// Allocates from the given windows of port numbers and guest-physical addresses.
    pub fn new(io: Range<u64>, memory: Range<u64>) -> Self {
        Self { io, memory }
    }

    /// The next free place for a BAR of `size` bytes (a power of two).
    pub fn allocate(&mut self, kind: BarKind, size: u64) -> Result<u64, PciError> {
        let window = match kind {
            BarKind::Io => &mut self.io,
            BarKind::Memory32 | BarKind::Memory64 => &mut self.memory,
        };
        let place = window
            .start
            .checked_next_multiple_of(size)
            .filter(|start| start.checked_add(size).is_some_and(|end| end <= window.end))
            .ok_or(PciError::WindowFull(size))?;
        window.start = place + size;
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_aligned_disjoint_and_within_the_window() {
        let mut allocator = BarAllocator::new(0xc000..0xc020, 0xe000_0000..0xe001_0000);
        assert_eq!(allocator.allocate(BarKind::Io, 4).unwrap(), 0xc000);
        assert_eq!(allocator.allocate(BarKind::Io, 16).unwrap(), 0xc010);
        assert!(allocator.allocate(BarKind::Io, 16).is_err());
        assert_eq!(
            allocator.allocate(BarKind::Memory32, 0x1000).unwrap(),
            0xe000_0000
        );
        assert_eq!(
            allocator.allocate(BarKind::Memory64, 0x8000).unwrap(),
            0xe000_8000
        );
        assert!(allocator.allocate(BarKind::Memory64, 16).is_err());
    }
}
