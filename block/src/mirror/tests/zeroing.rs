//! The first phase: the target is made zeroes where the source is.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::bench::{BLOCK, Bench, SIZE, block_value, common, run, run_both};
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::driver::blkdebug::{InjectError, IoType};
use crate::event::BlockEvent;
use crate::job::{IoStatus, JobState, OnError};
use crate::mirror::{BlockdevMirror, blockdev_mirror};
use crate::node::Node;
use sluice_aio::current;

/// Bytes of a mirror's chunk.
const CHUNK: u64 = 64 << 10;

/// A disk that holds data in every second chunk, onto a target full of something else.
async fn bench_disk(bench: &Bench) -> (Arc<Backend>, Arc<Node>) {
    bench.empty_image("disk", SIZE);
    let file = std::fs::File::options()
        .write(true)
        .open(bench.path("disk"))
        .unwrap();
    let data = vec![0x11; usize::try_from(CHUNK).unwrap()];
    for chunk in (0..SIZE / CHUNK).step_by(2) {
        file.write_all_at(&data, chunk * CHUNK).unwrap();
    }
    let node = bench.image_node("disk").await;
    let disk = bench.attach("disk", &node);
    let old = vec![0x5a; usize::try_from(SIZE).unwrap()];
    std::fs::write(bench.path("target"), old).unwrap();
    (disk, bench.debug_node("target").await)
}

fn details(bench: &Bench) -> serde_json::Map<String, Value> {
    bench.job().block_job_info().details
}

fn is_zeroing(bench: &Bench) -> bool {
    details(bench)["x-phase"] == "zeroing"
}

async fn hold_zeroes(target: &Node) {
    let debug = target.as_blkdebug().unwrap();
    debug.wait_break("zeroes").await.unwrap();
}

fn break_at_zeroes(target: &Node) {
    let debug = target.as_blkdebug().unwrap();
    debug.set_break(DebugEvent::PwritevZero, "zeroes").unwrap();
}

fn inject(target: &Node, errno: i32) {
    let error = InjectError::new(DebugEvent::PwritevZero, errno);
    target.as_blkdebug().unwrap().inject(error);
}

#[test]
fn zeroing_is_a_phase_with_a_progress_of_its_own() {
    run_both(|bench| async move {
        let (disk, target) = bench_disk(&bench).await;
        break_at_zeroes(&target);
        bench.mirror("disk", "target").await;
        hold_zeroes(&target).await;
        let held = details(&bench);
        assert_eq!(held["x-phase"], "zeroing");
        assert_eq!(held["x-zeroing-len"], SIZE / 2);
        assert!(held["x-zeroing-offset"].as_u64().unwrap() < SIZE / 2);
        assert_eq!(held["x-bytes-copied"], 0, "zeroes come first");
        let progress = bench.job().info();
        assert!(
            progress.total_progress >= SIZE,
            "what is to be copied counts already"
        );
        // Into the hole that is being made.
        bench.write(&disk, CHUNK, 0xf1).await;
        target.as_blkdebug().unwrap().resume("zeroes").unwrap();
        bench.wait_for(JobState::Ready).await;
        let ready = details(&bench);
        assert_eq!(ready["x-phase"], "ready");
        assert_eq!(ready["x-zeroing-offset"], SIZE / 2);
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(block_value(&bench.bytes("target"), CHUNK), Some(0xf1));
    });
}

#[test]
fn a_pause_rests_in_the_phase() {
    run_both(|bench| async move {
        let (disk, target) = bench_disk(&bench).await;
        break_at_zeroes(&target);
        bench.mirror("disk", "target").await;
        hold_zeroes(&target).await;
        bench.job().pause().unwrap();
        target.as_blkdebug().unwrap().resume("zeroes").unwrap();
        bench.wait_for(JobState::Paused).await;
        assert!(is_zeroing(&bench));
        bench.write(&disk, 3 * CHUNK + BLOCK, 0xf2).await;
        assert_eq!(details(&bench)["x-bytes-copied"], 0);
        bench.job().resume().unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

#[test]
fn a_cancel_ends_the_phase() {
    run_both(|bench| async move {
        let (disk, target) = bench_disk(&bench).await;
        break_at_zeroes(&target);
        let job = bench.mirror("disk", "target").await;
        hold_zeroes(&target).await;
        job.cancel(false).unwrap();
        // The guest goes on meanwhile.
        bench.write(&disk, CHUNK, 0xf3).await;
        target.as_blkdebug().unwrap().resume("zeroes").unwrap();
        bench.end().await;
        assert!(is_zeroing(&bench));
        let cancelled = |event: &BlockEvent| matches!(event, BlockEvent::BlockJobCancelled(_));
        assert!(bench.events().iter().any(cancelled));
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert!(!bench.has_node_of("mirror_top"));
        assert_eq!(target.writer(), None);
    });
}

/// A target that knows no zeroes gets them as data.
#[test]
fn zeroes_are_written_where_they_cannot_be_made() {
    run_both(|bench| async move {
        let (_, target) = bench_disk(&bench).await;
        let mut error = InjectError::new(DebugEvent::PwritevZero, libc::EOPNOTSUPP);
        error.iotype = Some(IoType::WriteZeroes);
        target.as_blkdebug().unwrap().inject(error);
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.error_events(), 0);
        assert_eq!(details(&bench)["x-bytes-zeroed"], SIZE / 2);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

#[test]
fn an_error_goes_by_the_operators_policy() {
    run_both(|bench| async move {
        let (disk, target) = bench_disk(&bench).await;
        inject(&target, libc::ENOSPC);
        let mut arguments = common("disk");
        arguments.on_target_error = OnError::Stop;
        let job = bench.mirror_with("target", arguments).await;
        // The section in which it begins may make it rest as well.
        let has_failed = |event: &BlockEvent| matches!(event, BlockEvent::BlockJobError { .. });
        bench
            .wait_until(|events| events.iter().any(has_failed).then_some(()))
            .await;
        bench.wait_for(JobState::Paused).await;
        assert!(is_zeroing(&bench));
        assert_eq!(job.block_job_info().io_status, IoStatus::Nospace);
        assert_eq!(bench.error_events(), 1);
        bench.write(&disk, CHUNK, 0xf4).await;
        target.as_blkdebug().unwrap().clear_errors();
        job.resume().unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

#[test]
fn an_error_that_is_reported_ends_the_job() {
    run_both(|bench| async move {
        let (disk, target) = bench_disk(&bench).await;
        inject(&target, libc::EIO);
        bench.mirror("disk", "target").await;
        assert_eq!(bench.end().await.as_deref(), Some("Input/output error"));
        assert_eq!(details(&bench)["x-bytes-copied"], 0);
        assert_eq!(disk.node().unwrap().name(), "disk-node");
    });
}

/// A hole that begins and ends inside of chunks: what is around it in these is data.
#[test]
fn the_ends_of_a_hole_are_copied() {
    run_both(|bench| async move {
        let bytes = |len: u64| usize::try_from(len).unwrap();
        let (hole, len) = (CHUNK / 2, 3 * CHUNK);
        let mut image = vec![0x22; bytes(SIZE)];
        image[bytes(hole)..bytes(hole + len)].fill(0);
        bench.empty_image("disk", SIZE);
        let mut file = std::fs::File::options();
        let file = file.write(true).open(bench.path("disk")).unwrap();
        file.write_all_at(&image[..bytes(hole)], 0).unwrap();
        file.write_all_at(&image[bytes(hole + len)..], hole + len)
            .unwrap();
        let node = bench.image_node("disk").await;
        bench.attach("disk", &node);
        let old = vec![0x5a; usize::try_from(SIZE).unwrap()];
        std::fs::write(bench.path("target"), old).unwrap();
        bench.debug_node("target").await;
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(details(&bench)["x-zeroing-len"], 2 * CHUNK);
        // The chunks that are data in part are not copied as a whole.
        assert_eq!(details(&bench)["x-bytes-copied"], SIZE - len);
        assert!(bench.bytes("target") == image);
    });
}

#[test]
fn a_target_that_is_zero_is_not_made_so_again() {
    run(|bench| async move {
        bench_disk(&bench).await;
        bench.target("zero").await;
        let arguments = BlockdevMirror {
            common: common("disk"),
            target: "zero".to_owned(),
            filter_node_name: None,
            target_is_zero: true,
        };
        let started = blockdev_mirror(&bench.graph, arguments, &current::context()).await;
        started.unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(details(&bench)["x-zeroing-len"], json!(0));
        assert_eq!(details(&bench)["x-bytes-zeroed"], json!(0));
        assert_eq!(bench.bytes("disk"), bench.bytes("zero"));
    });
}
