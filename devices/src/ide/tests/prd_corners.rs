//! Descriptor tables at the edges of what they can be, against a real disk: what is transferred, and what never is.

use super::bench::*;
use crate::pci::{BarIndex, PciFunction};

const READ_DMA: u8 = 0xc8;
const WRITE_DMA: u8 = 0xca;
const TRIM: u8 = 0x06;
/// The end of the bench's memory.
const END: u32 = 0x10_0000;

fn descriptor(base: u32, count: u32) -> [u8; 8] {
    (u64::from(base) | u64::from(count) << 32).to_le_bytes()
}

/// Puts a table anywhere and points the bus master to it.
fn table_at(bench: &Bench, at: u32, entries: &[(u32, u32)]) {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|(base, count)| descriptor(*base, *count))
        .collect();
    bench.fill_memory(at, &bytes);
    bench
        .ide
        .bar_write(BarIndex::BAR4, BM_TABLE, &at.to_le_bytes());
}

/// Gives a DMA command; returns the status of the bus master and of the drive when it is over.
fn dma(bench: &mut Bench, command: u8, lba: u32, count: u8) -> (u8, u8) {
    bench.address28(lba, count);
    bench.start_dma(command);
    bench.wait(|bench| bench.bm_read(BM_STATUS) & (ACTIVE | INTERRUPT) != ACTIVE);
    (bench.bm_read(BM_STATUS), bench.inb(STATUS))
}

fn stamps(first: u64, count: u64) -> Vec<u8> {
    (first..first + count).flat_map(stamp).collect()
}

#[test]
fn a_count_of_zero_is_64_kib() {
    let mut bench = Bench::new();
    bench.set_table(&[(BUFFER, EOT)]);
    assert_eq!(dma(&mut bench, READ_DMA, 8, 128), (INTERRUPT, DRDY | DSC));
    assert_eq!(bench.memory_at(BUFFER, 0x1_0000), stamps(8, 128));
    // A sector more does not fit, a sector less leaves some.
    assert_eq!(dma(&mut bench, READ_DMA, 8, 129), (0, DRDY | DSC));
    let surplus = dma(&mut bench, READ_DMA, 8, 127);
    assert_eq!(surplus, (ACTIVE | INTERRUPT, DRDY | DSC));
}

#[test]
fn odd_addresses_and_counts_lose_their_lowest_bit() {
    let mut bench = Bench::new();
    bench.set_table(&[(BUFFER + 1, 0x101), (BUFFER + 0x1001, 0x101 | EOT)]);
    assert_eq!(dma(&mut bench, READ_DMA, 8, 1), (INTERRUPT, DRDY | DSC));
    assert_eq!(bench.memory_at(BUFFER, 0x100), stamp(8)[..0x100]);
    assert_eq!(bench.memory_at(BUFFER + 0x1000, 0x100), stamp(8)[0x100..]);
    assert_eq!(bench.memory_at(BUFFER + 0x100, 1), [0]);
}

#[test]
fn a_table_begins_at_a_doubleword_and_may_lie_across_64_kib() {
    let mut bench = Bench::new();
    table_at(
        &bench,
        0xfff8,
        &[(BUFFER, 0x200), (BUFFER + 0x1000, 0x200 | EOT)],
    );
    // The lowest two bits of the register are not there.
    bench
        .ide
        .bar_write(BarIndex::BAR4, BM_TABLE, &0xfffb_u32.to_le_bytes());
    // The second descriptor is where BUFFER begins: the table is read before anything is transferred.
    assert_eq!(dma(&mut bench, READ_DMA, 8, 2), (INTERRUPT, DRDY | DSC));
    assert_eq!(bench.memory_at(BUFFER, 0x200), stamp(8));
    assert_eq!(bench.memory_at(BUFFER + 0x1000, 0x200), stamp(9));
}

#[test]
fn a_region_may_end_with_memory_and_not_beyond() {
    let mut bench = Bench::new();
    bench.set_table(&[(END - 0x200, 0x200 | EOT)]);
    assert_eq!(dma(&mut bench, READ_DMA, 8, 1), (INTERRUPT, DRDY | DSC));
    assert_eq!(bench.memory_at(END - 0x200, 0x200), stamp(8));
    bench.set_table(&[(END - 0x1fe, 0x200 | EOT)]);
    for command in [READ_DMA, WRITE_DMA] {
        let failed = (INTERRUPT | BM_ERROR, DRDY | ERR);
        assert_eq!(dma(&mut bench, command, 9, 1), failed, "{command:#x}");
    }
    assert_eq!(bench.memory_at(END - 0x200, 0x200), stamp(8));
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn one_region_outside_memory_spoils_all() {
    let mut bench = Bench::new();
    for hole in [END, 0xfee0_0000, 0xffff_fe00] {
        bench.set_table(&[
            (BUFFER, 0x200),
            (hole, 0x200),
            (BUFFER + 0x200, 0x200 | EOT),
        ]);
        for command in [READ_DMA, WRITE_DMA] {
            let failed = (INTERRUPT | BM_ERROR, DRDY | ERR);
            assert_eq!(dma(&mut bench, command, 8, 3), failed, "{hole:#x}");
        }
    }
    assert_eq!(bench.memory_at(BUFFER, 0x400), [0; 0x400]);
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn a_table_may_end_with_memory_and_not_beyond() {
    let mut bench = Bench::new();
    table_at(&bench, END - 8, &[(BUFFER, 0x200 | EOT)]);
    assert_eq!(dma(&mut bench, READ_DMA, 8, 1), (INTERRUPT, DRDY | DSC));
    table_at(&bench, END - 8, &[(BUFFER, 0x200)]);
    let failed = (INTERRUPT | BM_ERROR, DRDY | ERR);
    assert_eq!(dma(&mut bench, READ_DMA, 8, 2), failed);
    for outside in [END, 0x8000_0000, 0xffff_fffc] {
        bench
            .ide
            .bar_write(BarIndex::BAR4, BM_TABLE, &outside.to_le_bytes());
        assert_eq!(dma(&mut bench, READ_DMA, 8, 1), failed, "{outside:#x}");
    }
}

/// The table is read once: what the disk puts over it is not followed.
#[test]
fn a_transfer_over_its_own_table_ends_where_the_table_said() {
    let mut bench = Bench::new();
    table_at(
        &bench,
        BUFFER,
        &[(BUFFER, 0x200), (BUFFER + 0x1000, 0x200 | EOT)],
    );
    assert_eq!(dma(&mut bench, READ_DMA, 8, 2), (INTERRUPT, DRDY | DSC));
    assert_eq!(bench.memory_at(BUFFER, 0x200), stamp(8));
    assert_eq!(bench.memory_at(BUFFER + 0x1000, 0x200), stamp(9));
}

/// Regions may lie on each other: the later one is what remains, and on the disk both.
#[test]
fn regions_may_overlap() {
    let mut bench = Bench::new();
    bench.fill_memory(BUFFER, &[0x77; 0x300]);
    bench.set_table(&[(BUFFER, 0x200), (BUFFER + 0x100, 0x200 | EOT)]);
    assert_eq!(dma(&mut bench, WRITE_DMA, 8, 2), (INTERRUPT, DRDY | DSC));
    for lba in [8, 9] {
        assert_eq!(bench.disks[0].sector(lba), [0x77; SECTOR]);
    }
    bench.set_table(&[(BUFFER, 0x200), (BUFFER, 0x200 | EOT)]);
    assert_eq!(dma(&mut bench, READ_DMA, 20, 2), (INTERRUPT, DRDY | DSC));
    let left = bench.memory_at(BUFFER, 0x200);
    assert!(left == stamp(20) || left == stamp(21));
}

#[test]
fn the_smallest_regions_make_a_sector() {
    let mut bench = Bench::new();
    let entries: Vec<_> = (0..256)
        .map(|word| {
            let last = if word == 255 { EOT } else { 0 };
            (BUFFER + 0x10 * word, 2 | last)
        })
        .collect();
    bench.set_table(&entries);
    assert_eq!(dma(&mut bench, READ_DMA, 8, 1), (INTERRUPT, DRDY | DSC));
    for (word, expected) in (0..256).zip(stamp(8).chunks(2)) {
        assert_eq!(bench.memory_at(BUFFER + 0x10 * word, 2), expected);
    }
}

/// 512 descriptors are read, and not one more: what they hold is transferred, and a sector more finds no room though
/// the next descriptor has it.
#[test]
fn a_table_without_an_end_is_followed_for_512_descriptors() {
    let mut bench = Bench::new();
    for at in [0x1000, END - 0x1000] {
        let mut entries = vec![(BUFFER, 2); 512];
        if at == 0x1000 {
            entries.push((BUFFER, 0x200));
        }
        table_at(&bench, at, &entries);
        assert_eq!(dma(&mut bench, READ_DMA, 8, 2), (INTERRUPT, DRDY | DSC));
        assert_eq!(dma(&mut bench, READ_DMA, 8, 3), (0, DRDY | DSC), "{at:#x}");
    }
}

#[test]
fn a_list_of_ranges_needs_room_too() {
    let mut bench = Bench::new();
    bench.fill_memory(BUFFER, &(40 | 8u64 << 48).to_le_bytes());
    for (entry, expected) in [
        ((BUFFER, 0x100 | EOT), (0, DRDY | DSC)),
        ((END, 0x200 | EOT), (INTERRUPT | BM_ERROR, DRDY | ERR)),
    ] {
        bench.set_table(&[entry]);
        bench.outb(FEATURES, 1);
        bench.address48(0, 1);
        bench.start_dma(TRIM);
        bench.wait(|bench| bench.bm_read(BM_STATUS) & (ACTIVE | INTERRUPT) != ACTIVE);
        let status = (bench.bm_read(BM_STATUS), bench.inb(STATUS));
        assert_eq!(status, expected, "{entry:x?}");
        assert!(bench.disks[0].is_untouched());
    }
}

/// The bit is looked at when the transfer begins: a guest that takes it away while it waits keeps its memory.
#[test]
fn a_parked_transfer_obeys_the_bus_master_bit_of_then() {
    let mut bench = Bench::new();
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    let section = bench.drain();
    bench.address28(8, 1);
    bench.start_dma(READ_DMA);
    bench.wait_parked();
    bench.set_pci_command(0x1);
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.memory_at(BUFFER, 0x200), [0; 0x200]);
}
