//! What is said of a mirror that waits. Time is the test's.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::json;
use sluice_aio::{Clock, JoinHandle, current};

use super::bench::{BLOCK, Bench, Serving, copy_mode, run_both_by_hand, run_with};
use crate::drain::PATIENCE as MOMENT;
use crate::driver::DebugEvent;
use crate::graph::LeftTarget;
use crate::job::tests::log::Log;
use crate::job::{AwaitedOperation, Job, JobState};
use crate::mirror::CopyMode;
use crate::node::Node;
use crate::parting::tests::{
    awaited, begin_drain, hold, lose_patience, wait, wait_held, wait_released, yield_often,
};

/// Runs `test` with a log in which all is said: in one thread.
fn run_logged<F: Future<Output = ()> + 'static>(test: impl FnOnce(Bench, Log) -> F) {
    Log::keep(|log| run_with(Serving::Main, Clock::manual(), |bench| test(bench, log)));
}

/// Lets time pass, and whoever has waited for that do something.
async fn pass(bench: &Bench, time: Duration) {
    bench.advance(time);
    yield_often().await;
}

/// The machine stops; ready when that waits for whatever it has to.
async fn begin_stop(bench: &Bench) -> JoinHandle<Vec<LeftTarget>> {
    let graph = Arc::clone(&bench.graph);
    let stop = current::spawn_local(async move { graph.come_to_rest("stop").await });
    yield_often().await;
    stop
}

/// Waits until that is all for which the job has been waiting: what began beside it has ended.
async fn wait_awaited(job: &Job, node: &str, operation: AwaitedOperation) {
    let expected = [(node.to_owned(), operation, false)];
    while awaited(job) != expected {
        current::yield_now().await;
    }
}

/// A mirror whose source hangs.
async fn with_slow_source(bench: &Bench, event: DebugEvent) -> (Arc<Node>, Arc<Job>) {
    let (_, source) = bench.debug_disk("disk").await;
    bench.target("target").await;
    hold(&source, event);
    let job = bench.mirror("disk", "target").await;
    wait_held(&source).await;
    (source, job)
}

/// Reads of the disk that hang keep even a job that was cancelled by force: nobody could tell why it does not end.
#[test]
fn a_job_that_is_to_end_says_what_it_waits_for() {
    for (event, operation) in [
        (DebugEvent::BlockStatus, "the block status"),
        (DebugEvent::ReadAio, "a read"),
    ] {
        run_logged(|bench, log| async move {
            let (source, job) = with_slow_source(&bench, event).await;
            pass(&bench, 8 * MOMENT).await;
            assert_eq!(log.count("job0"), 0, "nobody wants its end");
            job.cancel(true).unwrap();
            yield_often().await;
            let said =
                format!("mirror 'job0' is to end and waits for {operation} of node 'disk-node'");
            // After one, two and four moments.
            for lines in [1, 2, 2, 3, 3] {
                pass(&bench, MOMENT).await;
                assert_eq!(log.count(&said), lines, "{}", log.last());
            }
            assert!(log.last().contains("begun 12 s ago"), "{}", log.last());
            assert_eq!(log.count("ends the job without it"), 0);
            // It is told once more.
            job.cancel(true).ok();
            source.as_blkdebug().unwrap().resume("hang").unwrap();
            job.concluded().await;
            pass(&bench, 8 * MOMENT).await;
            assert_eq!(log.count(&said), 3);
        });
    }
}

/// A job whose requests are under way is busy, though its task does nothing but wait for them.
#[test]
fn a_job_that_waits_for_requests_of_its_own_is_busy() {
    run_logged(|bench, _| async move {
        let (source, job) = with_slow_source(&bench, DebugEvent::ReadAio).await;
        yield_often().await;
        assert!(job.block_job_info().busy);
        source.as_blkdebug().unwrap().resume("hang").unwrap();
        bench.wait_for(JobState::Ready).await;
        yield_often().await;
        assert!(!job.block_job_info().busy, "it sleeps");
        job.cancel(true).unwrap();
        job.concluded().await;
        assert!(!job.block_job_info().busy);
    });
}

/// One that goes on has nothing to say, however long it takes, nor one whose requests have just begun.
#[test]
fn a_job_that_works_on_says_nothing() {
    run_logged(|bench, log| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let job = bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        hold(&target, DebugEvent::PivotClean);
        job.complete().unwrap();
        wait_held(&target).await;
        pass(&bench, MOMENT).await;
        assert_eq!(log.count("job0"), 0, "{}", log.last());
        assert_eq!(awaited(&job), []);
        target.as_blkdebug().unwrap().resume("hang").unwrap();
        assert_eq!(bench.end().await, None);
        assert_eq!(disk.node().unwrap().name(), "target");
    });
}

/// Who ends all jobs says for what that waits.
#[test]
fn the_end_of_all_jobs_says_it_of_each_itself() {
    run_logged(|bench, log| async move {
        let (source, _) = with_slow_source(&bench, DebugEvent::ReadAio).await;
        let jobs = bench.graph.jobs();
        let registry = jobs.clone();
        let end = current::spawn_local(async move { registry.shut_down().await });
        yield_often().await;
        assert!(jobs.describe_awaited().is_empty());
        pass(&bench, 3 * MOMENT).await;
        let line = "mirror 'job0' for a read of node 'disk-node', begun 3 s ago";
        assert_eq!(jobs.describe_awaited(), [line]);
        assert_eq!(log.count("job0"), 0, "{}", log.last());
        source.as_blkdebug().unwrap().resume("hang").unwrap();
        end.await.unwrap();
    });
}

/// Whatever hangs, queries say which node that is, once it is not a matter of a moment any more.
#[test]
fn queries_say_what_a_job_waits_for() {
    for (side, event, operation) in [
        ("disk-node", DebugEvent::BlockStatus, AwaitedOperation::Look),
        ("disk-node", DebugEvent::ReadAio, AwaitedOperation::Read),
        ("target", DebugEvent::PwritevZero, AwaitedOperation::Zeroes),
        ("target", DebugEvent::WriteAio, AwaitedOperation::Write),
        ("target", DebugEvent::FlushToDisk, AwaitedOperation::Flush),
    ] {
        run_both_by_hand(move |bench| async move {
            bench.debug_disk("disk").await;
            let source = std::fs::OpenOptions::new()
                .write(true)
                .open(bench.path("disk"));
            // Its second half is zeroes, which a mirror begins with.
            source
                .as_ref()
                .unwrap()
                .set_len(super::bench::SIZE / 2)
                .unwrap();
            source.unwrap().set_len(super::bench::SIZE).unwrap();
            bench.target("target").await;
            let node = bench.graph.node(side).unwrap();
            hold(&node, event);
            let job = bench.mirror("disk", "target").await;
            wait_held(&node).await;
            assert_eq!(awaited(&job), []);
            assert_eq!(job.info().waits_for, None);
            bench.advance(MOMENT);
            wait_awaited(&job, side, operation).await;
            let told = serde_json::to_value(job.info()).unwrap();
            let shown = json!({
                "node-name": side, "operation": operation, "of-guest": false, "waited-ns": 1_000_000_000,
            });
            assert_eq!(told["x-waits-for"], shown);
            let told = serde_json::to_value(job.block_job_info()).unwrap();
            assert_eq!(told["x-waits-for"], shown);
            node.as_blkdebug().unwrap().resume("hang").unwrap();
            assert_eq!(bench.complete().await, None);
            assert_eq!(job.info().waits_for, None);
        });
    }
}

/// A machine that stops or ends waits for what its guests have begun, whatever jobs have left behind.
#[test]
fn a_stop_waits_for_the_disks_whatever_was_left() {
    run_logged(|bench, log| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        let target = bench.target("target").await;
        hold(&target, DebugEvent::WriteAio);
        let job = bench.mirror("disk", "target").await;
        wait_held(&target).await;
        job.cancel(true).unwrap();
        lose_patience(&bench.clock, &bench.context, &job).await;
        job.dismiss().unwrap();
        hold(&source, DebugEvent::WriteAio);
        let write = bench.begin_write(&disk, 0, 0xf0);
        wait_held(&source).await;
        let mut stop = begin_stop(&bench).await;
        while log.count("a drain takes long") == 0 {
            assert!((&mut stop).now_or_never().is_none(), "it does not wait");
            pass(&bench, MOMENT).await;
        }
        assert!(log.last().contains("disk 'disk' (1 requests in flight"));
        source.as_blkdebug().unwrap().resume("hang").unwrap();
        write.await.unwrap();
        let left = stop.await.unwrap();
        let left: Vec<_> = left.iter().map(|left| &left.node[..]).collect();
        assert_eq!(left, ["target"]);
        target.as_blkdebug().unwrap().resume("hang").unwrap();
        wait_released(&target).await;
    });
}

/// A target that was left to its requests is nothing that anybody waits for.
#[test]
fn a_job_that_has_ended_waits_for_nothing() {
    run_both_by_hand(|bench| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        hold(&target, DebugEvent::WriteAio);
        let job = bench.mirror("disk", "target").await;
        wait_held(&target).await;
        job.cancel(true).unwrap();
        bench.advance(MOMENT);
        wait_awaited(&job, "target", AwaitedOperation::Write).await;
        lose_patience(&bench.clock, &bench.context, &job).await;
        assert_eq!(awaited(&job), []);
        assert_eq!(job.info().waits_for, None);
        target.as_blkdebug().unwrap().resume("hang").unwrap();
    });
}

/// The disk has its part of the write long since: the log names whom it waits for, and what frees it.
#[test]
fn a_stop_says_whose_target_keeps_a_guests_write() {
    run_logged(|bench, log| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let job = bench.mirror_to_both().await;
        hold(&target, DebugEvent::WriteAio);
        let write = bench.begin_write(&disk, BLOCK, 0xf1);
        wait_held(&target).await;
        // This one waits for its place.
        let behind = bench.begin_write(&disk, BLOCK, 0xf2);
        yield_often().await;
        let stop = begin_stop(&bench).await;
        let kept = "a guest's write that has been waiting for node 'target' for";
        for (waited, lines) in [(1, 1), (2, 2), (3, 2), (4, 3)] {
            pass(&bench, MOMENT).await;
            let said = format!("{kept} {waited} s of mirror 'job0' ('job-cancel'");
            assert_eq!(log.count(kept), lines, "{}", log.last());
            assert!(waited == 3 || log.last().contains(&said), "{}", log.last());
            assert!(log.last().contains("disk 'disk'"), "{}", log.last());
        }
        let guests = ("target".to_owned(), AwaitedOperation::Write, true);
        assert_eq!(awaited(&job), [guests]);
        job.cancel(true).unwrap();
        write.await.unwrap();
        behind.await.unwrap();
        // The job itself has to come to rest, too.
        pass(&bench, 10 * MOMENT).await;
        stop.await.unwrap();
        target.as_blkdebug().unwrap().resume("hang").unwrap();
    });
}

/// A disk that hangs by itself is not its mirror's fault.
#[test]
fn a_disk_that_hangs_is_not_blamed_on_its_mirror() {
    run_logged(|bench, log| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        bench.target("target").await;
        let job = bench.mirror_to_both().await;
        hold(&source, DebugEvent::WriteAio);
        let write = bench.begin_write(&disk, BLOCK, 0xf1);
        wait_held(&source).await;
        pass(&bench, MOMENT).await;
        // The target takes its part.
        while !awaited(&job).is_empty() {
            current::yield_now().await;
        }
        let stop = begin_stop(&bench).await;
        pass(&bench, MOMENT).await;
        assert!(log.last().contains("disk 'disk'"), "{}", log.last());
        assert_eq!(log.count("guest's write"), 0);
        source.as_blkdebug().unwrap().resume("hang").unwrap();
        write.await.unwrap();
        stop.await.unwrap();
    });
}

/// Whom the job has let go waits for nothing: the write at the target is the job's own then, and neither the log nor a section blames it
/// for a disk that hangs by itself.
#[test]
fn a_guest_that_was_let_go_waits_for_nothing() {
    run_logged(|bench, log| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        let target = bench.target("target").await;
        let job = bench.mirror_to_both().await;
        hold(&target, DebugEvent::WriteAio);
        let write = bench.begin_write(&disk, BLOCK, 0xf1);
        wait_held(&target).await;
        pass(&bench, MOMENT).await;
        let guests = ("target".to_owned(), AwaitedOperation::Write, true);
        assert_eq!(awaited(&job), [guests]);
        job.cancel(true).unwrap();
        write.await.unwrap();
        wait_awaited(&job, "target", AwaitedOperation::Write).await;
        hold(&source, DebugEvent::WriteAio);
        let hanging = bench.begin_write(&disk, 0, 0xf2);
        wait_held(&source).await;
        let stop = begin_stop(&bench).await;
        pass(&bench, MOMENT).await;
        for said in ["is to end and waits for ", "mirror job 'job0' ("] {
            let said = format!("{said}a write to node 'target', begun 2 s ago");
            assert_eq!(log.count(&said), 1, "{}", log.last());
        }
        assert_eq!(log.count("guest's write"), 0);
        source.as_blkdebug().unwrap().resume("hang").unwrap();
        hanging.await.unwrap();
        target.as_blkdebug().unwrap().resume("hang").unwrap();
        stop.await.unwrap();
    });
}

/// A job that does not rest says what it waits for itself; a guest's write that waits, too, is said once.
#[test]
fn a_section_says_a_guests_write_once() {
    run_logged(|bench, log| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let job = bench.mirror_to_both().await;
        hold(&target, DebugEvent::WriteAio);
        let write = bench.begin_write(&disk, BLOCK, 0xf1);
        wait_held(&target).await;
        let injector = target.as_blkdebug().unwrap();
        injector
            .set_break(DebugEvent::FlushToDisk, "flush")
            .unwrap();
        job.complete().unwrap();
        injector.wait_break("flush").await.unwrap();
        let drained = begin_drain(&bench.graph, &disk.node().unwrap());
        yield_often().await;
        pass(&bench, MOMENT).await;
        let line = log.first("a drain takes long");
        let own = "mirror job 'job0' (a flush of node 'target', begun 1 s ago), a guest's write";
        assert!(line.contains(own), "{line}");
        assert_eq!(line.matches("a guest's write").count(), 1, "{line}");
        injector.resume("hang").unwrap();
        injector.resume("flush").unwrap();
        write.await.unwrap();
        wait(&drained).await;
        assert_eq!(bench.end().await, None);
    });
}

/// A guest that waits for the place of a copy waits for what that copy does: here for a read of its own disk, not for the target.
#[test]
fn a_guest_that_waits_for_its_turn_blames_what_hangs() {
    run_logged(|bench, log| async move {
        let (source, job) = with_slow_source(&bench, DebugEvent::ReadAio).await;
        job.change(&copy_mode(CopyMode::WriteBlocking)).unwrap();
        let disk = bench.graph.backend("disk").unwrap();
        let write = bench.begin_write(&disk, 0, 0xf1);
        yield_often().await;
        pass(&bench, MOMENT).await;
        wait_awaited(&job, "disk-node", AwaitedOperation::Read).await;
        let stop = begin_stop(&bench).await;
        pass(&bench, MOMENT).await;
        let line = log.first("a drain takes long");
        let own = "mirror job 'job0' (a read of node 'disk-node', begun 2 s ago), ";
        let kept = "a guest's write that has been waiting for mirror 'job0' for 2 s ('job-cancel'";
        assert!(line.contains(&format!("{own}{kept}")), "{line}");
        assert_eq!(log.count("'target'"), 0, "{line}");
        job.cancel(true).unwrap();
        write.await.unwrap();
        pass(&bench, MOMENT).await;
        source.as_blkdebug().unwrap().resume("hang").unwrap();
        stop.await.unwrap();
        job.concluded().await;
    });
}

/// One that is to complete, whose *source* hangs, is not told to be cancelled: that would not end it.
#[test]
fn a_job_whose_source_hangs_names_no_way_out() {
    for event in [DebugEvent::BlockStatus, DebugEvent::ReadAio] {
        run_logged(|bench, log| async move {
            let (disk, source) = bench.debug_disk("disk").await;
            bench.target("target").await;
            let job = bench.mirror("disk", "target").await;
            bench.wait_for(JobState::Ready).await;
            hold(&source, event);
            bench.begin_write(&disk, BLOCK, 0xf1).await.unwrap();
            job.complete().unwrap();
            wait_held(&source).await;
            pass(&bench, MOMENT).await;
            assert_eq!(log.count("is to end and waits for "), 1, "{}", log.last());
            assert_eq!(log.count("ends the job without it"), 0, "{}", log.last());
            source.as_blkdebug().unwrap().resume("hang").unwrap();
            assert_eq!(bench.end().await, None);
        });
    }
}

/// One that is to complete, whose target hangs, says that a cancel by force ends it; not after that any more.
#[test]
fn a_job_that_is_to_complete_says_what_ends_it() {
    run_logged(|bench, log| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        let job = bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        hold(&target, DebugEvent::FlushToDisk);
        job.complete().unwrap();
        wait_held(&target).await;
        let said = "waits for a flush of node 'target', begun ";
        let way_out = "('job-cancel', or 'block-job-cancel' with force, ends the job without it)";
        pass(&bench, MOMENT).await;
        assert_eq!(
            (log.count(said), log.count(way_out)),
            (1, 1),
            "{}",
            log.last()
        );
        job.cancel(true).unwrap();
        yield_often().await;
        pass(&bench, MOMENT).await;
        assert_eq!(
            (log.count(said), log.count(way_out)),
            (2, 1),
            "{}",
            log.last()
        );
        target.as_blkdebug().unwrap().resume("hang").unwrap();
        job.concluded().await;
    });
}
