//! The verbs of jobs. Those with the prefix `block-job-` and those without differ only in how they
//! name the job and in the error if there is none.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_block::job::{BlockJobInfo, Job, JobGroup, JobInfo, VerbError};
use sluice_block::mirror::CopyMode;

use super::{Done, Monitor, NoArguments};
use crate::qmp::error::QmpError;

/// Arguments of most `block-job-*` commands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    device: String,
}

/// Arguments of the `job-*` commands, `block-job-finalize` and `block-job-dismiss`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Id {
    id: String,
}

/// Gives the verb `verb` to the job that a `block-job-*` command names.
fn block_job(
    monitor: &Monitor,
    id: &str,
    verb: impl FnOnce(&Arc<Job>) -> Result<(), VerbError>,
) -> Result<Done, QmpError> {
    verb(&monitor.graph.jobs().find_block_job(id)?)?;
    Ok(Done {})
}

/// Gives the verb `verb` to the job that a `job-*` command names.
fn job(
    monitor: &Monitor,
    id: &str,
    verb: impl FnOnce(&Arc<Job>) -> Result<(), VerbError>,
) -> Result<Done, QmpError> {
    verb(&monitor.graph.jobs().find_job(id)?)?;
    Ok(Done {})
}

/// Arguments of `block-job-cancel`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cancel {
    device: String,
    force: Option<bool>,
}

pub(super) async fn block_job_cancel(
    monitor: Arc<Monitor>,
    arguments: Cancel,
) -> Result<Done, QmpError> {
    let force = arguments.force.unwrap_or(false);
    block_job(&monitor, &arguments.device, |job| {
        job.cancel_unless_paused(force)
    })
}

/// The kinds of jobs with options that can change.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Changeable {
    Mirror,
}

/// Arguments of `block-job-change`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Change {
    id: String,
    r#type: Changeable,
    copy_mode: CopyMode,
}

pub(super) async fn block_job_change(
    monitor: Arc<Monitor>,
    arguments: Change,
) -> Result<Done, QmpError> {
    let Changeable::Mirror = arguments.r#type;
    let mode = Value::from(arguments.copy_mode.name());
    let options = Map::from_iter([("copy-mode".to_owned(), mode)]);
    block_job(&monitor, &arguments.id, |job| job.change(&options))
}

/// Arguments of `x-block-job-complete-group`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CompleteGroup {
    devices: Vec<String>,
}

pub(super) async fn complete_group(
    monitor: Arc<Monitor>,
    arguments: CompleteGroup,
) -> Result<Done, QmpError> {
    let jobs = monitor.graph.jobs();
    let named = arguments.devices.iter().map(|id| jobs.find_block_job(id));
    JobGroup::complete(&named.collect::<Result<Vec<_>, _>>()?)?;
    Ok(Done {})
}

/// Arguments of `block-job-set-speed`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetSpeed {
    device: String,
    speed: i64,
}

pub(super) async fn block_job_set_speed(
    monitor: Arc<Monitor>,
    arguments: SetSpeed,
) -> Result<Done, QmpError> {
    block_job(&monitor, &arguments.device, |job| {
        job.set_speed(arguments.speed)
    })
}

pub(super) async fn block_job_complete(m: Arc<Monitor>, a: Device) -> Result<Done, QmpError> {
    block_job(&m, &a.device, Job::complete)
}

pub(super) async fn block_job_pause(m: Arc<Monitor>, a: Device) -> Result<Done, QmpError> {
    block_job(&m, &a.device, |job| job.pause())
}

pub(super) async fn block_job_resume(m: Arc<Monitor>, a: Device) -> Result<Done, QmpError> {
    block_job(&m, &a.device, |job| job.resume())
}

pub(super) async fn block_job_finalize(m: Arc<Monitor>, a: Id) -> Result<Done, QmpError> {
    block_job(&m, &a.id, |job| job.finalize())
}

pub(super) async fn block_job_dismiss(m: Arc<Monitor>, a: Id) -> Result<Done, QmpError> {
    block_job(&m, &a.id, |job| job.dismiss())
}

pub(super) async fn job_cancel(m: Arc<Monitor>, a: Id) -> Result<Done, QmpError> {
    job(&m, &a.id, |job| job.cancel(true))
}

pub(super) async fn job_complete(m: Arc<Monitor>, a: Id) -> Result<Done, QmpError> {
    job(&m, &a.id, Job::complete)
}

pub(super) async fn job_pause(m: Arc<Monitor>, a: Id) -> Result<Done, QmpError> {
    job(&m, &a.id, |job| job.pause())
}

pub(super) async fn job_resume(m: Arc<Monitor>, a: Id) -> Result<Done, QmpError> {
    job(&m, &a.id, |job| job.resume())
}

pub(super) async fn job_finalize(m: Arc<Monitor>, a: Id) -> Result<Done, QmpError> {
    job(&m, &a.id, |job| job.finalize())
}

pub(super) async fn job_dismiss(m: Arc<Monitor>, a: Id) -> Result<Done, QmpError> {
    job(&m, &a.id, |job| job.dismiss())
}

pub(super) async fn query_block_jobs(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<BlockJobInfo>, QmpError> {
    Ok(monitor.graph.jobs().query_block_jobs())
}

pub(super) async fn query_jobs(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<JobInfo>, QmpError> {
    Ok(monitor.graph.jobs().query_jobs())
}
