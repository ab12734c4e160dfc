//! Nodes of the rarer drivers, and filters that a job has put in: added, used by hand, shown and deleted.

use std::process::Command;

use serde_json::{Value, json};

use super::block::add_disk;
use super::harness::{Client, World, run};
use super::human::human;

const MIB: usize = 1 << 20;

/// A request by hand that must succeed without a word.
fn quietly(client: &mut Client, device: &str, command: &str) {
    let said = human(client, &format!("qemu-io {device} \"{command}\""));
    assert_eq!(said, "", "{command}");
}

fn file(world: &World, name: &str, byte: u8) -> Value {
    json!({"driver": "file", "filename": world.image(name, MIB, byte)})
}

/// What `query-named-block-nodes` tells of a node.
fn shown(client: &mut Client, name: &str) -> Value {
    let nodes = client.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().unwrap();
    let found = nodes.iter().find(|node| node["node-name"] == name);
    found
        .unwrap_or_else(|| panic!("no {name} in {nodes:?}"))
        .clone()
}

fn add_backend(world: &World, node: &str) {
    let node = world.graph.node(node).unwrap();
    world.graph.add_backend("disk", &node).unwrap();
}

#[test]
fn copy_before_write_keeps_what_was_there() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "src", 1, 1);
        let target = file(world, "target", 0);
        client.ok(
            "blockdev-add",
            json!({"driver": "raw", "node-name": "target", "file": target}),
        );
        let cbw = json!({"driver": "copy-before-write", "node-name": "cbw", "file": "src",
                         "target": "target"});
        client.ok("blockdev-add", cbw.clone());
        assert_eq!(shown(&mut client, "cbw")["drv"], "copy-before-write");
        let busy = client.generic("blockdev-del", json!({"node-name": "src"}));
        assert_eq!(busy, "Block device src is in use");
        quietly(&mut client, "cbw", "write -q -P 9 64k 64k");
        quietly(&mut client, "cbw", "read -q -P 9 64k 64k");
        quietly(&mut client, "target", "read -q -P 1 64k 64k");
        quietly(&mut client, "target", "read -q -P 0 128k 64k");
        let clash = client.generic("blockdev-add", cbw);
        assert!(clash.contains("cbw"), "{clash}");
        for name in ["cbw", "src", "target"] {
            client.ok("blockdev-del", json!({"node-name": name}));
        }
        let source = std::fs::read(world.path("src")).unwrap();
        assert!(source[65536..131_072].iter().all(|byte| *byte == 9));
    });
}

#[test]
fn an_image_is_shared_by_force_for_reading_only() {
    run(|world| {
        let mut client = world.client();
        let writer = file(world, "d", 1);
        client.ok(
            "blockdev-add",
            json!({"driver": "raw", "node-name": "writer", "file": writer}),
        );
        add_backend(world, "writer");
        let path = json!({"driver": "file", "filename": world.path("d")});
        let reader = |more: Value| {
            let mut options = json!({"driver": "raw", "node-name": "reader", "read-only": true,
                                     "file": path});
            let more = more.as_object().unwrap().clone();
            options.as_object_mut().unwrap().extend(more);
            options
        };
        let refused = client.generic(
            "blockdev-add",
            reader(json!({"read-only": false, "force-share": true})),
        );
        assert_eq!(
            refused,
            "force-share=on can only be used with read-only images"
        );
        let inactive = client.generic("blockdev-add", reader(json!({"active": false})));
        assert_eq!(inactive, "Parameter 'active' is unexpected");
        // Each disk is in the other's way, unless one says that it does not mind.
        client.ok("blockdev-add", reader(json!({})));
        let node = world.graph.node("reader").unwrap();
        let error = world.graph.add_backend("other", &node).unwrap_err();
        assert!(error.to_string().contains("lock"), "{error}");
        drop(node);
        let option = client.generic(
            "blockdev-reopen",
            json!({"options": [reader(json!({"force-share": true}))]}),
        );
        assert_eq!(option, "Cannot change the option 'force-share'");
        client.ok("blockdev-del", json!({"node-name": "reader"}));
        client.ok("blockdev-add", reader(json!({"force-share": true})));
        let node = world.graph.node("reader").unwrap();
        world.graph.add_backend("other", &node).unwrap();
        quietly(&mut client, "disk", "write -q -P 9 64k 64k");
        quietly(&mut client, "other", "read -q -P 9 64k 64k");
    });
}

#[test]
fn copy_on_read_passes_on_what_needs_no_copy() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        let cor = json!({"driver": "copy-on-read", "node-name": "cor", "file": "d"});
        client.ok("blockdev-add", cor);
        assert_eq!(shown(&mut client, "cor")["drv"], "copy-on-read");
        add_backend(world, "cor");
        let disks = client.ok("query-block", json!({}));
        assert_eq!(disks[0]["inserted"]["node-name"], "cor");
        quietly(&mut client, "disk", "read -q -P 1 0 64k");
        quietly(&mut client, "disk", "write -q -P 2 0 64k");
        quietly(&mut client, "disk", "read -q -P 2 0 64k");
        let stats = client.ok("query-blockstats", json!({}));
        assert_eq!(stats[0]["node-name"], "cor");
        // What a filter filters, and what holds a format's bytes.
        assert_eq!(stats[0]["backing"]["node-name"], "d");
        let below = &stats[0]["backing"];
        assert!(
            below["parent"]["node-name"]
                .as_str()
                .unwrap()
                .starts_with("#block")
        );
        assert!(below.get("backing").is_none());
        assert_eq!(stats[0]["parent"]["node-name"], "d");
        // Of a node alone, no chain of images is told.
        let nodes = client.ok("query-blockstats", json!({"query-nodes": true}));
        let nodes = nodes.as_array().unwrap();
        let cor = nodes
            .iter()
            .find(|node| node["node-name"] == "cor")
            .unwrap();
        assert_eq!(cor["parent"]["node-name"], "d");
        assert!(cor.get("backing").is_none() && cor.get("device").is_none());
    });
}

#[test]
fn a_block_device_of_the_host_is_a_disk() {
    run(|world| {
        let mut client = world.client();
        let image = world.image("image", MIB, 7);
        let options =
            |path: &str| json!({"driver": "host_device", "node-name": "dev", "filename": path});
        let refused = client.generic("blockdev-add", options(&image));
        assert_eq!(
            refused,
            format!("'host_device' driver requires '{image}' to be a block device")
        );
        let losetup = |arguments: &[&str]| Command::new("losetup").args(arguments).output();
        let device = match losetup(&["--find", "--show", &image]) {
            Ok(made) if made.status.success() => String::from_utf8(made.stdout).unwrap(),
            other => return println!("SKIPPED: no loop device can be had here: {other:?}"),
        };
        let device = device.trim();
        client.ok("blockdev-add", options(device));
        // It goes when the node does.
        losetup(&["--detach", device]).unwrap();
        let node = shown(&mut client, "dev");
        assert_eq!(
            (&node["drv"], &node["file"]),
            (&json!("host_device"), &json!(device))
        );
        assert_eq!(node["image"]["virtual-size"], MIB);
        quietly(&mut client, "dev", "read -q -P 7 0 64k");
        quietly(&mut client, "dev", "write -q -P 8 512k 4k");
        quietly(&mut client, "dev", "flush");
        let refused = client.generic("block_resize", json!({"node-name": "dev", "size": 2 * MIB}));
        assert_eq!(refused, "Cannot resize device files");
        client.ok("blockdev-del", json!({"node-name": "dev"}));
        assert_eq!(std::fs::read(&image).unwrap()[512 * 1024], 8);
    });
}

/// Who has given no name to a mirror's filter need not know of it.
#[test]
fn a_filter_without_a_name_is_passed_over() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "src", 1, 1);
        add_backend(world, "src");
        let before = client.ok("query-block", json!({}));
        for (name, visible) in [(None, "src"), (Some("top"), "top")] {
            let target = format!("dst-{visible}");
            add_disk(world, &mut client, &target, 1, 0);
            let mut mirror =
                json!({"job-id": "j", "device": "disk", "target": target, "sync": "full"});
            if let Some(name) = name {
                mirror["filter-node-name"] = json!(name);
            }
            client.ok("blockdev-mirror", mirror);
            client.wait_event("BLOCK_JOB_READY");
            let disks = client.ok("query-block", json!({}));
            assert_eq!(disks[0]["inserted"]["node-name"], visible);
            if name.is_none() {
                assert_eq!(disks, before, "a guest's disk is what it was");
            }
            let stats = client.ok("query-blockstats", json!({}));
            assert_eq!(stats[0]["node-name"], visible);
            // All nodes are all nodes.
            let nodes = client.ok("query-named-block-nodes", json!({"flat": true}));
            let drivers = nodes.as_array().unwrap().iter().map(|node| &node["drv"]);
            assert_eq!(drivers.filter(|driver| **driver == "mirror_top").count(), 1);
            client.ok("block-job-cancel", json!({"device": "j", "force": true}));
            client.wait_event("BLOCK_JOB_CANCELLED");
        }
        assert_eq!(client.ok("query-block", json!({})), before);
    });
}
