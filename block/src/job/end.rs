//! The end of a job: what happens between the end of its work and the point of no return, phase by phase.
//!
//! The phases are the same for every job of a group, and each is left when every member can leave it. What may
//! still be asked of a job follows from its phase: see the table in `docs/jobs.md`, from which tests are generated.
//!
//! | phase | left when |
//! |---|---|
//! | [`Waiting`](EndPhase::Waiting) | the work of all is done |
//! | [`Pending`](EndPhase::Pending) | somebody has finalised them, or nobody has to |
//! | [`CatchingUp`](EndPhase::CatchingUp) | [`catch_up`](super::JobDriver::catch_up) is done |
//! | [`CaughtUp`](EndPhase::CaughtUp) | all have caught up; if this one can't [`keep_up`](super::JobDriver::keep_up), it goes back to `CatchingUp` |
//! | [`Holding`](EndPhase::Holding) | [`hold`](super::JobDriver::hold) is done; if it can't be, all go back to `CatchingUp` |
//! | [`Held`](EndPhase::Held) | all hold |
//! | [`Switching`](EndPhase::Switching) | all have switched; too late to cancel |

use super::context::JobContext;
use super::error::JobError;
use super::group::{Round, Stage, Standing};
use super::handle::Job;
use super::home::here;
use super::inner::{CancelRequest, Core};
use super::state::JobState;
use crate::event::BlockEvent;

/// How far a job has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EndPhase {
    /// Its work is not done.
    Work,
    /// Waits for the work of others.
    Waiting,
    /// Waits to be finalised.
    Pending,
    /// Makes ready what can be made ready while the guest runs.
    CatchingUp,
    /// Has done so, and waits for others.
    CaughtUp,
    /// Keeps the guest out, or is about to.
    Holding,
    /// Has all but the switch-over behind it, and waits for others.
    Held,
    /// Switches over, or waits for others who do.
    Switching,
}

impl EndPhase {
    /// Whether the operator's speed limit counts: who has finalised a job does not wait for that.
    pub(super) fn is_limited(self) -> bool {
        self < Self::CatchingUp
    }

    /// Whether a forced cancel is heard.
    pub(super) fn can_be_cancelled(self) -> bool {
        self < Self::Switching
    }
}

/// What a job that waits is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// All of its group to be that far, or the group to retreat.
    All(Stage, Round),
    /// Somebody to finalise it, if somebody has to.
    Finalize,
}

impl Job {
    /// How far it has come to its end.
    #[cfg(test)]
    pub(crate) fn end_phase(&self) -> EndPhase {
        self.lock().phase
    }

    /// Whether what the job waits for is there.
    pub(super) fn is_called(&self, core: &Core) -> bool {
        match core.call {
            None => true,
            Some(Call::All(stage, round)) => {
                self.group().standing(stage, round) != Standing::NotYet
            }
            Some(Call::Finalize) => self.group().may_finalize(),
        }
    }

    /// Whether the job has to give up, for itself or for its group.
    pub(super) fn has_to_give_up(&self, core: &mut Core) -> bool {
        if self.group().has_failed() {
            core.cancel = CancelRequest::Force;
        }
        core.is_cancelled()
    }
}

/// From the end of the work to the point of no return, and over it. On an error nobody is held any more by what was not
/// switched yet.
pub(super) async fn finish(context: &JobContext) -> Result<(), JobError> {
    let result = end(context).await;
    if result.is_err() {
        context.job().driver.release();
    }
    result
}

async fn end(context: &JobContext) -> Result<(), JobError> {
    let job = context.job();
    advance(job, EndPhase::Waiting, JobState::Waiting)?;
    let round = job.group().round();
    job.group().reach(Stage::Waiting, round);
    tend(context, Call::All(Stage::Waiting, round)).await?;
    advance(job, EndPhase::Pending, JobState::Pending)?;
    if !job.auto_finalize() {
        let id = job.id().to_owned();
        job.emit(BlockEvent::BlockJobPending {
            kind: job.kind(),
            id,
        });
    }
    tend(context, Call::Finalize).await?;
    let round = hold_together(context).await?;
    advance(job, EndPhase::Switching, JobState::Pending)?;
    here(job.driver.prepare(context)).await?;
    rest_together(job, Stage::Prepared, round).await?;
    Ok(())
}

/// Returns when all of the group have come as far as they can without switching over.
async fn hold_together(context: &JobContext) -> Result<Round, JobError> {
    let job = context.job();
    loop {
        let round = job.group().round();
        advance(job, EndPhase::CatchingUp, JobState::Pending)?;
        job.driver.catch_up(context).await?;
        advance(job, EndPhase::CaughtUp, JobState::Pending)?;
        job.group().reach(Stage::CaughtUp, round);
        if !keep_up_together(context, round).await? {
            continue;
        }
        advance(job, EndPhase::Holding, JobState::Pending)?;
        if !here(job.driver.hold(context)).await? {
            // Nobody may be held while this one catches up once more.
            job.group().retreat(round);
            continue;
        }
        advance(job, EndPhase::Held, JobState::Pending)?;
        if rest_together(job, Stage::Held, round).await? {
            return Ok(round);
        }
        job.driver.release();
    }
}

/// Waits until all of the group have caught up. False if this one has to catch up once more.
async fn keep_up_together(context: &JobContext, round: Round) -> Result<bool, JobError> {
    let job = context.job();
    job.lock().call = Some(Call::All(Stage::CaughtUp, round));
    let kept = job.driver.keep_up(context).await;
    job.lock().call = None;
    kept?;
    context.rest_until_called().await?;
    Ok(job.group().withdraw(Stage::CaughtUp, round) == Standing::All)
}

/// Takes one step towards the end, unless the job was cancelled.
fn advance(job: &Job, phase: EndPhase, state: JobState) -> Result<(), JobError> {
    let mut core = job.lock();
    if core.is_cancelled() {
        return Err(JobError::Cancelled);
    }
    core.phase = phase;
    if core.state != state {
        job.transition(&mut core, state)?;
    }
    drop(core);
    job.wake();
    Ok(())
}

/// Waits for a call; the driver may go on with its work meanwhile.
async fn tend(context: &JobContext, call: Call) -> Result<(), JobError> {
    let job = context.job();
    job.lock().call = Some(call);
    let tended = job.driver.tend(context).await;
    job.lock().call = None;
    tended?;
    context.rest_until_called().await
}

/// Tells the others of the group that this one is that far, and rests until all are. False if they have retreated.
async fn rest_together(job: &Job, stage: Stage, round: Round) -> Result<bool, JobError> {
    let group = job.group();
    group.reach(stage, round);
    job.wait(|core| {
        let standing = group.standing(stage, round);
        // Who has switched over stands by what all have done.
        let is_final = stage == Stage::Prepared && standing == Standing::All;
        if !is_final && job.has_to_give_up(core) {
            return Some(Err(JobError::Cancelled));
        }
        if standing == Standing::NotYet {
            rest(job, core);
            return None;
        }
        core.begin_work().then_some(Ok(standing == Standing::All))
    })
    .await
}

/// The job waits for others, and no section has to wait for it.
pub(super) fn rest(job: &Job, core: &mut Core) {
    if core.is_busy() {
        core.activity = super::inner::Activity::Idle;
        job.wake();
    }
}
