//! The commands `blockdev-backup` and `drive-backup`: everything that can be wrong is found before the
//! guest's disk is touched, and a job that is prepared can be taken back until it is started.

use std::sync::Arc;

use sluice_aio::AioContext;

use super::arguments::{BackupCommon, BackupSync, BlockdevBackup, DriveBackup, Shape};
use super::bitmap::{End, SyncBitmap};
use super::job::BackupJob;
use super::kept::Kept;
use super::target::Target;
use crate::dirty::{BitmapError, DirtyBitmap, Granularity};
use crate::driver::copy_before_write::{Copier, CopyBeforeWrite};
use crate::error::{BlockError, Result};
use crate::graph::Graph;
use crate::graph::home::MAIN_NODE;
use crate::graph::parent::Parent;
use crate::graph::transaction::Transaction;
use crate::graph::undo::Undo;
use crate::job::{Job, JobGroup, JobKind, JobOptions};
use crate::node::Node;
use crate::permission::Access;

/// What the filter's node is to the job.
pub(super) const FILTER_ROLE: &str = MAIN_NODE;
/// Whose section the start is.
const HOLDER: &str = "start of a backup";

pub(super) fn refused(text: impl Into<String>) -> BlockError {
    BlockError::Refused(text.into())
}

/// Starts a backup onto an existing node; `main` is where it runs if no loop serves the source.
///
/// Call it from a task. On an error nothing has changed.
///
/// # Errors
/// What QEMU refuses, with its texts.
pub async fn blockdev_backup(
    graph: &Arc<Graph>,
    arguments: &BlockdevBackup,
    main: &AioContext,
) -> Result<()> {
    let target = graph.device_or_node(&arguments.target)?;
    begin(graph, &arguments.common, &target, main).await
}

/// Starts a backup onto a raw file, which is created first if `mode` says so.
///
/// Call it from a task. On an error nothing has changed, and the file is as it was, or is not there if it was not.
///
/// # Errors
/// As [`blockdev_backup`], and what the file system says.
pub async fn drive_backup(
    graph: &Arc<Graph>,
    arguments: &DriveBackup,
    main: &AioContext,
) -> Result<()> {
    let mut target = Target::open(graph, arguments).await?;
    let started = begin_onto(graph, &arguments.common, &mut target, main).await;
    target.close(started.is_ok()).await;
    started
}

async fn begin_onto(
    graph: &Arc<Graph>,
    common: &BackupCommon,
    target: &mut Target<'_>,
    main: &AioContext,
) -> Result<()> {
    let source = graph.device_or_node(&common.device)?;
    let section = graph.drain(&source, HOLDER).await;
    target.hand_over();
    let prepared = prepare(graph, common, target.node(), None, main)?;
    target.give();
    let job = prepared.start();
    drop(section);
    job.begun().await;
    Ok(())
}

async fn begin(
    graph: &Arc<Graph>,
    common: &BackupCommon,
    target: &Arc<Node>,
    main: &AioContext,
) -> Result<()> {
    let source = graph.device_or_node(&common.device)?;
    let plan = Plan {
        graph,
        common,
        source: &source,
        target,
        group: None,
    };
    // Before the section, which may have to wait: nobody takes one of them away meanwhile, and who is refused anyway
    // waits for nothing.
    let claim = plan.claim()?;
    let section = graph.drain(&source, HOLDER).await;
    let job = plan.prepare(claim, main)?.start();
    drop(section);
    job.begun().await;
    Ok(())
}

/// # Errors
/// A job has the source.
pub(super) fn check_source(source: &Node, device: &str) -> Result<()> {
    let not_blocked = source.check_not_blocked();
    not_blocked.map_err(|error| error.naming(device))
}

pub(super) fn check_pair(source: &Arc<Node>, target: &Arc<Node>) -> Result<()> {
    let source_files = source.files();
    let mut target_files = target.files().into_iter();
    let same_file = target_files.any(|file| source_files.contains(&file));
    if Arc::ptr_eq(source, target) || same_file {
        return Err(refused(format!(
            "Source and target cannot be the same: source '{}' and target '{}' are the same image",
            source.info().filename,
            target.info().filename
        )));
    }
    if target.stands_on(source) || source.stands_on(target) {
        return Err(refused(format!(
            "Source and target cannot be the same: '{}' and '{}' stand one on the other; back up to a node of its own",
            source.name(),
            target.name()
        )));
    }
    target.check_not_blocked()?;
    target.check_no_disks("back up")?;
    if target.is_read_only() {
        return Err(BlockError::ReadOnly(target.name().to_owned()));
    }
    source.check_same_size(target)
}

/// What can be known before anything is done.
///
/// # Errors
/// Another job has a node of the target's file.
pub(crate) fn check_file(graph: &Arc<Graph>, arguments: &BlockdevBackup) -> Result<()> {
    let common = &arguments.common;
    // Whatever else is wrong is said when the backup is prepared.
    let (Ok(source), Ok(target)) = (
        graph.device_or_node(&common.device),
        graph.device_or_node(&arguments.target),
    ) else {
        return Ok(());
    };
    let options = job_options(common, &source, None);
    options.map_or(Ok(()), |options| {
        graph.check_file_is_nobodys(&target, &Plan::blocker(&options))
    })
}

pub(super) fn job_options(
    common: &BackupCommon,
    source: &Node,
    group: Option<&Arc<JobGroup>>,
) -> Result<JobOptions> {
    let mut options = JobOptions::asked_for(
        source,
        common.job_id.as_deref(),
        common.speed,
        common.auto_finalize,
        common.auto_dismiss,
    )?;
    options.group = group.map(Arc::clone);
    Ok(options)
}

/// No marks yet.
///
/// # Errors
/// There is no bitmap for clusters of this size, or of that many.
pub(super) fn no_marks(shape: Shape, size: u64) -> Result<DirtyBitmap> {
    let in_words = |error: BitmapError| refused(error.to_string());
    let granularity = Granularity::of_named(shape.cluster).map_err(in_words)?;
    DirtyBitmap::new(size, granularity).map_err(in_words)
}

/// What is to be copied at first, as far as that is known without looking at the source.
fn marks(
    common: &BackupCommon,
    shape: Shape,
    size: u64,
    says: Option<&DirtyBitmap>,
) -> Result<DirtyBitmap> {
    let to_copy = no_marks(shape, size)?;
    match (common.sync, says) {
        (BackupSync::Incremental | BackupSync::Bitmap, Some(says)) => to_copy.merge(says),
        _ => to_copy.set_all(),
    }
    Ok(to_copy)
}

/// A job that stands ready, its filter in place.
#[derive(Debug)]
#[must_use = "it is to be started or taken back"]
pub(crate) struct Prepared {
    graph: Arc<Graph>,
    job: Arc<Job>,
    ends: Ends,
    kept: Kept,
}

/// What a backup holds, to be given back at its end.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) source: Arc<Node>,
    pub(super) filter: Arc<Node>,
    pub(super) target: Arc<Node>,
    pub(super) bitmap: Option<Arc<SyncBitmap>>,
}

impl Ends {
    /// Takes the filter out. Inside a section of it.
    pub(super) fn take_filter_out(&self, graph: &Graph) {
        if let Err(error) = graph.replace_filter(&self.filter, &self.source) {
            tracing::error!(%error, "the backup's filter can't be taken out");
        }
    }

    /// Gives the nodes back, once the filter is out; not a target that was left to its requests.
    pub(super) fn let_go(&self, graph: &Graph, job: &Arc<Job>, target_left: bool) {
        graph.remove_job_parent(&self.filter, job, FILTER_ROLE);
        graph.remove_if_unused(&self.filter);
        self.source.unblock();
        if !target_left {
            self.target.unblock();
        }
        graph.remove_if_unused(&self.source);
        graph.remove_if_unused(&self.target);
    }
}

impl Prepared {
    /// Returns the job.
    pub(crate) fn start(self) -> Arc<Job> {
        self.job.start();
        self.job
    }

    /// What nobody else gets any more.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// As if the job had never been made. Inside the section in which it was prepared.
    pub(crate) async fn undo(self) {
        let Self {
            graph, job, ends, ..
        } = self;
        ends.take_filter_out(&graph);
        if let Some(bitmap) = &ends.bitmap {
            bitmap.end(End::NotBegun);
        }
        ends.let_go(&graph, &job, false);
        job.discard();
        job.concluded().await;
    }
}

/// Makes a backup ready. Inside a section of the source.
///
/// # Errors
/// Why there can be none; then nothing has changed.
pub(crate) fn prepare(
    graph: &Arc<Graph>,
    common: &BackupCommon,
    target: &Arc<Node>,
    group: Option<&Arc<JobGroup>>,
    main: &AioContext,
) -> Result<Prepared> {
    let source = graph.device_or_node(&common.device)?;
    let plan = Plan {
        graph,
        common,
        source: &source,
        target,
        group,
    };
    plan.prepare(plan.claim()?, main)
}

/// A backup that is asked for, and its nodes.
struct Plan<'a> {
    graph: &'a Arc<Graph>,
    common: &'a BackupCommon,
    source: &'a Arc<Node>,
    target: &'a Arc<Node>,
    group: Option<&'a Arc<JobGroup>>,
}

impl<'a> Plan<'a> {
    fn options(&self) -> Result<JobOptions> {
        job_options(self.common, self.source, self.group)
    }

    fn blocker(options: &JobOptions) -> String {
        JobKind::Backup.named(options.id.as_str())
    }

    /// Takes both nodes for the job, until what is returned is dropped.
    ///
    /// # Errors
    /// What can be wrong with them, and with the rest as far as it can be seen now.
    fn claim(&self) -> Result<Undo<'a>> {
        check_source(self.source, &self.common.device)?;
        check_pair(self.source, self.target)?;
        self.common.shape()?;
        self.common.sync_bitmap(self.source)?;
        let blocker = Self::blocker(&self.options()?);
        self.graph.check_file_is_nobodys(self.target, &blocker)?;
        let mut undo = Undo::new(self.graph);
        undo.block(self.source, &blocker)?;
        undo.block(self.target, &blocker)?;
        Ok(undo)
    }

    /// Makes it ready, its nodes claimed. Inside a section of the source.
    ///
    /// # Errors
    /// Why there can be none; then nothing has changed, and the claim is gone.
    fn prepare(&self, claim: Undo<'_>, main: &AioContext) -> Result<Prepared> {
        let Self {
            graph,
            common,
            source,
            target,
            ..
        } = *self;
        let mut undo = claim;
        graph.check_has(source, &common.device)?;
        let shape = common.shape()?;
        let bitmap = common.sync_bitmap(source)?.map(Arc::new);
        let options = self.options()?;
        let blocker = Self::blocker(&options);
        let mut says = None;
        if let Some(bitmap) = &bitmap {
            says = bitmap.begin()?;
            let bitmap = Arc::clone(bitmap);
            undo.push(move |_| bitmap.end(End::NotBegun));
        }
        let to_copy = marks(common, shape, source.len(), says.as_deref())?;
        let copier = Copier::new(Arc::clone(source), Arc::clone(target), to_copy);
        let copier = Arc::new(copier);
        let driver = CopyBeforeWrite::of_job(Arc::clone(&copier), common.on_cbw_error);
        let name = common.filter_node_name.as_deref();
        let filter = undo.insert_filter(name, source, Box::new(driver), &blocker)?;
        let job = BackupJob {
            graph: Arc::clone(graph),
            ends: Ends {
                source: Arc::clone(source),
                filter: Arc::clone(&filter),
                target: Arc::clone(target),
                bitmap: bitmap.clone(),
            },
            copier,
            shape,
            sync: common.sync,
            on_source_error: common.on_source_error,
            on_target_error: common.on_target_error,
            state: Arc::default(),
        };
        let home = graph.home_of_job(&filter, main);
        let attach = |change: &mut Transaction<'_>, job: &Parent| {
            change.attach(&filter, job.clone(), FILTER_ROLE, Access::OF_JOB_FILTER);
        };
        let named = bitmap.as_deref().map(SyncBitmap::named);
        let kept = Kept::new(options.id.clone(), common.filter_node_name.clone(), named);
        let job = undo.create_job(options, Box::new(job), home, attach)?;
        Ok(Prepared {
            graph: Arc::clone(graph),
            job,
            ends: Ends {
                source: Arc::clone(source),
                filter,
                target: Arc::clone(target),
                bitmap,
            },
            kept,
        })
    }
}
