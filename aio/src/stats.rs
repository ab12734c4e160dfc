//! The histogram in which gates and event loops count durations and sizes.
//!
//! A plain value without atomics: gates count into one under their lock, and the counters of a loop
//! are copied into one for whoever asks. Any thread.

use std::time::Duration;

/// Counts of values by powers of two. The unit is that of the field which holds the histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; Self::BUCKETS],
}

impl Histogram {
    /// How many buckets there are; the last one also counts everything greater.
    pub const BUCKETS: usize = 32;

    /// The bucket that counts `value`, for those who count by themselves.
    #[must_use]
    pub fn bucket(value: u64) -> usize {
        let magnitude = (u64::BITS - value.leading_zeros()) as usize;
        magnitude.min(Self::BUCKETS - 1)
    }

    /// A histogram with these counts.
    #[must_use]
    pub fn from_counts(buckets: [u64; Self::BUCKETS]) -> Self {
        Self { buckets }
    }

    /// Counts one value.
    fn record(&mut self, value: u64) {
        self.buckets[Self::bucket(value)] += 1;
    }

    /// Counts a duration in a histogram of microseconds.
    pub fn record_micros(&mut self, duration: Duration) {
        self.record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Pairs of (upper bound, exclusive; count) of the buckets that are not empty.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(magnitude, count)| (1u64 << magnitude, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_by_powers_of_two() {
        let mut histogram = Histogram::default();
        for value in [0, 1, 2, 3, 4, 1000, u64::MAX] {
            histogram.record(value);
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(
            buckets,
            [(1, 1), (2, 1), (4, 2), (8, 1), (1024, 1), (1 << 31, 1)]
        );
    }
}
