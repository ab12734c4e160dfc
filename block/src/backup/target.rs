//! [`Target`]: the file that a `drive-backup` has named, and what its job needs, kept for it until it begins. So
//! hardly anything can refuse the command any more once the disk is drained.

use std::sync::Arc;

use super::arguments::DriveBackup;
use super::bitmap::SyncBitmap;
use super::kept::Kept;
use super::start::{check_pair, check_source, job_options, no_marks};
use crate::driver::copy_before_write::TARGET_ACCESS;
use crate::error::Result;
use crate::graph::file_target::{FileTarget, Wanted};
use crate::graph::parent::Parent;
use crate::graph::undo::Undo;
use crate::graph::{Graph, HeldName};
use crate::job::JobKind;
use crate::node::Node;

/// What the target is to who keeps it.
const ROLE: &str = "target";

/// See the [module](self). To be [closed](Self::close).
#[must_use = "it is to be closed"]
pub(crate) struct Target<'a> {
    graph: &'a Arc<Graph>,
    file: FileTarget,
    /// Stands above the target until the job does: other programs keep away.
    parent: Parent,
    /// Gives back what is kept.
    undo: Option<Undo<'a>>,
    kept: Kept,
}

impl<'a> Target<'a> {
    /// Opens the target of a backup that nothing speaks against. What the file holds stays.
    ///
    /// # Errors
    /// Why there can be no such backup, and what the file system says; then everything is as it was.
    pub(crate) async fn open(graph: &'a Arc<Graph>, arguments: &DriveBackup) -> Result<Self> {
        let common = &arguments.common;
        let wanted = Wanted {
            file: &arguments.target,
            format: arguments.format.as_deref(),
            mode: arguments.mode,
            node_name: None,
            unmap: true,
        };
        wanted.check("drive-backup")?;
        let source = graph.device_or_node(&common.device)?;
        check_source(&source, &common.device)?;
        let shape = common.shape()?;
        let bitmap = common.sync_bitmap(&source)?;
        let options = job_options(common, &source, None)?;
        let blocker = JobKind::Backup.named(options.id.as_str());
        no_marks(shape, source.len())?;
        let held_id = graph.jobs().hold(&options.id)?;
        let name = common.filter_node_name.as_deref();
        let held_name = name.map(|name| HeldName::new(graph, name)).transpose()?;

        let named = bitmap.as_ref().map(SyncBitmap::named);
        let kept = Kept::new(options.id, common.filter_node_name.clone(), named);
        let mut undo = Undo::new(graph);
        undo.push(move |_| drop((held_id, held_name)));
        undo.block(&source, &blocker)?;
        if let Some(bitmap) = bitmap {
            bitmap.occupy();
            undo.push(move |_| bitmap.release());
        }
        let file = FileTarget::open(graph, wanted, source.len()).await;
        let file = file.map_err(|error| graph.naming_job_of_file(error, &blocker))?;
        let mut target = Self {
            graph,
            file,
            parent: Parent::Claim(blocker.as_str().into()),
            undo: Some(undo),
            kept,
        };
        match target.claim(&source, &blocker) {
            Ok(()) => Ok(target),
            Err(error) => {
                target.close(false).await;
                Err(error)
            }
        }
    }

    fn claim(&mut self, source: &Arc<Node>, blocker: &str) -> Result<()> {
        let node = &self.file.node;
        check_pair(source, node)?;
        self.graph.check_file_is_nobodys(node, blocker)?;
        if let Some(undo) = &mut self.undo {
            undo.block(node, blocker)?;
        }
        let mut change = self.graph.transaction();
        change.check_present(source)?;
        change.attach(node, self.parent.clone(), ROLE, TARGET_ACCESS);
        change.commit()
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.file.node
    }

    /// What nobody else gets any more.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// See [`FileTarget::give`].
    pub(crate) fn give(&self) {
        self.file.give();
    }

    /// The job is prepared at once, and takes for itself what was kept for it.
    pub(crate) fn hand_over(&mut self) {
        self.undo = None;
    }

    /// The job has it, or there is none and all is given back.
    pub(crate) async fn close(self, is_used: bool) {
        // While nobody else can have the file.
        self.file.end(is_used).await;
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        self.hand_over();
        self.graph.let_go(&self.file.node, &self.parent, ROLE);
    }
}
