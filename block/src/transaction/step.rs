//! [`Step`]: an action that was done and can still be undone.

use std::sync::Arc;

use sluice_aio::AioContext;

use super::Action;
use crate::backup;
use crate::dirty::NamedBitmap;
use crate::error::{BlockError, Result};
use crate::graph::Graph;
use crate::graph::bitmaps::BitmapChange;
use crate::graph::snapshot::Snapshot;
use crate::job::{Job, JobGroup};
use crate::node::Node;

/// Where the actions of one transaction are done.
pub(super) struct World<'a> {
    pub(super) graph: &'a Arc<Graph>,
    /// The jobs that it begins succeed together.
    pub(super) group: Option<&'a Arc<JobGroup>>,
    pub(super) main: &'a AioContext,
}

/// See the [module](self).
pub(super) enum Step {
    Bitmap(BitmapChange),
    Snapshot(Snapshot),
    Backup(backup::Prepared),
}

impl Step {
    /// Does the action; `target` is the file that was opened for it.
    ///
    /// # Errors
    /// Why it can't be done; then it has changed nothing.
    pub(super) async fn prepare(
        world: &World<'_>,
        action: &Action,
        target: Option<&Arc<Node>>,
    ) -> Result<Self> {
        let World { graph, group, main } = *world;
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
            Action::SnapshotSync(snapshot) => {
                let node = graph.device_or_node(snapshot.node())?;
                let path = || snapshot.snapshot_file.display().to_string();
                let overlay = target.ok_or_else(|| BlockError::NodeNotFound(path()))?;
                Self::Snapshot(graph.snapshot(&node, overlay).await?)
            }
            Action::BlockdevBackup(backup) => {
                let target = graph.device_or_node(&backup.target)?;
                let prepared = backup::prepare(graph, &backup.common, &target, group, main)?;
                Self::Backup(prepared)
            }
            Action::DriveBackup(backup) => {
                let path = || backup.target.display().to_string();
                let target = target.ok_or_else(|| BlockError::NodeNotFound(path()))?;
                let prepared = backup::prepare(graph, &backup.common, target, group, main)?;
                Self::Backup(prepared)
            }
        })
    }

    /// Whether it keeps what `error` complains of. `bitmaps` are those that an error about a bitmap may mean.
    pub(super) fn explains(&self, error: &BlockError, bitmaps: &[Arc<NamedBitmap>]) -> bool {
        match self {
            Self::Bitmap(change) => change.explains(error, bitmaps),
            Self::Snapshot(snapshot) => snapshot.explains(error),
            Self::Backup(prepared) => prepared.kept().explains(error, bitmaps),
        }
    }

    /// Makes it final. Returns the job that it has started.
    pub(super) fn commit(self) -> Option<Arc<Job>> {
        match self {
            Self::Bitmap(change) => change.commit(),
            Self::Snapshot(_) => {}
            Self::Backup(prepared) => return Some(prepared.start()),
        }
        None
    }

    /// As if it had never been. What was done after it has been undone before.
    pub(super) async fn undo(self, graph: &Graph) {
        match self {
            Self::Bitmap(change) => change.undo(),
            Self::Snapshot(snapshot) => graph.undo_snapshot(snapshot),
            Self::Backup(prepared) => prepared.undo().await,
        }
    }
}
