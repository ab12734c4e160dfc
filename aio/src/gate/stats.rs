//! What a gate tells about its sections and the waits they caused (rule 12: visible).

use std::time::Duration;

/// Counts of durations by powers of two of a microsecond.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; Self::BUCKETS],
}

impl Histogram {
    const BUCKETS: usize = 32;

    /// Counts one duration.
    pub fn record(&mut self, value: Duration) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let magnitude = (u64::BITS - micros.leading_zeros()) as usize;
        self.buckets[magnitude.min(Self::BUCKETS - 1)] += 1;
    }

    /// Pairs of (upper bound in microseconds, exclusive; count) of the buckets that are not empty.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(magnitude, count)| (1u64 << magnitude, *count))
    }
}

/// Who holds a section open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The name given to [`super::Gate::close`].
    pub name: String,
    /// When the section began, on the gate's clock.
    pub since: Duration,
}

/// A snapshot of a gate's counters.
#[derive(Clone, Debug, Default)]
pub struct GateStats {
    /// Sections that have ended.
    pub sections: u64,
    /// The longest of them.
    pub longest_section: Duration,
    /// How long they lasted.
    pub section_times: Histogram,
    /// Requests that were ever parked.
    pub parked: u64,
    /// Parked requests that gave up before they could start (cancelled, reset).
    pub abandoned: u64,
    /// The longest wait of a parked request, since the last reset of this figure.
    pub longest_wait: Duration,
    /// How long parked requests waited.
    pub wait_times: Histogram,
    /// Sections open now.
    pub holders: Vec<Holder>,
    /// Requests parked now.
    pub parked_now: usize,
    /// Tokens out now.
    pub in_flight: usize,
}

impl GateStats {
    pub(super) fn section_ended(&mut self, held: Duration) {
        self.sections += 1;
        self.longest_section = self.longest_section.max(held);
        self.section_times.record(held);
    }

    pub(super) fn wait_ended(&mut self, waited: Duration) {
        self.longest_wait = self.longest_wait.max(waited);
        self.wait_times.record(waited);
    }
}
