//! Monitors of other forms, and the queries that programs begin with.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_aio::Clock;

use super::harness::{PATIENCE, World, run, run_with_clock};
use crate::control::Cause;

/// What comes until `end` has come.
fn read_until(stream: &mut UnixStream, end: &str) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with(end) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{text}");
        text.push(char::from(byte[0]));
    }
    text
}

fn connect(world: &World, name: &str) -> UnixStream {
    UnixStream::connect(world.path(name)).unwrap()
}

#[test]
fn pretty_messages_take_several_lines() {
    run(|world| {
        let mut stream = connect(world, "pretty");
        let greeting = read_until(&mut stream, "\r\n}\r\n");
        assert!(
            greeting.starts_with("{\r\n    \"QMP\": {\r\n        "),
            "{greeting}"
        );
        stream
            .write_all(b"{'execute': 'qmp_capabilities'}")
            .unwrap();
        assert_eq!(
            read_until(&mut stream, "\r\n}\r\n"),
            "{\r\n    \"return\": {\r\n    }\r\n}\r\n"
        );
    });
}

#[test]
fn lines_are_answered_by_text_and_a_prompt() {
    run(|world| {
        let mut stream = connect(world, "lines");
        let greeting = read_until(&mut stream, "(qemu) ");
        assert_eq!(
            greeting,
            "QEMU 10.0.0 monitor - type 'help' for more information\r\n(qemu) "
        );
        stream.write_all(b"info sta").unwrap();
        stream.write_all(b"tus\r\nnonsense\n\n").unwrap();
        assert_eq!(
            read_until(&mut stream, "(qemu) "),
            "VM status: running\r\n(qemu) "
        );
        assert_eq!(
            read_until(&mut stream, "(qemu) "),
            "unknown command: 'nonsense'\r\n(qemu) "
        );
        assert_eq!(read_until(&mut stream, "(qemu) "), "(qemu) ");
        stream.write_all(b"stop\ninfo status\n").unwrap();
        assert_eq!(read_until(&mut stream, "(qemu) "), "(qemu) ");
        assert!(read_until(&mut stream, "(qemu) ").contains("paused"));
        stream.write_all(b"help\nquit\n").unwrap();
        assert!(read_until(&mut stream, "(qemu) ").contains("qemu-io"));
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "no prompt after the end");
        assert_eq!(world.quit_cause(), Some(Cause::HostQmpQuit));
    });
}

#[test]
fn a_client_that_is_a_monitor_itself_is_let_go() {
    run(|world| {
        let mut stream = connect(world, "qmp");
        let greeting = read_until(&mut stream, "\r\n");
        stream.write_all(greeting.as_bytes()).unwrap();
        // Each would answer the other's answers for ever.
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        let expected = "QMP input member 'QMP' is unexpected";
        let error: Value = serde_json::from_str(&rest).unwrap();
        assert_eq!(error["error"]["desc"], expected);
        assert_eq!(
            world.client().ok("query-status", json!({}))["running"],
            true
        );
    });
}

#[test]
fn machines_types_and_devices_are_told_of() {
    run(|world| {
        let mut client = world.client();
        let machines = client.ok("query-machines", json!({}));
        let names: Vec<_> = machines
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["name"])
            .collect();
        assert_eq!(names, ["pc-i440fx-10.0", "none"]);
        assert_eq!(machines[0]["alias"], "pc");
        assert_eq!(machines[0]["is-default"], true);
        let types = |client: &mut super::harness::Client, arguments: Value| -> BTreeSet<String> {
            let all = client.ok("qom-list-types", arguments);
            let names = all.as_array().unwrap().iter();
            names
                .map(|one| one["name"].as_str().unwrap().to_owned())
                .collect()
        };
        let devices = types(&mut client, json!({"implements": "pci-device"}));
        for name in ["virtio-blk-pci", "piix3-ide"] {
            assert!(devices.contains(name), "{name}");
        }
        assert!(!devices.contains("ide-hd") && !devices.contains("virtio-pci"));
        let all = types(
            &mut client,
            json!({"implements": "device", "abstract": true}),
        );
        for name in ["ide-hd", "ide-cd", "virtio-pci", "device"] {
            assert!(all.contains(name), "{name}");
        }
        let machines = types(&mut client, json!({"implements": "machine"}));
        let expected = ["none-machine", "pc-i440fx-10.0-machine"];
        assert_eq!(
            machines.iter().map(String::as_str).collect::<Vec<_>>(),
            expected
        );
        assert!(types(&mut client, json!({"implements": "teapot"})).is_empty());

        let properties = client.ok("device-list-properties", json!({"typename": "ide-hd"}));
        let serial = json!({"name": "serial", "type": "str"});
        assert!(
            properties.as_array().unwrap().contains(&serial),
            "{properties}"
        );
        let (class, _) = client.fails("device-list-properties", json!({"typename": "teapot"}));
        assert_eq!(class, "DeviceNotFound");
        let said = client.generic("device-list-properties", json!({"typename": "ide-device"}));
        assert_eq!(
            said,
            "Parameter 'typename' expects a non-abstract device type"
        );
    });
}

#[test]
fn the_tree_of_objects_has_what_was_made() {
    run(|world| {
        let mut client = world.client();
        client.ok("object-add", json!({"qom-type": "iothread", "id": "io0"}));
        client.ok(
            "object-add",
            json!({"qom-type": "throttle-group", "id": "tg0"}),
        );
        let objects = client.ok("qom-list", json!({"path": "/objects"}));
        let expected = json!([
            {"name": "type", "type": "string"},
            {"name": "io0", "type": "child<iothread>"},
            {"name": "tg0", "type": "child<throttle-group>"},
        ]);
        assert_eq!(objects, expected);
        let root = client.ok("qom-list", json!({"path": "/"}));
        assert!(
            root.to_string().contains("child<pc-i440fx-10.0-machine>"),
            "{root}"
        );
        let get = json!({"path": "/machine", "property": "type"});
        assert_eq!(client.ok("qom-get", get), "pc-i440fx-10.0-machine");
        let (class, said) = client.fails("qom-list", json!({"path": "/nowhere"}));
        assert_eq!(
            (class.as_str(), said.as_str()),
            ("DeviceNotFound", "Device '/nowhere' not found")
        );
    });
}

/// Whoever walks the tree may ask each object for each property that it is said to have.
#[test]
fn whatever_the_tree_lists_can_be_got() {
    run(|world| {
        let mut client = world.client();
        client.ok("object-add", json!({"qom-type": "iothread", "id": "io0"}));
        client.ok(
            "object-add",
            json!({"qom-type": "throttle-group", "id": "tg0"}),
        );
        let mut paths = vec!["/".to_owned()];
        let mut got = 0;
        while let Some(path) = paths.pop() {
            let listed = client.ok("qom-list", json!({"path": path}));
            for property in listed.as_array().unwrap() {
                let name = property["name"].as_str().unwrap();
                let kind = property["type"].as_str().unwrap();
                if kind.starts_with("child<") {
                    paths.push(format!("{}/{name}", path.trim_end_matches('/')));
                    continue;
                }
                let value = client.ok("qom-get", json!({"path": path, "property": name}));
                assert!(!value.is_null(), "{path} {name}");
                got += 1;
            }
        }
        assert!(got > 10, "{got}");
        let get = json!({"path": "/objects/tg0", "property": "type"});
        assert_eq!(client.ok("qom-get", get), "throttle-group");
        let get = json!({"path": "/machine", "property": "accel"});
        assert_eq!(client.ok("qom-get", get), "qtest");
    });
}

#[test]
fn cpus_and_character_devices_are_told_of() {
    run(|world| {
        let mut client = world.client();
        let cpus = client.ok("query-cpus-fast", json!({}));
        assert_eq!(cpus[1]["cpu-index"], 1);
        assert_eq!(cpus[1]["thread-id"], 11);
        let uuid = client.ok("query-uuid", json!({}));
        assert_eq!(uuid["UUID"], "00000000-0000-0000-0000-000000000000");
        let chardevs = client.ok("query-chardev", json!({}));
        let path = world.path("qmp");
        assert_eq!(
            chardevs[0],
            json!({"label": "qmp", "filename": format!("unix:{path},server=on"), "frontend-open": true})
        );
        let filename = chardevs[1]["filename"].as_str().unwrap();
        assert!(filename.starts_with("disconnected:unix:"), "{filename}");
    });
}

/// More than there are places for.
const MANY: usize = 70;

fn add_debug(client: &mut super::harness::Client, name: &str) {
    let image = json!({"driver": "null-co", "node-name": format!("{name}-image"), "size": 1 << 20});
    let node = json!({"driver": "blkdebug", "node-name": name, "image": image});
    client.ok("blockdev-add", node);
}

/// The clock stands still: nothing but the client's end ends the query.
#[test]
fn clients_that_hang_up_leave_room_for_others() {
    run_with_clock(Clock::manual(), |world| {
        let mut operator = world.client();
        add_debug(&mut operator, "look");
        let hold = json!({"node-name": "look", "event": "actual_size", "tag": "held"});
        operator.ok("x-debug-break", hold);
        for _ in 0..MANY {
            let mut client = world.client();
            client.send(b"{'execute': 'query-named-block-nodes'}");
        }
        // A person's monitor, too.
        for _ in 0..MANY {
            let mut stream = connect(world, "lines");
            read_until(&mut stream, "(qemu) ");
            stream.write_all(b"info block -n\n").unwrap();
        }
        world.client().ok("query-status", json!({}));
    });
}

#[test]
fn what_a_client_has_begun_ends_without_it() {
    run(|world| {
        let mut operator = world.client();
        for index in 0..MANY {
            let name = format!("n{index}");
            add_debug(&mut operator, &name);
            for event in ["write_aio", "pwritev_done"] {
                let hold = json!({"node-name": name, "event": event, "tag": event});
                operator.ok("x-debug-break", hold);
            }
            let mut client = world.client();
            let write = json!({"command-line": format!("qemu-io {name} \"write 0 4096\"")});
            let write = json!({"execute": "human-monitor-command", "arguments": write});
            client.send(write.to_string().as_bytes());
            let tag = json!({"node-name": name, "tag": "write_aio"});
            operator.ok("x-debug-wait-break", tag);
        }
        for index in 0..MANY {
            let at = |tag| json!({"node-name": format!("n{index}"), "tag": tag});
            operator.ok("x-debug-resume", at("write_aio"));
            operator.ok("x-debug-wait-break", at("pwritev_done"));
            operator.ok("x-debug-resume", at("pwritev_done"));
        }
    });
}

#[test]
fn a_query_answers_although_a_file_system_hangs() {
    run_with_clock(Clock::manual(), |world| {
        let mut operator = world.client();
        add_debug(&mut operator, "n");
        let hold = json!({"node-name": "n", "event": "actual_size", "tag": "held"});
        operator.ok("x-debug-break", hold);
        let mut client = world.client();
        client.send(b"{'execute': 'query-named-block-nodes'}");
        let held = json!({"node-name": "n", "tag": "held"});
        operator.ok("x-debug-wait-break", held.clone());
        world.advance(Duration::from_secs(1));
        let size = |reply: &Value, name: &str| {
            let nodes = reply.as_array().unwrap();
            let node = nodes.iter().find(|node| node["node-name"] == name);
            node.unwrap()["image"].get("actual-size").cloned()
        };
        let reply = &client.reply()["return"];
        assert_eq!(size(reply, "n"), None);
        assert_eq!(size(reply, "n-image"), Some(json!(0)));
        // It is known to hang, and the clock stands still.
        let reply = client.ok("query-named-block-nodes", json!({}));
        assert_eq!(size(&reply, "n"), None);
        operator.ok("x-debug-resume", held);
        let since = Instant::now();
        while size(&client.ok("query-named-block-nodes", json!({})), "n").is_none() {
            assert!(since.elapsed() < PATIENCE, "the size is not told again");
        }
    });
}
