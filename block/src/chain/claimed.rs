//! [`Claimed`]: the part of a graph that a job on a chain has to itself.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::driver::FrozenChain;
use crate::graph::Graph;
use crate::node::Node;

/// See the [module](self). Whatever is held here is given back by the job's end.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// The chain stays as it is.
    frozen: Mutex<Option<FrozenChain>>,
    /// Nodes that nobody else may use.
    blocked: Vec<Arc<Node>>,
    /// The node that is written to, if it was read-only before.
    read_only: Mutex<Option<Arc<Node>>>,
}

impl Claimed {
    pub(super) fn new(
        frozen: FrozenChain,
        blocked: Vec<Arc<Node>>,
        read_only: Option<Arc<Node>>,
    ) -> Self {
        Self {
            frozen: Mutex::new(Some(frozen)),
            blocked,
            read_only: Mutex::new(read_only),
        }
    }

    /// From now on the chain may be changed.
    pub(crate) fn thaw(&self) {
        drop(self.frozen.lock().take());
    }

    /// What was read-only before stays writable: a disk stands on it.
    pub(crate) fn stays_writable(&self) {
        drop(self.read_only.lock().take());
    }

    /// The job no longer uses anything.
    pub(crate) fn give_back(&self, graph: &Graph) {
        self.thaw();
        for node in &self.blocked {
            node.unblock();
        }
        let read_only = self.read_only.lock().take();
        if let Some(node) = read_only
            && let Err(error) = graph.set_read_only(&node, true)
        {
            tracing::debug!(node = node.name(), %error, "an image stays writable");
        }
    }
}
