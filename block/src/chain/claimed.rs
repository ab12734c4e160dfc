//! [`Claimed`]: the part of a graph that a job on a chain has to itself.
//!
//! If its images hang the job ends without them; see [`parting`](crate::parting). What its filter promises about the images has to be
//! kept until the last request has returned: those above a commit's base must not mind that it is written to, and a guest must not
//! overtake what a stream writes. So the filter stays where it is, and copies no more; guests go on through it.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::driver::FrozenChain;
use crate::graph::Graph;
use crate::graph::home::MAIN_NODE;
use crate::graph::parent::Parent;
use crate::graph::transaction::Transaction;
use crate::node::Node;
use crate::parting::Leftover;
use crate::permission::{Access, Permissions};

/// What the filter's node is to the job.
pub(super) const FILTER_ROLE: &str = MAIN_NODE;

/// What is written to a base is what those above show already.
pub(super) const BASE_ACCESS: Access = Access {
    used: Permissions::CONSISTENT_READ.union(Permissions::WRITE),
    shared: Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED),
};

/// The node that a job writes to by itself, and what that is to the job.
#[derive(Clone, Debug)]
pub(super) struct Base {
    pub(super) node: Arc<Node>,
    pub(super) role: &'static str,
}

/// See the [module](self). Whatever is held here is given back by the job's end.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) graph: Arc<Graph>,
    /// The job's.
    pub(crate) filter: Arc<Node>,
    /// What is below the filter.
    pub(crate) below: Arc<Node>,
    pub(super) base: Option<Base>,
    /// The chain stays as it is.
    pub(super) frozen: Mutex<Option<FrozenChain>>,
    /// Nodes that nobody else may use.
    pub(super) blocked: Vec<Arc<Node>>,
    /// The node that is written to, if it was read-only before.
    pub(super) read_only: Mutex<Option<Arc<Node>>>,
}

impl Claimed {
    /// From now on the chain may be changed.
    pub(crate) fn thaw(&self) {
        drop(self.frozen.lock().take());
    }

    /// What was read-only before stays writable: a disk stands on it.
    pub(crate) fn stays_writable(&self) {
        drop(self.read_only.lock().take());
    }

    /// Has `user` use the nodes for the job.
    pub(super) fn attach(&self, change: &mut Transaction<'_>, user: &Parent) {
        let access = Access::OF_JOB_FILTER;
        change.attach(&self.filter, user.clone(), FILTER_ROLE, access);
        if let Some(Base { node, role }) = &self.base {
            change.attach(node, user.clone(), role, BASE_ACCESS);
        }
    }

    /// Puts those above the filter onto what is below it, in a section over the filter. `user` uses the nodes for the job.
    pub(super) fn take_filter_out(&self, user: &Parent) {
        let mut change = self.graph.transaction();
        if let Some(base) = &self.base {
            change.set_access(&base.node, user, Access::NONE);
        }
        let moved = change.move_parents(&self.filter, &self.below);
        if let Err(error) = moved.and_then(|()| change.commit()) {
            tracing::error!(%error, "the job's filter can't be taken out");
        }
    }

    /// Gives everything back that `user` has used for the job.
    pub(crate) fn give_back(&self, user: &Parent) {
        if let Some(Base { node, role }) = &self.base {
            self.graph.let_go(node, user, role);
        }
        self.graph.let_go(&self.filter, user, FILTER_ROLE);
        self.graph.remove_if_unused(&self.filter);
        self.thaw();
        let read_only = self.read_only.lock().take();
        if let Some(node) = read_only
            && let Err(error) = self.graph.set_read_only(&node, true)
        {
            tracing::debug!(node = node.name(), %error, "an image stays writable");
        }
        // Last: whoever may have it again finds it as it was.
        for node in &self.blocked {
            node.unblock();
        }
    }
}

impl Leftover for Arc<Claimed> {
    fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    fn node(&self) -> &Arc<Node> {
        &self.below
    }

    fn hand_over(&self, change: &mut Transaction<'_>, job: &Parent, user: &Parent) {
        if let Some(Base { node, role }) = &self.base {
            change.detach(node, job, role);
        }
        change.detach(&self.filter, job, FILTER_ROLE);
        self.attach(change, user);
    }

    fn block_again(&self, holder: &str) {
        for node in self.blocked.iter().chain([&self.filter]) {
            node.block_again(holder);
        }
    }

    async fn restore(&self, user: &Parent) {
        let holder = "end of a job's last requests";
        let section = self.graph.drain(&self.filter, holder).await;
        self.take_filter_out(user);
        drop(section);
    }

    fn let_go(&self, user: &Parent) {
        self.give_back(user);
    }
}
