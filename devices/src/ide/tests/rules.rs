//! The gate's rules as far as the controller has to keep them: a request is a value (5), compound
//! operations are one request (7), at most one is parked (8), and what is waited for is visible
//! (12). `docs/gate.md` says which mutant breaks which of these tests.

use sluice_block::driver::DebugEvent;

use super::bench::*;
use crate::pci::{BarIndex, PciFunction};

const WRITE_DMA: u8 = 0xca;
const DATA_SET_MANAGEMENT: u8 = 0x06;
/// Another descriptor table than the bench's, and what it names.
const OTHER_TABLE: u32 = 0x9000;
const OTHER_BUFFER: u32 = 0xa000;

fn start_write(bench: &Bench, lba: u32) {
    bench.fill_memory(BUFFER, &[0xab; SECTOR]);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address28(lba, 1);
    bench.start_dma(WRITE_DMA);
}

/// The bus master's table register, unlike the drive's registers, can be written while the drive is
/// busy: for the next transfer, not for the one that is parked.
#[test]
fn a_parked_transfer_keeps_the_table_it_was_started_with() {
    let mut bench = Bench::new();
    let section = bench.drain();
    start_write(&bench, 50);
    bench.wait_parked();
    let entry = u64::from(OTHER_BUFFER) | u64::from(0x200 | EOT) << 32;
    bench.fill_memory(OTHER_TABLE, &entry.to_le_bytes());
    bench.fill_memory(OTHER_BUFFER, &[0xcd; SECTOR]);
    bench
        .ide
        .bar_write(BarIndex::BAR4, BM_TABLE, &OTHER_TABLE.to_le_bytes());
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.disks[0].sector(50), vec![0xab; SECTOR]);
}

#[test]
fn one_request_is_parked_whatever_the_guest_writes() {
    let mut bench = Bench::new();
    let section = bench.drain();
    start_write(&bench, 50);
    bench.wait_parked();
    for lba in 60..70 {
        bench.address28(lba, 1);
        bench.outb(COMMAND, WRITE_DMA);
        bench.outb(COMMAND, 0x30);
        bench.bm_write(BM_COMMAND, BM_START);
        bench.outb(COMMAND, 0xe7);
        bench.idle_turns();
    }
    assert_eq!(bench.disks[0].backend.gate().parked(), 1);
    assert_eq!(bench.drive_stats().commands, 1);
    drop(section);
    bench.wait_ready();
    bench.quiesce();
    assert_eq!(bench.disks[0].sector(50), vec![0xab; SECTOR]);
    for lba in 60..70 {
        assert_eq!(bench.disks[0].sector(lba), stamp(lba));
    }
}

/// A section that begins in the middle of a TRIM waits for all of it, and parks nothing of it.
#[test]
fn a_trim_enters_once() {
    let mut bench = Bench::new();
    let payload: Vec<u8> = (0..64u64)
        .flat_map(|range| ((range * 64) | (8 << 48)).to_le_bytes())
        .collect();
    bench.fill_memory(BUFFER, &payload);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address48(0, 1);
    bench.outb(FEATURES, 1);
    bench.hold(DebugEvent::Pdiscard);
    bench.start_dma(DATA_SET_MANAGEMENT);
    bench.wait_held();
    let gate = bench.disks[0].backend.gate().clone();
    let section = gate.close("test");
    bench.release();
    bench.wait(|bench| bench.status() & BSY == 0 || gate.parked() > 0);
    assert_eq!(gate.parked(), 0, "a range waits for its own request's end");
    assert_eq!(bench.status(), DRDY | DSC);
    assert_eq!(bench.disks[0].sector(63 * 64), vec![0; SECTOR]);
    drop(section);
}

#[test]
fn a_drain_can_say_which_command_it_waits_for() {
    let mut bench = Bench::new();
    let gate = bench.disks[0].backend.gate().clone();
    assert!(gate.describe_in_flight().is_empty());
    bench.hold(DebugEvent::WriteAio);
    start_write(&bench, 50);
    bench.wait_held();
    assert_eq!(
        gate.describe_in_flight(),
        ["IDE drive 0: write by DMA, 512 bytes at byte 25600"]
    );
    bench.release();
    bench.wait_ready();
    bench.quiesce();
    assert!(gate.describe_in_flight().is_empty());
    // What is parked holds no token: nobody waits for it.
    let section = bench.drain();
    start_write(&bench, 51);
    bench.wait_parked();
    assert!(gate.describe_in_flight().is_empty());
    drop(section);
    bench.wait_ready();
}
