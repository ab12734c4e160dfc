//! The gate's word, its lock and the transitions between them.
//!
//! The word holds the number of tokens that are out and two flags. The flags change only under the
//! lock, to follow the lists that it protects; the number changes without it. Because all three
//! are one word, whoever changes the number learns the flags of that very moment.
//!
//! The handle types of [`super`], the futures of [`super::waiting`] and the tokens of
//! [`super::keep`] call in here, from any thread. Nothing in here blocks, and no foreign code runs
//! under the lock: a waker may do anything when it is woken *or dropped*, so both happen after it
//! ([`Aftermath`]).

use std::collections::BTreeMap;
use std::task::{Context, Waker};
use std::time::Duration;

use super::stats::{Describers, GateStats, Holder};
use crate::clock::Clock;
use crate::sync::{AtomicUsize, Mutex, Ordering};

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) name: String,
    pub(super) clock: Clock,
    /// Tokens that are out, granted ones included, and the flags [`BARRED`], [`IDLE_AWAITED`] and
    /// [`ORPHANED`].
    pub(super) word: AtomicUsize,
    pub(super) state: Mutex<State>,
}

/// Between the tickets of those who queue behind and those who queue before all others.
const MIDDLE: u64 = 1 << 63;

/// A newcomer must go to the queue: a section is open, others are queued, or the gate is destroyed.
const BARRED: usize = 1 << (usize::BITS - 1);

/// Somebody waits for the last token to come back: whoever brings it must wake them.
const IDLE_AWAITED: usize = 1 << (usize::BITS - 2);

/// No handle of the gate exists any more: the last token frees its memory ([`super::keep`]).
const ORPHANED: usize = 1 << (usize::BITS - 3);

/// The number of tokens in a value of the word.
const fn tokens(word: usize) -> usize {
    word & !(BARRED | IDLE_AWAITED | ORPHANED)
}

/// Returns one token unless it is the last one and that concerns somebody: all that the end of a
/// request costs. After a true answer the gate's memory may be gone; so this takes the word alone
/// ([`super::keep`]).
#[inline]
pub(super) fn leave_unnoticed(word: &AtomicUsize) -> bool {
    let leave = |word| {
        let concerns = tokens(word) == 1 && word & (IDLE_AWAITED | ORPHANED) != 0;
        (!concerns).then(|| word - 1)
    };
    let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
    word.fetch_update(success, failure, leave).is_ok()
}

/// The last handle goes; returns whether no token is out. After a false answer the gate's memory
/// may be gone.
pub(super) fn orphan(word: &AtomicUsize) -> bool {
    tokens(word.fetch_or(ORPHANED, Ordering::AcqRel)) == 0
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) closed: usize,
    destroyed: bool,
    /// [`BARRED`] is set.
    barred: bool,
    tickets: u64,
    /// How many of them were for places before all others.
    first_tickets: u64,
    pub(super) queue: BTreeMap<u64, Waiter>,
    /// A section has taken the head's grant back, and nobody has started since.
    passed_over: bool,
    pub(super) idle: BTreeMap<u64, IdleWaiter>,
    pub(super) opened: BTreeMap<u64, Unserved>,
    pub(super) holders: BTreeMap<u64, Holder>,
    pub(super) stats: GateStats,
    pub(super) describers: Describers,
}

#[derive(Debug)]
pub(super) struct Waiter {
    /// Taken when it is woken; its next poll brings a new one.
    waker: Option<Waker>,
    /// Its token is counted in `in_flight` already.
    granted: bool,
    pub(super) since: Duration,
}

/// A source with a queue of its own that waits for an open gate.
#[derive(Debug)]
pub(super) struct Unserved {
    waker: Waker,
    /// When it first had to wait.
    pub(super) since: Duration,
}

/// Somebody who waits until no token is out.
#[derive(Debug)]
pub(super) struct IdleWaiter {
    /// Taken when it is woken; its next poll brings a new one, or finds the gate idle.
    waker: Option<Waker>,
    pub(super) since: Duration,
}

/// How [`super::Opened`] waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    /// Its place in the list.
    pub(super) key: u64,
    since: Duration,
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
            word: AtomicUsize::new(0),
            state: Mutex::new(State::default()),
        }
    }

    /// Tokens that are out now.
    pub(super) fn in_flight(&self) -> usize {
        tokens(self.word.load(Ordering::Acquire))
    }

    /// Takes tokens; returns the word as it was. Sees what sections before it have done.
    #[inline]
    pub(super) fn take(&self, count: usize) -> usize {
        self.word.fetch_add(count, Ordering::AcqRel)
    }

    /// The uncontended way in: take a token, then look. A refused newcomer leaves again.
    #[inline]
    pub(super) fn try_enter(&self) -> bool {
        let admitted = self.take(1) & BARRED == 0;
        if !admitted {
            self.leave();
        }
        admitted
    }

    /// Returns one token for a caller who holds a handle; wakes those who waited for the last one.
    /// Returns whether it was the last token of an orphaned gate.
    pub(super) fn leave(&self) -> bool {
        let before = self.word.fetch_sub(1, Ordering::AcqRel);
        if tokens(before) == 1 && before & IDLE_AWAITED != 0 {
            let mut after = Aftermath::default();
            let mut state = self.state.lock();
            self.wake_idle(&mut state, &mut after);
            drop(state);
            after.run();
        }
        tokens(before) == 1 && before & ORPHANED != 0
    }

    /// Begins a section; returns the key that ends it.
    pub(super) fn close(&self, holder: &str) -> u64 {
        let mut after = Aftermath::default();
        let mut state = self.state.lock();
        state.closed += 1;
        self.follow(&mut state);
        let spared = usize::from(state.passed_over);
        self.revoke_grants(spared, &mut state, &mut after);
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
        if let Some(holder) = state.holders.remove(&key) {
            let held = self.clock.now().saturating_sub(holder.since);
            state.stats.section_ended(held);
        }
        if state.closed == 0 && !state.destroyed {
            for waiter in state.queue.values_mut().filter(|waiter| !waiter.granted) {
                waiter.granted = true;
                self.take(1);
                after.wake.extend(waiter.waker.take());
            }
            state.collect_opened(&mut after);
        }
        self.follow(&mut state);
        drop(state);
        after.run();
    }

    /// Ends the gate: whoever is parked or comes later is cancelled.
    pub(super) fn destroy(&self) {
        let mut after = Aftermath::default();
        let mut state = self.state.lock();
        if !state.destroyed {
            state.destroyed = true;
            self.follow(&mut state);
            self.revoke_grants(0, &mut state, &mut after);
            let parked = state.queue.values_mut();
            after.wake.extend(parked.filter_map(|w| w.waker.take()));
            after.wake.extend(state.take_unserved());
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
            self.take(1);
            return Step::Entered;
        }
        // Open, but others wait: the place behind them is granted like theirs.
        let granted = state.closed == 0;
        if granted {
            self.take(1);
        }
        let ticket = state.ticket();
        let since = self.clock.now();
        let waiter = Waiter {
            waker,
            granted,
            since,
        };
        state.queue.insert(ticket, waiter);
        self.follow(&mut state);
        state.stats.parked += 1;
        Step::Waits(ticket)
    }

    /// Who has been inside before goes before all who wait. None of them has started, or a section
    /// would have waited for it; so none is overtaken, and the section need not wait for a head
    /// that is none any more.
    pub(super) fn rejoin(&self, cx: &mut Context<'_>) -> Step {
        let mut after = Aftermath::default();
        let waker = Some(cx.waker().clone());
        let mut state = self.state.lock();
        if state.destroyed {
            return Step::Cancelled;
        }
        if state.closed == 0 {
            self.take(1);
            return Step::Entered;
        }
        self.revoke_grants(0, &mut state, &mut after);
        let ticket = state.first_ticket();
        let since = self.clock.now();
        let waiter = Waiter {
            waker,
            granted: false,
            since,
        };
        state.queue.insert(ticket, waiter);
        self.follow(&mut state);
        state.stats.parked += 1;
        drop(state);
        after.run();
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
        state.passed_over = false;
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
        state.passed_over &= !state.queue.is_empty();
        self.follow(state);
        after.retire = waiter.waker;
        after.wake.extend(state.wake_granted_head());
        state.collect_opened(after);
        waiter.granted
    }

    /// Takes back the tokens of the waiters behind the first `spared` that have not started; they
    /// keep their places.
    fn revoke_grants(&self, spared: usize, state: &mut State, after: &mut Aftermath) {
        let mut revoked = 0;
        for waiter in state.queue.values_mut().skip(spared) {
            revoked += usize::from(std::mem::take(&mut waiter.granted));
        }
        state.passed_over |= revoked > 0;
        state.stats.grants_taken_back += revoked as u64;
        self.give_back(revoked, state, after);
    }

    /// Returns `count` tokens while the lock is held.
    fn give_back(&self, count: usize, state: &mut State, after: &mut Aftermath) {
        if count > 0 && tokens(self.word.fetch_sub(count, Ordering::AcqRel)) == count {
            self.wake_idle(state, after);
        }
    }

    /// Collects everybody who waits for the last token to come back.
    fn wake_idle(&self, state: &mut State, after: &mut Aftermath) {
        self.word.fetch_and(!IDLE_AWAITED, Ordering::AcqRel);
        let waiters = state.idle.values_mut();
        after
            .wake
            .extend(waiters.filter_map(|waiter| waiter.waker.take()));
    }

    /// Makes [`BARRED`] say what the lists say.
    fn follow(&self, state: &mut State) {
        let barred = state.closed > 0 || state.destroyed || !state.queue.is_empty();
        if state.barred != barred {
            state.barred = barred;
            if barred {
                self.word.fetch_or(BARRED, Ordering::AcqRel);
            } else {
                self.word.fetch_and(!BARRED, Ordering::AcqRel);
            }
        }
    }

    /// One look of [`super::Opened`]; `waits` is the place it had in the list of those who wait, and since when
    /// it has been waiting. Returns [`Step::Entered`] if the gate is open.
    pub(super) fn look_opened(&self, waits: &mut Option<Waits>, cx: &mut Context<'_>) -> Step {
        let mut after = Aftermath::default();
        let waker = cx.waker().clone();
        let now = self.clock.now();
        let mut state = self.state.lock();
        let before = waits.take();
        let listed = before.and_then(|before| state.opened.remove(&before.key));
        after.retire = listed.map(|unserved| unserved.waker);
        let since = before.map_or(now, |before| before.since);
        let step = if state.destroyed {
            Step::Cancelled
        } else if state.closed == 0 && state.queue.is_empty() {
            state.stats.is_served(now.saturating_sub(since));
            Step::Entered
        } else {
            let key = state.ticket();
            state.opened.insert(key, Unserved { waker, since });
            *waits = Some(Waits { key, since });
            Step::Waits(key)
        };
        drop(state);
        after.run();
        step
    }

    /// Forgets a [`super::Opened`] that was dropped.
    pub(super) fn forget_opened(&self, key: u64) {
        let unserved = self.state.lock().opened.remove(&key);
        drop(unserved);
    }

    /// One look of [`super::WaitIdle`], which has `key` from the look before: the key under which
    /// it is woken when the last token comes back, or `None` if no token is out now.
    pub(super) fn look_idle(&self, key: Option<u64>, cx: &mut Context<'_>) -> Option<u64> {
        let mut after = Aftermath::default();
        let waker = cx.waker().clone();
        let mut state = self.state.lock();
        // Announcing and looking are one step: who leaves later sees the flag.
        let idle = tokens(self.word.fetch_or(IDLE_AWAITED, Ordering::AcqRel)) == 0;
        let key = key.unwrap_or_else(|| state.ticket());
        if idle {
            if let Some(waiter) = self.forget_idle(&mut state, key) {
                let waited = self.clock.now().saturating_sub(waiter.since);
                state.stats.drain_ended(waited);
                after.retire = waiter.waker;
            }
        } else {
            let now = self.clock.now();
            let waiter = state.idle.entry(key).or_insert(IdleWaiter {
                waker: None,
                since: now,
            });
            after.retire = waiter.waker.replace(waker);
        }
        drop(state);
        after.run();
        (!idle).then_some(key)
    }

    /// Forgets a [`super::WaitIdle`] that was dropped.
    pub(super) fn forget_idle_waiter(&self, key: u64) {
        let mut state = self.state.lock();
        let waiter = self.forget_idle(&mut state, key);
        drop(state);
        drop(waiter);
    }

    fn forget_idle(&self, state: &mut State, key: u64) -> Option<IdleWaiter> {
        let waiter = state.idle.remove(&key);
        if state.idle.values().all(|waiter| waiter.waker.is_none()) {
            self.word.fetch_and(!IDLE_AWAITED, Ordering::AcqRel);
        }
        waiter
    }
}

impl State {
    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        MIDDLE + self.tickets
    }

    /// A ticket before all that there are.
    fn first_ticket(&mut self) -> u64 {
        self.first_tickets += 1;
        MIDDLE - self.first_tickets
    }

    /// Takes the waker of the head if it may start and was not woken yet.
    fn wake_granted_head(&mut self) -> Option<Waker> {
        let (_, head) = self.queue.iter_mut().next()?;
        head.granted.then(|| head.waker.take()).flatten()
    }

    /// Collects those who wait for an open gate with an empty queue, if it is so now.
    fn collect_opened(&mut self, after: &mut Aftermath) {
        if self.closed == 0 && self.queue.is_empty() {
            after.wake.extend(self.take_unserved());
        }
    }

    /// The wakers of those who wait for an open gate, who look anew.
    fn take_unserved(&mut self) -> impl Iterator<Item = Waker> + use<> {
        let unserved = std::mem::take(&mut self.opened).into_values();
        unserved.map(|unserved| unserved.waker)
    }

    /// The longest that anybody outside has been waiting until `now`.
    pub(super) fn longest_wait(&self, now: Duration) -> Duration {
        let parked = self.queue.values().map(|waiter| waiter.since);
        let unserved = self.opened.values().map(|unserved| unserved.since);
        let first = parked.chain(unserved).min();
        first.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }
}
