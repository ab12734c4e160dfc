//! The same with real threads: a vCPU that adds and kicks, an IOThread that serves, a main loop
//! that drains.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluice_aio::{EventLoop, IoThread, LoopConfig, Polling};
use vm_memory::{Bytes, GuestAddress};

use super::bench::{Bench, OK, SECTOR, Slot, add, stamp};
use crate::virtio::blk::layout::request_type;
use crate::virtio::testing::{Driver, Guest, RING_LEN};
use crate::virtio::{RingFeatures, Status};

const REQUESTS: u16 = 2000;
/// A test that waits in vain fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the driver has to ring, by the event index that the device left behind the used ring
/// (VIRTIO 1.2, section 2.7.10) for the chain that was just added.
fn must_kick(driver: &Driver<'_>, added: u16) -> bool {
    std::sync::atomic::fence(Ordering::SeqCst);
    let at = driver.areas()[2] + 4 + 8 * u64::from(RING_LEN);
    let event: u16 = driver
        .guest
        .memory
        .load(GuestAddress(at), Ordering::SeqCst)
        .unwrap();
    event == added.wrapping_sub(1)
}

/// The used index of queue 0.
fn used_index(guest: &Guest) -> u16 {
    let used = GuestAddress(Driver::areas_of(0)[2] + 2);
    guest.memory.load(used, Ordering::SeqCst).unwrap()
}

/// Waits for the next used element.
fn wait_used(driver: &mut Driver<'_>, number: u16) {
    let began = Instant::now();
    while driver.take_used().is_none() {
        assert!(began.elapsed() < PATIENCE, "request {number} was lost");
        std::thread::yield_now();
    }
}

/// One read at a time, ringing only when the device asks for it, as Linux does.
fn read_one_by_one(guest: &Guest) {
    let mut driver = guest.bring_up(RingFeatures::EVENT_IDX, 0, 1).remove(0);
    for number in 0..REQUESTS {
        let sector = u64::from(number % 64);
        add(&mut driver, Slot(0), request_type::IN, sector, SECTOR);
        if must_kick(&driver, number + 1) {
            driver.kick();
        }
        wait_used(&mut driver, number);
        assert_eq!(Slot(0).status(guest), OK);
        assert_eq!(Slot(0).read_data(guest, SECTOR), stamp(sector));
    }
}

/// Requests without I/O, as many at a time as the ring takes: the device goes to sleep and is woken
/// as often as can be.
fn ask_at_depth(guest: &Guest) {
    const DEPTH: u16 = RING_LEN / 2;
    let mut driver = guest.bring_up(RingFeatures::EVENT_IDX, 0, 1).remove(0);
    for number in 0..8 * REQUESTS {
        if number >= DEPTH {
            wait_used(&mut driver, number - DEPTH);
        }
        add(
            &mut driver,
            Slot(u64::from(number % DEPTH)),
            request_type::GET_ID,
            0,
            0,
        );
        if must_kick(&driver, number + 1) {
            driver.kick();
        }
    }
    for number in 8 * REQUESTS - DEPTH..8 * REQUESTS {
        wait_used(&mut driver, number);
    }
}

/// Windows that are long enough to be met, and too short for some waits.
const SOME: Polling = Polling {
    max: Duration::from_micros(200),
    grow: 0,
    shrink: 2,
};

fn iothread(polling: Polling) -> IoThread {
    let config = LoopConfig {
        polling,
        ..LoopConfig::default()
    };
    IoThread::spawn("io0", config).unwrap()
}

/// Runs `drive` in a thread of its own against an IOThread, with one section after another.
fn under_continuous_sections(drive: fn(&Guest), polling: Polling) {
    let iothread = iothread(polling);
    let event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let context = iothread.context().clone();
    let (mut bench, guest) = Bench::served_by(event_loop, context, "", |_| {});
    let mut sections = 0;
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| drive(&guest));
        while !vcpu.is_finished() {
            let section = bench.drain();
            let answered = used_index(&guest);
            std::thread::yield_now();
            assert_eq!(used_index(&guest), answered, "answered in a section");
            sections += 1;
            drop(section);
        }
        vcpu.join().unwrap();
    });
    assert!(sections > 0);
    guest.set_status(Status::empty());
    let began = Instant::now();
    while !guest.status().is_empty() {
        assert!(began.elapsed() < PATIENCE, "the reset was lost");
        std::thread::yield_now();
    }
}

#[test]
fn no_read_is_lost_under_continuous_sections() {
    under_continuous_sections(read_one_by_one, Polling::OFF);
}

#[test]
fn no_read_is_lost_by_a_loop_that_polls_under_continuous_sections() {
    under_continuous_sections(read_one_by_one, SOME);
}

#[test]
fn no_kick_is_lost_under_continuous_sections() {
    under_continuous_sections(ask_at_depth, Polling::OFF);
}

/// Runs `drive` in the quiet; returns how often polling found something.
fn without_sections(drive: fn(&Guest), polling: Polling) -> u64 {
    let iothread = iothread(polling);
    let event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let context = iothread.context().clone();
    let (_bench, guest) = Bench::served_by(event_loop, context, "", |_| {});
    drive(&guest);
    iothread.context().stats().polls_hit
}

#[test]
fn no_kick_is_lost_without_sections() {
    assert_eq!(without_sections(ask_at_depth, Polling::OFF), 0);
}

#[test]
fn no_kick_is_lost_by_a_loop_that_polls() {
    // Open for ever once it was hit.
    let endless = Polling {
        max: Duration::from_secs(3600),
        grow: 1 << 40,
        shrink: 0,
    };
    without_sections(ask_at_depth, SOME);
    assert!(without_sections(read_one_by_one, endless) > 0);
}
