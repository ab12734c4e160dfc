//! Jobs that fail or are cancelled, as a client hears and asks of it.

use serde_json::{Value, json};

use super::block::{add_disk, story, without_rests};
use super::harness::{Client, World, run};

const MIB: usize = 1 << 20;
const EIO: i64 = 5;

/// The end of a job that was cancelled by force.
const CANCELLED: [&str; 4] = ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"];

/// Adds a node of a file of 1 MiB whose `event` fails.
fn add_failing(world: &World, client: &mut Client, name: &str, event: &str) {
    let file = json!({"driver": "file", "filename": world.image(name, MIB, 1)});
    let rule = json!({"event": event, "errno": EIO});
    let debug = json!({"driver": "blkdebug", "node-name": name, "inject-error": [rule],
        "image": {"driver": "raw", "file": file}});
    client.ok("blockdev-add", debug);
}

/// `blockdev-mirror` or `blockdev-backup` of `source` onto `target`, by the name `j`.
fn start(client: &mut Client, command: &str, source: &str, target: &str, more: &Value) {
    let mut arguments = json!({"job-id": "j", "device": source, "target": target, "sync": "full"});
    let more = more.as_object().unwrap().clone();
    arguments.as_object_mut().unwrap().extend(more);
    client.ok(command, arguments);
}

const COMMANDS: [&str; 2] = ["blockdev-mirror", "blockdev-backup"];

#[test]
fn a_failed_job_says_which_node_could_not_be_read_or_written() {
    for command in COMMANDS {
        run(move |world| {
            let mut client = world.client();
            add_disk(world, &mut client, "src", 1, 1);
            add_disk(world, &mut client, "dst", 1, 0);
            add_failing(world, &mut client, "bad-src", "read_aio");
            add_failing(world, &mut client, "bad-dst", "write_aio");
            let manual = json!({"auto-dismiss": false});
            for (source, target, operation, node) in [
                ("bad-src", "dst", "read", "bad-src"),
                ("src", "bad-dst", "write", "bad-dst"),
            ] {
                start(&mut client, command, source, target, &manual);
                let ended = client.wait_event("BLOCK_JOB_COMPLETED")["data"].take();
                while client.event()["data"]["status"] != "concluded" {}
                let (jobs, block_jobs) = (
                    client.ok("query-jobs", json!({}))[0].take(),
                    client.ok("query-block-jobs", json!({}))[0].take(),
                );
                for told in [ended, jobs, block_jobs] {
                    // The text is QEMU's, and stays what clients compare it with.
                    assert_eq!(told["error"], "Input/output error", "{told}");
                    assert_eq!(told["x-operation"], operation, "{told}");
                    assert_eq!(told["x-node-name"], node, "{told}");
                    assert_eq!(told["x-errno"], EIO, "{told}");
                }
                client.ok("job-dismiss", json!({"id": "j"}));
            }
        });
    }
}

#[test]
fn a_job_that_was_well_names_no_node() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "src", 1, 1);
        add_disk(world, &mut client, "dst", 1, 0);
        start(&mut client, "blockdev-backup", "src", "dst", &json!({}));
        let ended = client.wait_event("BLOCK_JOB_COMPLETED");
        let told = ended["data"].as_object().unwrap();
        for absent in ["error", "x-operation", "x-node-name", "x-errno"] {
            assert!(!told.contains_key(absent), "{ended}");
        }
    });
}

#[test]
fn a_failure_is_told_of_in_its_order() {
    for command in COMMANDS {
        run(move |world| {
            let mut client = world.client();
            add_disk(world, &mut client, "src", 1, 1);
            add_failing(world, &mut client, "bad", "write_aio");
            start(&mut client, command, "src", "bad", &json!({}));
            let story = story(&mut client, "j");
            let expected = [
                "created",
                "running",
                "BLOCK_JOB_ERROR",
                "aborting",
                "BLOCK_JOB_COMPLETED",
                "concluded",
                "null",
            ];
            assert_eq!(without_rests(&story), expected, "{command}: {story:?}");
        });
    }
}

#[test]
fn a_cancel_is_told_of_in_its_order_also_while_the_target_fails() {
    for command in COMMANDS {
        run(move |world| {
            let mut client = world.client();
            add_disk(world, &mut client, "src", 1, 1);
            add_failing(world, &mut client, "bad", "write_aio");
            let stop = json!({"on-target-error": "stop"});
            start(&mut client, command, "src", "bad", &stop);
            let mut seen = Vec::new();
            while seen.last() != Some(&Value::from("paused")) || !seen.contains(&Value::Null) {
                let event = client.event();
                // The error has no status.
                seen.push(event["data"]["status"].clone());
            }
            client.ok("block-job-cancel", json!({"device": "j", "force": true}));
            let story = story(&mut client, "j");
            assert!(
                story.iter().all(|step| step != "BLOCK_JOB_COMPLETED"),
                "{story:?}"
            );
            assert_eq!(
                story[story.len() - CANCELLED.len()..],
                CANCELLED,
                "{command}"
            );
        });
    }
}
