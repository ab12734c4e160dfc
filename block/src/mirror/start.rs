//! The commands `blockdev-mirror` and `drive-mirror`: everything that can be wrong is found here,
//! before the guest's disk is touched.

use std::sync::Arc;

use parking_lot::Mutex;
use sluice_aio::{AioContext, current};

use super::balance::Balance;
use super::copier::Copier;
use super::filter::MirrorTop;
use super::first::{First, FirstCopy};
use super::job::{MirrorJob, Outcome};
use super::ledger::Ledger;
use super::options::{BlockdevMirror, DriveMirror, MirrorCommon, NewImageMode, SyncMode};
use super::replaced::Replaced;
use crate::dirty::{DirtyBitmap, Granularity};
use crate::driver::FileIdentity;
use crate::driver::file::{FileKind, create_image};
use crate::error::{BlockError, Result};
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::job::{CreateError, JobId, JobOptions};
use crate::node::Node;
use crate::options::{BlockdevOptions, Discard};
use crate::permission::{Access, Permissions};

/// Granularity if none is asked for, in bytes (QEMU: 64 KiB where no cluster size is known).
pub(super) const DEFAULT_GRANULARITY: u64 = 64 << 10;
/// Bytes in flight if nothing is asked for, as QEMU.
pub(super) const DEFAULT_BUF_SIZE: u64 = 16 << 20;
/// The type in messages of other commands.
const JOB_TYPE: &str = "mirror";

fn refused(text: impl Into<String>) -> BlockError {
    BlockError::Refused(text.into())
}

/// Starts a mirror onto an existing node; `main` is where it runs if no loop serves the source.
///
/// Call it from a task. On an error nothing has changed.
///
/// # Errors
/// What QEMU refuses, with its texts; and a size mismatch, which QEMU finds only later.
pub async fn blockdev_mirror(
    graph: &Arc<Graph>,
    arguments: BlockdevMirror,
    main: &AioContext,
) -> Result<()> {
    let source = source_node(graph, &arguments.common)?;
    let target = graph.node(&arguments.target)?;
    let plan = Plan {
        source,
        target,
        filter_name: arguments.filter_node_name,
        // blockdev-mirror may always unmap.
        unmap: true,
        target_is_zero: arguments.target_is_zero,
    };
    start(graph, &arguments.common, plan, main).await
}

/// Starts a mirror onto a raw file, which is created first if `mode` says so.
///
/// Call it from a task. On an error the graph has not changed; a file that was created stays.
///
/// # Errors
/// As [`blockdev_mirror`], and what the file system says.
pub async fn drive_mirror(
    graph: &Arc<Graph>,
    arguments: DriveMirror,
    main: &AioContext,
) -> Result<()> {
    let source = source_node(graph, &arguments.common)?;
    if let Some(format) = arguments
        .format
        .as_deref()
        .filter(|format| *format != "raw")
    {
        return Err(refused(format!(
            "Unknown driver '{format}'; targets of drive-mirror can only be 'raw' yet"
        )));
    }
    // Everything that needs no target is checked before a file is made.
    check_source(&source, &arguments.common.device)?;
    settings(&arguments.common, &source)?;
    check_job_id(graph, &arguments.common, &source)?;
    if arguments.common.replaces.is_some() && arguments.node_name.is_none() {
        return Err(refused(
            "a node-name must be provided when replacing a named node of the graph",
        ));
    }
    replaced(graph, &arguments.common, &source)?;
    let is_new = arguments.mode == NewImageMode::AbsolutePaths;
    if is_new {
        let (path, size) = (arguments.target.clone(), source.len());
        let in_use = graph.files_in_use();
        current::blocking(move || create_image(&path, size, &in_use)).await??;
    }
    let path = arguments.target.clone();
    let kind = current::blocking(move || FileKind::of(&path)).await?;
    let mut options = BlockdevOptions::raw_file(arguments.node_name, arguments.target, kind);
    if let (BlockdevOptions::Raw(raw), true) = (&mut options, arguments.unmap) {
        raw.discard = Some(Discard::Unmap);
    }
    let target = graph.add_implicit_node(&options).await?;
    let plan = Plan {
        source,
        target: Arc::clone(&target),
        filter_name: None,
        unmap: arguments.unmap,
        target_is_zero: is_new && kind == FileKind::Regular,
    };
    let started = start(graph, &arguments.common, plan, main).await;
    if started.is_err() {
        graph.remove_if_unused(&target);
    }
    started
}

struct Plan {
    source: Arc<Node>,
    target: Arc<Node>,
    filter_name: Option<String>,
    unmap: bool,
    /// All of the target is known to read as zeroes.
    target_is_zero: bool,
}

fn first_copy(sync: SyncMode, source: &Node, target_is_zero: bool) -> FirstCopy {
    match sync {
        SyncMode::None => FirstCopy::Nothing,
        SyncMode::Top if source.backing().is_some() => FirstCopy::TopLayer,
        SyncMode::Top | SyncMode::Full if target_is_zero => FirstCopy::Data,
        SyncMode::Top | SyncMode::Full => FirstCopy::All,
    }
}

fn source_node(graph: &Graph, common: &MirrorCommon) -> Result<Arc<Node>> {
    graph.device_or_node(&common.device)
}

/// `device` is what the operator called the source: the filter of the mirror that is under way has
/// a name that nobody gave.
fn check_source(source: &Node, device: &str) -> Result<()> {
    if source.driver_name() == "mirror_top" {
        return Err(BlockError::Busy {
            node: device.to_owned(),
            job: source.blocker().unwrap_or_else(|| JOB_TYPE.into()),
        });
    }
    source.check_not_blocked()
}

/// The numbers of a mirror, checked.
struct Settings {
    granularity: Granularity,
    buf_size: u64,
}

fn settings(common: &MirrorCommon, source: &Node) -> Result<Settings> {
    let bytes = common
        .granularity
        .filter(|bytes| *bytes != 0)
        .unwrap_or(DEFAULT_GRANULARITY);
    let granularity = Granularity::new(bytes).map_err(|error| refused(error.to_string()))?;
    let buf_size = match common.buf_size.unwrap_or(0) {
        0 => DEFAULT_BUF_SIZE,
        size => u64::try_from(size).map_err(|_| refused("Invalid parameter 'buf-size'"))?,
    };
    job_options(common, source)?;
    Ok(Settings {
        granularity,
        buf_size,
    })
}

fn job_options(common: &MirrorCommon, source: &Node) -> Result<JobOptions> {
    let as_text = |error: CreateError| refused(error.to_string());
    let backend = source
        .backends()
        .first()
        .map(|backend| backend.name().to_owned());
    let id = JobId::choose(common.job_id.as_deref(), backend.as_deref()).map_err(as_text)?;
    let mut options = JobOptions::new(id)
        .with_speed(common.speed.unwrap_or(0))
        .map_err(as_text)?;
    options.auto_finalize = common.auto_finalize.unwrap_or(true);
    options.auto_dismiss = common.auto_dismiss.unwrap_or(true);
    Ok(options)
}

/// The registry decides when the job is made; before that, a file would be emptied in vain.
fn check_job_id(graph: &Graph, common: &MirrorCommon, source: &Node) -> Result<()> {
    let id = job_options(common, source)?.id.to_string();
    match graph.jobs().get(&id) {
        Some(_) => Err(refused(CreateError::IdInUse { id }.to_string())),
        None => Ok(()),
    }
}

fn replaced(graph: &Graph, common: &MirrorCommon, source: &Arc<Node>) -> Result<Option<Replaced>> {
    let Some(name) = &common.replaces else {
        return Ok(None);
    };
    let blocker = blocker_text(job_options(common, source)?.id.as_str());
    Replaced::new(graph, source, name, blocker).map(Some)
}

fn check_pair(source: &Arc<Node>, target: &Arc<Node>) -> Result<()> {
    let overlaps = |own: &Arc<Node>, other: &Arc<Node>| {
        let others = other.files();
        own_files(own).iter().any(|file| others.contains(file))
    };
    // A backing image, which is only read, may be the same for both.
    let same_file = overlaps(target, source) || overlaps(source, target);
    if Arc::ptr_eq(source, target) || same_file {
        return Err(refused(format!(
            "Can't mirror node into itself: source '{}' and target '{}' are the same image",
            source.info().filename,
            target.info().filename
        )));
    }
    if is_below(source, target) || is_below(target, source) {
        return Err(refused(
            "Cannot mirror to a filter on top of a node in the source's backing chain",
        ));
    }
    target.check_not_blocked()?;
    if target.is_read_only() {
        return Err(BlockError::ReadOnly(target.name().to_owned()));
    }
    if !target.parents().is_empty() {
        return Err(BlockError::InUse(target.name().to_owned()));
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

/// The files of a node without those of its backing images.
fn own_files(node: &Node) -> Vec<FileIdentity> {
    let below = node.backing().map(|image| image.files());
    let below = below.unwrap_or_default();
    let own = node.files().into_iter();
    own.filter(|file| !below.contains(file)).collect()
}

fn is_below(node: &Arc<Node>, top: &Arc<Node>) -> bool {
    top.children()
        .iter()
        .any(|(_, child)| Arc::ptr_eq(child, node) || is_below(node, child))
}

async fn start(
    graph: &Arc<Graph>,
    common: &MirrorCommon,
    plan: Plan,
    main: &AioContext,
) -> Result<()> {
    let Plan {
        source,
        target,
        filter_name,
        unmap,
        target_is_zero,
    } = plan;
    check_source(&source, &common.device)?;
    check_pair(&source, &target)?;
    let settings = settings(common, &source)?;
    let replaced = replaced(graph, common, &source)?;
    let options = job_options(common, &source)?;
    let id = options.id.to_string();
    let bitmap = DirtyBitmap::new(source.len(), settings.granularity);
    let bitmap =
        bitmap.map_err(|error| refused(format!("{error}; choose a larger granularity")))?;
    let clock = graph.clock().clone();
    let ledger = Ledger::new(bitmap, Arc::clone(&target), common.copy_mode, clock);
    let claim = Claim::take(graph, &source, &target, &id)?;

    let section = graph.drain(&source, &format!("start of job '{id}'")).await;
    let top = Box::new(MirrorTop::new(Arc::clone(&source), Arc::clone(&ledger)));
    let filter = graph.insert_filter(filter_name.as_deref(), &source, top)?;
    // Until it goes, with the job.
    filter.block(&blocker_text(&id))?;
    let home = graph.home_of_job(&filter, main);
    let driver = MirrorJob {
        graph: Arc::clone(graph),
        source: Arc::clone(&source),
        filter: Arc::clone(&filter),
        target: Arc::clone(&target),
        copier: Arc::new(Copier::new(
            Arc::clone(&source),
            Arc::clone(&target),
            Arc::clone(&ledger),
            unmap,
            settings.buf_size,
        )),
        ledger,
        first: First::new(first_copy(common.sync, &source, target_is_zero)),
        on_source_error: common.on_source_error,
        on_target_error: common.on_target_error,
        replaced,
        own_chain: None,
        balance: Mutex::new(Balance::new()),
        held: Mutex::default(),
        outcome: Outcome::default(),
    };
    let job = match graph.jobs().create(options, Box::new(driver), home) {
        Ok(job) => job,
        Err(error) => {
            let taken_out = graph.replace_node(&filter, &source);
            graph.remove_if_unused(&filter);
            taken_out?;
            return Err(refused(error.to_string()));
        }
    };
    let mut change = graph.transaction();
    change.attach(&filter, Parent::job(&job), FILTER_ROLE, FILTER_ACCESS);
    change.detach(&target, &claim.parent, TARGET_ROLE);
    change.attach(&target, Parent::job(&job), TARGET_ROLE, TARGET_ACCESS);
    change.commit()?;
    // From here on the job's end gives the claim back.
    std::mem::forget(claim);
    job.start();
    drop(section);
    Ok(())
}

/// What others are told who want to use the job's nodes: QEMU's word for the job, and which one it is.
fn blocker_text(id: &str) -> String {
    format!("{JOB_TYPE} '{id}'")
}

/// What the filter's node is to the job.
pub(super) const FILTER_ROLE: &str = "main node";
/// What the target is to the job.
pub(super) const TARGET_ROLE: &str = "target";

/// The disk keeps its size while it is copied; all else goes on.
const FILTER_ACCESS: Access = Access {
    used: Permissions::empty(),
    shared: Permissions::RESIZE.complement(),
};

/// Half a copy is nothing that others could read.
pub(super) const TARGET_ACCESS: Access = Access {
    used: Permissions::WRITE,
    shared: Permissions::WRITE_UNCHANGED,
};

/// Source and target claimed for a job; dropped, if the start fails.
struct Claim<'a> {
    graph: &'a Graph,
    source: &'a Arc<Node>,
    target: &'a Arc<Node>,
    /// Stands above the target until the job is there.
    parent: Parent,
}

impl<'a> Claim<'a> {
    fn take(
        graph: &'a Graph,
        source: &'a Arc<Node>,
        target: &'a Arc<Node>,
        id: &str,
    ) -> Result<Self> {
        let blocker = blocker_text(id);
        source.block(&blocker)?;
        target.block(&blocker).inspect_err(|_| source.unblock())?;
        let claim = Self {
            graph,
            source,
            target,
            parent: Parent::Claim(format!("{JOB_TYPE} job '{id}'").into()),
        };
        let mut change = graph.transaction();
        // From here on neither can be deleted any more.
        change.check_present(source)?;
        change.check_present(target)?;
        change.attach(target, claim.parent.clone(), TARGET_ROLE, TARGET_ACCESS);
        change.commit()?;
        Ok(claim)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.graph.let_go(self.target, &self.parent, TARGET_ROLE);
        self.source.unblock();
        self.target.unblock();
    }
}
