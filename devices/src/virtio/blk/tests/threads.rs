//! The same with real threads: vCPUs that add and kick, IOThreads that serve, a main loop that
//! drains.

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

/// The used indices of the first `queues` queues.
fn used_indices(guest: &Guest, queues: u16) -> Vec<u16> {
    let used = |queue| GuestAddress(Driver::areas_of(queue)[2] + 2);
    let index = |queue| guest.memory.load(used(queue), Ordering::SeqCst).unwrap();
    (0..queues).map(index).collect()
}

/// One of a queue's own slots.
fn slot_of(driver: &Driver<'_>, number: u16) -> Slot {
    Slot(u64::from(driver.queue * RING_LEN + number))
}

/// Waits for the next used element.
fn wait_used(driver: &mut Driver<'_>, number: u16) {
    let began = Instant::now();
    while driver.take_used().is_none() {
        assert!(began.elapsed() < PATIENCE, "request {number} was lost");
        std::thread::yield_now();
    }
}

/// What a vCPU does with its queue, which has negotiated EVENT_IDX.
type Drive = fn(&mut Driver<'_>);

/// One read at a time, ringing only when the device asks for it, as Linux does.
fn read_one_by_one(driver: &mut Driver<'_>) {
    let slot = slot_of(driver, 0);
    for number in 0..REQUESTS {
        let sector = u64::from(number % 64);
        add(driver, slot, request_type::IN, sector, SECTOR);
        if must_kick(driver, number + 1) {
            driver.kick();
        }
        wait_used(driver, number);
        assert_eq!(slot.status(driver.guest), OK);
        assert_eq!(slot.read_data(driver.guest, SECTOR), stamp(sector));
    }
}

/// Requests without I/O, as many at a time as the ring takes: the device goes to sleep and is woken
/// as often as can be.
fn ask_at_depth(driver: &mut Driver<'_>) {
    const DEPTH: u16 = RING_LEN / 2;
    for number in 0..8 * REQUESTS {
        if number >= DEPTH {
            wait_used(driver, number - DEPTH);
        }
        let slot = slot_of(driver, number % DEPTH);
        add(driver, slot, request_type::GET_ID, 0, 0);
        if must_kick(driver, number + 1) {
            driver.kick();
        }
    }
    for number in 8 * REQUESTS - DEPTH..8 * REQUESTS {
        wait_used(driver, number);
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

/// Runs `drive` in as many threads as there are queues, against IOThreads that share the queues, with
/// one section after another.
fn under_continuous_sections(drive: Drive, pollings: &[Polling], queues: u16) {
    let iothreads: Vec<_> = pollings.iter().copied().map(iothread).collect();
    let contexts: Vec<_> = iothreads.iter().map(|io| io.context().clone()).collect();
    let event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let (mut bench, guest) = Bench::served_by(event_loop, contexts[0].clone(), "", |settings| {
        settings.num_queues = queues;
        settings.contexts.clone_from(&contexts);
    });
    let mut drivers = guest.bring_up(RingFeatures::EVENT_IDX, 0, queues);
    let mut sections = 0;
    std::thread::scope(|scope| {
        let vcpus = drivers
            .iter_mut()
            .map(|driver| scope.spawn(move || drive(driver)));
        let vcpus: Vec<_> = vcpus.collect();
        while !vcpus.iter().all(|vcpu| vcpu.is_finished()) {
            let section = bench.drain();
            let answered = used_indices(&guest, queues);
            std::thread::yield_now();
            assert_eq!(
                used_indices(&guest, queues),
                answered,
                "answered in a section"
            );
            sections += 1;
            drop(section);
        }
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
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
    under_continuous_sections(read_one_by_one, &[Polling::OFF], 1);
}

#[test]
fn no_read_is_lost_by_a_loop_that_polls_under_continuous_sections() {
    under_continuous_sections(read_one_by_one, &[SOME], 1);
}

#[test]
fn no_kick_is_lost_under_continuous_sections() {
    under_continuous_sections(ask_at_depth, &[Polling::OFF], 1);
}

#[test]
fn no_read_of_three_queues_in_two_threads_is_lost_under_continuous_sections() {
    under_continuous_sections(read_one_by_one, &[Polling::OFF, SOME], 3);
}

#[test]
fn no_kick_of_three_queues_in_two_threads_is_lost_under_continuous_sections() {
    under_continuous_sections(ask_at_depth, &[Polling::OFF, Polling::OFF], 3);
}

/// Runs `drive` in the quiet; returns how often polling found something.
fn without_sections(drive: Drive, polling: Polling) -> u64 {
    let iothread = iothread(polling);
    let event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let context = iothread.context().clone();
    let (_bench, guest) = Bench::served_by(event_loop, context, "", |_| {});
    let mut driver = guest.bring_up(RingFeatures::EVENT_IDX, 0, 1).remove(0);
    drive(&mut driver);
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
