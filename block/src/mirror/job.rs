//! The mirror's work, phase by phase; see the [module above](super).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::active::OwnChain;
use super::balance::{Balance, Counts};
use super::copier::{Copier, Step};
use super::first::{First, Phase};
use super::ledger::{CopyError, Ledger};
use super::options::CopyMode;
use super::pivot::Held;
use super::replaced::Replaced;
use super::start::{FILTER_ROLE, TARGET_ROLE};
use crate::event::IoOperation;
use crate::graph::Graph;
use crate::job::{Job, JobContext, JobDriver, JobError, JobKind, OnError, VerbError};
use crate::node::Node;

/// How often an idle mirror looks whether the guest has written.
const IDLE_SLICE: Duration = Duration::from_millis(100);

/// Bytes that may still be dirty when the pivot's section begins; more are copied before it, while
/// the guest runs.
const PIVOT_BACKLOG: u64 = 4 << 20;

/// Passes over what became dirty meanwhile before a guest that never stops writing is taken as it
/// is: a small rest does not keep the job from being ready, and the pivot copies any rest inside
/// its section.
pub(super) const MAX_PASSES: u32 = 16;

/// How the copying treats everybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// It obeys the speed limit, rests at pause points and asks the operator's error policies.
    Background,
    /// Nothing holds it up, and an error ends the job: the guest is held, or about to be.
    Pivot,
}

/// Everything the job needs; made by [`super::start`].
pub(super) struct MirrorJob {
    pub(super) graph: Arc<Graph>,
    pub(super) source: Arc<Node>,
    pub(super) filter: Arc<Node>,
    pub(super) target: Arc<Node>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) copier: Arc<Copier>,
    pub(super) first: First,
    pub(super) on_source_error: OnError,
    pub(super) on_target_error: OnError,
    /// Whose place the target takes; the source's if none.
    pub(super) replaced: Option<Replaced>,
    /// The target is one of the images below the source.
    pub(super) own_chain: Option<OwnChain>,
    pub(super) balance: Mutex<Balance>,
    pub(super) held: Mutex<Option<Held>>,
    pub(super) outcome: Outcome,
}

/// What the end of the job has to tell.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) pivoted: AtomicBool,
    /// The target has been left to its requests, which have not returned.
    pub(super) target_left: AtomicBool,
    pub(super) pause_us: AtomicU64,
    pub(super) postponed: AtomicU64,
    pub(super) longest_wait_us: AtomicU64,
}

impl MirrorJob {
    /// Copies until nothing is dirty and no copy runs, or `enough` says so.
    pub(super) async fn copy_until(
        &self,
        job: &JobContext,
        pace: Pace,
        enough: impl Fn() -> bool,
    ) -> Result<(), JobError> {
        loop {
            if pace == Pace::Background {
                job.pause_point().await;
            }
            job.check_cancelled()?;
            self.judge_copies(job, pace).await?;
            if self.copier.is_converged() || enough() {
                return Ok(());
            }
            if pace == Pace::Background {
                let delay = job.rate_delay();
                if !delay.is_zero() {
                    job.sleep(delay).await;
                    continue;
                }
            }
            let steady = pace == Pace::Background && job.is_rate_limited();
            match (self.copier.step(&job.kicker(), steady).await, pace) {
                (Step::Started { data }, Pace::Background) => job.charge(data),
                (Step::Started { .. }, Pace::Pivot) => {}
                (Step::Clean | Step::Busy, Pace::Background) => {
                    job.sleep(IDLE_SLICE).await;
                }
                (Step::Clean | Step::Busy, Pace::Pivot) => self.ledger.copies.wait_idle().await,
            }
        }
    }

    /// Copies about as much as is dirty now.
    pub(super) async fn pass(&self, job: &JobContext, pace: Pace) -> Result<(), JobError> {
        self.judge_copies(job, pace).await?;
        let goal = job.progress().current() + self.copier.remaining();
        self.copy_until(job, pace, || job.progress().current() >= goal)
            .await
    }

    /// Whether so little is dirty that it can be copied while the guest is held.
    pub(super) fn is_nearly_converged(&self) -> bool {
        self.copier.remaining() <= PIVOT_BACKLOG
    }

    /// The first copy of everything, and of what the guest wrote meanwhile.
    async fn synchronise(&self, job: &JobContext) -> Result<(), JobError> {
        let mut passes = 0;
        while !self.copier.is_converged() && (passes < MAX_PASSES || !self.is_nearly_converged()) {
            self.pass(job, Pace::Background).await?;
            passes += 1;
        }
        self.flush_target(job, Pace::Background).await?;
        self.judge_copies(job, Pace::Background).await
    }

    /// Counts what the copies have done, and judges the errors they met.
    async fn judge_copies(&self, job: &JobContext, pace: Pace) -> Result<(), JobError> {
        let mut errors = self.account(job);
        if !errors.is_empty() {
            // Copies run side by side, and what ails one ails all: let them all end and judge
            // their error once, or the operator would have to resume the job for each of them.
            self.settle_copies(job).await;
            errors.extend(self.account(job));
        }
        self.judge(job, errors, pace).await
    }

    /// Moves the job's progress; returns the errors that copies met since the last time.
    fn account(&self, job: &JobContext) -> Vec<CopyError> {
        let (finished, errors) = self.ledger.take_news();
        let left = self.copier.remaining();
        job.progress().add_done(finished);
        let to_come = self.first.to_come();
        job.progress().set_remaining(left.saturating_add(to_come));
        if finished > 0 && errors.is_empty() {
            job.io_success();
        }
        self.weigh(left);
        errors
    }

    /// What an automatic mirror decides about the guest's writes, by what was counted up to now.
    fn weigh(&self, left: u64) {
        if self.ledger.mode() != CopyMode::Automatic {
            return;
        }
        let tally = &self.ledger.tally;
        let counts = Counts {
            copied: tally.copied.load(Ordering::Relaxed) + tally.zeroed.load(Ordering::Relaxed),
            left,
            written: tally.twofold.load(Ordering::Relaxed),
        };
        let twofold = self.balance.lock().decide(counts);
        self.ledger.set_twofold(twofold);
    }

    /// Applies the operator's policy; returns if the job is to go on (what failed is dirty again).
    async fn judge(
        &self,
        job: &JobContext,
        errors: Vec<CopyError>,
        pace: Pace,
    ) -> Result<(), JobError> {
        if errors.is_empty() {
            return Ok(());
        }
        let errors = errors.into_iter();
        let errors: Vec<_> = errors.map(|error| (error.operation, error.errno)).collect();
        let policy = |operation| match (pace, operation) {
            // Nobody may wait for an operator with the guest held.
            (Pace::Pivot, _) => OnError::Report,
            (Pace::Background, IoOperation::Read) => self.on_source_error,
            (Pace::Background, IoOperation::Write) => self.on_target_error,
        };
        job.judge_errors(&errors, policy).await?;
        self.ledger.resume();
        Ok(())
    }

    /// Makes the target durable, as far as it was written before.
    pub(super) async fn flush_target(&self, job: &JobContext, pace: Pace) -> Result<(), JobError> {
        loop {
            job.check_cancelled()?;
            let Err(error) = self.begin_flush(job).await? else {
                return Ok(());
            };
            self.judge(job, vec![error], pace).await?;
        }
    }

    /// From ready until the operator wants the end and what is dirty can be left to the pivot.
    async fn keep_in_sync(&self, job: &JobContext) -> Result<(), JobError> {
        let wanted = || job.complete_requested() || job.cancel_requested();
        loop {
            self.copy_until(job, Pace::Background, || {
                wanted() && self.is_nearly_converged()
            })
            .await?;
            if !wanted() {
                job.sleep(IDLE_SLICE).await;
                continue;
            }
            // The last chance for an error to be judged by the operator's policy.
            self.settle_copies(job).await;
            let errors = self.account(job);
            if errors.is_empty() {
                return job.check_cancelled();
            }
            self.judge(job, errors, Pace::Background).await?;
        }
    }

    /// What the pivot cost.
    fn pivot_report(&self) -> Map<String, Value> {
        let outcome = &self.outcome;
        figures([
            ("x-pivot-pause-us", &outcome.pause_us),
            ("x-postponed-requests", &outcome.postponed),
            ("x-longest-wait-us", &outcome.longest_wait_us),
        ])
    }

    /// What was done up to now.
    fn work_report(&self) -> Map<String, Value> {
        let tally = &self.ledger.tally;
        figures([
            ("x-bytes-copied", &tally.copied),
            ("x-bytes-zeroed", &tally.zeroed),
            ("x-bytes-skipped", &tally.skipped),
            ("x-bytes-retried", &tally.retried),
            ("x-bytes-written-to-both", &tally.twofold),
        ])
    }
}

fn figures<const N: usize>(counters: [(&str, &AtomicU64); N]) -> Map<String, Value> {
    let figure = |(name, counter): (&str, &AtomicU64)| {
        (name.to_owned(), counter.load(Ordering::Relaxed).into())
    };
    counters.into_iter().map(figure).collect()
}

pub(super) fn failed(error: impl std::fmt::Display) -> JobError {
    JobError::Failed(error.to_string())
}

impl JobDriver for MirrorJob {
    fn kind(&self) -> JobKind {
        match self.own_chain {
            Some(_) => JobKind::Commit,
            None => JobKind::Mirror,
        }
    }

    fn run<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<(), JobError>> {
        Box::pin(async move {
            self.ledger.set_kicker(job.kicker());
            let result = async {
                self.begin_first_copy(job).await?;
                self.synchronise(job).await?;
                self.first.enter(Phase::Ready);
                job.transition_to_ready()?;
                self.keep_in_sync(job).await
            }
            .await;
            if result.is_err() {
                self.ledger.parting.give_up();
            }
            result
        })
    }

    fn settle<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(self.settle_copies(job))
    }

    fn prepare<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<(), JobError>> {
        Box::pin(self.pivot(job))
    }

    fn commit<'a>(&'a self, _job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.end_pivot() })
    }

    fn abort<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            self.ledger.parting.give_up();
            self.settle_at_end(job).await;
            if self.take_pivot_back(job) {
                return;
            }
            let holder = format!("end of job '{}'", job.job().id());
            let section = self
                .graph
                .drain_by_job(&self.filter, &holder, job.job())
                .await;
            if let Err(error) = self.take_filter_out(job) {
                tracing::error!(%error, "the mirror's filter can't be taken out");
            }
            drop(section);
        })
    }

    fn clean<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            let (graph, own) = (&self.graph, job.job());
            let target_left = self.outcome.target_left.load(Ordering::Relaxed);
            if self.own_chain.is_none() {
                self.source.unblock();
                if !target_left {
                    self.target.unblock();
                }
            }
            if let Some(replaced) = &self.replaced {
                replaced.let_go();
            }
            graph.remove_job_parent(&self.filter, own, FILTER_ROLE);
            graph.remove_job_parent(&self.target, own, TARGET_ROLE);
            graph.remove_if_unused(&self.filter);
            if let Some(chain) = &self.own_chain {
                chain.give_back(graph, self.outcome.pivoted.load(Ordering::Relaxed));
            }
            graph.remove_if_unused(&self.source);
        })
    }

    fn cancels_softly(&self) -> bool {
        true
    }

    fn on_cancel(&self, force: bool) {
        if force {
            self.ledger.parting.give_up();
        }
    }

    fn on_change(&self, options: &Map<String, Value>) -> Result<(), VerbError> {
        if self.own_chain.is_some() {
            return Err(VerbError::CannotChange);
        }
        let mode = options.get("copy-mode").cloned().unwrap_or_default();
        let mode = serde_json::from_value(mode);
        let refused = |error: serde_json::Error| VerbError::Refused(error.to_string());
        self.ledger.set_mode(mode.map_err(refused)?);
        Ok(())
    }

    fn on_complete(&self, _job: &Job) -> Result<(), VerbError> {
        // The work sees the request at its next look.
        match &self.replaced {
            Some(replaced) => replaced.take(&self.graph),
            None => Ok(()),
        }
    }

    fn on_complete_refused(&self) {
        if let Some(replaced) = &self.replaced {
            replaced.let_go();
        }
    }

    fn query(&self) -> Map<String, Value> {
        let mut members = self.work_report();
        if self.outcome.pivoted.load(Ordering::Relaxed) {
            members.extend(self.pivot_report());
        }
        if self.own_chain.is_some() {
            // What follows is a mirror's own.
            return members;
        }
        let zeroed = self.ledger.tally.zeroed.load(Ordering::Relaxed);
        members.extend(self.first.report(zeroed));
        let synced = self.first.is_complete() && self.ledger.is_in_sync();
        members.insert("actively-synced".to_owned(), synced.into());
        members.insert("x-copy-mode".to_owned(), self.ledger.mode().name().into());
        let twofold = self.ledger.is_twofold();
        members.insert("x-writes-to-both".to_owned(), twofold.into());
        members
    }

    fn report(&self) -> Map<String, Value> {
        let mut report = self.work_report();
        report.extend(self.pivot_report());
        report
    }
}
