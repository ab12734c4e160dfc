//! The mirror as a job: what it holds, what it does when, and what it tells; see the [module above](super).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, LocalBoxFuture};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::active::OwnChain;
use super::approach::Nearness;
use super::balance::Balance;
use super::claim::{FILTER_ROLE, TARGET_ROLE};
use super::copier::Copier;
use super::first::{First, Phase};
use super::ledger::Ledger;
use super::pivot::Held;
use super::replaced::Replaced;
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::job::{
    Awaited, Job, JobContext, JobDetails, JobDriver, JobError, JobKind, OnError, VerbError,
};
use crate::node::Node;

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
    pub(super) nearness: Nearness,
    pub(super) held: Mutex<Option<Held>>,
    pub(super) outcome: Outcome,
}

/// What the end of the job has to tell.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) pivoted: AtomicBool,
    /// The disk was held for the job's end, and is no more: the figures below are there.
    pub(super) held: AtomicBool,
    /// The target has been left to its requests, which have not returned.
    pub(super) target_left: AtomicBool,
    pub(super) pause_us: AtomicU64,
    pub(super) postponed: AtomicU64,
    pub(super) longest_wait_us: AtomicU64,
}

impl MirrorJob {
    /// What is to be done for an error: nothing is begun any more, and no guest waits for the target.
    fn or_give_up<T>(&self, result: Result<T, JobError>) -> Result<T, JobError> {
        result.inspect_err(|_| self.ledger.parting.give_up())
    }

    /// What the pivot, or a soft cancel, cost, if there has been one.
    fn report_pivot(&self, details: &mut JobDetails) {
        let outcome = &self.outcome;
        if !outcome.held.load(Ordering::Relaxed) {
            return;
        }
        details.pivot_pause_us = figure(&outcome.pause_us);
        details.postponed_requests = figure(&outcome.postponed);
        details.longest_wait_us = figure(&outcome.longest_wait_us);
    }

    /// What was done up to now.
    fn work_report(&self) -> JobDetails {
        let tally = &self.ledger.tally;
        JobDetails {
            bytes_copied: figure(&tally.copied),
            bytes_zeroed: figure(&tally.zeroed),
            bytes_skipped: figure(&tally.skipped),
            bytes_retried: figure(&tally.retried),
            bytes_written_to_both: figure(&tally.twofold),
            ..JobDetails::default()
        }
    }
}

fn figure(counter: &AtomicU64) -> Option<u64> {
    Some(counter.load(Ordering::Relaxed))
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

    fn graph(&self) -> Option<&Arc<Graph>> {
        Some(&self.graph)
    }

    fn run<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
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
            self.or_give_up(result)
        })
    }

    fn settle<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(self.settle_copies(job))
    }

    fn tend<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(async move { self.or_give_up(self.stay_in_sync(job).await) })
    }

    fn catch_up<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(async move { self.or_give_up(self.approach(job).await) })
    }

    fn keep_up<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(async move { self.or_give_up(self.stay_near(job).await) })
    }

    fn hold<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<bool, JobError>> {
        Box::pin(async move { self.or_give_up(self.begin_pivot(job).await) })
    }

    fn release(&self) {
        self.let_guest_go_on();
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
            // First of all the guest goes on: the target may hang.
            let is_out = self.take_pivot_back(job);
            if self.settle_at_end(job).await || is_out {
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
            if let Some(chain) = &self.own_chain {
                if self.outcome.pivoted.load(Ordering::Relaxed) {
                    chain.claimed.stays_writable();
                }
                if !target_left {
                    chain.claimed.give_back(&Parent::job(own));
                }
                return graph.remove_if_unused(&self.source);
            }
            self.source.unblock();
            if !target_left {
                self.target.unblock();
            }
            if let Some(replaced) = &self.replaced {
                replaced.let_go();
            }
            graph.remove_job_parent(&self.filter, own, FILTER_ROLE);
            graph.remove_job_parent(&self.target, own, TARGET_ROLE);
            graph.remove_if_unused(&self.filter);
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

    fn completes(&self) -> bool {
        true
    }

    fn on_complete(&self, job: &Arc<Job>) -> Result<(), VerbError> {
        // The work sees the request at its next look.
        match &self.replaced {
            Some(replaced) => replaced.take(&self.graph, job),
            None => Ok(()),
        }
    }

    fn on_complete_refused(&self) {
        if let Some(replaced) = &self.replaced {
            replaced.let_go();
        }
    }

    /// A mirror's source is the guest's disk, which is given back only when nothing reads it any more.
    fn leaves_reads(&self) -> bool {
        self.own_chain.is_some()
    }

    fn awaited(&self, now: Duration) -> Awaited {
        self.ledger.parting.awaited(now)
    }

    fn query(&self) -> JobDetails {
        let mut details = self.work_report();
        self.report_pivot(&mut details);
        if self.own_chain.is_some() {
            // What follows is a mirror's own.
            return details;
        }
        let zeroed = self.ledger.tally.zeroed.load(Ordering::Relaxed);
        self.first.report(zeroed, &mut details);
        let memory =
            self.ledger.dirty.memory() + self.copier.memory_of_known() + self.first.memory();
        details.bitmaps_memory = Some(memory);
        let synced = self.first.is_complete() && self.ledger.is_in_sync();
        details.actively_synced = Some(synced);
        details.copy_mode = Some(self.ledger.mode());
        details.writes_to_both = Some(self.ledger.is_twofold());
        details
    }

    fn report(&self) -> JobDetails {
        let mut report = self.work_report();
        self.report_pivot(&mut report);
        report
    }
}
