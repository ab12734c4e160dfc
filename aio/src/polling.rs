//! Adaptive polling: how long a loop looks for work by itself before it sleeps.
//!
//! Sleeping costs a system call and, on most hosts, a switch and an interrupt before the loop runs
//! again: some microseconds. A loop that expects work sooner looks at what can be seen without the
//! kernel's help (its remote queue, the ring's completions, the handlers that can be asked) until
//! its *window* is over. The window follows the load: it grows while work comes soon after the
//! window, and shrinks when the loop slept long all the same. Names, defaults and the rule are
//! those of QEMU's `iothread` object.
//!
//! The figures may be changed from any thread at any time; the window belongs to the loop's thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The limits of a loop's polling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polling {
    /// The longest window; zero turns polling off. QEMU's `poll-max-ns`.
    pub max: Duration,
    /// The factor by which the window grows; 0 means 2. QEMU's `poll-grow`.
    pub grow: u64,
    /// The divisor by which it shrinks; 0 means to nothing at once. QEMU's `poll-shrink`.
    pub shrink: u64,
}

impl Polling {
    /// No polling.
    pub const OFF: Self = Self {
        max: Duration::ZERO,
        grow: 0,
        shrink: 0,
    };
}

/// [`Polling`] where the loop looks it up.
#[derive(Debug)]
pub(crate) struct SharedPolling {
    max: AtomicU64,
    grow: AtomicU64,
    shrink: AtomicU64,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl SharedPolling {
    pub(crate) fn new(limits: &Polling) -> Self {
        Self {
            max: AtomicU64::new(nanos(limits.max)),
            grow: AtomicU64::new(limits.grow),
            shrink: AtomicU64::new(limits.shrink),
        }
    }

    pub(crate) fn set(&self, limits: &Polling) {
        self.max.store(nanos(limits.max), Ordering::Relaxed);
        self.grow.store(limits.grow, Ordering::Relaxed);
        self.shrink.store(limits.shrink, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Polling {
        Polling {
            max: Duration::from_nanos(self.max.load(Ordering::Relaxed)),
            grow: self.grow.load(Ordering::Relaxed),
            shrink: self.shrink.load(Ordering::Relaxed),
        }
    }

    /// The longest window, in nanoseconds.
    pub(crate) fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    /// Whether the loop should poll at all.
    pub(crate) fn is_on(&self) -> bool {
        self.max() > 0
    }
}

/// The first window after none, in nanoseconds.
const FIRST: u64 = 4000;

/// The window, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Window(u64);

impl Window {
    /// For how long to poll now.
    pub(crate) fn length(&self, limits: &SharedPolling) -> u64 {
        self.0.min(limits.max())
    }

    /// Learns that work came `waited` nanoseconds after the loop had run out of it, polling
    /// included.
    pub(crate) fn learn(&mut self, limits: &SharedPolling, waited: u64) {
        let max = limits.max();
        self.0 = self.length(limits);
        if waited <= self.0 {
            // Just right.
        } else if waited > max {
            // Even the longest window would not have helped.
            let shrink = limits.shrink.load(Ordering::Relaxed);
            self.0 = self.0.checked_div(shrink).unwrap_or(0);
        } else {
            let grow = match limits.grow.load(Ordering::Relaxed) {
                0 => 2,
                grow => grow,
            };
            let grown = match self.0 {
                0 => FIRST,
                length => length.saturating_mul(grow),
            };
            self.0 = grown.min(max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max: u64, grow: u64, shrink: u64) -> SharedPolling {
        SharedPolling::new(&Polling {
            max: Duration::from_nanos(max),
            grow,
            shrink,
        })
    }

    /// The windows that a history of waits leads to.
    fn windows(limits: &SharedPolling, waits: &[u64]) -> Vec<u64> {
        let mut window = Window::default();
        waits
            .iter()
            .map(|waited| {
                window.learn(limits, *waited);
                window.length(limits)
            })
            .collect()
    }

    #[test]
    fn the_window_grows_while_work_comes_soon_after_it() {
        let limits = limits(32768, 0, 0);
        let waits = [20_000, 20_000, 20_000, 20_000, 20_000, 30_000];
        let expected = [4000, 8000, 16_000, 32_000, 32_000, 32_000];
        assert_eq!(windows(&limits, &waits), expected);
    }

    #[test]
    fn the_window_never_exceeds_the_maximum() {
        let limits = limits(10_000, 3, 0);
        assert_eq!(windows(&limits, &[9999; 3]), [4000, 10_000, 10_000]);
        let overflowing = self::limits(u64::MAX, u64::MAX, 0);
        assert_eq!(
            windows(&overflowing, &[10_000, 10_000]),
            [4000, u64::MAX],
            "no overflow"
        );
    }

    #[test]
    fn long_sleeps_shrink_it() {
        let to_nothing = limits(32768, 0, 0);
        assert_eq!(
            windows(&to_nothing, &[9000, 9000, 1_000_000]),
            [4000, 8000, 0]
        );
        let by_four = limits(32768, 0, 4);
        assert_eq!(
            windows(&by_four, &[9000, 9000, 1_000_000, 1_000_000]),
            [4000, 8000, 2000, 500]
        );
    }

    #[test]
    fn a_lower_maximum_counts_at_once() {
        let limits = limits(32768, 8, 0);
        let mut window = Window::default();
        window.learn(&limits, 20_000);
        window.learn(&limits, 20_000);
        assert_eq!(window.length(&limits), 32_000);
        limits.set(&Polling {
            max: Duration::from_nanos(100),
            grow: 8,
            shrink: 0,
        });
        assert_eq!(window.length(&limits), 100);
        limits.set(&Polling::OFF);
        assert_eq!(window.length(&limits), 0);
        assert!(!limits.is_on());
    }
}
