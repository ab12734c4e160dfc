//! Resets in the middle of a packet command.

use std::sync::Arc;

use sluice_block::driver::DebugEvent;

use super::ata_side::signature;
use super::*;
use crate::pci::PciFunction;

const SIGNATURE: [u8; 5] = [1, 1, 0x14, 0xeb, 1];

fn srst(bench: &Bench) {
    bench.outb(CONTROL, SRST);
    bench.outb(CONTROL, 0);
}

fn device_reset(bench: &Bench) {
    bench.outb(COMMAND, 0x08);
}

const RESETS: [fn(&Bench); 2] = [srst, device_reset];

/// Whatever was under way, the drive works.
fn assert_works(bench: &mut Bench) {
    assert_eq!(bench.packet(&read_10(30, 1)), block(30));
}

#[test]
fn in_the_middle_of_the_packet() {
    let mut bench = cd();
    for reset in RESETS {
        bench.outb(COMMAND, PACKET);
        bench.write_block(&read_10(5, 2)[..6]);
        reset(&bench);
        assert_eq!(signature(&bench), SIGNATURE);
        assert_eq!(bench.status(), 0);
        assert_works(&mut bench);
    }
}

#[test]
fn in_the_middle_of_the_data() {
    let mut bench = cd();
    for reset in RESETS {
        bench.send_packet(0, 2048, &read_10(5, 3));
        bench.wait_ready();
        assert_eq!(bench.take_packet_block(), block(5));
        bench.wait_ready();
        bench.read_words(17);
        reset(&bench);
        assert_eq!(bench.status(), 0);
        assert!(!bench.is_interrupted());
        // Nothing of the old command is left.
        assert_eq!(bench.read_words(2), [0; 4]);
        bench.quiesce();
        assert_eq!(bench.status(), 0);
        assert_works(&mut bench);
    }
}

#[test]
fn while_the_bus_master_is_awaited() {
    let mut bench = cd();
    for reset in RESETS {
        bench.set_table(&[(BUFFER, 0x800 | EOT)]);
        bench.send_packet(BY_DMA, 0, &read_10(5, 1));
        reset(&bench);
        bench.bm_write(BM_COMMAND, BM_START | BM_TO_MEMORY);
        bench.quiesce();
        assert_eq!(bench.memory_at(BUFFER, BLOCK), [0; BLOCK]);
        bench.bm_write(BM_COMMAND, 0);
        assert_works(&mut bench);
    }
}

#[test]
fn a_parked_read_is_cancelled() {
    let mut bench = cd();
    for reset in RESETS {
        let section = bench.drain();
        bench.set_table(&[(BUFFER, 0x800 | EOT)]);
        bench.start_packet_dma(&read_10(5, 1));
        bench.wait_parked();
        reset(&bench);
        assert_eq!(bench.status(), 0);
        bench.idle_turns();
        assert_eq!(bench.disks[0].backend.gate().parked(), 0);
        drop(section);
        bench.quiesce();
        assert_eq!(bench.memory_at(BUFFER, BLOCK), [0; BLOCK]);
        assert!(!bench.is_interrupted());
        bench.bm_write(BM_COMMAND, 0);
        assert_works(&mut bench);
    }
}

#[test]
fn a_running_read_is_waited_for_and_its_outcome_dropped() {
    let mut bench = cd();
    for reset in RESETS {
        bench.hold(DebugEvent::ReadAio);
        bench.send_packet(0, ROOMY, &read_10(5, 1));
        bench.wait_held();
        reset(&bench);
        bench.idle_turns();
        assert_eq!(bench.status(), BSY);
        bench.release();
        bench.wait_ready();
        assert_eq!(signature(&bench), SIGNATURE);
        assert_eq!(bench.status(), 0);
        assert!(!bench.is_interrupted());
        assert_works(&mut bench);
    }
    assert_eq!(bench.drive_stats().dropped, 2);
}

#[test]
fn a_device_reset_leaves_the_neighbour_and_the_selection_alone() {
    use crate::ide::DriveKind;
    use std::sync::atomic::{AtomicBool, Ordering};
    let first = AtomicBool::new(true);
    let mut bench = Bench::with(2, "", |drive| {
        if !first.swap(false, Ordering::Relaxed) {
            drive.kind = DriveKind::CdRom;
        }
    });
    bench.address28(0x1234, 9);
    bench.outb(DEVICE, SLAVE);
    bench.outb(COMMAND, 0x08);
    assert_eq!(bench.inb(DEVICE) & SLAVE, SLAVE);
    assert_eq!(signature(&bench), SIGNATURE);
    bench.outb(DEVICE, LBA);
    assert_eq!(bench.inb(COUNT), 9);
    assert_eq!(bench.inb(LBA_MID), 0x12);
    assert_eq!(bench.simple(0x08), DRDY | ERR);
}

#[test]
fn a_reset_unlocks_and_forgets_the_sense_but_not_a_change() {
    let mut bench = cd();
    for reset in RESETS {
        bench.packet(LOCK);
        bench.by_register(ROOMY, &[0xff]).unwrap_err();
        bench.device().medium_changed(true);
        reset(&bench);
        assert!(!bench.device().is_locked());
        assert_eq!(bench.sense(), NO_SENSE);
        assert_eq!(bench.packet_fails(TEST_UNIT_READY), NO_MEDIUM);
        assert_eq!(bench.packet_fails(TEST_UNIT_READY), MAY_HAVE_CHANGED);
        bench.packet(TEST_UNIT_READY);
    }
}

#[test]
fn a_machine_reset_closes_the_tray() {
    let mut bench = cd();
    bench.packet(EJECT);
    assert!(bench.device().is_tray_open());
    let ide = Arc::clone(&bench.ide);
    let resetting = ide.reset();
    bench.run(resetting);
    assert!(!bench.device().is_tray_open());
    bench.packet(TEST_UNIT_READY);
}
