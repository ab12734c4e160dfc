//! The one source of time of the event loops and the gate.
//!
//! Nothing in `aio` or `block` reads the system's clock by itself: every loop is given a [`Clock`],
//! so that a simulation or the qtest machine can stand still and step.
mod manual;

#[cfg(not(loom))]
use std::pin::Pin;
use std::sync::Arc;
#[cfg(not(loom))]
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use manual::ManualClock;
#[cfg(not(loom))]
use manual::ManualSleep;

/// A monotonic clock that starts at zero. Cheap to clone; may be read from any thread.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Real(Instant),
    Manual(Arc<ManualClock>),
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
        Self(Source::Manual(Arc::default()))
    }

    /// Time since the clock's start.
    #[must_use]
    pub fn now(&self) -> Duration {
        match &self.0 {
            Source::Real(start) => start.elapsed(),
            Source::Manual(clock) => clock.now(),
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

    /// Moves a manual clock forward; returns false (and does nothing) for a real one. Wakes those who wait on it by
    /// [`Clock::sleep`].
    ///
    /// Loops that sleep on this clock must be notified afterwards
    /// ([`crate::AioContext::notify`]): they look at their timers at every turn.
    pub fn advance(&self, by: Duration) -> bool {
        match &self.0 {
            Source::Real(_) => false,
            Source::Manual(clock) => {
                clock.advance(by);
                true
            }
        }
    }

    /// Waits until so much time has passed on this clock, which need not be that of the loop the caller runs
    /// in. Call it in a task of a loop.
    #[cfg(not(loom))]
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> ClockSleep {
        ClockSleep(match &self.0 {
            Source::Real(_) => Sleeping::Real(crate::current::sleep(duration)),
            Source::Manual(clock) => Sleeping::Manual(clock.sleep(duration)),
        })
    }

    /// When the first of those who wait on a manual clock by [`Clock::sleep`] is to be woken.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        match &self.0 {
            Source::Real(_) => None,
            Source::Manual(clock) => clock.next_deadline(),
        }
    }

    /// Whether the clock moves only by [`Clock::advance`].
    #[cfg(not(loom))]
    pub(crate) fn is_manual(&self) -> bool {
        matches!(self.0, Source::Manual(_))
    }
}

/// Future of [`Clock::sleep`].
#[cfg(not(loom))]
#[derive(Debug)]
pub struct ClockSleep(Sleeping);

#[cfg(not(loom))]
#[derive(Debug)]
enum Sleeping {
    Real(crate::timer::Sleep),
    Manual(ManualSleep),
}

#[cfg(not(loom))]
impl Future for ClockSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Sleeping::Real(sleep) => Pin::new(sleep).poll(cx),
            Sleeping::Manual(sleep) => Pin::new(sleep).poll(cx),
        }
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
