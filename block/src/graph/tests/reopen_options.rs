//! `blockdev-reopen`: what drivers change about their media while a disk stands above them, and
//! that none does if one can't.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};
use sluice_aio::IoBuffer;

use super::bench::{Bench, run, settle};
use crate::driver::{Allocation, RequestFlags};
use crate::error::Result;
use crate::io::DetectZeroes;
use crate::node::Node;

async fn reopen(bench: &Bench, options: Vec<Value>) -> Result<()> {
    let parse = |options| serde_json::from_value(options).unwrap();
    let options: Vec<_> = options.into_iter().map(parse).collect();
    bench.graph.reopen(&options).await
}

async fn refused(bench: &Bench, options: Vec<Value>) -> String {
    reopen(bench, options).await.unwrap_err().to_string()
}

fn image(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    let bytes: Vec<_> = (0..16_u8).flat_map(|sector| [sector; 512]).collect();
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The options of a file node, and more.
fn file(name: &str, path: &Path, more: &Value) -> Value {
    let mut options = json!({"driver": "file", "node-name": name, "filename": path});
    let members = options.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    options
}

async fn byte(node: &Node, at: u64) -> u8 {
    let buffer = IoBuffer::alloc(1);
    node.read(at, buffer.clone()).await.unwrap();
    buffer.to_vec()[0]
}

async fn write(node: &Node, at: u64, value: u8) {
    let buffer = IoBuffer::copied_from(&[value]);
    let flags = RequestFlags::empty();
    node.write(at, buffer, flags).await.unwrap();
}

#[test]
fn a_file_is_served_in_another_way() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), "image");
        let node = bench.add(file("file", &path, &json!({}))).await.unwrap();
        bench.graph.add_backend("disk", &node).unwrap();
        let is_hole = async || {
            let status = node.block_status(4096, 4096).await.unwrap();
            status.allocation == Allocation::Zero
        };
        node.discard(4096, 4096).await.unwrap();
        assert!(!is_hole().await, "discards are ignored");
        let more = json!({"aio": "threads", "cache": {"no-flush": true}, "discard": "unmap",
                          "detect-zeroes": "unmap"});
        reopen(&bench, vec![file("file", &path, &more)])
            .await
            .unwrap();
        assert!(node.info().no_flush && !node.info().direct);
        assert_eq!(node.policy().detect_zeroes(), DetectZeroes::Unmap);
        node.discard(4096, 4096).await.unwrap();
        assert!(is_hole().await, "discards reach the file");
        write(&node, 10, 77).await;
        assert_eq!(std::fs::read(&path).unwrap()[10], 77);
        // What is left out gets its default.
        reopen(&bench, vec![file("file", &path, &json!({}))])
            .await
            .unwrap();
        assert!(!node.info().no_flush && !node.policy().unmaps());
        assert_eq!(node.policy().detect_zeroes(), DetectZeroes::Off);
        let contradiction = file("file", &path, &json!({"detect-zeroes": "unmap"}));
        let text = refused(&bench, vec![contradiction]).await;
        assert!(text.contains("without setting discard operation"), "{text}");
    });
}

#[test]
fn a_file_goes_past_the_page_cache_and_back() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), "image");
        let node = bench.add(file("file", &path, &json!({}))).await.unwrap();
        let raw = json!({"driver": "raw", "node-name": "raw", "file": "file"});
        let raw = bench.add(raw).await.unwrap();
        bench.graph.add_backend("disk", &raw).unwrap();
        let direct = file("file", &path, &json!({"cache": {"direct": true}}));
        if let Err(error) = reopen(&bench, vec![direct]).await {
            assert!(error.to_string().contains("cache.direct=off"), "{error}");
            assert!(!node.info().direct);
            println!("SKIPPED: {error}");
            return;
        }
        assert!(node.info().direct);
        // Requests are still of any alignment: the node knows the new limits.
        write(&raw, 513, 99).await;
        assert_eq!((byte(&raw, 512).await, byte(&raw, 513).await), (1, 99));
        reopen(&bench, vec![file("file", &path, &json!({}))])
            .await
            .unwrap();
        assert!(!node.info().direct);
        write(&raw, 514, 98).await;
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[511..516], [0, 1, 99, 98, 1]);
        // Still one writer, whichever opening has the data.
        let second = bench.add(file("second", &path, &json!({}))).await.unwrap();
        assert!(bench.graph.add_backend("other", &second).is_err());
    });
}

#[test]
fn a_window_moves() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), "image");
        bench.add(file("file", &path, &json!({}))).await.unwrap();
        let null = json!({"driver": "null-co", "node-name": "small", "size": 2048});
        bench.add(null).await.unwrap();
        let raw = |below: &str, offset: u64, size: Option<u64>| {
            let mut options = json!({"driver": "raw", "node-name": "raw", "file": below,
                                     "offset": offset});
            if let Some(size) = size {
                options["size"] = json!(size);
            }
            options
        };
        let node = bench.add(raw("file", 0, None)).await.unwrap();
        assert_eq!((node.len(), byte(&node, 0).await), (8192, 0));
        reopen(&bench, vec![raw("file", 1024, Some(2048))])
            .await
            .unwrap();
        assert_eq!((node.len(), byte(&node, 0).await), (2048, 2));
        // An offset need not be one of a sector.
        reopen(&bench, vec![raw("file", 1535, Some(1024))])
            .await
            .unwrap();
        assert_eq!((byte(&node, 0).await, byte(&node, 1).await), (2, 3));
        for (options, text) in [
            (
                raw("file", 8193, None),
                "Offset (8193) cannot be greater than size of the containing file (8192)",
            ),
            (
                raw("file", 4096, Some(8192)),
                "The sum of offset (4096) and size (8192) has to be smaller or equal to the \
                 actual size of the containing file (8192)",
            ),
            (
                raw("file", 0, Some(1000)),
                "Specified size is not multiple of 512",
            ),
            // Of the child that it would have.
            (
                raw("small", 4096, None),
                "Offset (4096) cannot be greater than size of the containing file (2048)",
            ),
        ] {
            assert_eq!(refused(&bench, vec![options]).await, text);
            assert_eq!((node.len(), byte(&node, 1).await), (1024, 3));
        }
        reopen(&bench, vec![raw("small", 512, None)]).await.unwrap();
        assert_eq!(node.len(), 1536);
    });
}

#[test]
fn a_node_joins_another_throttle_group() {
    run(async |bench| {
        let groups = bench.graph.throttle_groups();
        for name in ["one", "two"] {
            let limits = serde_json::from_value(json!({})).unwrap();
            groups.add(name, limits).unwrap();
        }
        let throttle = |group: &str| {
            json!({"driver": "throttle", "node-name": "throttle", "throttle-group": group,
                   "file": {"driver": "null-co", "size": 4096}})
        };
        let node = bench.add(throttle("one")).await.unwrap();
        let text = refused(&bench, vec![throttle("nobody")]).await;
        assert_eq!(text, "Throttle group 'nobody' does not exist");
        assert!(groups.remove("one").is_err(), "in use");
        reopen(&bench, vec![throttle("two")]).await.unwrap();
        groups.remove("one").unwrap();
        assert!(groups.remove("two").is_err(), "in use");
        // The section has ended for the new member too: its limits hold.
        let group = groups.get("two").unwrap();
        let limits = serde_json::from_value(json!({"iops-total": 1})).unwrap();
        group.set_limits(limits).unwrap();
        write(&node, 0, 1).await;
        let done = Rc::new(Cell::new(0));
        let waiting = {
            let (node, done) = (Arc::clone(&node), Rc::clone(&done));
            sluice_aio::current::spawn_local(async move {
                for count in 1..=1000 {
                    write(&node, 0, 1).await;
                    done.set(count);
                }
            })
        };
        settle().await;
        assert!(done.get() < 1000, "there are limits");
        waiting.cancel();
    });
}

/// One of several nodes can't be changed, for what its medium or its users say: no driver has
/// changed anything.
#[test]
fn no_driver_changes_if_one_can_not() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (
            image(directory.path(), "one"),
            image(directory.path(), "two"),
        );
        let first = bench.add(file("one", &one, &json!({}))).await.unwrap();
        let window = json!({"driver": "raw", "node-name": "raw", "file": "one", "offset": 512});
        let raw = bench.add(window).await.unwrap();
        let second = file("two", &two, &json!({"read-only": true}));
        let second = bench.add(second).await.unwrap();
        let unchanged = || {
            let info = first.info();
            assert!(!info.no_flush && !info.direct && !first.policy().unmaps());
            assert_eq!(raw.len(), 8192 - 512);
            assert!(second.is_read_only() && !first.is_read_only());
        };
        let more = json!({"cache": {"no-flush": true}, "discard": "unmap", "aio": "threads"});
        let change_both = || {
            let window = json!({"driver": "raw", "node-name": "raw", "file": "one"});
            vec![file("one", &one, &more), window]
        };
        // Another file has the second one's name.
        std::fs::rename(&two, directory.path().join("old")).unwrap();
        image(directory.path(), "two");
        let mut options = change_both();
        options.push(file("two", &two, &json!({"read-only": false})));
        let text = refused(&bench, options).await;
        assert!(text.contains("another file"), "{text}");
        unchanged();
        std::fs::rename(directory.path().join("old"), &two).unwrap();
        // The user of the third one writes: that is found out last of all.
        let third = image(directory.path(), "three");
        let node = bench.add(file("three", &third, &json!({}))).await.unwrap();
        bench.graph.add_backend("disk", &node).unwrap();
        let mut options = change_both();
        options.push(file("three", &third, &json!({"read-only": true})));
        let text = refused(&bench, options).await;
        assert_eq!(
            text,
            "Read-only block node 'three' cannot support read-write users"
        );
        unchanged();
        reopen(&bench, change_both()).await.unwrap();
        assert!(first.info().no_flush && first.policy().unmaps());
        assert_eq!(raw.len(), 8192);
    });
}
