//! A loop that sleeps in its ring, or elsewhere while the ring works.

use std::os::fd::AsFd;

use super::super::*;
use super::scripted::*;
use crate::engine::operation::Request;

fn sleep(bench: &mut Bench) -> Option<bool> {
    let events = tempfile::tempfile().unwrap();
    bench.ring.sleep(events.as_fd(), &mut bench.table)
}

/// Has the next sleep end with these results of what was taken as `at`.
fn arrive(bench: &Bench, results: impl IntoIterator<Item = (usize, i32)>) {
    let mut script = bench.kernel.0.borrow_mut();
    let arrived = results.into_iter();
    let arrived = arrived.map(|(at, result)| (script.taken[at].0, result));
    let arrived = arrived.collect();
    script.arrivals.push_back(arrived);
}

fn polls(bench: &Bench) -> usize {
    let taken = bench.kernel.taken();
    let polls = taken.iter();
    polls
        .filter(|request| matches!(request, Request::Poll { .. }))
        .count()
}

#[test]
fn one_call_submits_and_sleeps() {
    let mut bench = Bench::new(256);
    let keys = bench.reads(2);
    assert_eq!(sleep(&mut bench), Some(false));
    assert_eq!((bench.kernel.submits(), polls(&bench)), (1, 1));
    // The poll of the loop's events is there already.
    arrive(&bench, [(0, WHOLE), (1, WHOLE)]);
    assert_eq!(sleep(&mut bench), Some(false));
    assert_eq!((bench.kernel.submits(), polls(&bench)), (2, 1));
    for key in keys {
        assert_eq!(bench.result(key).unwrap().unwrap(), LEN);
    }
    // Only the poll is left: nothing that could end.
    assert!(!bench.ring.is_busy());
    assert_eq!(sleep(&mut bench), None);
    assert_eq!(bench.kernel.0.borrow().sleeps, 2);
}

#[test]
fn a_sleeping_ring_tells_of_the_loops_events_and_watches_them_anew() {
    let mut bench = Bench::new(256);
    bench.reads(1);
    assert_eq!(sleep(&mut bench), Some(false));
    arrive(&bench, [(1, 1)]);
    assert_eq!(sleep(&mut bench), Some(true));
    assert_eq!(polls(&bench), 1);
    assert!(bench.ring.is_busy());
    assert_eq!(sleep(&mut bench), Some(false));
    assert_eq!(polls(&bench), 2, "the loop would never hear of its events");
}

#[test]
fn events_that_came_while_the_loop_was_awake_are_not_forgotten() {
    let mut bench = Bench::new(256);
    bench.reads(1);
    assert_eq!(sleep(&mut bench), Some(false));
    bench.kernel.complete(1, 1);
    bench.reap();
    assert_eq!(sleep(&mut bench), Some(true));
}

#[test]
fn a_ring_that_can_not_hand_everything_over_does_not_sleep() {
    // Nothing to wait for.
    let mut bench = Bench::new(4);
    assert_eq!(sleep(&mut bench), None);
    // No room for all and the poll.
    bench.reads(4);
    assert_eq!(sleep(&mut bench), None);
    bench.submit();
    assert_eq!(bench.offsets_taken_of_reads(), [0, 1, 2, 3]);
    assert_eq!(sleep(&mut bench), Some(false));
    // Refused, and waiting for the alarm, which is one of the loop's events.
    bench.reads(1);
    bench.kernel.answer([Err(libc::EAGAIN)]);
    bench.submit();
    assert_eq!(sleep(&mut bench), None);
    assert_eq!(bench.kernel.0.borrow().sleeps, 1);
}

#[test]
fn a_loop_that_sleeps_elsewhere_is_told_of_completions() {
    let told = |bench: &Bench| bench.kernel.0.borrow().told;
    let mut bench = Bench::new(4);
    assert_eq!(sleep(&mut bench), None);
    assert!(!told(&bench), "there is nothing to hear of");
    // No room for all and the poll.
    bench.reads(4);
    assert_eq!(sleep(&mut bench), None);
    assert!(told(&bench));
    bench.submit();
    assert_eq!(sleep(&mut bench), Some(false));
    assert!(!told(&bench), "paid for nothing");
    // Refused.
    let left = bench.reads(1);
    bench.kernel.answer([Err(libc::EAGAIN)]);
    bench.submit();
    assert_eq!(sleep(&mut bench), None);
    assert!(told(&bench));
    // Retired.
    bench.kernel.0.borrow_mut().told = false;
    bench.kernel.answer([Err(libc::EBADF)]);
    bench.kernel.ring_alarm();
    assert_eq!(bench.ring.submit(&mut bench.table), left);
    assert_eq!(sleep(&mut bench), None);
    assert!(told(&bench));
    // It can't be told: then it looks from time to time.
    bench.kernel.0.borrow_mut().mute = true;
    assert_eq!(sleep(&mut bench), None);
    assert_eq!(bench.kernel.0.borrow().alarms.last(), Some(&MAX_DELAY));
    bench.table.finish(left[0], Ok(0));
}

#[test]
fn a_sleep_that_is_refused_submits_nothing_twice() {
    for errno in [libc::EAGAIN, libc::EBUSY, libc::EINTR, libc::EBADF] {
        let mut bench = Bench::new(256);
        bench.reads(3);
        bench.kernel.answer([Err(errno)]);
        let slept = sleep(&mut bench);
        assert_eq!(slept, (errno == libc::EINTR).then_some(false));
        bench.submit();
        assert_eq!(bench.offsets_taken_of_reads(), [0, 1, 2]);
        assert_eq!(polls(&bench), 1);
    }
}

#[test]
fn a_ring_that_fails_in_its_sleep_still_awaits_what_is_in_flight() {
    for watched_before in [false, true] {
        let mut bench = Bench::new(256);
        let keys = bench.reads(1);
        if watched_before {
            assert_eq!(sleep(&mut bench), Some(false));
        } else {
            bench.submit();
        }
        bench.kernel.answer([Err(libc::EBADF); 2]);
        let left = bench.reads(1);
        assert_eq!(sleep(&mut bench), None);
        assert_eq!(bench.ring.submit(&mut bench.table), left);
        assert!(bench.ring.is_busy(), "the loop would sleep through its end");
        bench.kernel.complete(0, WHOLE);
        bench.reap();
        assert_eq!(bench.result(keys[0]).unwrap().unwrap(), LEN);
        assert!(!bench.ring.is_busy());
        bench.table.finish(left[0], Ok(0));
    }
}

#[test]
fn the_end_awaits_operations_and_not_the_poll() {
    // Linux before 6.0 can't be asked to cancel.
    for uncancellable in [None, Some(libc::EINVAL)] {
        let mut bench = Bench::new(256);
        bench.kernel.0.borrow_mut().uncancellable = uncancellable;
        let keys = bench.reads(1);
        assert_eq!(sleep(&mut bench), Some(false));
        assert_eq!(polls(&bench), 1);
        arrive(&bench, []);
        arrive(&bench, [(0, -libc::ECANCELED)]);
        bench.ring.finish(&mut bench.table, Duration::MAX);
        assert_eq!(bench.errno(keys[0]), Some(libc::ECANCELED));
        assert_eq!(bench.kernel.0.borrow().cancels, 1);
        assert_eq!(bench.kernel.0.borrow().waits, 2, "waits for the poll");
    }
}

#[test]
fn an_end_with_nothing_but_the_poll_in_flight_waits_for_nothing() {
    let mut bench = Bench::new(256);
    bench.reads(1);
    assert_eq!(sleep(&mut bench), Some(false));
    bench.kernel.complete(0, WHOLE);
    bench.reap();
    bench.ring.finish(&mut bench.table, Duration::MAX);
    assert_eq!(bench.kernel.0.borrow().waits, 0);
}
