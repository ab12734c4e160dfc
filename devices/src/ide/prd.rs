//! Physical region descriptors: which guest memory a bus master transfer touches.
//!
//! Called in the loop that serves the drive, when the transfer begins. Every descriptor is read exactly once, so a
//! guest that changes the table meanwhile gets one or the other content, never a mixture that was not checked.
//! Source: *Programming Interface for Bus Master IDE Controller* revision 1.0, section 1.2.

use sluice_aio::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::regs::prd;

/// The bus master's view of memory ends here.
const ADDRESS_LIMIT: u64 = 1 << 32;

/// A descriptor table, as the guest named it when it started the transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table(pub u32);

/// Memory ranges, in order.
pub(super) type Ranges = Vec<(GuestAddress, usize)>;

/// What a table turned out to describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gathered {
    /// Exactly the memory asked for.
    Exact,
    /// More; the ranges are cut to what was asked for.
    Surplus,
    /// Less.
    Short,
    /// The table is not in memory, or a region reaches beyond 4 GiB.
    Fault,
}

/// One descriptor.
struct Descriptor {
    base: u64,
    length: usize,
    last: bool,
}

impl Descriptor {
    fn read(memory: &GuestRam, at: u64) -> Option<Self> {
        if at + prd::LEN > ADDRESS_LIMIT {
            return None;
        }
        let raw: [u8; 8] = memory.read_obj(GuestAddress(at)).ok()?;
        let [b0, b1, b2, b3, c0, c1, c2, c3] = raw;
        let base = u32::from_le_bytes([b0, b1, b2, b3]) & prd::BASE_MASK;
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        let length = match usize::try_from(count & prd::COUNT_MASK).ok()? {
            0 => prd::COUNT_ZERO,
            length => length,
        };
        let base = u64::from(base);
        (base + length as u64 <= ADDRESS_LIMIT).then_some(Self {
            base,
            length,
            last: count & prd::END_OF_TABLE != 0,
        })
    }
}

/// Walks `table` for `length` bytes, and puts the memory found into `ranges`, in place of what is there.
///
/// A table ends with the descriptor marked so, or after [`prd::TABLE_MAX`] bytes. The walk stops as soon as it
/// knows that there is a surplus.
pub(super) fn gather(
    memory: &GuestRam,
    table: Table,
    length: usize,
    ranges: &mut Ranges,
) -> Gathered {
    ranges.clear();
    let mut missing = length;
    let start = u64::from(table.0);
    let mut at = start;
    while at - start < prd::TABLE_MAX {
        let Some(descriptor) = Descriptor::read(memory, at) else {
            return Gathered::Fault;
        };
        at += prd::LEN;
        let used = descriptor.length.min(missing);
        if used > 0 {
            ranges.push((GuestAddress(descriptor.base), used));
            missing -= used;
        }
        if used < descriptor.length {
            return Gathered::Surplus;
        }
        if descriptor.last {
            break;
        }
    }
    if missing == 0 {
        Gathered::Exact
    } else {
        Gathered::Short
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: u32 = 0x1000;
    const EOT: u32 = prd::END_OF_TABLE;

    fn memory(entries: &[(u32, u32)]) -> GuestRam {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        write(&memory, TABLE, entries);
        memory
    }

    fn write(memory: &GuestRam, table: u32, entries: &[(u32, u32)]) {
        for (index, (base, count)) in entries.iter().enumerate() {
            let raw = u64::from(*base) | u64::from(*count) << 32;
            let at = u64::from(table) + 8 * index as u64;
            memory
                .write_slice(&raw.to_le_bytes(), GuestAddress(at))
                .unwrap();
        }
    }

    /// What is found, and where.
    fn gather(memory: &GuestRam, table: Table, length: usize) -> (Gathered, Ranges) {
        // What was there before is forgotten.
        let mut ranges = vec![(GuestAddress(77), 7)];
        let found = super::gather(memory, table, length, &mut ranges);
        (found, ranges)
    }

    fn ranges(list: &[(u64, usize)]) -> Ranges {
        list.iter()
            .map(|(base, length)| (GuestAddress(*base), *length))
            .collect()
    }

    #[test]
    fn exact_over_two_regions() {
        let memory = memory(&[(0x8000, 0x300), (0x4000, 0x100 | EOT)]);
        let expected = ranges(&[(0x8000, 0x300), (0x4000, 0x100)]);
        assert_eq!(
            gather(&memory, Table(TABLE), 0x400),
            (Gathered::Exact, expected)
        );
    }

    #[test]
    fn the_end_of_the_table_is_honoured() {
        let memory = memory(&[(0x8000, 0x200 | EOT), (0x4000, 0x200 | EOT)]);
        assert_eq!(gather(&memory, Table(TABLE), 0x400).0, Gathered::Short);
    }

    #[test]
    fn a_further_region_is_a_surplus() {
        let memory = memory(&[(0x8000, 0x200), (0x4000, 2 | EOT)]);
        let expected = ranges(&[(0x8000, 0x200)]);
        assert_eq!(
            gather(&memory, Table(TABLE), 0x200),
            (Gathered::Surplus, expected)
        );
    }

    #[test]
    fn zero_is_64_kib_and_odd_bits_are_ignored() {
        let memory = memory(&[(0x2_0001, 1 | EOT)]);
        let expected = ranges(&[(0x2_0000, 0x1_0000)]);
        assert_eq!(
            gather(&memory, Table(TABLE), 0x1_0000),
            (Gathered::Exact, expected)
        );
    }

    #[test]
    fn an_endless_table_is_followed_for_4_kib() {
        let entries = [(0x8000, 2); 600];
        let memory = memory(&entries);
        assert_eq!(gather(&memory, Table(TABLE), 2 * 513).0, Gathered::Short);
        assert!(matches!(
            gather(&memory, Table(TABLE), 2 * 512),
            (Gathered::Exact, ranges) if ranges.len() == 512
        ));
    }

    #[test]
    fn a_table_of_zeroes_at_address_zero_is_harmless() {
        let memory = memory(&[]);
        let found = gather(&memory, Table(0), 0x200);
        assert_eq!(found, (Gathered::Surplus, ranges(&[(0, 0x200)])));
    }

    #[test]
    fn a_table_outside_memory_is_a_fault() {
        let memory = memory(&[]);
        assert_eq!(gather(&memory, Table(0x8000_0000), 512).0, Gathered::Fault);
        assert_eq!(gather(&memory, Table(0xffff_fffc), 512).0, Gathered::Fault);
    }

    #[test]
    fn a_region_does_not_wrap_at_4_gib() {
        let memory = memory(&[(0xffff_0000, 0), (0xffff_fffe, 4 | EOT)]);
        assert_eq!(gather(&memory, Table(TABLE), 0x1_0004).0, Gathered::Fault);
    }

    proptest! {
        #[test]
        fn never_more_than_asked_for(
            entries in prop::collection::vec(any::<(u32, u32)>(), 0..40),
            length in 1usize..0x4_0000,
        ) {
            let memory = memory(&entries);
            let total = |ranges: &Ranges| ranges.iter().map(|range| range.1).sum::<usize>();
            match gather(&memory, Table(TABLE), length) {
                (Gathered::Exact | Gathered::Surplus, ranges) => {
                    prop_assert_eq!(total(&ranges), length);
                    prop_assert!(ranges.iter().all(|range| range.0.0 + range.1 as u64 <= 1 << 32));
                }
                (Gathered::Short | Gathered::Fault, _) => {}
            }
        }
    }
}
