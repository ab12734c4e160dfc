//! A target that hangs, and what comes of it for the guest. Time is the test's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use sluice_aio::{Clock, current};

use super::bench::*;
use crate::drain::PATIENCE as MOMENT;
use crate::driver::DebugEvent;
use crate::job::tests::log::Log;
use crate::job::{Job, JobState};
use crate::parting::PATIENCE;
use crate::parting::tests::{
    self as parting, begin_drain, hold, wait, wait_held, wait_held_up, wait_released,
    wait_told_ending, way_out, yield_often,
};

fn run_both_by_hand<F: Future<Output = ()> + 'static>(test: impl Fn(Bench) -> F) {
    run_with(false, Clock::manual(), &test);
    run_with(true, Clock::manual(), &test);
}

/// Lets time pass until the job has ended.
async fn lose_patience(bench: &Bench, job: &Job) {
    parting::lose_patience(&bench.clock, &bench.context, job).await;
}

/// A job that is at its end rests for no section any more.
async fn wait_aborting(job: &Job) {
    while job.state() != JobState::Aborting {
        current::yield_now().await;
    }
}

fn holds(image: &[u8], cluster: usize, value: u8) -> bool {
    image[cluster * CLUSTER..][..CLUSTER] == [value; CLUSTER]
}

/// A section over the target covers the disk, whose filter stands above both. It can't begin as long as the target hangs; once the job
/// has ended the disk goes on.
#[test]
fn a_section_that_cannot_begin_lets_go_of_the_disk() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        hold(&target, DebugEvent::WriteAio);
        let job = bench.backup("full", &json!({})).await;
        wait_held(&target).await;
        let drained = begin_drain(&bench.graph, &target);
        yield_often().await;
        let parked = bench.begin_write(&disk, 0, CLUSTER, 0xa0);
        while disk.gate().parked() == 0 {
            current::yield_now().await;
        }
        // What waits looks again by the clock, from time to time; not while this job ends.
        assert!(bench.clock.advance(PATIENCE * 4 / 5));
        bench.context.notify();
        yield_often().await;
        job.cancel(true).unwrap();
        lose_patience(&bench, &job).await;
        parked.await.unwrap();
        assert!(holds(&bench.bytes("disk"), 0, 0xa0));
        assert!(bench.events().contains(&"CANCELLED".to_owned()));
        assert_eq!(disk.node().unwrap().name(), "disk");
        bench.write(&disk, 5 * CLUSTER, CLUSTER, 0xa5).await;
        drop(bench.graph.drain(&disk.node().unwrap(), "test").await);
        assert!(!drained.load(Ordering::SeqCst));
        target.as_blkdebug().unwrap().resume("hang").unwrap();
        wait(&drained).await;
        wait_released(&target).await;
        assert!(!holds(&bench.bytes("target"), 0, 0xa0));
    });
}

#[test]
fn the_guest_goes_on_and_the_job_ends_without_it() {
    for on_error in ["break-guest-write", "break-snapshot"] {
        for force in [false, true] {
            run_both_by_hand(|bench| async move {
                let disk = bench.disk("disk").await;
                let target = bench.target("target").await;
                let job = bench
                    .backup("none", &json!({"on-cbw-error": on_error}))
                    .await;
                hold(&target, DebugEvent::WriteAio);
                let held = bench.begin_write(&disk, 0, CLUSTER, 0xa0);
                wait_held(&target).await;
                let second = bench.begin_write(&disk, 0, 512, 0xa1);
                job.cancel_unless_paused(force).unwrap();
                held.await.unwrap();
                second.await.unwrap();
                // What comes now saves nothing.
                bench.write(&disk, 5 * CLUSTER, CLUSTER, 0xa5).await;
                lose_patience(&bench, &job).await;
                assert!(bench.events().contains(&"CANCELLED".to_owned()));
                job.dismiss().unwrap();
                assert_eq!(disk.node().unwrap().name(), "disk");

                // What hangs keeps the target.
                assert!(target.writer().is_some());
                let busy = "Node 'target' is busy: block device is in use by block job: backup 'job0', whose last \
                            requests have not returned";
                let again = arguments("disk-disk", "full", &json!({}));
                let refused = bench.start(again, "target").await.unwrap_err();
                assert_eq!(refused.to_string(), busy);
                let refused = bench.graph.del_node("target").unwrap_err();
                assert_eq!(refused.to_string(), busy);
                let drained = begin_drain(&bench.graph, &target);
                drop(bench.graph.drain(&disk.node().unwrap(), "test").await);
                yield_often().await;
                assert!(!drained.load(Ordering::SeqCst));

                // The disk is saved elsewhere meanwhile.
                bench.target("other").await;
                let again = arguments("disk-disk", "full", &json!({}));
                bench.start(again, "other").await.unwrap();
                let job = bench.job("job0");
                assert_eq!(end(&job).await, None);
                job.dismiss().unwrap();
                let now = bench.bytes("disk");
                assert!(bench.bytes("other") == now);
                assert!(holds(&now, 5, 0xa5));

                // It comes back.
                debug(&target).resume("hang").unwrap();
                wait(&drained).await;
                wait_released(&target).await;
                let (late, clusters) = (bench.bytes("target"), 1..SIZE / CLUSTER);
                assert_eq!(untouched(&late), clusters.collect::<Vec<_>>());
                assert!(late[..CLUSTER] == pattern()[..CLUSTER]);
                assert!(bench.bytes("disk") == now);
                bench.check_clean();
                let job = bench.backup("full", &json!({})).await;
                assert_eq!(end(&job).await, None);
                assert!(bench.bytes("target") == now);
            });
        }
    }
}

/// It comes back with an error, which nobody hears.
#[test]
fn a_target_that_dies_is_free_again() {
    for on_error in ["break-guest-write", "break-snapshot"] {
        run_both_by_hand(|bench| async move {
            let disk = bench.disk("disk").await;
            let target = bench.target("target").await;
            let job = bench
                .backup("none", &json!({"on-cbw-error": on_error}))
                .await;
            hold(&target, DebugEvent::WriteAio);
            let held = bench.begin_write(&disk, 0, 512, 0xa0);
            wait_held(&target).await;
            job.cancel(true).unwrap();
            held.await.unwrap();
            // Within the time that the job waits: it does not leave the target then.
            debug(&target).fail("hang", libc::EIO).unwrap();
            job.concluded().await;
            let events = bench.events();
            assert!(!events.contains(&"ERROR".to_owned()));
            assert!(events.contains(&"CANCELLED".to_owned()));
            wait_released(&target).await;
            bench.check_clean();
            bench.graph.del_node("target").unwrap();
        });
    }
}

#[test]
fn all_jobs_end_when_the_program_does() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        hold(&target, DebugEvent::WriteAio);
        let job = bench
            .backup("full", &json!({"x-perf": {"max-workers": 1}}))
            .await;
        wait_held(&target).await;
        let held = bench.begin_write(&disk, 0, 512, 0xa0);
        let (graph, down) = (Arc::clone(&bench.graph), Arc::new(AtomicBool::new(false)));
        let is_down = Arc::clone(&down);
        current::spawn_local(async move {
            graph.jobs().shut_down().await;
            is_down.store(true, Ordering::SeqCst);
        })
        .detach();
        held.await.unwrap();
        while !down.load(Ordering::SeqCst) {
            assert!(bench.clock.advance(PATIENCE / 4));
            bench.context.notify();
            yield_often().await;
        }
        assert!(bench.graph.jobs().get(job.id()).is_none());
        assert!(target.writer().is_some());
        debug(&target).resume("hang").unwrap();
        wait_released(&target).await;
    });
}

#[test]
fn a_flush_that_hangs_is_left_too() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        hold(&target, DebugEvent::FlushToDisk);
        let job = bench.backup("full", &json!({})).await;
        wait_held(&target).await;
        job.cancel(true).unwrap();
        lose_patience(&bench, &job).await;
        assert!(bench.events().contains(&"CANCELLED".to_owned()));
        assert_eq!(disk.node().unwrap().name(), "disk");
        assert!(target.writer().is_some());
        debug(&target).resume("hang").unwrap();
        wait_released(&target).await;
        bench.check_clean();
    });
}

#[test]
fn the_marks_are_back_in_the_bitmap() {
    for mode in ["on-success", "always", "never"] {
        run_both_by_hand(|bench| async move {
            let disk = bench.disk("disk").await;
            let target = bench.target("target").await;
            bench.add_bitmap("b");
            for cluster in [1, 2, 3] {
                bench.write(&disk, cluster * CLUSTER, 512, 0xa0).await;
            }
            hold(&target, DebugEvent::WriteAio);
            let perf = json!({"max-workers": 1, "max-chunk": CLUSTER});
            let more = json!({"bitmap": "b", "bitmap-mode": mode, "x-perf": perf});
            let job = bench.backup("bitmap", &more).await;
            wait_held(&target).await;
            let held = bench.begin_write(&disk, CLUSTER, 512, 0xa1);
            job.cancel(true).unwrap();
            held.await.unwrap();
            bench.write(&disk, 7 * CLUSTER, 512, 0xa7).await;
            lose_patience(&bench, &job).await;
            assert_eq!(bench.marked("b"), [1, 2, 3, 7], "{mode}");
            job.dismiss().unwrap();
            debug(&target).resume("hang").unwrap();
            wait_released(&target).await;
            assert_eq!(bench.marked("b"), [1, 2, 3, 7], "{mode}");

            let job = bench.backup("incremental", &json!({"bitmap": "b"})).await;
            assert_eq!(end(&job).await, None);
            let (disk, target) = (bench.bytes("disk"), bench.bytes("target"));
            for cluster in [1, 2, 3, 7] {
                let range = cluster * CLUSTER..(cluster + 1) * CLUSTER;
                assert!(disk[range.clone()] == target[range], "{cluster}");
            }
        });
    }
}

/// Somebody drains the disk while its guest waits for the target: the cancel lets them have it, but not the target.
#[test]
fn a_cancel_frees_sections_of_the_disk() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        hold(&target, DebugEvent::WriteAio);
        let job = bench.backup("full", &json!({})).await;
        wait_held(&target).await;
        let drained = begin_drain(&bench.graph, &disk.node().unwrap());
        yield_often().await;
        assert!(!drained.load(Ordering::SeqCst), "a copy is on its way");
        job.cancel(true).unwrap();
        wait(&drained).await;
        wait_aborting(&job).await;
        let target_drained = begin_drain(&bench.graph, &target);
        lose_patience(&bench, &job).await;
        yield_often().await;
        assert!(!target_drained.load(Ordering::SeqCst));
        debug(&target).resume("hang").unwrap();
        wait(&target_drained).await;
        wait_released(&target).await;
    });
}

/// What hangs at the source is waited for. The guest changes meanwhile what is being read, so that is not written
/// any more.
#[test]
fn a_read_of_the_source_is_waited_for() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let source = disk.node().unwrap();
        let job = bench.backup("none", &json!({})).await;
        hold(&source, DebugEvent::ReadAio);
        let held = bench.begin_write(&disk, 0, CLUSTER, 0xa0);
        wait_held(&source).await;
        job.cancel(true).unwrap();
        held.await.unwrap();
        wait_aborting(&job).await;
        let drained = begin_drain(&bench.graph, &source);
        for _ in 0..8 {
            assert!(bench.clock.advance(PATIENCE));
            bench.context.notify();
            yield_often().await;
        }
        assert_eq!(job.state(), JobState::Aborting);
        assert!(!drained.load(Ordering::SeqCst));
        debug(&source).resume("hang").unwrap();
        wait(&drained).await;
        job.concluded().await;
        assert_eq!(target.writer(), None);
        assert_eq!(untouched(&bench.bytes("target")).len(), SIZE / CLUSTER);
        assert!(holds(&bench.bytes("disk"), 0, 0xa0));
        bench.check_clean();
    });
}

/// A command that wants a node of the job is told the way out; no longer to end the job when that is ending.
#[test]
fn a_command_is_told_that_the_job_is_ending() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let (source, target) = (disk.node().unwrap(), bench.target("target").await);
        hold(&target, DebugEvent::WriteAio);
        let job = bench.backup("full", &json!({})).await;
        wait_held(&target).await;
        for node in [&source, &target] {
            assert_eq!(
                way_out(node),
                Some("wait for the job's end, or end it by 'job-cancel'")
            );
        }
        job.cancel(true).unwrap();
        for node in [&source, &target] {
            wait_told_ending(node).await;
        }
        wait_aborting(&job).await;
        for node in [&source, &target] {
            wait_told_ending(node).await;
        }
        lose_patience(&bench, &job).await;
        assert_eq!(way_out(&target), Some("it is free when they have"));
        assert!(source.check_not_blocked().is_ok());
        debug(&target).resume("hang").unwrap();
        wait_released(&target).await;
    });
}

/// A job that is ending waits for its source: nobody is told to cancel it.
#[test]
fn a_section_that_waits_for_a_job_that_is_ending_says_so() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let source = disk.node().unwrap();
        hold(&source, DebugEvent::ReadAio);
        let job = bench.backup("full", &json!({})).await;
        wait_held(&source).await;
        job.cancel(true).unwrap();
        wait_aborting(&job).await;
        let drained = begin_drain(&bench.graph, &source);
        yield_often().await;
        assert!(bench.clock.advance(MOMENT));
        bench.context.notify();
        assert_eq!(
            wait_held_up(&bench.graph, &source).await,
            "backup 'job0' to rest, which is ending already"
        );
        debug(&source).resume("hang").unwrap();
        wait(&drained).await;
        job.concluded().await;
        bench.check_clean();
    });
}

/// What a backup asks of its disk and its target, and what a guest waits for on its account, is told once it is not a matter of a moment any more.
#[test]
fn queries_say_what_a_job_waits_for() {
    use crate::job::AwaitedOperation::{Flush, Look, Read, Write};
    for (side, event, operation) in [
        ("disk", DebugEvent::BlockStatus, Look),
        ("disk", DebugEvent::ReadAio, Read),
        ("target", DebugEvent::WriteAio, Write),
        ("target", DebugEvent::FlushToDisk, Flush),
    ] {
        run_both_by_hand(move |bench| async move {
            bench.disk("disk").await;
            bench.target("target").await;
            let node = bench.graph.node(side).unwrap();
            hold(&node, event);
            let job = bench.backup("full", &json!({})).await;
            wait_held(&node).await;
            assert_eq!(job.awaited(), []);
            assert!(bench.clock.advance(MOMENT));
            let shown = [(side.to_owned(), operation, false)];
            while parting::awaited(&job) != shown {
                current::yield_now().await;
            }
            debug(&node).resume("hang").unwrap();
            assert_eq!(end(&job).await, None);
        });
    }
}

/// A section that waits for a guest whose write waits for the target says so; or for the disk, if it is that which hangs.
#[test]
fn a_drain_says_which_node_keeps_a_guests_write() {
    use crate::job::AwaitedOperation::{Read, Write};
    for (side, event, operation) in [
        ("target", DebugEvent::WriteAio, Write),
        ("disk", DebugEvent::ReadAio, Read),
    ] {
        Log::keep(|log| {
            run_with(false, Clock::manual(), |bench| async move {
                let disk = bench.disk("disk").await;
                bench.target("target").await;
                let node = bench.graph.node(side).unwrap();
                let job = bench.backup("none", &json!({})).await;
                hold(&node, event);
                let write = bench.begin_write(&disk, 0, CLUSTER, 0xa0);
                wait_held(&node).await;
                // It waits for its turn, and so for the same.
                let behind = bench.begin_write(&disk, 0, CLUSTER, 0xa0);
                let drained = begin_drain(&bench.graph, &disk.node().unwrap());
                yield_often().await;
                assert!(bench.clock.advance(MOMENT));
                yield_often().await;
                let kept = format!(
                    "a guest's write that has been waiting for node '{side}' for 1 s of backup 'job0' ('job-cancel'"
                );
                assert_eq!(log.count(&kept), 1, "{}", log.last());
                assert_eq!(parting::awaited(&job), [(side.to_owned(), operation, true)]);
                job.cancel(true).unwrap();
                write.await.unwrap();
                behind.await.unwrap();
                assert_eq!(
                    parting::awaited(&job),
                    [(side.to_owned(), operation, false)]
                );
                debug(&node).resume("hang").unwrap();
                wait(&drained).await;
            });
        });
    }
}
