//! While the source is asked what it holds: the guest goes on, also behind the look.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde_json::json;
use sluice_aio::{IoBuffer, current};

use super::bench::{BLOCK, Bench, SIZE, common, pattern, run, run_both};
use crate::driver::{DebugEvent, RequestFlags};
use crate::mirror::{BlockdevMirror, DriveMirror, SyncMode, blockdev_mirror, drive_mirror};
use crate::node::Node;

/// Which way a mirror skips what it has nothing to copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skips {
    /// The target is made zeroes there: `sync=full`.
    Zeroed,
    /// The target is known to be zeroes: `target-is-zero`.
    AlreadyZero,
    /// The target is a new file of `drive-mirror`.
    NewFile,
    /// The target's backing image shows the same: `sync=top`.
    Below,
}

/// A node `disk` whose second half holds data and whose first half nothing, and what it is mirrored to.
async fn halves(bench: &Bench, skips: Skips) -> Arc<Node> {
    let half = pattern(SIZE / 2);
    if skips == Skips::Below {
        std::fs::write(bench.path("base"), pattern(SIZE)).unwrap();
        let base = bench.image_node("base").await;
        let size = usize::try_from(SIZE).unwrap();
        let overlay = |name| bench.graph.add_overlay(name, size, Some(&base)).unwrap();
        let (top, _copy) = (overlay("top"), overlay("target"));
        let data = IoBuffer::alloc(half.len());
        data.copy_from_slice(0, &half);
        let flags = RequestFlags::empty();
        top.write(SIZE / 2, data, flags).await.unwrap();
        let options = json!({"driver": "blkdebug", "node-name": "source", "image": "top"});
        return bench.node(options).await;
    }
    bench.empty_image("source", SIZE);
    let file = std::fs::File::options()
        .write(true)
        .open(bench.path("source"))
        .unwrap();
    file.write_all_at(&half, SIZE / 2).unwrap();
    if skips != Skips::NewFile {
        bench.target("target").await;
    }
    bench.debug_node("source").await
}

async fn start(bench: &Bench, skips: Skips) {
    let mut common = common("disk");
    common.granularity = Some(BLOCK);
    if skips == Skips::Below {
        common.sync = SyncMode::Top;
    }
    let started = if skips == Skips::NewFile {
        let arguments = DriveMirror {
            common,
            target: bench.path("target"),
            format: None,
            node_name: Some("target".to_owned()),
            mode: crate::options::NewImageMode::AbsolutePaths,
            unmap: true,
        };
        drive_mirror(&bench.graph, arguments, &current::context()).await
    } else {
        let arguments = BlockdevMirror {
            common,
            target: "target".to_owned(),
            filter_node_name: None,
            target_is_zero: skips == Skips::AlreadyZero,
        };
        blockdev_mirror(&bench.graph, arguments, &current::context()).await
    };
    started.unwrap();
}

async fn contents(node: &Node) -> Vec<u8> {
    let buffer = IoBuffer::alloc(usize::try_from(SIZE).unwrap());
    node.read(0, buffer.clone()).await.unwrap();
    buffer.to_vec()
}

/// The first half was looked at and has nothing to copy; the second half is still to be looked at. What a guest
/// writes to the first half now was not there when the mirror looked: only its record says that it is to be copied.
fn a_write_behind_the_look_is_copied(skips: Skips) {
    run_both(move |bench| async move {
        let source = halves(&bench, skips).await;
        let disk = bench.attach("disk", &source);
        let debug = source.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::BlockStatus, "first").unwrap();
        start(&bench, skips).await;
        debug.wait_break("first").await.unwrap();
        debug.set_break(DebugEvent::BlockStatus, "second").unwrap();
        debug.resume("first").unwrap();
        debug.wait_break("second").await.unwrap();
        let phase = bench.job().block_job_info().details["x-phase"].clone();
        assert_eq!(phase, "looking");
        for offset in [0, SIZE / 4, SIZE / 2 - BLOCK] {
            bench.write(&disk, offset, 0xf4).await;
        }
        debug.resume("second").unwrap();
        assert_eq!(bench.complete().await, None);
        let target = bench.graph.node("target").unwrap();
        let (old, new) = (contents(&source).await, contents(&target).await);
        assert_eq!(old[0], 0xf4);
        assert!(
            old == new,
            "{skips:?}: a write behind the look is not in the target"
        );
    });
}

#[test]
fn a_write_behind_the_look_is_copied_where_zeroes_are_skipped() {
    a_write_behind_the_look_is_copied(Skips::AlreadyZero);
    a_write_behind_the_look_is_copied(Skips::NewFile);
}

#[test]
fn a_write_behind_the_look_is_copied_where_the_layer_holds_nothing() {
    a_write_behind_the_look_is_copied(Skips::Below);
}

#[test]
fn a_write_behind_the_look_is_copied_where_the_target_is_zeroed() {
    a_write_behind_the_look_is_copied(Skips::Zeroed);
}

/// Bytes of memory of the bitmaps of a mirror of a disk of 64 TiB, when the source has been looked at.
async fn bitmaps_memory(bench: &Bench, sync: SyncMode, zeroes: bool) -> u64 {
    const HUGE: u64 = 64 << 40;
    let null = |name: &str| json!({"driver": "null-co", "node-name": name, "size": HUGE, "read-zeroes": zeroes});
    let source = bench.node(null("source")).await;
    bench.node(null("target")).await;
    let disk = bench.attach("disk", &source);
    let mut arguments = common("disk");
    arguments.sync = sync;
    let job = bench.mirror_with("target", arguments).await;
    let details = || job.block_job_info().details;
    while details()["x-phase"] == "looking" {
        current::yield_now().await;
    }
    bench.write(&disk, HUGE / 2, 0xf1).await;
    let memory = details()["x-bitmaps-memory"].as_u64().unwrap();
    job.cancel(true).unwrap();
    job.concluded().await;
    memory
}

/// At worst they take three times 2.3 MiB, see [`granularity`](super::super::granularity); but that takes a guest
/// which writes all over the disk.
#[test]
fn bitmaps_of_a_huge_disk_take_little_memory() {
    for sync in [SyncMode::Full, SyncMode::Top, SyncMode::None] {
        for zeroes in [false, true] {
            let memory =
                run(move |bench| async move { bitmaps_memory(&bench, sync, zeroes).await });
            assert!(
                memory > 0 && memory < 1 << 20,
                "{memory} bytes with {sync:?}, zeroes: {zeroes}"
            );
        }
    }
}
