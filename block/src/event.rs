//! What the block layer tells the outside world, in the words of QEMU's protocol.
//!
//! Jobs and backends emit from any thread; the machine's control interface listens. An event
//! serialises to `{"event": NAME, "data": {…}}` as QMP wants it, only the timestamp is to be
//! added. Names and members: QEMU 10.0 `qapi/block-core.json` and `qapi/job.json`.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::job::{IoFailure, JobDetails, JobKind, JobState};

/// Takes events. Called from any thread, also while a job's lock is held, so that events come in
/// the order in which things happened.
///
/// An implementation keeps or queues the event and returns; it never waits and never calls back
/// into a job.
pub trait EventSink: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: BlockEvent);
}

/// One event of the block layer.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "event", content = "data", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BlockEvent {
    /// A job has changed its state.
    JobStatusChange {
        /// The job.
        id: String,
        /// Its new state.
        status: JobState,
    },
    /// The job may be completed now.
    BlockJobReady(JobReport),
    /// The job has ended, well or with an error, but was not cancelled.
    BlockJobCompleted {
        /// How far it came.
        #[serde(flatten)]
        report: JobReport,
        /// Why it failed; absent if it did not.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// Where it failed, if that was a request.
        #[serde(flatten)]
        failure: Option<IoFailure>,
        /// What only this kind of job can tell; members with the prefix `x-` are Sluice's own.
        #[serde(flatten)]
        #[schemars(with = "JobDetails")]
        details: Map<String, Value>,
    },
    /// The job was cancelled and has ended.
    BlockJobCancelled(JobReport),
    /// A job met an I/O error and went on as its policy says.
    BlockJobError {
        /// The job.
        device: String,
        /// What failed.
        operation: IoOperation,
        /// What was done about it.
        action: ErrorAction,
        /// The node that could not be read or written. As the next, a member of Sluice's own.
        #[serde(rename = "x-node-name")]
        node: String,
        /// The kernel's number of the reason.
        #[serde(rename = "x-errno")]
        errno: i32,
    },
    /// The job waits for `job-finalize`.
    BlockJobPending {
        /// Kind of job.
        #[serde(rename = "type")]
        kind: JobKind,
        /// The job.
        id: String,
    },
    /// The tray of a device with a removable medium has moved.
    #[serde(rename_all = "kebab-case")]
    DeviceTrayMoved {
        /// The backend's name.
        device: String,
        /// The device's id or path; may be empty.
        id: String,
        /// Where it is now.
        tray_open: bool,
    },
    /// A guest's request failed.
    #[serde(rename_all = "kebab-case")]
    BlockIoError {
        /// The device, as a path in QEMU's object tree.
        qom_path: String,
        /// The backend's name; may be empty.
        device: String,
        /// The node that the request was for.
        #[serde(skip_serializing_if = "Option::is_none")]
        node_name: Option<String>,
        /// What failed.
        operation: IoOperation,
        /// What was done about it.
        action: ErrorAction,
        /// Whether room was lacking; present when the machine was stopped.
        #[serde(skip_serializing_if = "Option::is_none")]
        nospace: Option<bool>,
        /// The error in words for a human.
        reason: String,
    },
}

/// How far a job has come; the common part of several events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct JobReport {
    /// Kind of job.
    #[serde(rename = "type")]
    pub kind: JobKind,
    /// The job's id (block jobs were once named by their device).
    pub device: String,
    /// Work in total, in bytes for all of today's jobs.
    pub len: u64,
    /// Work done so far.
    pub offset: u64,
    /// Bytes per second the job is limited to; 0: not limited.
    pub speed: u64,
}

/// The direction of a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IoOperation {
    /// Data could not be read.
    Read,
    /// Data, zeroes, a discard or a flush could not be written.
    Write,
}

/// What was done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ErrorAction {
    /// It was passed over: the request succeeds (guest) or is tried again (job).
    Ignore,
    /// It was reported to the guest, or it failed the job.
    Report,
    /// The machine, or the job, was stopped.
    Stop,
}

#[cfg(test)]
pub(crate) mod tests;
