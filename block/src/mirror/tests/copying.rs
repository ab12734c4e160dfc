//! What is copied and how: sizes, holes, order, speed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sluice_aio::{Clock, IoBuffer, current};
use sluice_tests::sharing;

use super::bench::{
    BLOCK, Bench, SIZE, Serving, block_value, common, debug, pattern, run, run_both, run_with,
};
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::job::JobState;
use crate::mirror::{BlockdevMirror, DriveMirror, SyncMode, blockdev_mirror, drive_mirror};
use crate::parting::tests::yield_often;

async fn copies_exactly(
    bench: &Bench,
    contents: &[u8],
    granularity: u64,
    buf_size: i64,
    by_workers: bool,
) {
    let disk = bench.disk_with("disk", contents).await;
    bench.empty_image("target", contents.len() as u64);
    if by_workers {
        bench.plain_node("target", json!({})).await;
    } else {
        bench.debug_node("target").await;
    }
    let mut arguments = common("disk");
    arguments.granularity = Some(granularity);
    arguments.buf_size = Some(buf_size);
    bench.mirror_with("target", arguments).await;
    bench.wait_for(JobState::Ready).await;
    // The last bytes once more: a short last chunk.
    let last = (contents.len() as u64).checked_sub(BLOCK);
    if let Some(last) = last {
        bench.write(&disk, last, 0xfa).await;
    }
    assert_eq!(bench.complete().await, None);
    assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    if let Some(last) = last {
        assert_eq!(block_value(&bench.bytes("target"), last), Some(0xfa));
    }
    let done = bench.job().block_job_info();
    assert_eq!(done.offset, done.len);
}

#[test]
fn any_size_is_copied_with_any_granularity() {
    for size in [0, BLOCK, BLOCK + 512, (1 << 20) + 3 * 512, (2 << 20) - 512] {
        for granularity in [512, 4096, 65536, 1 << 20, 64 << 20] {
            for by_workers in [false, true] {
                run(|bench| async move {
                    copies_exactly(&bench, &pattern(size), granularity, 0, by_workers).await;
                });
            }
        }
    }
}

#[test]
fn any_buffer_size_will_do() {
    for buf_size in [1, 4096, 65537, i64::MAX] {
        for by_workers in [false, true] {
            run(|bench| async move {
                copies_exactly(&bench, &pattern(SIZE), 65536, buf_size, by_workers).await;
            });
        }
    }
}

/// However slow the target, what is on its way to it is never more than `buf-size`, in at most sixteen copies.
#[test]
fn what_is_in_flight_is_bounded_by_the_buffer() {
    const COPIES: usize = 16;
    for (buf_size, in_flight) in [(1, 64 << 10), (128 << 10, 128 << 10), (1 << 20, 1 << 20)] {
        run(|bench| async move {
            bench.disk("disk").await;
            let target = bench.target("target").await;
            let tag = |number: usize| format!("write{number}");
            for number in 0..2 * COPIES + 1 {
                let held = debug(&target).set_break(DebugEvent::WriteAio, &tag(number));
                held.unwrap();
            }
            let mut arguments = common("disk");
            arguments.buf_size = Some(buf_size);
            arguments.granularity = Some(4096);
            let job = bench.mirror_with("target", arguments).await;
            for round in 0..2 {
                let last = (round + 1) * COPIES - 1;
                debug(&target).wait_break(&tag(last)).await.unwrap();
                yield_often().await;
                let next = tag(last + 1);
                assert!(
                    !debug(&target).is_suspended(&next),
                    "one more is on its way"
                );
                for number in round * COPIES..=last {
                    debug(&target).resume(&tag(number)).unwrap();
                }
                if round == 0 {
                    // All of the first have ended when as many others are held.
                    debug(&target)
                        .wait_break(&tag(2 * COPIES - 1))
                        .await
                        .unwrap();
                    let there = bench
                        .bytes("target")
                        .iter()
                        .filter(|byte| **byte != 0)
                        .count();
                    assert_eq!(there, in_flight, "buf-size {buf_size}");
                }
            }
            debug(&target).remove_break(&tag(2 * COPIES)).unwrap();
            bench.wait_for(JobState::Ready).await;
            job.complete().unwrap();
            assert_eq!(bench.end().await, None);
            assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        });
    }
}

/// Data at a few places of a sparse disk.
fn write_sparse(bench: &Bench, name: &str, places: &[u64]) {
    bench.empty_image(name, SIZE);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(bench.path(name))
        .unwrap();
    for place in places {
        file.write_all_at(&pattern(BLOCK), *place).unwrap();
    }
}

const PLACES: [u64; 3] = [0, 1 << 20, SIZE - BLOCK];

async fn sparse_disk(bench: &Bench) -> Arc<Backend> {
    write_sparse(bench, "disk", &PLACES);
    let node = bench.image_node("disk").await;
    bench.attach("disk", &node)
}

#[test]
fn a_sparse_disk_stays_sparse() {
    run(|bench| async move {
        sparse_disk(&bench).await;
        bench.target("target").await;
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert!(bench.allocated("target") <= bench.allocated("disk") + 65536);
        let details = bench.job().block_job_info().details;
        let zeroed = details["x-bytes-zeroed"].as_u64().unwrap();
        let copied = details["x-bytes-copied"].as_u64().unwrap();
        assert_eq!(zeroed + copied, SIZE);
        assert_eq!(copied, PLACES.len() as u64 * BLOCK);
    });
}

/// What the target held before is gone where the source has holes.
async fn old_data_is_zeroed(bench: Bench, discard: &str) -> u64 {
    sparse_disk(&bench).await;
    std::fs::write(
        bench.path("target"),
        vec![0x5a; usize::try_from(SIZE).unwrap()],
    )
    .unwrap();
    let file = json!({"driver": "file", "filename": bench.path("target")});
    bench
        .node(json!({
            "driver": "raw", "node-name": "target", "discard": discard, "file": file
        }))
        .await;
    bench.mirror("disk", "target").await;
    assert_eq!(bench.complete().await, None);
    assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    bench.allocated("target")
}

#[test]
fn holes_become_holes_on_a_target_that_unmaps() {
    let allocated = run(|bench| old_data_is_zeroed(bench, "unmap"));
    assert!(
        allocated <= PLACES.len() as u64 * BLOCK + 65536,
        "{allocated}"
    );
}

#[test]
fn holes_become_zeroes_on_a_target_that_does_not() {
    let allocated = run(|bench| old_data_is_zeroed(bench, "ignore"));
    assert!(allocated >= SIZE, "{allocated}");
}

async fn drive_mirror_onto_old_data(bench: Bench, unmap: bool) -> u64 {
    sparse_disk(&bench).await;
    std::fs::write(
        bench.path("target"),
        vec![0x5a; usize::try_from(SIZE).unwrap()],
    )
    .unwrap();
    let arguments = DriveMirror {
        common: common("disk"),
        target: bench.path("target"),
        format: Some("raw".to_owned()),
        node_name: Some("copy".to_owned()),
        mode: crate::options::NewImageMode::Existing,
        unmap,
    };
    drive_mirror(&bench.graph, arguments, &current::context())
        .await
        .unwrap();
    assert_eq!(bench.complete().await, None);
    assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    let root = bench.graph.backend("disk").unwrap().node().unwrap();
    assert_eq!(root.name(), "copy");
    bench.allocated("target")
}

#[test]
fn drive_mirror_unmaps_if_asked() {
    let holes = run(|bench| drive_mirror_onto_old_data(bench, true));
    let zeroes = run(|bench| drive_mirror_onto_old_data(bench, false));
    assert!(holes < zeroes, "{holes} {zeroes}");
}

#[test]
fn drive_mirror_makes_its_target() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let arguments = DriveMirror {
            common: common("disk"),
            target: bench.path("new"),
            format: None,
            node_name: None,
            mode: crate::options::NewImageMode::AbsolutePaths,
            unmap: true,
        };
        drive_mirror(&bench.graph, arguments, &current::context())
            .await
            .unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("new"));
        // The new disk goes with its device.
        bench.job().dismiss().unwrap();
        bench.graph.remove_backend(&disk).await;
        let left: Vec<_> = bench
            .graph
            .nodes()
            .iter()
            .map(|node| node.name().to_owned())
            .collect();
        // The old source is the monitor's, with the file node that it brought along.
        assert_eq!(left.len(), 2, "{left:?}");
        bench.graph.del_node("disk-node").unwrap();
        assert!(bench.graph.nodes().is_empty());
    });
}

#[test]
fn zeroes_and_discards_of_the_guest_are_carried() {
    run_both(|bench| async move {
        std::fs::write(bench.path("disk"), pattern(SIZE)).unwrap();
        let file = json!({"driver": "file", "filename": bench.path("disk")});
        let node = bench
            .node(json!({
                "driver": "raw", "node-name": "disk-node", "discard": "unmap", "file": file
            }))
            .await;
        let disk = bench.attach("disk", &node);
        bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        let guest = Arc::clone(&disk);
        bench
            .in_guest(move || async move {
                let token = guest.enter().await.unwrap();
                guest.write_zeroes(&token, 0, 1 << 20, true).await.unwrap();
                guest
                    .write_zeroes(&token, 1 << 20, 1 << 20, false)
                    .await
                    .unwrap();
                guest.discard(&token, 3 << 20, 4096).await.unwrap();
            })
            .await;
        assert_eq!(bench.complete().await, None);
        let image = bench.bytes("target");
        assert!(image[..2 << 20].iter().all(|byte| *byte == 0));
        assert_eq!(image, bench.bytes("disk"));
        assert_eq!(block_value(&image, 3 << 20), Some(0));
        assert_eq!(image[2 << 20..3 << 20], pattern(SIZE)[2 << 20..3 << 20]);
    });
}

/// A copy hangs on its way to the target while the guest writes the same chunk: the chunk must not
/// be copied again beside it, or the old bytes would land on the new ones.
#[test]
fn copies_of_one_chunk_do_not_overtake_each_other() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let mut arguments = common("disk");
        arguments.granularity = Some(65536);
        bench.mirror_with("target", arguments).await;
        bench.wait_for(JobState::Ready).await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "old")
            .unwrap();
        bench.write(&disk, 0, 0xf1).await;
        debug(&target).wait_break("old").await.unwrap();
        // It carries 0xf1. The newer bytes are dirty from now on.
        bench.write(&disk, 0, 0xf2).await;
        // What else is dirty is copied; once that has happened, the job has seen our chunk too.
        bench.write(&disk, 1 << 20, 0xf3).await;
        while block_value(&bench.bytes("target"), 1 << 20) != Some(0xf3) {
            current::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(
            block_value(&bench.bytes("target"), 0),
            block_value(&pattern(SIZE), 0)
        );
        debug(&target).resume("old").unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(0xf2));
    });
}

/// A write lands between the copier's read and the end of its copy: the mark was cleared before the
/// read, so the write's own mark stands.
#[test]
fn a_write_behind_the_copiers_read_is_copied_again() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "copy")
            .unwrap();
        bench.write(&disk, 0, 0xf1).await;
        debug(&target).wait_break("copy").await.unwrap();
        // The copier has read the chunk and not yet written it. Nothing else is dirty.
        bench.write(&disk, 4096, 0xf2).await;
        debug(&target).resume("copy").unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(block_value(&bench.bytes("target"), 4096), Some(0xf2));
    });
}

/// With a target that is known to hold nothing only data is copied, and what the guest writes.
#[test]
fn zeroes_are_skipped_on_a_target_that_is_zero() {
    run(|bench| async move {
        let disk = sparse_disk(&bench).await;
        bench.target("target").await;
        let arguments = BlockdevMirror {
            common: common("disk"),
            target: "target".to_owned(),
            filter_node_name: None,
            target_is_zero: true,
        };
        blockdev_mirror(&bench.graph, arguments, &current::context())
            .await
            .unwrap();
        bench.wait_for(JobState::Ready).await;
        bench.write(&disk, 2 << 20, 0xf1).await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        let details = bench.job().block_job_info().details;
        assert_eq!(details["x-bytes-skipped"], SIZE - 3 * BLOCK);
        assert!(bench.job().progress().total() < SIZE / 2);
    });
}

/// `sync=top` copies what the top layer holds, zeroes of its own included; the rest is shown by the target's
/// own backing image.
#[test]
fn the_top_layer_alone_is_copied() {
    run(|bench| async move {
        let size = usize::try_from(SIZE).unwrap();
        std::fs::write(bench.path("base"), pattern(SIZE)).unwrap();
        let base = bench.image_node("base").await;
        let top = bench.graph.add_overlay("top", size, Some(&base)).unwrap();
        let disk = bench.attach("disk", &top);
        let copy = bench.graph.add_overlay("copy", size, Some(&base)).unwrap();
        bench.write(&disk, 1 << 20, 0xf1).await;
        let mut arguments = common("disk");
        arguments.sync = SyncMode::Top;
        arguments.granularity = Some(BLOCK);
        bench.mirror_with("copy", arguments).await;
        bench.wait_for(JobState::Ready).await;
        bench.write(&disk, 2 << 20, 0xf2).await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(disk.node().unwrap().name(), "copy");
        let details = bench.job().block_job_info().details;
        assert_eq!(details["x-bytes-copied"], 2 * BLOCK);
        assert_eq!(details["x-bytes-skipped"], SIZE - BLOCK);
        let (old, new) = (IoBuffer::alloc(size), IoBuffer::alloc(size));
        top.read(0, old.clone()).await.unwrap();
        copy.read(0, new.clone()).await.unwrap();
        assert!(old.to_vec() == new.to_vec());
    });
}

/// What a target's options ask of a write is asked of a copy as well: workers leave those to the requests.
#[test]
fn a_target_that_looks_for_zeroes_gets_to_see_the_bytes() {
    run(|bench| async move {
        let size = usize::try_from(SIZE).unwrap();
        bench.disk_with("disk", &vec![0; size]).await;
        bench.empty_image("target", SIZE);
        let looks = json!({"discard": "unmap", "detect-zeroes": "unmap"});
        bench.plain_node("target", looks).await;
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.allocated("disk"), SIZE);
        assert_eq!(bench.allocated("target"), 0);
    });
}

/// A worker that fails does not say at which side: the request that follows does.
#[test]
fn a_worker_that_fails_is_followed_by_a_request_that_tells_why() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        let size = usize::try_from(SIZE).unwrap();
        std::fs::write(bench.path("target"), vec![0xff; size]).unwrap();
        let target = bench.plain_node("target", json!({})).await;
        // Shorter than it says: what it has lost reads as zeroes.
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(bench.path("disk"));
        file.unwrap().set_len(SIZE / 2).unwrap();
        let source = disk.node().unwrap();
        assert!(target.copy_from(&source, 0, BLOCK).await);
        assert!(!target.copy_from(&source, SIZE / 2, BLOCK).await);
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        let (copy, half) = (bench.bytes("target"), usize::try_from(SIZE / 2).unwrap());
        assert_eq!(copy[..half], pattern(SIZE)[..half]);
        assert!(copy[half..].iter().all(|byte| *byte == 0));
    });
}

/// The first copy of a chunk is on its way; a write to it is not lost because recording began later.
#[test]
fn writes_are_recorded_from_the_first_moment() {
    run_both(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        bench.target("target").await;
        debug(&source)
            .set_break(DebugEvent::ReadAio, "first")
            .unwrap();
        bench.mirror("disk", "target").await;
        debug(&source).wait_break("first").await.unwrap();
        for block in 0..SIZE / BLOCK {
            bench.write(&disk, block * BLOCK, 0xf4).await;
        }
        debug(&source).resume("first").unwrap();
        assert_eq!(bench.complete().await, None);
        assert!(bench.bytes("target").iter().all(|byte| *byte == 0xf4));
    });
}

/// On a clock that the test moves: what is copied never exceeds what the limit allows for the time.
#[test]
fn the_speed_limit_is_kept() {
    keeps_to_its_speed(false);
}

#[test]
fn the_speed_limit_is_kept_by_worker_threads() {
    keeps_to_its_speed(true);
}

fn keeps_to_its_speed(by_workers: bool) {
    run_with(Serving::Main, Clock::manual(), move |bench| async move {
        let disk = bench.disk("disk").await;
        if by_workers {
            bench.empty_image("target", SIZE);
            bench.plain_node("target", json!({})).await;
        } else {
            bench.target("target").await;
        }
        let mut arguments = common("disk");
        // 65536 bytes in a tenth of a second, in copies of 65536.
        arguments.speed = Some(655_360);
        arguments.granularity = Some(65536);
        arguments.buf_size = Some(65536 * 16);
        let job = bench.mirror_with("target", arguments).await;
        for tenths in 1..10 {
            let settled = tenths * 65536;
            while job.progress().current() < settled {
                current::yield_now().await;
            }
            yield_often().await;
            assert_eq!(job.progress().current(), settled);
            bench.advance(Duration::from_millis(100));
        }
        // Without a limit time need not pass.
        job.set_speed(0).unwrap();
        bench.wait_for(JobState::Ready).await;
        // The limit is for copies, not for the pivot, and not for the guest.
        job.set_speed(1).unwrap();
        for block in 0..16 {
            bench.write(&disk, block * BLOCK, 0xf6).await;
        }
        job.complete().unwrap();
        assert_eq!(bench.end().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

/// One processor at most is taken from the guest for a copy that a limit slows down anyway; more only for one that is slow
/// by itself.
#[test]
fn within_its_limit_a_mirror_copies_one_after_the_other() {
    run_with(Serving::Main, Clock::manual(), |bench| async move {
        bench.disk("disk").await;
        bench.empty_image("target", SIZE);
        let target = bench.debug_node("target").await;
        for tag in ["first", "second"] {
            debug(&target).set_break(DebugEvent::WriteAio, tag).unwrap();
        }
        let mut arguments = common("disk");
        // 65536 bytes in a millisecond, in copies of 65536.
        arguments.speed = Some(65_536_000);
        arguments.granularity = Some(65536);
        arguments.buf_size = Some(65536 * 16);
        let job = bench.mirror_with("target", arguments).await;
        debug(&target).wait_break("first").await.unwrap();
        for _ in 0..4 {
            bench.advance(Duration::from_millis(1));
            yield_often().await;
        }
        assert!(!debug(&target).is_suspended("second"));
        bench.advance(Duration::from_millis(100));
        debug(&target).wait_break("second").await.unwrap();
        for tag in ["first", "second"] {
            debug(&target).resume(tag).unwrap();
        }
        job.set_speed(0).unwrap();
        bench.wait_for(JobState::Ready).await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

/// Its copies take four times as long as they take to pay.
#[test]
fn the_speed_limit_is_reached_where_each_copy_takes_long() {
    run_with(Serving::Main, Clock::manual(), |bench| async move {
        bench.disk("disk").await;
        let latency = Duration::from_millis(40);
        let target = json!({
            "driver": "null-co", "node-name": "target", "size": SIZE,
            "latency-ns": u64::try_from(latency.as_nanos()).unwrap(),
        });
        bench.node(target).await;
        let mut arguments = common("disk");
        // 65536 bytes in ten milliseconds.
        arguments.speed = Some(6_553_600);
        arguments.granularity = Some(65536);
        arguments.buf_size = Some(65536 * 16);
        let job = bench.mirror_with("target", arguments).await;
        let chunks = |time: Duration| u64::try_from(time.as_millis()).unwrap() / 10;
        let (mut time, step) = (Duration::ZERO, Duration::from_millis(1));
        while time < Duration::from_millis(150) {
            yield_often().await;
            bench.advance(step);
            time += step;
        }
        let copied = job.progress().current() / 65536;
        // The first is there after its latency; some milliseconds pass until it is seen that one is not enough.
        let least = chunks(time.saturating_sub(latency + 20 * step));
        assert!(
            (least..=chunks(time)).contains(&copied),
            "{copied} of {least}"
        );
        job.cancel(true).unwrap();
        // What is on its way takes its time.
        while job.state() != JobState::Concluded {
            bench.advance(latency);
            current::yield_now().await;
        }
    });
}

/// Chunks that are holes in part are copied by what they hold. That counts too, at the latest when it has been
/// copied.
#[test]
fn the_speed_limit_is_kept_on_a_scattered_disk() {
    run_with(Serving::Main, Clock::manual(), |bench| async move {
        let disk = bench.disk("disk").await;
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(bench.path("disk"))
            .unwrap();
        file.set_len(0).unwrap();
        file.set_len(SIZE).unwrap();
        for block in (0..SIZE / BLOCK).step_by(2) {
            bench.write(&disk, block * BLOCK, 0xf7).await;
        }
        bench.target("target").await;
        let mut arguments = common("disk");
        // Two chunks in a tenth of a second: half of each is data.
        arguments.speed = Some(655_360);
        arguments.granularity = Some(65536);
        let job = bench.mirror_with("target", arguments).await;
        while job.progress().current() == 0 {
            current::yield_now().await;
        }
        // Those that are on their way when the first has told what it held.
        let at_once = 16;
        for tenths in 1..8 {
            for _ in 0..10 {
                for _ in 0..4 {
                    yield_often().await;
                    // The test's clock stands still; what is copied takes time all the same.
                    std::thread::sleep(Duration::from_millis(1));
                }
                bench.advance(Duration::from_millis(10));
            }
            let copied = job.progress().current() / 65536;
            assert!(copied <= 2 * tenths + at_once, "{copied} after {tenths}");
        }
        job.set_speed(0).unwrap();
        bench.wait_for(JobState::Ready).await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
    });
}

/// A guest's write is on its way for long; the chunk is copied meanwhile, with its old bytes. The
/// mark that counts is the one after the write's end.
#[test]
fn a_slow_write_is_marked_when_it_has_ended() {
    run_both(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        bench.target("target").await;
        let job = bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&source)
            .set_break(DebugEvent::WriteAio, "slow")
            .unwrap();
        let slow = bench.begin_write(&disk, 0, 0xf1);
        debug(&source).wait_break("slow").await.unwrap();
        // Another chunk is written and copied: the job has looked at all marks since.
        let before = job.progress().current();
        bench.write(&disk, 1 << 20, 0xf2).await;
        while job.progress().current() == before {
            current::sleep(Duration::from_millis(1)).await;
        }
        debug(&source).resume("slow").unwrap();
        slow.await.unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(0xf1));
    });
}

/// The pivot's section waits for a write that is on its way, and copies what it has marked.
#[test]
fn a_write_that_ends_while_the_pivot_drains_is_copied() {
    run_both(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        let sides = [debug(&source), debug(&target)];
        let complete = || bench.job().complete().unwrap();
        let slow = bench.until_the_section(&disk, sides, &complete);
        let slow = slow.await;
        debug(&source).resume("slow").unwrap();
        slow.await.unwrap_err();
        assert_eq!(bench.end().await, None);
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(1));
    });
}

/// A copy that the file system makes by sharing blocks: what guests write meanwhile is copied, and what they write later is not
/// in the old image.
#[test]
fn files_that_share_blocks_are_kept_apart_under_writes() {
    run_both(|bench| async move {
        if !sharing::is_to_be_had(bench.directory.path()).unwrap() {
            return;
        }
        let shared = || {
            let [first, target] = ["first", "target"].map(|name| File::open(bench.path(name)));
            sharing::allocated_and_shared(&first.unwrap(), &target.unwrap()).unwrap()
        };
        std::fs::write(bench.path("first"), pattern(SIZE)).unwrap();
        let node = bench.plain_node("first", json!({})).await;
        let disk = bench.attach("disk", &node);
        bench.empty_image("target", SIZE);
        bench.plain_node("target", json!({})).await;
        bench.mirror("disk", "target").await;
        let write_blocks = async |step: u64, value| {
            for batch in 0..30 {
                let places =
                    (batch * 10..batch * 10 + 10).map(|round| round * step % (SIZE / BLOCK));
                let begin = |place| bench.begin_write(&disk, place * BLOCK, value);
                let writes: Vec<_> = places.map(begin).collect();
                for write in writes {
                    write.await.unwrap();
                }
            }
        };
        write_blocks(37, 0xf1).await;
        assert_eq!(bench.complete().await, None);
        let old = bench.bytes("first");
        assert_eq!(old, bench.bytes("target"));
        assert_eq!(shared(), (SIZE, SIZE));
        write_blocks(41, 0xf2).await;
        assert_eq!(bench.bytes("first"), old);
        assert_eq!(block_value(&bench.bytes("target"), 41 * BLOCK), Some(0xf2));
        // Or more of it: the file system may copy the blocks around those that are written, too.
        let (_, left) = shared();
        assert!(left <= SIZE - 300 * BLOCK, "{left}");
    });
}
