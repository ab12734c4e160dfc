//! The mirror's work from the first copy to the end of what is dirty, and what its copies tell: progress, and errors for
//! the operator.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::balance::Counts;
use super::copier::{Pace, Step};
use super::job::MirrorJob;
use super::ledger::CopyError;
use super::options::CopyMode;
use crate::event::IoOperation;
use crate::job::{IoSide, JobContext, JobError, here};

/// How often an idle mirror looks whether the guest has written.
pub(super) const IDLE_SLICE: Duration = Duration::from_millis(100);

/// Passes over what became dirty meanwhile before a guest that never stops writing is taken as it
/// is: a small rest does not keep the job from being ready, and the pivot copies any rest inside
/// its section.
pub(super) const MAX_PASSES: u32 = 16;

impl MirrorJob {
    /// Copies until nothing is dirty and no copy runs, or `enough` says so.
    pub(super) async fn copy_until(
        &self,
        job: &JobContext,
        enough: impl Fn() -> bool,
    ) -> Result<(), JobError> {
        loop {
            job.pause_point().await;
            job.check_cancelled()?;
            self.judge_copies(job).await?;
            if self.copier.is_converged() || enough() {
                return Ok(());
            }
            self.copy_some(job).await?;
        }
    }

    /// Begins one copy if one may begin now, or waits.
    pub(super) async fn copy_some(&self, job: &JobContext) -> Result<(), JobError> {
        let delay = job.rate_delay();
        if !delay.is_zero() {
            job.sleep(delay).await;
            return Ok(());
        }
        // By how much a limit is missed decides, and not how long each copy takes: one that waits for a slow device or a
        // distant one takes no processor.
        let (pace, patience) = match job.until_behind_rate() {
            None => (Pace::Fast, IDLE_SLICE),
            Some(Duration::ZERO) => (Pace::Brief, IDLE_SLICE),
            Some(until_behind) => (Pace::Single, IDLE_SLICE.min(until_behind)),
        };
        match here(self.step(job, pace)).await? {
            Step::Started { data } => job.charge(data),
            Step::Clean => {
                job.sleep(IDLE_SLICE).await;
            }
            Step::Busy => {
                job.sleep(patience).await;
            }
        }
        Ok(())
    }

    /// Starts one copy, of which the source may have to be asked first.
    async fn step(&self, job: &JobContext, pace: Pace) -> Result<Step, JobError> {
        let (copier, kicker) = (Arc::clone(&self.copier), job.kicker());
        let step = async move { copier.step(&kicker, pace).await };
        self.look_at(job, step).await
    }

    /// Copies about as much as is dirty now.
    pub(super) async fn pass(&self, job: &JobContext) -> Result<(), JobError> {
        self.judge_copies(job).await?;
        let goal = job.progress().current() + self.copier.remaining();
        self.copy_until(job, || job.progress().current() >= goal)
            .await
    }

    /// Copies all that is dirty, or `most` bytes and a little more, with the guest held or waiting: nothing holds it up but
    /// a forced cancel. False if there was an error, which is left to be judged when the guest goes on: nobody may wait
    /// for an operator with the guest held.
    pub(super) async fn copy_rest(
        &self,
        job: &JobContext,
        most: u64,
        pace: Pace,
    ) -> Result<bool, JobError> {
        let mut begun = 0;
        loop {
            job.check_cancelled()?;
            let errors = self.account(job);
            if !errors.is_empty() {
                self.settle_copies(job).await;
                self.ledger.report_again(errors);
                return Ok(false);
            }
            if self.copier.is_converged() || begun >= most {
                return Ok(true);
            }
            match self.step(job, pace).await? {
                Step::Started { data } => {
                    begun = data
                        .max(self.ledger.dirty.granularity())
                        .saturating_add(begun);
                }
                Step::Clean | Step::Busy => {
                    let idle = self.ledger.copies.wait_idle();
                    job.unless_cancelled(idle).await?;
                }
            }
        }
    }

    /// The first copy of everything, and of what the guest wrote meanwhile.
    pub(super) async fn synchronise(&self, job: &JobContext) -> Result<(), JobError> {
        let mut passes = 0;
        while !self.copier.is_converged() && (passes < MAX_PASSES || !self.is_nearly_converged()) {
            self.pass(job).await?;
            passes += 1;
        }
        self.flush_target(job).await?;
        self.judge_copies(job).await
    }

    /// Counts what the copies have done, and judges the errors they met.
    pub(super) async fn judge_copies(&self, job: &JobContext) -> Result<(), JobError> {
        let mut errors = self.account(job);
        if !errors.is_empty() {
            // Copies run side by side, and what ails one ails all: let them all end and judge
            // their error once, or the operator would have to resume the job for each of them.
            here(self.settle_copies(job)).await;
            errors.extend(self.account(job));
        }
        self.judge(job, errors).await
    }

    /// Moves the job's progress; returns the errors that copies met since the last time.
    pub(super) fn account(&self, job: &JobContext) -> Vec<CopyError> {
        let (finished, errors) = self.ledger.take_news();
        let left = self.copier.remaining();
        job.progress().add_done(finished.bytes);
        if finished.unforeseen > 0 {
            job.charge(finished.unforeseen);
        }
        let to_come = self.first.to_come();
        job.progress().set_remaining(left.saturating_add(to_come));
        if finished.bytes > 0 && errors.is_empty() {
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
    async fn judge(&self, job: &JobContext, errors: Vec<CopyError>) -> Result<(), JobError> {
        if errors.is_empty() {
            return Ok(());
        }
        let errors = errors.into_iter();
        let errors: Vec<_> = errors.map(|error| (error.operation, error.errno)).collect();
        let side = |operation| {
            let (node, policy, argument) = match operation {
                IoOperation::Read => (&self.source, self.on_source_error, "on-source-error"),
                IoOperation::Write => (&self.target, self.on_target_error, "on-target-error"),
            };
            let argument = match self.own_chain {
                Some(_) => "on-error",
                None => argument,
            };
            IoSide {
                node,
                policy,
                argument,
            }
        };
        job.judge_errors(&errors, side).await?;
        // One that was stopped may have been cancelled then: nothing is tried again.
        job.check_cancelled()?;
        self.ledger.resume();
        Ok(())
    }

    /// Makes the target durable, as far as it was written before.
    pub(super) async fn flush_target(&self, job: &JobContext) -> Result<(), JobError> {
        loop {
            job.check_cancelled()?;
            let Err(error) = here(self.begin_flush(job)).await? else {
                return Ok(());
            };
            self.judge(job, vec![error]).await?;
        }
    }

    /// From ready until the operator wants the end and what is dirty can be left to the pivot.
    pub(super) async fn keep_in_sync(&self, job: &JobContext) -> Result<(), JobError> {
        let wanted = || job.complete_requested() || job.cancel_requested();
        let mut copied_before = None;
        loop {
            self.copy_until(job, wanted).await?;
            if !wanted() {
                let copied = self.ledger.tally.copied.load(Ordering::Relaxed);
                if copied_before.replace(copied) == Some(copied) {
                    // A thousand mirrors that have nothing to do should keep no memory for it.
                    self.copier.forget_memory();
                }
                job.sleep(IDLE_SLICE).await;
                continue;
            }
            self.come_near(job).await?;
            // The last chance for an error to be judged by the operator's policy.
            here(self.settle_copies(job)).await;
            let errors = self.account(job);
            if errors.is_empty() {
                return job.check_cancelled();
            }
            self.judge(job, errors).await?;
        }
    }
}
