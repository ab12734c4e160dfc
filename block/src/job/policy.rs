//! What a job does about I/O errors: the operator's policy, and keeping an ignored error from
//! turning into a storm.
//!
//! With the policy `ignore` a job tries again what failed. QEMU does so at once, so that a dead
//! target means an endless loop and an event for each turn. Here every further attempt waits
//! longer, and of the events about ignored errors one per second and direction gets through. Pure
//! values; the job's context uses them under the job's lock.

use std::time::Duration;

use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::{ErrorAction, IoOperation};
use crate::node::Node;

/// An operator's wish for the case of an I/O error (QMP's `BlockdevOnError`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Fail the job; tell the guest.
    #[default]
    Report,
    /// Try again; let the guest's request succeed.
    Ignore,
    /// Stop if room is lacking, else report.
    Enospc,
    /// Pause the job; stop the machine.
    Stop,
    /// For jobs the same as `Enospc`, for disks their default.
    Auto,
}

impl OnError {
    /// What to do about `error`.
    #[must_use]
    pub fn action(self, error: Errno) -> ErrorAction {
        match self {
            Self::Report => ErrorAction::Report,
            Self::Ignore => ErrorAction::Ignore,
            Self::Stop => ErrorAction::Stop,
            Self::Enospc | Self::Auto if error == Errno::NOSPC => ErrorAction::Stop,
            Self::Enospc | Self::Auto => ErrorAction::Report,
        }
    }
}

/// One of the sides that a job's requests go to.
#[derive(Debug, Clone, Copy)]
pub struct IoSide<'a> {
    /// The node.
    pub node: &'a Node,
    /// What the operator wants to be done about its errors.
    pub policy: OnError,
    /// The command's argument that says so.
    pub argument: &'static str,
}

/// The health of a job's I/O (QMP's `BlockDeviceIoStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IoStatus {
    /// No error has stopped the job.
    #[default]
    Ok,
    /// An error has stopped it.
    Failed,
    /// Lack of room has stopped it.
    Nospace,
}

impl IoStatus {
    /// The status that an error which stops the job leads to.
    #[must_use]
    pub fn from_errno(error: Errno) -> Self {
        if error == Errno::NOSPC {
            Self::Nospace
        } else {
            Self::Failed
        }
    }
}

/// What a job is to do about an error that it has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorVerdict {
    /// Return the error; the job fails.
    Fail,
    /// Try again after this time ([`JobContext::back_off`](super::JobContext::back_off)); it grows
    /// from error to error in a row.
    RetryAfter(Duration),
    /// Keep the work to be done and go to the next pause point: the job is paused and tries again
    /// when the operator resumes it.
    Stopped,
}

/// Errors in a row that were ignored.
#[derive(Debug, Default)]
pub(super) struct IgnoredErrors {
    in_a_row: u32,
    /// When the last event went out, for reads and for writes.
    last_event: [Option<Duration>; 2],
}

impl IgnoredErrors {
    /// The wait after the first error; each further one doubles it.
    pub(super) const FIRST_WAIT: Duration = Duration::from_millis(10);
    /// The longest wait.
    pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(1);
    /// Least time between two events about ignored errors of the same direction.
    pub(super) const EVENT_INTERVAL: Duration = Duration::from_secs(1);

    /// Counts one more error; the time to wait before the next attempt.
    pub(super) fn next_wait(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.in_a_row).unwrap_or(u32::MAX);
        self.in_a_row = self.in_a_row.saturating_add(1);
        Self::FIRST_WAIT
            .saturating_mul(factor)
            .min(Self::LONGEST_WAIT)
    }

    /// An attempt has succeeded.
    pub(super) fn reset(&mut self) {
        self.in_a_row = 0;
    }

    /// Whether an event may be emitted at `now` (time since the clock's start).
    pub(super) fn admit_event(&mut self, operation: IoOperation, now: Duration) -> bool {
        let last = &mut self.last_event[match operation {
            IoOperation::Read => 0,
            IoOperation::Write => 1,
        }];
        let due = last.is_none_or(|last| now.saturating_sub(last) >= Self::EVENT_INTERVAL);
        if due {
            *last = Some(now);
        }
        due
    }
}
