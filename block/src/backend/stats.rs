//! A disk's accounting: counters by kind of request, and histograms of latencies for those who ask
//! for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::error::BlockError;

/// Kinds of guest requests that are accounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Reads.
    Read,
    /// Writes, those of zeroes included.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Unmap,
}

/// Counters of one kind of request.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes moved.
    pub bytes: AtomicU64,
    /// Requests that succeeded.
    pub operations: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
    /// Requests that were refused before they reached the medium: out of range, a write to a
    /// read-only disk, no medium.
    pub invalid: AtomicU64,
    /// Time from submission to completion, summed, in nanoseconds.
    pub total_time_ns: AtomicU64,
    latencies: ArcSwapOption<Latencies>,
    /// Whether there are any: most requests look no further. Changes with them.
    has_latencies: AtomicBool,
}

impl Counters {
    /// Counts a request that took `took` and succeeded.
    fn done(&self, bytes: u64, took: Duration) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.operations.fetch_add(1, Ordering::Relaxed);
        self.took(took);
    }

    /// Counts a request that took `took` and failed.
    fn failed(&self, took: Duration) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.took(took);
    }

    fn took(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.total_time_ns.fetch_add(took, Ordering::Relaxed);
        if self.has_latencies.load(Ordering::Acquire)
            && let Some(latencies) = &*self.latencies.load()
        {
            latencies.count(took);
        }
    }

    /// The histogram of latencies, if there is one.
    #[must_use]
    pub fn latencies(&self) -> Option<Arc<Latencies>> {
        self.latencies.load_full()
    }

    /// Begins a new histogram, or ends what there was.
    pub fn set_latencies(&self, latencies: Option<Latencies>) {
        let has_latencies = latencies.is_some();
        self.latencies.store(latencies.map(Arc::new));
        self.has_latencies.store(has_latencies, Ordering::Release);
    }
}

/// How many requests took how long, failed ones included.
#[derive(Debug)]
pub struct Latencies {
    boundaries: Vec<u64>,
    bins: Vec<AtomicU64>,
}

impl Latencies {
    /// An empty histogram whose intervals meet at `boundaries`, in nanoseconds: the first one
    /// begins at 0, the last one has no end. `None` if they are not ascending from above 0.
    #[must_use]
    pub fn new(boundaries: Vec<u64>) -> Option<Self> {
        let ascending = boundaries.windows(2).all(|pair| pair[0] < pair[1]);
        if boundaries.first().is_none_or(|first| *first == 0) || !ascending {
            return None;
        }
        let bins = (0..=boundaries.len()).map(|_| AtomicU64::new(0)).collect();
        Some(Self { boundaries, bins })
    }

    fn count(&self, took: u64) {
        let bin = self.boundaries.partition_point(|end| *end <= took);
        self.bins[bin].fetch_add(1, Ordering::Relaxed);
    }

    /// Where the intervals meet, in nanoseconds.
    #[must_use]
    pub fn boundaries(&self) -> &[u64] {
        &self.boundaries
    }

    /// The requests in each interval, one more than there are boundaries.
    #[must_use]
    pub fn bins(&self) -> Vec<u64> {
        let read = |bin: &AtomicU64| bin.load(Ordering::Relaxed);
        self.bins.iter().map(read).collect()
    }
}

/// Whether an error says that the request did not reach the medium.
fn is_invalid(error: &BlockError) -> bool {
    match error {
        BlockError::OutOfRange { .. } | BlockError::ReadOnly(_) => true,
        BlockError::Io(source) => source.raw_os_error() == Some(libc::ENOMEDIUM),
        _ => false,
    }
}

/// All counters of a backend; read them at any time.
#[derive(Debug, Default)]
pub struct BackendStats {
    kinds: [Counters; 4],
    /// When the last request ended, in nanoseconds on the disk's clock plus one; 0 before that.
    last_access: AtomicU64,
}

impl BackendStats {
    /// The counters of one kind.
    #[must_use]
    pub fn of(&self, kind: Account) -> &Counters {
        &self.kinds[kind as usize]
    }

    /// Counts a request that began at `began`, has ended `now` and succeeded.
    pub(super) fn done(&self, kind: Account, bytes: u64, began: Duration, now: Duration) {
        self.of(kind).done(bytes, now.saturating_sub(began));
        self.accessed(now);
    }

    /// Counts a request that has ended with `error`.
    pub(super) fn failed(&self, kind: Account, error: &BlockError, began: Duration, now: Duration) {
        if is_invalid(error) {
            self.invalid(kind, now);
            return;
        }
        self.of(kind).failed(now.saturating_sub(began));
        self.accessed(now);
    }

    /// Counts a request that did not reach the medium; it took no time.
    pub(super) fn invalid(&self, kind: Account, now: Duration) {
        self.of(kind).invalid.fetch_add(1, Ordering::Relaxed);
        self.accessed(now);
    }

    fn accessed(&self, now: Duration) {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.last_access
            .store(now.saturating_add(1), Ordering::Relaxed);
    }

    /// Time since the last request ended; none if there has been none.
    pub(super) fn idle_since(&self, now: Duration) -> Option<Duration> {
        let last = self.last_access.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_sub(Duration::from_nanos(last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_half_open_intervals() {
        let counters = Counters::default();
        counters.done(0, Duration::from_nanos(5));
        counters.set_latencies(Latencies::new(vec![10, 50, 100]));
        for took in [0, 9, 10, 49, 50, 100, 1 << 40] {
            counters.done(1, Duration::from_nanos(took));
        }
        counters.failed(Duration::from_nanos(99));
        let latencies = counters.latencies().unwrap();
        assert_eq!(latencies.boundaries(), [10, 50, 100]);
        assert_eq!(latencies.bins(), [2, 2, 2, 2]);
        assert_eq!(counters.operations.load(Ordering::Relaxed), 8);
        counters.set_latencies(None);
        assert!(counters.latencies().is_none());
    }

    #[test]
    fn boundaries_ascend_from_above_zero() {
        for bad in [vec![], vec![0], vec![0, 1], vec![2, 1], vec![1, 1]] {
            assert!(Latencies::new(bad.clone()).is_none(), "{bad:?}");
        }
        assert!(Latencies::new(vec![1]).is_some());
    }
}
