//! Commands about the machine as a whole.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Done, Monitor, NoArguments};
use crate::control::{Accelerator, Cause, RunState};
use crate::qmp::error::QmpError;
use crate::qmp::schema::{self, SchemaInfo};
use crate::qmp::session::{self, PROTOCOL_VERSION, Version};

pub(super) async fn query_version(_: Arc<Monitor>, _: NoArguments) -> Result<Version, QmpError> {
    Ok(PROTOCOL_VERSION)
}

/// An element of the answer to `query-commands`.
#[derive(JsonSchema, Serialize)]
pub(super) struct CommandName {
    name: &'static str,
}

pub(super) async fn query_commands(
    _: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<CommandName>, QmpError> {
    let names = session::command_names();
    Ok(names.map(|name| CommandName { name }).collect())
}

pub(super) async fn query_qmp_schema(
    _: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<SchemaInfo>, QmpError> {
    Ok(schema::schema())
}

/// The answer to `query-status`.
#[derive(JsonSchema, Serialize)]
pub(super) struct Status {
    running: bool,
    status: RunState,
}

pub(super) async fn query_status(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Status, QmpError> {
    let state = monitor.vm.status();
    Ok(Status {
        running: state == RunState::Running,
        status: state,
    })
}

/// The answer to `query-name`.
#[derive(JsonSchema, Serialize)]
pub(super) struct Name {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

pub(super) async fn query_name(monitor: Arc<Monitor>, _: NoArguments) -> Result<Name, QmpError> {
    Ok(Name {
        name: monitor.vm.name(),
    })
}

/// The answer to `query-kvm`.
#[derive(JsonSchema, Serialize)]
pub(super) struct Kvm {
    enabled: bool,
    present: bool,
}

pub(super) async fn query_kvm(monitor: Arc<Monitor>, _: NoArguments) -> Result<Kvm, QmpError> {
    Ok(Kvm {
        enabled: monitor.vm.accelerator() == Accelerator::Kvm,
        present: true,
    })
}

pub(super) async fn stop(monitor: Arc<Monitor>, _: NoArguments) -> Result<Done, QmpError> {
    monitor.vm.pause().await?;
    Ok(Done {})
}

pub(super) async fn cont(monitor: Arc<Monitor>, _: NoArguments) -> Result<Done, QmpError> {
    monitor.vm.resume().await?;
    Ok(Done {})
}

pub(super) async fn system_powerdown(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Done, QmpError> {
    monitor.vm.powerdown()?;
    Ok(Done {})
}

pub(super) async fn system_reset(monitor: Arc<Monitor>, _: NoArguments) -> Result<Done, QmpError> {
    monitor.vm.reset(Cause::HostQmpSystemReset).await?;
    Ok(Done {})
}

pub(super) async fn quit(_: Arc<Monitor>, _: NoArguments) -> Result<Done, QmpError> {
    Ok(Done {})
}

/// The process ends only when the client has been told that it will.
pub(super) fn after_quit(monitor: &Monitor) {
    monitor.vm.quit(Cause::HostQmpQuit);
}
