//! `blockdev-reopen`: what may change, what may not, and that of several nodes all change or none.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use sluice_aio::current;

use super::bench::{Bench, run, settle, write};
use crate::driver::Driver;
use crate::driver::file::{FileDriver, FileOptions};
use crate::error::{BlockError, Result};
use crate::node::Node;
use crate::permission::Access;

async fn reopen(bench: &Bench, options: Vec<Value>) -> Result<()> {
    let parse = |options| serde_json::from_value(options).unwrap();
    let options: Vec<_> = options.into_iter().map(parse).collect();
    bench.graph.reopen(&options).await
}

fn file(name: &str, path: &Path, read_only: bool) -> Value {
    json!({"driver": "file", "node-name": name, "filename": path, "read-only": read_only})
}

fn image(directory: &Path, name: &str, byte: u8) -> std::path::PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, [byte; 4096]).unwrap();
    path
}

async fn first_byte(node: &Node) -> u8 {
    let buffer = sluice_aio::IoBuffer::alloc(512);
    node.read(0, buffer.clone()).await.unwrap();
    buffer.to_vec()[0]
}

#[test]
fn a_read_only_file_becomes_writable_and_back() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), "image", 1);
        let node = bench.add(file("file", &path, true)).await.unwrap();
        assert!(node.is_read_only());
        reopen(&bench, vec![file("file", &path, false)])
            .await
            .unwrap();
        assert!(!node.is_read_only());
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let token = disk.enter().await.unwrap();
        let twos = sluice_aio::IoBuffer::alloc(512);
        twos.fill(0, 512, 2);
        disk.write(&token, 0, twos).await.unwrap();
        drop(token);
        assert_eq!(std::fs::read(&path).unwrap()[0], 2);
        let error = reopen(&bench, vec![file("file", &path, true)]).await;
        assert_eq!(
            error.unwrap_err().to_string(),
            "Read-only block node 'file' cannot support read-write users"
        );
        assert!(!node.is_read_only());
        bench.graph.remove_backend(&disk).await;
        // What is not said gets its default.
        let plain = json!({"driver": "file", "node-name": "file", "filename": path});
        reopen(&bench, vec![file("file", &path, true)])
            .await
            .unwrap();
        assert!(node.is_read_only());
        reopen(&bench, vec![plain]).await.unwrap();
        assert!(!node.is_read_only());
    });
}

#[test]
fn a_disk_gets_another_image_under_its_guest() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        for (name, byte) in [("one", 1), ("two", 2)] {
            let path = image(directory.path(), name, byte);
            bench.add(file(name, &path, false)).await.unwrap();
        }
        let raw = |below: &str| json!({"driver": "raw", "node-name": "raw", "file": below});
        let node = bench.add(raw("one")).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        assert_eq!(first_byte(&node).await, 1);
        // A request in flight is waited for, and what comes meanwhile sees the new image.
        let token = disk.enter().await.unwrap();
        let changing = {
            let (graph, options) = (Arc::clone(&bench.graph), raw("two"));
            current::spawn_local(async move { reopen(&Bench { graph }, vec![options]).await })
        };
        settle().await;
        let late = {
            let disk = Arc::clone(&disk);
            current::spawn_local(async move { write(&disk, 512).await })
        };
        settle().await;
        assert_eq!(node.children()[0].1.name(), "one");
        drop(token);
        changing.await.unwrap().unwrap();
        late.await.unwrap().unwrap();
        assert_eq!(first_byte(&node).await, 2);
        assert_eq!(
            std::fs::read(directory.path().join("one")).unwrap(),
            [1; 4096]
        );
        assert_eq!(std::fs::read(directory.path().join("two")).unwrap()[512], 0);
        bench.graph.del_node("one").unwrap();
        assert!(bench.graph.del_node("two").is_err());
    });
}

#[test]
fn what_a_driver_keeps_is_refused_by_name() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), "image", 1);
        bench.add(file("file", &path, false)).await.unwrap();
        let null = json!({"driver": "null-co", "node-name": "null", "size": 4096});
        bench.add(null).await.unwrap();
        let nested = json!({
            "driver": "raw", "node-name": "raw",
            "file": {"driver": "null-co", "node-name": "below", "size": 8192}
        });
        bench.add(nested).await.unwrap();
        let below = |options: Value| json!({"driver": "raw", "node-name": "raw", "file": options});
        for (options, expected) in [
            (
                json!({"driver": "file", "node-name": "null", "filename": path}),
                "Cannot change the option 'driver'",
            ),
            (
                json!({"driver": "null-co", "node-name": "null", "size": 8192}),
                "Cannot change the option 'size'",
            ),
            // Left out means the default, which it has not.
            (
                json!({"driver": "null-co", "node-name": "null"}),
                "Cannot change the option 'size'",
            ),
            (
                json!({"driver": "file", "node-name": "file", "filename": "/other"}),
                "Cannot change the option 'filename'",
            ),
            (
                below(json!({"driver": "null-co", "size": 512})),
                "Cannot change the option 'size'",
            ),
            (
                below(json!({"driver": "null-co", "node-name": "x", "size": 8192})),
                "Cannot change the option 'file.node-name'",
            ),
            (
                below(json!("nobody")),
                "Cannot find device='' nor node-name='nobody'",
            ),
            (
                below(json!("raw")),
                "Making 'raw' a child of 'raw' would create a cycle",
            ),
            (
                json!({"driver": "null-co", "node-name": "nobody"}),
                "Failed to find node with node-name='nobody'",
            ),
            (json!({"driver": "null-co"}), "node-name not specified"),
        ] {
            let error = reopen(&bench, vec![options]).await.unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let unchanged = below(json!({"driver": "null-co", "size": 8192, "read-only": true}));
        reopen(&bench, vec![unchanged.clone()]).await.unwrap();
        assert!(bench.graph.node("below").unwrap().is_read_only());
        assert!(bench.graph.node("raw").unwrap().is_read_only());
        let twice = reopen(&bench, vec![unchanged.clone(), unchanged]).await;
        assert!(twice.unwrap_err().to_string().contains("more than once"));
    });
}

/// The last of several nodes can't be changed: none is, whatever stood in the way.
#[test]
fn of_several_nodes_all_change_or_none() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (
            image(directory.path(), "one", 1),
            image(directory.path(), "two", 2),
        );
        let first = bench.add(file("one", &one, true)).await.unwrap();
        bench.add(file("two", &two, false)).await.unwrap();
        let raw = |below: &str| json!({"driver": "raw", "node-name": "raw", "file": below});
        let top = bench.add(raw("two")).await.unwrap();
        bench.graph.add_backend("disk", &top).unwrap();
        let unchanged = || {
            assert!(first.is_read_only());
            assert_eq!(top.children()[0].1.name(), "two");
            assert_eq!(first.access(), Access::NONE);
        };
        let make_writable = file("one", &one, false);
        // The options of the second are bad.
        let bad = file("two", Path::new("/other"), false);
        assert!(
            reopen(&bench, vec![make_writable.clone(), bad])
                .await
                .is_err()
        );
        unchanged();
        // The second has a writer.
        let used = file("two", &two, true);
        assert!(
            reopen(&bench, vec![make_writable.clone(), used])
                .await
                .is_err()
        );
        unchanged();
        // The disk that writes can't get a file that is not writable.
        let error = reopen(&bench, vec![raw("one")])
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("read-only") || error.contains("Read-only"),
            "{error}"
        );
        unchanged();
        // Together with its becoming writable it can, in either order.
        reopen(&bench, vec![raw("one"), make_writable])
            .await
            .unwrap();
        assert_eq!(top.children()[0].1.name(), "one");
        assert!(!first.is_read_only());
    });
}

#[test]
fn a_medium_that_can_not_be_written_is_said_so() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), "image", 1);
        let node = bench.add(file("file", &path, true)).await.unwrap();
        // Another file under the name is not the node's.
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        image(directory.path(), "image", 9);
        let error = reopen(&bench, vec![file("file", &path, false)]).await;
        assert!(error.unwrap_err().to_string().contains("another file"));
        assert!(node.is_read_only());
        assert_eq!(first_byte(&node).await, 1);
        std::fs::remove_file(&path).unwrap();
        let error = reopen(&bench, vec![file("file", &path, false)]).await;
        assert!(error.unwrap_err().to_string().contains("No such file"));
        // Root may write to anything.
        std::fs::rename(directory.path().join("old"), &path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        if std::fs::OpenOptions::new().write(true).open(&path).is_err() {
            let error = reopen(&bench, vec![file("file", &path, false)]).await;
            assert!(error.unwrap_err().to_string().contains("Permission denied"));
            assert!(node.is_read_only());
        }
    });
}

/// A job that took the node while the reopen waited for its requests keeps it as it is.
#[test]
fn a_job_that_came_first_keeps_the_child() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        for (name, byte) in [("one", 1), ("two", 2)] {
            let path = image(directory.path(), name, byte);
            bench.add(file(name, &path, false)).await.unwrap();
        }
        let raw = |below: &str| json!({"driver": "raw", "node-name": "raw", "file": below});
        let node = bench.add(raw("one")).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let token = disk.enter().await.unwrap();
        let changing = {
            let (graph, options) = (Arc::clone(&bench.graph), raw("two"));
            current::spawn_local(async move { reopen(&Bench { graph }, vec![options]).await })
        };
        settle().await;
        node.block("mirror").unwrap();
        drop(token);
        let error = changing.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("in use by block job: mirror"), "{error}");
        assert_eq!(node.children()[0].1.name(), "one");
        node.unblock();
        assert_eq!(first_byte(&node).await, 1);
    });
}

/// The last step of a reopen is the new file's lock. If somebody else has that, everything is as
/// before: the edge, the options, the locks of the old file; and the requests that waited meanwhile
/// are done once, where they belong.
#[test]
fn a_lock_that_can_not_be_had_takes_all_steps_back_and_loses_no_request() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        for (name, byte) in [("one", 1), ("two", 2), ("three", 3)] {
            let path = image(directory.path(), name, byte);
            bench.add(file(name, &path, name == "three")).await.unwrap();
        }
        let path = |name: &str| directory.path().join(name);
        let raw = |below: &str| json!({"driver": "raw", "node-name": "raw", "file": below});
        let node = bench.add(raw("one")).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        // As another process would.
        let elsewhere = FileDriver::open(FileOptions::new(path("two"))).unwrap();
        elsewhere.prepare_access(Access::of_device(false)).unwrap();

        let token = disk.enter().await.unwrap();
        let changing = {
            let graph = Arc::clone(&bench.graph);
            let options = vec![raw("two"), file("three", &path("three"), false)];
            current::spawn_local(async move { reopen(&Bench { graph }, options).await })
        };
        while !disk.gate().is_closed() {
            current::yield_now().await;
        }
        let parked: Vec<_> = (0..4)
            .map(|sector| {
                let disk = Arc::clone(&disk);
                current::spawn_local(async move { write(&disk, sector * 512).await })
            })
            .collect();
        settle().await;
        assert_eq!(disk.gate().parked(), 4);
        let writes = disk.stats().of(crate::backend::Account::Write);
        drop(token);
        let error = changing.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("\"write\" lock"), "{error}");
        for write in parked {
            write.await.unwrap().unwrap();
        }
        assert_eq!(writes.operations.load(Ordering::Relaxed), 4);
        assert_eq!(node.children()[0].1.name(), "one");
        assert!(bench.graph.node("three").unwrap().is_read_only());
        assert_eq!(bench.graph.node("two").unwrap().access(), Access::NONE);
        assert_eq!(std::fs::read(path("one")).unwrap()[..2048], [0; 2048]);
        assert_eq!(std::fs::read(path("two")).unwrap(), [2; 4096]);
        // The old file's lock was not given up on the way.
        let thief = FileDriver::open(FileOptions::new(path("one"))).unwrap();
        assert!(thief.prepare_access(Access::of_device(false)).is_err());
        thief.finish_access(Access::NONE);
        // And nothing stands in the way of a second attempt.
        elsewhere.finish_access(Access::NONE);
        reopen(&bench, vec![raw("two")]).await.unwrap();
        assert_eq!(first_byte(&node).await, 2);
        thief.prepare_access(Access::of_device(false)).unwrap();
    });
}

/// A raw node over one that fails flushes, over one more of which nobody else flushes anything.
async fn failing_flushes(bench: &Bench) -> Arc<Node> {
    let rule = json!({"event": "none", "iotype": "flush", "errno": libc::ENOSPC});
    let debug = json!({
        "driver": "blkdebug", "node-name": "debug", "inject-error": [rule],
        "image": {"driver": "null-co", "node-name": "low", "size": 4096}
    });
    bench.add(debug).await.unwrap()
}

#[track_caller]
fn assert_flush_failed(refused: &BlockError) {
    let text = refused.to_string();
    assert!(text.contains("Error flushing drive"), "{text}");
}

fn raw(read_only: bool, below: &str) -> Value {
    json!({"driver": "raw", "node-name": "raw", "file": below, "read-only": read_only})
}

#[test]
fn what_was_written_is_durable_before_a_node_becomes_read_only() {
    run(async |bench| {
        let debug = failing_flushes(&bench).await;
        let node = bench.add(raw(false, "debug")).await.unwrap();
        let other = json!({"driver": "null-co", "node-name": "null", "size": 4096});
        let other_node = bench.add(other.clone()).await.unwrap();
        let mut quiet = other.clone();
        quiet["read-only"] = json!(true);
        // All of the list or nothing, whichever of it is refused.
        let refused = reopen(&bench, vec![quiet.clone(), raw(true, "debug")]).await;
        let refused = refused.unwrap_err().to_string();
        assert_eq!(refused, "Error flushing drive: No space left on device");
        assert!(!node.is_read_only() && !other_node.is_read_only());
        assert!(node.drained_by().is_empty());
        // What stays writable is flushed when its user asks for it.
        reopen(&bench, vec![raw(false, "debug")]).await.unwrap();
        debug.as_blkdebug().unwrap().clear_errors();
        reopen(&bench, vec![quiet, raw(true, "debug")])
            .await
            .unwrap();
        assert!(node.is_read_only() && other_node.is_read_only());
    });
}

#[test]
fn what_was_written_is_durable_before_a_child_is_left() {
    run(async |bench| {
        let debug = failing_flushes(&bench).await;
        let node = bench.add(raw(false, "debug")).await.unwrap();
        let other = json!({"driver": "null-co", "node-name": "null", "size": 4096});
        bench.add(other).await.unwrap();
        let refused = reopen(&bench, vec![raw(false, "null")]).await.unwrap_err();
        assert_flush_failed(&refused);
        assert_eq!(node.children()[0].1.name(), "debug");
        debug.as_blkdebug().unwrap().clear_errors();
        reopen(&bench, vec![raw(false, "null")]).await.unwrap();
        assert_eq!(node.children()[0].1.name(), "null");
    });
}

/// Not only what the node itself would flush: here it is read-only already, and what is below is not.
#[test]
fn what_is_below_a_node_that_leaves_its_child_is_flushed_too() {
    run(async |bench| {
        let debug = failing_flushes(&bench).await;
        let node = bench.add(raw(true, "debug")).await.unwrap();
        let other = json!({"driver": "null-co", "node-name": "null", "size": 4096});
        bench.add(other).await.unwrap();
        assert!(node.is_read_only() && !debug.is_read_only());
        let refused = reopen(&bench, vec![raw(true, "null")]).await.unwrap_err();
        assert_flush_failed(&refused);
        assert_eq!(node.children()[0].1.name(), "debug");
    });
}
