//! The ring against a kernel that answers from a script: what a real one does once in a blue moon
//! it does here whenever it is told to.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Wake, Waker};

use vm_memory::GuestAddress;

use super::super::operation::{MAX_TRIES, Memory, Request};
use super::super::{Completion, Core, EngineKind, Engines, Threads, WorkerPool};
use super::*;
use crate::buffer::{GuestRam, IoBuffer};
use crate::context::AioContext;
use crate::event_loop::LoopConfig;

/// What the scripted kernel is and has seen.
#[derive(Default)]
struct Script {
    /// Room in the submission queue.
    room: usize,
    /// What is in it.
    queue: VecDeque<(u64, Request)>,
    /// The next answers of `submit`: how many entries to take, or an errno. Then it takes all.
    answers: VecDeque<Result<usize, i32>>,
    /// Calls of `submit`.
    submits: usize,
    /// What it took, in order.
    taken: Vec<(u64, Request)>,
    /// The completion queue.
    completions: VecDeque<(u64, i32)>,
    /// What did not fit into it.
    overflowed: VecDeque<(u64, i32)>,
    flushes: usize,
    /// Delays of the alarm, in order of setting.
    alarms: Vec<Duration>,
    rung: bool,
    cancels: usize,
    /// The errno of `cancel_all`.
    uncancellable: Option<i32>,
    /// Somebody sleeps elsewhere and is to be told of completions.
    told: bool,
    /// `tell` fails.
    mute: bool,
    /// Calls of `wait`.
    waits: usize,
    /// Calls of `submit_and_wait`; each is one of `submit`, too.
    sleeps: usize,
    /// What `wait` and `submit_and_wait` deliver, call by call; nothing left: the time passes.
    arrivals: VecDeque<Vec<(u64, i32)>>,
}

#[derive(Clone)]
struct Scripted(Rc<RefCell<Script>>);

impl Scripted {
    fn new(room: usize) -> Self {
        Self(Rc::new(RefCell::new(Script {
            room,
            ..Script::default()
        })))
    }

    fn answer(&self, answers: impl IntoIterator<Item = Result<usize, i32>>) {
        self.0.borrow_mut().answers.extend(answers);
    }

    /// Completes the oldest taken entry that has not been completed.
    fn complete(&self, at: usize, result: i32) {
        let mut script = self.0.borrow_mut();
        let user_data = script.taken[at].0;
        script.completions.push_back((user_data, result));
    }

    fn ring_alarm(&self) {
        self.0.borrow_mut().rung = true;
    }

    fn submits(&self) -> usize {
        self.0.borrow().submits
    }

    fn taken(&self) -> Vec<Request> {
        let script = self.0.borrow();
        script.taken.iter().map(|(_, request)| *request).collect()
    }
}

impl Port for Scripted {
    fn push(&mut self, user_data: u64, request: &Request) -> bool {
        let mut script = self.0.borrow_mut();
        let fits = script.queue.len() < script.room;
        if fits {
            script.queue.push_back((user_data, *request));
        }
        fits
    }

    fn submit(&mut self) -> io::Result<usize> {
        let mut script = self.0.borrow_mut();
        script.submits += 1;
        let all = script.queue.len();
        let answer = script.answers.pop_front().unwrap_or(Ok(all));
        let count = answer.map_err(io::Error::from_raw_os_error)?;
        let taken: Vec<_> = script.queue.drain(..count).collect();
        script.taken.extend(taken);
        Ok(count)
    }

    fn submit_and_wait(&mut self) -> io::Result<usize> {
        let taken = self.submit()?;
        let arrived = self.0.borrow_mut().arrivals.pop_front();
        let mut script = self.0.borrow_mut();
        script.sleeps += 1;
        script.completions.extend(arrived.into_iter().flatten());
        Ok(taken)
    }

    fn pop(&mut self) -> Option<(u64, i32)> {
        self.0.borrow_mut().completions.pop_front()
    }

    fn has_completed(&mut self) -> bool {
        let script = self.0.borrow();
        !script.completions.is_empty() || !script.overflowed.is_empty()
    }

    fn needs_flush(&mut self) -> bool {
        !self.0.borrow().overflowed.is_empty()
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut script = self.0.borrow_mut();
        script.flushes += 1;
        // The completion queue has room for two.
        for _ in 0..2 {
            let next = script.overflowed.pop_front();
            script.completions.extend(next);
        }
        Ok(())
    }

    fn cancel_all(&mut self) -> io::Result<()> {
        let mut script = self.0.borrow_mut();
        script.cancels += 1;
        let errno = script.uncancellable.map(io::Error::from_raw_os_error);
        errno.map_or(Ok(()), Err)
    }

    fn wait(&mut self, _limit: Duration) -> io::Result<bool> {
        let mut script = self.0.borrow_mut();
        script.waits += 1;
        let arrived = script.arrivals.pop_front();
        let any = arrived.is_some();
        script.completions.extend(arrived.into_iter().flatten());
        Ok(any)
    }

    fn set_alarm(&mut self, delay: Duration) -> io::Result<()> {
        self.0.borrow_mut().alarms.push(delay);
        Ok(())
    }

    fn take_alarm(&mut self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().rung)
    }

    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn tell(&mut self, sleeps: bool) -> io::Result<()> {
        let mut script = self.0.borrow_mut();
        if script.mute {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        script.told = sleeps;
        Ok(())
    }

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A ring, its table, and a hand on its kernel.
struct Bench {
    kernel: Scripted,
    ring: Ring<Scripted>,
    table: Table,
    file: Arc<File>,
}

const LEN: usize = 4096;
const WHOLE: i32 = 4096;

impl Bench {
    fn new(room: usize) -> Self {
        let kernel = Scripted::new(room);
        Self {
            ring: Ring::with_port(kernel.clone()),
            kernel,
            table: Table::default(),
            file: Arc::new(tempfile::tempfile().unwrap()),
        }
    }

    fn start(&mut self, kind: OperationKind, offset: u64, buffer: IoBuffer) -> Key {
        let file = Arc::clone(&self.file);
        let key = self.table.insert(kind, false, file, offset, buffer);
        self.ring.start(key, &mut self.table);
        key
    }

    /// Starts `count` reads; the offset of each is its number.
    fn reads(&mut self, count: u64) -> Vec<Key> {
        (0..count)
            .map(|at| self.start(OperationKind::Read, at, IoBuffer::alloc(LEN)))
            .collect()
    }

    /// Submits; nothing may be left for others.
    fn submit(&mut self) {
        assert!(self.ring.submit(&mut self.table).is_empty());
    }

    fn reap(&mut self) {
        self.ring.reap(&mut self.table);
    }

    fn result(&mut self, key: Key) -> Option<io::Result<usize>> {
        match self.table.poll(key, Waker::noop()).0 {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    fn errno(&mut self, key: Key) -> Option<i32> {
        self.result(key)?.err()?.raw_os_error()
    }

    fn offsets_taken_of_reads(&self) -> Vec<u64> {
        let mut taken = self.kernel.taken();
        taken.retain(|request| matches!(request, Request::Read { .. }));
        taken.iter().map(|request| shape(request).0).collect()
    }

    fn offsets_taken(&self) -> Vec<u64> {
        let taken = self.kernel.taken();
        taken.iter().map(|request| shape(request).0).collect()
    }
}

/// Offset, address and length of a transfer of one piece.
fn shape(request: &Request) -> (u64, usize, u32) {
    match *request {
        Request::Read {
            offset,
            memory: Memory::One { base, len },
            ..
        }
        | Request::Write {
            offset,
            memory: Memory::One { base, len },
            ..
        } => (offset, base as usize, len),
        other => panic!("not a transfer of one piece: {other:?}"),
    }
}

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
            let key = bench.table.insert(kind, waits, file, 0, buffer);
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

#[test]
fn completions_of_nobody_are_ignored() {
    let mut bench = Bench::new(256);
    let mut script = bench.kernel.0.borrow_mut();
    script.completions.extend([(77, WHOLE), (u64::MAX - 1, -5)]);
    drop(script);
    bench.reap();
    assert_eq!(bench.ring.in_flight, 0);
}

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), LEN)]).unwrap())
}

/// A read into memory that only the operation owns.
fn read_of_own_memory(bench: &mut Bench) -> (Key, Weak<GuestRam>) {
    let ram = ram();
    let watch = Arc::downgrade(&ram);
    let buffer = IoBuffer::from_guest(&ram, &[(GuestAddress(0), LEN)]).unwrap();
    (bench.start(OperationKind::Read, 0, buffer), watch)
}

#[test]
fn memory_is_kept_until_the_kernel_is_done_and_no_longer() {
    let mut bench = Bench::new(256);
    let (key, memory) = read_of_own_memory(&mut bench);
    bench.submit();
    drop(bench.table.abandon(key));
    assert_eq!(memory.strong_count(), 1, "freed under the kernel's feet");
    bench.kernel.complete(0, 100);
    bench.reap();
    assert_eq!(memory.strong_count(), 1, "the rest is still to come");
    bench.submit();
    bench.kernel.complete(1, WHOLE - 100);
    bench.reap();
    assert_eq!(memory.strong_count(), 0, "leaked");
    assert_eq!(bench.table.running(), 0);
}

#[test]
fn the_end_cancels_and_waits_for_what_is_in_flight() {
    let mut bench = Bench::new(2);
    let (in_flight, memory) = read_of_own_memory(&mut bench);
    bench.submit();
    bench.kernel.answer([Err(libc::EAGAIN)]);
    let unsubmitted = bench.reads(4);
    bench.submit();
    let user_data = bench.kernel.0.borrow().taken[0].0;
    let mut script = bench.kernel.0.borrow_mut();
    let short = vec![(user_data, 100)];
    script.arrivals.extend([Vec::new(), short]);
    drop(script);
    bench.ring.finish(&mut bench.table, Duration::MAX);
    assert_eq!(bench.kernel.0.borrow().cancels, 1);
    assert_eq!(bench.kernel.submits(), 2, "submitted at the end");
    assert_eq!(memory.strong_count(), 0);
    assert_eq!(bench.table.running(), 0);
    for key in unsubmitted.into_iter().chain([in_flight]) {
        assert_eq!(bench.errno(key), Some(libc::ECANCELED));
    }
}

#[test]
fn what_never_ends_is_leaked_not_freed() {
    let mut bench = Bench::new(256);
    let (_, memory) = read_of_own_memory(&mut bench);
    bench.submit();
    bench.ring.finish(&mut bench.table, Duration::MAX);
    assert_eq!(bench.table.running(), 1);
    drop(bench);
    assert_eq!(memory.strong_count(), 1, "freed under the kernel's feet");
}

/// The engines of a loop with this kernel.
fn engines(kernel: &Scripted) -> Engines {
    let context = AioContext::new("test", &LoopConfig::default()).unwrap();
    let workers = Rc::new(WorkerPool::new("test", 0, 2, Box::new(|| {})).unwrap());
    Engines {
        core: Rc::new(RefCell::new(Core {
            table: Table::default(),
            ring: Some(Box::new(Ring::with_port(kernel.clone()))),
            threads: Threads::new(Rc::clone(&workers)),
        })),
        workers,
        shared: context.0,
        prepared: Default::default(),
        refusal: Default::default(),
    }
}

#[test]
fn who_waits_for_a_ring_that_nobody_can_replace_is_woken() {
    let kernel = Scripted::new(256);
    let engines = engines(&kernel);
    // A pool that has ended starts no thread.
    assert_eq!(engines.workers.finish(Duration::MAX), 0);
    engines.reap();
    let file = Arc::new(tempfile::tempfile().unwrap());
    let buffer = IoBuffer::alloc(LEN);
    let mut read = engines.start(
        EngineKind::IoUring.into(),
        OperationKind::Read,
        file,
        0,
        buffer,
    );
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = std::task::Context::from_waker(&waker);
    assert!(Pin::new(&mut read).poll(&mut cx).is_pending());
    assert!(!engines.has_completed());
    kernel.answer([Err(libc::EBADF)]);
    engines.submit();
    assert!(engines.has_completed(), "the loop would sleep");
    engines.reap();
    assert!(woken.0.load(Ordering::Relaxed));
    assert!(!engines.has_completed(), "the loop would spin");
    assert!(matches!(
        Pin::new(&mut read).poll(&mut cx),
        Poll::Ready(Err(_))
    ));
    engines.finish();
}

/// Whether a waker was used.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_a_retired_ring_left_is_done_by_workers() {
    let kernel = Scripted::new(256);
    let engines = engines(&kernel);
    let file = Arc::new(tempfile::tempfile().unwrap());
    file.write_all_at(&[7; LEN], 0).unwrap();
    let start = || {
        let buffer = IoBuffer::alloc(LEN);
        let kind = OperationKind::Read;
        let file = Arc::clone(&file);
        let read = engines.start(EngineKind::IoUring.into(), kind, file, 0, buffer.clone());
        (read, buffer)
    };
    kernel.answer([Err(libc::ENXIO)]);
    let mut reads = vec![start(), start()];
    engines.submit();
    // And what comes later goes there directly.
    reads.push(start());
    for (mut read, buffer) in reads {
        assert_eq!(wait(&engines, &mut read).unwrap(), LEN);
        assert_eq!(buffer.to_vec(), [7; LEN]);
    }
    assert_eq!(kernel.submits(), 1);
    engines.finish();
}

fn wait(engines: &Engines, operation: &mut Completion) -> io::Result<usize> {
    let mut cx = std::task::Context::from_waker(Waker::noop());
    loop {
        engines.reap();
        if let Poll::Ready(result) = Pin::new(&mut *operation).poll(&mut cx) {
            return result;
        }
        std::thread::yield_now();
    }
}
