//! Giving nodes homes; changes that wait for requests; and images that are odd.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use sluice_aio::{IoBuffer, IoThread, LoopConfig, current};

use super::bench::{Bench, run};
use crate::backup::{BlockdevBackup, blockdev_backup};
use crate::driver::overlay::CLUSTER;
use crate::driver::{Allocation, DebugEvent, RequestFlags};
use crate::error::{BlockError, Result};
use crate::home::Home;
use crate::node::Node;

#[test]
fn connected_nodes_have_one_home() {
    run(async |bench| {
        let thread = Arc::new(IoThread::spawn("io0", LoopConfig::default()).unwrap());
        let (low, watch) = bench.probe("low", true);
        let (left, _) = bench.filter("left", &low, None);
        let (right, _) = bench.filter("right", &low, None);
        let (alone, _) = bench.probe("alone", true);
        let home = || {
            let keeper = Arc::clone(&thread) as Arc<_>;
            Some(Home::kept(thread.context().clone(), keeper))
        };
        bench
            .graph
            .set_home(&left, home(), &current::context())
            .await
            .unwrap();
        for node in [&low, &left, &right] {
            assert_eq!(node.home().unwrap().context().name(), "io0");
        }
        assert!(alone.home().is_none());
        assert_eq!(Arc::strong_count(&thread), 1 + 3);
        let (begun, ended) = watch.told();
        assert!(begun > 0 && begun == ended, "moved without a section");
        // A device anywhere among them stands against it.
        let disk = bench.graph.add_backend("disk", &right).unwrap();
        let error = bench
            .graph
            .set_home(&left, None, &current::context())
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "Cannot change iothread of active block backend 'disk' of node 'right'"
        );
        assert!(left.home().is_some());
        bench.graph.remove_backend(&disk).await;
        bench
            .graph
            .set_home(&low, None, &current::context())
            .await
            .unwrap();
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
        let empty = bench.add(empty).await.unwrap();
        let buffer = IoBuffer::alloc(512);
        let error = empty.read(0, buffer.clone()).await.unwrap_err();
        assert!(matches!(error, BlockError::OutOfRange { .. }), "{error}");
        // It is yet to grow.
        bench.graph.resize(&empty, 512).await.unwrap();
        empty.read(0, buffer).await.unwrap();
        for size in [1 << 63, u64::MAX] {
            let null = json!({"driver": "null-co", "node-name": "huge", "size": size});
            let error = bench.add(null).await.unwrap_err();
            assert_eq!(error.to_string(), "size is invalid");
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
        top.write_zeroes(0, top.len(), RequestFlags::empty())
            .await
            .unwrap();
    });
}

/// The longest sparse file that `directory` takes, in whole sectors.
fn longest_file(directory: &Path) -> (std::path::PathBuf, u64) {
    let path = directory.join("huge");
    let file = std::fs::File::create(&path).unwrap();
    let (mut fits, mut too_long) = (0, 1 << 63);
    while too_long - fits > 512 {
        let middle = fits + (too_long - fits) / 2 / 512 * 512;
        match file.set_len(middle) {
            Ok(()) => fits = middle,
            Err(_) => too_long = middle,
        }
    }
    file.set_len(fits).unwrap();
    (path, fits)
}

/// As long as file systems let a file be; that of the memory takes all that offsets can reach.
#[test]
fn files_as_long_as_can_be_are_used_to_their_last_sector() {
    run(async |bench| {
        let mut directories = vec![tempfile::tempdir().unwrap()];
        directories.extend(tempfile::tempdir_in("/dev/shm"));
        for directory in directories {
            let (path, len) = longest_file(directory.path());
            assert!(len >= 1 << 32, "{len}");
            let file = json!({"driver": "file", "filename": path, "discard": "unmap"});
            let top = json!({"driver": "raw", "node-name": "top", "offset": 512,
                             "discard": "unmap", "file": file});
            let top = bench.add(top).await.unwrap();
            assert_eq!(top.len(), len - 512);
            let last = top.len() - 512;
            let flags = RequestFlags::empty();
            let sevens = IoBuffer::alloc(512);
            sevens.fill(0, 512, 7);
            top.write(last, sevens, flags).await.unwrap();
            let buffer = IoBuffer::alloc(1024);
            top.read(last - 512, buffer.clone()).await.unwrap();
            assert_eq!(buffer.to_vec(), [[0; 512], [7; 512]].concat());
            for offset in [last + 1, top.len(), 1 << 63, u64::MAX] {
                let sector = IoBuffer::alloc(512);
                let refused = top.write(offset, sector, flags).await.unwrap_err();
                assert!(
                    matches!(refused, BlockError::OutOfRange { .. }),
                    "{refused}"
                );
            }
            // Holes to the last page, in one question; and all of it made zeroes, in one request.
            let status = top.block_status(0, top.len()).await.unwrap();
            assert_eq!(status.allocation, Allocation::Zero);
            assert!(status.len >= last - 4096, "{status:?}");
            let unmap = RequestFlags::MAY_UNMAP;
            top.write_zeroes(0, top.len(), unmap).await.unwrap();
            top.discard(0, top.len()).await.unwrap();
            top.read(last - 512, buffer.clone()).await.unwrap();
            assert_eq!(buffer.to_vec(), [0; 1024]);
            assert!(bench.graph.resize(&top, (1 << 63) - 512).await.is_err());
            assert_eq!(std::fs::metadata(&path).unwrap().len(), len);
            bench.graph.del_node("top").unwrap();
        }
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

/// What changes a graph in a section.
#[derive(Clone, Copy, Debug)]
enum Change {
    Reopen,
    Resize,
    Snapshot,
    /// Puts a filter in.
    Backup,
}

impl Change {
    const ALL: [Self; 4] = [Self::Reopen, Self::Resize, Self::Snapshot, Self::Backup];

    /// Does it to `top`, with `other` for what is needed besides.
    async fn make(self, bench: &Bench, top: &Arc<Node>, other: &Arc<Node>) -> Result<()> {
        let graph = &bench.graph;
        match self {
            Self::Reopen => {
                let options = json!({"driver": "raw", "node-name": "top", "file": "other"});
                let options = serde_json::from_value(options).unwrap();
                graph.reopen(&[options]).await
            }
            Self::Resize => graph.resize(top, 2 * CLUSTER as u64).await,
            Self::Snapshot => graph.snapshot(top, other).await.map(drop),
            Self::Backup => {
                let common = json!({"device": "disk", "sync": "none", "job-id": "job"});
                let arguments = BlockdevBackup {
                    common: serde_json::from_value(common).unwrap(),
                    target: "other".to_owned(),
                };
                blockdev_backup(graph, &arguments, &current::context()).await
            }
        }
    }
}

/// A change waits for a request that still has to find its way down. Nothing that this needs is locked meanwhile, and
/// neither is what others do with the graph, in either thread.
#[test]
fn a_change_that_waits_for_requests_leaves_them_the_graph() {
    for change in Change::ALL {
        run(async move |bench| {
            let graph = &bench.graph;
            let thread = Arc::new(IoThread::spawn("io0", LoopConfig::default()).unwrap());
            let base = graph.add_overlay("base", CLUSTER, None).unwrap();
            let sevens = IoBuffer::alloc(CLUSTER);
            sevens.fill(0, CLUSTER, 7);
            base.write(0, sevens, RequestFlags::empty()).await.unwrap();
            graph.add_overlay("image", CLUSTER, Some(&base)).unwrap();
            let debug = json!({"driver": "blkdebug", "node-name": "debug", "image": "image"});
            let debug = bench.add(debug).await.unwrap();
            let raw = json!({"driver": "raw", "node-name": "top", "file": "debug"});
            let top = bench.add(raw).await.unwrap();
            let other = graph.add_overlay("other", CLUSTER, None).unwrap();
            let disk = graph.add_backend("disk", &top).unwrap();
            let home = Home::kept(thread.context().clone(), Arc::clone(&thread) as Arc<_>);
            graph.set_device_home(&disk, home).await.unwrap();

            // Above two edges that it has yet to go.
            let debug = debug.as_blkdebug().unwrap();
            debug.set_break(DebugEvent::ReadAio, "way").unwrap();
            let guest = Arc::clone(&disk);
            let read = thread.context().call(move || async move {
                let buffer = IoBuffer::alloc(512);
                let token = guest.enter().await.unwrap();
                guest.read(&token, 0, buffer.clone()).await.unwrap();
                buffer.to_vec()
            });
            debug.wait_break("way").await.unwrap();
            let changing = {
                let (graph, top) = (Arc::clone(graph), Arc::clone(&top));
                let bench = Bench { graph };
                current::spawn_local(async move { change.make(&bench, &top, &other).await })
            };
            while !disk.gate().is_closed() {
                current::yield_now().await;
            }
            // Others look at the graph, and change it elsewhere.
            let node = Arc::clone(&top);
            let look = move || async move { node.block_status(0, 512).await.unwrap() };
            let seen = thread.context().call(look.clone()).await.unwrap();
            assert_eq!(seen.allocation, look().await.allocation);
            assert_eq!(top.children()[0].1.name(), "debug");
            let beside = json!({"driver": "null-co", "node-name": "beside", "size": 512});
            bench.add(beside).await.unwrap();
            graph.del_node("beside").unwrap();
            assert!(disk.gate().is_closed(), "{change:?} waits");
            debug.resume("way").unwrap();
            assert_eq!(read.await.unwrap(), [7; 512], "{change:?}");
            changing.await.unwrap().unwrap();
            assert!(!disk.gate().is_closed());
            if let Some(job) = graph.jobs().get("job") {
                job.cancel(true).unwrap();
                job.concluded().await;
            }
        });
    }
}
