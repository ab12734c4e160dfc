//! The commands `blockdev-backup` and `drive-backup`: everything that can be wrong is found before the
//! guest's disk is touched, and a job that is prepared can be taken back until it is started.

use std::path::Path;
use std::sync::Arc;

use sluice_aio::{AioContext, current};

use super::arguments::{BackupCommon, BackupSync, BlockdevBackup, DriveBackup, Shape};
use super::bitmap::{End, SyncBitmap};
use super::job::BackupJob;
use crate::dirty::{BitmapError, DirtyBitmap, Granularity};
use crate::driver::copy_before_write::{Copier, CopyBeforeWrite};
use crate::driver::file::{FileKind, create_image};
use crate::error::{BlockError, Result};
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::graph::undo::Undo;
use crate::job::{CreateError, Job, JobGroup, JobId, JobOptions};
use crate::mirror::NewImageMode;
use crate::node::Node;
use crate::options::{BlockdevOptions, Discard};
use crate::permission::{Access, Permissions};

/// The type in messages of other commands.
const JOB_TYPE: &str = "backup";
/// What the filter's node is to the job.
pub(super) const FILTER_ROLE: &str = "main node";

/// The disk keeps its size while it is copied; all else goes on.
const FILTER_ACCESS: Access = Access {
    used: Permissions::empty(),
    shared: Permissions::RESIZE.complement(),
};

fn refused(text: impl Into<String>) -> BlockError {
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
/// Call it from a task. On an error the graph has not changed; a file that was created stays.
///
/// # Errors
/// As [`blockdev_backup`], and what the file system says.
pub async fn drive_backup(
    graph: &Arc<Graph>,
    arguments: &DriveBackup,
    main: &AioContext,
) -> Result<()> {
    let target = open_target(graph, arguments).await?;
    let started = begin(graph, &arguments.common, &target, main).await;
    if started.is_err() {
        graph.remove_if_unused(&target);
    }
    started
}

async fn begin(
    graph: &Arc<Graph>,
    common: &BackupCommon,
    target: &Arc<Node>,
    main: &AioContext,
) -> Result<()> {
    let source = graph.device_or_node(&common.device)?;
    // Who is refused anyway does not wait for another job's pivot first.
    check_source(&source, &common.device)?;
    let section = graph.drain(&source, "start of a backup").await;
    let prepared = prepare(graph, common, target, None, main)?;
    prepared.start();
    drop(section);
    Ok(())
}

/// Makes the target of `drive-backup` ready: a node that goes with its last user.
///
/// # Errors
/// What needs no target to be seen, and what the file system says.
pub(crate) async fn open_target(graph: &Arc<Graph>, arguments: &DriveBackup) -> Result<Arc<Node>> {
    let common = &arguments.common;
    if let Some(format) = arguments
        .format
        .as_deref()
        .filter(|format| *format != "raw")
    {
        return Err(refused(format!(
            "Unknown driver '{format}'; targets of drive-backup can only be 'raw' yet"
        )));
    }
    // Or a file would be emptied in vain.
    let source = graph.device_or_node(&common.device)?;
    check_source(&source, &common.device)?;
    common.shape()?;
    common.sync_bitmap(&source)?;
    let id = job_options(common, &source, None)?.id.to_string();
    if graph.jobs().get(&id).is_some() {
        return Err(refused(CreateError::IdInUse { id }.to_string()));
    }
    let path = arguments.target.clone();
    if arguments.mode == NewImageMode::AbsolutePaths {
        let (path, size) = (path.clone(), source.len());
        let in_use = graph.files_in_use();
        current::blocking(move || create_image(&path, size, &in_use)).await??;
    }
    let kind = kind_of(&path).await?;
    let mut options = BlockdevOptions::raw_file(None, path, kind);
    if let BlockdevOptions::Raw(raw) = &mut options {
        raw.discard = Some(Discard::Unmap);
    }
    graph.add_implicit_node(&options).await
}

async fn kind_of(path: &Path) -> Result<FileKind> {
    let path = path.to_owned();
    Ok(current::blocking(move || FileKind::of(&path)).await?)
}

/// # Errors
/// A job has the source.
fn check_source(source: &Node, device: &str) -> Result<()> {
    match source.blocker() {
        None => Ok(()),
        // It may be the filter of that job, whose name nobody gave.
        Some(job) => Err(BlockError::Busy {
            node: device.to_owned(),
            job,
        }),
    }
}

fn check_pair(source: &Arc<Node>, target: &Arc<Node>) -> Result<()> {
    let source_files = source.files();
    let mut target_files = target.files().into_iter();
    let same_file = target_files.any(|file| source_files.contains(&file));
    if Arc::ptr_eq(source, target) || same_file {
        return Err(refused("Source and target cannot be the same"));
    }
    target.check_not_blocked()?;
    if target.is_read_only() {
        return Err(BlockError::ReadOnly(target.name().to_owned()));
    }
    if source.len() != target.len() {
        return Err(refused(format!(
            "Source and target image have different sizes: '{}' has {} bytes, '{}' has {}",
            source.info().filename,
            source.len(),
            target.info().filename,
            target.len()
        )));
    }
    Ok(())
}

fn job_options(
    common: &BackupCommon,
    source: &Node,
    group: Option<&Arc<JobGroup>>,
) -> Result<JobOptions> {
    let as_text = |error: CreateError| refused(error.to_string());
    let backends = source.backends();
    let backend = backends.first().map(|backend| backend.name());
    let id = JobId::choose(common.job_id.as_deref(), backend).map_err(as_text)?;
    let mut options = JobOptions::new(id)
        .with_speed(common.speed)
        .map_err(as_text)?;
    options.auto_finalize = common.auto_finalize.unwrap_or(true);
    options.auto_dismiss = common.auto_dismiss.unwrap_or(true);
    options.group = group.map(Arc::clone);
    Ok(options)
}

/// What is to be copied at first, as far as that is known without looking at the source.
fn marks(
    common: &BackupCommon,
    shape: Shape,
    size: u64,
    says: Option<&DirtyBitmap>,
) -> Result<DirtyBitmap> {
    let in_words = |error: BitmapError| refused(error.to_string());
    let granularity = Granularity::of_named(shape.cluster).map_err(in_words)?;
    let to_copy = DirtyBitmap::new(size, granularity).map_err(in_words)?;
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
        if let Err(error) = graph.replace_node(&self.filter, &self.source) {
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
    pub(crate) fn start(self) {
        self.job.start();
    }

    /// As if the job had never been made. Inside the section in which it was prepared.
    pub(crate) async fn undo(self) {
        let Self { graph, job, ends } = self;
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
    check_source(&source, &common.device)?;
    check_pair(&source, target)?;
    if common.compress {
        let text = "Compression is not supported for this drive";
        return Err(refused(format!("{text} {}", target.name())));
    }
    if common.discard_source {
        return Err(refused(
            "Parameter 'discard-source' does not accept value 'true' yet",
        ));
    }
    let shape = common.shape()?;
    let bitmap = common.sync_bitmap(&source)?.map(Arc::new);
    let options = job_options(common, &source, group)?;
    let blocker = format!("{JOB_TYPE} '{}'", options.id);
    let mut undo = Undo::new(graph);

    undo.block(&source, &blocker)?;
    undo.block(target, &blocker)?;
    let mut says = None;
    if let Some(bitmap) = &bitmap {
        says = bitmap.begin()?;
        let bitmap = Arc::clone(bitmap);
        undo.push(move |_| bitmap.end(End::NotBegun));
    }
    let to_copy = marks(common, shape, source.len(), says.as_deref())?;
    let copier = Copier::new(Arc::clone(&source), Arc::clone(target), to_copy);
    let copier = Arc::new(copier);
    let driver = CopyBeforeWrite::of_job(Arc::clone(&copier), common.on_cbw_error);
    let name = common.filter_node_name.as_deref();
    let filter = undo.insert_filter(name, &source, Box::new(driver), &blocker)?;
    let job = BackupJob {
        graph: Arc::clone(graph),
        ends: Ends {
            source: Arc::clone(&source),
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
    let job = graph.jobs().create(options, Box::new(job), home);
    let job = job.map_err(|error| refused(error.to_string()))?;
    let mut change = graph.transaction();
    change.attach(&filter, Parent::job(&job), FILTER_ROLE, FILTER_ACCESS);
    if let Err(error) = change.commit() {
        job.discard();
        return Err(error);
    }
    undo.forget();
    Ok(Prepared {
        graph: Arc::clone(graph),
        job,
        ends: Ends {
            source,
            filter,
            target: Arc::clone(target),
            bitmap,
        },
    })
}
