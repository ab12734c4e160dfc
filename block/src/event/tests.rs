//! Events as they go over the wire, and a sink that other tests use.

use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::job::IoFailure;

/// Keeps every event in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct EventLog(Mutex<Vec<BlockEvent>>);

impl EventSink for EventLog {
    fn emit(&self, event: BlockEvent) {
        self.0.lock().push(event);
    }
}

impl EventLog {
    /// Takes out all events so far.
    pub(crate) fn take(&self) -> Vec<BlockEvent> {
        std::mem::take(&mut self.0.lock())
    }
}

fn report() -> JobReport {
    JobReport {
        kind: JobKind::Mirror,
        device: "m".to_owned(),
        len: 7,
        offset: 3,
        speed: 1,
    }
}

#[track_caller]
fn check(event: &BlockEvent, wire: &Value) {
    assert_eq!(&serde_json::to_value(event).unwrap(), wire);
}

#[test]
fn job_events_have_the_members_of_the_protocol() {
    let common = json!({"type": "mirror", "device": "m", "len": 7, "offset": 3, "speed": 1});
    check(
        &BlockEvent::JobStatusChange {
            id: "m".to_owned(),
            status: JobState::Ready,
        },
        &json!({"event": "JOB_STATUS_CHANGE", "data": {"id": "m", "status": "ready"}}),
    );
    check(
        &BlockEvent::BlockJobReady(report()),
        &json!({"event": "BLOCK_JOB_READY", "data": common}),
    );
    check(
        &BlockEvent::BlockJobCancelled(report()),
        &json!({"event": "BLOCK_JOB_CANCELLED", "data": common}),
    );
    check(
        &BlockEvent::BlockJobCompleted {
            report: report(),
            error: None,
            failure: None,
            details: Map::new(),
        },
        &json!({"event": "BLOCK_JOB_COMPLETED", "data": common}),
    );
    check(
        &BlockEvent::BlockJobError {
            device: "m".to_owned(),
            operation: IoOperation::Write,
            action: ErrorAction::Stop,
            node: "target".to_owned(),
            errno: 28,
        },
        &json!({
            "event": "BLOCK_JOB_ERROR",
            "data": {
                "device": "m", "operation": "write", "action": "stop", "x-node-name": "target", "x-errno": 28,
            },
        }),
    );
    check(
        &BlockEvent::BlockJobPending {
            kind: JobKind::Mirror,
            id: "m".to_owned(),
        },
        &json!({"event": "BLOCK_JOB_PENDING", "data": {"type": "mirror", "id": "m"}}),
    );
}

#[test]
fn a_failed_job_says_why_and_may_tell_more() {
    let mut details = Map::new();
    details.insert("x-pivot-pause-us".to_owned(), 12.into());
    let event = BlockEvent::BlockJobCompleted {
        report: report(),
        error: Some("Input/output error".to_owned()),
        failure: Some(IoFailure {
            operation: IoOperation::Write,
            node: "target".to_owned(),
            errno: libc::EIO,
        }),
        details,
    };
    check(
        &event,
        &json!({
            "event": "BLOCK_JOB_COMPLETED",
            "data": {
                "type": "mirror", "device": "m", "len": 7, "offset": 3, "speed": 1,
                "error": "Input/output error", "x-operation": "write", "x-node-name": "target",
                "x-errno": 5, "x-pivot-pause-us": 12,
            },
        }),
    );
}

#[test]
fn a_moved_tray_has_the_members_of_the_protocol() {
    check(
        &BlockEvent::DeviceTrayMoved {
            device: "cd0".to_owned(),
            id: "ide0".to_owned(),
            tray_open: true,
        },
        &json!({
            "event": "DEVICE_TRAY_MOVED",
            "data": {"device": "cd0", "id": "ide0", "tray-open": true},
        }),
    );
}

#[test]
fn guest_errors_have_the_members_of_the_protocol() {
    let event = |node_name, nospace| BlockEvent::BlockIoError {
        qom_path: "/machine/peripheral/d0".to_owned(),
        device: "drive0".to_owned(),
        node_name,
        operation: IoOperation::Read,
        action: ErrorAction::Report,
        nospace,
        reason: "Input/output error".to_owned(),
    };
    check(
        &event(None, None),
        &json!({
            "event": "BLOCK_IO_ERROR",
            "data": {
                "qom-path": "/machine/peripheral/d0", "device": "drive0", "operation": "read",
                "action": "report", "reason": "Input/output error",
            },
        }),
    );
    let full = serde_json::to_value(event(Some("n0".to_owned()), Some(false))).unwrap();
    assert_eq!(full["data"]["node-name"], "n0");
    assert_eq!(full["data"]["nospace"], false);
}
