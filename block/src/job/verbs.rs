//! The operator's commands on a job.
//!
//! Each looks the verb up in the table first, except where QEMU has another error come before.
//! The driver's hooks are called without the job's lock.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::error::VerbError;
use super::handle::Job;
use super::inner::{CancelRequest, Core};
use super::state::JobVerb;

/// What an operator can do for a job to end sooner, besides `job-cancel`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaysToEnd {
    /// `job-complete`, when it is ready.
    pub complete: bool,
    /// `job-finalize`, when it is pending.
    pub finalize: bool,
}

impl Job {
    /// Makes the job rest at its next pause point.
    ///
    /// # Errors
    /// [`VerbError::WrongState`], [`VerbError::AlreadyPaused`].
    pub fn pause(&self) -> Result<(), VerbError> {
        let mut core = self.lock();
        self.check_verb(&core, JobVerb::Pause)?;
        if core.user_paused {
            return Err(VerbError::AlreadyPaused);
        }
        core.user_paused = true;
        drop(core);
        self.wake();
        Ok(())
    }

    /// Ends the operator's pause, or the one that an error has brought about.
    ///
    /// # Errors
    /// [`VerbError::NotPaused`], [`VerbError::WrongState`].
    pub fn resume(&self) -> Result<(), VerbError> {
        let mut core = self.lock();
        if !core.user_paused {
            return Err(VerbError::NotPaused);
        }
        self.check_verb(&core, JobVerb::Resume)?;
        core.end_user_pause();
        drop(core);
        self.wake();
        Ok(())
    }

    /// Limits the job to `speed` bytes per second; 0 lifts the limit.
    ///
    /// # Errors
    /// [`VerbError::WrongState`], [`VerbError::NegativeSpeed`].
    pub fn set_speed(&self, speed: i64) -> Result<(), VerbError> {
        let mut core = self.lock();
        self.check_verb(&core, JobVerb::SetSpeed)?;
        let speed = u64::try_from(speed).map_err(|_| VerbError::NegativeSpeed)?;
        core.rate.set_speed(speed, self.clock().now());
        drop(core);
        self.wake();
        Ok(())
    }

    /// Cancels the job: `job-cancel` (always with `force`) and inner users.
    ///
    /// Without `force` a ready job whose kind knows this finishes its copy and ends well, but does
    /// not switch over. In any other case the job is aborted. Returns before it has ended.
    ///
    /// # Errors
    /// [`VerbError::WrongState`], also when the job is just switching over.
    pub fn cancel(&self, force: bool) -> Result<(), VerbError> {
        let mut core = self.lock();
        self.check_verb(&core, JobVerb::Cancel)?;
        let soft = !force && core.state.is_ready() && self.driver.cancels_softly();
        let request = if soft {
            CancelRequest::Soft
        } else {
            CancelRequest::Force
        };
        // A soft cancel does not take back a forced one.
        core.cancel = core.cancel.max(request);
        self.note_told_to_end(&mut core);
        if core.user_paused {
            core.end_user_pause();
        }
        drop(core);
        self.driver.on_cancel(!soft);
        self.wake();
        Ok(())
    }

    /// Another job of its group has failed: it ends by force, too, if it is not final yet.
    pub(super) fn cancel_with_sibling(&self) {
        let mut core = self.lock();
        if !JobVerb::Cancel.allowed_in(core.state) {
            return;
        }
        core.cancel = CancelRequest::Force;
        self.note_told_to_end(&mut core);
        if core.user_paused {
            core.end_user_pause();
        }
        drop(core);
        self.driver.on_cancel(true);
        self.wake();
    }

    /// Cancels the job as `block-job-cancel` does, which spares a job that the operator has paused.
    ///
    /// # Errors
    /// [`VerbError::Paused`] without `force`; those of [`cancel`](Self::cancel).
    pub fn cancel_unless_paused(&self, force: bool) -> Result<(), VerbError> {
        if !force && self.lock().user_paused {
            return Err(VerbError::Paused {
                id: self.id().to_owned(),
            });
        }
        self.cancel(force)
    }

    /// Makes the ready job switch over and end, as soon as it can.
    ///
    /// # Errors
    /// [`VerbError::WrongState`], [`VerbError::CannotComplete`] after a cancel, the driver's.
    pub fn complete(self: &Arc<Self>) -> Result<(), VerbError> {
        let core = self.lock();
        self.check_verb(&core, JobVerb::Complete)?;
        drop(core);
        self.driver.on_complete(self)?;
        let mut core = self.lock();
        core.complete_requested = true;
        self.note_told_to_end(&mut core);
        drop(core);
        self.wake();
        Ok(())
    }

    /// Makes the pending job final, and with it all of its group.
    ///
    /// # Errors
    /// [`VerbError::WrongState`].
    pub fn finalize(&self) -> Result<(), VerbError> {
        self.check_verb(&self.lock(), JobVerb::Finalize)?;
        self.group().finalize();
        Ok(())
    }

    /// Forgets the concluded job.
    ///
    /// # Errors
    /// [`VerbError::WrongState`].
    pub fn dismiss(&self) -> Result<(), VerbError> {
        let mut core = self.lock();
        self.check_verb(&core, JobVerb::Dismiss)?;
        self.retire(&mut core)
            .map_err(|error| VerbError::Refused(error.to_string()))?;
        drop(core);
        self.wake();
        Ok(())
    }

    /// Changes options of the working job.
    ///
    /// # Errors
    /// [`VerbError::WrongState`], the driver's.
    pub fn change(&self, options: &Map<String, Value>) -> Result<(), VerbError> {
        self.check_verb(&self.lock(), JobVerb::Change)?;
        self.driver.on_change(options)?;
        self.wake();
        Ok(())
    }

    /// What can still be done for it to end; none if it ends by force already, or can't be cancelled any more. It is what
    /// the verbs themselves ask, so that no verb is advised which is then refused.
    #[must_use]
    pub fn ways_to_end(&self) -> Option<WaysToEnd> {
        let core = self.lock();
        if core.is_cancelled() || self.check_verb(&core, JobVerb::Cancel).is_err() {
            return None;
        }
        // Work that goes on may come to be ready.
        let completes = JobVerb::Pause.allowed_in(core.state) && self.driver.completes();
        Some(WaysToEnd {
            complete: completes && !core.complete_requested && may_complete(&core),
            finalize: !self.group().may_finalize(),
        })
    }

    /// Whether the job as it is now takes the verb, but for what its kind may have against it.
    ///
    /// # Errors
    /// [`VerbError::WrongState`], [`VerbError::CannotComplete`] after a cancel.
    pub(super) fn check_verb(&self, core: &Core, verb: JobVerb) -> Result<(), VerbError> {
        let too_late = verb == JobVerb::Cancel && !core.phase.can_be_cancelled();
        if too_late || !verb.allowed_in(core.state) {
            return Err(VerbError::WrongState {
                id: self.id().to_owned(),
                state: core.state,
                verb,
            });
        }
        if verb == JobVerb::Complete && !may_complete(core) {
            return Err(VerbError::CannotComplete {
                id: self.id().to_owned(),
            });
        }
        Ok(())
    }
}

/// Whether nothing but its state may keep the job from being completed.
fn may_complete(core: &Core) -> bool {
    core.cancel == CancelRequest::None
}
