//! Cancelling in every phase, and things that go away while a mirror runs.

use std::sync::Arc;

use futures_util::FutureExt;
use serde_json::json;
use sluice_aio::{IoBuffer, current};

use super::bench::{
    BLOCK, Bench, SIZE, block_value, common, debug, pattern, run, run_both, run_both_by_hand,
};
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::driver::throttle::ThrottleLimits;
use crate::event::BlockEvent;
use crate::job::JobState;
use crate::mirror::{BlockdevMirror, blockdev_mirror};
use crate::node::Node;
use crate::parting::tests::{hold, wait_held, yield_often};

/// The disk is where it was and works, and nothing of the job is left on it.
async fn assert_untouched(bench: &Bench, disk: &Arc<Backend>, target: &Node) {
    assert_eq!(disk.node().unwrap().name(), "disk-node");
    assert!(!bench.has_node_of("mirror_top"));
    assert!(!disk.gate().is_closed());
    assert_eq!(disk.node().unwrap().writer().as_deref(), Some("disk"));
    assert_eq!(target.writer(), None);
    bench.write(disk, 0, 0xf7).await;
    assert_eq!(block_value(&bench.bytes("disk"), 0), Some(0xf7));
    assert_ne!(block_value(&bench.bytes("target"), 0), Some(0xf7));
    let completed = |event: &BlockEvent| matches!(event, BlockEvent::BlockJobCompleted { .. });
    assert!(!bench.events().iter().any(completed));
    // Source and target may be used again.
    if let Some(job) = bench.graph.jobs().get("job0") {
        // One that was cancelled before it began has gone by itself.
        job.dismiss().unwrap();
    }
    bench.mirror("disk", "target").await;
    assert_eq!(bench.complete().await, None);
    assert_eq!(block_value(&bench.bytes("target"), 0), Some(0xf7));
}

#[test]
fn right_after_the_start() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await.cancel(true).unwrap();
        bench.end().await;
        // Whoever was told that the job exists is told of its end, also if its loop had not heard of it yet.
        let cancelled = |event: &BlockEvent| matches!(event, BlockEvent::BlockJobCancelled(_));
        assert!(bench.events().iter().any(cancelled));
        assert_untouched(&bench, &disk, &target).await;
    });
}

/// A limit that would hold what the job has asked for hours is no reason to wait: time stands still here.
#[test]
fn while_limits_hold_the_copies() {
    for limited in ["disk-node", "target"] {
        run_both_by_hand(move |bench| async move {
            std::fs::write(bench.path("disk"), pattern(SIZE)).unwrap();
            bench.image_node("disk").await;
            bench.target("target").await;
            let slow: ThrottleLimits = serde_json::from_value(json!({"bps-total": 1})).unwrap();
            let group = bench.graph.throttle_groups().add("slow", slow).unwrap();
            let node = json!({
                "driver": "throttle", "node-name": "limited", "throttle-group": "slow", "file": limited
            });
            bench.node(node).await;
            let (source, target) = match limited {
                "target" => ("disk-node", "limited"),
                _ => ("limited", "target"),
            };
            let job = bench.mirror(source, target).await;
            bench.wait_for(JobState::Running).await;
            yield_often().await;
            assert_eq!(job.state(), JobState::Running, "held up by the limit");
            job.cancel(true).unwrap();
            bench.end().await;
            job.dismiss().unwrap();
            // They hold again.
            assert_eq!(group.limits(), slow);
            let limited = bench.graph.node("limited").unwrap();
            let mut reads = Box::pin(async {
                for block in 0..3 {
                    let buffer = IoBuffer::alloc(usize::try_from(BLOCK).unwrap());
                    limited.read(block * BLOCK, buffer).await.unwrap();
                }
            });
            for _ in 0..1000 {
                assert!((&mut reads).now_or_never().is_none());
                current::yield_now().await;
            }
        });
    }
}

/// The target hangs, and not for too long. The guest does not, and the job ends when the request does.
#[test]
fn while_a_copy_hangs() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        hold(&target, DebugEvent::WriteAio);
        let job = bench.mirror("disk", "target").await;
        wait_held(&target).await;
        job.cancel(true).unwrap();
        for block in 0..64 {
            bench.write(&disk, block * BLOCK, 0xf5).await;
        }
        assert_ne!(job.state(), JobState::Concluded);
        assert!(
            target.writer().is_some(),
            "the target was released with a write in flight"
        );
        debug(&target).resume("hang").unwrap();
        bench.end().await;
        assert_untouched(&bench, &disk, &target).await;
    });
}

#[test]
fn while_the_targets_flush_hangs() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        hold(&target, DebugEvent::FlushToDisk);
        let job = bench.mirror("disk", "target").await;
        wait_held(&target).await;
        job.cancel(true).unwrap();
        bench.write(&disk, BLOCK, 0xf5).await;
        debug(&target).resume("hang").unwrap();
        bench.end().await;
        assert_untouched(&bench, &disk, &target).await;
    });
}

#[test]
fn when_ready() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        bench.job().cancel(true).unwrap();
        bench.end().await;
        assert_untouched(&bench, &disk, &target).await;
    });
}

#[test]
fn when_paused_by_the_operator() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        bench.job().pause().unwrap();
        bench.wait_for(JobState::Standby).await;
        bench.job().cancel(true).unwrap();
        bench.end().await;
        assert_untouched(&bench, &disk, &target).await;
    });
}

#[test]
fn when_it_waits_to_be_finalised() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let mut arguments = common("disk");
        arguments.auto_finalize = Some(false);
        bench.mirror_with("target", arguments).await;
        bench.wait_for(JobState::Ready).await;
        bench.job().complete().unwrap();
        bench.wait_for(JobState::Pending).await;
        bench.job().cancel(true).unwrap();
        bench.end().await;
        assert_untouched(&bench, &disk, &target).await;
    });
}

#[test]
fn once_the_root_is_swapped_it_is_too_late() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&target)
            .set_break(DebugEvent::PivotSwapped, "window")
            .unwrap();
        bench.job().complete().unwrap();
        debug(&target).wait_break("window").await.unwrap();
        assert!(bench.job().cancel(true).is_err());
        debug(&target).resume("window").unwrap();
        assert_eq!(bench.end().await, None);
        assert_eq!(disk.node().unwrap().name(), "target");
    });
}

/// The machine goes down in the middle of a copy.
#[test]
fn by_the_machines_end() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.graph.jobs().shut_down().await;
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert_eq!(target.writer(), None);
        let refused = bench.start("target", common("disk")).await.unwrap_err();
        assert!(refused.to_string().contains("shuts down"), "{refused}");
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert!(!bench.has_node_of("mirror_top"));
        assert_eq!(target.writer(), None);
    });
}

/// A client gives up while the start still waits for a guest's request to end.
#[test]
fn before_the_start_has_its_section() {
    run_both(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        let target = bench.target("target").await;
        debug(&source)
            .set_break(DebugEvent::WriteAio, "slow")
            .unwrap();
        let write = bench.begin_write(&disk, 0, 0xf3);
        debug(&source).wait_break("slow").await.unwrap();
        let graph = Arc::clone(&bench.graph);
        let arguments = BlockdevMirror {
            common: common("disk"),
            target: "target".to_owned(),
            filter_node_name: None,
            target_is_zero: false,
        };
        let start = current::spawn_local(async move {
            drop(blockdev_mirror(&graph, arguments, &current::context()).await);
        });
        while !disk.gate().is_closed() {
            current::yield_now().await;
        }
        assert_eq!(target.writer().as_deref(), Some("mirror job 'job0'"));
        start.cancel();
        while disk.gate().is_closed() {
            current::yield_now().await;
        }
        debug(&source).resume("slow").unwrap();
        write.await.unwrap();
        assert_eq!(target.writer(), None);
        assert!(bench.graph.jobs().jobs().is_empty());
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
    });
}

#[test]
fn the_device_is_unplugged_meanwhile() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        bench.write(&disk, 0, 0xf9).await;
        bench.graph.remove_backend(&disk).await;
        assert!(disk.node().is_none());
        assert_eq!(bench.complete().await, None);
        let mut expected = pattern(SIZE);
        expected[..usize::try_from(BLOCK).unwrap()].fill(0xf9);
        assert_eq!(bench.bytes("target"), expected);
        assert_eq!(target.writer(), None);
        assert_eq!(bench.graph.node("disk-node").unwrap().writer(), None);
        assert!(!bench.has_node_of("mirror_top"));
        bench.graph.del_node("disk-node").unwrap();
        bench.graph.del_node("target").unwrap();
    });
}

#[test]
fn the_device_is_unplugged_inside_the_pivot() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&target)
            .set_break(DebugEvent::PivotClean, "window")
            .unwrap();
        bench.job().complete().unwrap();
        debug(&target).wait_break("window").await.unwrap();
        let parked = bench.park_write(&disk, 0, 0xf9).await;
        bench.graph.remove_backend(&disk).await;
        assert!(parked.await.is_err());
        debug(&target).resume("window").unwrap();
        assert_eq!(bench.end().await, None);
        assert_eq!(target.writer(), None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

#[test]
fn a_drained_source_holds_the_job_and_lets_it_go_on() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "first")
            .unwrap();
        let job = bench.mirror("disk", "target").await;
        debug(&target).wait_break("first").await.unwrap();
        let graph = Arc::clone(&bench.graph);
        let source = bench.graph.node("disk-node").unwrap();
        let section = current::spawn_local(async move { graph.drain(&source, "test").await });
        while !disk.gate().is_closed() {
            current::yield_now().await;
        }
        assert!(job.is_busy(), "a copy is in flight");
        debug(&target).resume("first").unwrap();
        let section = section.await.unwrap();
        assert!(!job.is_busy());
        assert_eq!(job.state(), JobState::Paused);
        let (before, source) = (bench.bytes("target"), bench.bytes("disk"));
        yield_often().await;
        assert_eq!(
            (bench.bytes("target"), bench.bytes("disk")),
            (before, source)
        );
        drop(section);
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

#[test]
fn a_drained_target_holds_the_job_too() {
    run(|bench| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        let job = bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        let section = bench.graph.drain(&target, "test").await;
        assert_eq!(job.state(), JobState::Standby);
        // Completing waits for the section's end.
        job.complete().unwrap();
        yield_often().await;
        assert_eq!(job.state(), JobState::Standby);
        drop(section);
        assert_eq!(bench.end().await, None);
    });
}
