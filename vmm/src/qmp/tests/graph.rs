//! Commands that change or show the graph as a whole.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_aio::gate::Describe;
use sluice_aio::{Clock, Gate};

use super::block::add_disk;
use super::harness::{World, run, run_with_clock};

#[test]
fn the_graph_is_shown_with_permissions() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        let node = world.graph.node("d").unwrap();
        world.graph.add_backend("disk", &node).unwrap();
        let graph = client.ok("x-debug-query-block-graph", json!({}));
        let vertices = graph["nodes"].as_array().unwrap();
        let id = |kind: &str, name: &str| {
            let found = vertices
                .iter()
                .find(|vertex| vertex["type"] == kind && vertex["name"] == name);
            found.unwrap_or_else(|| panic!("{kind} {name}"))["id"].clone()
        };
        let file = node.children()[0].1.name().to_owned();
        assert_eq!(vertices.len(), 3);
        let perm = json!(["consistent-read", "write"]);
        let shared = json!(["consistent-read", "write-unchanged", "resize"]);
        let edge = |parent: Value, child: Value, name: &str| {
            json!({
                "parent": parent, "child": child, "name": name,
                "perm": perm, "shared-perm": shared
            })
        };
        let edges = graph["edges"].as_array().unwrap();
        assert_eq!(edges.len(), 2);
        for expected in [
            edge(id("block-driver", "d"), id("block-driver", &file), "file"),
            edge(id("block-backend", "disk"), id("block-driver", "d"), "root"),
        ] {
            assert!(
                edges.contains(&expected),
                "{expected} is not among {edges:?}"
            );
        }
    });
}

#[test]
fn nodes_are_reopened_all_or_none() {
    run(|world| {
        let mut client = world.client();
        let path = world.image("image", 4096, 1);
        let file = |read_only: bool| json!({"driver": "file", "node-name": "f", "filename": path, "read-only": read_only});
        client.ok("blockdev-add", file(true));
        let is_read_only = |client: &mut super::harness::Client| {
            let nodes = client.ok("query-named-block-nodes", json!({}));
            nodes[0]["ro"].as_bool().unwrap()
        };
        let unknown = json!({"driver": "null-co", "node-name": "x"});
        let options = json!({"options": [file(false), unknown]});
        let error = client.generic("blockdev-reopen", options);
        assert_eq!(error, "Failed to find node with node-name='x'");
        assert!(is_read_only(&mut client));
        client.ok("blockdev-reopen", json!({"options": [file(false)]}));
        assert!(!is_read_only(&mut client));
        let mut other = file(false);
        other["filename"] = json!("/other");
        let error = client.generic("blockdev-reopen", json!({"options": [other]}));
        assert_eq!(error, "Cannot change the option 'filename'");
        let nameless = json!({"driver": "null-co"});
        let error = client.generic("blockdev-reopen", json!({"options": [nameless]}));
        assert_eq!(error, "node-name not specified");
        client.ok("blockdev-reopen", json!({"options": []}));
    });
}

#[test]
fn disks_and_nodes_are_resized() {
    run(|world| {
        let mut client = world.client();
        let path = add_disk(world, &mut client, "d", 1, 1);
        let node = world.graph.node("d").unwrap();
        world.graph.add_backend("disk", &node).unwrap();
        client.ok("block_resize", json!({"device": "disk", "size": 2 << 20}));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 << 20);
        client.ok("block_resize", json!({"node-name": "d", "size": 1 << 19}));
        let disks = client.ok("query-block", json!({}));
        assert_eq!(disks[0]["inserted"]["image"]["virtual-size"], 1 << 19);
        let error = client.generic("block_resize", json!({"node-name": "d", "size": -1}));
        assert_eq!(error, "Parameter 'size' expects a >0 size");
        for (who, device, node) in [
            (json!({"device": "x", "size": 512}), "x", ""),
            (json!({"node-name": "y", "size": 512}), "", "y"),
            (
                json!({"device": "x", "node-name": "y", "size": 512}),
                "x",
                "y",
            ),
            (json!({"size": 512}), "", ""),
        ] {
            let error = client.generic("block_resize", who);
            let words = format!("Cannot find device='{device}' nor node-name='{node}'");
            assert_eq!(error, words);
        }
        // Not the filter is named, which stands in between.
        add_disk(world, &mut client, "copy", 1, 1);
        client.ok("block_resize", json!({"node-name": "d", "size": 1 << 20}));
        client.ok(
            "blockdev-mirror",
            json!({"job-id": "j", "device": "disk", "target": "copy", "sync": "full"}),
        );
        for (member, name) in [("device", "disk"), ("node-name", "d")] {
            let busy = client.generic("block_resize", json!({member: name, "size": 512}));
            let words =
                format!("Node '{name}' is busy: block device is in use by block job: mirror 'j'; ");
            assert!(busy.starts_with(&words), "{busy}");
        }
        client.ok("block-job-cancel", json!({"device": "j", "force": true}));
        client.wait_event("BLOCK_JOB_CANCELLED");
        while client.ok("query-jobs", json!({})) != json!([]) {}
        // The disk's name is looked for first.
        let both = json!({"device": "disk", "node-name": "y", "size": 1 << 20});
        client.ok("block_resize", both);
    });
}

#[test]
fn overlays_need_a_format_with_backing_images() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        add_disk(world, &mut client, "o", 1, 0);
        let snapshot = |node: &str, overlay: &str| json!({"node": node, "overlay": overlay});
        let error = client.generic("blockdev-snapshot", snapshot("d", "o"));
        assert_eq!(error, "The overlay does not support backing images");
        let error = client.generic("blockdev-snapshot", snapshot("x", "o"));
        assert_eq!(error, "Cannot find device='x' nor node-name='x'");
        let node = world.graph.node("o").unwrap();
        world.graph.add_backend("disk", &node).unwrap();
        let error = client.generic("blockdev-snapshot", snapshot("d", "o"));
        assert_eq!(error, "The overlay is already in use");
        // Nothing has moved.
        assert!(Arc::ptr_eq(
            &world.graph.backend("disk").unwrap().node().unwrap(),
            &node
        ));
        assert!(!world.graph.node("d").unwrap().is_read_only());
    });
}

#[test]
fn overlays_in_files_need_one_too() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        let node = world.graph.node("d").unwrap();
        world.graph.add_backend("disk", &node).unwrap();
        world.graph.add_empty_backend("cd", true).unwrap();
        let file = world.image("over", 1 << 20, 0);
        let way_out = ": no format here has a backing image yet, but 'blockdev-backup' keeps a disk as it is now \
                       and 'blockdev-mirror' moves it";
        let (new, fresh) = (world.path("new"), "New overlay node-name");
        let known = world.graph.nodes().len();
        for (given, expected) in [
            (
                json!({}),
                "Cannot find device='' nor node-name=''".to_owned(),
            ),
            (
                json!({"device": "x"}),
                "Cannot find device='x' nor node-name=''".to_owned(),
            ),
            (
                json!({"device": "d"}),
                "Cannot find device='d' nor node-name=''".to_owned(),
            ),
            (
                json!({"node-name": "disk"}),
                "Cannot find device='' nor node-name='disk'".to_owned(),
            ),
            (
                json!({"device": "cd"}),
                "Device 'cd' has no medium".to_owned(),
            ),
            (json!({"node-name": "d"}), format!("{fresh} missing")),
            (
                json!({"device": "disk", "snapshot-node-name": "d"}),
                format!("{fresh} already in use"),
            ),
            (
                json!({"device": "disk"}),
                format!("Unknown file format 'qcow2'{way_out}"),
            ),
            (
                json!({"device": "disk", "format": "raw"}),
                format!("Backing file not supported for file format 'raw'{way_out}"),
            ),
            (
                json!({"device": "disk", "mode": "existing"}),
                format!("Unknown driver 'qcow2'{way_out}"),
            ),
            (
                json!({"device": "disk", "mode": "existing", "format": "raw", "snapshot-file": file}),
                "The overlay does not support backing images".to_owned(),
            ),
        ] {
            let mut data = json!({"snapshot-file": new});
            let given = given.as_object().unwrap().clone();
            data.as_object_mut().unwrap().extend(given);
            assert_eq!(
                client.generic("blockdev-snapshot-sync", data.clone()),
                expected
            );
            // In a transaction it takes back what came before.
            let bitmap = json!({"node": "disk", "name": "b"});
            let actions = json!([
                {"type": "block-dirty-bitmap-add", "data": bitmap},
                {"type": "blockdev-snapshot-sync", "data": data}
            ]);
            let error = client.generic("transaction", json!({"actions": actions}));
            assert_eq!(error, expected);
            assert_eq!(node.dirty_bitmaps(), []);
        }
        let missing = client.generic("blockdev-snapshot-sync", json!({"device": "disk"}));
        assert_eq!(missing, "Parameter 'snapshot-file' is missing");
        // Nothing is left of any of them, and no file was made.
        assert_eq!(world.graph.nodes().len(), known);
        assert!(!std::path::Path::new(&new).exists());
        assert!(!node.is_read_only());
    });
}

#[test]
fn nodes_move_between_iothreads_unless_a_device_has_them() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        client.ok("object-add", json!({"qom-type": "iothread", "id": "io0"}));
        let set = |thread: Value, force: bool| json!({"node-name": "d", "iothread": thread, "force": force});
        let error = client.generic("x-blockdev-set-iothread", set(json!("io9"), false));
        assert_eq!(error, "Cannot find iothread io9");
        client.ok("x-blockdev-set-iothread", set(json!("io0"), false));
        // The thread is in use by the node now.
        let error = client.generic("object-del", json!({"id": "io0"}));
        assert_eq!(error, "object 'io0' is in use, can not be deleted");
        let node = world.graph.node("d").unwrap();
        let disk = world.graph.add_backend("disk", &node).unwrap();
        let error = client.generic("x-blockdev-set-iothread", set(Value::Null, false));
        assert_eq!(
            error,
            "Node d is associated with a BlockBackend and could be in use (use force=true to \
             override this check)"
        );
        let error = client.generic("x-blockdev-set-iothread", set(Value::Null, true));
        assert_eq!(
            error,
            "Cannot change iothread of active block backend 'disk' of node 'd'"
        );
        let (graph, removed) = (Arc::clone(&world.graph), Arc::new(Mutex::new(false)));
        let done = Arc::clone(&removed);
        world.main.spawn(move || async move {
            graph.remove_backend(&disk).await;
            *done.lock() = true;
        });
        while !*removed.lock() {
            std::thread::yield_now();
        }
        client.ok("x-blockdev-set-iothread", set(Value::Null, false));
        client.ok("object-del", json!({"id": "io0"}));
    });
}

#[test]
fn a_thread_stays_as_long_as_a_job_works_in_it() {
    run(|world| {
        let mut client = world.client();
        let path = world.image("src", 1 << 20, 1);
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        client.ok("blockdev-add", file);
        for (name, read_only) in [("src", false), ("beside", true)] {
            let raw =
                json!({"driver": "raw", "node-name": name, "file": "file", "read-only": read_only});
            client.ok("blockdev-add", raw);
        }
        for name in ["dst", "other"] {
            add_disk(world, &mut client, name, 1, 1);
        }
        client.ok("object-add", json!({"qom-type": "iothread", "id": "io0"}));
        client.ok(
            "x-blockdev-set-iothread",
            json!({"node-name": "src", "iothread": "io0"}),
        );
        client.ok(
            "blockdev-mirror",
            json!({"job-id": "j", "device": "src", "target": "dst", "sync": "full"}),
        );
        client.wait_event("BLOCK_JOB_READY");
        let error = client.generic("object-del", json!({"id": "io0"}));
        assert_eq!(error, "object 'io0' is in use, can not be deleted");
        // What is beside the source is put below a disk that the main loop serves, and takes it there; the job follows.
        let front = |file: &str| json!({"driver": "raw", "node-name": "front", "file": file, "read-only": true});
        client.ok("blockdev-add", front("other"));
        let node = world.graph.node("front").unwrap();
        world.graph.add_backend("disk", &node).unwrap();
        client.ok("blockdev-reopen", json!({"options": [front("beside")]}));
        client.ok("object-del", json!({"id": "io0"}));
        client.ok("block-job-cancel", json!({"device": "j", "force": true}));
        client.wait_event("BLOCK_JOB_CANCELLED");
    });
}

#[test]
fn a_mirror_goes_from_thread_to_thread() {
    run(|world| {
        let mut client = world.client();
        let path = world.image("src", 1 << 20, 1);
        let file = json!({"driver": "file", "filename": path});
        client.ok(
            "blockdev-add",
            json!({"driver": "raw", "node-name": "src", "file": file}),
        );
        add_disk(world, &mut client, "dst", 1, 1);
        for id in ["io0", "io1"] {
            client.ok("object-add", json!({"qom-type": "iothread", "id": id}));
        }
        client.ok(
            "blockdev-mirror",
            json!({"job-id": "j", "device": "src", "target": "dst", "sync": "full"}),
        );
        client.wait_event("BLOCK_JOB_READY");
        let mut move_to = |node: &str, thread: Value| {
            let to = json!({"node-name": node, "iothread": thread});
            client.ok("x-blockdev-set-iothread", to);
        };
        move_to("src", json!("io0"));
        // The job takes its other node along, and may be moved by that.
        move_to("dst", json!("io1"));
        let error = client.generic("object-del", json!({"id": "io1"}));
        assert_eq!(error, "object 'io1' is in use, can not be deleted");
        client.ok("object-del", json!({"id": "io0"}));
        let back = json!({"node-name": "src", "iothread": null});
        client.ok("x-blockdev-set-iothread", back);
        client.ok("object-del", json!({"id": "io1"}));
        client.ok("block-job-complete", json!({"device": "j"}));
        client.wait_event("BLOCK_JOB_COMPLETED");
    });
}

/// A device that is at one write.
struct Writer;

impl Describe for Writer {
    fn in_flight(&self, _gate: &Gate) -> Vec<String> {
        vec!["a write of 4096 bytes at 0".to_owned()]
    }
}

/// What `future`, which is polled in the main loop, has brought, once it has ended.
type Brought<T> = Arc<Mutex<Option<T>>>;

fn bring<T: Send + 'static, F: Future<Output = T> + 'static>(
    world: &World,
    future: impl FnOnce() -> F + Send + 'static,
) -> Brought<T> {
    let brought = Arc::new(Mutex::new(None));
    let place = Arc::clone(&brought);
    world.main.spawn(move || async move {
        let value = future().await;
        *place.lock() = Some(value);
    });
    brought
}

fn wait_until(condition: impl Fn() -> bool) {
    let patience = std::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < patience, "it never came");
        std::thread::yield_now();
    }
}

fn element_of(drains: &Value, device: &str, node: &str) -> Value {
    let mut drains = drains.as_array().unwrap().iter();
    let is_it = |element: &&Value| match device {
        "" => element["device"].is_null() && element["node-name"] == node,
        device => element["device"] == device,
    };
    drains.find(is_it).unwrap().clone()
}

#[test]
fn a_stuck_disk_says_what_it_waits_for_and_what_waits_for_it() {
    run_with_clock(Clock::manual(), |world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        let node = world.graph.node("d").unwrap();
        let file = node.children()[0].1.name().to_owned();
        let disk = world.graph.add_backend("disk", &node).unwrap();
        let device: Arc<dyn Describe> = Arc::new(Writer);
        disk.gate().add_describer(Arc::downgrade(&device));
        let enter = || {
            let disk = Arc::clone(&disk);
            bring(world, move || async move { disk.enter().await.unwrap() })
        };
        let running = enter();
        wait_until(|| running.lock().is_some());
        let graph = Arc::clone(&world.graph);
        let section = bring(world, move || async move {
            graph.drain(&node, "an operator").await
        });
        wait_until(|| disk.gate().stats().awaited_since.is_some());
        let late = enter();
        wait_until(|| disk.gate().parked() > 0);
        world.advance(Duration::from_millis(3));
        let drains = client.ok("x-query-block-drains", json!({}));
        let element = element_of(&drains, "disk", "");
        assert_eq!(element["parked"], 1);
        assert_eq!(element["in-flight"], 1);
        assert_eq!(element["requests"], json!(["a write of 4096 bytes at 0"]));
        assert_eq!(element["awaited-ns"], 3_000_000);
        assert_eq!(element["holders"][0]["held-ns"], 3_000_000);
        assert_eq!(element["longest-wait-ns"], 3_000_000);
        let element = element_of(&drains, "", "d");
        assert_eq!(element["parked"], 1);
        assert_eq!(element["drain-times"], json!([]));
        assert_eq!(element_of(&drains, "", &file)["parked"], 1);

        drop(running.lock().take());
        wait_until(|| section.lock().is_some());
        world.advance(Duration::from_millis(5));
        drop(section.lock().take());
        wait_until(|| late.lock().is_some());
        let drains = client.ok("x-query-block-drains", json!({}));
        let once = |below_us: u64| json!([{"less-than-us": below_us, "count": 1}]);
        for (device, name) in [("disk", ""), ("", "d")] {
            let element = element_of(&drains, device, name);
            assert_eq!(element["parked"], 0, "{device}{name}");
            assert_eq!(element["drained"], false);
            assert_eq!(element["sections-total"], 1);
            assert_eq!(element["longest-section-ns"], 8_000_000);
            assert_eq!(element["section-times"], once(8192));
            assert_eq!(element["longest-drain-ns"], 3_000_000);
            assert_eq!(element["drain-times"], once(4096));
        }
        let element = element_of(&drains, "disk", "");
        assert_eq!(element["in-flight"], 1);
        assert!(element["awaited-ns"].is_null());
        assert_eq!(element["parked-total"], 1);
        assert_eq!(element["wait-times"], once(8192));
        let element = element_of(&drains, "", &file);
        assert_eq!(element["sections-total"], 0);
        assert_eq!(element["drain-times"], json!([]));
        // A section that finds nothing in flight has not waited.
        drop(late.lock().take());
        let (graph, again) = (Arc::clone(&world.graph), world.graph.node("d").unwrap());
        let section = bring(
            world,
            move || async move { graph.drain(&again, "again").await },
        );
        wait_until(|| section.lock().is_some());
        drop(section.lock().take());
        let drains = client.ok("x-query-block-drains", json!({}));
        let element = element_of(&drains, "", "d");
        assert_eq!(element["sections-total"], 2);
        assert_eq!(element["drain-times"], once(4096));
    });
}

#[test]
fn drains_are_shown_for_disks_and_nodes() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        let node = world.graph.node("d").unwrap();
        world.graph.add_backend("disk", &node).unwrap();
        let held = Arc::new(Mutex::new(None));
        let begin = |held: &Arc<Mutex<_>>| {
            let (graph, node) = (Arc::clone(&world.graph), Arc::clone(&node));
            let held = Arc::clone(held);
            world.main.spawn(move || async move {
                let section = graph.drain(&node, "an operator").await;
                *held.lock() = Some(section);
            });
        };
        begin(&held);
        while held.lock().is_none() {
            std::thread::yield_now();
        }
        let drains = client.ok("x-query-block-drains", json!({}));
        let of = |drains: &Value, name: &str| {
            let drains = drains.as_array().unwrap();
            let found = drains.iter().find(|element| match name {
                "disk" => element["device"] == "disk",
                name => element["device"].is_null() && element["node-name"] == name,
            });
            found.unwrap().clone()
        };
        for name in ["disk", "d"] {
            let element = of(&drains, name);
            assert_eq!(element["drained"], true, "{name}");
            assert_eq!(element["holders"][0]["name"], "an operator");
            assert!(element["holders"][0]["held-ns"].is_u64());
            assert_eq!(element["sections-total"], 0);
        }
        let file = node.children()[0].1.name().to_owned();
        assert_eq!(of(&drains, &file)["drained"], false);
        drop(held.lock().take());
        let drains = client.ok("x-query-block-drains", json!({}));
        for name in ["disk", "d"] {
            let element = of(&drains, name);
            assert_eq!(element["drained"], false);
            assert_eq!(element["holders"], json!([]));
            assert_eq!(element["sections-total"], 1);
            assert_eq!(element["section-times"][0]["count"], 1);
        }
        assert!(of(&drains, "disk")["wait-times"].is_array());
    });
}

/// A command that does not answer: a job's target hangs, so the command's section can't begin.
#[test]
fn a_section_that_cannot_begin_is_shown_with_the_job_that_it_waits_for() {
    run_with_clock(Clock::manual(), |world| {
        let (mut client, mut other) = (world.client(), world.client());
        add_disk(world, &mut client, "d", 1, 1);
        let node = world.graph.node("d").unwrap();
        let disk = world.graph.add_backend("disk", &node).unwrap();
        let image = json!({"driver": "file", "filename": world.image("target", 1 << 20, 0)});
        let target = json!({"driver": "blkdebug", "node-name": "target", "image": image});
        client.ok("blockdev-add", target);
        let held = json!({"node-name": "target", "tag": "hang"});
        let hold = json!({"node-name": "target", "tag": "hang", "event": "write_aio"});
        client.ok("x-debug-break", hold);
        let mirror = json!({"device": "d", "target": "target", "sync": "full", "job-id": "job"});
        client.ok("blockdev-mirror", mirror);
        client.ok("x-debug-wait-break", held.clone());
        let add = json!({"type": "block-dirty-bitmap-add", "data": {"node": "d", "name": "b"}});
        let transaction = json!({"execute": "transaction", "arguments": {"actions": [add]}});
        other.send(transaction.to_string().as_bytes());
        wait_until(|| disk.gate().is_closed());
        let drains = client.ok("x-query-block-drains", json!({}));
        assert_eq!(element_of(&drains, "disk", "")["held-up"], json!([]));
        world.advance(Duration::from_secs(1));
        wait_until(|| !disk.gate().is_closed());
        world.advance(Duration::from_secs(2));
        let drains = client.ok("x-query-block-drains", json!({}));
        let shown = json!([{
            "name": "transaction", "waited-ns": 3_000_000_000_u64, "job": "job",
            "waits-for": "mirror 'job' to rest, which can be cancelled"
        }]);
        for (device, name) in [("disk", ""), ("", "d")] {
            let element = element_of(&drains, device, name);
            assert_eq!(element["held-up"], shown, "{device}{name}");
            assert_eq!(element["holders"], json!([]));
            assert_eq!(element["drained"], false);
        }
        assert_eq!(element_of(&drains, "", "target")["held-up"], json!([]));
        client.ok("x-debug-resume", held);
        while other.message().unwrap().get("return").is_none() {}
        let drains = client.ok("x-query-block-drains", json!({}));
        assert_eq!(element_of(&drains, "disk", "")["held-up"], json!([]));
    });
}
