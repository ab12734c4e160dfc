//! Limits of disks through QMP, and what is told of them and of what disks and nodes have counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_aio::Clock;
use sluice_block::Backend;
use sluice_block::backend::Account;

use super::block::add_disk;
use super::harness::{Client, World, run, run_with_clock};

/// A disk of 1 MiB named `name` over a node of the name with `-node`.
fn disk(world: &World, client: &mut Client, name: &str) -> Arc<Backend> {
    let node = format!("{name}-node");
    add_disk(world, client, &node, 1, 0);
    let node = world.graph.node(&node).unwrap();
    world.graph.add_backend(name, &node).unwrap()
}

/// The six rates that must be given, with these in place of zeroes.
fn rates(of: &[(&str, Value)], given: Value) -> Value {
    let mut arguments = json!({"bps": 0, "bps_rd": 0, "bps_wr": 0,
                               "iops": 0, "iops_rd": 0, "iops_wr": 0});
    for (name, value) in of {
        arguments[*name] = value.clone();
    }
    let Value::Object(given) = given else {
        panic!("{given}");
    };
    arguments.as_object_mut().unwrap().extend(given);
    arguments
}

/// The limits of the first disk, as `query-block` shows them.
fn shown(client: &mut Client) -> Value {
    let mut disks = client.ok("query-block", json!({}));
    let Value::Object(inserted) = disks[0]["inserted"].take() else {
        panic!("{disks}");
    };
    let is_limit = |name: &str| name.contains("ps") || name == "group";
    inserted
        .into_iter()
        .filter(|(name, _)| is_limit(name))
        .collect()
}

#[test]
fn a_disks_limits_are_set_shown_and_taken_away() {
    run(|world| {
        let mut client = world.client();
        disk(world, &mut client, "d").set_device("/machine/d");
        let none = rates(&[], json!({}));
        assert_eq!(shown(&mut client), none);
        let set = "block_set_io_throttle";
        let some = [("bps", json!(1000)), ("iops_wr", json!(20))];
        client.ok(set, rates(&some, json!({"device": "d"})));
        assert_eq!(shown(&mut client), rates(&some, json!({"group": "d"})));
        // Nodes have none of their own.
        let nodes = client.ok("query-named-block-nodes", json!({}));
        for node in nodes.as_array().unwrap() {
            assert_eq!((&node["bps"], &node["group"]), (&json!(0), &Value::Null));
        }
        // By the device's name, with everything.
        let rest = json!({"bps_rd_max": 300, "bps_rd_max_length": 3, "bps_wr_max": 400,
                          "iops_max": 80, "iops_max_length": 2, "iops_size": 4096, "group": "g"});
        let all = [
            ("bps_rd", json!(100)),
            ("bps_wr", json!(200)),
            ("iops", json!(40)),
        ];
        let mut arguments = rates(&all, rest.clone());
        arguments["id"] = json!("/machine/d");
        client.ok(set, arguments);
        let mut expected = rates(&all, rest);
        expected["bps_wr_max_length"] = json!(1);
        assert_eq!(shown(&mut client), expected);
        client.ok(set, rates(&[], json!({"device": "d"})));
        assert_eq!(shown(&mut client), none);
    });
}

#[test]
fn limits_that_make_no_sense_are_refused_in_qemus_words() {
    run(|world| {
        let mut client = world.client();
        disk(world, &mut client, "d");
        let given = [("bps", json!(7))];
        client.ok(
            "block_set_io_throttle",
            rates(&given, json!({"device": "d"})),
        );
        let before = shown(&mut client);
        let one = |name: &'static str, value: i64| [(name, json!(value))];
        let cases = [
            (
                rates(&one("bps", 1), json!({})),
                "Need exactly one of 'device' and 'id'",
            ),
            (
                rates(&one("bps", 1), json!({"device": "d", "id": "d"})),
                "Need exactly one of 'device' and 'id'",
            ),
            (json!({"device": "d"}), "Parameter 'bps' is missing"),
            (
                rates(&one("bps", 1), json!({"device": "d", "bps_rd": 1})),
                "bps/iops/max total values and read/write values cannot be used at the same time",
            ),
            (
                rates(&one("bps", -1), json!({"device": "d"})),
                "bps/iops/max values must be within [0, 1000000000000000]",
            ),
            (
                rates(&one("bps", 10), json!({"device": "d", "bps_max": 5})),
                "bps_max/iops_max cannot be lower than bps/iops",
            ),
            (
                rates(&[], json!({"device": "d", "iops_max": 5})),
                "bps_max/iops_max require corresponding bps/iops values",
            ),
            (
                rates(
                    &one("iops", 1),
                    json!({"device": "d", "iops_max_length": 0}),
                ),
                "the burst length cannot be 0",
            ),
            (
                rates(
                    &one("iops", 1),
                    json!({"device": "d", "iops_max_length": 2}),
                ),
                "burst length set without burst rate",
            ),
            (
                rates(&[], json!({"device": "d", "iops_size": 512})),
                "iops size requires an iops value to be set",
            ),
            (
                rates(&[], json!({"device": "d", "bps_total": 1})),
                "Parameter 'bps_total' is unexpected",
            ),
        ];
        for (arguments, expected) in cases {
            let desc = client.generic("block_set_io_throttle", arguments.clone());
            assert_eq!(desc, expected, "{arguments}");
        }
        let unknown = rates(&given, json!({"device": "none"}));
        let expected = (
            "DeviceNotFound".to_owned(),
            "Device 'none' not found".to_owned(),
        );
        assert_eq!(client.fails("block_set_io_throttle", unknown), expected);
        world.graph.add_empty_backend("empty", true).unwrap();
        let empty = rates(&given, json!({"device": "empty"}));
        assert_eq!(
            client.generic("block_set_io_throttle", empty),
            "Device has no medium"
        );
        assert_eq!(shown(&mut client), before, "nothing has changed");
    });
}

#[test]
fn groups_of_commands_and_objects_are_one_registry() {
    run(|world| {
        let mut client = world.client();
        disk(world, &mut client, "d");
        let set = "block_set_io_throttle";
        let given = [("iops", json!(9))];
        client.ok(set, rates(&given, json!({"device": "d", "group": "g"})));
        let group = json!({"qom-type": "throttle-group", "id": "g"});
        assert_eq!(
            client.generic("object-add", group.clone()),
            "A group with this name already exists"
        );
        let limits = json!({"path": "g", "property": "limits"});
        let no_object = client.fails("qom-get", limits.clone());
        assert_eq!(no_object.0, "DeviceNotFound");
        let node = json!({"driver": "throttle", "node-name": "t", "throttle-group": "g",
                          "file": {"driver": "null-co"}});
        client.ok("blockdev-add", node);
        client.ok(set, rates(&[], json!({"device": "d"})));
        client.ok("blockdev-del", json!({"node-name": "t"}));
        // Its last member has gone.
        client.ok("object-add", group);
        client.ok(set, rates(&given, json!({"device": "d", "group": "g"})));
        assert_eq!(client.ok("qom-get", limits)["iops-total"], 9);
        let in_use = "object 'g' is in use, can not be deleted";
        assert_eq!(client.generic("object-del", json!({"id": "g"})), in_use);
        client.ok(set, rates(&[], json!({"device": "d"})));
        client.ok("object-del", json!({"id": "g"}));
    });
}

#[test]
fn a_request_waits_for_the_limits_and_a_stop_does_not() {
    run_with_clock(Clock::manual(), |world| {
        let mut client = world.client();
        let disk = disk(world, &mut client, "d");
        let slow = [("bps", json!(1))];
        client.ok(
            "block_set_io_throttle",
            rates(&slow, json!({"device": "d"})),
        );
        let io = |command: &str| json!({"command-line": format!("qemu-io d \"{command}\"")});
        for _ in 0..3 {
            client.ok("human-monitor-command", io("aio_write 0 4k"));
        }
        let written = || {
            disk.stats()
                .of(Account::Write)
                .operations
                .load(Ordering::Relaxed)
        };
        let in_flight = || {
            disk.gates()
                .iter()
                .map(|gate| gate.in_flight())
                .sum::<usize>()
        };
        while (written(), in_flight()) != (1, 2) {
            std::thread::yield_now();
        }
        // Less than the first one has cost.
        world.advance(Duration::from_secs(60));
        client.ok("query-status", json!({}));
        assert_eq!(in_flight(), 2);
        // Another group: a section without a timer.
        let other = rates(&slow, json!({"device": "d", "group": "other"}));
        client.ok("block_set_io_throttle", other);
        assert_eq!(in_flight(), 0);
        assert_eq!(written(), 3);
    });
}

#[test]
fn disks_and_nodes_tell_what_they_have_counted() {
    run_with_clock(Clock::manual(), |world| {
        let mut client = world.client();
        let disk = disk(world, &mut client, "d");
        let stats = client.ok("query-blockstats", json!({}));
        assert_eq!(stats[0]["stats"]["idle_time_ns"], Value::Null);
        let write = json!({"command-line": "qemu-io d \"write 64k 4k\""});
        client.ok("human-monitor-command", write);
        disk.account_invalid(Account::Read);
        world.advance(Duration::from_millis(3));
        let stats = client.ok("query-blockstats", json!({"query-nodes": false}));
        let record = &stats[0];
        assert_eq!(record["device"], "d");
        assert_eq!(record["node-name"], "d-node");
        let end = (64 + 4) << 10;
        let expected = [
            ("wr_bytes", json!(4096)),
            ("wr_operations", json!(1)),
            ("wr_highest_offset", json!(end)),
            ("invalid_rd_operations", json!(1)),
            ("invalid_wr_operations", json!(0)),
            ("failed_wr_operations", json!(0)),
            ("idle_time_ns", json!(3_000_000)),
            ("account_invalid", json!(true)),
            ("account_failed", json!(true)),
            ("timed_stats", json!([])),
            ("wr_merged", json!(0)),
            ("zone_append_operations", json!(0)),
        ];
        for (name, value) in &expected {
            assert_eq!(record["stats"][*name], *value, "{name}");
        }
        // The file below the format; a format is no filter.
        assert_eq!(record["parent"]["stats"]["wr_highest_offset"], end);
        assert_eq!(record["backing"], Value::Null);

        let filter = json!({"driver": "blkdebug", "node-name": "filter",
                            "image": {"driver": "null-co", "node-name": "null"}});
        client.ok("blockdev-add", filter);
        let node = world.graph.node("filter").unwrap();
        world.graph.add_backend("filtered", &node).unwrap();
        let stats = client.ok("query-blockstats", json!({}));
        assert_eq!(stats[1]["parent"]["node-name"], "null");
        assert_eq!(stats[1]["backing"]["node-name"], "null");

        let nodes = client.ok("query-blockstats", json!({"query-nodes": true}));
        let nodes = nodes.as_array().unwrap();
        assert_eq!(nodes.len(), 4, "{nodes:?}");
        for node in nodes {
            assert!(node.get("device").is_none() && node.get("backing").is_none());
            assert_eq!(node["stats"]["wr_operations"], 0);
        }
        let node = nodes.iter().find(|node| node["node-name"] == "d-node");
        let node = node.unwrap();
        assert_eq!(node["stats"]["wr_highest_offset"], end);
        assert_eq!(node["parent"]["stats"]["wr_highest_offset"], end);
    });
}
