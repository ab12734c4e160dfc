//! The clocks devices read. Under KVM they are the host's; under qtest the test moves them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A source of time. Any thread.
pub trait Clock: Send + Sync {
    /// Nanoseconds since some fixed moment before the machine was made; never goes back.
    fn monotonic_ns(&self) -> u64;

    /// Seconds since 1970-01-01 00:00:00 UTC; may jump when the host's clock is set.
    fn unix_seconds(&self) -> i64;
}

/// The host's clocks.
pub struct HostClock {
    started: Instant,
}

impl HostClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn unix_seconds(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
        }
    }
}
