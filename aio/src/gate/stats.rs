//! What a gate tells about its sections and the waits they caused (rule 12: visible).

use std::time::Duration;

use crate::stats::Histogram;

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
    /// How long they lasted, in microseconds.
    pub section_times: Histogram,
    /// Requests that were ever parked.
    pub parked: u64,
    /// Parked requests that gave up before they could start (cancelled, reset).
    pub abandoned: u64,
    /// The longest wait of a parked request, since the last reset of this figure.
    pub longest_wait: Duration,
    /// How long parked requests waited, in microseconds.
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
        self.section_times.record(micros(held));
    }

    pub(super) fn wait_ended(&mut self, waited: Duration) {
        self.longest_wait = self.longest_wait.max(waited);
        self.wait_times.record(micros(waited));
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
