//! The event loops' clock, as devices read it.

use std::time::{SystemTime, UNIX_EPOCH};

use sluice_devices::clock::Clock;

/// One clock for loops and devices, so that qtest moves both; the time of day is the host's.
pub struct MachineClock(sluice_aio::Clock);

impl MachineClock {
    /// A view of `clock`.
    #[must_use]
    pub const fn new(clock: sluice_aio::Clock) -> Self {
        Self(clock)
    }
}

impl Clock for MachineClock {
    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.0.now().as_nanos()).unwrap_or(u64::MAX)
    }

    fn unix_seconds(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
        }
    }
}
