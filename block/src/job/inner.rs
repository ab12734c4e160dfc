//! A job's mutable state: a plain struct that lives under the job's lock.
//!
//! Decisions that several threads could race for (to rest or to work, to cancel or to finalise) are
//! made here, in one place each. Nothing here waits, wakes or emits.

use std::time::Duration;

use super::error::JobError;
use super::policy::{IgnoredErrors, IoStatus};
use super::ratelimit::RateLimit;
use super::state::JobState;

/// How a cancel was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CancelRequest {
    /// Not at all.
    None,
    /// Finish the copy, but do not switch over.
    Soft,
    /// End now.
    Force,
}

/// Whether the job may touch its nodes at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// It does not, and asks [`Core::begin_work`] before it does again.
    Idle,
    /// It may.
    Working,
    /// It may, but its task waits for time to pass or to be woken.
    Sleeping,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) state: JobState,
    pub(super) activity: Activity,
    /// The creator let the job begin.
    pub(super) start_requested: bool,
    /// The creator gave up before the job began.
    pub(super) discarded: bool,
    /// The job's work has begun; only then its end is an event of its own.
    pub(super) started: bool,
    pub(super) user_paused: bool,
    /// Drained sections that want the job to rest.
    pub(super) quiescers: u32,
    pub(super) cancel: CancelRequest,
    pub(super) complete_requested: bool,
    /// The last steps have begun: too late to cancel.
    pub(super) finalizing: bool,
    pub(super) rate: RateLimit,
    pub(super) io_status: IoStatus,
    pub(super) ignored: IgnoredErrors,
    pub(super) error: Option<JobError>,
}

impl Core {
    pub(super) fn new(speed: u64, now: Duration) -> Self {
        Self {
            state: JobState::Undefined,
            activity: Activity::Idle,
            start_requested: false,
            discarded: false,
            started: false,
            user_paused: false,
            quiescers: 0,
            cancel: CancelRequest::None,
            complete_requested: false,
            finalizing: false,
            rate: RateLimit::new(speed, now),
            io_status: IoStatus::Ok,
            ignored: IgnoredErrors::default(),
            error: None,
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel == CancelRequest::Force
    }

    /// A drained section holds the job.
    fn is_quiesced(&self) -> bool {
        self.quiescers > 0
    }

    /// The job has to rest at its next pause point; what QMP calls paused.
    pub(super) fn must_rest(&self) -> bool {
        self.user_paused || self.is_quiesced()
    }

    /// Whether a drained section still has to wait for the job.
    pub(super) fn is_busy(&self) -> bool {
        self.activity != Activity::Idle
    }

    /// Lets an idle job work again, unless a drained section forbids it; a working one goes on.
    pub(super) fn begin_work(&mut self) -> bool {
        if self.activity == Activity::Idle && self.is_quiesced() {
            return false;
        }
        self.activity = Activity::Working;
        true
    }

    /// Ends an operator's pause, if there is one, and what had made an error stop the job.
    pub(super) fn end_user_pause(&mut self) {
        self.user_paused = false;
        self.io_status = IoStatus::Ok;
        self.ignored.reset();
    }
}
