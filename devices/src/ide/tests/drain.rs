//! Drained sections: nothing of the guest's reaches the node, and nothing of it is lost.

use std::sync::atomic::Ordering;

use sluice_block::backend::Account;
use sluice_block::driver::DebugEvent;

use super::bench::*;

const WRITE_DMA: u8 = 0xca;
const READ_DMA: u8 = 0xc8;

fn start_write(bench: &Bench, lba: u32, byte: u8) {
    bench.fill_memory(BUFFER, &[byte; SECTOR]);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address28(lba, 1);
    bench.start_dma(WRITE_DMA);
}

#[test]
fn a_dma_write_waits_for_the_end_of_the_section() {
    let mut bench = Bench::new();
    let section = bench.drain();
    start_write(&bench, 50, 0xab);
    bench.wait_parked();
    bench.idle_turns();
    assert_eq!(bench.status(), BSY | DRDY);
    assert_eq!(bench.bm_read(BM_STATUS), ACTIVE);
    assert!(!bench.is_interrupted());
    assert!(bench.disks[0].is_untouched());
    assert_eq!(section.held_back().requests, 1);
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT);
    assert_eq!(bench.disks[0].sector(50), vec![0xab; SECTOR]);
    assert_eq!(bench.drive_stats().parked, 1);
}

/// The request is a value: what the guest does to registers while it waits has no effect on it.
#[test]
fn a_parked_request_does_not_look_at_registers_again() {
    let mut bench = Bench::new();
    let section = bench.drain();
    start_write(&bench, 50, 0xab);
    bench.wait_parked();
    bench.address28(0, 200);
    bench.outb(COMMAND, 0x30);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.disks[0].sector(50), vec![0xab; SECTOR]);
    assert_eq!(bench.disks[0].sector(0), stamp(0));
    assert_eq!(bench.drive_stats().commands, 1);
}

#[test]
fn a_write_through_the_data_register_waits() {
    let mut bench = Bench::new();
    let section = bench.drain();
    bench.address28(50, 2);
    bench.outb(COMMAND, 0x30);
    bench.write_block(&[0x11; SECTOR]);
    bench.wait_parked();
    assert_eq!(bench.status(), BSY | DRDY);
    assert!(bench.disks[0].is_untouched());
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC | DRQ);
    assert_eq!(bench.disks[0].sector(50), vec![0x11; SECTOR]);
    // A section between two blocks holds the second.
    let section = bench.drain();
    bench.write_block(&[0x22; SECTOR]);
    bench.wait_parked();
    assert_eq!(bench.disks[0].sector(51), stamp(51));
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC);
    assert_eq!(bench.disks[0].sector(51), vec![0x22; SECTOR]);
}

#[test]
fn reads_wait_as_well() {
    let mut bench = Bench::new();
    let section = bench.drain();
    bench.address28(50, 1);
    bench.outb(COMMAND, 0x20);
    bench.wait_parked();
    assert_eq!(bench.status() & DRQ, 0);
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.read_block(1), stamp(50));
}

/// A bench with a slave on the same node would break a rule of the graph, so order is shown on one
/// drive: BSY lets the flush be given only after the write has ended.
#[test]
fn a_flush_runs_after_the_write_before_it() {
    let mut bench = Bench::new();
    let section = bench.drain();
    start_write(&bench, 50, 0xab);
    bench.wait_parked();
    bench.outb(COMMAND, 0xe7);
    bench.idle_turns();
    assert_eq!(bench.drive_stats().flushes, 0);
    bench.hold(DebugEvent::FlushToDisk);
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.disks[0].sector(50), vec![0xab; SECTOR]);
    bench.outb(COMMAND, 0xe7);
    bench.wait_held();
    bench.release();
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC);
}

#[test]
fn nested_sections_end_with_the_last() {
    let mut bench = Bench::new();
    let outer = bench.drain();
    start_write(&bench, 50, 0xab);
    bench.wait_parked();
    let inner = bench.drain();
    drop(outer);
    bench.idle_turns();
    assert!(bench.disks[0].is_untouched());
    assert!(bench.stats().parked_now);
    drop(inner);
    bench.wait_ready();
    assert_eq!(bench.disks[0].sector(50), vec![0xab; SECTOR]);
}

#[test]
fn a_drain_waits_for_the_whole_request() {
    let mut bench = Bench::new();
    bench.hold(DebugEvent::WriteAio);
    start_write(&bench, 50, 0xab);
    bench.wait_held();
    let gate = bench.disks[0].backend.gate().clone();
    bench.lines[0].watch(gate.clone());
    assert_eq!(gate.in_flight(), 1);
    let closed = gate.close("test");
    bench.idle_turns();
    assert_eq!(gate.in_flight(), 1);
    bench.release();
    bench.run(async move { gate.wait_idle().await });
    // The token went only after the guest had been told.
    assert!(bench.is_interrupted());
    assert_eq!(bench.lines[0].in_flight(), 1);
    assert_eq!(bench.status(), DRDY | DSC);
    drop(closed);
}

#[test]
fn the_neighbour_on_the_cable_is_not_held() {
    let mut bench = Bench::with(2, "", |_| {});
    let section = bench.drain();
    bench.address28(50, 1);
    bench.outb(DEVICE, LBA | SLAVE);
    bench.outb(COMMAND, 0x30);
    bench.write_block(&[0x33; SECTOR]);
    bench.wait_ready();
    assert_eq!(bench.disks[1].sector(50), vec![0x33; SECTOR]);
    drop(section);
}

/// A bus master that is stopped must not write memory later on: what is parked goes back to the drive, which waits for
/// another start.
#[test]
fn stopping_the_bus_master_takes_a_parked_transfer_back() {
    let mut bench = Bench::new();
    let section = bench.drain();
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address28(50, 1);
    bench.start_dma(READ_DMA);
    bench.wait_parked();
    bench.bm_write(BM_COMMAND, 0);
    assert_eq!(bench.bm_read(BM_STATUS), 0);
    assert_eq!(bench.status(), DRDY | DSC | DRQ);
    drop(section);
    bench.quiesce();
    assert_eq!(bench.memory_at(BUFFER, SECTOR), vec![0; SECTOR]);
    // Started again, it runs, with the table of then.
    bench.set_table(&[(BUFFER + 0x1000, 0x200 | EOT)]);
    bench.bm_write(BM_COMMAND, BM_START | BM_TO_MEMORY);
    bench.wait_ready();
    assert_eq!(bench.memory_at(BUFFER, SECTOR), vec![0; SECTOR]);
    assert_eq!(bench.memory_at(BUFFER + 0x1000, SECTOR), stamp(50));
    assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT);
}

/// The same when the stop comes before the loop has seen the request.
#[test]
fn stopping_the_bus_master_takes_back_what_would_be_parked() {
    let mut bench = Bench::new();
    let section = bench.drain();
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address28(50, 1);
    bench.start_dma(READ_DMA);
    bench.bm_write(BM_COMMAND, 0);
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC | DRQ);
    assert_eq!(bench.bm_read(BM_STATUS), 0);
    drop(section);
    bench.quiesce();
    assert_eq!(bench.memory_at(BUFFER, SECTOR), vec![0; SECTOR]);
    assert_eq!(bench.drive_stats().parked, 0);
}

/// A TRIM is one request however many ranges it has: sections that come and go all the time neither split it nor
/// wait for it for ever (QEMU's hang: each range entered anew while the request held its token).
#[test]
fn a_trim_of_64_ranges_gets_through_continuous_sections() {
    let mut bench = Bench::new();
    let payload: Vec<u8> = (0..64u64)
        .flat_map(|range| ((range * 64) | (8 << 48)).to_le_bytes())
        .collect();
    bench.fill_memory(BUFFER, &payload);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address48(0, 1);
    bench.outb(FEATURES, 1);
    bench.hold(DebugEvent::Pdiscard);
    bench.start_dma(0x06);
    // The first range is at the node when the sections begin.
    bench.wait_held();
    bench.release();
    let unmapped = |bench: &Bench| {
        let unmaps = bench.disks[0].backend.stats().of(Account::Unmap);
        unmaps.operations.load(Ordering::Relaxed)
    };
    let mut sections = 0;
    while bench.status() & BSY != 0 {
        let section = bench.drain();
        // No section sees half of a TRIM.
        let discarded = unmapped(&bench);
        assert!(discarded == 0 || discarded == 64, "{discarded}");
        bench.idle_turns();
        assert_eq!(unmapped(&bench), discarded);
        drop(section);
        sections += 1;
        assert!(sections < 1000);
    }
    assert_eq!(unmapped(&bench), 64);
    assert_eq!(bench.status(), DRDY | DSC);
    for lba in 0..SECTORS {
        let expected = if lba % 64 < 8 {
            vec![0; SECTOR]
        } else {
            stamp(lba)
        };
        assert_eq!(bench.disks[0].sector(lba), expected, "{lba}");
    }
}

#[test]
fn a_parked_trim_runs_whole_after_the_section() {
    let mut bench = Bench::new();
    let section = bench.drain();
    bench.fill_memory(BUFFER, &[0; SECTOR]);
    bench.fill_memory(BUFFER, &(8 | (8u64 << 48)).to_le_bytes());
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address48(0, 1);
    bench.outb(FEATURES, 1);
    bench.start_dma(0x06);
    bench.wait_parked();
    assert!(bench.disks[0].is_untouched());
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.disks[0].sector(8), vec![0; SECTOR]);
}

/// The negative control of it all: without postponing the write lands inside the section.
#[cfg(feature = "test-hooks")]
#[test]
fn without_postponing_a_write_breaks_into_the_section() {
    let mut bench = Bench::with(1, "", |drive| drive.postpone = false);
    let section = bench.drain();
    start_write(&bench, 50, 0xab);
    bench.wait_ready();
    assert_eq!(bench.disks[0].sector(50), vec![0xab; SECTOR]);
    drop(section);
}

/// The flush that switching the write cache off brings along is a request like any other.
#[test]
fn switching_the_write_cache_off_waits_with_its_flush() {
    let mut bench = Bench::new();
    let section = bench.drain();
    bench.outb(FEATURES, 0x82);
    bench.outb(COMMAND, 0xef);
    bench.wait_parked();
    bench.idle_turns();
    assert_eq!(bench.status(), BSY | DRDY);
    assert!(!bench.is_interrupted());
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(bench.drive_stats().flushes, 1);
}
