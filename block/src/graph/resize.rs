//! `block_resize`: another size for a node under its users.

use std::sync::Arc;

use super::Graph;
use super::parent::Parent;
use crate::driver::limits::MAX_SIZE;
use crate::error::{BlockError, Result};
use crate::node::Node;
use crate::permission::Access;

/// What the node is to the operation.
pub(super) const ROLE: &str = "resize";

/// Takes its right back, however the operation ends.
struct Claimed<'a> {
    graph: &'a Graph,
    node: &'a Arc<Node>,
    parent: Parent,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.graph.let_go(self.node, &self.parent, ROLE);
    }
}

impl Graph {
    /// Makes `node` `size` bytes long, inside a section of its own. New bytes are zeroes.
    ///
    /// Call it from a task that holds no token of a disk above the node.
    ///
    /// # Errors
    /// A job has the node, or a user above it does not share resizing; a read-only node; what the
    /// driver and the medium refuse.
    pub async fn resize(&self, node: &Arc<Node>, size: u64) -> Result<()> {
        node.check_not_blocked()?;
        if size > MAX_SIZE {
            return Err(BlockError::Refused(format!(
                "Required too big image size, it must be not greater than {MAX_SIZE}"
            )));
        }
        let section = self.drain(node, "block_resize").await;
        let claimed = Claimed {
            graph: self,
            node,
            parent: Parent::Claim("the command block_resize".into()),
        };
        let mut change = self.transaction();
        change.check_present(node)?;
        // Again: a job may have taken it while the section waited for its requests.
        node.check_not_blocked()?;
        change.attach(node, claimed.parent.clone(), ROLE, Access::OF_RESIZE);
        change.commit()?;
        node.resize(size).await?;
        drop(claimed);
        drop(section);
        Ok(())
    }
}
