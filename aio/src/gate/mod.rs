//! The external gate: the one mechanism under every drained section.
//!
//! A [`Gate`] stands before something that external sources want to use: a disk's backend, or all
//! external handlers of an event loop. A request *enters* and holds a [`Token`] until it has ended.
//! A drained section *closes* the gate and waits until no token is out; who comes while the gate is
//! closed is *postponed*: it waits in a queue and gets its token, in order, when the last section
//! ends.
//!
//! # The race and why it is lost by nobody
//! The uncontended path takes no lock. The number of tokens and the flag that sends newcomers to the
//! queue share one atomic word:
//!
//! * entering takes a token and learns the flag, in one step; if it is set, the token goes back;
//! * closing sets the flag and then looks at the number.
//!
//! One of the two comes first in the order of the word's changes, so either the newcomer waits or
//! the closer waits for it. The flag is set while sections are open *and* while anybody is queued:
//! a newcomer goes behind (first in, first out). Leaving is one step too: the last token's return
//! learns from the same word whether somebody waits for it. All else happens under one mutex that
//! is never held across an await or a wake.
//!
//! # Opening
//! The opener takes the in-flight token of every waiter (*grants* it) before it wakes the first, so
//! that nobody who looks at the gate in between sees an idle disk with work pending
//! ([`Gate::wait_idle`]). A waiter starts only as head of the queue and only if its grant still
//! stands: a section that closes the gate before that takes the grants back, and the waiters keep
//! their places. It does so once: if the head has been passed over like this and nobody has started
//! since, the next section leaves it its grant and waits for it like for any request in flight. So
//! a parked request waits for two sections at most before the first of the queue starts.
//!
//! # Example
//! ```
//! use sluice_aio::{Clock, EventLoop, Gate, LoopConfig, current};
//!
//! let gate = Gate::new("disk0", Clock::real());
//! let section = gate.close("an example");
//! assert!(gate.try_enter().is_none());
//!
//! let mut event_loop = EventLoop::new("main", &LoopConfig::default())?;
//! event_loop.run_until(async move {
//!     let postponed = current::spawn_local(gate.enter());
//!     current::yield_now().await;
//!     assert_eq!(gate.parked(), 1);
//!     drop(section);
//!     let token = postponed.await.expect("the task ran").expect("the gate lives");
//!     assert!(token.is_of(&gate));
//! })?;
//! # Ok::<(), sluice_aio::LoopError>(())
//! ```
//!
//! # Threads
//! Everything here may be called from any thread. No method blocks or polls; waiting is a future.
//! Do not wait for a gate to be idle while holding one of its tokens. Poll or drop what
//! [`Gate::enter`] returns: a section may have to wait for it.

mod keep;
#[cfg(loom)]
#[cfg(test)]
mod loom_tests;
mod mechanism;
mod stats;
#[cfg(not(loom))]
#[cfg(test)]
mod tests;
mod waiting;

use std::sync::Weak;
use std::time::Duration;

use crate::clock::Clock;
use crate::sync::Arc;
use keep::{Owner, Pass};
use mechanism::Inner;
pub use stats::{Describe, GateStats, Holder};
pub use waiting::{Enter, Opened, WaitIdle};

/// The gate was destroyed: what was parked is cancelled, nothing enters any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request was cancelled because its disk or its event loop went away")]
pub struct Cancelled;

/// A gate; clones are handles of the same one. See the [module](self).
#[derive(Clone, Debug)]
pub struct Gate(Arc<Owner>);

impl Gate {
    /// A new open gate; `name` appears in diagnostics.
    #[must_use]
    pub fn new(name: impl Into<String>, clock: Clock) -> Self {
        Self(Arc::new(Owner::new(Inner::new(name.into(), clock))))
    }

    /// The name given at creation.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Takes a token, waiting in the queue while the gate is closed or others wait.
    ///
    /// The gate is looked at once right here: if it is open, the request is in flight from now on
    /// and the future is ready. If not, the place in the queue is that of the first poll. Dropping
    /// the future leaves the queue. Fails only when the gate is destroyed.
    #[inline]
    #[must_use = "dropping the future gives up the place"]
    pub fn enter(&self) -> Enter {
        Enter::new(self)
    }

    /// Takes a token for a request that has been inside before and had to leave unfinished: its
    /// place is before all who wait, from the first poll on. Of several the last goes first.
    #[must_use = "dropping the future gives up the place"]
    pub fn enter_again(&self) -> Enter {
        Enter::again(self)
    }

    /// Takes a token if the gate is open and nobody is queued; never waits.
    ///
    /// For sources that have a queue of their own (a virtqueue): leave the work there and come back
    /// after [`Gate::opened`].
    #[inline]
    #[must_use]
    pub fn try_enter(&self) -> Option<Token> {
        self.0.try_enter().then(|| self.token())
    }

    /// Takes a token without looking whether the gate is closed.
    ///
    /// This breaks the promise of a drained section. It exists for the negative control that shows
    /// what the gate is for, and is built only with the feature `test-hooks`.
    #[cfg(any(test, feature = "test-hooks"))]
    pub fn enter_ignoring_sections(&self) -> Token {
        self.0.take(1);
        self.token()
    }

    /// The token that was just counted.
    fn token(&self) -> Token {
        Token(self.0.pass())
    }

    /// Waits until the gate is open and its queue is empty; holds no place in the queue.
    ///
    /// Fails only when the gate is destroyed.
    #[must_use = "futures do nothing unless polled"]
    pub fn opened(&self) -> Opened {
        Opened::new(self.clone())
    }

    /// Waits until no token is out, without closing the gate (the *settle* verb's half).
    #[must_use = "futures do nothing unless polled"]
    pub fn wait_idle(&self) -> WaitIdle {
        WaitIdle::new(self.clone())
    }

    /// Closes the gate; dropping the guard opens it again. Sections nest by counting.
    ///
    /// On return nobody *new* can enter; await [`Gate::wait_idle`] for those already inside.
    /// `holder` says in diagnostics whose section this is.
    #[must_use = "dropping the guard ends the section at once"]
    pub fn close(&self, holder: &str) -> Closed {
        let key = self.0.close(holder);
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
        self.0.in_flight()
    }

    /// Requests parked in the queue now.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.0.state.lock().queue.len()
    }

    /// Who waits now: parked requests and sources that wait for [`Gate::opened`], and the longest that any of
    /// them has been waiting.
    #[must_use]
    pub fn waiting(&self) -> (u64, Duration) {
        let now = self.0.clock.now();
        let state = self.0.state.lock();
        let count = (state.queue.len() + state.opened.len()) as u64;
        (count, state.longest_wait(now))
    }

    /// Whether both are handles of the same gate.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Counters, and what is going on now; takes the lock for a moment.
    #[must_use]
    pub fn stats(&self) -> GateStats {
        let now = self.0.clock.now();
        let state = self.0.state.lock();
        let mut stats = state.stats.clone();
        stats.holders = state.holders.values().cloned().collect();
        stats.parked_now = state.queue.len();
        stats.longest_wait_now = state.longest_wait(now);
        stats.unserved_now = state.opened.len();
        stats.in_flight = self.in_flight();
        stats.awaited_since = state.idle.values().map(|waiter| waiter.since).min();
        stats
    }

    /// Adds one who can say what this gate's tokens are out for. It is asked as long as it lives.
    pub fn add_describer(&self, describer: Weak<dyn Describe>) {
        self.0.state.lock().describers.add(describer);
    }

    /// What the tokens that are out are out for, as far as anybody can say: a line for each
    /// request. For a drain that takes long, and for queries.
    #[must_use]
    pub fn describe_in_flight(&self) -> Vec<String> {
        let describers = self.0.state.lock().describers.alive();
        // They may take locks of their own (rule 9).
        let lines = describers.iter().flat_map(|one| one.in_flight(self));
        lines.collect()
    }

    /// Destroys the gate: everything parked is completed as [`Cancelled`], newcomers too.
    ///
    /// Tokens that are out stay valid, and sections can still wait for them.
    pub fn destroy(&self) {
        self.0.destroy();
    }
}

/// The right to have one request in flight; dropping it is the request's end.
///
/// Keeps the gate alive, and may be dropped in any thread.
#[derive(Debug)]
#[must_use = "dropping the token ends the request"]
pub struct Token(Pass);

impl Token {
    /// Whether this token was given out by `gate`.
    #[must_use]
    pub fn is_of(&self, gate: &Gate) -> bool {
        gate.0.issued(&self.0)
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
        self.gate.0.open(self.key);
    }
}
