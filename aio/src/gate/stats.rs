//! What a gate tells about its sections, the waits they caused and what they wait for themselves
//! (rule 12: visible).

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Gate;
use crate::stats::Histogram;

/// Who holds a section open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The name given to [`super::Gate::close`].
    pub name: String,
    /// When the section began, on the gate's clock.
    pub since: Duration,
}

/// Somebody who holds tokens of a gate and can say what for: a device.
pub trait Describe: Send + Sync {
    /// A line for each of its requests that hold tokens of `gate` now, or for all of a kind. Called
    /// in any thread, without a lock of the gate.
    fn in_flight(&self, gate: &Gate) -> Vec<String>;
}

/// Those who can say what a gate's tokens are out for.
#[derive(Default)]
pub(super) struct Describers(Vec<Weak<dyn Describe>>);

impl Describers {
    pub(super) fn add(&mut self, describer: Weak<dyn Describe>) {
        self.0.retain(|other| other.strong_count() > 0);
        self.0.push(describer);
    }

    pub(super) fn alive(&self) -> Vec<Arc<dyn Describe>> {
        self.0.iter().filter_map(Weak::upgrade).collect()
    }
}

impl std::fmt::Debug for Describers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Describers({})", self.0.len())
    }
}

/// A snapshot of a gate's counters. Points in time are on the gate's clock.
#[derive(Clone, Debug, Default)]
pub struct GateStats {
    /// Sections that have ended.
    pub sections: u64,
    /// The longest of them.
    pub longest_section: Duration,
    /// How long they lasted, in microseconds.
    pub section_times: Histogram,
    /// How long those waited who waited for the last token and had to, in microseconds: sections
    /// for the requests in flight, devices that settle.
    pub drain_times: Histogram,
    /// The longest of these waits.
    pub longest_drain: Duration,
    /// Requests that were ever parked.
    pub parked: u64,
    /// Parked requests that gave up before they could start (cancelled, reset).
    pub abandoned: u64,
    /// The longest wait that has ended, of a parked request or of a queue that was left unserved.
    pub longest_wait: Duration,
    /// How long parked requests waited, in microseconds.
    pub wait_times: Histogram,
    /// Tokens taken back from parked requests by a section that began before they could start.
    pub grants_taken_back: u64,
    /// Sections open now.
    pub holders: Vec<Holder>,
    /// Requests parked now.
    pub parked_now: usize,
    /// Sources with a queue of their own that leave it unserved now.
    pub unserved_now: usize,
    /// The longest that any of both has been waiting so far.
    pub longest_wait_now: Duration,
    /// Tokens out now, those granted to parked requests that have not started included.
    pub in_flight: usize,
    /// Since when somebody has been waiting for the last of them to come back.
    pub awaited_since: Option<Duration>,
}

impl GateStats {
    pub(super) fn section_ended(&mut self, held: Duration) {
        self.sections += 1;
        self.longest_section = self.longest_section.max(held);
        self.section_times.record_micros(held);
    }

    pub(super) fn drain_ended(&mut self, waited: Duration) {
        self.longest_drain = self.longest_drain.max(waited);
        self.drain_times.record_micros(waited);
    }

    /// A queue is served again that was left alone for so long.
    pub(super) fn is_served(&mut self, waited: Duration) {
        self.longest_wait = self.longest_wait.max(waited);
    }

    pub(super) fn wait_ended(&mut self, waited: Duration) {
        self.longest_wait = self.longest_wait.max(waited);
        self.wait_times.record_micros(waited);
    }
}
