//! [`Bucket`]: the leaky bucket that one rate is kept by.
//!
//! What a request takes is poured in; the bucket leaks at the average rate. A request has to wait
//! while the bucket holds more than it should: after a pause as much as that may pass at once, and
//! one request may overfill it, which those behind it wait for. With bursts there are two: a large
//! one (burst rate times length) that leaks at the average rate, and a small one that leaks at the
//! burst rate and bounds how fast the large one is filled.
//!
//! All arithmetic is exact: levels are counted in units times 10⁻⁹, so that a rate (units per
//! second) times a time (nanoseconds) needs no rounding.

use std::time::Duration;

use super::limits::Rate;

/// Level steps of one unit.
const NANO: u128 = 1_000_000_000;

/// Without bursts as much may pass at once as the average lets pass in this part of a second.
const SLICES_PER_SECOND: u128 = 10;

/// See the [module](self).
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    rate: Rate,
    /// In 10⁻⁹ units.
    level: u128,
    /// The small bucket of long bursts.
    burst_level: u128,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            level: 0,
            burst_level: 0,
        }
    }

    /// Lets leak what leaks in that time.
    pub(super) fn leak(&mut self, time: Duration) {
        let time = time.as_nanos();
        let leaked = u128::from(self.rate.average).saturating_mul(time);
        self.level = self.level.saturating_sub(leaked);
        let leaked = u128::from(self.rate.burst).saturating_mul(time);
        self.burst_level = self.burst_level.saturating_sub(leaked);
    }

    /// Pours in what a request takes, in 10⁻⁹ units.
    pub(super) fn pour(&mut self, amount: u128) {
        if self.rate.average == 0 {
            return;
        }
        self.level = self.level.saturating_add(amount);
        if self.rate.burst_seconds > 1 {
            self.burst_level = self.burst_level.saturating_add(amount);
        }
    }

    /// How long the next request has to wait.
    pub(super) fn wait(&self) -> Duration {
        let average = u128::from(self.rate.average);
        if average == 0 {
            return Duration::ZERO;
        }
        let burst = u128::from(self.rate.burst);
        if burst == 0 {
            return time_to_leak(self.level, average * NANO / SLICES_PER_SECOND, average);
        }
        let size = burst * u128::from(self.rate.burst_seconds) * NANO;
        let wait = time_to_leak(self.level, size, average);
        if !wait.is_zero() || self.rate.burst_seconds <= 1 {
            return wait;
        }
        time_to_leak(self.burst_level, burst * NANO / SLICES_PER_SECOND, burst)
    }
}

/// Time until a bucket of that level that leaks at `rate` holds no more than `size`.
fn time_to_leak(level: u128, size: u128, rate: u128) -> Duration {
    let nanos = level.saturating_sub(size).div_ceil(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// What `count` whole units pour in.
pub(super) fn units(count: u64) -> u128 {
    u128::from(count) * NANO
}

/// What a request of `bytes` pours into a bucket of operations, of which each moves up to `size`
/// bytes (any number, if 0).
pub(super) fn operations(bytes: u64, size: u64) -> u128 {
    if size == 0 || bytes <= size {
        return NANO;
    }
    u128::from(bytes) * NANO / u128::from(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(average: u64, burst: u64, burst_seconds: u32) -> Bucket {
        Bucket::new(Rate {
            average,
            burst,
            burst_seconds,
        })
    }

    /// Units that pass in `seconds` when one unit is asked for again and again.
    fn passes(mut bucket: Bucket, seconds: u64) -> u64 {
        let (mut now, mut passed) = (Duration::ZERO, 0);
        loop {
            let wait = bucket.wait();
            now += wait;
            if now >= Duration::from_secs(seconds) {
                return passed;
            }
            bucket.leak(wait);
            bucket.pour(units(1));
            passed += 1;
        }
    }

    #[test]
    fn the_average_is_kept_after_a_tenth_of_a_second_in_advance() {
        // 100 ms of 1000 at once and the one that overfills, then 1000 per second.
        assert_eq!(passes(rate(1000, 0, 1), 10), 10_000 + 100);
        let mut unlimited = rate(0, 0, 1);
        unlimited.pour(units(u64::MAX));
        assert!(unlimited.wait().is_zero());
    }

    #[test]
    fn a_burst_lasts_as_long_as_it_may() {
        // At once up to the burst of one second, then the average.
        assert_eq!(passes(rate(100, 1000, 1), 10), 1000 + 1000);
        // 1000 per second until the large bucket (5000) is full: it fills at 900 per second.
        assert_eq!(passes(rate(100, 1000, 5), 2), 2000 + 100);
        assert_eq!(passes(rate(100, 1000, 5), 20), 5000 + 2000);
    }

    #[test]
    fn one_request_may_overfill_and_the_next_one_pays() {
        let mut bucket = rate(1000, 0, 1);
        bucket.pour(units(10_000));
        assert_eq!(bucket.wait(), Duration::from_millis(9900));
        bucket.leak(Duration::from_millis(9900));
        assert_eq!(bucket.wait(), Duration::ZERO);
    }

    #[test]
    fn the_greatest_numbers_do_not_overflow() {
        let mut bucket = rate(1_000_000_000_000_000, 1_000_000_000_000_000, 1);
        for _ in 0..10 {
            bucket.pour(units(u64::MAX));
        }
        assert!(bucket.wait() > Duration::from_secs(1));
        bucket.leak(Duration::MAX);
        assert_eq!(bucket.wait(), Duration::ZERO);
    }

    #[test]
    fn a_large_request_is_several_operations() {
        assert_eq!(operations(4096, 0), NANO);
        assert_eq!(operations(1, 4096), NANO);
        assert_eq!(operations(6144, 4096), NANO * 3 / 2);
    }
}
