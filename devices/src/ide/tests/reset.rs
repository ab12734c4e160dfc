//! Resets settle first: what is parked is cancelled, what runs is awaited, then registers change.

use std::sync::Arc;

use sluice_block::driver::DebugEvent;

use super::bench::*;
use crate::ide::DriveConfig;
use crate::ide::core::{Core, Unit};
use crate::ide::disk::Disk;
use crate::ide::regs::Register;
use crate::pci::PciFunction;

fn signature(bench: &Bench) -> [u8; 5] {
    [COUNT, LBA_LOW, LBA_MID, LBA_HIGH, ERROR].map(|port| bench.inb(port))
}

const DISK: [u8; 5] = [1, 1, 0, 0, 1];

/// A DMA write of one sector of 0xab.
fn start_write(bench: &Bench, lba: u32) {
    bench.fill_memory(BUFFER, &[0xab; SECTOR]);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.address28(lba, 1);
    bench.start_dma(0xca);
}

#[test]
fn srst_is_busy_until_it_ends_and_posts_the_signature() {
    let bench = Bench::new();
    bench.address28(0x1234, 9);
    bench.outb(CONTROL, SRST);
    assert_eq!(bench.status(), BSY);
    // Busy: nothing can be written.
    bench.outb(COUNT, 0x55);
    bench.outb(COMMAND, 0xec);
    bench.outb(CONTROL, 0);
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(signature(&bench), DISK);
    assert!(!bench.is_interrupted());
    assert_eq!(bench.stats().resets, 1);
}

#[test]
fn srst_ends_a_block_in_the_middle() {
    let mut bench = Bench::new();
    for (command, block) in [(0x20, 10), (0x30, 10), (0xec, 10)] {
        bench.address28(7, 2);
        bench.outb(COMMAND, command);
        bench.wait_ready();
        bench.write_block(&vec![0; block]);
        bench.read_block(0);
        bench.outb(CONTROL, SRST);
        bench.outb(CONTROL, 0);
        assert_eq!(bench.status(), DRDY | DSC, "{command:#x}");
        assert!(!bench.is_interrupted());
    }
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn srst_keeps_settings_but_the_block_size() {
    let mut bench = Bench::new();
    bench.outb(FEATURES, 0x03);
    bench.outb(COUNT, 0x41);
    bench.simple(0xef);
    bench.outb(COUNT, 2);
    bench.simple(0xc6);
    bench.outb(CONTROL, SRST);
    bench.outb(CONTROL, 0);
    bench.simple(0xec);
    let block = bench.read_block(1);
    assert_eq!(block[2 * 88 + 1], 0x02);
    assert_eq!(block[2 * 59], 16);
}

#[test]
fn a_parked_write_is_cancelled_by_srst() {
    let mut bench = Bench::new();
    let section = bench.drain();
    start_write(&bench, 1000);
    bench.wait_parked();
    assert_eq!(bench.status(), BSY | DRDY);
    bench.outb(CONTROL, SRST);
    bench.outb(CONTROL, 0);
    // Nothing runs, so the reset is over at once; the parked request is gone.
    assert_eq!(bench.status(), DRDY | DSC);
    assert_eq!(signature(&bench), DISK);
    assert!(!bench.stats().parked_now);
    // It does not even keep its place at the gate.
    bench.idle_turns();
    assert_eq!(bench.disks[0].backend.gate().parked(), 0);
    drop(section);
    bench.quiesce();
    assert!(bench.disks[0].is_untouched());
    assert_eq!(bench.status(), DRDY | DSC);
    assert!(!bench.is_interrupted());
    // The drive works.
    start_write(&bench, 1001);
    bench.wait_ready();
    assert_eq!(bench.disks[0].sector(1001), vec![0xab; SECTOR]);
    assert_eq!(bench.disks[0].sector(1000), stamp(1000));
}

#[test]
fn a_parked_write_through_the_data_register_is_cancelled_by_srst() {
    let mut bench = Bench::new();
    let section = bench.drain();
    bench.address28(1000, 1);
    bench.outb(COMMAND, 0x30);
    bench.write_block(&[0xab; SECTOR]);
    bench.wait_parked();
    bench.outb(CONTROL, SRST);
    bench.outb(CONTROL, 0);
    drop(section);
    bench.quiesce();
    assert!(bench.disks[0].is_untouched());
}

/// What is woken under the lock could want the lock itself.
#[test]
fn a_dead_request_is_told_only_when_the_lock_is_released() {
    let bench = Bench::new();
    let drive = DriveConfig::new(Arc::clone(&bench.disks[0].backend));
    let disk = Disk::new(&drive, 1).unwrap();
    let mut core = Core::new([Some(Unit::Disk(disk)), None]);
    core.write(Register::StatusCommand, 0xe7);
    let request = core.take_aftermath().launch.unwrap();
    assert!(core.is_wanted(request.generation));
    core.write_control(SRST);
    assert!(!core.is_wanted(request.generation));
    // Told once, by who has let go of the lock.
    assert!(core.take_aftermath().dead);
    assert!(!core.take_aftermath().dead);
}

/// The machine ends its loops before its vCPUs are all gone: nobody waits for ever.
#[test]
fn a_loop_that_ends_fails_what_it_has_and_what_comes() {
    for drained in [false, true] {
        let mut bench = Bench::new();
        let section = drained.then(|| bench.drain());
        start_write(&bench, 1000);
        if drained {
            bench.wait_parked();
        }
        bench.end_loop();
        assert_eq!(bench.status(), DRDY | ERR, "drained: {drained}");
        // The same for a command that is given now.
        bench.outb(CONTROL, SRST);
        bench.outb(CONTROL, 0);
        assert_eq!(bench.status(), DRDY | DSC);
        start_write(&bench, 1000);
        assert_eq!(bench.status(), DRDY | ERR);
        assert!(bench.disks[0].is_untouched());
        drop(section);
    }
}

#[test]
fn a_parked_request_that_dies_makes_room_for_another() {
    let mut bench = Bench::new();
    let section = bench.drain();
    for lba in 1000..1003 {
        start_write(&bench, lba);
        bench.wait_parked();
        assert_eq!(bench.disks[0].backend.gate().parked(), 1);
        bench.outb(CONTROL, SRST);
        bench.outb(CONTROL, 0);
        // The next comes at once, though the one that died has not been told yet.
    }
    // The last one leaves the queue without a successor that would wake it.
    bench.idle_turns();
    assert_eq!(bench.disks[0].backend.gate().parked(), 0);
    start_write(&bench, 2000);
    bench.wait_parked();
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC);
    for lba in 1000..1003 {
        assert_eq!(bench.disks[0].sector(lba), stamp(lba));
    }
    assert_ne!(bench.disks[0].sector(2000), stamp(2000));
}

#[test]
fn a_write_that_was_only_submitted_is_cancelled_by_srst() {
    let mut bench = Bench::new();
    start_write(&bench, 1000);
    bench.outb(CONTROL, SRST);
    bench.outb(CONTROL, 0);
    assert_eq!(bench.status(), DRDY | DSC);
    bench.quiesce();
    assert!(bench.disks[0].is_untouched());
    assert_eq!(bench.bm_read(BM_STATUS), 0);
}

/// CVE-2023-5088: the signature's address and count were used by a write that was still pending.
#[test]
fn a_running_write_lands_where_it_belongs_and_srst_waits_for_it() {
    let mut bench = Bench::new();
    bench.hold(DebugEvent::WriteAio);
    start_write(&bench, 1000);
    bench.wait_held();
    bench.outb(CONTROL, SRST);
    bench.outb(CONTROL, 0);
    bench.idle_turns();
    assert_eq!(bench.status(), BSY);
    assert_ne!(signature(&bench), DISK);
    bench.release();
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC);
    assert_eq!(signature(&bench), DISK);
    assert_eq!(bench.disks[0].sector(1000), vec![0xab; SECTOR]);
    for lba in [0, 1] {
        assert_eq!(bench.disks[0].sector(lba), stamp(lba));
    }
    // Its completion is dropped: no interrupt, no bus master status.
    assert!(!bench.is_interrupted());
    assert_eq!(bench.bm_read(BM_STATUS), 0);
    assert_eq!(bench.drive_stats().dropped, 1);
}

#[test]
fn srst_stays_busy_while_its_bit_is_set_after_all_has_settled() {
    let mut bench = Bench::new();
    bench.hold(DebugEvent::WriteAio);
    start_write(&bench, 1000);
    bench.wait_held();
    bench.outb(CONTROL, SRST);
    bench.release();
    bench.wait(|bench| bench.drive_stats().dropped == 1);
    assert_eq!(bench.status(), BSY);
    bench.outb(CONTROL, 0);
    assert_eq!(bench.status(), DRDY | DSC);
}

#[test]
fn a_second_reset_within_the_first_changes_nothing() {
    let mut bench = Bench::new();
    bench.hold(DebugEvent::WriteAio);
    start_write(&bench, 1000);
    bench.wait_held();
    for control in [SRST, 0, SRST, 0] {
        bench.outb(CONTROL, control);
        assert_eq!(bench.status(), BSY);
    }
    bench.release();
    bench.wait_ready();
    assert_eq!(signature(&bench), DISK);
}

#[test]
fn a_machine_reset_waits_for_what_runs_and_restores_settings() {
    let mut bench = Bench::new();
    bench.outb(FEATURES, 0x82);
    bench.simple(0xef);
    bench.hold(DebugEvent::WriteAio);
    start_write(&bench, 1000);
    bench.wait_held();
    bench.outb(CONTROL, NIEN);
    let resetting = bench.ide.reset();
    assert_eq!(bench.status(), BSY);
    bench.release();
    bench.run(resetting);
    assert_eq!(bench.status(), DRDY | DSC);
    assert_eq!(bench.disks[0].sector(1000), vec![0xab; SECTOR]);
    assert_eq!(bench.bm_read(BM_COMMAND), 0);
    bench.simple(0xec);
    // The write cache is on again, and nIEN is off.
    assert_eq!(bench.read_block(1)[2 * 85] & 0x20, 0x20);
}

#[test]
fn a_machine_reset_cancels_what_is_parked() {
    let mut bench = Bench::new();
    let section = bench.drain();
    start_write(&bench, 1000);
    bench.wait_parked();
    let resetting = bench.ide.reset();
    bench.run(resetting);
    assert_eq!(bench.status(), DRDY | DSC);
    drop(section);
    bench.quiesce();
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn retirement_cancels_awaits_and_accepts_nothing_more() {
    let mut bench = Bench::new();
    bench.hold(DebugEvent::WriteAio);
    start_write(&bench, 1000);
    bench.wait_held();
    let ide = bench.ide.clone();
    let retiring = bench
        .context()
        .call(move || async move { ide.retire().await });
    bench.idle_turns();
    assert_eq!(bench.disks[0].sector(1000), stamp(1000));
    bench.release();
    bench.run(retiring).unwrap();
    assert_eq!(bench.disks[0].sector(1000), vec![0xab; SECTOR]);
    bench.outb(CONTROL, SRST);
    bench.outb(CONTROL, 0);
    start_write(&bench, 1001);
    bench.quiesce();
    assert_eq!(bench.status(), BSY);
    assert_eq!(bench.disks[0].sector(1001), stamp(1001));
}

#[test]
fn a_disk_that_is_taken_away_fails_what_is_parked() {
    let mut bench = Bench::new();
    let section = bench.drain();
    start_write(&bench, 1000);
    bench.wait_parked();
    bench.disks[0].backend.gate().destroy();
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | ERR);
    assert!(bench.is_interrupted());
    drop(section);
    bench.quiesce();
    assert!(bench.disks[0].is_untouched());
}
