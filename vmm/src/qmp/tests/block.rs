//! Nodes, jobs and breakpoints through QMP.

use serde_json::{Value, json};

use super::harness::{Client, World, run};

const MIB: usize = 1 << 20;

/// Adds a `raw` node over a file of `mib` MiB filled with `byte`; returns the file's path.
pub(super) fn add_disk(
    world: &World,
    client: &mut Client,
    name: &str,
    mib: usize,
    byte: u8,
) -> String {
    let path = world.image(name, mib * MIB, byte);
    let file = json!({"driver": "file", "filename": path});
    client.ok(
        "blockdev-add",
        json!({"driver": "raw", "node-name": name, "file": file}),
    );
    path
}

fn mirror(job: &str, source: &str, target: &str) -> Value {
    json!({"job-id": job, "device": source, "target": target, "sync": "full"})
}

/// Reads events until the job `job` has gone; returns their names (states for status changes).
pub(super) fn story(client: &mut Client, job: &str) -> Vec<String> {
    let mut story = Vec::new();
    loop {
        let event = client.event();
        let data = &event["data"];
        if data["id"] != job && data["device"] != job {
            continue;
        }
        let name = match event["event"].as_str() {
            Some("JOB_STATUS_CHANGE") => data["status"].as_str(),
            name => name,
        };
        story.push(name.unwrap().to_owned());
        if story.last().is_some_and(|last| last == "null") {
            return story;
        }
    }
}

/// A story without rests: a drained section, which may come at any time, is one.
pub(super) fn without_rests(story: &[String]) -> Vec<&str> {
    let is_rest = |state: &str| ["paused", "standby"].contains(&state);
    let mut after_rest = false;
    let mut told = Vec::new();
    for state in story.iter().map(String::as_str) {
        let goes_on = std::mem::replace(&mut after_rest, is_rest(state));
        if !after_rest && !goes_on {
            told.push(state);
        }
    }
    told
}

#[test]
fn nodes_come_and_go() {
    run(|world| {
        let mut client = world.client();
        let path = add_disk(world, &mut client, "d", 1, 1);
        let nodes = client.ok("query-named-block-nodes", json!({"flat": true}));
        let nodes = nodes.as_array().unwrap();
        assert_eq!(nodes.len(), 2, "{nodes:?}");
        let node = nodes.iter().find(|node| node["node-name"] == "d").unwrap();
        assert_eq!(node["drv"], "raw");
        assert_eq!(node["ro"], false);
        assert_eq!(node["image"]["virtual-size"], MIB);
        assert_eq!(node["file"], path);

        let again = json!({"driver": "null-co", "node-name": "d"});
        let duplicate = client.generic("blockdev-add", again);
        assert_eq!(duplicate, "Duplicate nodes with node-name='d'");
        let nameless = client.generic("blockdev-add", json!({"driver": "null-co"}));
        assert_eq!(nameless, "'node-name' must be specified for the root node");
        let bad_name = json!({"driver": "null-co", "node-name": "#x"});
        assert_eq!(
            client.generic("blockdev-add", bad_name),
            "Invalid node-name: '#x'"
        );
        let missing = json!({"driver": "file", "node-name": "m", "filename": world.path("none")});
        let missing = client.generic("blockdev-add", missing);
        assert!(missing.starts_with("Could not open '"), "{missing}");
        assert!(missing.contains("No such file or directory"), "{missing}");

        client.ok("blockdev-del", json!({"node-name": "d"}));
        let gone = client.generic("blockdev-del", json!({"node-name": "d"}));
        assert_eq!(gone, "Failed to find node with node-name='d'");
        assert_eq!(client.ok("query-named-block-nodes", json!({})), json!([]));
    });
}

#[test]
fn disks_are_queried_by_backend() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 2, 1);
        let node = world.graph.node("d").unwrap();
        let backend = world.graph.add_backend("ide0-hd0", &node).unwrap();
        backend.set_device("/machine/ide0");
        let disks = client.ok("query-block", json!({}));
        assert_eq!(disks[0]["device"], "ide0-hd0");
        assert_eq!(disks[0]["qdev"], "/machine/ide0");
        assert_eq!(disks[0]["inserted"]["node-name"], "d");
        assert_eq!(disks[0]["inserted"]["image"]["virtual-size"], 2 * MIB);
        let stats = client.ok("query-blockstats", json!({}));
        assert_eq!(stats[0]["device"], "ide0-hd0");
        assert_eq!(stats[0]["stats"]["rd_operations"], 0);
        let drains = client.ok("x-query-block-drains", json!({}));
        assert_eq!(drains[0]["device"], "ide0-hd0");
        assert_eq!(drains[0]["drained"], false);
        let in_use = client.generic("blockdev-del", json!({"node-name": "d"}));
        assert_eq!(in_use, "Node d is in use");
        let taken = json!({"driver": "null-co", "node-name": "ide0-hd0"});
        let taken = client.generic("blockdev-add", taken);
        assert_eq!(taken, "node-name=ide0-hd0 is conflicting with a device id");
    });
}

#[test]
fn a_mirror_from_start_to_pivot() {
    run(|world| {
        let mut client = world.client();
        let mut other = world.client();
        let source = add_disk(world, &mut client, "src", 4, 0x5a);
        let target = add_disk(world, &mut client, "dst", 4, 0);
        client.ok("blockdev-mirror", mirror("j", "src", "dst"));
        let ready = client.wait_event("BLOCK_JOB_READY");
        assert_eq!(ready["data"]["device"], "j");
        assert_eq!(ready["data"]["type"], "mirror");
        let jobs = client.ok("query-block-jobs", json!({}));
        assert_eq!(jobs[0]["device"], "j");
        assert_eq!(jobs[0]["ready"], true);
        assert_eq!(client.ok("query-jobs", json!({}))[0]["status"], "ready");
        client.ok("block-job-complete", json!({"device": "j"}));
        let story = story(&mut other, "j");
        let expected = [
            "created",
            "running",
            "ready",
            "BLOCK_JOB_READY",
            "waiting",
            "pending",
            "BLOCK_JOB_COMPLETED",
            "concluded",
            "null",
        ];
        assert_eq!(without_rests(&story), expected, "{story:?}");
        assert_eq!(client.ok("query-jobs", json!({})), json!([]));
        assert_eq!(
            std::fs::read(source).unwrap(),
            std::fs::read(target).unwrap()
        );
    });
}

#[test]
fn the_copy_mode_of_a_mirror_changes_while_it_runs() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "src", 1, 1);
        add_disk(world, &mut client, "dst", 1, 2);
        let mut arguments = mirror("j", "src", "dst");
        arguments["copy-mode"] = "write-blocking".into();
        client.ok("blockdev-mirror", arguments);
        client.wait_event("BLOCK_JOB_READY");
        let job = |client: &mut Client| client.ok("query-block-jobs", json!({}))[0].clone();
        assert_eq!(job(&mut client)["actively-synced"], true);
        for mode in ["background", "automatic", "write-blocking"] {
            let change = json!({"id": "j", "type": "mirror", "copy-mode": mode});
            client.ok("block-job-change", change);
            let job = job(&mut client);
            assert_eq!(job["x-copy-mode"], mode);
            assert_eq!(job["actively-synced"], mode == "write-blocking");
        }
        for (arguments, expected) in [
            (
                json!({"id": "j", "type": "mirror"}),
                "Parameter 'copy-mode' is missing",
            ),
            (
                json!({"id": "j", "type": "commit", "copy-mode": "background"}),
                "Parameter 'type' does not accept value 'commit'",
            ),
            (
                json!({"id": "j", "type": "mirror", "copy-mode": "sideways"}),
                "Parameter 'copy-mode' does not accept value 'sideways'",
            ),
        ] {
            let text = client.generic("block-job-change", arguments);
            assert_eq!(text, expected);
        }
        let change = json!({"id": "k", "type": "mirror", "copy-mode": "background"});
        let (class, _) = client.fails("block-job-change", change);
        assert_eq!(class, "DeviceNotActive");
    });
}

#[test]
fn several_mirrors_are_completed_together() {
    run(|world| {
        let mut client = world.client();
        for disk in ["a", "b"] {
            add_disk(world, &mut client, disk, 1, 1);
            let target = format!("{disk}-copy");
            add_disk(world, &mut client, &target, 1, 0);
            client.ok("blockdev-mirror", mirror(disk, disk, &target));
            client.wait_event("BLOCK_JOB_READY");
        }
        let command = "x-block-job-complete-group";
        let (class, _) = client.fails(command, json!({"devices": ["a", "none"]}));
        assert_eq!(class, "DeviceNotActive");
        let text = client.generic(command, json!({"devices": ["a", "a"]}));
        assert_eq!(text, "A job is named twice");
        let text = client.generic(command, json!({"devices": []}));
        assert_eq!(text, "No job is named");
        client.ok(command, json!({"devices": ["a", "b"]}));
        for _ in 0..2 {
            let ended = client.wait_event("BLOCK_JOB_COMPLETED");
            assert_eq!(ended["data"]["error"], Value::Null);
        }
    });
}

#[test]
fn drive_mirror_makes_its_target() {
    run(|world| {
        let mut client = world.client();
        let source = add_disk(world, &mut client, "src", 1, 7);
        let target = world.path("copy");
        let arguments = json!({
            "job-id": "j", "device": "src", "target": target, "sync": "full", "format": "raw",
        });
        client.ok("drive-mirror", arguments);
        client.wait_event("BLOCK_JOB_READY");
        client.ok("block-job-cancel", json!({"device": "j"}));
        assert!(story(&mut client, "j").contains(&"BLOCK_JOB_COMPLETED".to_owned()));
        assert_eq!(
            std::fs::read(source).unwrap(),
            std::fs::read(target).unwrap()
        );
    });
}

#[test]
fn mirrors_that_make_no_sense_are_refused_at_once() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "src", 2, 1);
        add_disk(world, &mut client, "dst", 2, 1);
        add_disk(world, &mut client, "small", 1, 1);
        let job = |source: &str, target: &str| mirror("j", source, target);
        let with = |name: &str, value: Value| {
            let mut arguments = job("src", "dst");
            arguments[name] = value;
            arguments
        };
        let cases = [
            (
                job("none", "dst"),
                "Cannot find device='none' nor node-name='none'",
            ),
            (
                job("src", "none"),
                "Cannot find device='none' nor node-name='none'",
            ),
            (job("src", "src"), "Can't mirror node into itself"),
            (job("src", "small"), "different sizes"),
            (with("job-id", json!("0")), "Invalid job ID '0'"),
            (
                with("speed", json!(-1)),
                "Parameter 'speed' expects a non-negative value",
            ),
            (
                with("sync", json!("half")),
                "Parameter 'sync' does not accept value 'half'",
            ),
            (with("wibble", json!(1)), "Parameter 'wibble' is unexpected"),
            (
                with("granularity", json!("x")),
                "Parameter 'granularity' expects uint64",
            ),
        ];
        for (arguments, expected) in cases {
            let desc = client.generic("blockdev-mirror", arguments.clone());
            assert!(desc.contains(expected), "{arguments}\n gives: {desc}");
        }
        let same_file = json!({
            "job-id": "j", "device": "src", "target": world.path("src"), "sync": "full",
        });
        client.generic("drive-mirror", same_file);
        assert_eq!(client.ok("query-jobs", json!({})), json!([]));
        let intact = std::fs::read(world.path("src")).unwrap();
        assert!(intact.len() == 2 * MIB && intact.iter().all(|byte| *byte == 1));
    });
}

#[test]
fn job_verbs_and_their_errors() {
    run(|world| {
        let mut client = world.client();
        let unknown = client.fails("block-job-cancel", json!({"device": "j"}));
        let expected = (
            "DeviceNotActive".to_owned(),
            "Block job 'j' not found".to_owned(),
        );
        assert_eq!(unknown, expected);
        assert_eq!(
            client.generic("job-cancel", json!({"id": "j"})),
            "Job not found"
        );

        add_disk(world, &mut client, "src", 4, 1);
        add_disk(world, &mut client, "dst", 4, 0);
        let mut slow = mirror("j", "src", "dst");
        slow["speed"] = json!(1);
        slow["auto-dismiss"] = json!(false);
        client.ok("blockdev-mirror", slow.clone());
        let in_use = client.generic("blockdev-mirror", slow);
        assert!(
            in_use.contains("busy") || in_use.contains("in use"),
            "{in_use}"
        );
        let early = client.generic("block-job-complete", json!({"device": "j"}));
        assert!(
            early.contains("cannot accept command verb 'complete'"),
            "{early}"
        );
        client.ok("block-job-pause", json!({"device": "j"}));
        let twice = client.generic("job-pause", json!({"id": "j"}));
        assert_eq!(twice, "Job is already paused");
        let paused = client.generic("block-job-cancel", json!({"device": "j"}));
        assert_eq!(paused, "The block job for device 'j' is currently paused");
        client.ok("job-resume", json!({"id": "j"}));
        let twice = client.generic("block-job-resume", json!({"device": "j"}));
        assert_eq!(twice, "Can't resume a job that was not paused");
        let negative = json!({"device": "j", "speed": -1});
        let negative = client.generic("block-job-set-speed", negative);
        assert_eq!(negative, "Parameter 'speed' expects a non-negative value");
        client.ok("block-job-set-speed", json!({"device": "j", "speed": 0}));
        client.wait_event("BLOCK_JOB_READY");
        client.ok("job-cancel", json!({"id": "j"}));
        client.wait_event("BLOCK_JOB_CANCELLED");
        while client.event()["data"]["status"] != "concluded" {}
        client.ok("job-dismiss", json!({"id": "j"}));
        assert_eq!(
            client.generic("job-dismiss", json!({"id": "j"})),
            "Job not found"
        );
    });
}

#[test]
fn a_job_survives_the_client_that_started_it() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "src", 4, 1);
        add_disk(world, &mut client, "dst", 4, 0);
        let mut slow = mirror("j", "src", "dst");
        slow["speed"] = json!(1);
        client.ok("blockdev-mirror", slow);
        // In the middle of a command, for good measure.
        client.send(b"{'execute':'query-");
        drop(client);
        let mut client = world.client();
        assert_eq!(client.ok("query-jobs", json!({}))[0]["id"], "j");
        client.ok("block-job-set-speed", json!({"device": "j", "speed": 0}));
        client.wait_event("BLOCK_JOB_READY");
        client.ok("block-job-complete", json!({"device": "j"}));
        client.wait_event("BLOCK_JOB_COMPLETED");
    });
}

#[test]
fn breakpoints_hold_the_pivot_and_let_it_go() {
    run(|world| {
        let mut client = world.client();
        let mut other = world.client();
        add_disk(world, &mut client, "src", 1, 9);
        let path = world.image("dst", MIB, 0);
        let file = json!({"driver": "file", "filename": path});
        let raw = json!({"driver": "raw", "file": file});
        let debug = json!({"driver": "blkdebug", "node-name": "dbg", "image": raw});
        client.ok("blockdev-add", debug);
        let at = |tag: &str| json!({"node-name": "dbg", "tag": tag});
        let refused = client.generic("x-debug-resume", json!({"node-name": "src", "tag": "t"}));
        assert!(refused.contains("not blkdebug"), "{refused}");
        client.generic("x-debug-resume", at("t"));
        let mut breakpoint = at("t");
        breakpoint["event"] = json!("pivot_clean");
        client.ok("x-debug-break", breakpoint);
        client.ok("blockdev-mirror", mirror("j", "src", "dbg"));
        client.wait_event("BLOCK_JOB_READY");
        client.ok("block-job-complete", json!({"device": "j"}));
        client.ok("x-debug-wait-break", at("t"));
        // The pivot stands still; other clients are served all the same.
        assert_eq!(other.ok("query-jobs", json!({}))[0]["id"], "j");
        other.ok("x-debug-resume", at("t"));
        client.wait_event("BLOCK_JOB_COMPLETED");
    });
}
