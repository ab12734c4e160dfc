//! Guest writes that go to both sides: what they wait for, what they mark, whom they never fail.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sluice_aio::{Clock, IoBuffer, current};

use super::bench::{
    BLOCK, Bench, SIZE, Serving, block_value, common, copy_mode, debug, is_synced, pattern, run,
    run_both, run_both_by_hand, run_with,
};
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::driver::blkdebug::InjectError;
use crate::job::{IoStatus, Job, JobState, OnError};
use crate::mirror::{CopyMode, MirrorCommon, SyncMode};

/// Bytes of a chunk of the dirty bitmap.
const CHUNK: u64 = 64 << 10;

fn to_both() -> MirrorCommon {
    MirrorCommon {
        copy_mode: CopyMode::WriteBlocking,
        granularity: Some(CHUNK),
        ..common("disk")
    }
}

/// A mirror that writes to both sides and is ready.
async fn ready(bench: &Bench) -> Arc<Job> {
    let job = bench.mirror_with("target", to_both()).await;
    bench.wait_for(JobState::Ready).await;
    job
}

fn copied(job: &Job) -> u64 {
    job.block_job_info().details["x-bytes-copied"]
        .as_u64()
        .unwrap_or_default()
}

/// A guest's write of `len` bytes.
fn begin_long_write(
    bench: &Bench,
    disk: &Arc<Backend>,
    offset: u64,
    len: u64,
    value: u8,
) -> impl Future<Output = ()> + use<> {
    let disk = Arc::clone(disk);
    let write = bench.context.call(move || async move {
        let token = disk.enter().await.unwrap();
        let buffer = IoBuffer::alloc(usize::try_from(len).unwrap());
        buffer.fill(0, buffer.len(), value);
        disk.write(&token, offset, buffer).await.unwrap();
    });
    async move { write.await.unwrap() }
}

#[test]
fn a_write_has_reached_both_when_it_ends() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let job = ready(&bench).await;
        assert!(is_synced(&job));
        bench.write(&disk, 4096, 0xf1).await;
        assert_eq!(block_value(&bench.bytes("target"), 4096), Some(0xf1));
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert!(is_synced(&job));
        assert_eq!(bench.complete().await, None);
        assert_eq!(disk.node().unwrap().name(), "target");
        let details = bench.job().block_job_info().details;
        assert_eq!(details["x-bytes-written-to-both"], BLOCK);
    });
}

/// A write larger than a piece of memory, that begins and ends within chunks.
#[test]
fn a_long_write_goes_to_both_in_pieces() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        ready(&bench).await;
        begin_long_write(&bench, &disk, 512, (3 << 20) - 1024, 0xf1).await;
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(bench.complete().await, None);
    });
}

#[test]
fn zeroes_and_discards_reach_both() {
    run_both(|bench| async move {
        std::fs::write(bench.path("disk"), pattern(SIZE)).unwrap();
        let unmapping = |name: &str| {
            json!({"driver": "raw", "node-name": format!("{name}-node"), "discard": "unmap",
                "file": {"driver": "file", "filename": bench.path(name), "discard": "unmap"}})
        };
        let node = bench.node(unmapping("disk")).await;
        let disk = bench.attach("disk", &node);
        bench.empty_image("target", SIZE);
        bench.node(unmapping("target")).await;
        let job = bench.mirror_with("target-node", to_both()).await;
        bench.wait_for(JobState::Ready).await;
        let full = bench.allocated("target");
        let guest = Arc::clone(&disk);
        bench
            .in_guest(move || async move {
                let token = guest.enter().await.unwrap();
                let zeroes = guest.write_zeroes(&token, 0, CHUNK, true);
                zeroes.await.unwrap();
                guest.discard(&token, 1 << 20, CHUNK).await.unwrap();
            })
            .await;
        let before = copied(&job);
        let target = bench.bytes("target");
        assert_eq!(target, bench.bytes("disk"));
        assert_eq!(block_value(&target, 0), Some(0));
        assert_eq!(block_value(&target, 1 << 20), Some(0));
        assert_eq!(full - bench.allocated("target"), 2 * CHUNK);
        assert!(is_synced(&job));
        assert_eq!(bench.complete().await, None);
        assert_eq!(copied(&bench.job()), before, "something was copied for it");
    });
}

/// A disk that ignores discards keeps its bytes, and so does the target.
#[test]
fn a_discard_that_is_ignored_changes_neither_side() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let job = ready(&bench).await;
        let before = bench.bytes("disk");
        let guest = Arc::clone(&disk);
        bench
            .in_guest(move || async move {
                let token = guest.enter().await.unwrap();
                guest.discard(&token, 0, CHUNK).await.unwrap();
            })
            .await;
        assert!(is_synced(&job));
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("target"), before);
        assert_eq!(bench.bytes("disk"), before);
    });
}

/// Two writes to one place: the second reaches neither side before the first has reached both.
#[test]
fn overlapping_writes_come_one_after_the_other() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        ready(&bench).await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "first")
            .unwrap();
        let first = begin_long_write(&bench, &disk, 0, CHUNK, 0xf1);
        debug(&target).wait_break("first").await.unwrap();
        let second = begin_long_write(&bench, &disk, BLOCK, CHUNK, 0xf2);
        // One that does not overlap does not wait.
        bench.write(&disk, 1 << 20, 0xf3).await;
        assert_eq!(block_value(&bench.bytes("disk"), BLOCK), Some(0xf1));
        debug(&target).resume("first").unwrap();
        first.await;
        second.await;
        assert_eq!(block_value(&bench.bytes("target"), BLOCK), Some(0xf2));
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(bench.complete().await, None);
    });
}

/// The copier has read a chunk and is writing it; a write to the chunk waits, or its bytes would be
/// overwritten with older ones.
#[test]
fn a_write_waits_for_the_copy_of_its_chunk() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let common = MirrorCommon {
            sync: SyncMode::None,
            ..to_both()
        };
        let job = bench.mirror_with("target", common).await;
        bench.wait_for(JobState::Ready).await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "copy")
            .unwrap();
        job.change(&copy_mode(CopyMode::Background)).unwrap();
        bench.write(&disk, 0, 0xf1).await;
        debug(&target).wait_break("copy").await.unwrap();
        job.change(&copy_mode(CopyMode::WriteBlocking)).unwrap();
        let write = bench.begin_write(&disk, BLOCK, 0xf2);
        bench.write(&disk, 1 << 20, 0xf3).await;
        assert_ne!(block_value(&bench.bytes("disk"), BLOCK), Some(0xf2));
        debug(&target).resume("copy").unwrap();
        write.await.unwrap();
        assert_eq!(block_value(&bench.bytes("target"), BLOCK), Some(0xf2));
        assert_eq!(bench.complete().await, None);
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(0xf1));
    });
}

/// With the copier held at the disk's beginning: what lies in dirty chunks only in part is left to it, what
/// covers them is not.
#[test]
fn parts_of_dirty_chunks_are_left_to_the_copier() {
    run_both(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        bench.target("target").await;
        debug(&source)
            .set_break(DebugEvent::ReadAio, "copy")
            .unwrap();
        let mut common = to_both();
        // One copy of one chunk, and then no more for long.
        common.buf_size = Some(i64::try_from(CHUNK).unwrap());
        common.speed = Some(1);
        let job = bench.mirror_with("target", common).await;
        debug(&source).wait_break("copy").await.unwrap();
        let far = SIZE - 4 * CHUNK;
        // Within one chunk; then the end of one, two whole ones and the beginning of another.
        bench.write(&disk, far, 0xf1).await;
        assert_eq!(block_value(&bench.bytes("target"), far), Some(0));
        begin_long_write(
            &bench,
            &disk,
            far + CHUNK - BLOCK,
            2 * CHUNK + 2 * BLOCK,
            0xf2,
        )
        .await;
        let (now, value) = (bench.bytes("target"), |at| {
            block_value(&bench.bytes("target"), at)
        });
        assert_eq!(block_value(&now, far + CHUNK - BLOCK), Some(0));
        assert_eq!(value(far + CHUNK), Some(0xf2));
        assert_eq!(value(far + 3 * CHUNK - BLOCK), Some(0xf2));
        assert_eq!(value(far + 3 * CHUNK), Some(0));
        // What was covered is clean now: a part of it goes to both.
        bench.write(&disk, far + CHUNK + BLOCK, 0xf3).await;
        assert_eq!(value(far + CHUNK + BLOCK), Some(0xf3));
        assert!(!is_synced(&job));
        debug(&source).resume("copy").unwrap();
        job.set_speed(0).unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

/// A short last chunk is covered by a write to its end.
#[test]
fn the_last_chunk_may_be_short() {
    run(|bench| async move {
        let size = SIZE + 3 * 512;
        let disk = bench.disk_with("disk", &pattern(size)).await;
        bench.empty_image("target", size);
        bench.debug_node("target").await;
        let job = ready(&bench).await;
        begin_long_write(&bench, &disk, SIZE, 3 * 512, 0xf1).await;
        begin_long_write(&bench, &disk, SIZE - 512, 1024, 0xf2).await;
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert!(is_synced(&job));
        assert_eq!(bench.complete().await, None);
    });
}

#[test]
fn a_target_that_fails_never_fails_the_guests_write() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let mut common = to_both();
        common.on_target_error = OnError::Stop;
        let job = bench.mirror_with("target", common).await;
        bench.wait_for(JobState::Ready).await;
        debug(&target).inject(InjectError::new(DebugEvent::WriteAio, libc::ENOSPC));
        for block in 0..32 {
            bench.write(&disk, block * BLOCK, 0xf1).await;
        }
        let status = bench
            .wait_until(|_| {
                let status = job.block_job_info().io_status;
                (status != IoStatus::Ok && job.state() == JobState::Standby).then_some(status)
            })
            .await;
        assert_eq!(status, IoStatus::Nospace);
        assert!(!is_synced(&job));
        assert_eq!(
            bench.error_events(),
            1,
            "while the job rests nothing is tried"
        );
        assert_eq!(block_value(&bench.bytes("disk"), 0), Some(0xf1));
        debug(&target).clear_errors();
        job.resume().unwrap();
        while !is_synced(&job) {
            current::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

/// What failed at the target is dirty again, and the copier brings it there.
#[test]
fn what_failed_at_the_target_is_copied() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let mut common = to_both();
        common.on_target_error = OnError::Ignore;
        bench.mirror_with("target", common).await;
        bench.wait_for(JobState::Ready).await;
        debug(&target).inject(InjectError {
            once: true,
            ..InjectError::new(DebugEvent::WriteAio, libc::EIO)
        });
        bench.write(&disk, BLOCK, 0xf1).await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(block_value(&bench.bytes("target"), BLOCK), Some(0xf1));
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

/// A source that fails has lost its write and the target has it, or the other way round: both are made
/// the same again.
#[test]
fn a_failed_write_to_the_source_is_marked() {
    run_both(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        bench.target("target").await;
        ready(&bench).await;
        debug(&source).inject(InjectError {
            once: true,
            ..InjectError::new(DebugEvent::WriteAio, libc::EIO)
        });
        assert!(bench.begin_write(&disk, 0, 0xf1).await.is_err());
        assert_eq!(bench.complete().await, None);
        assert_ne!(block_value(&bench.bytes("disk"), 0), Some(0xf1));
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

/// The target hangs with a guest's write. A forced cancel lets the guest go at once, and the target when the
/// request has ended.
#[test]
fn a_forced_cancel_frees_a_guest_that_waits_for_the_target() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let job = ready(&bench).await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "hang")
            .unwrap();
        let held = bench.begin_write(&disk, 0, 0xf1);
        debug(&target).wait_break("hang").await.unwrap();
        let behind = bench.begin_write(&disk, 0, 0xf2);
        job.cancel(true).unwrap();
        held.await.unwrap();
        behind.await.unwrap();
        assert_eq!(block_value(&bench.bytes("disk"), 0), Some(0xf2));
        assert!(target.writer().is_some(), "released with a write in flight");
        assert_ne!(job.state(), JobState::Concluded);
        debug(&target).resume("hang").unwrap();
        bench.end().await;
        assert_eq!(target.writer(), None);
        assert_eq!(disk.node().unwrap().name(), "disk-node");
    });
}

/// From the background to both and back, under a guest.
#[test]
fn the_mode_can_be_switched_both_ways() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let job = bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        assert!(!is_synced(&job));
        for (round, value) in (0xf1..0xf9).enumerate() {
            let mode = match round % 2 {
                0 => CopyMode::WriteBlocking,
                _ => CopyMode::Background,
            };
            job.change(&copy_mode(mode)).unwrap();
            assert_eq!(job.block_job_info().details["x-copy-mode"], mode.name());
            bench.write(&disk, 0, value).await;
            if mode == CopyMode::WriteBlocking {
                while !is_synced(&job) {
                    current::sleep(Duration::from_millis(1)).await;
                }
                bench.write(&disk, 0, value).await;
                assert_eq!(block_value(&bench.bytes("target"), 0), Some(value));
            } else {
                assert!(!is_synced(&job));
            }
        }
        let wrong = json!({"copy-mode": "sideways"});
        assert!(job.change(wrong.as_object().unwrap()).is_err());
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

/// A write of the old mode is on its way to the source when one of the new mode to the same place overtakes
/// it, and ends while that one still is on its way to the target. Which of them the source keeps is its
/// business; the target keeps the same.
#[test]
fn a_write_from_before_the_switch_is_copied() {
    run_both(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        let target = bench.target("target").await;
        let job = bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&source)
            .set_break(DebugEvent::WriteAio, "old")
            .unwrap();
        let old = begin_long_write(&bench, &disk, 0, CHUNK, 0xf1);
        debug(&source).wait_break("old").await.unwrap();
        job.change(&copy_mode(CopyMode::WriteBlocking)).unwrap();
        debug(&target)
            .set_break(DebugEvent::WriteAio, "new")
            .unwrap();
        let new = begin_long_write(&bench, &disk, 0, CHUNK, 0xf2);
        debug(&target).wait_break("new").await.unwrap();
        while block_value(&bench.bytes("disk"), 0) != Some(0xf2) {
            current::sleep(Duration::from_millis(1)).await;
        }
        debug(&source).resume("old").unwrap();
        old.await;
        debug(&target).resume("new").unwrap();
        new.await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(block_value(&bench.bytes("disk"), 0), Some(0xf1));
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

/// A guest writes all of the disk again whenever half of it was copied: an automatic mirror makes it wait, is ready
/// soon after, and a plain one in the background would never be.
#[test]
fn an_automatic_mirror_comes_to_an_end_whatever_the_guest_writes() {
    let converges = |mode| {
        run_with(Serving::Main, Clock::manual(), move |bench| async move {
            let size = 8 << 20;
            let disk = bench.disk_with("disk", &pattern(size)).await;
            bench.empty_image("target", size);
            bench.debug_node("target").await;
            let mut common = common("disk");
            common.copy_mode = mode;
            // Half of the disk in the time of a lap.
            common.speed = Some(20 << 20);
            let job = bench.mirror_with("target", common).await;
            let (mut twofold, mut synced, mut freed) = (false, false, false);
            let laps = if mode == CopyMode::Automatic { 200 } else { 20 };
            for lap in 0..laps {
                let before = job.progress().current();
                begin_long_write(&bench, &disk, 0, size, lap).await;
                bench.advance(Duration::from_millis(200));
                for _ in 0..2000 {
                    current::yield_now().await;
                    if job.progress().current() > before + size / 4 {
                        break;
                    }
                }
                let to_both = job.block_job_info().details["x-writes-to-both"] == true;
                synced |= is_synced(&job);
                freed |= twofold && !to_both;
                twofold |= to_both;
                if freed {
                    break;
                }
            }
            job.cancel(true).unwrap();
            bench.end().await;
            (twofold, synced, freed)
        })
    };
    // At last the background gets another try.
    assert_eq!(converges(CopyMode::Automatic), (true, true, true));
    assert_eq!(converges(CopyMode::Background), (false, false, false));
}
