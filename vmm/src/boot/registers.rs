//! The state in which a vCPU enters a kernel: segment descriptors, page tables, registers.
//!
//! Sources: Intel SDM volume 3, chapters 2.5, 3.4 and 4.5; and the two boot protocols
//! ([`super::Entry`]).

use bitflags::bitflags;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Entry};
use crate::memory::GuestRam;

const DESCRIPTORS: GuestAddress = GuestAddress(0x500);

const ROOT_TABLE: u64 = 0x9000;
const POINTER_TABLE: u64 = 0xa000;
const FIRST_DIRECTORY: u64 = 0xb000;
/// Directories of 1 GiB each: together they map all below 4 GiB to itself.
const DIRECTORIES: u64 = 4;
const TABLE_SIZE: u64 = 0x1000;
const ENTRIES: u64 = 512;
const LARGE_PAGE: u64 = 2 << 20;

bitflags! {
    struct PageEntry: u64 {
        const PRESENT = 1 << 0;
        const WRITABLE = 1 << 1;
        const LARGE = 1 << 7;
    }

    struct Cr0: u64 {
        const PROTECTED_MODE = 1 << 0;
        const EXTENSION_TYPE = 1 << 4;
        const PAGING = 1 << 31;
    }

    struct Cr4: u64 {
        const PHYSICAL_ADDRESS_EXTENSION = 1 << 5;
    }

    struct Efer: u64 {
        const LONG_MODE_ENABLED = 1 << 8;
        const LONG_MODE_ACTIVE = 1 << 10;
    }
}

/// `rflags`: bit 1 is always one.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Index of the descriptors; the 64-bit boot protocol asks for these two places.
const CODE_INDEX: u16 = 2;
const DATA_INDEX: u16 = 3;
const TASK_INDEX: u16 = 4;

/// Segment types (SDM volume 3, §3.4.5.1 and §3.5).
const CODE_READABLE_ACCESSED: u8 = 0xb;
const DATA_WRITABLE_ACCESSED: u8 = 0x3;
const TASK_32_BUSY: u8 = 0xb;

const FLAT_LIMIT: u32 = u32::MAX;

/// A flat segment.
fn flat(index: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: FLAT_LIMIT,
        selector: index * 8,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The task segment that must exist in protected mode: empty.
fn task() -> kvm_segment {
    kvm_segment {
        limit: 0x67,
        selector: TASK_INDEX * 8,
        type_: TASK_32_BUSY,
        present: 1,
        ..kvm_segment::default()
    }
}

/// The descriptor that loads as `segment` (SDM volume 3, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let bits = |value: u8, shift: u32| u64::from(value) << shift;
    (limit & 0xffff)
        | ((segment.base & 0x00ff_ffff) << 16)
        | bits(segment.type_, 40)
        | bits(segment.s, 44)
        | bits(segment.dpl, 45)
        | bits(segment.present, 47)
        | (((limit >> 16) & 0xf) << 48)
        | bits(segment.avl, 52)
        | bits(segment.l, 53)
        | bits(segment.db, 54)
        | bits(segment.g, 55)
        | (((segment.base >> 24) & 0xff) << 56)
}

/// The descriptor table for both entries: null, unused, code, data, task.
fn descriptors(long: bool) -> [u64; 5] {
    [
        0,
        0,
        descriptor(&flat(CODE_INDEX, CODE_READABLE_ACCESSED, long)),
        descriptor(&flat(DATA_INDEX, DATA_WRITABLE_ACCESSED, false)),
        descriptor(&task()),
    ]
}

/// Writes the descriptor table that the entry's segments stand in.
pub(super) fn write_descriptors(ram: &GuestRam, long: bool) -> Result<(), BootError> {
    let bytes = descriptors(long).map(u64::to_le_bytes);
    Ok(ram.write_slice(bytes.as_flattened(), DESCRIPTORS)?)
}

/// Writes page tables that map the lowest 4 GiB to themselves.
pub(super) fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    let table = PageEntry::PRESENT.union(PageEntry::WRITABLE).bits();
    let page = table | PageEntry::LARGE.bits();
    let put =
        |address: u64, entry: u64| ram.write_slice(&entry.to_le_bytes(), GuestAddress(address));
    put(ROOT_TABLE, POINTER_TABLE | table)?;
    for directory in 0..DIRECTORIES {
        let at = FIRST_DIRECTORY + directory * TABLE_SIZE;
        put(POINTER_TABLE + directory * 8, at | table)?;
        for entry in 0..ENTRIES {
            put(
                at + entry * 8,
                ((directory * ENTRIES + entry) * LARGE_PAGE) | page,
            )?;
        }
    }
    Ok(())
}

/// The general registers at `entry`.
#[must_use]
pub fn general(entry: Entry) -> kvm_regs {
    let mut registers = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    };
    match entry {
        Entry::Long { rip, zero_page } => {
            registers.rip = rip.0;
            registers.rsi = zero_page.0;
        }
        Entry::Pvh { eip, start_info } => {
            registers.rip = eip.0;
            registers.rbx = start_info.0;
        }
    }
    registers
}

/// Changes the power-on `special` registers into those of `entry`.
pub fn special(entry: Entry, special: &mut kvm_sregs) {
    let long = matches!(entry, Entry::Long { .. });
    special.cs = flat(CODE_INDEX, CODE_READABLE_ACCESSED, long);
    let data = flat(DATA_INDEX, DATA_WRITABLE_ACCESSED, false);
    (special.ds, special.es, special.ss) = (data, data, data);
    (special.fs, special.gs) = (data, data);
    special.tr = task();
    special.gdt.base = DESCRIPTORS.0;
    special.gdt.limit = 5 * 8 - 1;
    special.idt.base = 0;
    special.idt.limit = 0;
    special.cr0 = Cr0::PROTECTED_MODE.union(Cr0::EXTENSION_TYPE).bits();
    special.cr3 = 0;
    special.cr4 = 0;
    special.efer = 0;
    if long {
        special.cr0 |= Cr0::PAGING.bits();
        special.cr3 = ROOT_TABLE;
        special.cr4 = Cr4::PHYSICAL_ADDRESS_EXTENSION.bits();
        special.efer = Efer::LONG_MODE_ENABLED.union(Efer::LONG_MODE_ACTIVE).bits();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryLayout;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(descriptors(true)[2], 0x00af_9b00_0000_ffff);
        assert_eq!(descriptors(false)[2], 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptors(true)[3], 0x00cf_9300_0000_ffff);
        assert_eq!(descriptors(true)[4], 0x0000_8b00_0000_0067);
    }

    #[test]
    fn page_tables_map_the_lowest_4_gib_to_themselves() {
        let ram = MemoryLayout::new(4 << 20).unwrap().map().unwrap();
        write_page_tables(&ram).unwrap();
        let get = |address: u64| -> u64 { ram.read_obj(GuestAddress(address)).unwrap() };
        let address = |entry: u64| entry & 0x000f_ffff_ffff_f000;
        for target in [
            0,
            LARGE_PAGE,
            (1 << 30) + 5 * LARGE_PAGE,
            (4 << 30) - LARGE_PAGE,
        ] {
            let pointers = address(get(ROOT_TABLE));
            let directory = address(get(pointers + (target >> 30) * 8));
            let entry = get(directory + ((target >> 21) & 511) * 8);
            assert_eq!(address(entry), target);
            assert_eq!(entry & 0x83, 0x83);
        }
    }
}
