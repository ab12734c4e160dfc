//! A job's life from `Created` to `Concluded`: one task in the job's home context.
//!
//! The order of states and events here is what clients rely on (QEMU's `job.c`): created, running,
//! (ready,) waiting, pending, then the outcome's event, concluded, null; or aborting in the middle.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future::BoxFuture;
use sluice_aio::current;

use super::context::JobContext;
use super::end::finish;
use super::error::JobError;
use super::handle::Job;
use super::home::here;
use super::inner::{Activity, Core};
use super::state::JobState;
use crate::event::BlockEvent;

/// What the creator, or an operator, decided about a created job.
enum Launch {
    Start,
    Cancelled,
    Discarded,
}

/// A job's life, in the job's loop or on its way there.
///
/// If it is dropped before its end (the loop has ended, or the driver's code has panicked) the job
/// fails without its driver's last hooks: nobody waits for it for ever, and its name is free again.
pub(super) struct Life {
    job: Arc<Job>,
    steps: BoxFuture<'static, ()>,
}

impl Life {
    /// Starts it in the job's loop.
    pub(super) fn begin(job: &Arc<Job>) {
        let steps = Box::pin(live(Arc::clone(job)));
        let job = Arc::clone(job);
        Self { job, steps }.settle();
    }

    /// Goes to the job's home and lives there.
    fn settle(self) {
        self.job.home().spawn(move || self.live());
    }

    /// Lives in this loop until the end, or until the job has another home.
    async fn live(mut self) {
        let here = current::context();
        self.job.arrive(&here);
        let job = Arc::clone(&self.job);
        let mut notes = pin!(job.note_slow_end());
        let mut limits = pin!(lift_limits_at_end(&job));
        let moves = poll_fn(|cx| {
            // First: the steps may wait for what the limits hold up.
            if let Poll::Ready(never) = limits.as_mut().poll(cx) {
                match never {}
            }
            if self.job.home() == here && self.steps.as_mut().poll(cx).is_ready() {
                return Poll::Ready(false);
            }
            // The home may have changed while the steps found nothing to do here.
            match self.job.home() == here {
                // It never ends, and waits in this loop.
                true => notes.as_mut().poll(cx).map(|never| match never {}),
                false => Poll::Ready(true),
            }
        });
        if moves.await {
            self.settle();
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let job = &self.job;
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

/// Lifts the limits of what the job works on as soon as it has to end. For the task of the job's life, beside its
/// steps, in whatever loop that is.
async fn lift_limits_at_end(job: &Arc<Job>) -> Infallible {
    job.wait(|core| core.has_to_end().then_some(())).await;
    let graph = job.driver.graph();
    let _lifted = graph.map(|graph| graph.lift_limits_of(job));
    pending().await
}

async fn live(job: Arc<Job>) {
    let job = &job;
    let context = JobContext::new(Arc::clone(job));
    let launch = job.wait(|core| launch(job, core)).await;
    job.tell_of_change();
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
        Ok(()) => here(job.driver.commit(&context)).await,
        Err(error) => {
            job.group().fail(job);
            job.rest_until(|core| begin_abort(job, core, error)).await;
            // It may have come into another group before it was known to abort.
            job.group().fail(job);
            here(job.driver.abort(&context)).await;
        }
    }
    here(job.driver.clean(&context)).await;
    conclude(job);
}

fn launch(job: &Job, core: &mut Core) -> Option<Launch> {
    if core.discarded {
        return Some(Launch::Discarded);
    }
    // Until its creator has said which, it may have to be as if it had never been: a cancel waits for that.
    if !core.start_requested {
        return None;
    }
    if core.is_cancelled() {
        return Some(Launch::Cancelled);
    }
    if !core.is_at_home() || !job.group().have_all_started() {
        return None;
    }
    job.report_mistake(job.transition(core, JobState::Running));
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

fn begin_abort(job: &Job, core: &mut Core, error: &JobError) -> Option<()> {
    if core.state != JobState::Aborting {
        job.report_mistake(job.transition(core, JobState::Aborting));
        core.error = Some(error.clone());
        if core.told_to_end.is_none() {
            job.note_told_to_end(core);
        }
    }
    core.begin_work().then_some(())
}

/// Tells the outcome, ends, and leaves if nobody has to dismiss the job.
fn conclude(job: &Job) {
    // Whoever hears of the end may take the thread away at once.
    job.leave_home();
    let details = job.driver.report().members();
    let mut core = job.lock();
    core.activity = Activity::Idle;
    if core.start_requested {
        let report = job.job_report(&core);
        job.emit(if core.is_cancelled() {
            BlockEvent::BlockJobCancelled(report)
        } else {
            let error = core.error.as_ref();
            BlockEvent::BlockJobCompleted {
                report,
                error: error.map(ToString::to_string),
                failure: error.and_then(JobError::io_failure).cloned(),
                details,
            }
        });
    }
    let mut result = job.transition(&mut core, JobState::Concluded);
    if job.auto_dismiss() || !core.start_requested {
        result = result.and_then(|()| job.retire(&mut core));
    }
    drop(core);
    job.report_mistake(result);
    job.wake();
}
