//! What a kind of job brings along: its work, and the steps at its end.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, LocalBoxFuture};
use serde_json::{Map, Value};

use super::awaited::Awaited;
use super::context::JobContext;
use super::details::JobDetails;
use super::error::{JobError, VerbError};
use super::handle::Job;
use super::state::JobKind;
use crate::graph::Graph;

/// A job's work and its hooks.
///
/// The futures run in the job's home context, which may change where the job rests, one after the other: `run`; then, if it was
/// successful and nobody cancelled, `tend`, then `catch_up`, `keep_up` and `hold`, if need be again, then `prepare` and `commit`;
/// otherwise `abort`; at last `clean`. If one of them fails, `abort` follows. A job that is cancelled before it began gets only `abort` and
/// `clean`. The hooks that are plain functions are called on whatever thread the operator's command
/// arrives, without the job's lock, and must not wait.
pub trait JobDriver: Send + Sync + 'static {
    /// The kind of job, for queries and events.
    fn kind(&self) -> JobKind;

    /// The work. It calls [`JobContext::pause_point`] (or [`JobContext::sleep`], which is one)
    /// often enough, and returns soon after [`JobContext::is_cancelled`] turned true.
    ///
    /// Where it rests it may go on in another loop, so it is `Send`; what it awaits besides (requests, timers)
    /// belongs to the loop and is kept there (`here`).
    ///
    /// # Errors
    /// Why the job fails. What is returned after a forced cancel does not matter.
    fn run<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>>;

    /// Waits until nothing of the job is in flight; called at a pause point before the job
    /// counts as idle. It must not reach a pause point itself.
    fn settle<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        let _ = job;
        Box::pin(async {})
    }

    /// The job's work is done, but it has to wait: for others of its group, or for somebody to finalise it. May
    /// go on with what keeps its result near, with pause points, until [`JobContext::is_called`]; or just rests.
    ///
    /// # Errors
    /// Why the job fails.
    fn tend<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(job.rest_until_called())
    }

    /// The job was finalised: does what can be done before the guest is kept out, with pause points.
    ///
    /// # Errors
    /// Why the job fails.
    fn catch_up<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        let _ = job;
        Box::pin(async { Ok(()) })
    }

    /// The job has caught up, and waits until the others of its group have. Keeps its result near, with pause points, until
    /// [`JobContext::is_called`]. If it can't, for now, it returns before: then no other goes on either, and `catch_up` follows once more.
    ///
    /// # Errors
    /// Why the job fails.
    fn keep_up<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(job.rest_until_called())
    }

    /// Every job of the group has caught up: keeps the guest out, and does all that is left to do before the
    /// switch-over. It ends soon after [`JobContext::is_cancelled`] turned true. False if that can't be done now: the guest
    /// goes on then, and `catch_up` follows once more.
    ///
    /// # Errors
    /// Why the job fails; the guest goes on.
    fn hold<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<bool, JobError>> {
        let _ = job;
        Box::pin(async { Ok(true) })
    }

    /// Ends what [`hold`](Self::hold) has begun, if nothing has been switched over: the job fails, or another of its group
    /// could not hold and all catch up once more.
    fn release(&self) {}

    /// The last step that can fail: the switch-over. From here on a cancel is refused.
    ///
    /// # Errors
    /// Why the job fails after all; what this step had changed is changed back by it or by `abort`.
    fn prepare<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<(), JobError>> {
        let _ = job;
        Box::pin(async { Ok(()) })
    }

    /// Makes the result final, after every job of the transaction was prepared.
    fn commit<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        let _ = job;
        Box::pin(async {})
    }

    /// Undoes what the job has changed, after a failure or a forced cancel.
    fn abort<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        let _ = job;
        Box::pin(async {})
    }

    /// Gives back what the job held, in the end in any case.
    fn clean<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        let _ = job;
        Box::pin(async {})
    }

    /// Where the nodes are that the job works on; their limits are lifted when it has to end.
    fn graph(&self) -> Option<&Arc<Graph>> {
        None
    }

    /// Whether a cancel without force makes a ready job finish its copy and end well. Otherwise
    /// every cancel is by force.
    fn cancels_softly(&self) -> bool {
        false
    }

    /// A cancel was accepted. With `force` the job is to end now: cancel what could hang.
    fn on_cancel(&self, force: bool) {
        let _ = force;
    }

    /// Whether this kind of job becomes ready, and is to be completed then.
    fn completes(&self) -> bool {
        false
    }

    /// `complete` was asked of the ready job. On `Ok` the job sees
    /// [`JobContext::complete_requested`]; may be called again after that.
    ///
    /// # Errors
    /// Why the job can't be completed; it goes on as if nothing had been asked.
    fn on_complete(&self, job: &Arc<Job>) -> Result<(), VerbError> {
        Err(VerbError::CannotComplete {
            id: job.id().to_string(),
        })
    }

    /// The job was to complete together with others, and one of those can't: what
    /// [`on_complete`](Self::on_complete) did is taken back.
    fn on_complete_refused(&self) {}

    /// `change` was asked, with the options of the command.
    ///
    /// # Errors
    /// Why they can't be changed; nothing is changed then.
    fn on_change(&self, options: &Map<String, Value>) -> Result<(), VerbError> {
        let _ = options;
        Err(VerbError::CannotChange)
    }

    /// Whether a forced cancel ends the job although a read of its source hangs, or a look at it. A target's requests never
    /// keep it.
    fn leaves_reads(&self) -> bool {
        false
    }

    /// The requests that the job, or a guest on its account, has been waiting for since a second before `now` or longer,
    /// the oldest first. Any thread.
    fn awaited(&self, now: Duration) -> Awaited {
        let _ = now;
        Awaited::default()
    }

    /// Members of this kind of job in the answer to `query-block-jobs`.
    fn query(&self) -> JobDetails {
        JobDetails::default()
    }

    /// Members of this kind of job in `BLOCK_JOB_COMPLETED`.
    fn report(&self) -> JobDetails {
        JobDetails::default()
    }
}
