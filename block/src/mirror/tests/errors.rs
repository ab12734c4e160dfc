//! What an error of the source or the target does to the job, and that it does nothing to the guest.

use std::sync::Arc;

use serde_json::json;
use sluice_aio::IoBuffer;

use super::bench::{BLOCK, Bench, SIZE, block_value, common, pattern, run, run_both};
use crate::backend::Submitter;
use crate::driver::DebugEvent;
use crate::driver::blkdebug::InjectError;
use crate::event::BlockEvent;
use crate::job::{IoStatus, Job, JobState, OnError};
use crate::mirror::CopyMode;
use crate::node::Node;

fn inject(node: &Node, event: DebugEvent, errno: i32) {
    node.as_blkdebug()
        .unwrap()
        .inject(InjectError::new(event, errno));
}

fn heal(node: &Node) {
    node.as_blkdebug().unwrap().clear_errors();
}

fn is_stopped(job: &Job) -> Option<IoStatus> {
    let status = job.block_job_info().io_status;
    (status != IoStatus::Ok && job.state() == JobState::Paused).then_some(status)
}

#[test]
fn a_target_that_fails_ends_the_job_and_never_a_guests_write() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        inject(&target, DebugEvent::WriteAio, libc::EIO);
        bench.mirror("disk", "target").await;
        for block in 0..32 {
            bench.write(&disk, block * BLOCK, 0xfe).await;
        }
        assert_eq!(bench.end().await.as_deref(), Some("Input/output error"));
        assert_eq!(bench.error_events(), 1);
        let completed = bench.events().into_iter().find_map(|event| match event {
            BlockEvent::BlockJobCompleted { details, .. } => Some(details),
            _ => None,
        });
        let completed = completed.unwrap();
        assert!(completed.contains_key("x-bytes-copied"));
        let pause = completed.get("x-pivot-pause-us");
        assert_eq!(pause, None, "there was no pivot");
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert!(!bench.has_node_of("mirror_top"));
        assert_eq!(block_value(&bench.bytes("disk"), 0), Some(0xfe));
        assert_eq!(target.writer(), None);
        assert_eq!(disk.node().unwrap().writer().as_deref(), Some("disk"));
    });
}

#[test]
fn a_source_that_cannot_be_read_ends_the_job() {
    run_both(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        bench.target("target").await;
        inject(&source, DebugEvent::ReadAio, libc::EIO);
        bench.mirror("disk", "target").await;
        assert_eq!(bench.end().await.as_deref(), Some("Input/output error"));
        let events = bench.events().into_iter();
        let errors = events.filter(|event| matches!(event, BlockEvent::BlockJobError { .. }));
        let told: Vec<_> = errors
            .map(|event| serde_json::to_value(event).unwrap()["data"].take())
            .collect();
        let expected = json!({
            "device": "job0", "operation": "read", "action": "report", "x-node-name": "disk-node", "x-errno": libc::EIO
        });
        assert_eq!(told, [expected]);
        assert_eq!(disk.node().unwrap().name(), "disk-node");
    });
}

#[test]
fn a_source_error_can_be_waited_out() {
    run(|bench| async move {
        let (_, source) = bench.debug_disk("disk").await;
        bench.target("target").await;
        inject(&source, DebugEvent::ReadAio, libc::EIO);
        let mut arguments = common("disk");
        arguments.on_source_error = OnError::Stop;
        let job = bench.mirror_with("target", arguments).await;
        let status = bench.wait_until(|_| is_stopped(&job)).await;
        assert_eq!(status, IoStatus::Failed);
        heal(&source);
        job.resume().unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

/// Sixteen copies fail at once; the operator resumes the job once.
#[test]
fn one_resume_is_enough_after_a_full_disk() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        inject(&target, DebugEvent::WriteAio, libc::ENOSPC);
        let mut arguments = common("disk");
        arguments.on_target_error = OnError::Enospc;
        // Many small copies, so that several are on their way when the first fails.
        arguments.granularity = Some(4096);
        arguments.buf_size = Some(65536);
        let job = bench.mirror_with("target", arguments).await;
        let status = bench.wait_until(|_| is_stopped(&job)).await;
        assert_eq!(status, IoStatus::Nospace);
        assert_eq!(bench.error_events(), 1);
        // The guest goes on meanwhile, and what it writes is not forgotten.
        bench.write(&disk, 0, 0xf1).await;
        heal(&target);
        job.resume().unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.error_events(), 1);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(0xf1));
    });
}

/// A guest's write to both sides meets the full disk as well, while the job rests.
#[test]
fn one_resume_is_enough_after_a_guest_has_met_the_full_disk_too() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        inject(&target, DebugEvent::WriteAio, libc::ENOSPC);
        let mut arguments = common("disk");
        arguments.on_target_error = OnError::Enospc;
        arguments.copy_mode = CopyMode::WriteBlocking;
        // A write of a whole chunk goes to both sides, although that is dirty.
        arguments.granularity = Some(BLOCK);
        let job = bench.mirror_with("target", arguments).await;
        bench.wait_until(|_| is_stopped(&job)).await;
        for (offset, byte) in [(0, 0xf1), (BLOCK, 0xf2)] {
            bench.write(&disk, offset, byte).await;
        }
        heal(&target);
        job.resume().unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.error_events(), 1);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(block_value(&bench.bytes("target"), BLOCK), Some(0xf2));
    });
}

#[test]
fn with_enospc_other_errors_still_end_the_job() {
    run(|bench| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        inject(&target, DebugEvent::WriteAio, libc::EIO);
        let mut arguments = common("disk");
        arguments.on_target_error = OnError::Enospc;
        bench.mirror_with("target", arguments).await;
        assert_eq!(bench.end().await.as_deref(), Some("Input/output error"));
    });
}

#[test]
fn ignored_errors_are_tried_again_until_they_stop() {
    run_both(|bench| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        inject(&target, DebugEvent::WriteAio, libc::EIO);
        let mut arguments = common("disk");
        arguments.on_target_error = OnError::Ignore;
        let job = bench.mirror_with("target", arguments).await;
        bench
            .wait_until(|_| (bench.error_events() > 0).then_some(()))
            .await;
        assert!(!job.block_job_info().paused);
        heal(&target);
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        let done = bench.job().block_job_info();
        assert_eq!((done.offset, done.len), (SIZE, SIZE));
    });
}

const CHUNK: u64 = 64 << 10;

fn retried(job: &Job) -> u64 {
    job.block_job_info().details["x-bytes-retried"]
        .as_u64()
        .unwrap()
}

/// A mirror that copies chunk by chunk, of which one fails once.
async fn with_a_chunk_that_fails(bench: &Bench, policy: OnError) -> Arc<Job> {
    bench.disk("disk").await;
    let target = bench.target("target").await;
    target.as_blkdebug().unwrap().inject(InjectError {
        sector: i64::try_from(2 * CHUNK / 512).unwrap(),
        once: true,
        ..InjectError::new(DebugEvent::WriteAio, libc::ENOSPC)
    });
    let mut arguments = common("disk");
    arguments.on_target_error = policy;
    arguments.granularity = Some(CHUNK);
    arguments.buf_size = Some(i64::try_from(CHUNK).unwrap());
    bench.mirror_with("target", arguments).await
}

#[test]
fn a_job_that_ends_at_its_first_error_retries_nothing() {
    run_both(|bench| async move {
        let job = with_a_chunk_that_fails(&bench, OnError::Report).await;
        assert!(bench.end().await.is_some());
        assert_eq!(retried(&job), 0);
    });
}

#[test]
fn what_failed_is_retried_once_the_job_is_told_to_go_on() {
    run_both(|bench| async move {
        let job = with_a_chunk_that_fails(&bench, OnError::Stop).await;
        bench.wait_until(|_| is_stopped(&job)).await;
        assert_eq!(retried(&job), 0, "the operator has not decided yet");
        job.resume().unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(retried(&job), CHUNK);
    });
}

#[test]
fn a_job_that_is_cancelled_while_it_rests_retries_nothing() {
    run_both(|bench| async move {
        let job = with_a_chunk_that_fails(&bench, OnError::Stop).await;
        bench.wait_until(|_| is_stopped(&job)).await;
        job.cancel(true).unwrap();
        bench.end().await;
        assert_eq!(retried(&job), 0);
    });
}

/// The guest was told that its write failed, and the job had no part in that. A target that failed is the job's business.
#[test]
fn a_write_to_both_is_retried_if_its_target_failed_and_not_for_its_source() {
    run_both(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        let target = bench.target("target").await;
        let mut arguments = common("disk");
        arguments.copy_mode = CopyMode::WriteBlocking;
        arguments.on_target_error = OnError::Ignore;
        let job = bench.mirror_with("target", arguments).await;
        bench.wait_for(JobState::Ready).await;
        inject(&source, DebugEvent::WriteAio, libc::EIO);
        assert!(bench.begin_write(&disk, 0, 0xf1).await.is_err());
        heal(&source);
        target.as_blkdebug().unwrap().inject(InjectError {
            once: true,
            sector: i64::try_from(2 * CHUNK / 512).unwrap(),
            ..InjectError::new(DebugEvent::WriteAio, libc::EIO)
        });
        bench.write(&disk, 2 * CHUNK, 0xf2).await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(retried(&job), BLOCK);
    });
}

/// Each time the same chunk fails once more; nothing is counted twice or lost.
#[test]
fn a_failed_copy_is_dirty_again() {
    run(|bench| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        for sector in [0, 128, 4096] {
            target.as_blkdebug().unwrap().inject(InjectError {
                sector,
                once: true,
                ..InjectError::new(DebugEvent::WriteAio, libc::EIO)
            });
        }
        let mut arguments = common("disk");
        arguments.on_target_error = OnError::Ignore;
        bench.mirror_with("target", arguments).await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("target"), pattern(SIZE));
        // Copies of 1 MiB: the first fails twice, the third once.
        assert_eq!(retried(&bench.job()), 3 << 20);
    });
}

#[test]
fn a_flush_that_fails_is_judged_as_a_write() {
    run(|bench| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        inject(&target, DebugEvent::FlushToDisk, libc::ENOSPC);
        let mut arguments = common("disk");
        arguments.on_target_error = OnError::Stop;
        let job = bench.mirror_with("target", arguments).await;
        let status = bench.wait_until(|_| is_stopped(&job)).await;
        assert_eq!(status, IoStatus::Nospace);
        heal(&target);
        job.resume().unwrap();
        assert_eq!(bench.complete().await, None);
    });
}

/// A guest's write that fails may have changed some of its bytes: they are copied again.
#[test]
fn a_failed_guest_write_is_recorded_too() {
    run(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        let copied = |job: &Arc<Job>| job.progress().current();
        let before = copied(&bench.job());
        inject(&source, DebugEvent::WriteAio, libc::EIO);
        let failed = bench.begin_write(&disk, 0, 1).await;
        assert!(failed.is_err());
        heal(&source);
        assert_eq!(bench.complete().await, None);
        assert!(
            copied(&bench.job()) > before,
            "the chunk was not copied again"
        );
        assert_eq!(
            disk.stats()
                .of(crate::backend::Account::Write)
                .failed
                .load(std::sync::atomic::Ordering::Relaxed),
            1
        );
    });
}

#[test]
fn a_guests_failed_request_is_told_to_the_operator() {
    run(|bench| async move {
        let (disk, node) = bench.debug_disk("disk").await;
        disk.set_device("disk");
        let guest = Submitter::new(Arc::clone(&disk));
        let write = async || {
            let token = disk.enter().await.unwrap();
            guest.request(token).write(0, IoBuffer::alloc(512)).await
        };
        inject(&node, DebugEvent::WriteAio, libc::EIO);
        assert!(write().await.is_err());
        heal(&node);
        assert!(write().await.is_ok());
        let told: Vec<_> = bench
            .events()
            .iter()
            .filter(|event| matches!(event, BlockEvent::BlockIoError { .. }))
            .map(|event| serde_json::to_value(event).unwrap()["data"].clone())
            .collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0]["qom-path"], "/machine/peripheral/disk");
        assert_eq!(told[0]["device"], "disk");
        assert_eq!(told[0]["node-name"], node.name());
        assert_eq!(told[0]["operation"], "write");
        assert_eq!(told[0]["action"], "report");
        let reason = told[0]["reason"].as_str().unwrap();
        assert!(reason.contains("Input/output"), "{reason}");
    });
}
