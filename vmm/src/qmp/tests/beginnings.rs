//! Commands that begin jobs: they are answered when the job has begun.

use serde_json::{Value, json};

use super::block::add_disk;
use super::harness::{Client, World, run};

/// What begins jobs, and the names of those.
fn beginnings(world: &World) -> [(&'static str, Value, &'static [&'static str]); 6] {
    let onto = |target: &str, id: &str| json!({"device": "src", "target": target, "sync": "full", "job-id": id});
    let path = |name: &str| world.path(name);
    let action = |device: &str, target: &str, id: &str| {
        let mut data = onto(target, id);
        data["device"] = device.into();
        json!({"type": "blockdev-backup", "data": data})
    };
    let both = [action("src", "dst", "j"), action("src2", "dst2", "k")];
    let grouped = json!({"completion-mode": "grouped"});
    [
        ("blockdev-mirror", onto("dst", "j"), &["j"]),
        ("drive-mirror", onto(&path("new"), "j"), &["j"]),
        ("blockdev-backup", onto("dst", "j"), &["j"]),
        ("drive-backup", onto(&path("newer"), "j"), &["j"]),
        ("transaction", json!({"actions": both}), &["j", "k"]),
        (
            "transaction",
            json!({"actions": both, "properties": grouped}),
            &["j", "k"],
        ),
    ]
}

/// What was told of the job `id` up to now.
fn states(client: &Client, id: &str) -> Vec<String> {
    let events = client.events_so_far().iter();
    let own = events.filter(|event| event["data"]["id"] == id);
    own.map(|event| event["data"]["status"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_command_is_answered_when_its_jobs_have_begun() {
    for thread in [None, Some("io0")] {
        run(move |world| {
            let mut client = world.client();
            for name in ["src", "dst", "src2", "dst2"] {
                add_disk(world, &mut client, name, 1, 7);
            }
            if let Some(thread) = thread {
                client.ok("object-add", json!({"qom-type": "iothread", "id": thread}));
                for node in ["src", "src2"] {
                    client.ok(
                        "x-blockdev-set-iothread",
                        json!({"node-name": node, "iothread": thread}),
                    );
                }
            }
            for (command, arguments, ids) in beginnings(world) {
                client.ok(command, arguments);
                for id in ids {
                    let states = states(&client, id);
                    assert_eq!(
                        states.get(..2),
                        Some(&["created".to_owned(), "running".to_owned()][..]),
                        "{command}"
                    );
                }
                for id in ids {
                    // One may have ended by itself.
                    client.execute(&json!({"execute": "job-cancel", "arguments": {"id": id}}));
                }
                let mut there = ids.to_vec();
                while !there.is_empty() {
                    let data = client.event()["data"].take();
                    there.retain(|id| data["id"] != *id || data["status"] != "null");
                }
            }
        });
    }
}
