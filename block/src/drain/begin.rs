//! How a section begins: whoever is covered is kept out at once, and what is in flight awaited.
//!
//! Some of that may never end: requests whose job has ended without them, or a job whose target hangs, which can't rest. A section waits
//! for that too, but holds nobody meanwhile: for requests without a job from the start, for a job when it has taken a while.
//! The job is to rest all the time. When that has ended the section covers all of it anew, as the graph is then.

use std::sync::Arc;

use super::{Section, SectionInner};
use crate::driver::Background;
use crate::graph::Graph;
use crate::job::{Job, Quiesced};
use crate::node::Node;

/// What keeps a section from its beginning, perhaps for ever.
pub(crate) enum HeldUp {
    /// Requests to a node whose job has ended without them.
    Orphans(Arc<Node>, Arc<Background>),
    /// A job that does not come to rest.
    Job(Arc<Job>),
}

impl HeldUp {
    /// Keeps a job at rest when it has come to that.
    fn rest(&self) -> Option<Quiesced> {
        match self {
            Self::Orphans(..) => None,
            Self::Job(job) => Some(job.quiesce()),
        }
    }

    /// Waits until it is worth another try.
    pub(crate) async fn wait_idle(&self) {
        match self {
            Self::Orphans(_, requests) => requests.wait_idle().await,
            Self::Job(job) => job.wait_idle().await,
        }
    }
}

impl std::fmt::Display for HeldUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Orphans(node, _) => {
                let node = node.name();
                write!(f, "requests to '{node}' whose job has ended without them")
            }
            Self::Job(job) => {
                let name = job.kind().named(job.id());
                let way_out = match job.ways_to_end() {
                    Some(_) => "can be cancelled",
                    None => "is ending already",
                };
                write!(f, "{name} to rest, which {way_out}")
            }
        }
    }
}

impl SectionInner {
    /// The first node with requests whose job has ended.
    pub(super) fn orphans(&self) -> Option<HeldUp> {
        if !self.waits_for_left {
            return None;
        }
        let held = self.held.lock();
        let mut nodes = held.nodes.iter();
        let node = nodes.find(|node| node.orphaned().running() > 0)?;
        Some(HeldUp::Orphans(
            Arc::clone(node),
            Arc::clone(node.orphaned()),
        ))
    }

    /// The jobs that do not rest yet.
    pub(crate) fn busy_jobs(&self) -> Vec<Arc<Job>> {
        let held = self.held.lock();
        let jobs = held.jobs.iter().map(|(job, _)| job);
        jobs.filter(|job| job.is_busy()).cloned().collect()
    }
}

/// Begins a section of that holder over what `cover` has it cover. Waits for what is in flight there.
pub(crate) async fn begin_section(
    graph: &Graph,
    holder: &str,
    own_job: Option<Arc<Job>>,
    cover: impl Fn(&Arc<SectionInner>),
) -> Section {
    let wanted = graph.clock().now();
    let mut resting = Vec::new();
    loop {
        let section = SectionInner::new(holder, own_job.clone(), graph.clock());
        cover(&section);
        let Err(held_up) = section.wait_idle().await else {
            return Section::new(section);
        };
        resting.extend(held_up.rest());
        let held_up = Arc::new(held_up);
        let _shown = graph.held_up.show(&section, wanted, &held_up);
        drop(section);
        tracing::warn!(
            holder,
            waits_for = %held_up,
            "a drain can't begin, and holds nobody meanwhile"
        );
        held_up.wait_idle().await;
    }
}
