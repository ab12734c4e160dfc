//! In which loop work on nodes is done, and how that changes under jobs.
//!
//! A request runs in the loop of whoever makes it
//! (docs/decisions/0004-io-runs-in-the-submitters-loop.md), so a node needs no loop for that. Its
//! *home* is where a job works whose source no device serves. Nodes that are connected have one
//! home, also when a change of the graph connects them; a device that stands above any of them has a
//! loop of its own, in which jobs below it work, and which can't be changed from here.
//!
//! Jobs follow: when a home changes, or a device comes or goes, those on the nodes concerned go to the other loop
//! inside sections over all that is *joined*: connected nodes, and the other nodes of jobs on any of them.

use std::collections::HashSet;
use std::sync::Arc;

use sluice_aio::AioContext;

use super::parent::Parent;
use super::transaction::Transaction;
use super::{Graph, Topology};
use crate::backend::Backend;
use crate::error::{BlockError, Result};
use crate::home::Home;
use crate::job::Job;
use crate::node::Node;

/// What the node is to a job that decides where it works.
pub(crate) const MAIN_NODE: &str = "main node";

/// Who opens the sections in which homes change.
const HOLDER: &str = "change of iothread";

fn active(disk: &str, node: &Node) -> BlockError {
    let node = node.name();
    BlockError::Refused(format!(
        "Cannot change iothread of active block backend '{disk}' of node '{node}'"
    ))
}

impl Node {
    /// The loop for work on the node, with what keeps its thread: for whoever starts to work there. None
    /// is the main loop.
    pub(crate) fn home(&self) -> Option<Home> {
        self.state.lock().home.clone()
    }
}

/// Nodes that are connected, by themselves or by jobs, and these jobs.
#[derive(Default)]
struct Joined {
    nodes: Vec<Arc<Node>>,
    jobs: Vec<Arc<Job>>,
}

impl Joined {
    /// All that is joined with `node`.
    fn with(topology: &Topology, node: &Arc<Node>) -> Self {
        let mut joined = Self::default();
        let mut left = vec![Arc::clone(node)];
        while let Some(node) = left.pop() {
            if joined.has(&node) {
                continue;
            }
            for node in connected(&node) {
                for job in node.jobs() {
                    if joined.jobs.iter().any(|known| Arc::ptr_eq(known, &job)) {
                        continue;
                    }
                    left.extend(topology.nodes_of(&job));
                    joined.jobs.push(job);
                }
                joined.nodes.push(node);
            }
        }
        joined
    }

    fn has(&self, node: &Arc<Node>) -> bool {
        self.nodes.iter().any(|known| Arc::ptr_eq(known, node))
    }

    /// The backends above, each with its root.
    fn backends(&self) -> impl Iterator<Item = (Arc<Backend>, &Arc<Node>)> {
        let nodes = self.nodes.iter();
        nodes.flat_map(|node| {
            let backends = node.backends().into_iter();
            backends.map(move |backend| (backend, node))
        })
    }

    /// # Errors
    /// A node is kept by somebody else than these jobs.
    fn check_kept_by_jobs_alone(&self) -> Result<()> {
        let jobs = self.jobs.iter();
        let jobs: Vec<_> = jobs.map(|job| job.kind().named(job.id())).collect();
        for node in &self.nodes {
            let blocker = node.blocker();
            if blocker.is_some_and(|blocker| !jobs.iter().any(|job| **job == *blocker)) {
                node.check_not_blocked()?;
            }
        }
        Ok(())
    }
}

impl Node {
    /// The jobs that stand right above.
    fn jobs(&self) -> Vec<Arc<Job>> {
        let parents = self.parents().into_iter();
        let jobs = parents.filter_map(|parent| match parent {
            Parent::Job(job) => job.upgrade(),
            _ => None,
        });
        jobs.collect()
    }
}

impl Topology {
    /// Where the job of a filter runs: where a device above it is served, or the filter is at home, or in `main`.
    fn home_of_job(&self, filter: &Arc<Node>, main: &AioContext) -> Home {
        let above = self.backends_above(filter);
        // The device keeps its loop.
        let of_device = above.first().and_then(|backend| backend.home());
        of_device
            .or_else(|| filter.home())
            .unwrap_or_else(|| main.into())
    }

    /// The nodes that `job` stands right above.
    pub(super) fn nodes_of(&self, job: &Arc<Job>) -> Vec<Arc<Node>> {
        let has_job = |node: &&Arc<Node>| node.jobs().iter().any(|other| Arc::ptr_eq(other, job));
        self.nodes.values().filter(has_job).cloned().collect()
    }

    /// Every job, with the node that decides where it works; one that is at its end has none. To be asked once
    /// for all jobs: it looks at all nodes.
    fn main_nodes(&self) -> Vec<(Arc<Job>, Arc<Node>)> {
        let main = |node: &Arc<Node>| {
            let edges = node.edges_above().into_iter();
            let edges = edges.filter(|edge| edge.role == MAIN_NODE);
            let jobs = edges.filter_map(|edge| match edge.parent {
                Parent::Job(job) => job.upgrade(),
                _ => None,
            });
            let node = Arc::clone(node);
            jobs.map(move |job| (job, Arc::clone(&node)))
                .collect::<Vec<_>>()
        };
        self.nodes.values().flat_map(main).collect()
    }

    /// The node that decides where `job` works; none at its end.
    fn main_node(&self, job: &Arc<Job>) -> Option<Arc<Node>> {
        let mut all = self.main_nodes().into_iter();
        let (_, node) = all.find(|(other, _)| Arc::ptr_eq(other, job))?;
        Some(node)
    }
}

impl Graph {
    /// Gives `node` and all that is joined with it another home, inside sections of theirs; jobs go there too, and
    /// with it goes what keeps the loop's thread. `None` is the main loop, `main`.
    ///
    /// # Errors
    /// A device serves one of them, or somebody else than a job that can follow keeps one: then none is changed.
    pub async fn set_home(
        &self,
        node: &Arc<Node>,
        home: Option<Home>,
        main: &AioContext,
    ) -> Result<()> {
        let mut left = Vec::new();
        let of_jobs = home.clone().unwrap_or_else(|| main.into());
        let change = |_: &Topology, joined: &Joined| {
            if let Some((backend, node)) = joined.backends().next() {
                return Err(active(backend.name(), node));
            }
            joined.check_kept_by_jobs_alone()?;
            for node in &joined.nodes {
                left.push(std::mem::replace(&mut node.state.lock().home, home.clone()));
            }
            for job in &joined.jobs {
                job.move_to(of_jobs.clone());
            }
            Ok(())
        };
        let changed = self.change_homes(node, change).await;
        // The last reference to a thread ends it, which nobody should wait for under a lock.
        drop(left);
        changed
    }

    /// Where the job of a filter runs: where a device above it is served, or the filter is at home, or in `main`.
    pub(crate) fn home_of_job(&self, filter: &Arc<Node>, main: &AioContext) -> Home {
        self.topology().home_of_job(filter, main)
    }

    /// Gives the device of `backend` its loop; jobs on what is below go there, inside sections.
    ///
    /// # Errors
    /// A job has a node below a device that is served elsewhere: then nothing is changed.
    pub async fn set_device_home(&self, backend: &Arc<Backend>, home: Home) -> Result<()> {
        let root = backend.node();
        let root = root.filter(|root| !Joined::with(&self.topology(), root).jobs.is_empty());
        let Some(root) = root else {
            backend.set_home(home);
            return Ok(());
        };
        let change = |_: &Topology, joined: &Joined| {
            let elsewhere = |(other, _): &(Arc<Backend>, _)| {
                !Arc::ptr_eq(other, backend) && other.home().is_some_and(|other| other != home)
            };
            let other = joined.backends().find(elsewhere);
            if let Some((other, node)) = other {
                return Err(active(other.name(), node));
            }
            backend.set_home(home.clone());
            for job in &joined.jobs {
                job.move_to(home.clone());
            }
            Ok(())
        };
        self.change_homes(&root, change).await
    }

    /// Has every job work where its nodes are served or at home now: after a device has gone, or a change has
    /// connected nodes. `main` is the loop of those that have neither.
    pub async fn bring_jobs_home(&self, main: &AioContext) {
        let all = self.topology().main_nodes();
        for (job, node) in all {
            if job.home() == *self.home_of_job(&node, main).context() {
                continue;
            }
            // Others may have been waited for since.
            let Some(node) = self.topology().main_node(&job) else {
                continue;
            };
            let change = |topology: &Topology, joined: &Joined| {
                if joined.jobs.iter().any(|other| Arc::ptr_eq(other, &job)) {
                    // It may have changed once more.
                    job.move_to(topology.home_of_job(&node, main));
                }
                Ok(())
            };
            if let Err(error) = self.change_homes(&node, change).await {
                tracing::debug!(job = job.id(), %error, "the job has gone");
            }
        }
    }

    /// Calls `change`, with the graph's lock, inside sections over all that is joined with `node`, and waits until
    /// the jobs among that are where they are to be.
    async fn change_homes(
        &self,
        node: &Arc<Node>,
        change: impl FnOnce(&Topology, &Joined) -> Result<()>,
    ) -> Result<()> {
        let (mut drained, mut sections) = (Vec::new(), Vec::new());
        let joined = loop {
            let new = {
                let topology = self.topology();
                topology.check_present(node)?;
                let joined = Joined::with(&topology, node);
                let is_new = |node: &&Arc<Node>| {
                    let mut known = drained.iter();
                    !known.any(|known| Arc::ptr_eq(known, node))
                };
                let new: Vec<_> = joined.nodes.iter().filter(is_new).cloned().collect();
                if new.is_empty() {
                    change(&topology, &joined)?;
                    break joined;
                }
                new
            };
            // Together: what one of them waits for, such as a copy, may be held up at another by limits.
            sections.push(self.drain_nodes(&new, HOLDER).await);
            drained.extend(new);
        };
        for job in &joined.jobs {
            job.arrived().await;
        }
        drop(sections);
        Ok(())
    }
}

impl Transaction<'_> {
    /// Gives nodes that new edges have connected one home: the child and what is connected with it go to
    /// the parent's, unless a device stands above them; then the parent goes to the child's. A node that the
    /// change adds has no home yet, and takes that of the others.
    ///
    /// A job does not stand against it: it follows later, see [`Graph::bring_jobs_home`].
    ///
    /// # Errors
    /// Devices stand above both, and the homes differ.
    pub(super) fn share_homes(&mut self) -> Result<()> {
        for (above, below) in std::mem::take(&mut self.joined) {
            let (upper, lower) = (above.home(), below.home());
            if upper == lower {
                continue;
            }
            // The usual case need not look at all that is connected with the child.
            let alone = above.nodes_above().is_empty() && above.children().len() == 1;
            if self.adds(&above) && alone {
                self.set_home(&above, lower);
                continue;
            }
            let nodes = connected(&above);
            let settled: Vec<_> = nodes.iter().filter(|node| !self.adds(node)).collect();
            let mut pinned = settled.iter().filter(|node| !node.backends().is_empty());
            let home = match pinned.next() {
                Some(first) => {
                    let home = first.home();
                    if let Some(other) = pinned.find(|other| other.home() != home) {
                        let backends = other.backends();
                        let disk = backends.first().map_or("", |backend| backend.name());
                        return Err(active(disk, other));
                    }
                    home
                }
                None if !self.adds(&above) => upper,
                None if !self.adds(&below) => lower,
                None => settled.first().and_then(|node| node.home()),
            };
            for node in &nodes {
                if node.home() != home {
                    self.set_home(node, home.clone());
                }
            }
        }
        Ok(())
    }
}

/// `node` and all that is above and below it, and what is above and below that.
fn connected(node: &Arc<Node>) -> Vec<Arc<Node>> {
    let mut found = vec![Arc::clone(node)];
    let mut known = HashSet::from([Arc::as_ptr(node)]);
    let mut next = 0;
    while next < found.len() {
        let node = Arc::clone(&found[next]);
        let below = node.children().into_iter().map(|(_, child)| child);
        for other in node.nodes_above().into_iter().chain(below) {
            if known.insert(Arc::as_ptr(&other)) {
                found.push(other);
            }
        }
        next += 1;
    }
    found
}
