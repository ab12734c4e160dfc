//! Resizing nodes, giving them homes, and the graph's picture; and images that are odd.

use std::sync::Arc;

use serde_json::json;
use sluice_aio::{IoBuffer, IoThread, LoopConfig, current};

use super::bench::{run, settle, write};
use crate::error::BlockError;
use crate::graph::parent::Parent;
use crate::permission::{Access, Permissions};

#[test]
fn a_disk_changes_its_size_between_requests() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [1; 4096]).unwrap();
        let file = json!({"driver": "file", "filename": path});
        let options = json!({"driver": "raw", "node-name": "raw", "file": file});
        let node = bench.add(options).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let token = disk.enter().await.unwrap();
        let resizing = {
            let (graph, node) = (Arc::clone(&bench.graph), Arc::clone(&node));
            current::spawn_local(async move { graph.resize(&node, 8192).await })
        };
        settle().await;
        assert_eq!(node.len(), 4096, "resized under a request");
        drop(token);
        resizing.await.unwrap().unwrap();
        assert_eq!((node.len(), disk.len()), (8192, 8192));
        assert!(!disk.gate().is_closed());
        let new = IoBuffer::alloc(4096);
        node.read(4096, new.clone()).await.unwrap();
        assert_eq!(new.to_vec(), [0; 4096]);
        bench.graph.resize(&node, 512).await.unwrap();
        assert!(write(&disk, 512).await.is_err(), "beyond the new end");
        write(&disk, 0).await.unwrap();
        assert_eq!(
            node.access(),
            Access::of_device(false),
            "the right was given back"
        );
    });
}

#[test]
fn a_size_is_refused_with_a_reason_and_nothing_changes() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [1; 4096]).unwrap();
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        let node = bench.add(file).await.unwrap();
        let error = bench.graph.resize(&node, 1 << 63).await.unwrap_err();
        assert!(error.to_string().contains("too big"), "{error}");
        // Somebody above relies on the size.
        let keeper = Parent::Claim("a keeper".into());
        let mut change = bench.graph.transaction();
        let access = Access {
            used: Permissions::CONSISTENT_READ,
            shared: Permissions::RESIZE.complement(),
        };
        change.attach(&node, keeper.clone(), "role", access);
        change.commit().unwrap();
        let error = bench.graph.resize(&node, 512).await.unwrap_err();
        assert!(matches!(error, BlockError::Conflict(_)), "{error}");
        bench.graph.let_go(&node, &keeper, "role");
        node.block("mirror").unwrap();
        let error = bench.graph.resize(&node, 512).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Node 'file' is busy: block device is in use by block job: mirror"
        );
        node.unblock();
        let null = json!({"driver": "null-co", "node-name": "ro", "read-only": true});
        let read_only = bench.add(null).await.unwrap();
        assert!(bench.graph.resize(&read_only, 512).await.is_err());
        assert_eq!(node.len(), 4096);
        assert_eq!(node.access(), Access::NONE);
        assert!(node.parents().is_empty());
    });
}

#[test]
fn connected_nodes_have_one_home() {
    run(async |bench| {
        let thread = Arc::new(IoThread::spawn("io0", LoopConfig::default()).unwrap());
        let (low, watch) = bench.probe("low", true);
        let (left, _) = bench.filter("left", &low, None);
        let (right, _) = bench.filter("right", &low, None);
        let (alone, _) = bench.probe("alone", true);
        let home = || Some((thread.context().clone(), Arc::clone(&thread) as Arc<_>));
        bench.graph.set_home(&left, home()).await.unwrap();
        for node in [&low, &left, &right] {
            assert_eq!(node.home().unwrap().name(), "io0");
        }
        assert!(alone.home().is_none());
        assert_eq!(Arc::strong_count(&thread), 1 + 3);
        let (begun, ended) = watch.told();
        assert!(begun > 0 && begun == ended, "moved without a section");
        // A device anywhere among them stands against it.
        let disk = bench.graph.add_backend("disk", &right).unwrap();
        let error = bench.graph.set_home(&left, None).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Cannot change iothread of active block backend"
        );
        assert!(left.home().is_some());
        bench.graph.remove_backend(&disk).await;
        bench.graph.set_home(&low, None).await.unwrap();
        assert!(right.home().is_none());
        assert_eq!(Arc::strong_count(&thread), 1);
    });
}

/// Eight exbibytes less one sector is the largest that offsets of the kernel can reach.
#[test]
fn images_of_no_bytes_and_of_very_many() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("empty");
        std::fs::write(&path, []).unwrap();
        let empty = json!({"driver": "file", "node-name": "empty", "filename": path});
        let nodes = bench.graph.nodes().len();
        match bench.add(empty).await {
            Ok(node) => assert!(node.is_empty()),
            Err(error) => {
                assert!(error.to_string().contains("empty"), "{error}");
                assert_eq!(bench.graph.nodes().len(), nodes);
            }
        }
        const LARGEST: u64 = (1 << 63) - 512;
        let huge = json!({
            "driver": "null-co", "node-name": "huge", "size": LARGEST, "read-zeroes": true
        });
        let huge = bench.add(huge).await.unwrap();
        let top = json!({"driver": "raw", "node-name": "top", "file": "huge", "offset": 512});
        let top = bench.add(top).await.unwrap();
        assert_eq!((huge.len(), top.len()), (LARGEST, LARGEST - 512));
        let buffer = IoBuffer::alloc(512);
        top.read(top.len() - 512, buffer.clone()).await.unwrap();
        for offset in [top.len(), top.len() - 511, u64::MAX - 511, u64::MAX] {
            let error = top.read(offset, buffer.clone()).await.unwrap_err();
            assert!(matches!(error, BlockError::OutOfRange { .. }), "{error}");
        }
        top.write_zeroes(0, top.len(), crate::driver::RequestFlags::empty())
            .await
            .unwrap();
    });
}

/// A file that has become shorter under its node reads as zeroes there, and can be drained, written
/// and deleted as ever.
#[test]
fn a_file_that_shrinks_behind_us_reads_as_zeroes() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [1; 8192]).unwrap();
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        let node = bench.add(file).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1024)
            .unwrap();
        let buffer = IoBuffer::alloc(2048);
        let token = disk.enter().await.unwrap();
        disk.read(&token, 0, buffer.clone()).await.unwrap();
        assert_eq!(buffer.to_vec()[..1024], [1; 1024]);
        assert_eq!(buffer.to_vec()[1024..], [0; 1024]);
        disk.write(&token, 4096, IoBuffer::alloc(512))
            .await
            .unwrap();
        drop(token);
        drop(bench.graph.drain(&node, "test").await);
        bench.graph.remove_backend(&disk).await;
        bench.graph.del_node("file").unwrap();
    });
}
