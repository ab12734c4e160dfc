//! Resets at every moment: nothing of the old life reaches the new one.

use sluice_block::driver::DebugEvent;

use super::bench::{Bench, OK, SECTOR, Slot, UNTOUCHED, add_write, run, stamp};
use crate::pci::PciFunction;
use crate::pci::layout::{Command, offset};
use crate::virtio::blk::layout::request_type;
use crate::virtio::pci::layout::common;
use crate::virtio::testing::Guest;
use crate::virtio::{RingFeatures, Status};

/// Brings the disk up again after a reset and uses it.
fn works_again(bench: &mut Bench, guest: &Guest) {
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    assert_eq!(run(bench, &mut driver, request_type::IN, 11, SECTOR).0, OK);
    assert_eq!(Slot(0).read_data(guest, SECTOR), stamp(11));
}

#[test]
fn a_reset_settles_what_is_in_flight_and_drops_its_answer() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.hold(DebugEvent::WriteAio);
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    bench.wait_held();
    guest.set_status(Status::empty());
    bench.quiesce_beside(1);
    assert!(
        guest.status().contains(Status::DRIVER_OK),
        "the write is still in flight"
    );
    add_write(&mut driver, Slot(1), 6, &[6; SECTOR]);
    driver.kick();
    bench.quiesce_beside(1);
    bench.release();
    bench.until("the reset", || guest.status().is_empty());
    assert_eq!(bench.sector(5), [5; SECTOR], "what was begun has ended");
    assert_eq!(
        bench.sector(6),
        stamp(6),
        "what came after the reset has not begun"
    );
    assert_eq!(
        (driver.used_index(), Slot(0).status(&guest)),
        (0, UNTOUCHED)
    );
    assert_eq!(guest.interrupts(0), 0);
    works_again(&mut bench, &guest);
}

#[test]
fn a_reset_in_a_section_does_not_wait_for_its_end() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    let section = bench.drain();
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    bench.quiesce();
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
    drop(section);
    bench.quiesce();
    assert_eq!((bench.sector(5), driver.used_index()), (stamp(5), 0));
    works_again(&mut bench, &guest);
}

#[test]
fn a_queue_reset_settles_that_queue_alone() {
    let (mut bench, guest) = Bench::with("", |settings| settings.num_queues = 2);
    let mut drivers = guest.bring_up(RingFeatures::RING_RESET, 0, 2);
    bench.hold(DebugEvent::WriteAio);
    add_write(&mut drivers[0], Slot(0), 5, &[5; SECTOR]);
    drivers[0].kick();
    bench.wait_held();
    guest.common(common::QUEUE_SELECT, &[0, 0]);
    guest.common(common::QUEUE_RESET, &[1, 0]);
    bench.quiesce_beside(1);
    assert_eq!(guest.read_u16(common::QUEUE_RESET), 1);
    assert_eq!(
        run(&mut bench, &mut drivers[1], request_type::FLUSH, 0, 0).0,
        OK
    );
    bench.release();
    bench.until("the queue reset", || {
        guest.read_u16(common::QUEUE_RESET) == 0
    });
    assert_eq!(drivers[0].used_index(), 0);
    drivers[0].restart();
    assert_eq!(
        run(&mut bench, &mut drivers[0], request_type::IN, 11, SECTOR).0,
        OK
    );
}

#[test]
fn a_disk_whose_queue_is_being_reset_goes_when_that_queue_has_settled() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::RING_RESET, 0, 1).remove(0);
    bench.hold(DebugEvent::WriteAio);
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    bench.wait_held();
    guest.common(common::QUEUE_RESET, &[1, 0]);
    let mut retiring = guest.function.retire();
    let waker = futures_util::task::noop_waker();
    let mut cx = std::task::Context::from_waker(&waker);
    assert!(
        retiring.as_mut().poll(&mut cx).is_pending(),
        "the write is still in flight"
    );
    bench.release();
    bench.event_loop.run_until(retiring).unwrap();
    assert_eq!(bench.backend.gate().in_flight(), 0);
    assert_eq!(bench.sector(5), [5; SECTOR]);
}

#[test]
fn a_machine_reset_ends_in_the_power_on_state() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.hold(DebugEvent::WriteAio);
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    bench.wait_held();
    let resetting = guest.function.reset();
    let node = bench.node.clone();
    bench
        .event_loop
        .run_until(async move {
            let release = async move { node.as_blkdebug().unwrap().resume("held").unwrap() };
            futures_util::future::join(resetting, release).await;
        })
        .unwrap();
    assert!(guest.status().is_empty());
    assert_eq!((bench.sector(5), driver.used_index()), (vec![5; SECTOR], 0));
    works_again(&mut bench, &guest);
}

#[test]
fn a_retired_disk_ends_what_is_in_flight_and_begins_nothing_more() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.hold(DebugEvent::WriteAio);
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    bench.wait_held();
    let retiring = guest.function.retire();
    add_write(&mut driver, Slot(1), 6, &[6; SECTOR]);
    driver.kick();
    bench.release();
    bench.event_loop.run_until(retiring).unwrap();
    assert_eq!(bench.backend.gate().in_flight(), 0);
    assert_eq!(bench.sector(5), [5; SECTOR]);
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    add_write(&mut driver, Slot(2), 7, &[7; SECTOR]);
    driver.kick();
    bench.quiesce();
    assert!(guest.status().is_empty());
    assert_eq!((bench.sector(6), bench.sector(7)), (stamp(6), stamp(7)));
}

#[test]
fn a_loop_that_is_gone_does_not_hold_up_a_reset() {
    let (bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.hold(DebugEvent::WriteAio);
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    // Also before the queue's task has run for the first time.
    drop(bench);
    guest.set_status(Status::empty());
    assert!(guest.status().is_empty());
    guest.bring_up(RingFeatures::empty(), 0, 1);
    guest.set_status(Status::empty());
    assert!(guest.status().is_empty());
}

#[test]
fn without_bus_mastering_the_ring_is_left_alone() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.quiesce();
    guest
        .function
        .write_config(offset::COMMAND, &Command::MEMORY.bits().to_le_bytes());
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    bench.quiesce();
    assert_eq!((bench.sector(5), driver.used_index()), (stamp(5), 0));
    let command = Command::MEMORY | Command::BUS_MASTER;
    guest
        .function
        .write_config(offset::COMMAND, &command.bits().to_le_bytes());
    bench.until("the write", || driver.used_index() == 1);
    assert_eq!(bench.sector(5), [5; SECTOR]);
}

#[test]
fn what_is_in_the_ring_before_the_device_lives_is_found() {
    let (mut bench, guest) = Bench::new();
    works_again(&mut bench, &guest);
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
    let mut driver = guest.set_up(RingFeatures::empty(), 0, 1).remove(0);
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    bench.quiesce();
    assert_eq!(bench.sector(5), stamp(5));
    guest.set_status(Status::DRIVER_OK);
    bench.until("the write", || driver.used_index() == 1);
}
