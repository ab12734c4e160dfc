//! Dirty bitmaps and transactions through QMP.

use std::sync::Arc;

use serde_json::{Value, json};

use super::block::add_disk;
use super::harness::{Client, World, run};

/// Writes 512 bytes at `offset` of the disk `disk`, as a guest would.
pub(super) fn guest_write(world: &World, disk: &str, offset: u64) {
    let disk = world.graph.backend(disk).unwrap();
    let written = Arc::new(parking_lot::Mutex::new(false));
    let done = Arc::clone(&written);
    world.main.spawn(move || async move {
        let token = disk.enter().await.unwrap();
        let buffer = sluice_aio::IoBuffer::alloc(512);
        disk.write(&token, offset, buffer).await.unwrap();
        *done.lock() = true;
    });
    while !*written.lock() {
        std::thread::yield_now();
    }
}

fn bitmaps(client: &mut Client) -> Value {
    let disks = client.ok("query-block", json!({}));
    disks[0]["inserted"]["dirty-bitmaps"].clone()
}

fn bitmap(name: &str) -> Value {
    json!({"node": "disk", "name": name})
}

#[test]
fn bitmaps_are_made_changed_and_shown() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        let node = world.graph.node("d").unwrap();
        world.graph.add_backend("disk", &node).unwrap();
        assert_eq!(bitmaps(&mut client), Value::Null);
        client.ok("block-dirty-bitmap-add", bitmap("one"));
        let two = json!({"node": "d", "name": "two", "granularity": 512, "disabled": true});
        client.ok("block-dirty-bitmap-add", two);
        guest_write(world, "disk", 0);
        let one = |count: u64| {
            json!({
                "name": "one", "count": count, "granularity": 65536, "recording": true,
                "busy": false, "persistent": false
            })
        };
        let two = |count: u64, recording: bool| {
            json!({
                "name": "two", "count": count, "granularity": 512, "recording": recording,
                "busy": false, "persistent": false
            })
        };
        assert_eq!(bitmaps(&mut client), json!([one(65536), two(0, false)]));
        client.ok("block-dirty-bitmap-enable", bitmap("two"));
        guest_write(world, "disk", 512 << 10);
        client.ok("block-dirty-bitmap-disable", bitmap("two"));
        let nodes = client.ok("query-named-block-nodes", json!({"flat": true}));
        let mut nodes = nodes.as_array().unwrap().iter();
        let node = nodes.find(|node| node["node-name"] == "d").unwrap();
        let both = json!([one(131_072), two(512, false)]);
        assert_eq!(node["dirty-bitmaps"], both);
        client.ok("block-dirty-bitmap-clear", bitmap("one"));
        let merge = json!({"node": "d", "target": "one", "bitmaps": ["two"]});
        client.ok("block-dirty-bitmap-merge", merge);
        assert_eq!(bitmaps(&mut client)[0], one(65536));
        let external = json!({"node": "disk", "target": "two", "bitmaps": [bitmap("one")]});
        client.ok("block-dirty-bitmap-merge", external);
        assert_eq!(bitmaps(&mut client)[1], two(65536, false));
        let hash = client.ok("x-debug-block-dirty-bitmap-sha256", bitmap("one"));
        // The ninth bit of one word.
        let expected = "2e22fd435060cd5d3cf5e3ef39f79e198b35bd2c4af31974db36601b3a2f4c91";
        assert_eq!(hash, json!({"sha256": expected}));
        for name in ["one", "two"] {
            client.ok("block-dirty-bitmap-remove", bitmap(name));
        }
        assert_eq!(bitmaps(&mut client), Value::Null);
    });
}

#[test]
fn bitmap_errors_are_generic_and_qemus() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "disk", 1, 1);
        client.ok("block-dirty-bitmap-add", bitmap("b"));
        let mut add = |more: Value| {
            let mut arguments = bitmap("new");
            let more = more.as_object().unwrap().clone();
            arguments.as_object_mut().unwrap().extend(more);
            client.generic("block-dirty-bitmap-add", arguments)
        };
        assert_eq!(add(json!({"name": "b"})), "Bitmap already exists: b");
        assert_eq!(
            add(json!({"granularity": 3})),
            "Granularity must be power of 2 and at least 512"
        );
        assert_eq!(
            add(json!({"persistent": true})),
            "Can't store persistent bitmaps to disk: Operation not supported"
        );
        assert_eq!(add(json!({"x": 1})), "Parameter 'x' is unexpected");
        assert_eq!(
            add(json!({"granularity": 1_u64 << 32})),
            "Parameter 'granularity' expects uint32_t"
        );
        for verb in ["remove", "clear", "enable", "disable"] {
            let command = format!("block-dirty-bitmap-{verb}");
            let error = client.generic(&command, bitmap("x"));
            assert_eq!(error, "Dirty bitmap 'x' not found");
        }
        let mut merge = |source: Value| {
            let merge = json!({"node": "disk", "target": "b", "bitmaps": ["b", source]});
            client.generic("block-dirty-bitmap-merge", merge)
        };
        assert_eq!(
            merge(json!(1)),
            "Invalid parameter type for 'bitmaps[1]', expected: BlockDirtyBitmapOrStr"
        );
        assert_eq!(
            merge(json!({"node": "disk"})),
            "Parameter 'bitmaps[1].name' is missing"
        );
        assert_eq!(
            merge(json!({"node": "disk", "name": "b", "x": 1})),
            "Parameter 'bitmaps[1].x' is unexpected"
        );
        let unknown = json!({"node": "x", "name": "b"});
        let error = client.generic("x-debug-block-dirty-bitmap-sha256", unknown);
        assert_eq!(error, "Node 'x' not found");
    });
}

#[test]
fn a_transaction_happens_as_a_whole_or_not_at_all() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "disk", 1, 1);
        let add = |name: &str| json!({"type": "block-dirty-bitmap-add", "data": bitmap(name)});
        let abort = json!({"type": "abort", "data": {}});
        let actions = json!({"actions": [add("a"), add("b"), abort]});
        let error = client.generic("transaction", actions);
        assert_eq!(error, "Transaction aborted using Abort action");
        let names = |client: &mut Client| {
            let nodes = client.ok("query-named-block-nodes", json!({}));
            let mut nodes = nodes.as_array().unwrap().iter();
            let node = nodes.find(|node| node["node-name"] == "disk").unwrap();
            let bitmaps = node["dirty-bitmaps"].as_array();
            bitmaps.map(|bitmaps| {
                let names = bitmaps.iter().map(|bitmap| bitmap["name"].clone());
                names.collect::<Vec<_>>()
            })
        };
        assert_eq!(names(&mut client), None);
        client.ok("transaction", json!({"actions": [add("a"), add("b")]}));
        assert_eq!(names(&mut client), Some(vec![json!("a"), json!("b")]));
        client.ok("transaction", json!({"actions": []}));
    });
}

#[test]
fn transactions_that_make_no_sense_are_refused_by_name() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "disk", 1, 1);
        let mut refused = |actions: Value, properties: Value| {
            let arguments = json!({"actions": actions, "properties": properties});
            client.generic("transaction", arguments)
        };
        let unknown = json!([{"type": "drive-eject", "data": {}}]);
        assert_eq!(
            refused(unknown, json!({})),
            "Parameter 'actions[0].type' does not accept value 'drive-eject'"
        );
        let incomplete = json!([{"type": "block-dirty-bitmap-clear", "data": {"node": "disk"}}]);
        assert_eq!(
            refused(incomplete, json!({})),
            "Parameter 'actions[0].data.name' is missing"
        );
        let action = json!([{"type": "block-dirty-bitmap-add", "data": bitmap("b")}]);
        assert_eq!(
            refused(action.clone(), json!({"completion-mode": "grouped"})),
            "Action 'block-dirty-bitmap-add' does not support transaction property \
             completion-mode = grouped"
        );
        assert_eq!(
            refused(action, json!({"completion-mode": "x"})),
            "Parameter 'properties.completion-mode' does not accept value 'x'"
        );
        let missing = json!([{
            "type": "blockdev-snapshot", "data": {"node": "disk", "overlay": "none"}
        }]);
        assert_eq!(
            refused(missing, json!({})),
            "Cannot find device='none' nor node-name='none'"
        );
    });
}
