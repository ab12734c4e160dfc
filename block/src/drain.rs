//! Drained sections: exclusive access to a node, awaited and never polled.
//!
//! Whoever can send requests to a node stands above it: a backend, with the gate of its device's
//! requests, or a job, which rests at its next pause point. Draining a node closes every gate and
//! quiesces every job that can be reached upwards, waits until none of them has anything in flight,
//! and returns the [`Section`]; dropping it lets them all go on. What a gate's owner wants
//! meanwhile is postponed.
//!
//! A section belongs to the gates and jobs, not to the way by which they were found: the graph may
//! change under it. A root that is re-pointed inside the section stays closed until its end; a
//! parent that is attached above a drained node is closed at that moment, on the section's behalf.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_aio::gate::Closed;
use sluice_aio::{Clock, Gate};

use crate::job::{Job, Quiesced};
use crate::node::{Node, Parent};

/// What one section holds.
#[derive(Debug)]
pub(crate) struct SectionInner {
    holder: String,
    /// The job whose section it is: it would wait for itself.
    own_job: Option<Arc<Job>>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    gates: Vec<Closed>,
    jobs: Vec<(Arc<Job>, Quiesced)>,
}

impl SectionInner {
    pub(crate) fn new(holder: &str, own_job: Option<Arc<Job>>) -> Arc<Self> {
        Arc::new(Self {
            holder: holder.to_owned(),
            own_job,
            held: Mutex::default(),
        })
    }

    /// Closes `gate` for this section, once.
    pub(crate) fn cover(&self, gate: &Gate) {
        let mut held = self.held.lock();
        if !held.gates.iter().any(|closed| closed.gate().is_same(gate)) {
            held.gates.push(gate.close(&self.holder));
        }
    }

    /// Makes `job` rest for this section, once.
    pub(crate) fn cover_job(&self, job: &Arc<Job>) {
        if self
            .own_job
            .as_ref()
            .is_some_and(|own| Arc::ptr_eq(own, job))
        {
            return;
        }
        let mut held = self.held.lock();
        if !held.jobs.iter().any(|(other, _)| Arc::ptr_eq(other, job)) {
            held.jobs.push((Arc::clone(job), job.quiesce()));
        }
    }

    fn gates(&self) -> Vec<Gate> {
        self.held
            .lock()
            .gates
            .iter()
            .map(|closed| closed.gate().clone())
            .collect()
    }

    fn busy_gate(&self) -> Option<Gate> {
        self.gates().into_iter().find(|gate| gate.in_flight() > 0)
    }

    fn busy_job(&self) -> Option<Arc<Job>> {
        self.held
            .lock()
            .jobs
            .iter()
            .map(|(job, _)| job)
            .find(|job| job.is_busy())
            .cloned()
    }

    /// One wait with one condition, evaluated afresh each time: nothing that is covered is busy.
    pub(crate) async fn wait_idle(&self) {
        loop {
            if let Some(gate) = self.busy_gate() {
                tracing::debug!(holder = self.holder, waits_for = gate.name(), "draining");
                gate.wait_idle().await;
            } else if let Some(job) = self.busy_job() {
                tracing::debug!(holder = self.holder, waits_for = job.id(), "draining");
                job.wait_idle().await;
            } else {
                return;
            }
        }
    }
}

/// A drained section; dropping it ends it. May be held across awaits and moved between threads.
#[derive(Debug)]
#[must_use = "dropping the section ends it"]
pub struct Section {
    inner: Arc<SectionInner>,
    clock: Clock,
    began: Duration,
}

/// What a section has held back so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldBack {
    /// Requests parked in its gates, and queues that were left unserved.
    pub requests: u64,
    /// The longest wait among the parked, up to now.
    pub longest_wait: Duration,
}

impl Section {
    pub(crate) fn new(inner: Arc<SectionInner>, clock: Clock, began: Duration) -> Self {
        Self {
            inner,
            clock,
            began,
        }
    }

    /// Time since the drain was begun.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.clock.now().saturating_sub(self.began)
    }

    /// What waits for this section's end now.
    #[must_use]
    pub fn held_back(&self) -> HeldBack {
        let mut sum = HeldBack::default();
        for gate in self.inner.gates() {
            let (requests, longest) = gate.waiting();
            sum.requests += requests;
            sum.longest_wait = sum.longest_wait.max(longest);
        }
        sum
    }
}

/// Closes, for `section`, every gate that can send requests to `node`.
pub(crate) fn cover_above(node: &Arc<Node>, section: &SectionInner) {
    for parent in node.parents() {
        match parent {
            Parent::Node(above) => {
                if let Some(above) = above.upgrade() {
                    cover_above(&above, section);
                }
            }
            Parent::Backend(backend) => {
                if let Some(backend) = backend.upgrade() {
                    section.cover(backend.gate());
                }
            }
            Parent::Job(job) => {
                if let Some(job) = job.upgrade() {
                    section.cover_job(&job);
                }
            }
        }
    }
}

/// Puts `section` on a list of open ones, off which those go that have ended.
pub(crate) fn enlist(sections: &mut Vec<Weak<SectionInner>>, section: &Arc<SectionInner>) {
    sections.retain(|other| other.strong_count() > 0);
    sections.push(Arc::downgrade(section));
}

/// The open sections of `node` and of everything below it: they all close a new parent of `node`.
pub(crate) fn sections_at_or_below(node: &Node) -> Vec<Arc<SectionInner>> {
    let mut sections: Vec<_> = {
        let mut state = node.state.lock();
        state.sections.retain(|section| section.strong_count() > 0);
        state.sections.iter().filter_map(Weak::upgrade).collect()
    };
    for (_, child) in node.children() {
        sections.extend(sections_at_or_below(&child));
    }
    sections
}
