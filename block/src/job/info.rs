//! What queries tell about jobs: the records of `query-block-jobs` and `query-jobs`.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::awaited::AwaitedRequest;
use super::details::JobDetails;
use super::error::{IoFailure, JobError};
use super::handle::Job;
use super::inner::{Activity, Core};
use super::policy::IoStatus;
use super::state::{JobKind, JobState};

/// One record of `query-block-jobs` (QMP's `BlockJobInfo`).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJobInfo {
    /// Kind of job.
    #[serde(rename = "type")]
    pub kind: JobKind,
    /// The job's id.
    pub device: String,
    /// Work in total.
    pub len: u64,
    /// Work done.
    pub offset: u64,
    /// The job's task works at this very moment, or requests of its own are under way.
    pub busy: bool,
    /// The job rests or will do so at its next pause point.
    pub paused: bool,
    /// Bytes per second; 0: no limit.
    pub speed: u64,
    /// Whether an error has stopped it.
    pub io_status: IoStatus,
    /// It may be completed.
    pub ready: bool,
    /// Where it stands.
    pub status: JobState,
    /// It goes from pending on by itself.
    pub auto_finalize: bool,
    /// It goes away by itself.
    pub auto_dismiss: bool,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where it failed, if that was a request.
    #[serde(flatten)]
    pub failure: Option<IoFailure>,
    /// What it waits for, if it has been waiting for a second or longer: the oldest request.
    #[serde(rename = "x-waits-for", skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<AwaitedRequest>,
    /// What only this kind of job can tell.
    #[serde(flatten)]
    #[schemars(with = "JobDetails")]
    pub details: Map<String, Value>,
}

/// One record of `query-jobs` (QMP's `JobInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct JobInfo {
    /// The job's id.
    pub id: String,
    /// Kind of job.
    #[serde(rename = "type")]
    pub kind: JobKind,
    /// Where it stands.
    pub status: JobState,
    /// Work done.
    pub current_progress: u64,
    /// Work in total.
    pub total_progress: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where it failed, if that was a request.
    #[serde(flatten)]
    pub failure: Option<IoFailure>,
    /// What it waits for, if it has been waiting for a second or longer: the oldest request.
    #[serde(rename = "x-waits-for", skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<AwaitedRequest>,
}

impl Job {
    /// The job's record for `query-block-jobs`.
    #[must_use]
    pub fn block_job_info(&self) -> BlockJobInfo {
        let details = self.driver.query().members();
        let core = self.lock();
        let awaited = self.awaited_unless(core.state.has_ended());
        BlockJobInfo {
            kind: self.kind(),
            device: self.id().to_owned(),
            len: self.progress().total(),
            offset: self.progress().current(),
            busy: core.activity == Activity::Working || awaited.has_own,
            paused: core.must_rest(),
            speed: core.rate.speed(),
            io_status: core.io_status,
            ready: core.state.is_ready(),
            status: core.state,
            auto_finalize: self.auto_finalize(),
            auto_dismiss: self.auto_dismiss(),
            error: core.error.as_ref().map(ToString::to_string),
            failure: core.error.as_ref().and_then(JobError::io_failure).cloned(),
            waits_for: awaited.requests.into_iter().next(),
            details,
        }
    }

    /// The job's record for `query-jobs`.
    #[must_use]
    pub fn info(&self) -> JobInfo {
        let core = self.lock();
        JobInfo {
            id: self.id().to_owned(),
            kind: self.kind(),
            status: core.state,
            current_progress: self.progress().current(),
            total_progress: self.progress().total(),
            error: core.error.as_ref().map(ToString::to_string),
            failure: core.error.as_ref().and_then(JobError::io_failure).cloned(),
            waits_for: self.longest_awaited(&core),
        }
    }

    fn longest_awaited(&self, core: &Core) -> Option<AwaitedRequest> {
        let awaited = self.awaited_unless(core.state.has_ended());
        awaited.requests.into_iter().next()
    }
}
