//! A job's mutable state: a plain struct that lives under the job's lock.
//!
//! Decisions that several threads could race for (to rest or to work, to cancel or to finalise) are
//! made here, in one place each. Nothing here waits, wakes or emits.

use std::time::Duration;

use sluice_aio::AioContext;

use super::end::{Call, EndPhase};
use super::error::JobError;
use super::policy::{IgnoredErrors, IoStatus};
use super::ratelimit::RateLimit;
use super::state::JobState;
use crate::home::Home;

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

/// What a job that is to end thinks of sections that have not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It has not had to wait for one.
    Whole,
    /// It rests for them, for a while.
    Lasting,
    /// It rests for them no more.
    Lost,
}

#[derive(Debug)]
pub(super) struct Core {
    /// Where the job is to work, and what keeps that loop's thread until it has ended.
    pub(super) home: Home,
    /// Where it was to work since it last arrived anywhere: these threads stay until it has left them.
    pub(super) left: Vec<Home>,
    /// The loop in which its task is.
    pub(super) lives_in: AioContext,
    pub(super) state: JobState,
    pub(super) activity: Activity,
    /// The creator let the job begin.
    pub(super) start_requested: bool,
    /// The creator gave up before the job began.
    pub(super) discarded: bool,
    pub(super) user_paused: bool,
    /// Drained sections that want the job to rest, begun or not.
    pub(super) quiescers: u32,
    /// Those of them which have begun, for which it rests.
    pub(super) begun_sections: u32,
    /// How long the job, which is to end, still rests for those which have not begun.
    pub(super) patience: Patience,
    pub(super) cancel: CancelRequest,
    pub(super) complete_requested: bool,
    /// When it was last told to end, or failed.
    pub(super) told_to_end: Option<Duration>,
    /// How far it has come to its end.
    pub(super) phase: EndPhase,
    /// What it waits for.
    pub(super) call: Option<Call>,
    pub(super) rate: RateLimit,
    pub(super) io_status: IoStatus,
    pub(super) ignored: IgnoredErrors,
    pub(super) error: Option<JobError>,
}

impl Core {
    pub(super) fn new(home: Home, speed: u64, now: Duration) -> Self {
        Self {
            lives_in: home.context().clone(),
            home,
            left: Vec::new(),
            state: JobState::Undefined,
            activity: Activity::Idle,
            start_requested: false,
            discarded: false,
            user_paused: false,
            quiescers: 0,
            begun_sections: 0,
            patience: Patience::Whole,
            cancel: CancelRequest::None,
            complete_requested: false,
            told_to_end: None,
            phase: EndPhase::Work,
            call: None,
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
        match self.patience {
            Patience::Lost => self.begun_sections > 0,
            Patience::Whole | Patience::Lasting => self.quiescers > 0,
        }
    }

    /// Whether the job has to end, and so does not rest for what may never begin.
    pub(super) fn has_to_end(&self) -> bool {
        self.is_cancelled() || self.state == JobState::Aborting
    }

    /// The job has to rest at its next pause point; what QMP calls paused.
    pub(super) fn must_rest(&self) -> bool {
        self.user_paused || self.is_quiesced()
    }

    /// Whether a drained section still has to wait for the job.
    pub(super) fn is_busy(&self) -> bool {
        self.activity != Activity::Idle
    }

    /// Whether the job's task is in the loop in which it is to work.
    pub(super) fn is_at_home(&self) -> bool {
        self.lives_in == *self.home.context()
    }

    /// Lets an idle job work again, unless a drained section forbids it or it is to work elsewhere; a working one
    /// goes on.
    pub(super) fn begin_work(&mut self) -> bool {
        if self.activity == Activity::Idle && (self.is_quiesced() || !self.is_at_home()) {
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
