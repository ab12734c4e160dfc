//! The external gate: the one mechanism under every drained section.
//!
//! A [`Gate`] stands before something that external sources want to use: a disk's backend, or all
//! external handlers of an event loop. A request *enters* and holds a [`Token`] until it has ended.
//! A drained section *closes* the gate and waits until no token is out; who comes while the gate is
//! closed is *postponed*: it waits in a queue and gets its token, in order, when the last section
//! ends.
//!
//! # The race and why it is lost by nobody
//! The uncontended path takes no lock. It writes one word and reads the other; so does the closer:
//!
//! * entering: `in_flight += 1`, then reads `barrier`; if it is not zero, the token goes back;
//! * closing: `barrier += 1`, then reads `in_flight`.
//!
//! With sequentially consistent order at least one of the two sees the other, so either the
//! newcomer waits or the closer waits for it. `barrier` counts the sections *and* the queued
//! waiters: while anybody is queued, a newcomer goes behind (first in, first out). All else happens
//! under one mutex that is never held across an await or a wake.
//!
//! # Opening
//! The opener takes the in-flight token of every waiter (*grants* it) before it wakes the first, so
//! that nobody who looks at the gate in between sees an idle disk with work pending
//! ([`Gate::wait_idle`]). A waiter starts only as head of the queue and only if its grant still
//! stands: a section that closes the gate before that takes the grants back, and the waiters keep
//! their places.
//!
//! # Threads
//! Everything here may be called from any thread. No method blocks or polls; waiting is a future.
//! Do not wait for a gate to be idle while holding one of its tokens.

#[cfg(all(test, loom))]
mod loom_tests;
mod stats;
#[cfg(all(test, not(loom)))]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::clock::Clock;
use crate::sync::{Arc, AtomicUsize, Mutex, MutexGuard, Ordering};
pub use stats::{GateStats, Histogram, Holder};

/// The gate was destroyed: what was parked is cancelled, nothing enters any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request was cancelled because its disk or its event loop went away")]
pub struct Cancelled;

/// A gate; clones are handles of the same one. See the [module](self).
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    clock: Clock,
    /// Tokens that are out, granted ones included.
    in_flight: AtomicUsize,
    /// Reasons for a newcomer to go to the queue: open sections, queued waiters, destruction.
    barrier: AtomicUsize,
    /// Futures that wait for `in_flight == 0`; the leaver looks here before it takes the lock.
    idle_waiters: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: usize,
    destroyed: bool,
    next_ticket: u64,
    queue: BTreeMap<u64, Waiter>,
    idle: BTreeMap<u64, Waker>,
    opened: BTreeMap<u64, Waker>,
    holders: BTreeMap<u64, Holder>,
    stats: GateStats,
}

#[derive(Debug)]
struct Waiter {
    waker: Waker,
    granted: bool,
    since: Duration,
}

/// Wakers collected under the lock and woken after it (rule 9).
type Wakes = Vec<Waker>;

impl Gate {
    /// A new open gate; `name` appears in diagnostics.
    #[must_use]
    pub fn new(name: impl Into<String>, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            name: name.into(),
            clock,
            in_flight: AtomicUsize::new(0),
            barrier: AtomicUsize::new(0),
            idle_waiters: AtomicUsize::new(0),
            state: Mutex::new(State::default()),
        }))
    }

    /// The name given at creation.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Takes a token, waiting in the queue while the gate is closed or others wait.
    ///
    /// Dropping the future leaves the queue. Fails only when the gate is destroyed.
    #[must_use = "futures do nothing unless polled"]
    pub fn enter(&self) -> Enter {
        Enter {
            gate: self.clone(),
            ticket: None,
            done: false,
        }
    }

    /// Takes a token if the gate is open and nobody is queued; never waits.
    ///
    /// For sources that have a queue of their own (a virtqueue): leave the work there and come back
    /// after [`Gate::opened`].
    #[must_use]
    pub fn try_enter(&self) -> Option<Token> {
        let inner = &*self.0;
        inner.in_flight.fetch_add(1, Ordering::SeqCst);
        let token = Token { gate: self.clone() };
        // A refused newcomer gives its token back by dropping it.
        (inner.barrier.load(Ordering::SeqCst) == 0).then_some(token)
    }

    /// Takes a token without looking whether the gate is closed.
    ///
    /// This breaks the promise of a drained section. It exists for the negative control that shows
    /// what the gate is for, and is built only with the feature `test-hooks`.
    #[cfg(any(test, feature = "test-hooks"))]
    pub fn enter_ignoring_sections(&self) -> Token {
        self.0.in_flight.fetch_add(1, Ordering::SeqCst);
        Token { gate: self.clone() }
    }

    /// Waits until the gate is open and its queue is empty; holds no place in the queue.
    #[must_use = "futures do nothing unless polled"]
    pub fn opened(&self) -> Opened {
        Opened {
            gate: self.clone(),
            key: None,
        }
    }

    /// Waits until no token is out, without closing the gate (the *settle* verb's half).
    #[must_use = "futures do nothing unless polled"]
    pub fn wait_idle(&self) -> WaitIdle {
        WaitIdle {
            gate: self.clone(),
            key: None,
        }
    }

    /// Closes the gate; dropping the guard opens it again. Sections nest by counting.
    ///
    /// On return nobody *new* can enter; await [`Gate::wait_idle`] for those already inside.
    /// `holder` says in diagnostics whose section this is.
    #[must_use = "dropping the guard ends the section at once"]
    pub fn close(&self, holder: &str) -> Closed {
        let inner = &*self.0;
        let mut wakes = Wakes::new();
        let mut state = inner.state.lock();
        state.closed += 1;
        inner.barrier.fetch_add(1, Ordering::SeqCst);
        let revoked = state.revoke_grants();
        inner.give_back(revoked, &mut state, &mut wakes);
        let key = state.ticket();
        let now = inner.clock.now();
        state.holders.insert(
            key,
            Holder {
                name: holder.to_owned(),
                since: now,
            },
        );
        drop(state);
        wake_all(wakes);
        Closed {
            gate: self.clone(),
            key,
        }
    }

    /// Whether a section is open on this gate right now.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.state.lock().closed > 0
    }

    /// Tokens that are out now, those granted to waiters that have not started included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::SeqCst)
    }

    /// Requests parked in the queue now.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.0.state.lock().queue.len()
    }

    /// Counters and the present holders, for queries; takes the lock for a moment.
    #[must_use]
    pub fn stats(&self) -> GateStats {
        let state = self.0.state.lock();
        let mut stats = state.stats.clone();
        stats.holders = state.holders.values().cloned().collect();
        stats.parked_now = state.queue.len();
        stats.in_flight = self.in_flight();
        stats
    }

    /// Forgets the longest wait seen so far, so that a following section can report its own.
    pub fn reset_longest_wait(&self) {
        self.0.state.lock().stats.longest_wait = Duration::ZERO;
    }

    /// Destroys the gate: everything parked is completed as [`Cancelled`], newcomers too.
    pub fn destroy(&self) {
        let inner = &*self.0;
        let mut wakes = Wakes::new();
        let mut state = inner.state.lock();
        if !state.destroyed {
            state.destroyed = true;
            inner.barrier.fetch_add(1, Ordering::SeqCst);
            let revoked = state.revoke_grants();
            inner.give_back(revoked, &mut state, &mut wakes);
            wakes.extend(state.queue.values().map(|waiter| waiter.waker.clone()));
            wakes.extend(std::mem::take(&mut state.opened).into_values());
        }
        drop(state);
        wake_all(wakes);
    }

    fn open(&self, key: u64) {
        let inner = &*self.0;
        let mut wakes = Wakes::new();
        let mut state = inner.state.lock();
        state.closed -= 1;
        inner.barrier.fetch_sub(1, Ordering::SeqCst);
        if let Some(holder) = state.holders.remove(&key) {
            let held = inner.clock.now().saturating_sub(holder.since);
            state.stats.section_ended(held);
        }
        if state.closed == 0 && !state.destroyed {
            for waiter in state.queue.values_mut() {
                waiter.granted = true;
                inner.in_flight.fetch_add(1, Ordering::SeqCst);
                wakes.push(waiter.waker.clone());
            }
            inner.collect_opened(&mut state, &mut wakes);
        }
        drop(state);
        wake_all(wakes);
    }
}

fn wake_all(wakes: Wakes) {
    for waker in wakes {
        waker.wake();
    }
}

impl Inner {
    /// Returns `count` tokens while the lock is held.
    fn give_back(&self, count: usize, state: &mut MutexGuard<'_, State>, wakes: &mut Wakes) {
        if count > 0 && self.in_flight.fetch_sub(count, Ordering::SeqCst) == count {
            wakes.extend(state.idle.values().cloned());
        }
    }

    /// Returns one token from outside the lock: the only thing a request's end costs.
    fn leave(&self) {
        if self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1
            && self.idle_waiters.load(Ordering::SeqCst) > 0
        {
            let wakes: Wakes = self.state.lock().idle.values().cloned().collect();
            wake_all(wakes);
        }
    }

    /// Collects those who wait for an open gate with an empty queue, if it is so now.
    fn collect_opened(&self, state: &mut MutexGuard<'_, State>, wakes: &mut Wakes) {
        if state.closed == 0 && state.queue.is_empty() {
            wakes.extend(std::mem::take(&mut state.opened).into_values());
        }
    }
}

impl State {
    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Takes back the tokens of waiters that have not started; they keep their places.
    fn revoke_grants(&mut self) -> usize {
        let mut revoked = 0;
        for waiter in self.queue.values_mut() {
            revoked += usize::from(std::mem::take(&mut waiter.granted));
        }
        revoked
    }

    /// The waker of the head, if it may start.
    fn granted_head(&self) -> Option<Waker> {
        self.queue
            .values()
            .next()
            .filter(|head| head.granted)
            .map(|head| head.waker.clone())
    }
}

/// The right to have one request in flight; dropping it is the request's end.
#[derive(Debug)]
#[must_use = "dropping the token ends the request"]
pub struct Token {
    gate: Gate,
}

impl Token {
    /// Whether this token was given out by `gate`.
    #[must_use]
    pub fn is_of(&self, gate: &Gate) -> bool {
        Arc::ptr_eq(&self.gate.0, &gate.0)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.gate.0.leave();
    }
}

/// One section on one gate; dropping it opens the gate unless other sections remain.
#[derive(Debug)]
pub struct Closed {
    gate: Gate,
    key: u64,
}

impl Closed {
    /// The gate this section closes.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.gate.open(self.key);
    }
}

/// Future of [`Gate::enter`].
#[derive(Debug)]
pub struct Enter {
    gate: Gate,
    ticket: Option<u64>,
    done: bool,
}

impl Future for Enter {
    type Output = Result<Token, Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let gate = self.gate.clone();
        match self.ticket {
            None => {
                if let Some(token) = gate.try_enter() {
                    self.done = true;
                    return Poll::Ready(Ok(token));
                }
                self.join_queue(&gate, cx)
            }
            Some(ticket) => self.look_again(&gate, ticket, cx),
        }
    }
}

impl Enter {
    /// Slow path of a newcomer: everything is decided under the lock.
    fn join_queue(&mut self, gate: &Gate, cx: &mut Context<'_>) -> Poll<Result<Token, Cancelled>> {
        let inner = &*gate.0;
        let mut state = inner.state.lock();
        if state.destroyed {
            self.done = true;
            return Poll::Ready(Err(Cancelled));
        }
        if state.closed == 0 && state.queue.is_empty() {
            // Closing takes this lock too, so the token cannot slip into a section.
            inner.in_flight.fetch_add(1, Ordering::SeqCst);
            self.done = true;
            return Poll::Ready(Ok(Token { gate: gate.clone() }));
        }
        // Open, but others wait: the place behind them is granted like theirs.
        let granted = state.closed == 0;
        if granted {
            inner.in_flight.fetch_add(1, Ordering::SeqCst);
        }
        let ticket = state.ticket();
        let since = inner.clock.now();
        state.queue.insert(
            ticket,
            Waiter {
                waker: cx.waker().clone(),
                granted,
                since,
            },
        );
        inner.barrier.fetch_add(1, Ordering::SeqCst);
        state.stats.parked += 1;
        drop(state);
        self.ticket = Some(ticket);
        Poll::Pending
    }

    fn look_again(
        &mut self,
        gate: &Gate,
        ticket: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Token, Cancelled>> {
        let inner = &*gate.0;
        let mut state = inner.state.lock();
        let destroyed = state.destroyed;
        let is_head = state.queue.keys().next() == Some(&ticket);
        let Some(waiter) = state.queue.get_mut(&ticket) else {
            // Polled again after completion.
            return Poll::Ready(Err(Cancelled));
        };
        let may_start = waiter.granted && is_head;
        if !may_start && !destroyed {
            waiter.waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let waited = inner.clock.now().saturating_sub(waiter.since);
        let granted = waiter.granted;
        let wakes = self.leave_queue(inner, state, ticket, Some(waited), false);
        wake_all(wakes);
        if destroyed || !granted {
            return Poll::Ready(Err(Cancelled));
        }
        Poll::Ready(Ok(Token { gate: gate.clone() }))
    }

    /// Removes this waiter; with `give_back` its granted token too. Returns who must be woken.
    fn leave_queue(
        &mut self,
        inner: &Inner,
        mut state: MutexGuard<'_, State>,
        ticket: u64,
        waited: Option<Duration>,
        give_back: bool,
    ) -> Wakes {
        let mut wakes = Wakes::new();
        self.done = true;
        if let Some(waiter) = state.queue.remove(&ticket) {
            inner.barrier.fetch_sub(1, Ordering::SeqCst);
            if give_back && waiter.granted {
                inner.give_back(1, &mut state, &mut wakes);
            }
        }
        match waited {
            Some(waited) => state.stats.wait_ended(waited),
            None => state.stats.abandoned += 1,
        }
        wakes.extend(state.granted_head());
        inner.collect_opened(&mut state, &mut wakes);
        wakes
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        if let (Some(ticket), false) = (self.ticket, self.done) {
            let gate = self.gate.clone();
            let state = gate.0.state.lock();
            let wakes = self.leave_queue(&gate.0, state, ticket, None, true);
            wake_all(wakes);
        }
    }
}

/// Future of [`Gate::opened`].
#[derive(Debug)]
pub struct Opened {
    gate: Gate,
    key: Option<u64>,
}

impl Future for Opened {
    type Output = Result<(), Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let gate = self.gate.clone();
        let mut state = gate.0.state.lock();
        if let Some(key) = self.key.take() {
            state.opened.remove(&key);
        }
        if state.destroyed {
            return Poll::Ready(Err(Cancelled));
        }
        if state.closed == 0 && state.queue.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let key = state.ticket();
        state.opened.insert(key, cx.waker().clone());
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.gate.0.state.lock().opened.remove(&key);
        }
    }
}

/// Future of [`Gate::wait_idle`].
#[derive(Debug)]
pub struct WaitIdle {
    gate: Gate,
    key: Option<u64>,
}

impl WaitIdle {
    fn unregister(&mut self, state: &mut State) {
        if let Some(key) = self.key.take() {
            state.idle.remove(&key);
            self.gate.0.idle_waiters.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Future for WaitIdle {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let gate = self.gate.clone();
        let mut state = gate.0.state.lock();
        self.unregister(&mut state);
        // Announce first, then look: the leaver does it the other way round.
        gate.0.idle_waiters.fetch_add(1, Ordering::SeqCst);
        let key = state.ticket();
        state.idle.insert(key, cx.waker().clone());
        self.key = Some(key);
        if gate.0.in_flight.load(Ordering::SeqCst) == 0 {
            self.unregister(&mut state);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for WaitIdle {
    fn drop(&mut self) {
        let gate = self.gate.clone();
        let mut state = gate.0.state.lock();
        self.unregister(&mut state);
    }
}
