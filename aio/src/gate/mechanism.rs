//! The gate's words, its lock and the transitions between them.
//!
//! The handle types of [`super`] and the futures of [`super::waiting`] call in here, from any
//! thread. Nothing in here blocks, and no foreign code runs under the lock: a waker may do anything
//! when it is woken *or dropped*, so both happen after it ([`Aftermath`]).

use std::collections::BTreeMap;
use std::task::{Context, Waker};
use std::time::Duration;

use super::stats::{GateStats, Holder};
use crate::clock::Clock;
use crate::sync::{AtomicUsize, Mutex, Ordering};

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) name: String,
    pub(super) clock: Clock,
    /// Tokens that are out, granted ones included.
    pub(super) in_flight: AtomicUsize,
    /// Reasons for a newcomer to go to the queue: open sections, queued waiters, destruction.
    barrier: AtomicUsize,
    /// Futures that wait for `in_flight == 0`; the leaver looks here before it takes the lock.
    idle_waiters: AtomicUsize,
    pub(super) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) closed: usize,
    destroyed: bool,
    next_ticket: u64,
    pub(super) queue: BTreeMap<u64, Waiter>,
    idle: BTreeMap<u64, Waker>,
    pub(super) opened: BTreeMap<u64, Waker>,
    pub(super) holders: BTreeMap<u64, Holder>,
    pub(super) stats: GateStats,
}

#[derive(Debug)]
pub(super) struct Waiter {
    /// Taken when it is woken; its next poll brings a new one.
    waker: Option<Waker>,
    /// Its token is counted in `in_flight` already.
    granted: bool,
    pub(super) since: Duration,
}

/// Where a request stands after a look at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It holds a token.
    Entered,
    /// It is queued under this ticket.
    Waits(u64),
    /// The gate is destroyed.
    Cancelled,
}

/// What is left to do once the lock is released (rule 9). Declare it *before* taking the lock.
#[derive(Default)]
struct Aftermath {
    wake: Vec<Waker>,
    retire: Option<Waker>,
}

impl Aftermath {
    fn run(self) {
        for waker in self.wake {
            waker.wake();
        }
        drop(self.retire);
    }
}

impl Inner {
    pub(super) fn new(name: String, clock: Clock) -> Self {
        Self {
            name,
            clock,
            in_flight: AtomicUsize::new(0),
            barrier: AtomicUsize::new(0),
            idle_waiters: AtomicUsize::new(0),
            state: Mutex::new(State::default()),
        }
    }

    /// The uncontended way in: write one word, read the other. A refused newcomer leaves again.
    pub(super) fn try_enter(&self) -> bool {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let admitted = self.barrier.load(Ordering::SeqCst) == 0;
        if !admitted {
            self.leave();
        }
        admitted
    }

    /// Returns one token from outside the lock: the only thing a request's end costs.
    pub(super) fn leave(&self) {
        if self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1
            && self.idle_waiters.load(Ordering::SeqCst) > 0
        {
            let idle = std::mem::take(&mut self.state.lock().idle);
            for waker in idle.into_values() {
                waker.wake();
            }
        }
    }

    /// Begins a section; returns the key that ends it.
    pub(super) fn close(&self, holder: &str) -> u64 {
        let mut after = Aftermath::default();
        let mut state = self.state.lock();
        state.closed += 1;
        self.barrier.fetch_add(1, Ordering::SeqCst);
        self.revoke_grants(&mut state, &mut after);
        let key = state.ticket();
        let since = self.clock.now();
        let name = holder.to_owned();
        state.holders.insert(key, Holder { name, since });
        drop(state);
        after.run();
        key
    }

    /// Ends a section; the last one grants tokens to all waiters before it wakes the first.
    pub(super) fn open(&self, key: u64) {
        let mut after = Aftermath::default();
        let mut state = self.state.lock();
        state.closed -= 1;
        self.barrier.fetch_sub(1, Ordering::SeqCst);
        if let Some(holder) = state.holders.remove(&key) {
            let held = self.clock.now().saturating_sub(holder.since);
            state.stats.section_ended(held);
        }
        if state.closed == 0 && !state.destroyed {
            for waiter in state.queue.values_mut() {
                waiter.granted = true;
                self.in_flight.fetch_add(1, Ordering::SeqCst);
                after.wake.extend(waiter.waker.take());
            }
            state.collect_opened(&mut after);
        }
        drop(state);
        after.run();
    }

    /// Ends the gate: whoever is parked or comes later is cancelled.
    pub(super) fn destroy(&self) {
        let mut after = Aftermath::default();
        let mut state = self.state.lock();
        if !state.destroyed {
            state.destroyed = true;
            self.barrier.fetch_add(1, Ordering::SeqCst);
            self.revoke_grants(&mut state, &mut after);
            let parked = state.queue.values_mut();
            after.wake.extend(parked.filter_map(|w| w.waker.take()));
            after
                .wake
                .extend(std::mem::take(&mut state.opened).into_values());
        }
        drop(state);
        after.run();
    }

    /// Slow path of a newcomer: everything is decided under the lock.
    pub(super) fn join_queue(&self, cx: &mut Context<'_>) -> Step {
        let waker = Some(cx.waker().clone());
        let mut state = self.state.lock();
        if state.destroyed {
            return Step::Cancelled;
        }
        if state.closed == 0 && state.queue.is_empty() {
            // Closing takes this lock too, so the token cannot slip into a section.
            self.in_flight.fetch_add(1, Ordering::SeqCst);
            return Step::Entered;
        }
        // Open, but others wait: the place behind them is granted like theirs.
        let granted = state.closed == 0;
        if granted {
            self.in_flight.fetch_add(1, Ordering::SeqCst);
        }
        let ticket = state.ticket();
        let since = self.clock.now();
        let waiter = Waiter {
            waker,
            granted,
            since,
        };
        state.queue.insert(ticket, waiter);
        self.barrier.fetch_add(1, Ordering::SeqCst);
        state.stats.parked += 1;
        Step::Waits(ticket)
    }

    /// What a queued request does when it is polled: it starts only as granted head.
    pub(super) fn look_again(&self, ticket: u64, cx: &mut Context<'_>) -> Step {
        let mut after = Aftermath::default();
        let waker = cx.waker().clone();
        let mut state = self.state.lock();
        let destroyed = state.destroyed;
        let is_head = state.queue.keys().next() == Some(&ticket);
        let Some(waiter) = state.queue.get_mut(&ticket) else {
            return Step::Cancelled;
        };
        let may_start = waiter.granted && is_head;
        if !may_start && !destroyed {
            after.retire = waiter.waker.replace(waker);
            drop(state);
            after.run();
            return Step::Waits(ticket);
        }
        let waited = self.clock.now().saturating_sub(waiter.since);
        state.stats.wait_ended(waited);
        // Destruction has taken the grants back.
        self.unqueue(&mut state, ticket, &mut after);
        drop(state);
        after.run();
        if destroyed {
            Step::Cancelled
        } else {
            Step::Entered
        }
    }

    /// A queued request gave up: it leaves its place, and its token if it was granted one.
    pub(super) fn abandon(&self, ticket: u64) {
        let mut after = Aftermath::default();
        let mut state = self.state.lock();
        state.stats.abandoned += 1;
        if self.unqueue(&mut state, ticket, &mut after) {
            self.give_back(1, &mut state, &mut after);
        }
        drop(state);
        after.run();
    }

    /// Takes a request out of the queue and tells whom that lets go on; returns whether it was
    /// granted its token.
    fn unqueue(&self, state: &mut State, ticket: u64, after: &mut Aftermath) -> bool {
        let Some(waiter) = state.queue.remove(&ticket) else {
            return false;
        };
        self.barrier.fetch_sub(1, Ordering::SeqCst);
        after.retire = waiter.waker;
        after.wake.extend(state.wake_granted_head());
        state.collect_opened(after);
        waiter.granted
    }

    /// Takes back the tokens of waiters that have not started; they keep their places.
    fn revoke_grants(&self, state: &mut State, after: &mut Aftermath) {
        let mut revoked = 0;
        for waiter in state.queue.values_mut() {
            revoked += usize::from(std::mem::take(&mut waiter.granted));
        }
        self.give_back(revoked, state, after);
    }

    /// Returns `count` tokens while the lock is held.
    fn give_back(&self, count: usize, state: &mut State, after: &mut Aftermath) {
        if count > 0 && self.in_flight.fetch_sub(count, Ordering::SeqCst) == count {
            after
                .wake
                .extend(std::mem::take(&mut state.idle).into_values());
        }
    }

    /// One look of [`super::Opened`]; `key` is the place it had in the list of those who wait.
    /// Returns [`Step::Entered`] if the gate is open.
    pub(super) fn look_opened(&self, key: Option<u64>, cx: &mut Context<'_>) -> Step {
        let mut after = Aftermath::default();
        let waker = cx.waker().clone();
        let mut state = self.state.lock();
        after.retire = key.and_then(|key| state.opened.remove(&key));
        let step = if state.destroyed {
            Step::Cancelled
        } else if state.closed == 0 && state.queue.is_empty() {
            Step::Entered
        } else {
            let key = state.ticket();
            state.opened.insert(key, waker);
            Step::Waits(key)
        };
        drop(state);
        after.run();
        step
    }

    /// Forgets a [`super::Opened`] that was dropped.
    pub(super) fn forget_opened(&self, key: u64) {
        let waker = self.state.lock().opened.remove(&key);
        drop(waker);
    }

    /// Announces a [`super::WaitIdle`] that was never polled before.
    pub(super) fn announce_idle_waiter(&self) -> u64 {
        self.idle_waiters.fetch_add(1, Ordering::SeqCst);
        self.state.lock().ticket()
    }

    /// One look of an announced [`super::WaitIdle`]: true when no token is out.
    ///
    /// It announces itself first and looks then; who leaves does it the other way round.
    pub(super) fn look_idle(&self, key: u64, cx: &mut Context<'_>) -> bool {
        let waker = cx.waker().clone();
        let mut state = self.state.lock();
        let old = state.idle.insert(key, waker);
        let idle = self.in_flight.load(Ordering::SeqCst) == 0;
        drop(state);
        drop(old);
        idle
    }

    /// Forgets a [`super::WaitIdle`] that is done or dropped.
    pub(super) fn forget_idle_waiter(&self, key: u64) {
        self.idle_waiters.fetch_sub(1, Ordering::SeqCst);
        let waker = self.state.lock().idle.remove(&key);
        drop(waker);
    }
}

impl State {
    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Takes the waker of the head if it may start and was not woken yet.
    fn wake_granted_head(&mut self) -> Option<Waker> {
        let (_, head) = self.queue.iter_mut().next()?;
        head.granted.then(|| head.waker.take()).flatten()
    }

    /// Collects those who wait for an open gate with an empty queue, if it is so now.
    fn collect_opened(&mut self, after: &mut Aftermath) {
        if self.closed == 0 && self.queue.is_empty() {
            after
                .wake
                .extend(std::mem::take(&mut self.opened).into_values());
        }
    }
}
