//! Several queues, each served in a thread of its own choice: sections, resets and errors concern
//! all of them.

use std::sync::Arc;

use sluice_aio::{EventLoop, IoThread, LoopConfig};
use sluice_block::backend::ErrorPolicy;
use sluice_block::driver::DebugEvent;
use sluice_block::job::OnError;

use super::bench::{Bench, OK, SECTOR, Slot, UNTOUCHED, add, add_write, run, stamp};
use crate::allocations;
use crate::virtio::blk::layout::{Features, request_type};
use crate::virtio::testing::{Driver, Guest, RING_LEN};
use crate::virtio::{RingFeatures, Status};

/// Queues of the disk: more than threads, so that one of these serves two.
const QUEUES: u16 = 3;

/// Two IOThreads; queues 0 and 2 are the first's, queue 1 is the second's.
struct Threads([IoThread; 2]);

impl Threads {
    /// A disk that they serve; it goes before them.
    fn with_disk(options: &str) -> (Self, Bench, Guest) {
        let threads =
            Self(["io0", "io1"].map(|name| IoThread::spawn(name, LoopConfig::default()).unwrap()));
        let contexts: Vec<_> = threads.0.iter().map(|io| io.context().clone()).collect();
        let event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
        let first = contexts[0].clone();
        let (bench, guest) = Bench::served_by(event_loop, first, options, |settings| {
            settings.num_queues = QUEUES;
            settings.contexts.clone_from(&contexts);
        });
        (threads, bench, guest)
    }

    /// Gives each of them occasion to do what it has to do, again and again.
    fn look(&self, bench: &mut Bench) {
        const TIMES: usize = 20;
        for _ in 0..TIMES {
            self.each(bench, || ());
        }
    }

    /// Calls in each, from the main loop.
    fn each<T: Send + 'static>(&self, bench: &mut Bench, call: fn() -> T) -> Vec<T> {
        let contexts: Vec<_> = self.0.iter().map(|io| io.context().clone()).collect();
        let calls = async move {
            let mut results = Vec::new();
            for context in contexts {
                results.push(context.call(move || async move { call() }).await.unwrap());
            }
            results
        };
        bench.event_loop.run_until(calls).unwrap()
    }
}

fn bring_up(guest: &Guest) -> Vec<Driver<'_>> {
    guest.bring_up(RingFeatures::EVENT_IDX, Features::MQ.bits(), QUEUES)
}

/// The queue's own slot.
fn slot(driver: &Driver<'_>) -> Slot {
    Slot(u64::from(driver.queue))
}

/// The queue's own sector.
fn sector(driver: &Driver<'_>) -> u64 {
    100 + u64::from(driver.queue)
}

fn write_own_sector(driver: &mut Driver<'_>) {
    let (slot, sector) = (slot(driver), sector(driver));
    add_write(driver, slot, sector, &[0x11; SECTOR]);
    driver.kick();
}

#[test]
fn each_queue_is_served_by_its_thread() {
    let (threads, mut bench, guest) = Threads::with_disk("");
    let mut drivers = bring_up(&guest);
    threads.look(&mut bench);
    let operations = || {
        let of = |io: &IoThread| io.context().stats();
        threads.0.each_ref().map(|io| {
            let stats = of(io);
            stats.operations + stats.thread_operations
        })
    };
    for (queue, by) in [(0, 0), (1, 1), (2, 0)] {
        let before = operations();
        run(&mut bench, &mut drivers[queue], request_type::IN, 3, SECTOR);
        threads.look(&mut bench);
        let mut expected = before;
        expected[by] += 1;
        assert_eq!(operations(), expected, "queue {queue}");
    }
}

#[test]
fn a_section_stops_every_queue_and_each_goes_on_after_it() {
    let (threads, mut bench, guest) = Threads::with_disk("");
    let mut drivers = bring_up(&guest);
    for driver in &mut drivers {
        run(&mut bench, driver, request_type::FLUSH, 0, 0);
    }
    for round in 0..4 {
        let section = bench.drain();
        for driver in &mut drivers {
            write_own_sector(driver);
        }
        threads.look(&mut bench);
        for driver in &drivers {
            assert_eq!(driver.used_index(), 1 + round, "queue {}", driver.queue);
            assert_eq!(bench.sector(sector(driver)), stamp(sector(driver)));
            // Proof that nothing was read either: what the chain says now is what will be done.
            slot(driver).write_header(&guest, request_type::GET_ID, 0);
        }
        assert_eq!(bench.backend.gate().parked(), 0, "the rings are the queues");
        drop(section);
        for driver in &mut drivers {
            bench.until("a queue to go on", || driver.take_used().is_some());
            assert_eq!(slot(driver).status(&guest), OK);
            assert_eq!(bench.sector(sector(driver)), stamp(sector(driver)));
        }
    }
    // And all doorbells work.
    for driver in &mut drivers {
        assert_eq!(run(&mut bench, driver, request_type::IN, 3, SECTOR).0, OK);
    }
}

#[test]
fn a_section_waits_for_the_requests_of_every_queue_and_names_them() {
    let (threads, mut bench, guest) = Threads::with_disk("");
    let mut drivers = bring_up(&guest);
    threads.look(&mut bench);
    let gate = bench.backend.gate().clone();
    for queue in 0..QUEUES {
        bench.hold(DebugEvent::WriteAio);
        let driver = &mut drivers[usize::from(queue)];
        write_own_sector(driver);
        bench.wait_held();
        let closed = gate.close("test");
        threads.look(&mut bench);
        assert_eq!(gate.in_flight(), 1);
        assert_eq!(
            gate.describe_in_flight(),
            [format!("virtio-blk queue {queue}: 1 in flight")]
        );
        bench.release();
        bench.until("rest", || gate.in_flight() == 0);
        assert_eq!(driver.used_index(), 1);
        drop(closed);
    }
}

/// Holds a write of queue 0 and a read of queue 1, in two threads.
fn hold_in_two_threads(bench: &mut Bench, drivers: &mut [Driver<'_>]) {
    let disk = bench.node.as_blkdebug().unwrap();
    disk.set_break(DebugEvent::WriteAio, "write").unwrap();
    disk.set_break(DebugEvent::ReadAio, "read").unwrap();
    write_own_sector(&mut drivers[0]);
    let (slot, sector) = (slot(&drivers[1]), sector(&drivers[1]));
    add(&mut drivers[1], slot, request_type::IN, sector, SECTOR);
    drivers[1].kick();
    let node = Arc::clone(&bench.node);
    let held = async move {
        let disk = node.as_blkdebug().unwrap();
        disk.wait_break("write").await.unwrap();
        disk.wait_break("read").await.unwrap();
    };
    bench.event_loop.run_until(held).unwrap();
}

#[test]
fn a_reset_settles_every_queue() {
    // In either order the reset waits for the one that is left.
    for order in [["write", "read"], ["read", "write"]] {
        let (threads, mut bench, guest) = Threads::with_disk("");
        let mut drivers = bring_up(&guest);
        hold_in_two_threads(&mut bench, &mut drivers);
        guest.set_status(Status::empty());
        for held in order {
            threads.look(&mut bench);
            assert!(!guest.status().is_empty(), "{held} is still in flight");
            bench.node.as_blkdebug().unwrap().resume(held).unwrap();
        }
        bench.until("the reset", || guest.status().is_empty());
        assert_eq!(bench.backend.gate().in_flight(), 0);
        assert_eq!(bench.sector(sector(&drivers[0])), [0x11; SECTOR]);
        for driver in &drivers {
            assert_eq!(driver.used_index(), 0);
            assert_eq!(guest.interrupts(driver.queue), 0);
        }
        assert_eq!(slot(&drivers[1]).status(&guest), UNTOUCHED);
        let mut drivers = bring_up(&guest);
        for driver in &mut drivers {
            assert_eq!(run(&mut bench, driver, request_type::IN, 3, SECTOR).0, OK);
        }
    }
}

#[test]
fn a_reset_in_a_section_waits_for_no_queue() {
    let (threads, mut bench, guest) = Threads::with_disk("");
    let mut drivers = bring_up(&guest);
    let section = bench.drain();
    drivers.iter_mut().for_each(write_own_sector);
    threads.look(&mut bench);
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
    drop(section);
    threads.look(&mut bench);
    for driver in &drivers {
        assert_eq!(bench.sector(sector(driver)), stamp(sector(driver)));
        assert_eq!(driver.used_index(), 0);
    }
}

#[test]
fn a_removed_disk_leaves_every_ring_alone() {
    let (threads, mut bench, guest) = Threads::with_disk("");
    let mut drivers = bring_up(&guest);
    let section = bench.drain();
    drivers.iter_mut().for_each(write_own_sector);
    threads.look(&mut bench);
    let (graph, backend) = (bench.graph.clone(), bench.backend.clone());
    let removing = async move { graph.remove_backend(&backend).await };
    bench.event_loop.run_until(removing).unwrap();
    drop(section);
    drivers.iter().for_each(Driver::kick);
    threads.look(&mut bench);
    for driver in &drivers {
        let untouched = (driver.used_index(), slot(driver).status(&guest));
        assert_eq!(untouched, (0, UNTOUCHED));
    }
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
}

/// The first write and the first read.
const FAILS_ONCE: &str = r#""inject-error": [{"event": "none", "iotype": "write", "once": true},
                                             {"event": "none", "iotype": "read", "once": true}],"#;

#[test]
fn what_errors_have_halted_is_done_again_by_the_queues_that_had_it() {
    let (threads, mut bench, guest) = Threads::with_disk(FAILS_ONCE);
    let policy = ErrorPolicy::new(OnError::Stop, OnError::Stop);
    bench.backend.set_policy(policy);
    let mut drivers = bring_up(&guest);
    // Both are in flight before the first of them fails.
    hold_in_two_threads(&mut bench, &mut drivers);
    for held in ["write", "read"] {
        bench.node.as_blkdebug().unwrap().resume(held).unwrap();
    }
    let backend = Arc::clone(&bench.backend);
    bench.until("two halted requests", || backend.halted() == 2);
    // Nobody comes in between, not even by the queue that has had no error.
    write_own_sector(&mut drivers[2]);
    threads.look(&mut bench);
    assert_eq!(
        (backend.gate().in_flight(), backend.gate().parked()),
        (0, 0)
    );
    let used =
        |drivers: &[Driver<'_>]| -> Vec<u16> { drivers.iter().map(Driver::used_index).collect() };
    assert_eq!(used(&drivers), [0, 0, 0]);
    assert_eq!(
        bench.sector(sector(&drivers[0])),
        stamp(sector(&drivers[0]))
    );

    backend.resume();
    bench.until("all three", || used(&drivers) == [1, 1, 1]);
    for driver in &drivers {
        assert_eq!(slot(driver).status(&guest), OK);
    }
    for writer in [&drivers[0], &drivers[2]] {
        assert_eq!(bench.sector(sector(writer)), [0x11; SECTOR]);
    }
    let read = slot(&drivers[1]).read_data(&guest, SECTOR);
    assert_eq!(read, stamp(sector(&drivers[1])));
}

#[test]
fn a_reset_drops_what_errors_have_halted_in_every_queue() {
    let (threads, mut bench, guest) = Threads::with_disk(FAILS_ONCE);
    let policy = ErrorPolicy::new(OnError::Stop, OnError::Stop);
    bench.backend.set_policy(policy);
    let mut drivers = bring_up(&guest);
    hold_in_two_threads(&mut bench, &mut drivers);
    for held in ["write", "read"] {
        bench.node.as_blkdebug().unwrap().resume(held).unwrap();
    }
    let backend = Arc::clone(&bench.backend);
    bench.until("two halted requests", || backend.halted() == 2);
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
    assert_eq!(backend.halted(), 0);
    backend.resume();
    threads.look(&mut bench);
    assert_eq!(
        bench.sector(sector(&drivers[0])),
        stamp(sector(&drivers[0]))
    );
    let mut drivers = bring_up(&guest);
    assert_eq!(
        run(&mut bench, &mut drivers[0], request_type::IN, 3, SECTOR).0,
        OK
    );
}

/// The others go on: their rings are whole. A reset cures the broken one.
#[test]
fn a_ring_that_breaks_harms_no_other() {
    let (_threads, mut bench, guest) = Threads::with_disk("");
    let mut drivers = bring_up(&guest);
    drivers[1].offer(RING_LEN);
    drivers[1].kick();
    bench.until("the breakdown", || {
        guest.status().contains(Status::NEEDS_RESET)
    });
    for queue in [0, 2] {
        let read = run(&mut bench, &mut drivers[queue], request_type::IN, 3, SECTOR);
        assert_eq!(read.0, OK);
    }
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
    let mut drivers = bring_up(&guest);
    assert_eq!(
        run(&mut bench, &mut drivers[1], request_type::IN, 3, SECTOR).0,
        OK
    );
}

/// Also what the threads share costs no allocation.
#[test]
fn requests_of_every_queue_allocate_nothing() {
    const ROUNDS: u64 = 64;
    let (threads, mut bench, guest) = Threads::with_disk("");
    let features = Features::all().bits() & guest.offered();
    let mut drivers = guest.bring_up(RingFeatures::EVENT_IDX, features, QUEUES);
    let round = |drivers: &mut [Driver<'_>]| {
        for (driver, kind) in
            drivers
                .iter_mut()
                .zip([request_type::OUT, request_type::IN, request_type::FLUSH])
        {
            let len = if kind == request_type::FLUSH { 0 } else { 4096 };
            let (slot, sector) = (slot(driver), 8 * sector(driver));
            add(driver, slot, kind, sector, len);
            driver.kick();
        }
        for driver in drivers {
            while driver.take_used().is_none() {
                std::thread::yield_now();
            }
            assert_eq!(slot(driver).status(driver.guest), OK);
        }
    };
    for _ in 0..ROUNDS {
        round(&mut drivers);
    }
    threads.look(&mut bench);
    // What it costs to ask.
    let count = |bench: &mut Bench| threads.each(bench, allocations::so_far);
    let (first, second) = (count(&mut bench), count(&mut bench));
    let asking: Vec<u64> = second.iter().zip(&first).map(|(b, a)| b - a).collect();
    for _ in 0..ROUNDS {
        round(&mut drivers);
    }
    let third = count(&mut bench);
    let used: Vec<u64> = third.iter().zip(&second).map(|(b, a)| b - a).collect();
    assert_eq!(used, asking, "allocations of {ROUNDS} requests a queue");
}

/// However many requests end together: one message for each queue that has any.
#[test]
fn a_batch_of_each_queue_makes_one_interrupt() {
    let (mut bench, guest) = Bench::with("", |settings| settings.num_queues = 2);
    let mut drivers = guest.bring_up(RingFeatures::empty(), Features::MQ.bits(), 2);
    for driver in &mut drivers {
        for number in 0..4 {
            let slot = Slot(u64::from(driver.queue) * 4 + number);
            add(driver, slot, request_type::GET_ID, 0, 0);
        }
    }
    drivers.iter().for_each(Driver::kick);
    bench.until("eight answers", || {
        drivers.iter().all(|driver| driver.used_index() == 4)
    });
    bench.quiesce();
    assert_eq!((guest.interrupts(0), guest.interrupts(1)), (1, 1));
}
