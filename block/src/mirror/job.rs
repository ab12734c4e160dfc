//! The mirror's work, phase by phase; see the [module above](super).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use rustix::io::Errno;
use serde_json::{Map, Value};

use super::copier::{Copier, CopyError, Step};
use crate::dirty::DirtyBitmap;
use crate::drain::Section;
use crate::driver::DebugEvent;
use crate::event::IoOperation;
use crate::graph::Graph;
use crate::job::{ErrorVerdict, Job, JobContext, JobDriver, JobError, JobKind, OnError, VerbError};
use crate::node::Node;

/// How often an idle mirror looks whether the guest has written.
const IDLE_SLICE: Duration = Duration::from_millis(100);

/// Bytes that may still be dirty when the pivot's section begins; more are copied before it, while
/// the guest runs.
const PIVOT_BACKLOG: u64 = 4 << 20;

/// Rounds of copying outside the section before the pivot gives up waiting for a calmer guest: the
/// rest is then copied inside it.
const PIVOT_ROUNDS: u32 = 16;

/// Everything the job needs; made by [`super::start`].
pub(super) struct MirrorJob {
    pub(super) graph: Arc<Graph>,
    pub(super) source: Arc<Node>,
    pub(super) filter: Arc<Node>,
    pub(super) target: Arc<Node>,
    pub(super) dirty: Arc<DirtyBitmap>,
    pub(super) copier: Arc<Copier>,
    pub(super) copy_everything: bool,
    pub(super) on_source_error: OnError,
    pub(super) on_target_error: OnError,
    pub(super) outcome: Outcome,
}

/// What the end of the job has to tell.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pivoted: AtomicBool,
    pause_us: AtomicU64,
    postponed: AtomicU64,
    longest_wait_us: AtomicU64,
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl MirrorJob {
    /// Copies until nothing is dirty, no copy runs and the target is flushed.
    ///
    /// With `paced` it obeys the speed limit and reaches pause points; the pivot does neither.
    async fn converge(&self, job: &JobContext, paced: bool) -> Result<(), JobError> {
        loop {
            job.check_cancelled()?;
            if paced {
                job.pause_point().await;
                job.check_cancelled()?;
            }
            self.account(job);
            self.judge_errors(job, paced).await?;
            let delay = if paced {
                job.rate_delay()
            } else {
                Duration::ZERO
            };
            if !delay.is_zero() && !self.copier.is_converged() {
                job.sleep(delay).await;
                continue;
            }
            match self.copier.step(&job.kicker()).await {
                Step::Started { data } => job.charge(data),
                Step::Clean if self.copier.is_converged() => {
                    if self.flush_target(job, paced).await? {
                        return Ok(());
                    }
                }
                Step::Clean | Step::Busy if paced => {
                    job.sleep(IDLE_SLICE).await;
                }
                Step::Clean | Step::Busy => self.copier.settle().await,
            }
        }
    }

    fn account(&self, job: &JobContext) {
        let remaining = self.copier.remaining();
        job.progress().set_remaining(remaining);
    }

    async fn judge_errors(&self, job: &JobContext, paced: bool) -> Result<(), JobError> {
        let (finished, errors) = self.copier.take_results();
        job.progress().add_done(finished);
        if finished > 0 && errors.is_empty() {
            job.io_success();
        }
        for error in errors {
            self.judge(job, error, paced).await?;
        }
        Ok(())
    }

    /// Applies the operator's policy; returns if the job is to go on (the range is dirty again).
    async fn judge(&self, job: &JobContext, error: CopyError, paced: bool) -> Result<(), JobError> {
        let policy = match error.operation {
            IoOperation::Read => self.on_source_error,
            IoOperation::Write => self.on_target_error,
        };
        // Inside the pivot's section nobody may wait for an operator with the guest held.
        let policy = if paced { policy } else { OnError::Report };
        match job.io_error(policy, error.operation, error.errno) {
            ErrorVerdict::Fail => {
                self.copier.settle().await;
                Err(JobError::Errno(error.errno))
            }
            ErrorVerdict::RetryAfter(delay) => {
                job.back_off(delay).await;
                Ok(())
            }
            ErrorVerdict::Stopped => {
                job.pause_point().await;
                Ok(())
            }
        }
    }

    /// Whether the target is durable and nothing became dirty meanwhile.
    async fn flush_target(&self, job: &JobContext, paced: bool) -> Result<bool, JobError> {
        if let Err(error) = self.target.flush().await {
            let errno = Errno::from_raw_os_error(error.errno());
            let error = CopyError {
                operation: IoOperation::Write,
                errno,
            };
            self.judge(job, error, paced).await?;
            return Ok(false);
        }
        Ok(self.copier.is_converged())
    }

    /// From ready until the operator wants the end and nothing is dirty.
    async fn keep_in_sync(&self, job: &JobContext) -> Result<(), JobError> {
        loop {
            self.converge(job, true).await?;
            if job.complete_requested() || job.cancel_requested() {
                job.check_cancelled()?;
                return Ok(());
            }
            job.sleep(IDLE_SLICE).await;
        }
    }

    /// The pivot: returns inside the section that it has begun, with the guest held.
    async fn catch_up_in_section(&self, job: &JobContext) -> Result<Section, JobError> {
        for _ in 0..PIVOT_ROUNDS {
            if self.copier.remaining() <= PIVOT_BACKLOG {
                break;
            }
            self.converge(job, false).await?;
        }
        let holder = format!("pivot of job '{}'", job.job().id());
        let section = self
            .graph
            .drain_by_job(&self.filter, &holder, job.job())
            .await;
        // Requests that ended while draining may have left marks: look again.
        self.converge(job, false).await?;
        if !self.copier.is_converged() {
            return Err(JobError::Failed(
                "the source changed inside a drained section".to_owned(),
            ));
        }
        Ok(section)
    }

    async fn pivot(&self, job: &JobContext) -> Result<(), JobError> {
        let section = self.catch_up_in_section(job).await?;
        let stopwatch = Stopwatch::start(&section);
        stopwatch
            .excluding(&section, self.target.debug_event(DebugEvent::PivotClean))
            .await?;
        let swap = !job.cancel_requested();
        if swap {
            self.swap_root()?;
            stopwatch
                .excluding(&section, self.target.debug_event(DebugEvent::PivotSwapped))
                .await?;
        } else {
            self.take_filter_out()?;
        }
        let held_back = section.held_back();
        let pause = section.age().saturating_sub(stopwatch.excluded());
        self.outcome
            .pause_us
            .store(micros(pause), Ordering::Relaxed);
        self.outcome
            .postponed
            .store(held_back.requests, Ordering::Relaxed);
        self.outcome
            .longest_wait_us
            .store(micros(held_back.longest_wait), Ordering::Relaxed);
        drop(section);
        Ok(())
    }

    /// Points everything above the filter to the target, and passes the right to write on.
    fn swap_root(&self) -> Result<(), JobError> {
        let writer = self.source.writer();
        self.graph
            .replace_node(&self.filter, &self.target)
            .map_err(failed)?;
        self.outcome.pivoted.store(true, Ordering::Relaxed);
        match writer {
            Some(writer) => {
                self.target.pass_writer(&writer);
                self.source.set_writer(None).map_err(failed)
            }
            // A read-only disk needs no right to write any more.
            None => self.target.set_writer(None).map_err(failed),
        }
    }

    fn take_filter_out(&self) -> Result<(), JobError> {
        self.graph
            .replace_node(&self.filter, &self.source)
            .map_err(failed)
    }

    fn report_map(&self) -> Map<String, Value> {
        let outcome = &self.outcome;
        let tally = self.copier.tally();
        let load = |counter: &AtomicU64| Value::from(counter.load(Ordering::Relaxed));
        [
            ("x-pivot-pause-us", load(&outcome.pause_us)),
            ("x-postponed-requests", load(&outcome.postponed)),
            ("x-longest-wait-us", load(&outcome.longest_wait_us)),
            ("x-bytes-copied", load(&tally.copied)),
            ("x-bytes-zeroed", load(&tally.zeroed)),
            ("x-bytes-retried", load(&tally.retried)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}

fn failed(error: impl std::fmt::Display) -> JobError {
    JobError::Failed(error.to_string())
}

/// Time inside a section, less what a fault injector held it for.
struct Stopwatch {
    excluded: std::cell::Cell<Duration>,
}

impl Stopwatch {
    fn start(_section: &Section) -> Self {
        Self {
            excluded: std::cell::Cell::new(Duration::ZERO),
        }
    }

    async fn excluding(
        &self,
        section: &Section,
        event: impl Future<Output = crate::error::Result<()>>,
    ) -> Result<(), JobError> {
        let before = section.age();
        let result = event.await.map_err(failed);
        self.excluded
            .set(self.excluded.get() + section.age().saturating_sub(before));
        result
    }

    fn excluded(&self) -> Duration {
        self.excluded.get()
    }
}

impl JobDriver for MirrorJob {
    fn kind(&self) -> JobKind {
        JobKind::Mirror
    }

    fn run<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<(), JobError>> {
        Box::pin(async move {
            if self.copy_everything {
                self.dirty.set_all();
            }
            let result = async {
                self.converge(job, true).await?;
                job.transition_to_ready()?;
                self.keep_in_sync(job).await
            }
            .await;
            self.copier.settle().await;
            self.account(job);
            result
        })
    }

    fn settle<'a>(&'a self, _job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(self.copier.settle())
    }

    fn prepare<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<(), JobError>> {
        Box::pin(self.pivot(job))
    }

    fn abort<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            self.copier.settle().await;
            if self.outcome.pivoted.load(Ordering::Relaxed) {
                return;
            }
            let holder = format!("end of job '{}'", job.job().id());
            let section = self
                .graph
                .drain_by_job(&self.filter, &holder, job.job())
                .await;
            if let Err(error) = self.take_filter_out() {
                tracing::error!(%error, "the mirror's filter can't be taken out");
            }
            drop(section);
        })
    }

    fn clean<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            let (graph, own) = (&self.graph, job.job());
            self.source.unblock();
            self.target.unblock();
            if !self.outcome.pivoted.load(Ordering::Relaxed)
                && let Err(error) = self.target.set_writer(None)
            {
                tracing::warn!(%error, "the target's locks can't be given back");
            }
            graph.remove_job_parent(&self.filter, own);
            graph.remove_job_parent(&self.target, own);
            graph.remove_if_unused(&self.filter);
            graph.remove_if_unused(&self.source);
        })
    }

    fn cancels_softly(&self) -> bool {
        true
    }

    fn on_complete(&self, _job: &Job) -> Result<(), VerbError> {
        // Nothing to prepare: the work sees the request at its next look.
        Ok(())
    }

    fn query(&self) -> Map<String, Value> {
        let mut members = Map::new();
        members.insert("actively-synced".to_owned(), Value::Bool(false));
        if self.outcome.pivoted.load(Ordering::Relaxed) {
            members.extend(self.report_map());
        }
        members
    }

    fn report(&self) -> Map<String, Value> {
        self.report_map()
    }
}
