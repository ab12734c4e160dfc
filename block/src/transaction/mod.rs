//! Transactions of commands: several actions happen at one instant, or none does.
//!
//! Every node that an action is about is drained before the first is prepared, until the last is final or
//! undone: to the guest all of them happen between two of its requests, on all of its disks. Each
//! action does its part when it is prepared, so later ones see it. If one fails, those before it are
//! undone, the last first, and everything is as it was, what files hold included.

mod step;
mod targets;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::Deserialize;
use sluice_aio::AioContext;

use crate::backup::{BlockdevBackup, DriveBackup};
use crate::dirty::{NamedBitmap, NamedBitmapError};
use crate::drain::Section;
use crate::error::{BlockError, Contested, Result};
use crate::graph::{BitmapAction, BitmapSource, Graph, SnapshotSync};
use crate::node::Node;
use step::{Step, World};
use targets::Targets;

/// Whose sections they are.
const HOLDER: &str = "transaction";

/// One action of a transaction.
#[derive(Clone, Debug)]
pub enum Action {
    /// Fails, and with it the transaction.
    Abort,
    /// A command on dirty bitmaps.
    Bitmap(BitmapAction),
    /// `blockdev-snapshot`.
    Snapshot {
        /// The node, or a disk.
        node: String,
        /// What is put above it.
        overlay: String,
    },
    /// `blockdev-snapshot-sync`. The overlay's file is opened before anything else.
    SnapshotSync(Box<SnapshotSync>),
    /// `blockdev-backup`.
    BlockdevBackup(Box<BlockdevBackup>),
    /// `drive-backup`. The target's file is opened before anything else is done, and emptied when nothing can fail any
    /// more; one that was made goes if the transaction fails.
    DriveBackup(Box<DriveBackup>),
}

impl Action {
    /// Its type in QMP.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Bitmap(BitmapAction::Add(_)) => "block-dirty-bitmap-add",
            Self::Bitmap(BitmapAction::Remove(_)) => "block-dirty-bitmap-remove",
            Self::Bitmap(BitmapAction::Clear(_)) => "block-dirty-bitmap-clear",
            Self::Bitmap(BitmapAction::Enable(_)) => "block-dirty-bitmap-enable",
            Self::Bitmap(BitmapAction::Disable(_)) => "block-dirty-bitmap-disable",
            Self::Bitmap(BitmapAction::Merge(_)) => "block-dirty-bitmap-merge",
            Self::Snapshot { .. } => "blockdev-snapshot",
            Self::SnapshotSync(_) => "blockdev-snapshot-sync",
            Self::BlockdevBackup(_) => "blockdev-backup",
            Self::DriveBackup(_) => "drive-backup",
        }
    }

    /// The names of the nodes that it is about, or of their disks.
    fn nodes(&self) -> Vec<&str> {
        match self {
            Self::Abort => Vec::new(),
            Self::Bitmap(bitmap) => {
                let mut nodes = vec![bitmap.node()];
                if let BitmapAction::Merge(merge) = bitmap {
                    nodes.extend(merge.bitmaps.iter().filter_map(|source| match source {
                        BitmapSource::Local(_) => None,
                        BitmapSource::External(source) => Some(source.node.as_str()),
                    }));
                }
                nodes
            }
            Self::Snapshot { node, overlay } => vec![node, overlay],
            Self::SnapshotSync(snapshot) => vec![snapshot.node()],
            Self::BlockdevBackup(backup) => vec![&backup.common.device],
            Self::DriveBackup(backup) => vec![&backup.common.device],
        }
    }

    /// The `error` by which it failed. That tells whether another action of its transaction has what it wanted, which is what
    /// `explains` says of the error, and of the bitmaps that it may be about.
    fn blame(
        &self,
        error: BlockError,
        graph: &Graph,
        explains: impl FnOnce(&BlockError, &[Arc<NamedBitmap>]) -> bool,
    ) -> BlockError {
        let bitmaps = self.bitmaps_of(&error, graph);
        if !explains(&error, &bitmaps) {
            return error;
        }
        let contested = self.contested(&error);
        BlockError::OfTransaction(Box::new(error), contested)
    }

    /// The bitmaps that it may have wanted and, by `error`, did not get.
    fn bitmaps_of(&self, error: &BlockError, graph: &Graph) -> Vec<Arc<NamedBitmap>> {
        let nodes = self.nodes().into_iter();
        match error {
            BlockError::Bitmap(NamedBitmapError::Busy(name) | NamedBitmapError::Exists(name)) => {
                let bitmaps = nodes.filter_map(|node| graph.bitmap_of(node, name));
                bitmaps.collect()
            }
            // All share the room.
            BlockError::Bitmap(error) if error.is_no_room() => {
                nodes.flat_map(|node| graph.bitmaps_of(node)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What it wanted and, by `error`, another action of its transaction has.
    fn contested(&self, error: &BlockError) -> Contested {
        let node = match error {
            BlockError::Busy { node, .. } => node,
            BlockError::Bitmap(error) if error.is_no_room() => return Contested::Room,
            _ => return Contested::Own,
        };
        let is_disk = match self {
            Self::BlockdevBackup(backup) => backup.common.device == *node,
            Self::DriveBackup(backup) => backup.common.device == *node,
            // Of an overlay there may be another.
            Self::Snapshot { overlay, .. } => overlay != node,
            Self::SnapshotSync(_) => true,
            Self::Abort | Self::Bitmap(_) => false,
        };
        if is_disk {
            Contested::Disk
        } else {
            Contested::Own
        }
    }

    /// Whether it begins a job, which can be grouped with others.
    fn begins_job(&self) -> bool {
        matches!(self, Self::BlockdevBackup(_) | Self::DriveBackup(_))
    }
}

/// Whether the jobs of a transaction succeed together (QMP's `ActionCompletionMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompletionMode {
    /// Each ends by itself.
    #[default]
    Individual,
    /// If one fails or is cancelled, all are cancelled.
    Grouped,
}

impl CompletionMode {
    fn name(self) -> &'static str {
        match self {
            Self::Individual => "individual",
            Self::Grouped => "grouped",
        }
    }
}

/// Does all actions, or none; jobs run in `main` if no loop serves their disks. Call it from a task that
/// holds no token of a disk.
///
/// # Errors
/// The first that an action met; then everything is as it was.
pub async fn transact(
    graph: &Arc<Graph>,
    actions: &[Action],
    mode: CompletionMode,
    main: &AioContext,
) -> Result<()> {
    let mut group = None;
    if mode == CompletionMode::Grouped {
        check_groupable(actions, mode)?;
        group = Some(Arc::default());
    }
    // Opening files takes time, for which no guest is to be held.
    let mut targets = Targets::open(graph, actions).await?;
    let world = World {
        graph,
        group: group.as_ref(),
        main,
    };
    let done = act(&world, actions, &mut targets).await;
    targets.close(done.is_ok()).await;
    done
}

async fn act(world: &World<'_>, actions: &[Action], targets: &mut Targets<'_>) -> Result<()> {
    let section = drain(world.graph, actions).await;
    targets.hand_over();
    let mut steps = Vec::new();
    for (action, target) in actions.iter().zip(&targets.of_actions) {
        match Step::prepare(world, action, target.node()).await {
            Ok(step) => steps.push(step),
            Err(error) => {
                let error = action.blame(error, world.graph, |error, bitmaps| {
                    steps.iter().any(|step| step.explains(error, bitmaps))
                });
                for step in steps.into_iter().rev() {
                    step.undo(world.graph).await;
                }
                return Err(error);
            }
        }
    }
    targets.give();
    let started: Vec<_> = steps.into_iter().filter_map(Step::commit).collect();
    drop(section);
    for job in started {
        job.begun().await;
    }
    Ok(())
}

/// # Errors
/// An action has nothing that could complete with others.
fn check_groupable(actions: &[Action], mode: CompletionMode) -> Result<()> {
    match actions.iter().find(|action| !action.begins_job()) {
        None => Ok(()),
        Some(action) => Err(BlockError::Refused(format!(
            "Action '{}' does not support transaction property completion-mode = {}",
            action.name(),
            mode.name()
        ))),
    }
}

/// A section over all nodes that the actions are about. A name that means nothing is the action's to
/// complain of.
async fn drain(graph: &Graph, actions: &[Action]) -> Section {
    let mut nodes: Vec<Arc<Node>> = Vec::new();
    for name in actions.iter().flat_map(Action::nodes) {
        if let Ok(node) = graph.device_or_node(name)
            && !nodes.iter().any(|known| Arc::ptr_eq(known, &node))
        {
            nodes.push(node);
        }
    }
    graph.drain_nodes(&nodes, HOLDER).await
}
