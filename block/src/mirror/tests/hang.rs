//! A target that hangs, dies, comes back. Time is the test's.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_aio::current;

use super::bench::{BLOCK, Bench, block_value, common, debug, run_both_by_hand};
use crate::backend::Backend;
use crate::drain::{HeldUpSection, PATIENCE as MOMENT};
use crate::driver::DebugEvent;
use crate::event::BlockEvent;
use crate::job::{Job, JobState};
use crate::node::Node;
use crate::parting::PATIENCE;
use crate::parting::tests::{
    self as parting, begin_drain, hold, wait, wait_held, wait_released, wait_told_ending, way_out,
    yield_often,
};

/// Lets time pass until the job has ended.
async fn lose_patience(bench: &Bench, job: &Job) {
    parting::lose_patience(&bench.clock, &bench.context, job).await;
}

fn was_cancelled(bench: &Bench) -> bool {
    let cancelled = |event: &BlockEvent| matches!(event, BlockEvent::BlockJobCancelled(_));
    bench.events().iter().any(cancelled)
}

/// A mirror of a disk whose target hangs in a write.
async fn hanging_mirror(bench: &Bench) -> (Arc<Backend>, Arc<Node>, Arc<Job>) {
    let disk = bench.disk("disk").await;
    let target = bench.target("target").await;
    hold(&target, DebugEvent::WriteAio);
    let job = bench.mirror("disk", "target").await;
    wait_held(&target).await;
    (disk, target, job)
}

#[test]
fn the_job_ends_without_it_and_the_disk_is_free() {
    run_both_by_hand(|bench| async move {
        let (disk, target, job) = hanging_mirror(&bench).await;
        for node in [&bench.graph.node("disk-node").unwrap(), &target] {
            assert_eq!(
                way_out(node),
                Some(
                    "wait for the job's end, or end it: by 'job-complete' when it is ready, or by 'job-cancel'"
                )
            );
        }
        job.cancel(true).unwrap();
        // It has not even seen that, and yet no command can make it end sooner.
        assert_eq!(job.state(), JobState::Running);
        assert_eq!(
            way_out(&target),
            Some("the job is ending already: wait until it is gone")
        );
        bench.write(&disk, BLOCK, 0xf1).await;
        bench.wait_for(JobState::Aborting).await;
        for node in [&bench.graph.node("disk-node").unwrap(), &target] {
            wait_told_ending(node).await;
        }
        lose_patience(&bench, &job).await;
        assert!(was_cancelled(&bench));
        job.dismiss().unwrap();
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert!(!bench.has_node_of("mirror_top"));

        // What hangs keeps the target, and what it stands on.
        assert!(target.writer().is_some());
        let busy = "Node 'target' is busy: block device is in use by block job: mirror 'job0', whose last requests \
                    have not returned";
        let refused = bench.start("target", common("disk")).await.unwrap_err();
        assert_eq!(refused.to_string(), busy);
        assert_eq!(
            bench.graph.del_node("target").unwrap_err().to_string(),
            busy
        );
        // Sections wait for it, those over the source do not.
        let target_drained = begin_drain(&bench.graph, &target);
        let image = Arc::clone(&target.children()[0].1);
        let image_drained = begin_drain(&bench.graph, &image);
        drop(bench.graph.drain(&disk.node().unwrap(), "test").await);
        yield_often().await;
        assert!(!target_drained.load(Ordering::SeqCst));
        assert!(!image_drained.load(Ordering::SeqCst));

        // The disk goes elsewhere meanwhile.
        bench.target("other").await;
        bench.mirror("disk", "other").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(block_value(&bench.bytes("other"), BLOCK), Some(0xf1));
        bench.job().dismiss().unwrap();

        // It comes back.
        debug(&target).resume("hang").unwrap();
        wait_released(&target).await;
        wait(&target_drained).await;
        wait(&image_drained).await;
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(disk.node().unwrap().name(), "target");
        assert_eq!(bench.bytes("other"), bench.bytes("target"));
    });
}

/// It comes back with an error, which nobody hears.
#[test]
fn a_target_that_dies_is_free_again() {
    run_both_by_hand(|bench| async move {
        let (_, target, job) = hanging_mirror(&bench).await;
        job.cancel(true).unwrap();
        lose_patience(&bench, &job).await;
        debug(&target).fail("hang", libc::EIO).unwrap();
        wait_released(&target).await;
        assert_eq!(bench.error_events(), 0);
        bench.graph.del_node("target").unwrap();
    });
}

#[test]
fn a_flush_that_hangs_is_left_too() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        hold(&target, DebugEvent::FlushToDisk);
        let job = bench.mirror("disk", "target").await;
        wait_held(&target).await;
        job.cancel(true).unwrap();
        lose_patience(&bench, &job).await;
        assert!(was_cancelled(&bench));
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert!(target.writer().is_some());
        debug(&target).resume("hang").unwrap();
        wait_released(&target).await;
    });
}

#[test]
fn a_guests_write_to_both_that_hangs_is_left_too() {
    run_both_by_hand(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let job = bench.mirror_to_both().await;
        hold(&target, DebugEvent::WriteAio);
        let held = bench.begin_write(&disk, 0, 0xf1);
        wait_held(&target).await;
        job.cancel(true).unwrap();
        held.await.unwrap();
        lose_patience(&bench, &job).await;
        assert_eq!(block_value(&bench.bytes("disk"), 0), Some(0xf1));
        assert!(target.writer().is_some());
        debug(&target).resume("hang").unwrap();
        wait_released(&target).await;
    });
}

/// Somebody drains the disk while its mirror can't come to rest: the cancel lets them have it, but not the target.
#[test]
fn a_cancel_frees_sections_of_the_disk() {
    run_both_by_hand(|bench| async move {
        let (_, target, job) = hanging_mirror(&bench).await;
        let source = bench.graph.node("disk-node").unwrap();
        let drained = begin_drain(&bench.graph, &source);
        yield_often().await;
        assert!(!drained.load(Ordering::SeqCst), "a copy is on its way");
        job.cancel(true).unwrap();
        wait(&drained).await;
        bench.wait_for(JobState::Aborting).await;
        let target_drained = begin_drain(&bench.graph, &target);
        lose_patience(&bench, &job).await;
        yield_often().await;
        assert!(!target_drained.load(Ordering::SeqCst));
        debug(&target).resume("hang").unwrap();
        wait(&target_drained).await;
        wait_released(&target).await;
    });
}

/// The operator wants to have a section over the disk while the target hangs; nobody has cancelled the job yet. The guest
/// is held for a moment, and not until the target comes back.
#[test]
fn a_section_that_cannot_begin_holds_the_guest_for_a_moment() {
    run_both_by_hand(|bench| async move {
        let (disk, target, job) = hanging_mirror(&bench).await;
        let source = bench.graph.node("disk-node").unwrap();
        let drained = begin_drain(&bench.graph, &source);
        yield_often().await;
        assert!(disk.gate().is_closed());
        let write = bench.begin_write(&disk, BLOCK, 0xf1);
        bench.advance(MOMENT);
        write.await.unwrap();
        assert!(!disk.gate().is_closed() && !drained.load(Ordering::SeqCst));
        assert_eq!(job.state(), JobState::Running);
        // It comes back: the job rests, and the section begins and ends.
        debug(&target).resume("hang").unwrap();
        wait(&drained).await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(block_value(&bench.bytes("target"), BLOCK), Some(0xf1));
    });
}

/// The machine stops: it does not wait for the target either, and makes the disk durable.
#[test]
fn a_machine_stops_although_a_target_hangs() {
    run_both_by_hand(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        let target = bench.target("target").await;
        hold(&target, DebugEvent::WriteAio);
        let job = bench.mirror("disk", "target").await;
        wait_held(&target).await;
        bench.write(&disk, BLOCK, 0xf1).await;
        for side in [&source, &target] {
            debug(side)
                .set_break(DebugEvent::FlushToDisk, "flush")
                .unwrap();
        }
        let graph = Arc::clone(&bench.graph);
        let stops = current::spawn_local(async move { graph.come_to_rest("stop").await });
        yield_often().await;
        bench.advance(MOMENT);
        debug(&source).wait_break("flush").await.unwrap();
        debug(&source).resume("flush").unwrap();
        assert!(stops.await.unwrap().is_empty());
        assert_eq!(job.state(), JobState::Running);
        debug(&target).remove_break("flush").unwrap();
        debug(&target).resume("hang").unwrap();
        assert_eq!(bench.complete().await, None);
        assert_eq!(block_value(&bench.bytes("target"), BLOCK), Some(0xf1));
    });
}

/// A section over the target was there before the cancel, and can't begin as long as that hangs. The job ends all the same.
#[test]
fn a_section_that_cannot_begin_does_not_keep_the_job_from_its_end() {
    run_both_by_hand(|bench| async move {
        let (disk, target, job) = hanging_mirror(&bench).await;
        let drained = begin_drain(&bench.graph, &target);
        yield_often().await;
        bench.write(&disk, 0, 0xf0).await;
        job.cancel(true).unwrap();
        bench.write(&disk, BLOCK, 0xf1).await;
        lose_patience(&bench, &job).await;
        assert!(was_cancelled(&bench));
        job.dismiss().unwrap();
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert!(!bench.has_node_of("mirror_top"));
        bench.write(&disk, 2 * BLOCK, 0xf2).await;
        assert!(!drained.load(Ordering::SeqCst));
        assert!(target.writer().is_some());

        // The disk goes elsewhere meanwhile, with all that was written.
        bench.target("other").await;
        bench.mirror("disk", "other").await;
        assert_eq!(bench.complete().await, None);
        for (block, value) in [(0, 0xf0), (1, 0xf1), (2, 0xf2)] {
            let written = block_value(&bench.bytes("other"), block * BLOCK);
            assert_eq!(written, Some(value));
        }
        debug(&target).resume("hang").unwrap();
        wait(&drained).await;
        wait_released(&target).await;
    });
}

/// Whoever asks why a command does not answer is told which section is to be over which nodes, since when, and for what it waits.
#[test]
fn a_section_that_cannot_begin_is_shown_with_what_it_waits_for() {
    run_both_by_hand(|bench| async move {
        let (disk, target, job) = hanging_mirror(&bench).await;
        let graph = &bench.graph;
        let source = graph.node("disk-node").unwrap();
        let wanted = bench.clock.now();
        let drained = begin_drain(graph, &source);
        yield_often().await;
        // It holds the guest, and is seen at the gate.
        assert_eq!(graph.held_up_over_disk(&disk), []);
        assert!(disk.gate().is_closed());
        bench.advance(MOMENT);
        while disk.gate().is_closed() {
            current::yield_now().await;
        }
        let shown = HeldUpSection {
            holder: "test".to_owned(),
            since: wanted,
            waits_for: "mirror 'job0' to rest, which can be cancelled".to_owned(),
            job: Some("job0".to_owned()),
            node: None,
        };
        let shown = [shown];
        assert_eq!(graph.held_up_over_disk(&disk), shown);
        assert_eq!(graph.held_up_over_node(&source), shown);
        assert_eq!(graph.held_up_over_node(&target), []);
        job.cancel(true).unwrap();
        wait(&drained).await;
        lose_patience(&bench, &job).await;
        assert_eq!(graph.held_up_over_disk(&disk), []);
        assert_eq!(graph.held_up_over_node(&source), []);

        // What the job has left behind.
        let wanted = bench.clock.now();
        let drained = begin_drain(graph, &target);
        yield_often().await;
        let shown = HeldUpSection {
            holder: "test".to_owned(),
            since: wanted,
            waits_for: "requests to 'target' whose job has ended without them".to_owned(),
            job: None,
            node: Some("target".to_owned()),
        };
        assert_eq!(graph.held_up_over_node(&target), [shown]);
        assert_eq!(graph.held_up_over_disk(&disk), []);
        debug(&target).resume("hang").unwrap();
        wait(&drained).await;
        assert_eq!(graph.held_up_over_node(&target), []);
        wait_released(&target).await;
    });
}

/// One that has begun does: whoever has it relies on the graph.
#[test]
fn a_section_that_has_begun_keeps_the_job_from_its_end() {
    run_both_by_hand(|bench| async move {
        let (disk, target, job) = hanging_mirror(&bench).await;
        let source = bench.graph.node("disk-node").unwrap();
        let section = {
            let (graph, source) = (Arc::clone(&bench.graph), Arc::clone(&source));
            current::spawn_local(async move { graph.drain(&source, "test").await })
        };
        yield_often().await;
        job.cancel(true).unwrap();
        let section = section.await.unwrap();
        for _ in 0..8 {
            bench.advance(PATIENCE);
            yield_often().await;
        }
        assert_ne!(job.state(), JobState::Concluded);
        assert_eq!(disk.node().unwrap().driver_name(), "mirror_top");
        drop(section);
        lose_patience(&bench, &job).await;
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        debug(&target).resume("hang").unwrap();
        wait_released(&target).await;
    });
}

/// A job that is ending waits for its source: nobody is told to cancel it.
#[test]
fn a_section_that_waits_for_a_job_that_is_ending_says_so() {
    run_both_by_hand(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        bench.target("target").await;
        debug(&source)
            .set_break(DebugEvent::ReadAio, "read")
            .unwrap();
        let job = bench.mirror("disk", "target").await;
        debug(&source).wait_break("read").await.unwrap();
        job.cancel(true).unwrap();
        bench.wait_for(JobState::Aborting).await;
        let drained = begin_drain(&bench.graph, &source);
        yield_often().await;
        bench.advance(MOMENT);
        while bench.graph.held_up_over_disk(&disk).is_empty() {
            current::yield_now().await;
        }
        let [shown] = &bench.graph.held_up_over_disk(&disk)[..] else {
            panic!("there is one section");
        };
        assert_eq!(
            shown.waits_for,
            "mirror 'job0' to rest, which is ending already"
        );
        debug(&source).resume("read").unwrap();
        wait(&drained).await;
        bench.end().await;
    });
}

/// What hangs at the source is waited for: its disk must work for the guest anyway. And what has been read by
/// then is not written any more.
#[test]
fn a_read_of_the_source_is_waited_for() {
    run_both_by_hand(|bench| async move {
        let (_, source) = bench.debug_disk("disk").await;
        let target = bench.target("target").await;
        debug(&source)
            .set_break(DebugEvent::ReadAio, "read")
            .unwrap();
        let job = bench.mirror("disk", "target").await;
        debug(&source).wait_break("read").await.unwrap();
        job.cancel(true).unwrap();
        bench.wait_for(JobState::Aborting).await;
        for _ in 0..8 {
            bench.advance(PATIENCE);
            yield_often().await;
        }
        assert_eq!(job.state(), JobState::Aborting);
        debug(&source).resume("read").unwrap();
        bench.end().await;
        assert!(was_cancelled(&bench));
        assert_eq!(target.writer(), None);
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(0));
    });
}
