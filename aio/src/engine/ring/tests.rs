//! The ring against a kernel that answers from a script: what a real one does once in a blue moon
//! it does here whenever it is told to.

use std::sync::Arc;

use vm_memory::GuestAddress;

use super::super::operation::{MAX_TRIES, Memory, Request};
use super::super::{EngineKind, Route};
use super::*;
use crate::buffer::IoBuffer;

mod ending;
mod scripted;
mod sleeping;

use scripted::*;

#[test]
fn one_call_takes_everything_that_was_started() {
    let mut bench = Bench::new(256);
    let keys = bench.reads(100);
    assert_eq!(bench.kernel.submits(), 0);
    bench.submit();
    assert_eq!(bench.kernel.submits(), 1);
    assert!(!bench.ring.has_work());
    bench.submit();
    assert_eq!(bench.kernel.submits(), 1, "an empty call is wasted");
    for at in (0..100).rev() {
        bench.kernel.complete(at, WHOLE);
    }
    assert!(bench.ring.has_completed());
    bench.reap();
    for key in keys {
        assert_eq!(bench.result(key).unwrap().unwrap(), LEN);
    }
}

#[test]
fn a_full_submission_queue_costs_a_call_and_no_order() {
    let mut bench = Bench::new(256);
    bench.reads(600);
    bench.submit();
    assert_eq!(bench.kernel.submits(), 3);
    assert_eq!(bench.offsets_taken(), (0..600).collect::<Vec<_>>());
}

#[test]
fn what_the_kernel_does_not_take_follows_in_order() {
    let mut bench = Bench::new(256);
    bench.kernel.answer([Ok(3), Ok(1)]);
    bench.reads(9);
    bench.submit();
    assert_eq!(bench.kernel.submits(), 3);
    assert_eq!(bench.offsets_taken(), (0..9).collect::<Vec<_>>());
}

#[test]
fn an_interrupted_call_is_repeated_at_once() {
    let mut bench = Bench::new(256);
    bench.kernel.answer([Err(libc::EINTR), Err(libc::EINTR)]);
    bench.reads(2);
    bench.submit();
    assert_eq!(bench.kernel.taken().len(), 2);
    assert!(bench.kernel.0.borrow().alarms.is_empty());
}

#[test]
fn endless_interruptions_do_not_hold_the_loop() {
    let mut bench = Bench::new(256);
    bench.kernel.answer([Err(libc::EINTR); 100]);
    bench.reads(1);
    bench.submit();
    assert!(!bench.ring.has_work(), "the loop would spin");
    assert_eq!(bench.kernel.0.borrow().alarms, [Duration::from_millis(1)]);
}

#[test]
fn a_refusal_is_waited_out_without_spinning() {
    for answer in [Err(libc::EAGAIN), Err(libc::EBUSY), Ok(0)] {
        let mut bench = Bench::new(256);
        bench.kernel.answer([answer]);
        let keys = bench.reads(1);
        bench.submit();
        assert!(!bench.ring.has_work(), "the loop would spin");
        for _ in 0..10 {
            // The loop turns for other reasons.
            bench.submit();
        }
        assert_eq!(bench.kernel.submits(), 1);
        bench.kernel.ring_alarm();
        bench.submit();
        assert_eq!(bench.kernel.submits(), 2);
        bench.kernel.complete(0, WHOLE);
        bench.reap();
        assert_eq!(bench.result(keys[0]).unwrap().unwrap(), LEN);
    }
}

#[test]
fn a_completion_ends_the_wait_for_the_kernel() {
    let mut bench = Bench::new(256);
    bench.reads(1);
    bench.submit();
    bench.kernel.answer([Err(libc::EBUSY)]);
    bench.reads(1);
    bench.submit();
    assert!(!bench.ring.has_work());
    bench.kernel.complete(0, WHOLE);
    bench.reap();
    assert!(bench.ring.has_work(), "there is room, but nobody tries");
    bench.submit();
    assert_eq!(bench.kernel.taken().len(), 2);
}

#[test]
fn the_pauses_grow_to_a_limit_and_progress_makes_them_short_again() {
    let mut bench = Bench::new(256);
    bench.kernel.answer([Err(libc::EAGAIN); 10]);
    bench.reads(1);
    for _ in 0..11 {
        bench.submit();
        bench.kernel.ring_alarm();
    }
    let millis =
        |script: &Script| -> Vec<_> { script.alarms.iter().map(Duration::as_millis).collect() };
    let expected = [1, 2, 4, 8, 16, 32, 64, 100, 100, 100];
    assert_eq!(millis(&bench.kernel.0.borrow()), expected);
    assert_eq!(bench.kernel.taken().len(), 1);
    bench.kernel.answer([Err(libc::EAGAIN)]);
    bench.reads(1);
    bench.submit();
    assert_eq!(millis(&bench.kernel.0.borrow()).last(), Some(&1));
}

#[test]
fn a_kernel_that_refuses_for_ever_is_left() {
    for errno in [libc::EAGAIN, libc::EBUSY] {
        let mut bench = Bench::new(4);
        let in_flight = bench.reads(1);
        bench.submit();
        bench.kernel.answer([Err(errno); 1000]);
        let keys = bench.reads(6);
        let mut tries = 0;
        let left = loop {
            let left = bench.ring.submit(&mut bench.table);
            if !left.is_empty() {
                break left;
            }
            tries += 1;
            assert!(tries < 1000, "tries for ever");
            bench.kernel.ring_alarm();
        };
        // Also those that are in the submission queue, in order.
        assert_eq!(left, keys);
        assert_eq!(tries, MAX_STALLS);
        assert!(!bench.ring.serves(OperationKind::Read));
        assert!(!bench.ring.has_work());
        // What is in the queue must never be seen by the kernel: others do it.
        let submits = bench.kernel.submits();
        bench.kernel.ring_alarm();
        bench.submit();
        assert_eq!(bench.kernel.submits(), submits);
        // What was in flight is not forgotten; what is left of it goes to the others.
        bench.kernel.complete(0, 100);
        bench.reap();
        assert_eq!(bench.ring.submit(&mut bench.table), in_flight);
        for key in keys.into_iter().chain(in_flight) {
            bench.table.finish(key, Ok(0));
        }
    }
}

#[test]
fn a_ring_that_fails_is_left_at_once() {
    let mut bench = Bench::new(256);
    bench.kernel.answer([Ok(2), Err(libc::EBADF)]);
    let keys = bench.reads(5);
    let left = bench.ring.submit(&mut bench.table);
    assert_eq!(left, keys[2..]);
    for at in 0..2 {
        bench.kernel.complete(at, WHOLE);
    }
    bench.reap();
    for key in &keys[..2] {
        assert_eq!(bench.result(*key).unwrap().unwrap(), LEN);
    }
    for key in left {
        bench.table.finish(key, Ok(0));
    }
}

#[test]
fn a_short_transfer_goes_on_where_it_stopped() {
    for kind in [OperationKind::Read, OperationKind::Write] {
        let mut bench = Bench::new(256);
        let key = bench.start(kind, 10_000, IoBuffer::alloc(LEN));
        bench.submit();
        bench.kernel.complete(0, 1000);
        bench.reap();
        assert!(bench.result(key).is_none());
        assert!(
            bench.ring.has_work(),
            "the rest would wait for another event"
        );
        bench.submit();
        let taken = bench.kernel.taken();
        let (first, second) = (shape(&taken[0]), shape(&taken[1]));
        assert_eq!(second, (first.0 + 1000, first.1 + 1000, 3096));
        bench.kernel.complete(1, 3096);
        bench.reap();
        assert_eq!(bench.result(key).unwrap().unwrap(), LEN);
    }
}

#[test]
fn a_short_transfer_of_scattered_memory_goes_on_within_a_segment() {
    let mut bench = Bench::new(256);
    let ram = ram();
    let ranges = [0u64, 200, 400, 600].map(|at| (GuestAddress(at), 100));
    let buffer = IoBuffer::from_guest(&ram, &ranges).unwrap();
    let key = bench.start(OperationKind::Write, 0, buffer);
    let segments = |request: &Request| match *request {
        Request::Write {
            offset,
            memory: Memory::Many { count, .. },
            ..
        } => (offset, count),
        other => panic!("not scattered: {other:?}"),
    };
    bench.submit();
    assert_eq!(segments(&bench.kernel.taken()[0]), (0, 4));
    bench.kernel.complete(0, 150);
    bench.reap();
    bench.submit();
    assert_eq!(segments(&bench.kernel.taken()[1]), (150, 3));
    bench.kernel.complete(1, 160);
    bench.reap();
    bench.submit();
    let (offset, _, len) = shape(&bench.kernel.taken()[2]);
    assert_eq!((offset, len), (310, 90));
    bench.kernel.complete(2, 90);
    bench.reap();
    assert_eq!(bench.result(key).unwrap().unwrap(), 400);
}

#[test]
fn a_file_whose_transfers_wait_is_not_tried_first() {
    let mut bench = Bench::new(256);
    for waits in [false, true] {
        for kind in [OperationKind::Read, OperationKind::Write] {
            let (file, buffer) = (Arc::clone(&bench.file), IoBuffer::alloc(LEN));
            let route = Route {
                waits,
                ..EngineKind::IoUring.into()
            };
            let key = bench.table.insert(kind, route, file, 0, buffer);
            bench.ring.start(key, &mut bench.table);
            bench.submit();
            bench.kernel.complete(bench.kernel.taken().len() - 1, 512);
            // The rest is asked for in the same way.
            bench.reap();
            bench.submit();
            let taken = bench.kernel.taken();
            for request in &taken[taken.len() - 2..] {
                let (Request::Read { waits: told, .. } | Request::Write { waits: told, .. }) =
                    *request
                else {
                    panic!("not a transfer: {request:?}");
                };
                assert_eq!(told, waits);
            }
            bench.kernel.complete(taken.len() - 1, WHOLE);
            bench.reap();
        }
    }
}

#[test]
fn no_space_left_in_the_middle_of_a_write_is_its_error() {
    let mut bench = Bench::new(256);
    let key = bench.start(OperationKind::Write, 0, IoBuffer::alloc(LEN));
    bench.submit();
    bench.kernel.complete(0, 512);
    bench.reap();
    bench.submit();
    bench.kernel.complete(1, -libc::ENOSPC);
    bench.reap();
    assert_eq!(bench.errno(key), Some(libc::ENOSPC));
    assert_eq!(bench.table.running(), 0);
}

#[test]
fn an_operation_that_is_told_to_come_later_holds_up_no_other() {
    let mut bench = Bench::new(256);
    let keys = bench.reads(1);
    bench.submit();
    for tries in 1..=MAX_TRIES {
        let at = bench.kernel.taken().len() - 1;
        bench.kernel.complete(at, -libc::EAGAIN);
        bench.reap();
        assert!(bench.result(keys[0]).is_none());
        assert!(!bench.ring.has_work(), "the loop would spin");
        if tries == 1 {
            let other = bench.reads(1);
            bench.submit();
            bench.kernel.complete(1, WHOLE);
            bench.reap();
            assert_eq!(bench.result(other[0]).unwrap().unwrap(), LEN);
        }
        bench.kernel.ring_alarm();
        bench.submit();
    }
    let at = bench.kernel.taken().len() - 1;
    bench.kernel.complete(at, -libc::EAGAIN);
    bench.reap();
    assert_eq!(bench.errno(keys[0]), Some(libc::EAGAIN));
}

#[test]
fn completions_that_overflowed_are_fetched() {
    let mut bench = Bench::new(256);
    let keys = bench.reads(7);
    bench.submit();
    let taken: Vec<_> = bench.kernel.0.borrow().taken.clone();
    for (user_data, _) in taken {
        let mut script = bench.kernel.0.borrow_mut();
        script.overflowed.push_back((user_data, WHOLE));
    }
    bench.reap();
    assert_eq!(bench.kernel.0.borrow().flushes, 4);
    for key in keys {
        assert_eq!(bench.result(key).unwrap().unwrap(), LEN);
    }
}

/// Sleeps; whether it did, and whether there are events.
#[test]
fn completions_of_nobody_are_ignored() {
    let mut bench = Bench::new(256);
    let mut script = bench.kernel.0.borrow_mut();
    script.completions.extend([(77, WHOLE), (u64::MAX - 1, -5)]);
    drop(script);
    bench.reap();
    assert_eq!(bench.ring.in_flight, 0);
}
