//! `x-blockdev-set-iothread`: in which loop work on nodes without a device is done.
//!
//! A request runs in the loop of whoever makes it
//! (docs/decisions/0004-io-runs-in-the-submitters-loop.md), so a node needs no loop for that. Its
//! *home* is where a job starts whose source no device serves. Nodes that are connected have one
//! home; a device that stands above any of them has a loop of its own, which can't be changed from
//! here.

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;

use sluice_aio::AioContext;

use super::Graph;
use crate::error::{BlockError, Result};
use crate::node::Node;

/// A loop, and what keeps its thread while it is a node's home.
#[derive(Clone)]
pub(crate) struct Home {
    context: AioContext,
    _keeper: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Home({})", self.context.name())
    }
}

impl Node {
    /// The loop for work on the node; none is the main loop.
    pub(crate) fn home(&self) -> Option<AioContext> {
        let state = self.state.lock();
        state.home.as_ref().map(|home| home.context.clone())
    }
}

impl Graph {
    /// Gives `node` and all that is connected with it another home, inside sections of theirs; with
    /// it goes what keeps the loop's thread. `None` is the main loop.
    ///
    /// # Errors
    /// A device serves one of them, or a job works on one: then none is changed.
    pub async fn set_home(
        &self,
        node: &Arc<Node>,
        home: Option<(AioContext, Arc<dyn Any + Send + Sync>)>,
    ) -> Result<()> {
        let mut sections = Vec::new();
        for node in connected(node) {
            sections.push(self.drain(&node, "x-blockdev-set-iothread").await);
        }
        let topology = self.topology();
        topology.check_present(node)?;
        let nodes = connected(node);
        for node in &nodes {
            node.check_not_blocked()?;
            if !node.backends().is_empty() {
                return Err(BlockError::Refused(
                    "Cannot change iothread of active block backend".to_owned(),
                ));
            }
        }
        let home = home.map(|(context, keeper)| Home {
            context,
            _keeper: keeper,
        });
        let replaced: Vec<_> = nodes
            .iter()
            .map(|node| std::mem::replace(&mut node.state.lock().home, home.clone()))
            .collect();
        drop(topology);
        drop(sections);
        // The last reference to a thread ends it, which nobody should wait for under a lock.
        drop(replaced);
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
