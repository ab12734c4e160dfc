//! The events, as the schema tells of them: their members are those of examples, of which one has all that there
//! can be and another has what is always there.

use serde_json::{Map, Value};
use sluice_block::BlockEvent;
use sluice_block::event::{ErrorAction, IoOperation, JobReport};
use sluice_block::job::{JobKind, JobState};

use super::shape::{Builtin, Member, Shape};
use crate::control::{Cause, PanicAction, VmEvent};
use crate::qmp::events::vm_event;

/// Each event's name and the shape of its data.
pub(super) fn all() -> Vec<(String, Shape)> {
    let mut found = Vec::new();
    for example in block_examples() {
        found.push(described(
            serde_json::to_value(example.full),
            serde_json::to_value(example.least),
        ));
    }
    for event in vm_examples() {
        found.push(described(
            Ok(vm_event(event.clone())),
            Ok(vm_event(least(event))),
        ));
    }
    found.into_iter().flatten().collect()
}

/// An event with everything and one with as little as possible.
struct Example {
    full: BlockEvent,
    least: BlockEvent,
}

impl Example {
    fn of(event: BlockEvent) -> Self {
        Self {
            least: event.clone(),
            full: event,
        }
    }
}

fn report() -> JobReport {
    JobReport {
        kind: JobKind::Mirror,
        device: String::new(),
        len: 0,
        offset: 0,
        speed: 0,
    }
}

fn block_examples() -> Vec<Example> {
    let io_error = |optional: bool| BlockEvent::BlockIoError {
        qom_path: String::new(),
        device: String::new(),
        node_name: optional.then(String::new),
        operation: IoOperation::Read,
        action: ErrorAction::Report,
        nospace: optional.then_some(true),
        reason: String::new(),
    };
    let completed = |error: Option<String>| BlockEvent::BlockJobCompleted {
        report: report(),
        error,
        details: Map::new(),
    };
    vec![
        Example::of(BlockEvent::JobStatusChange {
            id: String::new(),
            status: JobState::Created,
        }),
        Example::of(BlockEvent::BlockJobReady(report())),
        Example {
            full: completed(Some(String::new())),
            least: completed(None),
        },
        Example::of(BlockEvent::BlockJobCancelled(report())),
        Example::of(BlockEvent::BlockJobError {
            device: String::new(),
            operation: IoOperation::Read,
            action: ErrorAction::Report,
        }),
        Example::of(BlockEvent::BlockJobPending {
            kind: JobKind::Mirror,
            id: String::new(),
        }),
        Example::of(BlockEvent::DeviceTrayMoved {
            device: String::new(),
            id: String::new(),
            tray_open: true,
        }),
        Example {
            full: io_error(true),
            least: io_error(false),
        },
    ]
}

/// The same event with as little as possible.
fn least(event: VmEvent) -> VmEvent {
    match event {
        VmEvent::DeviceDeleted { path, .. } => VmEvent::DeviceDeleted { device: None, path },
        other => other,
    }
}

fn vm_examples() -> [VmEvent; 7] {
    [
        VmEvent::Stop,
        VmEvent::Resume,
        VmEvent::Powerdown,
        VmEvent::Reset(Cause::GuestReset),
        VmEvent::Shutdown(Cause::GuestShutdown),
        VmEvent::GuestPanicked(PanicAction::Run),
        VmEvent::DeviceDeleted {
            device: Some(String::new()),
            path: String::new(),
        },
    ]
}

fn described(
    full: serde_json::Result<Value>,
    least: serde_json::Result<Value>,
) -> Option<(String, Shape)> {
    let (full, least) = (full.ok()?, least.ok()?);
    let name = full["event"].as_str()?.to_owned();
    let members = full["data"].as_object().into_iter().flatten();
    let member = |(name, value): (&String, &Value)| Member {
        name: name.clone(),
        shape: shape_of_value(value),
        optional: least["data"].get(name).is_none(),
    };
    Some((name, Shape::Object(members.map(member).collect())))
}

fn shape_of_value(value: &Value) -> Shape {
    Shape::Builtin(match value {
        Value::Bool(_) => Builtin::Bool,
        Value::Number(number) if number.is_f64() => Builtin::Number,
        Value::Number(_) => Builtin::Int,
        Value::String(_) => Builtin::Str,
        Value::Null | Value::Array(_) | Value::Object(_) => Builtin::Any,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes who adds an event add its example.
    fn is_block_event_known(event: &BlockEvent) -> bool {
        match event {
            BlockEvent::JobStatusChange { .. }
            | BlockEvent::BlockJobReady(_)
            | BlockEvent::BlockJobCompleted { .. }
            | BlockEvent::BlockJobCancelled(_)
            | BlockEvent::BlockJobError { .. }
            | BlockEvent::BlockJobPending { .. }
            | BlockEvent::DeviceTrayMoved { .. }
            | BlockEvent::BlockIoError { .. } => true,
        }
    }

    #[test]
    fn every_event_is_told_of_once() {
        let examples = block_examples();
        assert!(examples.iter().all(|one| is_block_event_known(&one.full)));
        let names: std::collections::BTreeSet<_> =
            all().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), examples.len() + vm_examples().len());
        assert!(names.contains("BLOCK_JOB_READY") && names.contains("STOP"));
    }

    #[test]
    fn what_is_not_always_there_is_optional() {
        let (_, shape) = all()
            .into_iter()
            .find(|(name, _)| name == "BLOCK_IO_ERROR")
            .unwrap();
        let Shape::Object(members) = shape else {
            panic!("not an object");
        };
        let optional: Vec<_> = members.iter().filter(|member| member.optional).collect();
        assert_eq!(optional.len(), 2, "{optional:?}");
    }
}
