//! Data by the bus master.

use std::sync::atomic::Ordering;

use sluice_block::backend::Account;
use sluice_block::driver::DebugEvent;

use super::bench::*;
use crate::pci::{BarIndex, PciFunction};

const READ_DMA: u8 = 0xc8;
const WRITE_DMA: u8 = 0xca;
const READ_DMA_EXT: u8 = 0x25;
const WRITE_DMA_EXT: u8 = 0x35;
const TRIM: u8 = 0x06;

/// Runs a DMA command to its end and returns the bus master's status, without the capability bits.
fn dma(bench: &mut Bench, command: u8) -> u8 {
    bench.start_dma(command);
    bench.wait(|bench| bench.bm_read(BM_STATUS) & (ACTIVE | INTERRUPT) != ACTIVE);
    bench.bm_read(BM_STATUS)
}

#[test]
fn a_read_reaches_memory() {
    let mut bench = Bench::new();
    bench.set_table(&[(BUFFER, 0x400), (BUFFER + 0x1000, 0x200 | EOT)]);
    bench.address28(40, 3);
    assert_eq!(dma(&mut bench, READ_DMA), INTERRUPT);
    assert!(bench.is_interrupted());
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert!(!bench.is_interrupted());
    assert_eq!(
        bench.memory_at(BUFFER, 0x400),
        [stamp(40), stamp(41)].concat()
    );
    assert_eq!(bench.memory_at(BUFFER + 0x1000, 0x200), stamp(42));
    assert_eq!(bench.memory_at(BUFFER + 0x400, 0x200), vec![0; 0x200]);
    assert_eq!(bench.inb(LBA_LOW), 43);
    assert_eq!(bench.inb(COUNT), 0);
}

#[test]
fn a_write_reaches_the_disk() {
    let mut bench = Bench::new();
    bench.fill_memory(BUFFER, &[0xab; 0x400]);
    bench.set_table(&[(BUFFER, 0x400 | EOT)]);
    bench.address48(4094, 2);
    assert_eq!(dma(&mut bench, WRITE_DMA_EXT), INTERRUPT);
    assert_eq!(bench.disks[0].sector(4093), stamp(4093));
    assert_eq!(bench.disks[0].sector(4094), vec![0xab; SECTOR]);
    assert_eq!(bench.disks[0].sector(4095), vec![0xab; SECTOR]);
}

#[test]
fn regions_need_not_be_whole_sectors() {
    let mut bench = Bench::new();
    bench.set_table(&[
        (BUFFER, 6),
        (BUFFER + 0x1000, 0x200),
        (BUFFER + 0x2000, 0x1fa | EOT),
    ]);
    bench.address28(0, 2);
    assert_eq!(dma(&mut bench, READ_DMA), INTERRUPT);
    let expected = [stamp(0), stamp(1)].concat();
    assert_eq!(bench.memory_at(BUFFER, 6), expected[..6]);
    assert_eq!(bench.memory_at(BUFFER + 0x1000, 0x200), expected[6..0x206]);
    assert_eq!(bench.memory_at(BUFFER + 0x2000, 0x1fa), expected[0x206..]);
}

#[test]
fn too_short_a_table_transfers_nothing() {
    let mut bench = Bench::new();
    for (entry, count) in [((BUFFER, 0x1fe | EOT), 1), ((BUFFER, 0x200 | EOT), 2)] {
        bench.set_table(&[entry]);
        bench.address28(9, count);
        assert_eq!(dma(&mut bench, READ_DMA), 0);
        assert_eq!(bench.status(), DRDY | DSC);
        assert!(!bench.is_interrupted());
        assert_eq!(bench.memory_at(BUFFER, 0x200), vec![0; 0x200]);
    }
}

#[test]
fn too_long_a_table_leaves_the_bus_master_active() {
    let mut bench = Bench::new();
    bench.set_table(&[(BUFFER, 0x1000 | EOT)]);
    bench.address28(9, 1);
    assert_eq!(dma(&mut bench, READ_DMA), ACTIVE | INTERRUPT);
    assert_eq!(bench.memory_at(BUFFER, 0x200), stamp(9));
    assert_eq!(bench.memory_at(BUFFER + 0x200, 0x200), vec![0; 0x200]);
    // What is left of the table is not used for another command.
    bench.outb(COMMAND, READ_DMA);
    assert_eq!(bench.bm_read(BM_STATUS) & ACTIVE, 0);
    assert_eq!(bench.status(), DRDY | DSC);
    bench.bm_write(BM_COMMAND, 0);
    assert_eq!(bench.bm_read(BM_STATUS) & ACTIVE, 0);
}

#[test]
fn a_stop_lets_what_was_started_finish() {
    let mut bench = Bench::new();
    for (entry, end) in [
        ((BUFFER, 0x200 | EOT), INTERRUPT),
        ((BUFFER, 0x1000 | EOT), INTERRUPT),
        ((BUFFER, 0x100 | EOT), 0),
    ] {
        bench.set_table(&[entry]);
        bench.address28(9, 1);
        bench.start_dma(READ_DMA);
        bench.bm_write(BM_COMMAND, 0);
        bench.wait(|bench| bench.bm_read(BM_STATUS) & ACTIVE == 0);
        assert_eq!(bench.bm_read(BM_STATUS), end, "{entry:x?}");
        assert_eq!(bench.status(), DRDY | DSC);
    }
}

#[test]
fn the_command_may_come_after_the_start() {
    let mut bench = Bench::new();
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address28(9, 1);
    bench.bm_write(BM_COMMAND, BM_START);
    assert_eq!(bench.bm_read(BM_STATUS), ACTIVE);
    bench.outb(COMMAND, READ_DMA);
    bench.wait_ready();
    assert_eq!(bench.memory_at(BUFFER, 0x200), stamp(9));
    assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT);
}

#[test]
fn a_drive_waits_for_the_bus_master_with_drq() {
    let mut bench = Bench::new();
    bench.address28(9, 1);
    bench.outb(COMMAND, READ_DMA);
    bench.idle_turns();
    assert_eq!(bench.status(), DRDY | DSC | DRQ);
    assert!(!bench.is_interrupted());
}

#[test]
fn without_the_pci_bit_no_memory_is_touched() {
    let mut bench = Bench::new();
    bench.set_pci_command(0x1);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.fill_memory(BUFFER, &[0xcd; 0x200]);
    bench.address28(9, 1);
    assert_eq!(dma(&mut bench, READ_DMA), ACTIVE | INTERRUPT);
    assert_eq!(bench.status() & ERR, 0);
    assert_eq!(bench.memory_at(BUFFER, 0x200), [0xcd; 0x200]);
    // A write has no bytes to write, and says so.
    bench.address28(9, 1);
    assert_eq!(dma(&mut bench, WRITE_DMA), INTERRUPT | BM_ERROR);
    assert_eq!(bench.status(), DRDY | ERR);
    assert!(bench.disks[0].is_untouched());
}

/// TRIM's ranges come from memory too.
#[test]
fn without_the_pci_bit_nothing_is_trimmed() {
    let mut bench = Bench::new();
    let mut payload = vec![0; SECTOR];
    payload[..8].copy_from_slice(&(8_u64 | 8 << 48).to_le_bytes());
    bench.fill_memory(BUFFER, &payload);
    for (command, status, trimmed) in [(0x1, DRDY | ERR, false), (0x5, DRDY | DSC, true)] {
        bench.set_pci_command(command);
        bench.set_table(&[(BUFFER, 0x200 | EOT)]);
        bench.outb(FEATURES, 1);
        bench.address48(0, 1);
        dma(&mut bench, 0x06);
        assert_eq!(bench.status(), status);
        let expected = if trimmed { vec![0; SECTOR] } else { stamp(8) };
        assert_eq!(bench.disks[0].sector(8), expected);
    }
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let mut bench = Bench::new();
    for command in [READ_DMA, WRITE_DMA] {
        bench.set_table(&[(0x8000_0000, 0x200 | EOT)]);
        bench.address28(9, 1);
        assert_eq!(dma(&mut bench, command), INTERRUPT | BM_ERROR);
        assert_eq!(bench.status(), DRDY | ERR);
        assert_eq!(bench.inb(ERROR), ABRT);
    }
    // The error bit is cleared by writing a one.
    bench.bm_write(BM_STATUS, BM_ERROR);
    assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT);
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn beyond_the_end_is_aborted() {
    let mut bench = Bench::new();
    bench.set_table(&[(BUFFER, 0x400 | EOT)]);
    bench.address28(4095, 2);
    assert_eq!(dma(&mut bench, WRITE_DMA), INTERRUPT);
    assert_eq!(bench.status(), DRDY | ERR);
    bench.address48(0xffff_ffff_ffff, 2);
    assert_eq!(dma(&mut bench, READ_DMA_EXT), INTERRUPT);
    assert_eq!(bench.status(), DRDY | ERR);
    assert!(bench.disks[0].is_untouched());
    assert_eq!(bench.disks[0].invalid(), [1, 1, 0]);
}

#[test]
fn a_failing_node_is_an_error() {
    let errors = r#""inject-error": [{ "event": "read_aio" }],"#;
    let mut bench = Bench::with(1, errors, |_| {});
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address28(9, 1);
    assert_eq!(dma(&mut bench, READ_DMA), INTERRUPT);
    assert!(bench.is_interrupted());
    assert_eq!(bench.status(), DRDY | ERR);
}

#[test]
fn without_write_cache_a_write_ends_after_its_flush() {
    let mut bench = Bench::with(1, "", |drive| drive.write_cache = false);
    bench.hold(DebugEvent::FlushToDisk);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address28(9, 1);
    bench.start_dma(WRITE_DMA);
    bench.wait_held();
    assert_eq!(bench.disks[0].sector(9), vec![0; SECTOR]);
    assert_eq!(bench.status() & BSY, BSY);
    bench.release();
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC);
}

#[test]
fn bus_master_registers_have_their_widths() {
    let bench = Bench::new();
    let ide = &bench.ide;
    let read = |offset, length| {
        let mut bytes = vec![0; length];
        ide.bar_read(BarIndex::BAR4, offset, &mut bytes);
        bytes
    };
    ide.bar_write(BarIndex::BAR4, 4, &0x1234_5677u32.to_le_bytes());
    assert_eq!(read(4, 4), 0x1234_5674u32.to_le_bytes());
    ide.bar_write(BarIndex::BAR4, 6, &[0xcd, 0xab]);
    assert_eq!(read(4, 4), 0xabcd_5674u32.to_le_bytes());
    assert_eq!(read(5, 1), [0x56]);
    // Command and status are bytes.
    ide.bar_write(BarIndex::BAR4, 0, &[BM_START, 0]);
    assert_eq!(read(0, 2), [0xff, 0xff]);
    assert_eq!(read(0, 1), [0]);
    assert_eq!(read(2, 4), [0xff; 4]);
    // The capability bits keep what is written, ACTIVE does not.
    ide.bar_write(BarIndex::BAR4, 2, &[0xff]);
    assert_eq!(read(2, 1), [0x60]);
    assert_eq!(read(1, 1), [0xff]);
    // The secondary channel's half is another one.
    assert_eq!(read(12, 4), [0; 4]);
}

fn trim(bench: &mut Bench, blocks: u16, ranges: &[(u64, u16)]) -> u8 {
    let mut payload = vec![0; usize::from(blocks) * SECTOR];
    for (entry, (lba, count)) in payload.chunks_exact_mut(8).zip(ranges) {
        let value = lba | u64::from(*count) << 48;
        entry.copy_from_slice(&value.to_le_bytes());
    }
    bench.fill_memory(BUFFER, &payload);
    let length = u32::try_from(payload.len()).unwrap();
    bench.set_table(&[(BUFFER, length | EOT)]);
    bench.address48(0, blocks);
    bench.outb(FEATURES, 1);
    dma(bench, TRIM)
}

#[test]
fn trim_discards_each_range() {
    let mut bench = Bench::new();
    let ranges = [(8, 8), (0, 0), (1024, 16)];
    assert_eq!(trim(&mut bench, 1, &ranges), INTERRUPT);
    assert_eq!(bench.status(), DRDY | DSC);
    for lba in (8..16).chain(1024..1040) {
        assert_eq!(bench.disks[0].sector(lba), vec![0; SECTOR], "{lba}");
    }
    for lba in [0, 7, 16, 1023, 1040] {
        assert_eq!(bench.disks[0].sector(lba), stamp(lba));
    }
    let unmaps = bench.disks[0].backend.stats().of(Account::Unmap);
    assert_eq!(unmaps.operations.load(Ordering::Relaxed), 2);
}

/// As many ranges as IDENTIFY DEVICE allows are discarded one by one; with a block more the list is not even read.
#[test]
fn a_trim_has_at_most_512_ranges() {
    let unmaps = |bench: &Bench| {
        let stats = bench.disks[0].backend.stats();
        stats.of(Account::Unmap).operations.load(Ordering::Relaxed)
    };
    let mut bench = Bench::new();
    assert_eq!(trim(&mut bench, 8, &[(8, 1); 512]), INTERRUPT);
    assert_eq!((bench.status(), unmaps(&bench)), (DRDY | DSC, 512));
    bench.address48(0, 9);
    bench.outb(FEATURES, 1);
    bench.start_dma(TRIM);
    bench.wait_ready();
    assert_eq!((bench.status(), unmaps(&bench)), (DRDY | ERR, 512));
}

#[test]
fn trim_beyond_the_end_is_aborted() {
    let mut bench = Bench::new();
    assert_eq!(trim(&mut bench, 1, &[(4090, 7)]), INTERRUPT);
    assert_eq!(bench.status(), DRDY | ERR);
    assert_eq!(trim(&mut bench, 1, &[((1 << 48) - 1, 0xffff)]), INTERRUPT);
    assert_eq!(bench.status(), DRDY | ERR);
    assert!(bench.disks[0].is_untouched());
    assert_eq!(bench.disks[0].invalid(), [0, 0, 2]);
}

#[test]
fn trim_must_be_offered_and_asked_for() {
    let mut bench = Bench::new();
    bench.address48(0, 1);
    bench.outb(FEATURES, 0);
    assert_eq!(bench.simple(TRIM), DRDY | ERR);
    bench.address48(0, 9);
    bench.outb(FEATURES, 1);
    assert_eq!(bench.simple(TRIM), DRDY | ERR);
    let mut bench = Bench::with(1, "", |drive| drive.discard = false);
    bench.address48(0, 1);
    bench.outb(FEATURES, 1);
    assert_eq!(bench.simple(TRIM), DRDY | ERR);
}
