//! [`Replaced`]: the node whose place the target takes at the pivot, if it is not the source itself
//! (`replaces`).
//!
//! It has to show what the source shows, or those above it would see other data all at once: the source is it,
//! or stands above it with nothing but filters in between. That is looked at when the mirror is asked for and
//! again in the pivot's section; from `complete` on the node is the job's alone.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::driver::Edge;
use crate::error::{BlockError, Result};
use crate::graph::Graph;
use crate::graph::transaction::Transaction;
use crate::job::{Job, JobError, VerbError};
use crate::node::Node;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Replaced {
    name: String,
    source: Arc<Node>,
    /// As whose a node that is taken counts: the job's type and id.
    blocker: String,
    /// The node, once the job is to complete.
    taken: Mutex<Option<Arc<Node>>>,
}

/// Whether `top` shows what `node` shows, at every moment.
fn shows(top: &Arc<Node>, node: &Arc<Node>) -> bool {
    if Arc::ptr_eq(top, node) {
        return true;
    }
    let filtered = top.driver().filtered().filter(|_| top.driver().is_filter());
    filtered.is_some_and(|edge: &Edge| shows(&edge.node(), node))
}

impl Replaced {
    /// The node of that name in the graph as it is now.
    ///
    /// # Errors
    /// There is none, a job has it, it may show something else than the source, or is of another size.
    pub(super) fn new(
        graph: &Graph,
        source: &Arc<Node>,
        name: &str,
        blocker: String,
    ) -> Result<Self> {
        let node = graph.node(name)?;
        node.check_not_blocked()?;
        if !shows(source, &node) {
            let source = source.name();
            return Err(BlockError::Refused(format!(
                "Cannot replace '{name}' by a node mirrored from '{source}', because it cannot be guaranteed \
                 that doing so would not lead to an abrupt change of visible data"
            )));
        }
        if node.len() != source.len() {
            return Err(BlockError::Refused(
                "cannot replace image with a mirror image of different size".to_owned(),
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            source: Arc::clone(source),
            blocker,
            taken: Mutex::default(),
        })
    }

    /// The job is to complete: takes the node, which may be another of the same name by now. Nothing if it
    /// has it already.
    ///
    /// # Errors
    /// There is none any more, or another job has it.
    pub(super) fn take(&self, graph: &Graph, job: &Arc<Job>) -> std::result::Result<(), VerbError> {
        let mut taken = self.taken.lock();
        if taken.is_some() {
            return Ok(());
        }
        let refused = |text: String| VerbError::Refused(text);
        let node = graph.node(&self.name);
        let node = node.map_err(|_| refused(format!("Node name '{}' not found", self.name)))?;
        if !Arc::ptr_eq(&node, &self.source) {
            let blocked = node.block(&self.blocker);
            blocked.map_err(|error| refused(error.to_string()))?;
            node.blocker_has_begun(job);
        }
        *taken = Some(node);
        Ok(())
    }

    /// Gives the node back.
    pub(super) fn let_go(&self) {
        let taken = self.taken.lock().take();
        if let Some(node) = taken.filter(|node| !Arc::ptr_eq(node, &self.source)) {
            node.unblock();
        }
    }

    /// The node, if it was taken and is another than the source.
    pub(super) fn node(&self) -> Option<Arc<Node>> {
        let taken = self.taken.lock().clone();
        taken.filter(|node| !Arc::ptr_eq(node, &self.source))
    }
}

/// Points to `target` who stands above `node`, as a part of a pivot. Inside sections of both.
///
/// # Errors
/// The graph has changed, and the source may show something else than the node by now; it is gone; or somebody
/// relies on it.
pub(super) fn replace(
    change: &mut Transaction<'_>,
    source: &Arc<Node>,
    node: &Arc<Node>,
    target: &Arc<Node>,
) -> std::result::Result<(), JobError> {
    if change.check_present(node).is_err() || !shows(source, node) {
        return Err(JobError::Failed(format!(
            "Can no longer replace '{}' by '{}', because it can no longer be guaranteed that doing so would not \
             lead to an abrupt change of visible data",
            node.name(),
            target.name()
        )));
    }
    let moved = change.move_parents(node, target);
    moved.map_err(|error| JobError::Failed(error.to_string()))
}
