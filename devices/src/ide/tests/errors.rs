//! Errors whose policy is to stop the machine: the command stays, and is done when it goes on.

use std::sync::atomic::Ordering;

use sluice_block::backend::{Account, ErrorPolicy};
use sluice_block::job::OnError;

use super::bench::*;
use crate::pci::PciFunction;

const WRITE_DMA: u8 = 0xca;
const WRITE_SECTORS: u8 = 0x30;
const READ_SECTORS: u8 = 0x20;
const FLUSH: u8 = 0xe7;
const SET_FEATURES: u8 = 0xef;

/// A disk whose errors stop the machine, with these rules of `blkdebug`.
fn stopping(rules: &str) -> Bench {
    let bench = Bench::with(1, &format!(r#""inject-error": [{rules}],"#), |_| {});
    let policy = ErrorPolicy::new(OnError::Stop, OnError::Stop);
    bench.disks[0].backend.set_policy(policy);
    bench
}

/// Runs the loop until a request is halted: the drive is at rest, and the guest sees it busy.
fn wait_halted(bench: &mut Bench) {
    bench.wait(|bench| bench.disks[0].backend.halted() == 1);
    bench.quiesce();
    assert_eq!(bench.status(), BSY | DRDY);
    assert!(!bench.is_interrupted());
}

fn count(bench: &Bench, kind: Account) -> (u64, u64) {
    let counters = bench.disks[0].backend.stats().of(kind);
    (
        counters.operations.load(Ordering::Relaxed),
        counters.failed.load(Ordering::Relaxed),
    )
}

fn start_dma_write(bench: &Bench, lba: u32, byte: u8) {
    bench.fill_memory(BUFFER, &[byte; SECTOR]);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address28(lba, 1);
    bench.start_dma(WRITE_DMA);
}

#[test]
fn a_dma_write_is_done_once_when_the_machine_goes_on() {
    let mut bench = stopping(r#"{ "event": "write_aio", "errno": 28, "once": true }"#);
    start_dma_write(&bench, 50, 0xab);
    wait_halted(&mut bench);
    assert!(bench.disks[0].is_untouched());
    bench.disks[0].backend.resume();
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT);
    assert_eq!(bench.disks[0].sector(50), vec![0xab; SECTOR]);
    assert_eq!(count(&bench, Account::Write), (1, 0));
}

#[test]
fn a_command_through_the_data_register_goes_on_with_the_sector_that_failed() {
    let mut bench = stopping(r#"{ "event": "write_aio", "sector": 51, "once": true }"#);
    bench.address28(50, 3);
    bench.outb(COMMAND, WRITE_SECTORS);
    bench.write_block(&[1; SECTOR]);
    bench.wait_ready();
    // Takes the interrupt away.
    bench.inb(STATUS);
    bench.write_block(&[2; SECTOR]);
    wait_halted(&mut bench);
    bench.disks[0].backend.resume();
    bench.wait_ready();
    bench.write_block(&[3; SECTOR]);
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    for (lba, byte) in [(50, 1), (51, 2), (52, 3)] {
        assert_eq!(bench.disks[0].sector(lba), vec![byte; SECTOR], "{lba}");
    }
    assert_eq!(count(&bench, Account::Write), (3, 0));
}

#[test]
fn a_read_is_repeated_too() {
    let mut bench = stopping(r#"{ "event": "read_aio", "once": true }"#);
    bench.address28(7, 1);
    bench.outb(COMMAND, READ_SECTORS);
    wait_halted(&mut bench);
    bench.disks[0].backend.resume();
    bench.wait_ready();
    assert_eq!(bench.read_block(1), stamp(7));
}

#[test]
fn a_trim_does_not_repeat_the_ranges_that_are_done() {
    let mut bench = stopping(r#"{ "event": "pdiscard", "sector": 40, "once": true }"#);
    let mut payload = vec![0; SECTOR];
    for (entry, lba) in payload.chunks_mut(8).zip([8_u64, 40, 72]) {
        entry.copy_from_slice(&(lba | 8 << 48).to_le_bytes());
    }
    bench.fill_memory(BUFFER, &payload);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.outb(FEATURES, 1);
    bench.address48(0, 1);
    bench.start_dma(0x06);
    wait_halted(&mut bench);
    assert_eq!(count(&bench, Account::Unmap), (1, 0));
    bench.disks[0].backend.resume();
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(count(&bench, Account::Unmap), (3, 0));
}

#[test]
fn a_flush_stops_the_machine_as_a_write_does() {
    let mut bench = stopping(r#"{ "event": "flush_to_disk", "once": true }"#);
    bench.outb(COMMAND, FLUSH);
    wait_halted(&mut bench);
    bench.disks[0].backend.resume();
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
}

#[test]
fn a_reset_does_not_wait_for_the_machine_and_drops_the_command() {
    let mut bench = stopping(r#"{ "event": "write_aio", "once": true }"#);
    start_dma_write(&bench, 50, 0xab);
    wait_halted(&mut bench);
    bench.outb(CONTROL, 4);
    bench.outb(CONTROL, 0);
    bench.wait_ready();
    assert_eq!(bench.disks[0].backend.halted(), 0);
    bench.disks[0].backend.resume();
    bench.quiesce();
    assert!(bench.disks[0].is_untouched());
    start_dma_write(&bench, 60, 0xcd);
    bench.wait_ready();
    assert_eq!(bench.disks[0].sector(60), vec![0xcd; SECTOR]);
    assert_eq!(bench.disks[0].sector(50), stamp(50));
}

#[test]
fn the_guest_switches_the_write_cache_and_a_machine_reset_switches_it_back() {
    let mut bench = Bench::new();
    assert!(bench.disks[0].backend.write_cache());
    bench.outb(FEATURES, 0x82);
    bench.simple(SET_FEATURES);
    assert!(!bench.disks[0].backend.write_cache());
    bench.outb(FEATURES, 0x02);
    bench.simple(SET_FEATURES);
    assert!(bench.disks[0].backend.write_cache());
    bench.outb(FEATURES, 0x82);
    bench.simple(SET_FEATURES);
    let ide = std::sync::Arc::clone(&bench.ide);
    let resetting = ide.reset();
    bench.run(resetting);
    assert!(bench.disks[0].backend.write_cache());
}
