//! Who stands above a node: the edges seen from below, with their roles and permissions, and the
//! claims of jobs.
//!
//! Everything here is changed under the graph's lock, by a
//! [`Transaction`](super::transaction::Transaction); it may be read by any thread.

use std::sync::{Arc, Weak};

use crate::backend::Backend;
use crate::driver::Role;
use crate::error::{BlockError, PermissionConflict, Result};
use crate::graph::{Graph, resize};
use crate::job::Job;
use crate::node::{Node, NodeState};
use crate::permission::Access;

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

impl Graph {
    /// Tells whoever wants to use the nodes that `job` has claimed that it is ending: nobody can make it end sooner.
    pub(crate) fn say_ending(&self, job: &Job) {
        let holder = job.kind().named(job.id());
        for node in self.nodes() {
            let mut state = node.state.lock();
            if state.blocker.as_deref() == Some(&*holder) {
                state.blocker_is_ending = true;
            }
        }
    }
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
        if let Some(busy) = self.busy(&state) {
            return Err(busy);
        }
        state.blocker = Some(job.into());
        state.blocker_is_ending = false;
        Ok(())
    }

    /// Changes whom the node is claimed for, by its holder.
    pub(crate) fn block_again(&self, holder: &str) {
        let mut state = self.state.lock();
        state.blocker = Some(holder.into());
        state.blocker_is_ending = false;
    }

    /// That a job has claimed the node, if one has.
    fn busy(&self, state: &NodeState) -> Option<BlockError> {
        let job = state.blocker.as_ref()?;
        Some(BlockError::Busy {
            node: self.name().to_owned(),
            job: Arc::clone(job),
            is_ending: state.blocker_is_ending,
        })
    }

    /// The job that has claimed the node, by its type and id.
    pub(crate) fn blocker(&self) -> Option<Arc<str>> {
        self.state.lock().blocker.clone()
    }

    /// Ends a job's claim.
    pub(crate) fn unblock(&self) {
        self.state.lock().blocker = None;
    }

    /// # Errors
    /// A job runs on the node.
    pub(crate) fn check_not_blocked(&self) -> Result<()> {
        self.busy(&self.state.lock()).map_or(Ok(()), Err)
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
