//! Everything comes to rest: before the machine stands still, and before the program ends.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, join_all, select};
use sluice_aio::current;

use super::Graph;
use super::home::MAIN_NODE;
use super::parent::Parent;
use crate::drain::{PATIENCE as MOMENT, Section, SectionInner};
use crate::driver::Role;
use crate::error::Result;
use crate::job::{Job, PATIENCE};
use crate::node::Node;

/// A target whose job has ended without it: requests to it have not returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftTarget {
    /// The node.
    pub node: String,
    /// Who keeps it, for people: the job's kind and id, and why.
    pub holder: String,
}

impl std::fmt::Display for LeftTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node '{}' of {}", self.node, self.holder)
    }
}

impl Graph {
    /// Waits until nothing is on its way anywhere, and makes durable what was written. From now on no request of
    /// a guest begins until [`resume`](Self::resume): what is parked at a gate by somebody else's section stays there when that ends.
    ///
    /// Targets that jobs have [ended without](crate::job::JobRegistry::shut_down) are left out, and returned: nobody knows
    /// whether their requests ever return, and no disk has to do with them. So are, but for the list, those of jobs that work
    /// and do not come to rest: they go on, and see to their targets themselves. Nodes that stand below no disk, and the
    /// backing images that such jobs share with disks, are flushed, but for no longer than ten seconds. A node that can't
    /// be flushed, or not in that time, is told of in the log; all are tried. Runs in a loop's task.
    pub async fn come_to_rest(&self, holder: &str) -> Vec<LeftTarget> {
        self.stop();
        let busy = self.drain_but_for_hanging_jobs(holder).await;
        let left: Vec<_> = self
            .nodes()
            .into_iter()
            .filter(|node| is_left(node))
            .collect();
        // What is below them may hang as they do; whoever else stands above it flushes it.
        let mut theirs = HashSet::new();
        for node in &left {
            note_all_from(node, &mut theirs);
        }
        let of_disks = self.nodes_of_disks();
        let mut shared = HashSet::new();
        self.note_nodes_of(&busy, &of_disks, &mut theirs, &mut shared);
        // All others may hang, and no guest relies on them.
        let is_disks = |name: &str| of_disks.contains(name) && !shared.contains(name);
        // Each failure is in the log.
        let flushed = self.flush_if(|node| !theirs.contains(node.name()) && is_disks(node.name()));
        drop(flushed.await);
        let others = |node: &Node| !theirs.contains(node.name()) && !is_disks(node.name());
        self.flush_for_a_while(others).await;
        let mut told: Vec<_> = left.iter().filter_map(|node| left_target(node)).collect();
        told.sort_by(|one, other| one.node.cmp(&other.node));
        told
    }

    /// Flushes every writable node; all are tried. Those below others too: what is above may be read-only,
    /// or flush only one of several.
    ///
    /// # Errors
    /// The first failure.
    pub async fn flush_all(&self) -> Result<()> {
        self.flush_if(|_| true).await
    }

    async fn flush_if(&self, wanted: impl Fn(&Node) -> bool) -> Result<()> {
        let mut result = Ok(());
        for node in self.nodes().into_iter().filter(|node| wanted(node)) {
            result = result.and(flush(&node).await);
        }
        result
    }

    /// Flushes nodes beside each other. What has not ended when [`PATIENCE`] is over goes on by itself.
    async fn flush_for_a_while(&self, wanted: impl Fn(&Node) -> bool) {
        let nodes = self.nodes().into_iter();
        let nodes = nodes.filter(|node| wanted(node));
        let flushes = nodes.map(|node| async move {
            let name = node.name().to_owned();
            let flush = current::spawn_local(async move { flush(&node).await });
            let patience = pin!(current::sleep(PATIENCE));
            if let Either::Right((_, flush)) = select(flush, patience).await {
                tracing::warn!(
                    node = name,
                    "a node that no guest writes to is not flushed yet, and is not waited for any longer"
                );
                flush.detach();
            }
        });
        join_all(flushes).await;
    }

    /// Waits until nothing is on its way. It does not wait for what was left behind; nor for long for jobs that do not
    /// rest, which it returns.
    async fn drain_but_for_hanging_jobs(&self, holder: &str) -> Vec<Arc<Job>> {
        let section = SectionInner::without_what_was_left(holder, self.clock());
        self.cover_all(&section);
        let busy = match section.wait_idle().await {
            Ok(()) => Vec::new(),
            Err(_) => section.busy_jobs(),
        };
        drop(Section::new(section));
        busy
    }

    /// The names of the nodes that disks stand on.
    fn nodes_of_disks(&self) -> HashSet<String> {
        let mut of_disks = HashSet::new();
        let nodes = self.nodes().into_iter();
        for node in nodes.filter(|node| !node.backends().is_empty()) {
            note_all_from(&node, &mut of_disks);
        }
        of_disks
    }

    /// Adds the names of what jobs use that do not come to rest and no guest writes to: what they `alone` use, and the backing
    /// images that are `shared` with disks.
    fn note_nodes_of(
        &self,
        busy: &[Arc<Job>],
        of_disks: &HashSet<String>,
        alone: &mut HashSet<String>,
        shared: &mut HashSet<String>,
    ) {
        if busy.is_empty() {
            return;
        }
        let mut of_guests = HashSet::new();
        let mut of_jobs = HashSet::new();
        for node in self.nodes() {
            if !node.backends().is_empty() {
                note_written_from(&node, &mut of_guests);
            }
            let job = busy.iter().find(|job| node.is_used_by(job));
            if let Some(job) = job {
                let (kind, id, node) = (job.kind(), job.id(), &node);
                tracing::warn!(%kind, job = id, node = node.name(), "a job does not come to rest");
                note_all_from(node, &mut of_jobs);
            }
        }
        alone.extend(of_jobs.difference(of_disks).cloned());
        let images = of_jobs.intersection(of_disks);
        shared.extend(images.filter(|name| !of_guests.contains(*name)).cloned());
    }
}

/// Makes durable what was written to the node, or says in the log that this can't be done; also if it takes long.
async fn flush(node: &Node) -> Result<()> {
    let mut flushing = pin!(node.flush());
    let mut patience = MOMENT;
    let flushed = loop {
        let late = pin!(current::sleep(patience));
        match select(flushing, late).await {
            Either::Left((flushed, _)) => break flushed,
            Either::Right(((), unfinished)) => flushing = unfinished,
        }
        tracing::warn!(
            node = node.name(),
            "a flush takes long; a machine that stops or ends waits for it"
        );
        patience *= 2;
    };
    if let Err(error) = &flushed {
        tracing::warn!(node = node.name(), %error, "a node cannot be flushed");
    }
    flushed
}

impl Node {
    /// Whether `job` stands right above, and it is not what the job works on.
    fn is_used_by(&self, job: &Arc<Job>) -> bool {
        let job = Parent::job(job);
        let mut edges = self.edges_above().into_iter();
        edges.any(|edge| edge.role != MAIN_NODE && edge.parent.is_same(&job))
    }
}

fn is_left(node: &Node) -> bool {
    node.left_behind().running() > 0 || node.orphaned().running() > 0
}

/// None if the last request has returned just now.
fn left_target(node: &Node) -> Option<LeftTarget> {
    let holder = node.blocker().filter(|_| is_left(node))?;
    Some(LeftTarget {
        node: node.name().to_owned(),
        holder: holder.to_string(),
    })
}

/// Adds the names of the node and of all below it.
fn note_all_from(node: &Arc<Node>, names: &mut HashSet<String>) {
    note_from(node, |_| true, names);
}

/// Adds the names of the node and of all below it that get what is written to it.
fn note_written_from(node: &Arc<Node>, names: &mut HashSet<String>) {
    note_from(node, |role| role != Role::Backing, names);
}

/// Adds the names of the node and of all below it in roles that are `wanted`.
fn note_from(node: &Arc<Node>, wanted: fn(Role) -> bool, names: &mut HashSet<String>) {
    if names.insert(node.name().to_owned()) {
        for (role, child) in node.children_by_role() {
            if wanted(role) {
                note_from(&child, wanted, names);
            }
        }
    }
}
