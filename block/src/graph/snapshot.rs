//! `blockdev-snapshot`: an empty layer is put above a node, and what wrote to the node writes there
//! from then on. The checks, their order and their texts are those of QEMU's command.

use std::sync::Arc;

use super::Graph;
use super::parent::ParentEdge;
use crate::error::{BlockError, Result};
use crate::node::Node;
use crate::permission::Permissions;

/// Whose section it is.
const HOLDER: &str = "blockdev-snapshot";

/// A snapshot that was made.
#[derive(Debug)]
pub struct Snapshot {
    node: Arc<Node>,
    overlay: Arc<Node>,
    /// What stood above the node.
    moved: Vec<ParentEdge>,
    was_read_only: bool,
}

impl Snapshot {
    /// Whether `error` complains of what its overlay, or the image below that, has become.
    pub(crate) fn explains(&self, error: &BlockError) -> bool {
        match error {
            BlockError::Overlay { node, .. } | BlockError::UsedByDisk { node, .. } => {
                node == self.overlay.name()
            }
            BlockError::ReadOnly(node) => !self.was_read_only && node == self.node.name(),
            _ => false,
        }
    }
}

impl Graph {
    /// Makes `node` the backing image of `overlay`, and moves the disks and nodes above `node` to
    /// `overlay`. What the guest had written before is durable in `node` then, which becomes
    /// read-only unless somebody else writes to it.
    ///
    /// Call it from a task that holds no token of a disk above either node.
    ///
    /// # Errors
    /// A job has one of them; the overlay shows its contents to somebody, is a filter, has a
    /// backing image or can't have one; a flush that fails; a conflict of permissions. Then nothing
    /// has changed.
    pub async fn snapshot(&self, node: &Arc<Node>, overlay: &Arc<Node>) -> Result<Snapshot> {
        let both = [Arc::clone(node), Arc::clone(overlay)];
        let section = self.drain_nodes(&both, HOLDER).await;
        node.check_not_blocked()?;
        node.flush().await?;
        let mut change = self.transaction();
        for node in [node, overlay] {
            change.check_present(node)?;
            // Again: a job may have taken it meanwhile.
            node.check_not_blocked()?;
        }
        check_overlay(overlay)?;
        let moved = node.edges_above();
        change.move_parents(node, overlay)?;
        change.set_backing(overlay, node)?;
        change.commit()?;
        let was_read_only = node.is_read_only();
        self.rest(node);
        drop(section);
        Ok(Snapshot {
            node: Arc::clone(node),
            overlay: Arc::clone(overlay),
            moved,
            was_read_only,
        })
    }

    /// As if there had never been a snapshot. Inside sections of both nodes that have been open since it
    /// was made.
    pub(crate) fn undo_snapshot(&self, snapshot: Snapshot) {
        let Snapshot {
            node,
            overlay,
            moved,
            was_read_only,
        } = snapshot;
        let mut change = self.transaction();
        change.set_read_only(&node, was_read_only);
        change.clear_backing(&overlay);
        let moved = change.move_edges(&overlay, &node, moved);
        if let Err(error) = moved.and_then(|()| change.commit()) {
            let (node, overlay) = (node.name(), overlay.name());
            tracing::error!(node, overlay, %error, "a snapshot can't be undone");
        }
    }

    /// Makes a backing image read-only. That somebody writes to it all the same is no reason to
    /// fail: the snapshot is made.
    fn rest(&self, node: &Arc<Node>) {
        if let Err(error) = self.set_read_only(node, true) {
            tracing::debug!(node = node.name(), %error, "a backing image stays writable");
        }
    }
}

/// # Errors
/// It can't be put above a node.
fn check_overlay(overlay: &Node) -> Result<()> {
    let driver = overlay.driver();
    let why = if overlay.access().used.contains(Permissions::CONSISTENT_READ) {
        "The overlay is already in use"
    } else if driver.is_filter() {
        "Filters cannot be used as overlays"
    } else {
        match driver.backing() {
            Some(edge) if edge.node().is_some() => "The overlay already has a backing image",
            Some(_) => return Ok(()),
            None => "The overlay does not support backing images",
        }
    };
    Err(BlockError::Overlay {
        node: overlay.name().to_owned(),
        why,
    })
}
