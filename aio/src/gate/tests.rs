//! The gate's rules (design: order, nesting, re-closing, token transfer, …), one by one and by hand.
//!
//! Everything here is deterministic: futures are polled explicitly and wakes are counted. The
//! random comparison with a model is in [`model`], real threads in [`stress`], and the races, under
//! a model checker, in `loom_tests`. `docs/gate.md` says which test answers for which rule.

mod destroyed;
mod model;
mod stress;
mod visible;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use super::*;

/// Counts its wakes.
#[derive(Debug, Default)]
struct Wakes(AtomicUsize);

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A future that is polled by hand, and how often it was woken.
#[derive(Debug)]
struct Driven<F> {
    future: F,
    wakes: Arc<Wakes>,
}

impl<F: Future + Unpin> Driven<F> {
    fn new(future: F) -> Self {
        Self {
            future,
            wakes: Arc::default(),
        }
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(&self.wakes));
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }

    /// Polls only if woken since the last call of this method, like an executor.
    fn poll_if_woken(&mut self) -> Poll<F::Output> {
        if self.wakes.0.swap(0, Ordering::SeqCst) == 0 {
            return Poll::Pending;
        }
        self.poll()
    }

    fn is_pending(&mut self) -> bool {
        self.poll().is_pending()
    }
}

fn gate() -> Gate {
    Gate::new("disk", Clock::manual())
}

/// A waiter that has joined the queue.
fn parked(gate: &Gate) -> Driven<Enter> {
    let before = gate.parked();
    let mut waiter = Driven::new(gate.enter());
    assert!(waiter.is_pending());
    assert_eq!(gate.parked(), before + 1);
    waiter
}

fn entered(poll: Poll<Result<Token, Cancelled>>) -> Token {
    match poll {
        Poll::Ready(Ok(token)) => token,
        other => panic!("not entered: {other:?}"),
    }
}

#[test]
fn an_open_gate_lets_everybody_in() {
    let gate = gate();
    let first = entered(Driven::new(gate.enter()).poll());
    let second = gate.try_enter().unwrap();
    assert!(first.is_of(&gate));
    assert_eq!(gate.in_flight(), 2);
    drop((first, second));
    assert_eq!(gate.in_flight(), 0);
    assert_eq!(gate.stats().parked, 0);
}

/// No section finds the gate idle between the call and the first poll.
#[test]
fn a_request_that_finds_the_gate_open_is_in_flight_at_once() {
    let gate = gate();
    let mut request = Driven::new(gate.enter());
    let dropped = gate.enter();
    assert_eq!(gate.in_flight(), 2);
    let section = gate.close("test");
    drop(dropped);
    assert!(Driven::new(gate.wait_idle()).is_pending());
    drop(entered(request.poll()));
    assert!(Driven::new(gate.wait_idle()).poll().is_ready());
    drop(section);
}

// Rule 1: order.

#[test]
fn the_parked_start_in_order_of_arrival() {
    let gate = gate();
    let section = gate.close("test");
    let mut waiters: Vec<_> = (0..4).map(|_| parked(&gate)).collect();
    drop(section);
    // Whoever is polled first, only the head starts.
    let mut order = Vec::new();
    let mut tokens = Vec::new();
    while order.len() < waiters.len() {
        for (index, waiter) in waiters.iter_mut().enumerate().rev() {
            if let Poll::Ready(token) = waiter.poll_if_woken() {
                order.push(index);
                tokens.push(token.unwrap());
            }
        }
    }
    assert_eq!(order, [0, 1, 2, 3]);
    assert_eq!(gate.in_flight(), 4);
}

#[test]
fn a_newcomer_goes_behind_those_who_wait() {
    let gate = gate();
    let section = gate.close("test");
    let mut first = parked(&gate);
    drop(section);
    // Open again, but the first has not started yet.
    assert!(!gate.is_closed());
    assert!(gate.try_enter().is_none());
    let mut second = parked(&gate);
    assert!(second.is_pending());
    let token = entered(first.poll_if_woken());
    assert_eq!(second.wakes.count(), 1);
    drop((token, entered(second.poll_if_woken())));
    assert_eq!(gate.in_flight(), 0);
    assert!(gate.try_enter().is_some());
}

#[test]
fn who_comes_back_goes_before_those_who_wait() {
    let gate = gate();
    let section = gate.close("test");
    let mut waiter = parked(&gate);
    let [mut second, mut first] = [(); 2].map(|()| Driven::new(gate.enter_again()));
    assert_eq!(gate.parked(), 1, "the place is that of the first poll");
    assert!(second.is_pending() && first.is_pending());
    assert_eq!((gate.parked(), gate.in_flight()), (3, 0));
    drop(section);
    assert!(waiter.poll_if_woken().is_pending());
    assert!(second.poll().is_pending());
    let mut tokens = vec![entered(first.poll_if_woken())];
    tokens.push(entered(second.poll_if_woken()));
    let mut late = parked(&gate);
    // Open, it need not wait for anybody.
    tokens.push(entered(Driven::new(gate.enter_again()).poll()));
    tokens.push(entered(waiter.poll_if_woken()));
    drop(entered(late.poll_if_woken()));
    // Who gives up lets the others go on.
    let section = gate.close("test");
    let mut waiter = parked(&gate);
    let mut gone = Driven::new(gate.enter_again());
    assert!(gone.is_pending());
    drop(section);
    drop(gone);
    drop(entered(waiter.poll_if_woken()));
    gate.destroy();
    let mut cancelled = Driven::new(gate.enter_again());
    assert!(matches!(cancelled.poll(), Poll::Ready(Err(Cancelled))));
}

/// A head that keeps its grant in a section is none any more: the section must not wait for it.
#[test]
fn who_comes_back_before_a_head_that_was_passed_over_takes_its_turn() {
    let gate = gate();
    let section = gate.close("first");
    let mut head = parked(&gate);
    drop(section);
    drop(gate.close("second"));
    let section = gate.close("third");
    assert_eq!(gate.in_flight(), 1);
    let mut idle = Driven::new(gate.wait_idle());
    assert!(idle.is_pending());
    let mut back = Driven::new(gate.enter_again());
    assert!(back.is_pending());
    assert_eq!(gate.in_flight(), 0);
    assert!(idle.poll_if_woken().is_ready());
    assert!(head.poll().is_pending());
    drop(section);
    drop(entered(back.poll_if_woken()));
    drop(entered(head.poll_if_woken()));
}

// Rule 2: nesting.

#[test]
fn only_the_last_end_opens() {
    let gate = gate();
    let outer = gate.close("outer");
    let inner = gate.close("inner");
    let mut waiter = parked(&gate);
    drop(outer);
    assert!(gate.is_closed());
    assert!(gate.try_enter().is_none());
    assert!(waiter.is_pending());
    assert_eq!((waiter.wakes.count(), gate.in_flight()), (0, 0));
    drop(inner);
    assert!(!gate.is_closed());
    drop(entered(waiter.poll_if_woken()));
}

// Rule 3: re-closing.

#[test]
fn closing_again_keeps_the_rest_at_the_head_in_order() {
    let gate = gate();
    let section = gate.close("first");
    let mut waiters: Vec<_> = (0..3).map(|_| parked(&gate)).collect();
    drop(section);
    // The first postponed action closes the gate again.
    let action = entered(waiters[0].poll_if_woken());
    let section = gate.close("action");
    assert_eq!(gate.in_flight(), 1, "only the one that started");
    assert!(waiters[1].is_pending() && waiters[2].is_pending());
    waiters.push(parked(&gate));
    drop(action);
    drop(section);
    let mut tokens = Vec::new();
    for index in [1, 2, 3] {
        for later in &mut waiters[index + 1..] {
            assert!(later.poll_if_woken().is_pending());
        }
        tokens.push(entered(waiters[index].poll_if_woken()));
    }
    assert_eq!(gate.parked(), 0);
}

// Rule 4: token transfer.

/// Notes how many tokens are out whenever it is woken.
struct Watcher {
    gate: Gate,
    seen: Mutex<Vec<usize>>,
}

impl Wake for Watcher {
    fn wake(self: Arc<Self>) {
        self.seen.lock().push(self.gate.in_flight());
    }
}

#[test]
fn the_opener_takes_the_tokens_before_it_wakes_anybody() {
    let gate = gate();
    let watcher = Arc::new(Watcher {
        gate: gate.clone(),
        seen: Mutex::default(),
    });
    let waker = Waker::from(Arc::clone(&watcher));
    let section = gate.close("test");
    let mut waiters = [gate.enter(), gate.enter(), gate.enter()];
    for waiter in &mut waiters {
        let poll = Pin::new(waiter).poll(&mut Context::from_waker(&waker));
        assert!(poll.is_pending());
    }
    assert_eq!(gate.in_flight(), 0);
    drop(section);
    assert_eq!(*watcher.seen.lock(), [3, 3, 3]);
    // Nobody has run, and still the disk is not idle.
    assert!(Driven::new(gate.wait_idle()).is_pending());
}

#[test]
fn a_woken_waiter_looks_again_before_it_starts() {
    let gate = gate();
    let section = gate.close("first");
    let mut waiter = parked(&gate);
    drop(section);
    assert_eq!(waiter.wakes.count(), 1);
    let section = gate.close("second");
    // The wake is on its way, but the section came first.
    assert!(Driven::new(gate.wait_idle()).poll().is_ready());
    assert!(waiter.poll_if_woken().is_pending());
    assert_eq!(gate.in_flight(), 0);
    drop(section);
    drop(entered(waiter.poll_if_woken()));
}

#[test]
fn taking_grants_back_wakes_who_waits_for_idle() {
    let gate = gate();
    let section = gate.close("first");
    let waiter = parked(&gate);
    drop(section);
    let mut idle = Driven::new(gate.wait_idle());
    assert!(idle.is_pending());
    let section = gate.close("second");
    assert!(idle.poll_if_woken().is_ready());
    drop(waiter);
    drop(section);
    assert_eq!(gate.in_flight(), 0);
}

#[test]
fn reopening_before_the_sleeper_looked_grants_it_once() {
    let gate = gate();
    let section = gate.close("first");
    let mut waiter = parked(&gate);
    drop(section);
    drop(gate.close("second"));
    assert_eq!(gate.in_flight(), 1);
    drop(entered(waiter.poll_if_woken()));
    assert_eq!(gate.in_flight(), 0);
}

// Bounded: sections do not pass a parked request over for ever.

#[test]
fn the_head_is_passed_over_by_one_section_in_a_row() {
    let gate = gate();
    let section = gate.close("first");
    let (mut head, mut next) = (parked(&gate), parked(&gate));
    drop(section);
    let section = gate.close("second");
    assert_eq!((gate.in_flight(), gate.parked()), (0, 2));
    drop(section);
    // Neither has been polled; the third section leaves the head its turn and waits for it.
    let section = gate.close("third");
    assert_eq!((gate.in_flight(), gate.parked()), (1, 2));
    let mut idle = Driven::new(gate.wait_idle());
    assert!(idle.is_pending());
    assert!(next.poll_if_woken().is_pending());
    let token = entered(head.poll_if_woken());
    assert!(next.poll().is_pending(), "the turn is the head's alone");
    assert!(idle.poll_if_woken().is_pending());
    drop(token);
    assert!(idle.poll_if_woken().is_ready());
    assert_eq!(gate.stats().grants_taken_back, 3);
    // The next has not been passed over as the head yet.
    drop(section);
    let section = gate.close("fourth");
    assert_eq!((gate.in_flight(), gate.parked()), (0, 1));
    assert!(next.poll_if_woken().is_pending());
    drop(section);
    drop(entered(next.poll_if_woken()));
}

/// Rule 3 is not touched by it: that an action started counts.
#[test]
fn an_action_that_closes_again_is_not_overtaken() {
    let gate = gate();
    let section = gate.close("first");
    let mut waiters: Vec<_> = (0..3).map(|_| parked(&gate)).collect();
    drop(section);
    drop(gate.close("passes over"));
    // Each action closes again before it ends.
    for index in 0..2 {
        let action = entered(waiters[index].poll_if_woken());
        let again = gate.close("action");
        drop(action);
        assert_eq!((gate.in_flight(), gate.parked()), (0, 2 - index));
        assert!(waiters[index + 1].poll_if_woken().is_pending());
        drop(again);
    }
    drop(entered(waiters[2].poll_if_woken()));
}

#[test]
fn a_head_that_gives_up_its_turn_inside_a_section_passes_it_to_nobody() {
    let gate = gate();
    let section = gate.close("first");
    let (head, mut next) = (parked(&gate), parked(&gate));
    drop(section);
    drop(gate.close("second"));
    let section = gate.close("third");
    let mut idle = Driven::new(gate.wait_idle());
    assert!(idle.is_pending());
    drop(head);
    assert!(idle.poll_if_woken().is_ready());
    assert!(next.poll().is_pending());
    drop(section);
    drop(entered(next.poll_if_woken()));
    assert_eq!(gate.in_flight(), 0);
}

#[test]
fn destruction_takes_the_turn_of_a_head_that_was_passed_over() {
    let gate = gate();
    let section = gate.close("first");
    let mut head = parked(&gate);
    drop(section);
    drop(gate.close("second"));
    let section = gate.close("third");
    assert_eq!(gate.in_flight(), 1);
    gate.destroy();
    assert_eq!(gate.in_flight(), 0);
    assert!(matches!(head.poll_if_woken(), Poll::Ready(Err(Cancelled))));
    drop(section);
}

// Rule 6: drain parks, settle does not.

#[test]
fn settling_waits_without_parking_anybody() {
    let gate = gate();
    let mine = gate.try_enter().unwrap();
    let mut settled = Driven::new(gate.wait_idle());
    assert!(settled.is_pending());
    // Others come and go meanwhile.
    let other = entered(Driven::new(gate.enter()).poll());
    assert!(gate.try_enter().is_some());
    drop(mine);
    assert!(settled.poll_if_woken().is_pending());
    drop(other);
    assert!(settled.poll_if_woken().is_ready());
    assert_eq!(gate.stats().parked, 0);
    assert_eq!(gate.stats().sections, 0);
}

#[test]
fn draining_waits_for_those_inside() {
    let gate = gate();
    let token = gate.try_enter().unwrap();
    let section = gate.close("test");
    let mut idle = Driven::new(gate.wait_idle());
    assert!(idle.is_pending());
    drop(token);
    assert!(idle.poll_if_woken().is_ready());
    drop(section);
}

#[test]
fn a_parked_request_can_be_cancelled_inside_the_section() {
    let gate = gate();
    let section = gate.close("test");
    let first = parked(&gate);
    let mut second = parked(&gate);
    drop(first);
    assert_eq!((gate.parked(), gate.in_flight()), (1, 0));
    assert_eq!(gate.stats().abandoned, 1);
    drop(section);
    drop(entered(second.poll_if_woken()));
    assert_eq!(gate.in_flight(), 0);
}

#[test]
fn cancelling_a_granted_waiter_passes_its_turn_on() {
    let gate = gate();
    let section = gate.close("test");
    let first = parked(&gate);
    let mut second = parked(&gate);
    drop(section);
    assert!(second.poll_if_woken().is_pending());
    drop(first);
    assert_eq!(gate.in_flight(), 1, "the token went back");
    drop(entered(second.poll_if_woken()));
    assert_eq!(gate.in_flight(), 0);
}

#[test]
fn cancelling_the_last_waiter_opens_the_way() {
    let gate = gate();
    let section = gate.close("test");
    let only = parked(&gate);
    let mut opened = Driven::new(gate.opened());
    assert!(opened.is_pending());
    drop(section);
    assert!(opened.poll_if_woken().is_pending());
    let mut idle = Driven::new(gate.wait_idle());
    assert!(idle.is_pending());
    drop(only);
    assert_eq!(opened.poll_if_woken(), Poll::Ready(Ok(())));
    assert!(idle.poll_if_woken().is_ready());
    assert!(gate.try_enter().is_some());
}

// Rule 7: a compound operation is one request.

#[test]
fn a_token_lasts_through_a_closed_gate() {
    let gate = gate();
    let token = gate.try_enter().unwrap();
    let section = gate.close("test");
    let mut idle = Driven::new(gate.wait_idle());
    for _part in 0..3 {
        // Each part of the operation runs under the token; none of them enters again.
        assert!(idle.is_pending());
        assert_eq!((gate.in_flight(), gate.parked()), (1, 0));
    }
    drop(token);
    assert!(idle.poll_if_woken().is_ready());
    drop(section);
}

// Rule 8: bounded. A ring is its own queue.

#[test]
fn a_source_with_its_own_queue_parks_nothing() {
    let gate = gate();
    let section = gate.close("test");
    let mut opened = Driven::new(gate.opened());
    assert!(gate.try_enter().is_none());
    assert!(opened.is_pending());
    assert_eq!((gate.parked(), gate.in_flight()), (0, 0));
    drop(section);
    assert_eq!(
        opened.wakes.count(),
        1,
        "looked at once when the section ends"
    );
    assert_eq!(opened.poll_if_woken(), Poll::Ready(Ok(())));
    assert!(gate.try_enter().is_some());
}

/// Also if it looks in between, and if a section follows another.
#[test]
fn how_long_a_queue_is_left_unserved_is_known() {
    let clock = Clock::manual();
    let gate = Gate::new("disk", clock.clone());
    let first = gate.close("test");
    let mut opened = Driven::new(gate.opened());
    assert!(opened.is_pending());
    clock.advance(Duration::from_millis(2));
    assert_eq!(gate.waiting(), (1, Duration::from_millis(2)));
    assert!(opened.is_pending());
    drop(first);
    let second = gate.close("test");
    assert!(opened.poll_if_woken().is_pending());
    clock.advance(Duration::from_millis(3));
    assert_eq!(gate.waiting(), (1, Duration::from_millis(5)));
    assert_eq!(gate.stats().longest_wait_now, Duration::from_millis(5));
    assert_eq!(gate.stats().longest_wait, Duration::ZERO);
    drop(second);
    assert_eq!(opened.poll_if_woken(), Poll::Ready(Ok(())));
    assert_eq!(gate.stats().longest_wait, Duration::from_millis(5));
    assert_eq!(gate.waiting(), (0, Duration::ZERO));
}

#[test]
fn a_source_with_its_own_queue_goes_behind_the_parked() {
    let gate = gate();
    let section = gate.close("test");
    let mut waiter = parked(&gate);
    let mut opened = Driven::new(gate.opened());
    assert!(opened.is_pending());
    drop(section);
    assert!(opened.is_pending());
    let token = entered(waiter.poll_if_woken());
    assert_eq!(opened.poll_if_woken(), Poll::Ready(Ok(())));
    drop(token);
}

#[test]
fn a_refused_newcomer_does_not_hold_up_the_drain() {
    let gate = gate();
    let section = gate.close("test");
    let mut idle = Driven::new(gate.wait_idle());
    assert!(gate.try_enter().is_none());
    assert_eq!(gate.in_flight(), 0);
    assert!(idle.poll().is_ready());
    drop(section);
}

// Rule 9: nothing foreign runs under the lock.

/// Asserts, when woken and when dropped, that the gate's lock is free.
struct Unlocked(Gate);

impl Unlocked {
    fn check(&self) {
        assert!(!self.0.0.state.is_locked(), "called under the gate's lock");
    }
}

impl Wake for Unlocked {
    fn wake(self: Arc<Self>) {
        self.check();
    }
}

impl Drop for Unlocked {
    fn drop(&mut self) {
        self.check();
    }
}

/// A new waker each time: the last reference goes wherever the gate lets go of it.
fn poll_unlocked<F: Future + Unpin>(gate: &Gate, future: &mut F) -> Poll<F::Output> {
    let waker = Waker::from(Arc::new(Unlocked(gate.clone())));
    Pin::new(future).poll(&mut Context::from_waker(&waker))
}

#[test]
fn wakers_are_woken_and_dropped_without_the_lock() {
    let gate = gate();
    let token = gate.try_enter().unwrap();
    let section = gate.close("test");
    let (mut first, mut second, mut third) = (gate.enter(), gate.enter(), gate.enter());
    let (mut opened, mut late) = (gate.opened(), gate.opened());
    let (mut idle, mut other) = (gate.wait_idle(), gate.wait_idle());
    // Every poll but the first of each replaces a waker.
    for _ in 0..2 {
        assert!(poll_unlocked(&gate, &mut first).is_pending());
        assert!(poll_unlocked(&gate, &mut second).is_pending());
        assert!(poll_unlocked(&gate, &mut third).is_pending());
        assert!(poll_unlocked(&gate, &mut opened).is_pending());
        assert!(poll_unlocked(&gate, &mut late).is_pending());
        assert!(poll_unlocked(&gate, &mut idle).is_pending());
        assert!(poll_unlocked(&gate, &mut other).is_pending());
    }
    drop(other);
    drop(token);
    assert!(poll_unlocked(&gate, &mut idle).is_ready());
    drop(section);
    assert!(poll_unlocked(&gate, &mut second).is_pending());
    assert!(poll_unlocked(&gate, &mut first).is_ready());
    assert!(poll_unlocked(&gate, &mut idle).is_pending());
    let section = gate.close("again");
    drop(second);
    drop(opened);
    assert!(poll_unlocked(&gate, &mut third).is_pending());
    gate.destroy();
    assert!(poll_unlocked(&gate, &mut third).is_ready());
    assert!(poll_unlocked(&gate, &mut late).is_ready());
    drop(section);
}

// Memory: a token keeps the gate.

#[test]
fn tokens_may_outlive_all_handles() {
    let gate = gate();
    let tokens = [gate.try_enter().unwrap(), gate.try_enter().unwrap()];
    let other = gate.clone();
    drop(gate);
    assert!(tokens[0].is_of(&other));
    drop(other);
    for token in tokens {
        std::thread::spawn(move || drop(token)).join().unwrap();
    }
}

#[test]
fn the_negative_control_ignores_sections() {
    let gate = gate();
    let section = gate.close("test");
    let intruder = gate.enter_ignoring_sections();
    assert_eq!(gate.in_flight(), 1);
    drop(intruder);
    drop(section);
}
