//! Guest memory: where RAM lies, where devices' registers lie, and what the guest is told of it.
//!
//! ```text
//!          0  RAM                         boot structures below 640 KiB, ACPI tables below 1 MiB
//!      3 GiB  hole: nothing up to 0xe0000000, then PCI BARs, I/O APIC, local APIC
//!      4 GiB  RAM, what did not fit below
//! ```
//!
//! Made by the machine builder on the main thread; the layout is a value and the memory is shared.

use std::ops::Range;

use thiserror::Error;
use vm_memory::mmap::{FromRangesError, MmapRegion};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Guest memory as every device holds it (in an `Arc`).
pub type GuestRam = GuestMemoryMmap<()>;

/// Where RAM below 4 GiB ends at the latest.
pub const LOW_RAM_LIMIT: u64 = 0xc000_0000;
/// Where RAM above 4 GiB begins.
pub const HIGH_RAM_START: u64 = 1 << 32;
/// Guest-physical addresses for the BARs of PCI functions.
pub const PCI_MMIO_WINDOW: Range<u64> = 0xe000_0000..0xfec0_0000;
/// I/O ports for the BARs of PCI functions.
pub const PCI_PIO_WINDOW: Range<u64> = 0xc000..0x1_0000;
/// First address above the real-mode megabyte; kernels are loaded from here on.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;
/// Where conventional memory ends and the (empty) extended BIOS data area begins.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Where the ACPI tables lie: the BIOS area that operating systems search for their root.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0x10_0000;

/// The least memory a machine can have, in bytes: the boot structures and some room.
pub const MINIMUM_MEMORY: u64 = 2 << 20;

const PAGE: u64 = 4096;

/// Why guest memory cannot be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// Less than anything can run in.
    #[error("{0} bytes of guest memory are too few: give at least {MINIMUM_MEMORY} with -m")]
    TooSmall(u64),
    /// More than addresses can tell.
    #[error("{0} bytes of guest memory are more than this host's processes can address")]
    TooLarge(u64),
    /// The host will not map so much.
    #[error(
        "the host cannot provide {bytes} bytes of guest memory (choose less with -m): {source}"
    )]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// What the mapping said.
        source: FromRangesError,
    },
}

/// What a range of guest-physical addresses is, in the numbers that both boot protocols share
/// (ACPI 6.5 §15: address range types).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// RAM the guest may use.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// One line of the memory map that the guest is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapEntry {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// What they are.
    pub kind: RangeKind,
}

/// Where RAM lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLayout {
    size: u64,
}

impl MemoryLayout {
    /// The layout of `size` bytes, rounded up to whole pages.
    ///
    /// # Errors
    /// [`MemoryError::TooSmall`] and [`MemoryError::TooLarge`].
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        if size < MINIMUM_MEMORY {
            return Err(MemoryError::TooSmall(size));
        }
        let rounded = size.checked_next_multiple_of(PAGE);
        match rounded.filter(|size| *size <= i64::MAX.unsigned_abs() / 2) {
            Some(size) => Ok(Self { size }),
            None => Err(MemoryError::TooLarge(size)),
        }
    }

    /// First address behind the RAM below 4 GiB.
    #[must_use]
    pub fn low_end(self) -> u64 {
        self.size.min(LOW_RAM_LIMIT)
    }

    /// First address behind all RAM above 4 GiB; none when all of it fits below.
    #[must_use]
    pub fn high_end(self) -> Option<u64> {
        (self.size > LOW_RAM_LIMIT).then(|| HIGH_RAM_START + (self.size - LOW_RAM_LIMIT))
    }

    /// Maps the memory, zeroed; the host provides pages when they are first touched. The mapping is
    /// subject to the host's accounting (`vm.overcommit_memory`): more than it can ever have is
    /// refused now, instead of ending this process while the guest runs.
    ///
    /// # Errors
    /// [`MemoryError::Map`] when the host refuses, [`MemoryError::TooLarge`] when it cannot count
    /// so far.
    pub fn map(self) -> Result<GuestRam, MemoryError> {
        let bytes =
            |length: u64| usize::try_from(length).map_err(|_| MemoryError::TooLarge(self.size));
        let mut ranges = vec![(GuestAddress(0), bytes(self.low_end())?)];
        if let Some(end) = self.high_end() {
            ranges.push((GuestAddress(HIGH_RAM_START), bytes(end - HIGH_RAM_START)?));
        }
        map_ranges(&ranges).map_err(|source| MemoryError::Map {
            bytes: self.size,
            source,
        })
    }

    /// The memory map that the guest is given, in ascending order.
    #[must_use]
    pub fn guest_map(self) -> Vec<MapEntry> {
        let ram = |range| MapEntry {
            range,
            kind: RangeKind::Ram,
        };
        let reserved = |range| MapEntry {
            range,
            kind: RangeKind::Reserved,
        };
        let mut map = vec![
            ram(0..CONVENTIONAL_END),
            reserved(CONVENTIONAL_END..0xa_0000),
            reserved(ACPI_TABLES),
            ram(HIGH_MEMORY_START..self.low_end()),
        ];
        if let Some(end) = self.high_end() {
            map.push(ram(HIGH_RAM_START..end));
        }
        map
    }
}

fn map_ranges(ranges: &[(GuestAddress, usize)]) -> Result<GuestRam, FromRangesError> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // Not MAP_NORESERVE, with which the host would promise anything.
    let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
    let mut regions = Vec::with_capacity(ranges.len());
    for (start, length) in ranges {
        let region = MmapRegion::build(None, *length, protection, flags)?;
        let placed = GuestRegionMmap::new(region, *start);
        regions.push(placed.ok_or(FromRangesError::InvalidGuestRegion)?);
    }
    Ok(GuestRam::from_regions(regions)?)
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    #[test]
    fn small_machine_has_no_high_ram() {
        let layout = MemoryLayout::new(512 << 20).unwrap();
        assert_eq!(layout.low_end(), 512 << 20);
        assert_eq!(layout.high_end(), None);
    }

    #[test]
    fn large_machine_keeps_the_hole() {
        let layout = MemoryLayout::new(5 << 30).unwrap();
        assert_eq!(layout.low_end(), LOW_RAM_LIMIT);
        assert_eq!(layout.high_end(), Some((1 << 32) + (2 << 30)));
        let ram = layout.map().unwrap();
        let total: u64 = ram.iter().map(GuestMemoryRegion::len).sum();
        assert_eq!(total, 5 << 30);
        assert!(!ram.address_in_range(GuestAddress(LOW_RAM_LIMIT)));
        assert!(!ram.address_in_range(GuestAddress(PCI_MMIO_WINDOW.start)));
        assert!(ram.address_in_range(GuestAddress(HIGH_RAM_START)));
    }

    #[test]
    fn guest_map_is_sorted_without_overlap_and_lies_in_ram() {
        for size in [MINIMUM_MEMORY, 256 << 20, LOW_RAM_LIMIT, (4 << 30) + 1] {
            let layout = MemoryLayout::new(size).unwrap();
            let map = layout.guest_map();
            for pair in map.windows(2) {
                assert!(
                    pair[0].range.end <= pair[1].range.start,
                    "{size:#x}: {pair:?}"
                );
            }
            let ram = map.iter().filter(|entry| entry.kind == RangeKind::Ram);
            for entry in ram {
                assert!(entry.range.start < entry.range.end);
                let low = entry.range.end <= layout.low_end();
                let high = entry.range.start >= HIGH_RAM_START;
                assert!(low || high, "{size:#x}: {entry:?}");
            }
        }
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert!(matches!(
            MemoryLayout::new(0),
            Err(MemoryError::TooSmall(0))
        ));
        assert!(matches!(
            MemoryLayout::new(u64::MAX),
            Err(MemoryError::TooLarge(_))
        ));
        let huge = MemoryLayout::new(1 << 61).unwrap();
        assert!(matches!(huge.map(), Err(MemoryError::Map { .. })));
    }
}
