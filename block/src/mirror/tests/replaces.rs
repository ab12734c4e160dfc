//! `replaces`: the target takes the place of a node below the source's filters.

use std::sync::Arc;

use serde_json::json;
use sluice_aio::current;

use super::bench::{BLOCK, Bench, SIZE, block_value, common, pattern, run, run_both, write_block};
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::job::{Job, JobGroup, JobState};
use crate::mirror::{
    BlockdevMirror, CopyMode, DriveMirror, MirrorCommon, blockdev_mirror, drive_mirror,
};
use crate::node::Node;

/// The disk `NAME` over a filter over the image `NAME`, whose node is `NAME-node`.
async fn filtered_disk(bench: &Bench, name: &str) -> Arc<Backend> {
    std::fs::write(bench.path(name), pattern(SIZE)).unwrap();
    bench.image_node(name).await;
    let filter = bench
        .node(json!({
            "driver": "blkdebug", "node-name": format!("{name}-filter"), "image": format!("{name}-node")
        }))
        .await;
    bench.attach(name, &filter)
}

fn replacing(device: &str, node: &str) -> MirrorCommon {
    MirrorCommon {
        replaces: Some(node.to_owned()),
        ..common(device)
    }
}

/// The name of the node that a filter stands on.
fn below(bench: &Bench, filter: &str) -> String {
    let children = bench.graph.node(filter).unwrap().children();
    children[0].1.name().to_owned()
}

fn root(disk: &Backend) -> String {
    disk.node().unwrap().name().to_owned()
}

#[test]
fn the_target_takes_the_place_below_a_filter() {
    run_both(|bench| async move {
        let disk = filtered_disk(&bench, "disk").await;
        let target = bench.target("target").await;
        bench
            .mirror_with("target", replacing("disk", "disk-node"))
            .await;
        bench.wait_for(JobState::Ready).await;
        bench.write(&disk, BLOCK, 0xf1).await;
        let debug = target.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::PivotClean, "window").unwrap();
        bench.job().complete().unwrap();
        debug.wait_break("window").await.unwrap();
        let parked = bench.park_write(&disk, 2 * BLOCK, 0xf2).await;
        debug.resume("window").unwrap();
        assert_eq!(bench.end().await, None);
        parked.await.unwrap();
        bench.write(&disk, 3 * BLOCK, 0xf3).await;

        assert_eq!(root(&disk), "disk-filter");
        assert_eq!(below(&bench, "disk-filter"), "target");
        let image = bench.bytes("target");
        for (block, value) in [(1, 0xf1), (2, 0xf2), (3, 0xf3)] {
            assert_eq!(block_value(&image, block * BLOCK), Some(value));
        }
        let old = bench.bytes("disk");
        assert_eq!(block_value(&old, BLOCK), Some(0xf1));
        for block in [2, 3] {
            assert_eq!(
                block_value(&old, block * BLOCK),
                block_value(&pattern(SIZE), block * BLOCK)
            );
        }
        assert!(!bench.has_node_of("mirror_top"));
        let old = bench.graph.node("disk-node").unwrap();
        assert_eq!(old.writer(), None);
        assert_eq!(target.writer().as_deref(), Some("disk"));
        // Nobody keeps it.
        old.check_not_blocked().unwrap();
        bench.graph.del_node("disk-node").unwrap();
    });
}

#[test]
fn to_replace_the_source_is_what_happens_anyway() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        bench
            .mirror_with("target", replacing("disk", "disk-node"))
            .await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(root(&disk), "target");
        bench.graph.del_node("disk-node").unwrap();
    });
}

#[test]
fn a_soft_cancel_replaces_nothing() {
    run(|bench| async move {
        let disk = filtered_disk(&bench, "disk").await;
        bench.target("target").await;
        bench
            .mirror_with("target", replacing("disk", "disk-node"))
            .await;
        bench.wait_for(JobState::Ready).await;
        bench.job().cancel(false).unwrap();
        assert_eq!(bench.end().await, None);
        assert_eq!(root(&disk), "disk-filter");
        assert_eq!(below(&bench, "disk-filter"), "disk-node");
    });
}

/// Who reads the old node by a way of its own changes over with the others, and not in the middle of a request.
#[test]
fn everybody_above_the_replaced_node_is_held() {
    run_both(|bench| async move {
        let disk = filtered_disk(&bench, "disk").await;
        let target = bench.target("target").await;
        bench
            .mirror_with("target", replacing("disk", "disk-node"))
            .await;
        bench.wait_for(JobState::Ready).await;
        let node = bench.graph.node("disk-node").unwrap();
        let reader = crate::Access {
            used: crate::Permissions::CONSISTENT_READ,
            shared: crate::Permissions::all(),
        };
        let reader = bench.graph.add_tool(&node, reader).unwrap();
        let debug = target.as_blkdebug().unwrap();
        debug
            .set_break(DebugEvent::PivotSwapped, "swapped")
            .unwrap();
        bench.job().complete().unwrap();
        debug.wait_break("swapped").await.unwrap();
        assert!(disk.gate().is_closed());
        assert!(reader.try_enter().is_none());
        debug.resume("swapped").unwrap();
        assert_eq!(bench.end().await, None);
        assert!(reader.try_enter().is_some());
        assert_eq!(root(&reader), "target");
    });
}

/// An operator's tool on the filter is as good as a guest: both sides get what it writes. Past the filter there is no way, nor where
/// a guest wants its disk for itself.
#[test]
fn tools_write_through_the_filter_alone() {
    let writing = crate::Access {
        used: crate::Permissions::WRITE,
        shared: crate::Permissions::all(),
    };
    for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        run_both(move |bench| async move {
            std::fs::write(bench.path("image"), pattern(SIZE)).unwrap();
            bench.image_node("image").await;
            bench.target("target").await;
            let arguments = BlockdevMirror {
                common: MirrorCommon {
                    copy_mode: mode,
                    ..common("image-node")
                },
                target: "target".to_owned(),
                filter_node_name: Some("filter".to_owned()),
                target_is_zero: false,
            };
            let home = current::context();
            blockdev_mirror(&bench.graph, arguments, &home)
                .await
                .unwrap();
            bench.wait_for(JobState::Ready).await;
            let filter = bench.graph.node("filter").unwrap();
            let tool = bench.graph.add_tool(&filter, writing).unwrap();
            for (block, value) in [(0, 0xf0), (7, 0xf7)] {
                write_block(&tool, block * BLOCK, value).await.unwrap();
            }
            bench.graph.remove_backend(&tool).await;
            for node in ["image-node", "target"] {
                let node = bench.graph.node(node).unwrap();
                let said = bench.graph.add_tool(&node, writing).unwrap_err();
                assert!(said.to_string().contains("is busy"), "{said}");
            }
            assert_eq!(bench.complete().await, None);
            for (block, value) in [(0, 0xf0), (7, 0xf7)] {
                let copied = block_value(&bench.bytes("target"), block * BLOCK);
                assert_eq!(copied, Some(value));
            }
        });
    }
    run(|bench| async move {
        bench.disk("disk").await;
        bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        let root = bench.graph.backend("disk").unwrap().node().unwrap();
        assert_eq!(root.driver_name(), "mirror_top");
        let said = bench.graph.add_tool(&root, writing).unwrap_err();
        assert!(said.to_string().contains("Permission conflict"), "{said}");
        assert_eq!(bench.complete().await, None);
    });
}

#[test]
fn what_shows_other_data_cannot_be_replaced() {
    run(|bench| async move {
        let disk = filtered_disk(&bench, "disk").await;
        bench.target("target").await;
        let other = bench.target("other").await;
        let refused = async |replaces: &str| {
            let started = bench.start("target", replacing("disk", replaces)).await;
            started.unwrap_err().to_string()
        };
        assert_eq!(
            refused("nobody").await,
            "Failed to find node with node-name='nobody'"
        );
        assert_eq!(
            refused("other").await,
            "Cannot replace 'other' by a node mirrored from 'disk-filter', because it cannot be guaranteed that doing \
             so would not lead to an abrupt change of visible data"
        );
        // `raw` may show a part of what is below it.
        let file = bench.graph.node("disk-node").unwrap().children();
        let file = file[0].1.name().to_owned();
        assert!(refused(&file).await.starts_with("Cannot replace"));
        other.block("backup 'b'").unwrap();
        assert_eq!(
            refused("other").await,
            "Node 'other' is busy: block device is in use by block job: backup 'b'"
        );
        assert_eq!(root(&disk), "disk-filter");
        assert!(bench.graph.jobs().jobs().is_empty());
    });
}

#[test]
fn drive_mirror_needs_a_name_for_what_replaces_a_named_node() {
    run(|bench| async move {
        filtered_disk(&bench, "disk").await;
        let start = async |replaces: &str, node_name: Option<&str>| {
            let arguments = DriveMirror {
                common: replacing("disk", replaces),
                target: bench.path("new"),
                format: None,
                node_name: node_name.map(str::to_owned),
                mode: crate::options::NewImageMode::AbsolutePaths,
                unmap: true,
            };
            drive_mirror(&bench.graph, arguments, &current::context()).await
        };
        assert_eq!(
            start("disk-node", None).await.unwrap_err().to_string(),
            "a node-name must be provided when replacing a named node of the graph"
        );
        assert!(start("nobody", Some("new")).await.is_err());
        assert!(!bench.path("new").exists());
        start("disk-node", Some("new")).await.unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(below(&bench, "disk-filter"), "new");
    });
}

#[test]
fn a_node_that_is_gone_keeps_the_job_from_completing() {
    run(|bench| async move {
        let disk = filtered_disk(&bench, "disk").await;
        bench.target("target").await;
        bench
            .mirror_with("target", replacing("disk", "disk-node"))
            .await;
        bench.wait_for(JobState::Ready).await;
        let copy = bench.target("copy").await;
        let node = bench.graph.node("disk-node").unwrap();
        let section = bench.graph.drain(&node, "test").await;
        bench.graph.replace_node(&node, &copy).unwrap();
        drop(section);
        bench.graph.del_node("disk-node").unwrap();
        let refused = bench.job().complete().unwrap_err();
        assert_eq!(refused.to_string(), "Node name 'disk-node' not found");
        bench.wait_for(JobState::Ready).await;
        bench.job().cancel(true).unwrap();
        bench.end().await;
        assert_eq!(root(&disk), "disk-filter");
    });
}

#[test]
fn from_complete_on_the_node_is_the_jobs() {
    run(|bench| async move {
        filtered_disk(&bench, "disk").await;
        bench.target("target").await;
        let mut arguments = replacing("disk", "disk-node");
        arguments.auto_finalize = Some(false);
        bench.mirror_with("target", arguments).await;
        bench.wait_for(JobState::Ready).await;
        let node = bench.graph.node("disk-node").unwrap();
        node.block("backup 'b'").unwrap();
        assert_eq!(
            bench.job().complete().unwrap_err().to_string(),
            "Node 'disk-node' is busy: block device is in use by block job: backup 'b'"
        );
        node.unblock();
        bench.job().complete().unwrap();
        // Again, before it has ended.
        bench.job().complete().unwrap();
        let busy = node.check_not_blocked().unwrap_err();
        assert!(busy.to_string().ends_with("mirror 'job0'"), "{busy}");
        bench.wait_for(JobState::Pending).await;
        bench.job().finalize().unwrap();
        assert_eq!(bench.end().await, None);
        node.check_not_blocked().unwrap();
    });
}

/// The disk has got a snapshot below its filter meanwhile: the old node shows what is above it no more.
#[test]
fn a_node_that_shows_other_data_by_now_is_not_replaced() {
    run_both(|bench| async move {
        let disk = filtered_disk(&bench, "disk").await;
        bench.target("target").await;
        bench
            .mirror_with("target", replacing("disk", "disk-node"))
            .await;
        bench.wait_for(JobState::Ready).await;
        let size = usize::try_from(SIZE).unwrap();
        let overlay = bench.graph.add_overlay("overlay", size, None).unwrap();
        let node = bench.graph.node("disk-node").unwrap();
        bench.graph.snapshot(&node, &overlay).await.unwrap();
        bench.write(&disk, BLOCK, 0xf1).await;
        let error = bench.complete().await.unwrap();
        assert!(
            error.starts_with("Can no longer replace 'disk-node' by 'target'"),
            "{error}"
        );
        assert_eq!(root(&disk), "disk-filter");
        assert_eq!(below(&bench, "disk-filter"), "overlay");
        assert!(!bench.has_node_of("mirror_top"));
        node.check_not_blocked().unwrap();
        bench.write(&disk, BLOCK, 0xf2).await;
        assert!(!disk.gate().is_closed());
    });
}

async fn ready(bench: &Bench, name: &str, common: MirrorCommon) -> Arc<Job> {
    let target = format!("{name}-copy");
    bench.target(&target).await;
    let common = MirrorCommon {
        job_id: Some(name.to_owned()),
        ..common
    };
    bench.start(&target, common).await.unwrap();
    let job = bench.graph.jobs().get(name).unwrap();
    let is_ready = |_: &[_]| (job.state() == JobState::Ready).then_some(());
    bench.wait_until(is_ready).await;
    job
}

fn target_debug(bench: &Bench, name: &str) -> Arc<Node> {
    bench.graph.node(&format!("{name}-copy")).unwrap()
}

/// One of a group can't pivot: the other's target has left the place that it had taken already.
#[test]
fn a_group_that_fails_puts_the_old_node_back() {
    run_both(|bench| async move {
        let first = filtered_disk(&bench, "first").await;
        bench.disk("second").await;
        let jobs = [
            ready(&bench, "first", replacing("first", "first-node")).await,
            ready(&bench, "second", common("second")).await,
        ];
        let target = target_debug(&bench, "second");
        let debug = target.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::PivotAgreed, "held").unwrap();
        JobGroup::complete(&jobs).unwrap();
        debug.wait_break("held").await.unwrap();
        while below(&bench, "first-filter") != "first-copy" {
            current::yield_now().await;
        }
        debug.fail("held", libc::EIO).unwrap();
        for job in &jobs {
            job.concluded().await;
        }
        assert_eq!(root(&first), "first-filter");
        assert_eq!(below(&bench, "first-filter"), "first-node");
        bench.write(&first, BLOCK, 0xf1).await;
        assert_eq!(block_value(&bench.bytes("first"), BLOCK), Some(0xf1));
        assert_eq!(target_debug(&bench, "first").writer(), None);
    });
}

#[test]
fn a_group_that_is_refused_lets_go_of_the_node() {
    run(|bench| async move {
        filtered_disk(&bench, "first").await;
        bench.disk("second").await;
        let first = ready(&bench, "first", replacing("first", "first-node")).await;
        let second = ready(&bench, "second", common("second")).await;
        let jobs = [Arc::clone(&first), Arc::clone(&second)];
        second.cancel(false).unwrap();
        JobGroup::complete(&jobs).unwrap_err();
        let node = bench.graph.node("first-node").unwrap();
        node.check_not_blocked().unwrap();
        first.complete().unwrap();
        // What was promised before stays so.
        JobGroup::complete(&jobs).unwrap_err();
        first.concluded().await;
        assert_eq!(first.info().error, None);
        assert_eq!(below(&bench, "first-filter"), "first-copy");
    });
}
