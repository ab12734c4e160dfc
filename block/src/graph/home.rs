//! `x-blockdev-set-iothread`: in which loop work on nodes without a device is done.
//!
//! A request runs in the loop of whoever makes it
//! (docs/decisions/0004-io-runs-in-the-submitters-loop.md), so a node needs no loop for that. Its
//! *home* is where a job starts whose source no device serves. Nodes that are connected have one
//! home, also when a change of the graph connects them; a device that stands above any of them has a
//! loop of its own, which can't be changed from here.

use std::collections::HashSet;
use std::sync::Arc;

use super::Graph;
use super::transaction::Transaction;
use crate::error::{BlockError, Result};
use crate::home::Home;
use crate::node::Node;

fn active() -> BlockError {
    BlockError::Refused("Cannot change iothread of active block backend".to_owned())
}

impl Node {
    /// The loop for work on the node, with what keeps its thread: for whoever starts to work there. None
    /// is the main loop.
    pub(crate) fn home(&self) -> Option<Home> {
        self.state.lock().home.clone()
    }
}

impl Graph {
    /// Gives `node` and all that is connected with it another home, inside sections of theirs; with
    /// it goes what keeps the loop's thread. `None` is the main loop.
    ///
    /// # Errors
    /// A device serves one of them, or a job works on one: then none is changed.
    pub async fn set_home(&self, node: &Arc<Node>, home: Option<Home>) -> Result<()> {
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
                return Err(active());
            }
        }
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

impl Transaction<'_> {
    /// Gives nodes that new edges have connected one home: the child and what is connected with it go to
    /// the parent's, unless a device stands above them; then the parent goes to the child's. A node that the
    /// change adds has no home yet, and takes that of the others.
    ///
    /// A job does not stand against it: it stays in the loop that it was started in, and keeps that.
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
                    if pinned.any(|other| other.home() != home) {
                        return Err(active());
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
