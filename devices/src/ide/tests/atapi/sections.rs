//! Drained sections: a read waits as a value, is one request by DMA, and one a block through the data register.

use sluice_block::driver::DebugEvent;

use super::*;
use crate::pci::{BarIndex, PciFunction};

/// Another descriptor table than the bench's, and what it names.
const OTHER_TABLE: u32 = 0x9000;
const OTHER_BUFFER: u32 = 0xa000;

fn start_read(bench: &Bench) {
    bench.set_table(&[(BUFFER, 0x800 | EOT)]);
    bench.start_packet_dma(&read_10(50, 1));
}

#[test]
fn a_parked_packet_keeps_what_it_was_given() {
    let mut bench = cd();
    let section = bench.drain();
    start_read(&bench);
    bench.wait_parked();
    assert_eq!(bench.status(), BSY | DRDY);
    // Busy: neither registers nor another packet are taken; the bus master's table register is.
    bench.address28(0, 200);
    bench.outb(COMMAND, PACKET);
    bench.write_block(&read_10(7, 1));
    let entry = u64::from(OTHER_BUFFER) | u64::from(0x800 | EOT) << 32;
    bench.fill_memory(OTHER_TABLE, &entry.to_le_bytes());
    bench
        .ide
        .bar_write(BarIndex::BAR4, BM_TABLE, &OTHER_TABLE.to_le_bytes());
    assert_eq!(bench.disks[0].backend.gate().parked(), 1);
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(bench.memory_at(BUFFER, BLOCK), block(50));
    assert_eq!(bench.memory_at(OTHER_BUFFER, BLOCK), [0; BLOCK]);
}

#[test]
fn a_section_between_two_blocks_holds_the_second() {
    let mut bench = cd();
    bench.send_packet(0, 2048, &read_10(5, 2));
    bench.wait_ready();
    // The guest has its block: nothing is in flight, however long it takes.
    let section = bench.drain();
    assert_eq!(bench.take_packet_block(), block(5));
    bench.wait_parked();
    assert_eq!(bench.status(), BSY | DRDY);
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.take_packet_block(), block(6));
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
}

/// What needs no medium's bytes needs no section's end.
#[test]
fn answers_through_the_data_register_do_not_wait() {
    let mut bench = cd();
    let section = bench.drain();
    bench.packet(TEST_UNIT_READY);
    assert_eq!(bench.packet(&[0x25]).len(), 8);
    bench.packet(EJECT);
    drop(section);
}

/// A section that begins between two pieces of a raw read waits for all of it.
#[test]
fn a_packet_read_enters_once() {
    let mut bench = cd();
    bench.set_table(&[(BUFFER, 0), (BUFFER + 0x1_0000, 0x8000 | EOT)]);
    bench.hold(DebugEvent::ReadAio);
    bench.start_packet_dma(&read_cd(0, 40, 0xf8));
    bench.wait_held();
    let gate = bench.disks[0].backend.gate().clone();
    let section = gate.close("test");
    bench.release();
    bench.wait(|bench| bench.status() & BSY == 0 || gate.parked() > 0);
    assert_eq!(gate.parked(), 0, "a piece waits for its own request's end");
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    // The last sector of the second piece.
    let last = bench.memory_at(BUFFER + 39 * 2352 + 16, BLOCK);
    assert_eq!(last, block(39));
    drop(section);
}

#[test]
fn a_drain_can_say_that_it_waits_for_a_packet() {
    let mut bench = cd();
    let gate = bench.disks[0].backend.gate().clone();
    bench.hold(DebugEvent::ReadAio);
    start_read(&bench);
    bench.wait_held();
    assert_eq!(
        gate.describe_in_flight(),
        ["IDE drive 0: packet read by DMA, 2048 bytes at byte 102400"]
    );
    bench.release();
    bench.wait_ready();
}

#[test]
fn stopping_the_bus_master_takes_a_parked_packet_back() {
    let mut bench = cd();
    let section = bench.drain();
    start_read(&bench);
    bench.wait_parked();
    bench.bm_write(BM_COMMAND, 0);
    assert_eq!(bench.status(), DRDY | DSC | DRQ);
    drop(section);
    bench.quiesce();
    assert_eq!(bench.memory_at(BUFFER, BLOCK), [0; BLOCK]);
    bench.bm_write(BM_COMMAND, BM_START | BM_TO_MEMORY);
    bench.wait_ready();
    assert_eq!(bench.memory_at(BUFFER, BLOCK), block(50));
}

#[test]
fn a_drive_that_is_taken_away_fails_what_is_parked() {
    let mut bench = cd();
    let section = bench.drain();
    start_read(&bench);
    bench.wait_parked();
    bench.disks[0].backend.gate().destroy();
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | ERR);
    assert_eq!(bench.sense(), UNRECOVERED_READ);
    drop(section);
}
