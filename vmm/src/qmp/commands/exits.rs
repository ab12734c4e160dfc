//! `x-query-exit-times`: how long the guest's writes to PCI functions keep its processors. Sluice's own command, not
//! QEMU's.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::loops::{Bucket, buckets};
use super::{Monitor, NoArguments};
use crate::qmp::error::QmpError;

/// An element of the answer: a function.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ExitRecord {
    /// Its place on the bus, as `DEVICE.FUNCTION`.
    address: String,
    /// How many nanoseconds its handler took for a write.
    write_times_ns: Vec<Bucket>,
    longest_write_ns: u128,
}

pub(super) async fn query_exit_times(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<ExitRecord>, QmpError> {
    let devices = monitor.devices.as_ref();
    let functions = devices.map(|devices| devices.plug.exit_times());
    let functions = functions.unwrap_or_default().into_iter();
    let records = functions.map(|(address, times)| ExitRecord {
        address: address.to_string(),
        write_times_ns: buckets(&times.writes()),
        longest_write_ns: times.longest().as_nanos(),
    });
    Ok(records.collect())
}
