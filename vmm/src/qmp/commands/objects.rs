//! Commands about I/O threads.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_aio::current;

use super::{Done, Monitor, NoArguments};
use crate::qmp::error::QmpError;

/// Arguments of `object-add`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ObjectAdd {
    #[serde(rename = "qom-type")]
    #[expect(dead_code, reason = "there is one type; reading it is checking it")]
    kind: ObjectKind,
    id: String,
}

/// The types of objects.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ObjectKind {
    Iothread,
}

pub(super) async fn object_add(
    monitor: Arc<Monitor>,
    arguments: ObjectAdd,
) -> Result<Done, QmpError> {
    let id = arguments.id;
    let well_formed = id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !well_formed {
        return Err(QmpError::generic("Parameter 'id' expects an identifier"));
    }
    monitor.iothreads.add(&id)?;
    Ok(Done {})
}

/// Arguments of `object-del`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ObjectDel {
    id: String,
}

pub(super) async fn object_del(
    monitor: Arc<Monitor>,
    arguments: ObjectDel,
) -> Result<Done, QmpError> {
    let thread = monitor.iothreads.remove(&arguments.id)?;
    // Joining a thread blocks.
    current::blocking(move || drop(thread)).await?;
    Ok(Done {})
}

/// An element of the answer to `query-iothreads`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct IoThreadRecord {
    id: String,
    thread_id: u32,
    /// The loops sleep in the kernel and never poll, hence the zeroes.
    poll_max_ns: u64,
    poll_grow: u64,
    poll_shrink: u64,
    aio_max_batch: u64,
}

pub(super) async fn query_iothreads(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<IoThreadRecord>, QmpError> {
    let threads = monitor.iothreads.list().into_iter();
    let records = threads.map(|(id, thread_id)| IoThreadRecord {
        id,
        thread_id,
        poll_max_ns: 0,
        poll_grow: 0,
        poll_shrink: 0,
        aio_max_batch: 0,
    });
    Ok(records.collect())
}
