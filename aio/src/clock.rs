//! The one source of time of the event loops and the gate.
//!
//! Nothing in `aio` or `block` reads the system's clock by itself: every loop is given a [`Clock`],
//! so that a simulation or the qtest machine can stand still and step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A monotonic clock that starts at zero. Cheap to clone; may be read from any thread.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Real(Instant),
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The system's monotonic clock, counted from now.
    #[must_use]
    pub fn real() -> Self {
        Self(Source::Real(Instant::now()))
    }

    /// A clock that moves only by [`Clock::advance`].
    #[must_use]
    pub fn manual() -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(0))))
    }

    /// Time since the clock's start.
    #[must_use]
    pub fn now(&self) -> Duration {
        match &self.0 {
            Source::Real(start) => start.elapsed(),
            Source::Manual(nanos) => Duration::from_nanos(nanos.load(Ordering::Acquire)),
        }
    }

    /// [`Clock::now`] as it was when it was first asked for in the loop's present step: all that happens in
    /// one step has one time, and costs one reading of the clock. That is the time of what the step found
    /// ready rather than of when each of it had its turn. Outside of a loop it is [`Clock::now`].
    #[cfg(not(loom))]
    #[must_use]
    pub fn now_in_step(&self) -> Duration {
        match &self.0 {
            Source::Real(start) => step::instant().saturating_duration_since(*start),
            Source::Manual(_) => self.now(),
        }
    }

    /// A time to take differences of, which costs less and is a few milliseconds old. It has nothing
    /// to do with [`Clock::now`]'s.
    #[cfg(not(loom))]
    pub(crate) fn coarse(&self) -> Duration {
        match &self.0 {
            Source::Real(_) => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
                // Neither is negative, and the second part is below a billion.
                let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
                Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), nanos)
            }
            Source::Manual(_) => self.now(),
        }
    }

    /// Moves a manual clock forward; returns false (and does nothing) for a real one.
    ///
    /// Loops that sleep on this clock must be notified afterwards
    /// ([`crate::AioContext::notify`]): they look at their timers at every turn.
    pub fn advance(&self, by: Duration) -> bool {
        match &self.0 {
            Source::Real(_) => false,
            Source::Manual(nanos) => {
                let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
                // Time stands still at the end of its range rather than beginning anew.
                let step = |nanos: u64| Some(nanos.saturating_add(by));
                nanos
                    .fetch_update(Ordering::AcqRel, Ordering::Acquire, step)
                    .is_ok()
            }
        }
    }

    /// Whether the clock moves only by [`Clock::advance`].
    #[cfg(not(loom))]
    pub(crate) fn is_manual(&self) -> bool {
        matches!(self.0, Source::Manual(_))
    }
}

/// The real time of the step that the thread's loop is in.
#[cfg(not(loom))]
pub(crate) mod step {
    use std::cell::Cell;
    use std::time::Instant;

    #[derive(Clone, Copy)]
    enum Step {
        /// The thread is in no step.
        Outside,
        /// Nobody has asked in this one.
        Unasked,
        At(Instant),
    }

    thread_local! {
        static STEP: Cell<Step> = const { Cell::new(Step::Outside) };
    }

    /// A step begins, or time has passed in it: the loop has slept.
    pub(crate) fn begin() {
        STEP.set(Step::Unasked);
    }

    /// The thread leaves its loop.
    pub(crate) fn leave() {
        STEP.set(Step::Outside);
    }

    pub(super) fn instant() -> Instant {
        match STEP.get() {
            Step::At(instant) => instant,
            Step::Outside => Instant::now(),
            Step::Unasked => {
                let now = Instant::now();
                STEP.set(Step::At(now));
                now
            }
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::real()
    }
}
