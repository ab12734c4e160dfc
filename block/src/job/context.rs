//! [`JobContext`]: what a job's work may ask of the engine.
//!
//! It is used by the job's driver, inside the job's home context. Pausing, draining and cancelling
//! meet the work only at its pause points.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use rustix::io::Errno;
use sluice_aio::current;

use super::end::rest;
use super::error::{IoFailure, JobError};
use super::handle::{Job, JobKicker};
use super::home::here;
use super::inner::{Activity, CancelRequest, Core};
use super::policy::{ErrorVerdict, IoSide, IoStatus, OnError};
use super::progress::Progress;
use super::state::{IllegalTransition, JobState};
use crate::event::{BlockEvent, ErrorAction, IoOperation};

/// Why a sleep has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wakeup {
    /// The time is over.
    Elapsed,
    /// Somebody has kicked the job, or a command was given; look at everything again.
    Kicked,
}

/// A job as its own work sees it.
#[derive(Debug, Clone)]
pub struct JobContext {
    job: Arc<Job>,
}

impl JobContext {
    pub(super) fn new(job: Arc<Job>) -> Self {
        Self { job }
    }

    /// The job itself.
    #[must_use]
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// How far the job has come; the work moves it.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        self.job.progress()
    }

    /// Wakes this work from any thread.
    #[must_use]
    pub fn kicker(&self) -> JobKicker {
        self.job.kicker()
    }

    /// The job was cancelled by force: stop what you do and return.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.job.lock().is_cancelled()
    }

    /// The job was cancelled, by force or softly.
    #[must_use]
    pub fn cancel_requested(&self) -> bool {
        self.job.lock().cancel != CancelRequest::None
    }

    /// The operator wants the job to switch over and end.
    #[must_use]
    pub fn complete_requested(&self) -> bool {
        self.job.lock().complete_requested
    }

    /// The job must rest: somebody waits for it to reach a pause point.
    #[must_use]
    pub fn must_rest(&self) -> bool {
        self.job.lock().must_rest()
    }

    /// Completes when the job is cancelled by force; to be raced against what may hang.
    pub async fn cancelled(&self) {
        self.job
            .wait(|core| core.is_cancelled().then_some(()))
            .await;
    }

    /// What is to be done, or `None` as soon as the job is cancelled by force: what was begun is dropped then.
    ///
    /// # Errors
    /// [`JobError::Cancelled`].
    pub async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, JobError> {
        match select(pin!(self.cancelled()), pin!(work)).await {
            Either::Left(_) => Err(JobError::Cancelled),
            Either::Right((done, _)) => Ok(done),
        }
    }

    /// Whether that is there which the job waits for in [`tend`](super::JobDriver::tend).
    #[must_use]
    pub fn is_called(&self) -> bool {
        let core = self.job.lock();
        self.job.is_called(&core)
    }

    /// Rests until [`is_called`](Self::is_called) is true. No drained section waits for the job meanwhile.
    ///
    /// # Errors
    /// The job was cancelled by force.
    pub async fn rest_until_called(&self) -> Result<(), JobError> {
        let called = self.job.wait(|core| {
            if self.job.has_to_give_up(core) {
                return Some(Err(JobError::Cancelled));
            }
            if !self.job.is_called(core) {
                rest(&self.job, core);
                return None;
            }
            core.begin_work().then_some(Ok(()))
        });
        called.await
    }

    /// Rests here as long as an operator or a drained section wants it.
    ///
    /// The driver's `settle` is called before the job counts as idle. A forced cancel ends an
    /// operator's pause; a drained section is respected all the same. Only for the work's main
    /// task, in `run`.
    pub async fn pause_point(&self) {
        while self.job.lock().must_rest() {
            here(self.job.driver.settle(self)).await;
            if !self.begin_rest() {
                continue;
            }
            self.job.rest_until(|core| self.end_rest(core)).await;
        }
        debug_assert_eq!(current::context(), self.job.home(), "a job works elsewhere");
    }

    /// Sleeps for `duration` or until the job is kicked, whichever comes first; then a pause point.
    pub async fn sleep(&self, duration: Duration) -> Wakeup {
        self.sleep_until(here(current::sleep(duration))).await
    }

    /// Sleeps until the job is kicked; then a pause point.
    pub async fn sleep_until_kicked(&self) {
        self.sleep_until(std::future::pending::<()>()).await;
    }

    /// Sleeps until `end` is over or the job is kicked, whichever comes first; then a pause point.
    pub async fn sleep_until<T>(&self, end: impl Future<Output = T>) -> Wakeup {
        self.set_activity(Activity::Sleeping);
        let kick = pin!(self.job.wait(|_| self.job.take_kick().then_some(())));
        let wakeup = match select(kick, pin!(end)).await {
            Either::Left(_) => Wakeup::Kicked,
            Either::Right(_) => Wakeup::Elapsed,
        };
        self.set_activity(Activity::Working);
        self.pause_point().await;
        wakeup
    }

    /// Waits for `duration` before a failed transfer is tried again; then a pause point.
    ///
    /// Unlike a sleep it is not cut short by kicks, only by a forced cancel or the wish that the
    /// job rests.
    pub async fn back_off(&self, duration: Duration) {
        self.set_activity(Activity::Sleeping);
        let interrupt = self
            .job
            .wait(|core| (core.is_cancelled() || core.must_rest()).then_some(()));
        select(pin!(interrupt), here(current::sleep(duration))).await;
        self.set_activity(Activity::Working);
        self.pause_point().await;
    }

    /// Tells the world that the job may be completed from now on.
    ///
    /// # Errors
    /// [`IllegalTransition`] if the job was ready before or does not run.
    pub fn transition_to_ready(&self) -> Result<(), IllegalTransition> {
        let mut core = self.job.lock();
        self.job.transition(&mut core, JobState::Ready)?;
        self.job
            .emit(BlockEvent::BlockJobReady(self.job.job_report(&core)));
        Ok(())
    }

    /// Whether the job is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.job.lock().state.is_ready()
    }

    /// Charges `bytes` to the job's speed limit.
    pub fn charge(&self, bytes: u64) {
        let now = self.now();
        self.job.lock().rate.charge(bytes, now);
    }

    /// How long from now until the job will be slower than the operator's speed limit lets it be; zero: it is. None without a limit;
    /// once the job was finalised it has none any more.
    #[must_use]
    pub fn until_behind_rate(&self) -> Option<Duration> {
        let now = self.now();
        let core = self.job.lock();
        let is_limited = core.phase.is_limited() && core.rate.speed() > 0;
        is_limited.then(|| core.rate.until_behind(now))
    }

    /// How long the speed limit wants the next transfer to wait; zero: not at all.
    #[must_use]
    pub fn rate_delay(&self) -> Duration {
        let now = self.now();
        let core = self.job.lock();
        match core.phase.is_limited() {
            true => core.rate.delay(now),
            false => Duration::ZERO,
        }
    }

    /// Reports that a request to `node` has failed and says what to do about it, by the operator's `policy`.
    ///
    /// Emits `BLOCK_JOB_ERROR`. If the policy says so, the job is paused as by an operator.
    #[must_use]
    pub fn io_error(
        &self,
        node: &str,
        policy: OnError,
        operation: IoOperation,
        error: Errno,
    ) -> ErrorVerdict {
        let action = policy.action(error);
        let now = self.now();
        let mut core = self.job.lock();
        let verdict = match action {
            ErrorAction::Report => ErrorVerdict::Fail,
            ErrorAction::Ignore => ErrorVerdict::RetryAfter(core.ignored.next_wait()),
            ErrorAction::Stop => {
                core.user_paused = true;
                core.io_status = IoStatus::from_errno(error);
                ErrorVerdict::Stopped
            }
        };
        if action != ErrorAction::Ignore || core.ignored.admit_event(operation, now) {
            let device = self.job.id().to_owned();
            self.job.emit(BlockEvent::BlockJobError {
                device,
                operation,
                action,
                node: node.to_owned(),
                errno: error.raw_os_error(),
            });
        }
        verdict
    }

    /// Judges errors that were met together, each kind once, by the operator's policy for the side that its
    /// direction is about; returns when what failed is to be tried again.
    ///
    /// # Errors
    /// The job has to end.
    pub async fn judge_errors<'a>(
        &self,
        errors: &[(IoOperation, Errno)],
        side: impl Fn(IoOperation) -> IoSide<'a>,
    ) -> Result<(), JobError> {
        let mut wait = Duration::ZERO;
        let mut stopped = false;
        for (index, error) in errors.iter().enumerate() {
            if errors[..index].contains(error) {
                continue;
            }
            let (operation, errno) = *error;
            let side = side(operation);
            match self.io_error(side.node.name(), side.policy, operation, errno) {
                ErrorVerdict::Fail => return Err(self.io_failure(side, operation, errno)),
                ErrorVerdict::RetryAfter(delay) => wait = wait.max(delay),
                ErrorVerdict::Stopped => stopped = true,
            }
        }
        if stopped {
            self.pause_point().await;
        } else if !wait.is_zero() {
            self.back_off(wait).await;
        }
        Ok(())
    }

    /// The error of a job that is to end because a request at `side` failed; the log says what would help.
    pub fn io_failure(&self, side: IoSide<'_>, operation: IoOperation, errno: Errno) -> JobError {
        let error = JobError::Io(IoFailure {
            operation,
            node: side.node.name().to_owned(),
            errno: errno.raw_os_error(),
        });
        let (job, node, argument) = (self.job.id(), side.node.name(), side.argument);
        let failed = match operation {
            IoOperation::Read => "read",
            IoOperation::Write => "written",
        };
        tracing::warn!(
            "job '{job}' ends: node '{node}' can't be {failed}: {error}; see to its medium and start the job again, \
             with {argument}=stop if it is to wait for that"
        );
        error
    }

    /// A transfer has succeeded: the next ignored error waits but shortly again.
    pub fn io_success(&self) {
        self.job.lock().ignored.reset();
    }

    /// Whether an error has stopped the job and no operator has resumed it.
    #[must_use]
    pub fn io_status(&self) -> IoStatus {
        self.job.lock().io_status
    }

    /// `Err` if the job was cancelled by force; to be used with `?`.
    ///
    /// # Errors
    /// [`JobError::Cancelled`].
    pub fn check_cancelled(&self) -> Result<(), JobError> {
        if self.is_cancelled() {
            Err(JobError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Becomes idle, if the job still has to rest and is in a state that can.
    fn begin_rest(&self) -> bool {
        let mut core = self.job.lock();
        if !core.must_rest() {
            return false;
        }
        if let Some(rest) = core.state.at_rest() {
            let resting = self.job.transition(&mut core, rest);
            self.job.report_mistake(resting);
        }
        core.activity = Activity::Idle;
        drop(core);
        self.job.wake();
        true
    }

    /// Works on, if nothing wants the job to rest any more.
    fn end_rest(&self, core: &mut Core) -> Option<()> {
        if core.must_rest() || !core.begin_work() {
            return None;
        }
        if let Some(work) = core.state.at_work() {
            let working = self.job.transition(core, work);
            self.job.report_mistake(working);
        }
        Some(())
    }

    fn set_activity(&self, activity: Activity) {
        self.job.lock().activity = activity;
    }

    fn now(&self) -> Duration {
        self.job.clock().now()
    }
}
