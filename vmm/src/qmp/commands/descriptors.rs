//! `getfd`, `closefd`, `add-fd`, `remove-fd` and `query-fdsets`: descriptors that clients send.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_block::driver::file::{FdInfo, FdSetError};

use super::{Done, Monitor, NoArguments};
use crate::qmp::error::QmpError;

/// Arguments of `getfd` and `closefd`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    fdname: String,
}

pub(super) async fn getfd(monitor: Arc<Monitor>, arguments: Named) -> Result<Done, QmpError> {
    let descriptor = monitor.descriptors.take()?;
    monitor.descriptors.name(arguments.fdname, descriptor)?;
    Ok(Done {})
}

pub(super) async fn closefd(monitor: Arc<Monitor>, arguments: Named) -> Result<Done, QmpError> {
    monitor.descriptors.close(&arguments.fdname)?;
    Ok(Done {})
}

/// Arguments of `add-fd`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct AddFd {
    fdset_id: Option<i64>,
    opaque: Option<String>,
}

/// QMP's `AddfdInfo`.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Added {
    fdset_id: i64,
    fd: i32,
}

pub(super) async fn add_fd(monitor: Arc<Monitor>, arguments: AddFd) -> Result<Added, QmpError> {
    use std::os::fd::AsRawFd;

    let descriptor = monitor.descriptors.take()?;
    let fd = descriptor.as_raw_fd();
    let AddFd { fdset_id, opaque } = arguments;
    let added = monitor.graph.fd_sets().add(fdset_id, descriptor, opaque);
    let fdset_id = added.map_err(|error| refused(&error))?;
    Ok(Added { fdset_id, fd })
}

/// Arguments of `remove-fd`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RemoveFd {
    fdset_id: i64,
    fd: Option<i64>,
}

pub(super) async fn remove_fd(
    monitor: Arc<Monitor>,
    arguments: RemoveFd,
) -> Result<Done, QmpError> {
    let removed = monitor
        .graph
        .fd_sets()
        .remove(arguments.fdset_id, arguments.fd);
    removed.map_err(|error| refused(&error))?;
    Ok(Done {})
}

/// QMP's `FdsetInfo`.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Set {
    fdset_id: i64,
    fds: Vec<Member>,
}

/// QMP's `FdsetFdInfo`.
#[derive(JsonSchema, Serialize)]
struct Member {
    fd: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    opaque: Option<String>,
}

pub(super) async fn query_fdsets(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<Set>, QmpError> {
    let member = |info: FdInfo| Member {
        fd: info.number,
        opaque: info.opaque,
    };
    let sets = monitor.graph.fd_sets().query().into_iter();
    let sets = sets.map(|(fdset_id, fds)| Set {
        fdset_id,
        fds: fds.into_iter().map(member).collect(),
    });
    Ok(sets.collect())
}

fn refused(error: &FdSetError) -> QmpError {
    QmpError::generic(error.to_string())
}
