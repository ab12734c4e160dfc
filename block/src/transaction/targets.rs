//! [`Targets`]: the files that actions name. All are opened before any node is drained, and what they hold stays until
//! all actions are done.

use std::sync::Arc;

use super::Action;
use crate::backup;
use crate::dirty::NamedBitmap;
use crate::error::{BlockError, Result};
use crate::graph::Graph;
use crate::node::Node;

/// What one action has opened.
pub(super) enum Target<'a> {
    Nothing,
    Backup(backup::Target<'a>),
    Overlay(Arc<Node>),
}

impl<'a> Target<'a> {
    async fn open(graph: &'a Arc<Graph>, action: &Action) -> Result<Self> {
        Ok(match action {
            Action::DriveBackup(backup) => Self::Backup(backup::Target::open(graph, backup).await?),
            Action::SnapshotSync(snapshot) => Self::Overlay(graph.open_overlay(snapshot).await?.1),
            _ => Self::Nothing,
        })
    }

    pub(super) fn node(&self) -> Option<&Arc<Node>> {
        match self {
            Self::Nothing => None,
            Self::Backup(target) => Some(target.node()),
            Self::Overlay(node) => Some(node),
        }
    }
}

/// See the [module](self). In the order of the actions; to be [closed](Self::close).
#[must_use = "they are to be closed"]
pub(super) struct Targets<'a> {
    graph: &'a Graph,
    pub(super) of_actions: Vec<Target<'a>>,
}

impl<'a> Targets<'a> {
    /// Opens all. What files hold stays.
    ///
    /// # Errors
    /// What speaks against one of the actions by itself; then everything is as it was.
    pub(super) async fn open(graph: &'a Arc<Graph>, actions: &[Action]) -> Result<Self> {
        let of_actions = Vec::new();
        let mut targets = Self { graph, of_actions };
        for action in actions {
            match Target::open(graph, action).await {
                Ok(target) => targets.of_actions.push(target),
                Err(error) => return Err(targets.refuse(action, error).await),
            }
        }
        // Each is found out when its backup is prepared, too; but by then guests are held.
        for action in actions {
            if let Action::BlockdevBackup(backup) = action
                && let Err(error) = backup::check_file(graph, backup)
            {
                return Err(targets.refuse(action, error).await);
            }
        }
        Ok(targets)
    }

    /// That `error` speaks against `action`; everything is as it was.
    async fn refuse(self, action: &Action, error: BlockError) -> BlockError {
        let explains = |error: &_, bitmaps: &[_]| self.explain(error, bitmaps);
        let error = action.blame(error, self.graph, explains);
        self.close(false).await;
        error
    }

    /// Whether one of them keeps what `error` of a further action complains of; of `bitmaps`, if that is about one.
    fn explain(&self, error: &BlockError, bitmaps: &[Arc<NamedBitmap>]) -> bool {
        self.of_actions.iter().any(|target| match target {
            Target::Backup(target) => target.kept().explains(error, bitmaps),
            Target::Nothing | Target::Overlay(_) => false,
        })
    }

    /// No action can fail any more: files go to their jobs, and what they hold that is not to be kept is gone.
    pub(super) fn give(&self) {
        for target in &self.of_actions {
            if let Target::Backup(target) = target {
                target.give();
            }
        }
    }

    /// The actions are done at once, and take for themselves what was kept for them.
    pub(super) fn hand_over(&mut self) {
        for target in &mut self.of_actions {
            if let Target::Backup(target) = target {
                target.hand_over();
            }
        }
    }

    /// Closes those that nobody uses; files that were made go if the transaction has failed.
    pub(super) async fn close(self, is_done: bool) {
        for target in self.of_actions {
            match target {
                Target::Nothing => {}
                Target::Backup(target) => target.close(is_done).await,
                Target::Overlay(node) => self.graph.remove_if_unused(&node),
            }
        }
    }
}
