//! What is copied, by whom, and what the guest notices of it.

use std::os::unix::fs::MetadataExt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use serde_json::json;
use sluice_aio::{Clock, current};

use super::bench::*;
use crate::driver::{DebugEvent, RequestFlags};
use crate::job::JobState;
use crate::parting::tests::yield_often;

#[test]
fn the_target_is_the_disk_of_the_start() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let debug = debug(&target);
        debug.set_break(DebugEvent::WriteAio, "first").unwrap();
        let job = bench
            .backup(
                "full",
                &json!({"x-perf": {"max-workers": 1, "max-chunk": CLUSTER}}),
            )
            .await;
        debug.wait_break("first").await.unwrap();
        // Clusters that the job has not come to yet: the writes save them themselves.
        for cluster in [3, 9, 31] {
            bench
                .write(&disk, cluster * CLUSTER + 512, 1024, 0xaa)
                .await;
        }
        debug.resume("first").unwrap();
        assert_eq!(end(&job).await, None);
        assert!(bench.bytes("target") == pattern());
        assert_eq!(bench.bytes("disk")[9 * CLUSTER + 512], 0xaa);
        let info = job.info();
        let all = SIZE as u64;
        assert_eq!((info.current_progress, info.total_progress), (all, all));
        assert_eq!(
            bench.events(),
            [
                "created",
                "running",
                "waiting",
                "pending",
                "COMPLETED",
                "concluded"
            ]
        );
        bench.check_clean();
        // What is written afterwards is not saved any more.
        bench.write(&disk, 0, 512, 0xbb).await;
        assert!(bench.bytes("target") == pattern());
    });
}

#[test]
fn a_write_waits_for_the_copy_of_its_cluster() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "copy")
            .unwrap();
        let job = bench
            .backup("full", &json!({"x-perf": {"max-workers": 1}}))
            .await;
        debug(&target).wait_break("copy").await.unwrap();
        let mut writing = current::spawn_local(bench.begin_write(&disk, 512, 512, 0xaa));
        // Nothing else would keep it for so long.
        let long = pin!(current::sleep(Duration::from_secs(1)));
        let ended = matches!(select(&mut writing, long).await, Either::Left(_));
        assert!(!ended, "not before it is saved");
        assert_eq!(
            bench.bytes("disk")[512],
            pattern()[512],
            "not before it is saved"
        );
        debug(&target).resume("copy").unwrap();
        writing.await.unwrap().unwrap();
        assert_eq!(end(&job).await, None);
        assert_eq!(bench.bytes("disk")[512], 0xaa);
        assert!(bench.bytes("target") == pattern());
    });
}

#[test]
fn many_copies_are_made_at_once_and_no_more() {
    run(|bench| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        let tags = ["a", "b", "c", "d", "e"];
        for tag in tags {
            debug(&target).set_break(DebugEvent::WriteAio, tag).unwrap();
        }
        let perf = json!({"x-perf": {"max-workers": 4, "max-chunk": CLUSTER}});
        let job = bench.backup("full", &perf).await;
        for tag in &tags[..4] {
            debug(&target).wait_break(tag).await.unwrap();
        }
        settle().await;
        assert!(!debug(&target).is_suspended("e"));
        debug(&target).remove_break("e").unwrap();
        for tag in &tags[..4] {
            debug(&target).resume(tag).unwrap();
        }
        assert_eq!(end(&job).await, None);
        assert!(bench.bytes("target") == pattern());
    });
}

#[test]
fn holes_stay_holes() {
    run(|bench| async move {
        let file = std::fs::File::create(bench.path("disk")).unwrap();
        file.set_len(64 << 30).unwrap();
        std::os::unix::fs::FileExt::write_at(&file, &[1; 4096], 5 << 30).unwrap();
        let node = bench.open("disk").await;
        bench.attach("disk", &node);
        let file = std::fs::File::create(bench.path("target")).unwrap();
        file.set_len(64 << 30).unwrap();
        bench.open("target").await;
        let job = bench.backup("full", &json!({})).await;
        assert_eq!(end(&job).await, None);
        let taken = std::fs::metadata(bench.path("target")).unwrap().blocks() * 512;
        assert!(taken <= 1 << 20, "{taken}");
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_at(
            &std::fs::File::open(bench.path("target")).unwrap(),
            &mut byte,
            (5 << 30) + 4095,
        )
        .unwrap();
        assert_eq!(byte, [1]);
    });
}

#[test]
fn without_a_copy_only_what_is_overwritten_is_saved() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let job = bench.backup("none", &json!({})).await;
        bench.write(&disk, 5 * CLUSTER, 512, 0xaa).await;
        settle().await;
        assert_eq!(job.state(), JobState::Running);
        let copy = bench.bytes("target");
        let saved = 5 * CLUSTER..6 * CLUSTER;
        assert!(copy[saved.clone()] == pattern()[saved]);
        assert_eq!(untouched(&copy).len(), SIZE / CLUSTER - 1);
        job.cancel(true).unwrap();
        end(&job).await;
        let events = bench.events();
        assert_eq!(
            events[events.len() - 3..],
            ["aborting", "CANCELLED", "concluded"]
        );
        bench.check_clean();
    });
}

#[test]
fn of_an_overlay_only_its_own_is_copied() {
    run(|bench| async move {
        let base = bench.target("base").await;
        let node = bench.graph.add_overlay("disk", SIZE, Some(&base)).unwrap();
        for cluster in [2, 7] {
            let buffer = sluice_aio::IoBuffer::alloc(4096);
            buffer.fill(0, 4096, 1);
            let offset = (cluster * CLUSTER) as u64;
            node.write(offset, buffer, RequestFlags::empty())
                .await
                .unwrap();
        }
        let disk = bench.attach("disk", &node);
        std::fs::write(bench.path("target"), vec![0x77; SIZE]).unwrap();
        let target = bench.open("target").await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "copy")
            .unwrap();
        let job = bench.backup("top", &json!({})).await;
        debug(&target).wait_break("copy").await.unwrap();
        // It was not the overlay's at the start.
        bench.write(&disk, 20 * CLUSTER, 512, 0xaa).await;
        debug(&target).resume("copy").unwrap();
        assert_eq!(end(&job).await, None);
        let copy = bench.bytes("target");
        let copied: Vec<_> = (0..SIZE / CLUSTER)
            .filter(|cluster| copy[cluster * CLUSTER] != 0x77)
            .collect();
        assert_eq!(copied, [2, 7]);
        assert_eq!(copy[2 * CLUSTER], 1);
        assert_eq!(copy[2 * CLUSTER + 4096], UNTOUCHED);
        assert_eq!(job.info().total_progress, 2 * CLUSTER as u64);
    });
}

#[test]
fn a_job_keeps_to_its_speed() {
    run_with(false, Clock::manual(), |bench| async move {
        bench.disk("disk").await;
        bench.target("target").await;
        let slow = json!({"speed": CLUSTER, "x-perf": {"max-chunk": CLUSTER}});
        let job = bench.backup("full", &slow).await;
        let copied = |bench: &Bench| SIZE / CLUSTER - untouched(&bench.bytes("target")).len();
        while copied(&bench) == 0 {
            current::yield_now().await;
        }
        yield_often().await;
        let first = copied(&bench);
        assert!(first <= 2, "{first}");
        job.set_speed(0).unwrap();
        while job.state() != JobState::Concluded {
            assert!(bench.clock.advance(Duration::from_millis(100)));
            current::yield_now().await;
        }
        assert!(bench.bytes("target") == pattern());
    });
}

#[test]
fn a_paused_job_copies_nothing_but_what_is_overwritten() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "copy")
            .unwrap();
        let perf = json!({"x-perf": {"max-workers": 1, "max-chunk": CLUSTER}});
        let job = bench.backup("full", &perf).await;
        debug(&target).wait_break("copy").await.unwrap();
        job.pause().unwrap();
        debug(&target).resume("copy").unwrap();
        wait_for(&job, JobState::Paused).await;
        let before = untouched(&bench.bytes("target"));
        bench.write(&disk, 20 * CLUSTER, 512, 0xaa).await;
        let after = untouched(&bench.bytes("target"));
        assert_eq!(before.len() - after.len(), 1);
        assert!(!after.contains(&20));
        job.resume().unwrap();
        assert_eq!(end(&job).await, None);
        assert!(bench.bytes("target") == pattern());
    });
}

#[test]
fn a_cancelled_job_leaves_the_disk_alone() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "copy")
            .unwrap();
        let job = bench.backup("full", &json!({})).await;
        debug(&target).wait_break("copy").await.unwrap();
        let writing = bench.begin_write(&disk, SIZE - 512, 512, 0xaa);
        job.cancel(true).unwrap();
        settle().await;
        assert_ne!(job.state(), JobState::Concluded, "a copy is on its way");
        debug(&target).resume("copy").unwrap();
        end(&job).await;
        writing.await.unwrap();
        bench.check_clean();
        assert_eq!(bench.bytes("disk")[SIZE - 1], 0xaa);
        assert!(target.parents().is_empty());
    });
}

#[test]
fn sections_of_either_end_hold_the_job() {
    run_both(|bench| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "copy")
            .unwrap();
        let perf = json!({"x-perf": {"max-workers": 1, "max-chunk": CLUSTER}});
        let job = bench.backup("full", &perf).await;
        debug(&target).wait_break("copy").await.unwrap();
        let graph = Arc::clone(&bench.graph);
        let of_target = Arc::clone(&target);
        let draining = current::spawn_local(async move { graph.drain(&of_target, "test").await });
        settle().await;
        debug(&target).resume("copy").unwrap();
        let section = draining.await.unwrap();
        let before = untouched(&bench.bytes("target"));
        settle().await;
        assert_eq!(untouched(&bench.bytes("target")), before);
        assert!(!job.is_busy());
        drop(section);
        assert_eq!(end(&job).await, None);
        assert!(bench.bytes("target") == pattern());
    });
}

#[test]
fn a_pending_job_does_not_hold_the_guest_and_waits_for_its_verb() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let manual = json!({"auto-finalize": false, "filter-node-name": "above"});
        let job = bench.backup("full", &manual).await;
        wait_for(&job, JobState::Pending).await;
        assert_eq!(disk.node().unwrap().name(), "above");
        bench.write(&disk, 0, 512, 0xaa).await;
        job.finalize().unwrap();
        assert_eq!(end(&job).await, None);
        assert!(bench.bytes("target") == pattern());
        assert_eq!(disk.node().unwrap().name(), "disk");
        bench.check_clean();
    });
}
