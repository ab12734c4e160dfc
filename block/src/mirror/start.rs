//! The commands `blockdev-mirror` and `drive-mirror`: what they make, and the start of the job.

use std::sync::Arc;

use parking_lot::Mutex;
use sluice_aio::AioContext;

use super::approach::Nearness;
use super::balance::Balance;
use super::checks::{check_pair, check_source, job_options, refused, replaced, settings};
use super::claim::{Claim, FILTER_ROLE, TARGET_ACCESS, TARGET_ROLE};
use super::copier::Copier;
use super::filter::MirrorTop;
use super::first::{First, FirstCopy};
use super::job::{MirrorJob, Outcome};
use super::ledger::Ledger;
use super::options::{BlockdevMirror, DriveMirror, MirrorCommon, SyncMode};
use crate::dirty::DirtyBitmap;
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::file_target::{FileTarget, Wanted};
use crate::graph::parent::Parent;
use crate::graph::transaction::Transaction;
use crate::job::JobKind;
use crate::node::Node;
use crate::permission::Access;

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
    let target = graph.device_or_node(&arguments.target)?;
    let plan = Plan {
        source,
        target,
        file: None,
        filter_name: arguments.filter_node_name,
        // blockdev-mirror may always unmap.
        unmap: true,
        target_is_zero: arguments.target_is_zero,
    };
    start(graph, &arguments.common, plan, main).await
}

/// Starts a mirror onto a raw file, which is created first if `mode` says so.
///
/// Call it from a task. On an error nothing has changed, and the file is as it was, or is not there if it was not.
///
/// # Errors
/// As [`blockdev_mirror`], and what the file system says.
pub async fn drive_mirror(
    graph: &Arc<Graph>,
    arguments: DriveMirror,
    main: &AioContext,
) -> Result<()> {
    let source = source_node(graph, &arguments.common)?;
    let unmap = arguments.unmap;
    let wanted = Wanted {
        file: &arguments.target,
        format: arguments.format.as_deref(),
        mode: arguments.mode,
        node_name: arguments.node_name,
        unmap,
    };
    wanted.check("drive-mirror")?;
    // What needs no target is checked before a file is even opened.
    check_source(&source, &arguments.common.device)?;
    settings(&arguments.common, &source)?;
    if arguments.common.replaces.is_some() && wanted.node_name.is_none() {
        return Err(refused(
            "a node-name must be provided when replacing a named node of the graph",
        ));
    }
    replaced(graph, &arguments.common, &source)?;
    let target = FileTarget::open(graph, wanted, source.len()).await?;
    let plan = Plan {
        source,
        target: Arc::clone(&target.node),
        file: Some(&target),
        filter_name: None,
        unmap,
        target_is_zero: target.is_new(),
    };
    let started = start(graph, &arguments.common, plan, main).await;
    target.end(started.is_ok()).await;
    started
}

struct Plan<'a> {
    source: Arc<Node>,
    target: Arc<Node>,
    /// The target's file, if the command has named one.
    file: Option<&'a FileTarget>,
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

async fn start(
    graph: &Arc<Graph>,
    common: &MirrorCommon,
    plan: Plan<'_>,
    main: &AioContext,
) -> Result<()> {
    let Plan {
        source,
        target,
        file,
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
    graph.check_file_is_nobodys(&target, &JobKind::Mirror.named(&id))?;
    let bitmap = DirtyBitmap::new(source.len(), settings.granularity);
    let in_words = |error| refused(format!("{error}; choose a larger granularity"));
    let bitmap = bitmap.map_err(in_words)?;
    let known = bitmap.emptied().map_err(in_words)?;
    let clock = graph.clock().clone();
    let ledger = Ledger::new(bitmap, Arc::clone(&target), common.copy_mode, clock);
    let held_id = graph.jobs().hold(&options.id)?;
    let claim = Claim::take(graph, &source, &target, &id)?;
    // From here on nobody gets what the job needs.
    let section = graph.drain(&source, &format!("start of job '{id}'")).await;
    // What goes wrong from here on is undone inside the section.
    let Claim { mut undo, parent } = claim;
    graph.check_has(&source, &common.device)?;
    let top = Box::new(MirrorTop::new(Arc::clone(&source), Arc::clone(&ledger)));
    let blocker = JobKind::Mirror.named(&id);
    let filter = undo.insert_filter(filter_name.as_deref(), &source, top, &blocker)?;
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
            known,
            settings.buf_size,
        )),
        ledger,
        first: First::new(first_copy(common.sync, &source, target_is_zero)),
        on_source_error: common.on_source_error,
        on_target_error: common.on_target_error,
        replaced,
        own_chain: None,
        balance: Mutex::new(Balance::new()),
        nearness: Nearness::default(),
        held: Mutex::default(),
        outcome: Outcome::default(),
    };
    drop(held_id);
    let attach = |change: &mut Transaction<'_>, job: &Parent| {
        change.attach(&filter, job.clone(), FILTER_ROLE, Access::OF_JOB_FILTER);
        change.detach(&target, &parent, TARGET_ROLE);
        change.attach(&target, job.clone(), TARGET_ROLE, TARGET_ACCESS);
    };
    let job = undo.create_job(options, Box::new(driver), home, attach)?;
    if let Some(file) = file {
        file.give();
    }
    job.start();
    drop(section);
    job.begun().await;
    Ok(())
}
