//! A job's life from `Created` to `Concluded`: one task in the job's home context.
//!
//! The order of states and events here is what clients rely on (QEMU's `job.c`): created, running,
//! (ready,) waiting, pending, then the outcome's event, concluded, null; or aborting in the middle.

use std::sync::Arc;

use super::context::JobContext;
use super::error::JobError;
use super::group::Stage;
use super::handle::Job;
use super::inner::{Activity, CancelRequest, Core};
use super::state::JobState;
use crate::event::BlockEvent;

/// What the creator, or an operator, decided about a created job.
enum Launch {
    Start,
    Cancelled,
    Discarded,
}

/// A job's life, on its way into the job's loop.
///
/// If it is dropped before its end (the loop has ended, or the driver's code has panicked) the job
/// fails without its driver's last hooks: nobody waits for it for ever, and its name is free again.
pub(super) struct Life(Arc<Job>);

impl Life {
    pub(super) fn new(job: &Arc<Job>) -> Self {
        Self(Arc::clone(job))
    }

    /// Lives it.
    pub(super) async fn live(self) {
        live(&self.0).await;
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let job = &self.0;
        let mut core = job.lock();
        if core.state.has_ended() {
            return;
        }
        if let Some(work) = core.state.at_work() {
            job.report_mistake(job.transition(&mut core, work));
        }
        job.report_mistake(job.transition(&mut core, JobState::Aborting));
        core.error = Some(JobError::Failed("The job was interrupted".to_owned()));
        drop(core);
        job.group().fail(job);
        conclude(job);
    }
}

async fn live(job: &Arc<Job>) {
    let context = JobContext::new(Arc::clone(job));
    let launch = job.wait(|core| launch(job, core)).await;
    let mut result = match launch {
        Launch::Start => work(&context).await,
        Launch::Cancelled => Err(JobError::Cancelled),
        Launch::Discarded => {
            job.leave_home();
            let retired = job.retire(&mut job.lock());
            job.report_mistake(retired);
            job.wake();
            return;
        }
    };
    if result.is_ok() {
        result = finish(&context).await;
    }
    match &result {
        Ok(()) => job.driver.commit(&context).await,
        Err(error) => {
            job.group().fail(job);
            job.wait(|core| begin_abort(job, core, error)).await;
            // It may have come into another group before it was known to abort.
            job.group().fail(job);
            job.driver.abort(&context).await;
        }
    }
    job.driver.clean(&context).await;
    conclude(job);
}

fn launch(job: &Job, core: &mut Core) -> Option<Launch> {
    if core.is_cancelled() {
        return Some(Launch::Cancelled);
    }
    if core.discarded {
        return Some(Launch::Discarded);
    }
    if !core.start_requested || !job.group().have_all_reached(Stage::Started) {
        return None;
    }
    job.report_mistake(job.transition(core, JobState::Running));
    core.started = true;
    // Nothing is done before the first pause point, so the job may count as working for a moment
    // even if a drained section wants it to rest.
    core.activity = Activity::Working;
    Some(Launch::Start)
}

async fn work(context: &JobContext) -> Result<(), JobError> {
    context.pause_point().await;
    context.check_cancelled()?;
    context.job().driver.run(context).await
}

/// From the end of the work to the point of no return, and over it.
async fn finish(context: &JobContext) -> Result<(), JobError> {
    let job = context.job();
    advance(job, JobState::Waiting)?;
    reach_together(job, Stage::Waiting).await?;
    advance(job, JobState::Pending)?;
    if !job.auto_finalize() {
        let mut core = job.lock();
        core.activity = Activity::Idle;
        let id = job.id().to_owned();
        job.emit(BlockEvent::BlockJobPending {
            kind: job.kind(),
            id,
        });
        drop(core);
        job.wake();
    }
    job.wait(|core| {
        if core.is_cancelled() {
            return Some(Err(JobError::Cancelled));
        }
        if !job.group().may_finalize() {
            // Others may have to be finalised where this one need not.
            rest(job, core);
            return None;
        }
        if !core.begin_work() {
            return None;
        }
        core.finalizing = true;
        Some(Ok(()))
    })
    .await?;
    job.driver.prepare(context).await?;
    reach_together(job, Stage::Prepared).await
}

/// Tells the others of the group that this one is that far, and rests until all are.
async fn reach_together(job: &Job, stage: Stage) -> Result<(), JobError> {
    job.group().reach(stage);
    job.wait(|core| {
        if job.group().have_all_reached(stage) {
            return core.begin_work().then_some(Ok(()));
        }
        if core.is_cancelled() || job.group().has_failed() {
            core.cancel = CancelRequest::Force;
            return Some(Err(JobError::Cancelled));
        }
        rest(job, core);
        None
    })
    .await
}

/// The job waits for others, and no section has to wait for it.
fn rest(job: &Job, core: &mut Core) {
    if core.is_busy() {
        core.activity = Activity::Idle;
        job.wake();
    }
}

/// Takes one step towards the end, unless the job was cancelled.
fn advance(job: &Job, to: JobState) -> Result<(), JobError> {
    let mut core = job.lock();
    if core.is_cancelled() {
        return Err(JobError::Cancelled);
    }
    job.transition(&mut core, to)?;
    drop(core);
    job.wake();
    Ok(())
}

fn begin_abort(job: &Job, core: &mut Core, error: &JobError) -> Option<()> {
    if core.state != JobState::Aborting {
        job.report_mistake(job.transition(core, JobState::Aborting));
        core.error = Some(error.clone());
    }
    core.begin_work().then_some(())
}

/// Tells the outcome, ends, and leaves if nobody has to dismiss the job.
fn conclude(job: &Job) {
    // Whoever hears of the end may take the thread away at once.
    job.leave_home();
    let details = job.driver.report();
    let mut core = job.lock();
    core.activity = Activity::Idle;
    if core.started {
        let report = job.job_report(&core);
        job.emit(if core.is_cancelled() {
            BlockEvent::BlockJobCancelled(report)
        } else {
            let error = core.error.as_ref().map(ToString::to_string);
            BlockEvent::BlockJobCompleted {
                report,
                error,
                details,
            }
        });
    }
    let mut result = job.transition(&mut core, JobState::Concluded);
    if job.auto_dismiss() || !core.started {
        result = result.and_then(|()| job.retire(&mut core));
    }
    drop(core);
    job.report_mistake(result);
    job.wake();
}
