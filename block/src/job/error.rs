//! What can go wrong with a job: at its creation, on a command, in its work.
//!
//! The texts are those that QEMU 10.0 gives for the same mistakes, because clients match them.

use std::io;

use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;

use super::state::{IllegalTransition, JobState, JobVerb};
use crate::error::errno_text;
use crate::event::IoOperation;

/// The error classes of QMP that jobs need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// `GenericError`.
    Generic,
    /// `DeviceNotActive`: no such block job.
    DeviceNotActive,
}

/// Why a job was not created.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CreateError {
    /// The name breaks the rule.
    #[error("Invalid job ID '{id}'")]
    InvalidId {
        /// The name.
        id: String,
    },
    /// Another job has the name.
    #[error("Job ID '{id}' already in use")]
    IdInUse {
        /// The name.
        id: String,
        /// That job has ended, and waits to be dismissed.
        has_ended: bool,
    },
    /// No name was given and there is none to fall back on.
    #[error("Invalid job ID ''; an explicit 'job-id' is required here")]
    IdRequired,
    /// A speed below zero.
    #[error("Parameter 'speed' expects a non-negative value")]
    NegativeSpeed,
    /// The machine is going down.
    #[error("Job '{id}' can't be created while the machine shuts down")]
    ShuttingDown {
        /// The name.
        id: String,
    },
}

/// Why a command on a job was refused; the job goes on as if it had not been given.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum VerbError {
    /// No such job, asked with a `block-job-*` command.
    #[error("Block job '{id}' not found")]
    BlockJobNotFound {
        /// The name.
        id: String,
    },
    /// No such job, asked with a `job-*` command.
    #[error("Job not found")]
    JobNotFound,
    /// The table of verbs says no.
    #[error("Job '{id}' in state '{state}' cannot accept command verb '{verb}'")]
    WrongState {
        /// The job.
        id: String,
        /// Its state.
        state: JobState,
        /// The command.
        verb: JobVerb,
    },
    /// The operator has paused it before.
    #[error("Job is already paused")]
    AlreadyPaused,
    /// The operator has not paused it.
    #[error("Can't resume a job that was not paused")]
    NotPaused,
    /// Cancelling a paused block job needs force.
    #[error("The block job for device '{id}' is currently paused")]
    Paused {
        /// The job.
        id: String,
    },
    /// The job was cancelled before, or its kind has nothing to complete.
    #[error("The active block job '{id}' cannot be completed")]
    CannotComplete {
        /// The job.
        id: String,
    },
    /// A speed below zero.
    #[error("Parameter 'speed' expects a non-negative value")]
    NegativeSpeed,
    /// The job's kind has no options that can change.
    #[error("Job type does not support change")]
    CannotChange,
    /// The job's own reason.
    #[error("{0}")]
    Refused(String),
}

impl VerbError {
    /// The error class for QMP.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::BlockJobNotFound { .. } => ErrorClass::DeviceNotActive,
            _ => ErrorClass::Generic,
        }
    }
}

/// Why a job's work did not succeed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum JobError {
    /// It was cancelled by force.
    #[error("{}", errno_text(Errno::CANCELED))]
    Cancelled,
    /// The kernel's reason, as text without a number.
    #[error("{}", errno_text(*.0))]
    Errno(Errno),
    /// A request of its work failed. The text is the kernel's reason alone, which clients compare.
    #[error("{}", errno_text(Errno::from_raw_os_error(.0.errno)))]
    Io(IoFailure),
    /// Any other reason, for a human.
    #[error("{0}")]
    Failed(String),
}

/// Where the work of a job met the error that has ended it. The members' names are Sluice's own; they stand beside
/// `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct IoFailure {
    /// Whether the source could not be read or the target not be written.
    #[serde(rename = "x-operation")]
    pub operation: IoOperation,
    /// The node that was read or written.
    #[serde(rename = "x-node-name")]
    pub node: String,
    /// The kernel's number of the reason.
    #[serde(rename = "x-errno")]
    pub errno: i32,
}

impl JobError {
    /// Where it was met, if that was a request of the job's work.
    #[must_use]
    pub fn io_failure(&self) -> Option<&IoFailure> {
        match self {
            Self::Io(failure) => Some(failure),
            Self::Cancelled | Self::Errno(_) | Self::Failed(_) => None,
        }
    }
}

impl From<io::Error> for JobError {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => Self::Errno(errno),
            None => Self::Failed(error.to_string()),
        }
    }
}

impl From<IllegalTransition> for JobError {
    fn from(error: IllegalTransition) -> Self {
        Self::Failed(error.to_string())
    }
}
