//! Drained sections and jobs: the `blockjob` cases of QEMU's `test-bdrv-drain`, with the job in the
//! main loop and in an I/O thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::future::{BoxFuture, LocalBoxFuture};
use rustix::io::Errno;
use sluice_aio::{AioContext, IoThread, LoopConfig, current};

use super::bench::{Bench, pass, run, settle};
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::home::Home;
use crate::job::{
    Job, JobContext, JobDriver, JobError, JobId, JobKind, JobOptions, JobState, here,
};
use crate::node::Node;
use crate::permission::Access;

/// Where the job fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fails {
    Never,
    Run,
    Prepare,
}

/// Works in small turns until it is asked to complete.
struct Worker {
    graph: Arc<Graph>,
    source: Arc<Node>,
    fails: Fails,
    turns: Arc<AtomicU64>,
    /// Whether the end was not a good one.
    aborted: Arc<AtomicBool>,
    /// The filter that it takes out in the end, inside a section of its own.
    filter: Option<Arc<Node>>,
}

const ROLE: &str = "main node";

fn eio() -> JobError {
    JobError::Errno(Errno::IO)
}

impl JobDriver for Worker {
    fn kind(&self) -> JobKind {
        JobKind::Commit
    }

    fn run<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(async move {
            job.transition_to_ready()?;
            while !job.complete_requested() {
                job.pause_point().await;
                job.check_cancelled()?;
                self.turns.fetch_add(1, Ordering::SeqCst);
                here(current::yield_now()).await;
            }
            job.pause_point().await;
            match self.fails {
                Fails::Run => Err(eio()),
                Fails::Never | Fails::Prepare => Ok(()),
            }
        })
    }

    fn prepare<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<(), JobError>> {
        Box::pin(async move {
            if self.fails == Fails::Prepare {
                return Err(eio());
            }
            if let Some(filter) = &self.filter {
                let section = self
                    .graph
                    .drain_by_job(filter, "the job's end", job.job())
                    .await;
                let failed = |error: crate::BlockError| JobError::Failed(error.to_string());
                self.graph
                    .replace_node(filter, &self.source)
                    .map_err(failed)?;
                drop(section);
            }
            Ok(())
        })
    }

    /// A job that fails may still do I/O, and does not wait for the section that it is in.
    fn abort<'a>(&'a self, _: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            self.source.flush().await.unwrap();
            self.aborted.store(true, Ordering::SeqCst);
        })
    }

    fn clean<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            for node in self.graph.nodes() {
                self.graph.remove_job_parent(&node, job.job(), ROLE);
            }
            if let Some(filter) = &self.filter {
                self.graph.remove_if_unused(filter);
            }
        })
    }

    fn on_complete(&self, _: &Arc<Job>) -> Result<(), crate::job::VerbError> {
        Ok(())
    }
}

pub(super) struct Running {
    pub(super) job: Arc<Job>,
    aborted: Arc<AtomicBool>,
    pub(super) turns: Arc<AtomicU64>,
    /// Node, its overlay, its backing, and the target.
    pub(super) source: Arc<Node>,
    pub(super) backing: Arc<Node>,
    pub(super) target: Arc<Node>,
}

pub(super) async fn start(bench: &Bench, home: &AioContext, fails: Fails) -> Running {
    let (backing, _) = bench.probe("backing", false);
    let (source, _) = bench.filter("source", &backing, None);
    bench.filter("overlay", &source, None);
    let (target, _) = bench.probe("target", false);
    let (job, turns, aborted) = spawn(bench, home, &source, fails, None);
    for node in [&source, &target] {
        let mut change = bench.graph.transaction();
        change.attach(node, Parent::job(&job), ROLE, Access::NONE);
        change.commit().unwrap();
    }
    job.start();
    until_it_works(&turns).await;
    Running {
        job,
        aborted,
        turns,
        source,
        backing,
        target,
    }
}

pub(super) fn spawn(
    bench: &Bench,
    home: impl Into<Home>,
    source: &Arc<Node>,
    fails: Fails,
    filter: Option<Arc<Node>>,
) -> (Arc<Job>, Arc<AtomicU64>, Arc<AtomicBool>) {
    let aborted = Arc::new(AtomicBool::new(false));
    let turns = Arc::new(AtomicU64::new(0));
    let worker = Worker {
        graph: Arc::clone(&bench.graph),
        source: Arc::clone(source),
        fails,
        turns: Arc::clone(&turns),
        aborted: Arc::clone(&aborted),
        filter,
    };
    let options = JobOptions::new(JobId::new("job0").unwrap());
    let job = bench
        .graph
        .jobs()
        .create(options, Box::new(worker), home)
        .unwrap();
    (job, turns, aborted)
}

pub(super) async fn until_it_works(turns: &AtomicU64) {
    let before = turns.load(Ordering::SeqCst);
    while turns.load(Ordering::SeqCst) == before {
        current::yield_now().await;
    }
}

/// The job rests in a section, works after it, and ends in the end as it is meant to.
async fn blockjob(bench: Bench, home: AioContext, all: bool, fails: Fails) {
    let running = start(&bench, &home, fails).await;
    let Running {
        job,
        aborted,
        turns,
        source,
        backing,
        target,
    } = &running;
    let nodes = match all {
        true => vec![None],
        false => vec![Some(source), Some(backing), Some(target)],
    };
    for node in nodes {
        let section = match node {
            Some(node) => bench.graph.drain(node, "test").await,
            None => bench.graph.drain_all("test").await,
        };
        assert!(!job.is_busy());
        assert_eq!(job.state(), JobState::Standby);
        let rested = turns.load(Ordering::SeqCst);
        settle().await;
        assert_eq!(
            turns.load(Ordering::SeqCst),
            rested,
            "the job works inside the section"
        );
        drop(section);
        until_it_works(turns).await;
        assert_eq!(job.state(), JobState::Ready);
    }
    // Asked to complete inside a section, it does so after the section.
    let section = match all {
        true => bench.graph.drain_all("test").await,
        false => bench.graph.drain(target, "test").await,
    };
    job.complete().unwrap();
    settle().await;
    assert_eq!(job.state(), JobState::Standby);
    drop(section);
    while bench.graph.jobs().get("job0").is_some() {
        current::yield_now().await;
    }
    assert_eq!(aborted.load(Ordering::SeqCst), fails != Fails::Never);
    for node in bench.graph.nodes() {
        assert!(
            !node
                .parents()
                .iter()
                .any(|parent| matches!(parent, Parent::Job(_)))
        );
        assert!(node.drained_by().is_empty());
    }
}

fn in_the_main_loop(all: bool, failures: &'static [Fails]) {
    for fails in failures {
        run(async move |bench| blockjob(bench, current::context(), all, *fails).await);
    }
}

fn in_a_thread(all: bool, failures: &'static [Fails]) {
    for fails in failures {
        run(async move |bench| {
            let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
            blockjob(bench, thread.context().clone(), all, *fails).await;
        });
    }
}

#[test]
fn blockjob_drain_all() {
    in_the_main_loop(true, &[Fails::Never]);
}

#[test]
fn blockjob_drain() {
    in_the_main_loop(false, &[Fails::Never]);
}

#[test]
fn blockjob_error_drain_all() {
    in_the_main_loop(true, &[Fails::Run, Fails::Prepare]);
}

#[test]
fn blockjob_error_drain() {
    in_the_main_loop(false, &[Fails::Run, Fails::Prepare]);
}

#[test]
fn blockjob_iothread_drain_all() {
    in_a_thread(true, &[Fails::Never]);
}

#[test]
fn blockjob_iothread_drain() {
    in_a_thread(false, &[Fails::Never]);
}

#[test]
fn blockjob_iothread_error_drain_all() {
    in_a_thread(true, &[Fails::Run, Fails::Prepare]);
}

#[test]
fn blockjob_iothread_error_drain() {
    in_a_thread(false, &[Fails::Run, Fails::Prepare]);
}

/// The end of a section lets a job end, which takes parents off the nodes whose section has just
/// ended. Nothing hangs in the air, and nobody recurses.
#[test]
fn blockjob_commit_by_drained_end() {
    run(async |bench| {
        let (disk, source, watch) = bench.disk("disk");
        let (driver, _) = pass(&source, None);
        let section = bench.graph.drain(&source, "test").await;
        let filter = bench
            .graph
            .insert_filter("mirror 'j'", None, &source, driver)
            .unwrap();
        let here = current::context();
        let (job, turns, _) = spawn(
            &bench,
            &here,
            &source,
            Fails::Never,
            Some(Arc::clone(&filter)),
        );
        let mut change = bench.graph.transaction();
        change.attach(&filter, Parent::job(&job), ROLE, Access::NONE);
        change.commit().unwrap();
        job.start();
        drop(section);
        until_it_works(&turns).await;
        let section = bench.graph.drain(&source, "test").await;
        job.complete().unwrap();
        settle().await;
        assert!(
            Arc::ptr_eq(&disk.node().unwrap(), &filter),
            "the job ends inside the section"
        );
        drop(section);
        while bench.graph.jobs().get("job0").is_some() {
            current::yield_now().await;
        }
        assert!(Arc::ptr_eq(&disk.node().unwrap(), &source));
        assert_eq!(bench.graph.nodes().len(), 1);
        assert_eq!(source.parents().len(), 1);
        assert!(source.drained_by().is_empty());
        super::bench::write(&disk, 1).await.unwrap();
        assert_eq!(*watch.log.lock(), [1]);
    });
}

/// While a node is taken out of the middle, in a section, a job that could end has to wait.
#[test]
fn bdrv_drop_intermediate_poll() {
    run(async |bench| {
        let (base, _) = bench.probe("base", false);
        let (middle, _) = bench.filter("middle", &base, None);
        let (top, _) = bench.filter("top", &middle, None);
        let here = current::context();
        let (job, turns, _) = spawn(&bench, &here, &top, Fails::Never, None);
        let mut change = bench.graph.transaction();
        change.attach(&top, Parent::job(&job), ROLE, Access::NONE);
        change.commit().unwrap();
        job.start();
        until_it_works(&turns).await;
        let section = bench.graph.drain(&middle, "drop").await;
        job.complete().unwrap();
        settle().await;
        assert!(bench.graph.jobs().get("job0").is_some());
        bench.graph.replace_node(&middle, &base).unwrap();
        // As a driver's callback would that waits for something in between.
        settle().await;
        assert!(
            bench.graph.jobs().get("job0").is_some(),
            "the job has ended in the middle"
        );
        bench.graph.del_node("middle").unwrap();
        drop(section);
        while bench.graph.jobs().get("job0").is_some() {
            current::yield_now().await;
        }
        assert!(Arc::ptr_eq(&top.children()[0].1, &base));
        assert_eq!(base.parents().len(), 1);
    });
}
