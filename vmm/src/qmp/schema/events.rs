//! The events, as the schema tells of them: from the types that they are written from.

use sluice_block::BlockEvent;

use super::reply;
use super::shape::Shape;
use crate::qmp::events::{CONTENT, MachineEvent, TAG};

/// Each event's name and the shape of its data.
pub(super) fn all() -> Vec<(String, Shape)> {
    let mut all = reply::variants_of::<BlockEvent>(TAG, CONTENT);
    all.extend(reply::variants_of::<MachineEvent>(TAG, CONTENT));
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The names stand here once more, since a client waits for them.
    #[test]
    fn every_event_is_told_of_once() {
        let names: Vec<_> = all().into_iter().map(|(name, _)| name).collect();
        let expected = [
            "BLOCK_IO_ERROR",
            "BLOCK_JOB_CANCELLED",
            "BLOCK_JOB_COMPLETED",
            "BLOCK_JOB_ERROR",
            "BLOCK_JOB_PENDING",
            "BLOCK_JOB_READY",
            "DEVICE_DELETED",
            "DEVICE_TRAY_MOVED",
            "GUEST_PANICKED",
            "JOB_STATUS_CHANGE",
            "POWERDOWN",
            "RESET",
            "RESUME",
            "SHUTDOWN",
            "STOP",
        ];
        assert_eq!(names.len(), expected.len());
        let sorted: BTreeSet<_> = names.iter().map(String::as_str).collect();
        assert!(sorted.into_iter().eq(expected), "{names:?}");
    }

    #[test]
    fn what_is_not_always_there_is_optional() {
        let optional = |event: &str| {
            let (_, shape) = all().into_iter().find(|(name, _)| name == event).unwrap();
            let Shape::Object(members) = shape else {
                panic!("{event} is not an object");
            };
            let members = members.into_iter().filter(|member| member.optional);
            members.map(|member| member.name).collect::<Vec<_>>()
        };
        assert_eq!(optional("BLOCK_IO_ERROR"), ["node-name", "nospace"]);
        assert_eq!(optional("DEVICE_DELETED"), ["device"]);
        assert!(optional("BLOCK_JOB_COMPLETED").contains(&"x-pivot-pause-us".to_owned()));
    }
}
