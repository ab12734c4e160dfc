//! The states of a job and the verbs an operator may use on it: two tables, and nothing else.
//!
//! Both tables are QEMU's (`docs/interop/` and `job.c`, 10.0). [`Job`](super::Job) looks every
//! change and every command up in them, and the tests are generated from them. Any thread.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;

/// Where a job stands in its life. The names are those of QMP's `JobStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Not yet announced; nobody outside ever sees it.
    Undefined,
    /// Exists, has not begun.
    Created,
    /// Works.
    Running,
    /// Was `Running` and rests, because an operator or a drained section wants it.
    Paused,
    /// Works on, and may be completed at any time.
    Ready,
    /// Was `Ready` and rests.
    Standby,
    /// Has done its work and waits for the other jobs of its transaction.
    Waiting,
    /// Waits to be finalised.
    Pending,
    /// Has failed or was cancelled, and cleans up.
    Aborting,
    /// Has ended and waits to be dismissed.
    Concluded,
    /// Is gone.
    Null,
}

/// The table of transitions: from a state to each that may follow.
const TRANSITIONS: &[(JobState, &[JobState])] = {
    use JobState::*;
    &[
        (Undefined, &[Created]),
        (Created, &[Running, Aborting, Null]),
        (Running, &[Paused, Ready, Waiting, Aborting]),
        (Paused, &[Running]),
        (Ready, &[Standby, Waiting, Aborting]),
        (Standby, &[Ready]),
        (Waiting, &[Pending, Aborting]),
        (Pending, &[Aborting, Concluded]),
        (Aborting, &[Aborting, Concluded]),
        (Concluded, &[Null]),
        (Null, &[]),
    ]
};

/// A change of state that the table does not know: a mistake in a job's program.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("a job can't go from state '{from}' to '{to}'")]
pub struct IllegalTransition {
    /// The state it is in, and stays in.
    pub from: JobState,
    /// The state it should have gone to.
    pub to: JobState,
}

impl JobState {
    /// All states, in the order of a job's life.
    pub const ALL: [Self; 11] = {
        use JobState::*;
        [
            Undefined, Created, Running, Paused, Ready, Standby, Waiting, Pending, Aborting,
            Concluded, Null,
        ]
    };

    /// The name in QMP.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Undefined => "undefined",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ready => "ready",
            Self::Standby => "standby",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Aborting => "aborting",
            Self::Concluded => "concluded",
            Self::Null => "null",
        }
    }

    /// Whether `to` may follow.
    ///
    /// # Errors
    /// [`IllegalTransition`] if the table has no such transition.
    pub fn check(self, to: Self) -> Result<(), IllegalTransition> {
        let known = TRANSITIONS
            .iter()
            .any(|(from, next)| *from == self && next.contains(&to));
        if known {
            Ok(())
        } else {
            Err(IllegalTransition { from: self, to })
        }
    }

    /// The resting counterpart of a working state.
    pub(super) fn at_rest(self) -> Option<Self> {
        match self {
            Self::Running => Some(Self::Paused),
            Self::Ready => Some(Self::Standby),
            _ => None,
        }
    }

    /// The working counterpart of a resting state.
    pub(super) fn at_work(self) -> Option<Self> {
        match self {
            Self::Paused => Some(Self::Running),
            Self::Standby => Some(Self::Ready),
            _ => None,
        }
    }

    /// Whether the job has told that it may be completed, and still may.
    pub(super) fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Standby)
    }

    /// Whether nothing is left to do but to be dismissed.
    pub(super) fn has_ended(self) -> bool {
        matches!(self, Self::Concluded | Self::Null)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an operator may ask of a job. The names are those of QMP's `JobVerb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobVerb {
    /// End without finishing, or (when ready) finish without switching over.
    Cancel,
    /// Rest.
    Pause,
    /// Go on after `Pause`, or after an error that stopped the job.
    Resume,
    /// Limit the bytes per second.
    SetSpeed,
    /// Switch over and end.
    Complete,
    /// Make the result final.
    Finalize,
    /// Forget the ended job.
    Dismiss,
    /// Change options of the running job.
    Change,
}

/// The states in which a job that works, or could, takes a verb.
const ALIVE: &[JobState] = {
    use JobState::*;
    &[Created, Running, Paused, Ready, Standby]
};

/// The table of verbs: each with the states in which it is accepted.
const VERBS: &[(JobVerb, &[JobState])] = {
    use JobState::*;
    &[
        (
            JobVerb::Cancel,
            &[Created, Running, Paused, Ready, Standby, Waiting, Pending],
        ),
        (JobVerb::Pause, ALIVE),
        // An error may stop a job that waits, too, which QEMU's does not try again then.
        (
            JobVerb::Resume,
            &[Created, Running, Paused, Ready, Standby, Waiting, Pending],
        ),
        (JobVerb::SetSpeed, ALIVE),
        (JobVerb::Complete, &[Ready, Standby]),
        (JobVerb::Finalize, &[Pending]),
        (JobVerb::Dismiss, &[Concluded]),
        (JobVerb::Change, ALIVE),
    ]
};

impl JobVerb {
    /// All verbs.
    pub const ALL: [Self; 8] = [
        Self::Cancel,
        Self::Pause,
        Self::Resume,
        Self::SetSpeed,
        Self::Complete,
        Self::Finalize,
        Self::Dismiss,
        Self::Change,
    ];

    /// The name in QMP's error texts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::SetSpeed => "set-speed",
            Self::Complete => "complete",
            Self::Finalize => "finalize",
            Self::Dismiss => "dismiss",
            Self::Change => "change",
        }
    }

    /// Whether a job in `state` accepts the verb.
    #[must_use]
    pub fn allowed_in(self, state: JobState) -> bool {
        VERBS
            .iter()
            .any(|(verb, states)| *verb == self && states.contains(&state))
    }
}

impl fmt::Display for JobVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Kinds of jobs. The names are those of QMP's `JobType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// Moves an image from an upper layer down.
    Commit,
    /// Pulls the data of lower layers up.
    Stream,
    /// Copies a disk and switches over to the copy.
    Mirror,
    /// Copies a disk as it was at one instant.
    Backup,
}

impl JobKind {
    /// The name in QMP.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Stream => "stream",
            Self::Mirror => "mirror",
            Self::Backup => "backup",
        }
    }

    /// How a job of this kind is called where it keeps others from something, its nodes above all.
    pub(crate) fn named(self, id: &str) -> String {
        format!("{self} '{id}'")
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
