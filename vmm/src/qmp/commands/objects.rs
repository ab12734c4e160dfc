//! Commands about helper objects: I/O threads and throttle groups.

use std::sync::Arc;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_aio::current;
use sluice_block::driver::throttle::{ThrottleError, ThrottleGroup, ThrottleLimits};

use super::{Done, Monitor, NoArguments, qom};
use crate::iothreads::IoThreadError;
use crate::qmp::error::{ErrorClass, QmpError};
use crate::qmp::input::{self, InputError, Scalars};
use crate::qmp::object::{self, ObjectArguments, ObjectOptions};

/// The arguments are a union, which has a reader of its own.
pub(super) async fn object_add(
    monitor: Arc<Monitor>,
    arguments: ObjectArguments,
) -> Result<Done, QmpError> {
    let options = object::read(arguments.0, Scalars::Typed)?;
    let id = options.id();
    let well_formed = id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !well_formed {
        return Err(QmpError::generic("Parameter 'id' expects an identifier"));
    }
    let groups = monitor.graph.throttle_groups();
    // Objects of all kinds share their names.
    match options {
        ObjectOptions::IoThread(thread) => {
            if groups.object(&thread.id).is_some() {
                return Err(IoThreadError::Duplicate(thread.id).into());
            }
            monitor.iothreads.add(&thread)?;
        }
        ObjectOptions::ThrottleGroup(group) => {
            if monitor.iothreads.get(&group.id).is_some() {
                return Err(ThrottleError::Duplicate(group.id).into());
            }
            groups.add(&group.id, group.limits)?;
        }
    }
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
    let groups = monitor.graph.throttle_groups();
    if groups.object(&arguments.id).is_some() {
        groups.remove(&arguments.id)?;
        return Ok(Done {});
    }
    let removed = Arc::new(Mutex::new(Some(monitor.iothreads.remove(&arguments.id)?)));
    let ending = Arc::clone(&removed);
    // Joining a thread blocks.
    let ended = current::blocking(move || drop(ending.lock().take())).await;
    if ended.is_err()
        && let Some(removed) = removed.lock().take()
    {
        // No worker could take it, and the main loop must not wait for it.
        monitor.iothreads.restore(removed);
    }
    Ok(ended.map(|()| Done {})?)
}

/// Arguments of `qom-get`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QomGet {
    pub(super) path: String,
    pub(super) property: String,
}

/// The property of a throttle group that can be read and written.
const LIMITS: &str = "limits";

/// The property of everything that says what it is.
const TYPE: &str = "type";

/// Where objects are in QEMU's tree.
const OBJECTS: &str = "/objects/";

/// The I/O thread that a path means.
fn thread_of<'a>(monitor: &Monitor, path: &'a str) -> Option<&'a str> {
    let id = path.strip_prefix(OBJECTS).unwrap_or(path);
    monitor.iothreads.get(id).map(|_| id)
}

/// What the fixed part of the tree, or a device, tells of itself.
fn told(monitor: &Monitor, path: &str, property: &str) -> Option<Value> {
    let asked = QomGet {
        path: path.to_owned(),
        property: property.to_owned(),
    };
    qom::fixed_property(monitor, &asked).or_else(|| qom::device_property(monitor, &asked))
}

/// The throttle group that a path means, for the one property that groups have.
fn group_of(monitor: &Monitor, path: &str, property: &str) -> Result<Arc<ThrottleGroup>, QmpError> {
    let id = path.strip_prefix(OBJECTS).unwrap_or(path);
    let group = monitor.graph.throttle_groups().object(id).ok_or_else(|| {
        match told(monitor, path, TYPE) {
            Some(kind) => {
                let kind = kind.as_str().unwrap_or_default();
                QmpError::generic(format!("Property '{kind}.{property}' not found"))
            }
            None => QmpError {
                class: ErrorClass::DeviceNotFound,
                desc: format!("Device '{path}' not found"),
            },
        }
    })?;
    if property != LIMITS {
        return Err(QmpError::generic(format!(
            "Property 'throttle-group.{property}' not found"
        )));
    }
    Ok(group)
}

pub(super) async fn qom_get(monitor: Arc<Monitor>, arguments: QomGet) -> Result<Value, QmpError> {
    if let Some(id) = thread_of(&monitor, &arguments.path) {
        if arguments.property == TYPE {
            return Ok("iothread".into());
        }
        return Ok(monitor.iothreads.property(id, &arguments.property)?.into());
    }
    if let Some(value) = told(&monitor, &arguments.path, &arguments.property) {
        return Ok(value);
    }
    let is_type = arguments.property == TYPE;
    let asked = if is_type { LIMITS } else { &arguments.property };
    let group = group_of(&monitor, &arguments.path, asked)?;
    if is_type {
        return Ok("throttle-group".into());
    }
    serde_json::to_value(group.limits()).map_err(|error| QmpError::generic(error.to_string()))
}

/// Arguments of `qom-set`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QomSet {
    path: String,
    property: String,
    value: Value,
}

/// Of limits, what is not given stays as it is.
pub(super) async fn qom_set(monitor: Arc<Monitor>, arguments: QomSet) -> Result<Done, QmpError> {
    if let Some(id) = thread_of(&monitor, &arguments.path) {
        let value = arguments.value.as_i64();
        let value = value.ok_or_else(|| InputError::wrong_type(&arguments.property, "integer"))?;
        monitor
            .iothreads
            .set_property(id, &arguments.property, value)?;
        return Ok(Done {});
    }
    if told(&monitor, &arguments.path, &arguments.property).is_some()
        && let Some(kind) = told(&monitor, &arguments.path, TYPE)
    {
        let (kind, property) = (kind.as_str().unwrap_or_default(), &arguments.property);
        let desc = format!("Property '{kind}.{property}' is not writable");
        return Err(QmpError::generic(desc));
    }
    let group = group_of(&monitor, &arguments.path, &arguments.property)?;
    // Checked alone first, so that what is wrong with it is said.
    let _: ThrottleLimits = input::from_value(arguments.value.clone(), Scalars::Typed)?;
    let present = serde_json::to_value(group.limits());
    let mut merged = present.map_err(|error| QmpError::generic(error.to_string()))?;
    if let (Value::Object(merged), Value::Object(given)) = (&mut merged, arguments.value) {
        merged.extend(given);
    }
    group.set_limits(input::from_value(merged, Scalars::Typed)?)?;
    Ok(Done {})
}

/// An element of the answer to `query-iothreads`.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct IoThreadRecord {
    id: String,
    thread_id: u32,
    poll_max_ns: i64,
    poll_grow: i64,
    poll_shrink: i64,
    aio_max_batch: i64,
}

pub(super) async fn query_iothreads(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<IoThreadRecord>, QmpError> {
    let threads = monitor.iothreads.list().into_iter();
    let records = threads.map(|(config, thread_id)| IoThreadRecord {
        id: config.id,
        thread_id,
        poll_max_ns: config.poll_max_ns,
        poll_grow: config.poll_grow,
        poll_shrink: config.poll_shrink,
        aio_max_batch: config.aio_max_batch,
    });
    Ok(records.collect())
}
