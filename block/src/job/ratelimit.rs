//! A limit in bytes per second, paid afterwards.
//!
//! Time is cut into slices of 100 ms with a quota each. The request that exceeds the quota is let
//! through; what it took too much delays those that follow. A pure value: the time is passed in.

use std::time::Duration;

/// Length of a slice.
const SLICE: Duration = Duration::from_millis(100);
/// Slices in a second.
const SLICES_PER_SECOND: u64 = 10;

/// A rate limit. `now` is the time since some fixed start and never runs backwards.
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// Bytes per second; 0: no limit.
    speed: u64,
    /// When the slice began that `spent` is counted from.
    start: Duration,
    spent: u64,
}

impl RateLimit {
    /// A limit of `speed` bytes per second from `now` on; 0: no limit.
    #[must_use]
    pub fn new(speed: u64, now: Duration) -> Self {
        Self {
            speed,
            start: now,
            spent: 0,
        }
    }

    /// The limit in bytes per second; 0: none.
    #[must_use]
    pub fn speed(&self) -> u64 {
        self.speed
    }

    /// Changes the limit; debts of the old one are forgiven.
    pub fn set_speed(&mut self, speed: u64, now: Duration) {
        *self = Self::new(speed, now);
    }

    /// Charges `bytes` that were transferred, or are about to be.
    pub fn charge(&mut self, bytes: u64, now: Duration) {
        self.delay(now);
        self.spent = self.spent.saturating_add(bytes);
    }

    /// How long to wait before the next transfer; zero: it may begin now.
    pub fn delay(&mut self, now: Duration) -> Duration {
        if self.speed == 0 {
            return Duration::ZERO;
        }
        let quota = (self.speed / SLICES_PER_SECOND).max(1);
        let owed = self.spent / quota;
        let slices = u32::try_from(owed.max(1)).unwrap_or(u32::MAX);
        let end = self.start.saturating_add(SLICE.saturating_mul(slices));
        if now >= end {
            self.start = now;
            self.spent %= quota;
        }
        if self.spent < quota {
            Duration::ZERO
        } else {
            end - now
        }
    }
}
