//! Who stands above a node: the edges seen from below, with their roles and permissions, and the
//! claims of jobs.
//!
//! Everything here is changed under the graph's lock, by a
//! [`Transaction`](super::transaction::Transaction); it may be read by any thread.

use std::sync::{Arc, Weak};

use crate::backend::Backend;
use crate::driver::Role;
use crate::error::{BlockError, BusyFor, PermissionConflict, Result};
use crate::graph::home::MAIN_NODE;
use crate::graph::resize;
use crate::job::Job;
use crate::node::Node;
use crate::permission::Access;

/// The job that has claimed a node.
#[derive(Debug, Clone)]
pub(crate) struct Blocker {
    /// Its type and id.
    holder: Arc<str>,
    /// None before its command has been answered: there is no such job yet.
    job: Option<Weak<Job>>,
}

impl Blocker {
    fn new(holder: &str) -> Self {
        Self {
            holder: holder.into(),
            job: None,
        }
    }

    /// How far the job is.
    fn stage(&self) -> BusyFor {
        let Some(job) = &self.job else {
            return BusyFor::BeginningJob;
        };
        let job = job.upgrade();
        match job.and_then(|job| job.ways_to_end()) {
            Some(ways) => BusyFor::Job(ways),
            None => BusyFor::EndingJob,
        }
    }
}

/// Something above a node that can send it requests.
#[derive(Clone, Debug)]
pub(crate) enum Parent {
    /// Another node, which gets its requests from above.
    Node(Weak<Node>),
    /// A device's or an export's handle.
    Backend(Weak<Backend>),
    /// A job, which copies from it or to it.
    Job(Weak<Job>),
    /// An operation that has not begun yet, or that needs no requests of its own, by its
    /// description.
    Claim(Arc<str>),
}

impl Parent {
    pub(crate) fn node(node: &Arc<Node>) -> Self {
        Self::Node(Arc::downgrade(node))
    }

    pub(crate) fn backend(backend: &Arc<Backend>) -> Self {
        Self::Backend(Arc::downgrade(backend))
    }

    pub(crate) fn job(job: &Arc<Job>) -> Self {
        Self::Job(Arc::downgrade(job))
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Node(one), Self::Node(other)) => Weak::ptr_eq(one, other),
            (Self::Backend(one), Self::Backend(other)) => Weak::ptr_eq(one, other),
            (Self::Job(one), Self::Job(other)) => Weak::ptr_eq(one, other),
            (Self::Claim(one), Self::Claim(other)) => one == other,
            _ => false,
        }
    }

    /// Whether it goes where the node's contents go: a job and a claim mean this very node.
    pub(crate) fn follows(&self) -> bool {
        matches!(self, Self::Node(_) | Self::Backend(_))
    }

    /// The words of QEMU's messages.
    pub(crate) fn description(&self) -> String {
        let text = match self {
            Self::Node(node) => node.upgrade().map(|node| format!("node '{}'", node.name())),
            Self::Backend(backend) => backend
                .upgrade()
                .map(|backend| format!("block device '{}'", backend.name())),
            Self::Job(job) => job
                .upgrade()
                .map(|job| format!("{} job '{}'", job.kind().name(), job.id())),
            Self::Claim(text) => Some(text.to_string()),
        };
        text.unwrap_or_else(|| "somebody who is going".to_owned())
    }
}

/// An edge, seen from the node below.
#[derive(Clone, Debug)]
pub(crate) struct ParentEdge {
    pub(crate) parent: Parent,
    /// What the node is to the parent.
    pub(crate) role: &'static str,
    /// What the parent does with the node.
    pub(crate) access: Access,
}

impl ParentEdge {
    /// Whether a job stands above its own filter.
    pub(super) fn is_above_filter(&self) -> bool {
        self.role == MAIN_NODE && matches!(self.parent, Parent::Job(_))
    }
}

/// The sum of what all parents do, if it is possible.
///
/// # Errors
/// [`BlockError::Conflict`] of two parents.
pub(super) fn cumulative(node: &str, edges: &[ParentEdge]) -> Result<Access> {
    let sum = edges
        .iter()
        .fold(Access::NONE, |sum, edge| sum.and(edge.access));
    let disputed = sum.used & sum.unshared();
    for permission in disputed.iter() {
        for (index, user) in edges.iter().enumerate() {
            if !user.access.used.contains(permission) {
                continue;
            }
            let keeper = edges.iter().enumerate().find(|(other, edge)| {
                *other != index && edge.access.unshared().contains(permission)
            });
            if let Some((_, keeper)) = keeper {
                let conflict = PermissionConflict {
                    node: node.to_owned(),
                    permissions: (user.access.used & keeper.access.unshared()).text(),
                    user: user.parent.description(),
                    role: user.role,
                    keeper: keeper.parent.description(),
                    keeper_role: keeper.role,
                    hint: "",
                };
                return Err(Box::new(conflict).into());
            }
        }
    }
    Ok(sum)
}

/// # Errors
/// [`BlockError::Conflict`] of `operation`, which changes the node's size, with a parent that does not share that.
pub(super) fn check_resizable(node: &str, edges: &[ParentEdge], operation: &str) -> Result<()> {
    let mut edges = edges.to_vec();
    edges.push(ParentEdge {
        parent: Parent::Claim(operation.into()),
        role: resize::ROLE,
        access: Access::OF_RESIZE,
    });
    cumulative(node, &edges).map(drop)
}

impl Node {
    pub(crate) fn parents(&self) -> Vec<Parent> {
        let state = self.state.lock();
        state
            .parents
            .iter()
            .map(|edge| edge.parent.clone())
            .collect()
    }

    /// The edges from above, oldest first.
    pub(crate) fn edges_above(&self) -> Vec<ParentEdge> {
        self.state.lock().parents.clone()
    }

    /// The nodes above, each once for every edge.
    pub(crate) fn nodes_above(&self) -> Vec<Arc<Node>> {
        let state = self.state.lock();
        let above = state.parents.iter().filter_map(|edge| match &edge.parent {
            Parent::Node(above) => above.upgrade(),
            _ => None,
        });
        above.collect()
    }

    /// The child in that role.
    pub(crate) fn child(&self, role: Role) -> Option<Arc<Node>> {
        let mut children = self.children_by_role().into_iter();
        children.find_map(|(present, node)| (present == role).then_some(node))
    }

    /// The backends whose root is this node.
    #[must_use]
    pub fn backends(&self) -> Vec<Arc<Backend>> {
        let parents = self.parents();
        let backends = parents.iter().filter_map(|parent| match parent {
            Parent::Backend(backend) => backend.upgrade(),
            _ => None,
        });
        backends.collect()
    }

    /// # Errors
    /// A disk stands on the node, so nobody can `copy` (a verb) to it.
    pub(crate) fn check_no_disks(&self, copy: &'static str) -> Result<()> {
        let backends = self.backends();
        let Some(disk) = backends.first() else {
            return Ok(());
        };
        Err(BlockError::UsedByDisk {
            node: self.name().to_owned(),
            disk: disk.name().to_owned(),
            copy,
        })
    }

    /// Whether `below` is a node that this one stands on, in whatever role.
    pub(crate) fn stands_on(&self, below: &Arc<Self>) -> bool {
        let children = self.children().into_iter();
        let mut nodes = children.map(|(_, child)| child);
        nodes.any(|child| Arc::ptr_eq(&child, below) || child.stands_on(below))
    }

    /// What all parents together do with the node.
    #[must_use]
    pub fn access(&self) -> Access {
        self.state.lock().access
    }

    /// Whether nobody has given this filter a name: queries show what is below it instead.
    #[must_use]
    pub fn is_implicit_filter(&self) -> bool {
        self.state.lock().implicit_filter
    }

    /// Claims the node for a job, given by its type and id: others are refused until [`Node::unblock`].
    ///
    /// # Errors
    /// Another job has it.
    pub(crate) fn block(&self, job: &str) -> Result<()> {
        let mut state = self.state.lock();
        // The refusal is of what was found under the lock: looked at once more, the claim may have ended, and nobody
        // would be refused a node that was not claimed for him either.
        if let Some(blocker) = state.blocker.clone() {
            drop(state);
            return Err(self.busy(blocker));
        }
        state.blocker = Some(Blocker::new(job));
        Ok(())
    }

    /// `job` is there, and takes commands: it has claimed the node, or nothing changes.
    pub(crate) fn blocker_has_begun(&self, job: &Arc<Job>) {
        let holder = job.kind().named(job.id());
        if let Some(blocker) = &mut self.state.lock().blocker
            && *blocker.holder == *holder
        {
            blocker.job = Some(Arc::downgrade(job));
        }
    }

    /// Changes whom the node is claimed for, by its holder.
    pub(crate) fn block_again(&self, holder: &str) {
        self.state.lock().blocker = Some(Blocker::new(holder));
    }

    /// The job that has claimed the node, by its type and id.
    pub(crate) fn blocker(&self) -> Option<Arc<str>> {
        let state = self.state.lock();
        state
            .blocker
            .as_ref()
            .map(|blocker| Arc::clone(&blocker.holder))
    }

    /// Ends a job's claim.
    pub(crate) fn unblock(&self) {
        self.state.lock().blocker = None;
    }

    /// Whether a job works on what this node shows, and has put the node there to see what is asked of it.
    pub(crate) fn is_filter_of_job(&self) -> bool {
        self.edges_above().iter().any(ParentEdge::is_above_filter)
    }

    /// # Errors
    /// A job runs on the node.
    pub(crate) fn check_not_blocked(&self) -> Result<()> {
        let blocker = self.state.lock().blocker.clone();
        blocker.map_or(Ok(()), |blocker| Err(self.busy(blocker)))
    }

    /// That `blocker` has it. Not under the node's lock: the job has one of its own.
    fn busy(&self, blocker: Blocker) -> BlockError {
        BlockError::Busy {
            node: self.name().to_owned(),
            with: blocker.stage(),
            job: blocker.holder,
        }
    }

    /// Whether what the node shows may change, all at once and behind the backs of those above it.
    ///
    /// # Errors
    /// A job has the node, or one further up that shows what this one holds.
    pub(crate) fn check_may_show_other_data(&self) -> Result<()> {
        self.check_not_blocked()?;
        for edge in self.edges_above() {
            // What a filter copies to its target it does not show.
            if let Parent::Node(above) = &edge.parent
                && edge.role != Role::Target.name()
                && let Some(above) = above.upgrade()
            {
                above.check_may_show_other_data()?;
            }
        }
        Ok(())
    }

    /// The name of the disk or job that writes to the node, directly or from further above.
    #[cfg(test)]
    pub(crate) fn writer(&self) -> Option<String> {
        use crate::permission::Permissions;

        let edges = self.edges_above();
        let writes = |edge: &&ParentEdge| edge.access.used.contains(Permissions::WRITE);
        edges
            .iter()
            .filter(writes)
            .find_map(|edge| match &edge.parent {
                Parent::Node(above) => above.upgrade()?.writer(),
                Parent::Backend(backend) => Some(backend.upgrade()?.name().to_owned()),
                Parent::Job(_) | Parent::Claim(_) => Some(edge.parent.description()),
            })
    }
}
