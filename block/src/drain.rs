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

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{Either, select};
use parking_lot::Mutex;
use sluice_aio::gate::{Closed, Holder};
use sluice_aio::{Clock, Gate, Histogram, current};

use crate::backend::{Backend, Unlimited};
use crate::driver::Background;
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::job::{Job, Quiesced};
use crate::node::Node;

mod begin;
mod kept;
mod waiting;

use begin::HeldUp;
pub(crate) use begin::begin_section;
pub use waiting::HeldUpSection;
pub(crate) use waiting::HeldUpSections;

/// How long a drain waits before it says for what; then twice as long, and so on. So long it holds guests for a job that
/// does not come to rest.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// What one section holds.
#[derive(Debug)]
pub(crate) struct SectionInner {
    holder: String,
    clock: Clock,
    began: Duration,
    /// The job whose section it is: it would wait for itself.
    own_job: Option<Arc<Job>>,
    /// Whether it waits for requests that jobs have left behind, which may never return.
    waits_for_left: bool,
    /// A job may have left requests behind that it covers.
    orphaned: Event,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    nodes: Vec<Arc<Node>>,
    /// The same by address, to find them.
    known: HashSet<usize>,
    backends: Vec<Covered>,
    jobs: Vec<(Arc<Job>, Quiesced)>,
    /// Nothing was in flight, and from then on nothing is.
    has_begun: bool,
}

impl Held {
    fn gates(&self) -> impl Iterator<Item = &Gate> {
        let closed = self.backends.iter().flat_map(|covered| &covered.closed);
        closed.map(Closed::gate)
    }
}

/// A disk in a section. The fields are dropped in this order: what the gate lets in finds the limits.
#[derive(Debug)]
struct Covered {
    _unlimited: Unlimited,
    closed: [Closed; 2],
    /// Not kept: it may be removed meanwhile.
    backend: Weak<Backend>,
}

impl Covered {
    fn is_busy(&self) -> bool {
        let gates = self.closed.iter().map(Closed::gate);
        gates.into_iter().any(|gate| gate.in_flight() > 0)
    }
}

impl Graph {
    /// The disks whose requests have not returned, for people.
    #[must_use]
    pub fn describe_busy_disks(&self) -> Vec<String> {
        let backends = self.backends();
        let gates = backends.iter().flat_map(|backend| backend.gates());
        let busy = gates.filter(|gate| gate.in_flight() > 0);
        busy.map(|gate| Busy::Gate(gate.clone()).to_string())
            .collect()
    }
}

/// What a section waits for.
enum Busy {
    Gate(Gate),
    Job(Arc<Job>),
    /// The work of a node's driver, or requests left behind.
    Driver(Arc<Node>, Arc<Background>),
}

impl Busy {
    async fn wait_idle(&self) {
        match self {
            Self::Gate(gate) => gate.wait_idle().await,
            Self::Job(job) => job.wait_idle().await,
            Self::Driver(_, work) => work.wait_idle().await,
        }
    }
}

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gate(gate) => {
                let requests = gate.in_flight();
                write!(f, "disk '{}' ({requests} requests in flight", gate.name())?;
                for line in gate.describe_in_flight() {
                    write!(f, "; {line}")?;
                }
                f.write_str(")")
            }
            Self::Job(job) => {
                write!(f, "{} job '{}'", job.kind().name(), job.id())?;
                // Guests' writes are said by themselves.
                let awaited = job.awaited();
                match awaited.iter().find(|request| !request.of_guest) {
                    Some(request) => write!(f, " ({request})"),
                    None => Ok(()),
                }
            }
            Self::Driver(node, _) => write!(f, "{} '{}'", node.driver_name(), node.name()),
        }
    }
}

impl SectionInner {
    pub(crate) fn new(holder: &str, own_job: Option<Arc<Job>>, clock: &Clock) -> Arc<Self> {
        Self::waiting(holder, own_job, clock, true)
    }

    /// One over everything but requests that jobs have left behind.
    pub(crate) fn without_what_was_left(holder: &str, clock: &Clock) -> Arc<Self> {
        Self::waiting(holder, None, clock, false)
    }

    fn waiting(
        holder: &str,
        own_job: Option<Arc<Job>>,
        clock: &Clock,
        waits_for_left: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            holder: holder.to_owned(),
            clock: clock.clone(),
            began: clock.now(),
            own_job,
            waits_for_left,
            orphaned: Event::new(),
            held: Mutex::default(),
        })
    }

    /// A job has left requests behind, maybe such as it waits for.
    pub(crate) fn tell_orphaned(&self) {
        self.orphaned.notify(usize::MAX);
    }

    /// What goes on at the node although nobody waits for it.
    fn work_at(&self, node: &Arc<Node>) -> Option<Busy> {
        let work = node.work(self.waits_for_left)?;
        Some(Busy::Driver(Arc::clone(node), Arc::clone(work)))
    }

    /// By what nodes know a section.
    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Notes that `node` is covered; false if it is already, and with it all that stands above.
    fn note(&self, node: &Arc<Node>) -> bool {
        let mut held = self.held.lock();
        let is_new = held.known.insert(Arc::as_ptr(node).addr());
        if is_new {
            held.nodes.push(Arc::clone(node));
        }
        is_new
    }

    /// Tells the driver of `node`, unless another section has done so and is still open.
    fn quiesce(&self, node: &Node) {
        let mut state = node.state.lock();
        state.covered_by.push(Cover {
            section: self.id(),
            holder: self.holder.clone(),
            since: self.clock.now(),
        });
        if state.covered_by.len() == 1 {
            node.driver().drained_begin();
        }
    }

    fn release(&self, node: &Node) {
        let mut state = node.state.lock();
        let id = self.id();
        let Some(index) = state
            .covered_by
            .iter()
            .position(|cover| cover.section == id)
        else {
            return;
        };
        let cover = state.covered_by.remove(index);
        let lasted = self.clock.now().saturating_sub(cover.since);
        state.past_sections.record(lasted);
        if state.covered_by.is_empty() {
            node.driver().drained_end();
        }
    }

    /// Covers `node` itself, once.
    pub(crate) fn cover_node(&self, node: &Arc<Node>) {
        if self.note(node) {
            self.quiesce(node);
        }
    }

    /// Closes the gates of `backend` for this section, once, and lifts its limits: the section waits
    /// for what they hold up.
    pub(crate) fn cover(&self, backend: &Arc<Backend>) {
        let gate = backend.gate();
        let mut held = self.held.lock();
        if !held.gates().any(|closed| closed.is_same(gate)) {
            held.backends.push(Covered {
                closed: backend.gates().map(|gate| gate.close(&self.holder)),
                _unlimited: backend.lift_limits(),
                backend: Arc::downgrade(backend),
            });
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
            let quiesced = job.quiesce();
            if held.has_begun {
                // It comes into an open section, and has not begun to work.
                quiesced.begin();
            }
            held.jobs.push((Arc::clone(job), quiesced));
        }
    }

    fn gates(&self) -> Vec<Gate> {
        self.held.lock().gates().cloned().collect()
    }

    /// The first that is busy.
    fn busy(&self) -> Option<Busy> {
        let held = self.held.lock();
        let gate = held.gates().find(|gate| gate.in_flight() > 0);
        if let Some(gate) = gate {
            return Some(Busy::Gate(gate.clone()));
        }
        let mut jobs = held.jobs.iter().map(|(job, _)| job);
        if let Some(job) = jobs.find(|job| job.is_busy()) {
            return Some(Busy::Job(Arc::clone(job)));
        }
        held.nodes.iter().find_map(|node| self.work_at(node))
    }

    /// All that are busy, for people.
    fn describe_busy(&self) -> String {
        let nodes: Vec<_> = {
            let held = self.held.lock();
            let nodes = held.nodes.iter();
            nodes.filter_map(|node| self.work_at(node)).collect()
        };
        let gates = self.gates().into_iter();
        let gates = gates.filter(|gate| gate.in_flight() > 0).map(Busy::Gate);
        let jobs = self.busy_jobs().into_iter().map(Busy::Job);
        let busy = gates.chain(jobs).chain(nodes).map(|busy| busy.to_string());
        let busy = busy.chain(self.describe_kept_writes());
        busy.collect::<Vec<_>>().join(", ")
    }

    /// Gives the bitmaps of nodes that are of another size that size.
    fn fit_bitmaps(&self) {
        let held = self.held.lock();
        for node in &held.nodes {
            node.io.bitmaps.fit(node);
        }
    }

    /// Tells the devices above of another size, each once.
    fn tell_sizes(&self) {
        let backends = {
            let held = self.held.lock();
            let covered = held.backends.iter();
            covered
                .filter_map(|covered| covered.backend.upgrade())
                .collect::<Vec<_>>()
        };
        for backend in backends {
            backend.tell_size();
        }
    }

    /// Begins, unless a job works again that could not rest for any longer. Until then such a one may.
    fn begin(&self) -> bool {
        let mut held = self.held.lock();
        held.has_begun = held.jobs.iter().all(|(_, quiesced)| quiesced.begin());
        if !held.has_begun {
            held.jobs
                .iter()
                .for_each(|(_, quiesced)| quiesced.put_off());
        }
        held.has_begun
    }

    /// One wait with one condition, evaluated afresh each time: nothing that is covered is busy.
    ///
    /// # Errors
    /// It may have to wait for ever; it has not begun.
    pub(crate) async fn wait_idle(&self) -> Result<(), HeldUp> {
        let mut patience = PATIENCE;
        let mut has_waited = false;
        loop {
            let orphaned = self.orphaned.listen();
            if let Some(orphans) = self.orphans() {
                return Err(orphans);
            }
            let Some(busy) = self.busy() else {
                if self.begin() {
                    break;
                }
                continue;
            };
            has_waited = true;
            tracing::debug!(holder = self.holder, waits_for = %busy, "draining");
            let idle = pin!(busy.wait_idle());
            let waited = self.clock.now().saturating_sub(self.began);
            let late = pin!(current::sleep(patience.saturating_sub(waited)));
            let idle = select(idle, orphaned);
            if let Either::Right(_) = select(idle, late).await {
                tracing::warn!(
                    holder = self.holder,
                    waited = ?self.clock.now().saturating_sub(self.began),
                    waits_for = self.describe_busy(),
                    "a drain takes long"
                );
                if let Busy::Job(job) = &busy {
                    return Err(HeldUp::Job(Arc::clone(job)));
                }
                patience *= 2;
            }
        }
        if has_waited {
            let waited = self.clock.now().saturating_sub(self.began);
            let nodes = self.held.lock().nodes.clone();
            for node in nodes {
                node.state.lock().past_sections.record_drain(waited);
            }
        }
        Ok(())
    }
}

impl Drop for SectionInner {
    /// Drivers first: what a gate lets in afterwards must find them as they usually are.
    fn drop(&mut self) {
        for node in std::mem::take(&mut self.held.get_mut().nodes) {
            self.release(&node);
        }
    }
}

/// A section over a node, as the node knows it.
#[derive(Debug)]
pub(crate) struct Cover {
    section: usize,
    holder: String,
    /// On the graph's clock.
    since: Duration,
}

/// Sections that have covered a node and ended.
#[derive(Clone, Debug, Default)]
pub struct PastSections {
    /// How many.
    pub count: u64,
    /// The longest.
    pub longest: Duration,
    /// How long they lasted, in microseconds.
    pub times: Histogram,
    /// The longest time that one, which may be open yet, waited for what was above the node.
    pub longest_drain: Duration,
    /// How long they waited, in microseconds; not those that had nothing to wait for.
    pub drain_times: Histogram,
}

impl PastSections {
    fn record(&mut self, lasted: Duration) {
        self.count += 1;
        self.longest = self.longest.max(lasted);
        self.times.record_micros(lasted);
    }

    fn record_drain(&mut self, waited: Duration) {
        self.longest_drain = self.longest_drain.max(waited);
        self.drain_times.record_micros(waited);
    }
}

impl Node {
    /// Who covers the node with a section now.
    #[must_use]
    pub fn drained_by(&self) -> Vec<Holder> {
        let state = self.state.lock();
        let holders = state.covered_by.iter().map(|cover| Holder {
            name: cover.holder.clone(),
            since: cover.since,
        });
        holders.collect()
    }

    /// The sections that have covered the node so far.
    #[must_use]
    pub fn past_sections(&self) -> PastSections {
        self.state.lock().past_sections.clone()
    }
}

/// A drained section; dropping it ends it. May be held across awaits and moved between threads.
#[derive(Debug)]
#[must_use = "dropping the section ends it"]
pub struct Section {
    inner: Arc<SectionInner>,
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
    pub(crate) fn new(inner: Arc<SectionInner>) -> Self {
        Self { inner }
    }

    /// Time since the drain was begun.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.inner.clock.now().saturating_sub(self.inner.began)
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

impl Drop for Section {
    /// Devices show the new size before the first request for it comes in.
    fn drop(&mut self) {
        self.inner.fit_bitmaps();
        self.inner.tell_sizes();
    }
}

/// Closes, for `section`, every gate that can send requests to `node`, then tells the drivers on
/// the way, from above. What is covered already is left out: whoever came above it since was
/// covered when it came.
pub(crate) fn cover_above(node: &Arc<Node>, section: &SectionInner) {
    if !section.note(node) {
        return;
    }
    for parent in node.parents() {
        match parent {
            Parent::Node(above) => {
                if let Some(above) = above.upgrade() {
                    cover_above(&above, section);
                }
            }
            Parent::Backend(backend) => {
                if let Some(backend) = backend.upgrade() {
                    section.cover(&backend);
                }
            }
            Parent::Job(job) => {
                if let Some(job) = job.upgrade() {
                    section.cover_job(&job);
                }
            }
            Parent::Claim(_) => {}
        }
    }
    section.quiesce(node);
}

/// Has `section` cover `node` and all above it, whatever comes there while it is open, too.
pub(crate) fn cover_from(node: &Arc<Node>, section: &Arc<SectionInner>) {
    enlist(&mut node.state.lock().sections, section);
    cover_above(node, section);
}

/// Puts `section` on a list of open ones, off which those go that have ended.
pub(crate) fn enlist(sections: &mut Vec<Weak<SectionInner>>, section: &Arc<SectionInner>) {
    sections.retain(|other| other.strong_count() > 0);
    sections.push(Arc::downgrade(section));
}

/// The open sections of `node` and of everything below it: they all close a new parent of `node`.
pub(crate) fn sections_at_or_below(node: &Arc<Node>) -> Vec<Arc<SectionInner>> {
    fn visit(node: &Arc<Node>, seen: &mut HashSet<usize>, found: &mut Vec<Arc<SectionInner>>) {
        if !seen.insert(Arc::as_ptr(node).addr()) {
            return;
        }
        {
            let mut state = node.state.lock();
            state.sections.retain(|section| section.strong_count() > 0);
            found.extend(state.sections.iter().filter_map(Weak::upgrade));
        }
        for (_, child) in node.children() {
            visit(&child, seen, found);
        }
    }
    let mut found = Vec::new();
    visit(node, &mut HashSet::new(), &mut found);
    found
}
