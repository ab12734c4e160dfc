//! Backups and their jobs through QMP.

use serde_json::{Value, json};

use super::bitmaps::guest_write;
use super::block::{add_disk, story};
use super::harness::{Client, World, run};

const MIB: usize = 1 << 20;

/// A disk `disk` over the node `d`, and a node `t` of the same size.
fn disk_and_target(world: &World, client: &mut Client) -> String {
    add_disk(world, client, "d", 1, 1);
    let node = world.graph.node("d").unwrap();
    world.graph.add_backend("disk", &node).unwrap();
    add_disk(world, client, "t", 1, 0)
}

fn backup(more: &Value) -> Value {
    let mut all = json!({"device": "disk", "target": "t", "sync": "full"});
    let more = more.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    all
}

#[test]
fn a_backup_runs_and_tells_of_it() {
    run(|world| {
        let mut client = world.client();
        let target = disk_and_target(world, &mut client);
        client.ok("blockdev-backup", backup(&json!({"auto-dismiss": false})));
        loop {
            let event = client.wait_event("JOB_STATUS_CHANGE");
            if event["data"]["status"] == "concluded" {
                break;
            }
        }
        let jobs = client.ok("query-block-jobs", json!({}));
        assert_eq!(
            jobs,
            json!([{
                "type": "backup", "device": "disk", "len": MIB, "offset": MIB, "busy": false,
                "paused": false, "speed": 0, "io-status": "ok", "ready": false,
                "status": "concluded", "auto-finalize": true, "auto-dismiss": false
            }])
        );
        let jobs = client.ok("query-jobs", json!({}));
        assert_eq!(
            jobs,
            json!([{
                "id": "disk", "type": "backup", "status": "concluded",
                "current-progress": MIB, "total-progress": MIB
            }])
        );
        client.ok("job-dismiss", json!({"id": "disk"}));
        assert!(std::fs::read(target).unwrap() == vec![1; MIB]);
    });
}

#[test]
fn events_come_in_their_order() {
    run(|world| {
        let mut client = world.client();
        disk_and_target(world, &mut client);
        client.ok("blockdev-backup", backup(&json!({"job-id": "j"})));
        let expected = [
            "created",
            "running",
            "waiting",
            "pending",
            "BLOCK_JOB_COMPLETED",
            "concluded",
            "null",
        ];
        assert_eq!(story(&mut client, "j"), expected);
        client.ok(
            "blockdev-backup",
            backup(&json!({"job-id": "j", "sync": "none"})),
        );
        client.ok("block-job-cancel", json!({"device": "j"}));
        let story = story(&mut client, "j");
        let end = ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"];
        assert_eq!(story[story.len() - 4..], end);
    });
}

#[test]
fn a_chain_of_backups_follows_the_disk() {
    run(|world| {
        let mut client = world.client();
        let target = disk_and_target(world, &mut client);
        let bitmap = json!({"node": "disk", "name": "b"});
        let actions = json!({"actions": [
            {"type": "block-dirty-bitmap-add", "data": bitmap},
            {"type": "blockdev-backup", "data": backup(&json!({"job-id": "full"}))}
        ]});
        client.ok("transaction", actions);
        story(&mut client, "full");
        guest_write(world, "disk", 64 << 10);
        let next = json!({"job-id": "next", "sync": "incremental", "bitmap": "b"});
        client.ok("blockdev-backup", backup(&next));
        story(&mut client, "next");
        let copy = std::fs::read(target).unwrap();
        assert_eq!((copy[64 << 10], copy[(64 << 10) + 512]), (0, 1));
    });
}

#[test]
fn a_drive_is_backed_up_to_a_new_file() {
    run(|world| {
        let mut client = world.client();
        disk_and_target(world, &mut client);
        let path = world.path("new");
        let drive = json!({
            "device": "disk", "target": path, "sync": "full", "job-id": "j", "format": "raw"
        });
        let with_abort = json!({"actions": [
            {"type": "drive-backup", "data": drive}, {"type": "abort", "data": {}}
        ]});
        let error = client.generic("transaction", with_abort);
        assert_eq!(error, "Transaction aborted using Abort action");
        client.ok("drive-backup", drive);
        story(&mut client, "j");
        story(&mut client, "j");
        assert!(std::fs::read(path).unwrap() == vec![1; MIB]);
    });
}

#[test]
fn grouped_jobs_end_together() {
    run(|world| {
        let mut client = world.client();
        disk_and_target(world, &mut client);
        add_disk(world, &mut client, "d2", 1, 1);
        let file = json!({"driver": "raw", "file": {
            "driver": "file", "filename": world.image("t2", MIB, 0)
        }});
        let error = json!([{"event": "write_aio", "errno": 5}]);
        let bad = json!({"driver": "blkdebug", "node-name": "t2", "image": file,
                         "inject-error": error});
        client.ok("blockdev-add", bad);
        let one = backup(&json!({"job-id": "one"}));
        let two = json!({"device": "d2", "target": "t2", "sync": "full", "job-id": "two"});
        let actions = [one, two].map(|data| json!({"type": "blockdev-backup", "data": data}));
        let grouped = json!({"completion-mode": "grouped"});
        client.ok(
            "transaction",
            json!({"actions": actions, "properties": grouped}),
        );
        let mut ends = Vec::new();
        while ends.len() < 2 {
            let event = client.event();
            let name = event["event"].as_str().unwrap().to_owned();
            if name == "BLOCK_JOB_COMPLETED" || name == "BLOCK_JOB_CANCELLED" {
                ends.push((event["data"]["device"].as_str().unwrap().to_owned(), name));
            }
        }
        ends.sort();
        let expected = [
            ("one", "BLOCK_JOB_CANCELLED"),
            ("two", "BLOCK_JOB_COMPLETED"),
        ];
        assert_eq!(
            ends,
            expected.map(|(job, end)| (job.to_owned(), end.to_owned()))
        );
    });
}

#[test]
fn backups_that_make_no_sense_are_refused_by_name() {
    run(|world| {
        let mut client = world.client();
        disk_and_target(world, &mut client);
        for (more, text) in [
            (
                json!({"device": "x"}),
                "Cannot find device='x' nor node-name='x'",
            ),
            (
                json!({"target": "x"}),
                "Cannot find device='x' nor node-name='x'",
            ),
            (
                json!({"sync": "x"}),
                "Parameter 'sync' does not accept value 'x'",
            ),
            (json!({"x": 1}), "Parameter 'x' is unexpected"),
            (
                json!({"x-perf": {"max-workers": 0}}),
                "max-workers must be between 1 and 2147483647",
            ),
            (
                json!({"filter-node-name": "disk"}),
                "node-name=disk is conflicting with a device id",
            ),
        ] {
            assert_eq!(client.generic("blockdev-backup", backup(&more)), text);
        }
        let action = json!({"type": "blockdev-backup", "data": {"device": "disk", "target": "t"}});
        let error = client.generic("transaction", json!({"actions": [action]}));
        assert_eq!(error, "Parameter 'actions[0].data.sync' is missing");
    });
}

#[test]
fn chains_need_a_backing_image() {
    run(|world| {
        let mut client = world.client();
        disk_and_target(world, &mut client);
        let unknown = client.fails("block-commit", json!({"device": "x"}));
        let expected = (
            "DeviceNotFound".to_owned(),
            "Device 'x' not found".to_owned(),
        );
        assert_eq!(unknown, expected);
        let error = client.generic("block-commit", json!({"device": "disk"}));
        assert_eq!(
            error,
            "'disk' has no backing image, so there is nothing to commit to"
        );
        let error = client.generic("block-stream", json!({"device": "disk"}));
        assert_eq!(
            error,
            "'disk' has no backing image, so there is nothing to stream"
        );
        let error = client.generic("block-stream", json!({"device": "x"}));
        assert_eq!(error, "Cannot find device='x' nor node-name='x'");
        let error = client.generic("block-stream", json!({"device": "disk", "x": 1}));
        assert_eq!(error, "Parameter 'x' is unexpected");
        assert_eq!(client.ok("query-jobs", json!({})), json!([]));
    });
}

/// Each refusal as an operator reads it.
#[test]
fn who_is_in_the_way_is_told_and_what_to_do() {
    run(|world| {
        let mut client = world.client();
        disk_and_target(world, &mut client);
        add_disk(world, &mut client, "e", 1, 0);
        let node = world.graph.node("e").unwrap();
        world.graph.add_backend("other", &node).unwrap();
        let in_use =
            "Block device e is in use by the disk 'other'; back up to a node that no disk uses";
        for target in ["e", "other"] {
            let onto = backup(&json!({"target": target}));
            assert_eq!(client.generic("blockdev-backup", onto), in_use);
        }
        let coarse = json!({"x-perf": {"min-cluster-size": 1_u64 << 62}});
        assert_eq!(
            client.generic("blockdev-backup", backup(&coarse)),
            "Cannot create block-copy-state: min-cluster-size too large: 4611686018427387904 > 2147483648; choose 2 GiB \
             or less"
        );
        let actions = json!({"actions": [
            {"type": "blockdev-backup", "data": backup(&json!({"job-id": "one"}))},
            {"type": "blockdev-backup", "data": backup(&json!({"job-id": "two", "device": "other"}))}
        ]});
        assert_eq!(
            client.generic("transaction", actions),
            "Node 't' is busy: block device is in use by block job: backup 'one'; another action of the same transaction \
             has it, which was undone: give each its own, or begin one when the other has ended"
        );
        let endless = json!({"job-id": "j", "sync": "none"});
        client.ok("blockdev-backup", backup(&endless));
        assert_eq!(
            client.generic("block_resize", json!({"node-name": "t", "size": 512})),
            "Node 't' is busy: block device is in use by block job: backup 'j'; wait for the job's end, or end it by \
             'job-cancel'"
        );
        client.ok("job-cancel", json!({"id": "j"}));
        story(&mut client, "j");
    });
}
