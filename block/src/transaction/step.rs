//! [`Step`]: an action that was done and can still be undone.

use std::sync::Arc;

use super::Action;
use crate::error::{BlockError, Result};
use crate::graph::Graph;
use crate::graph::bitmaps::BitmapChange;
use crate::graph::snapshot::Snapshot;

/// See the [module](self).
pub(super) enum Step {
    Bitmap(BitmapChange),
    Snapshot(Snapshot),
}

impl Step {
    /// Does the action.
    ///
    /// # Errors
    /// Why it can't be done; then it has changed nothing.
    pub(super) async fn prepare(graph: &Arc<Graph>, action: &Action) -> Result<Self> {
        Ok(match action {
            Action::Abort => {
                let text = "Transaction aborted using Abort action";
                return Err(BlockError::Refused(text.to_owned()));
            }
            Action::Bitmap(bitmap) => Self::Bitmap(graph.prepare_bitmap(bitmap)?),
            Action::Snapshot { node, overlay } => {
                let node = graph.device_or_node(node)?;
                let overlay = graph.device_or_node(overlay)?;
                Self::Snapshot(graph.snapshot(&node, &overlay).await?)
            }
        })
    }

    /// Makes it final.
    pub(super) fn commit(self) {
        match self {
            Self::Bitmap(change) => change.commit(),
            Self::Snapshot(_) => {}
        }
    }

    /// As if it had never been. What was done after it has been undone before.
    pub(super) fn undo(self, graph: &Graph) {
        match self {
            Self::Bitmap(change) => change.undo(),
            Self::Snapshot(snapshot) => graph.undo_snapshot(snapshot),
        }
    }
}
