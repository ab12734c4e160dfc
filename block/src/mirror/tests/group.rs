//! Several mirrors that pivot at one instant, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluice_aio::current;

use super::bench::{BLOCK, Bench, block_value, common, run, run_both, write_block};
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::job::{Job, JobGroup, JobState};
use crate::mirror::CopyMode;

/// Mirrors the disk `NAME` to `NAME-copy` as the job `NAME`, until it is ready.
pub(super) async fn ready(bench: &Bench, name: &str, mode: CopyMode) -> Arc<Job> {
    let target = format!("{name}-copy");
    bench.target(&target).await;
    let mut arguments = common(name);
    arguments.job_id = Some(name.to_owned());
    arguments.copy_mode = mode;
    bench.start(&target, arguments).await.unwrap();
    let job = bench.graph.jobs().get(name).unwrap();
    let is_ready = |_: &[_]| (job.state() == JobState::Ready).then_some(());
    bench.wait_until(is_ready).await;
    job
}

/// Where the disk's next requests go.
pub(super) fn root(disk: &Backend) -> String {
    disk.node().unwrap().name().to_owned()
}

/// Writes records 1, 2, … first to one disk, and when that has ended to the other, until it is told to stop;
/// returns the last.
async fn keep_records(first: Arc<Backend>, second: Arc<Backend>, stop: Arc<AtomicBool>) -> u8 {
    let mut record = 0;
    while !stop.load(Ordering::SeqCst) {
        record = record % 250 + 1;
        write_block(&first, 0, record).await.unwrap();
        write_block(&second, 0, record).await.unwrap();
        current::yield_now().await;
    }
    record
}

fn record(bench: &Bench, image: &str) -> u8 {
    block_value(&bench.bytes(image), 0).unwrap()
}

/// The second disk never has a record that the first has not: neither on the old images, which were left at
/// one instant, nor on the new ones.
#[test]
fn related_records_on_two_disks_stay_related() {
    for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        run_both(move |bench| async move {
            let (first, second) = (bench.disk("first").await, bench.disk("second").await);
            // Each is served by a loop of its own, where there are two.
            second.set_context(&current::context());
            let stop = Arc::new(AtomicBool::new(false));
            let guest = {
                let (first, second, stop) =
                    (Arc::clone(&first), Arc::clone(&second), Arc::clone(&stop));
                bench
                    .context
                    .call(move || keep_records(first, second, stop))
            };
            let jobs = [
                ready(&bench, "first", mode).await,
                ready(&bench, "second", mode).await,
            ];
            JobGroup::complete(&jobs).unwrap();
            for job in &jobs {
                job.concluded().await;
                assert_eq!(job.info().error, None);
            }
            assert_eq!(root(&first), "first-copy");
            assert_eq!(root(&second), "second-copy");
            let (left, right) = (record(&bench, "first"), record(&bench, "second"));
            let next = right % 250 + 1;
            assert!(
                left == right || left == next || right > 250,
                "{left} and {right}"
            );
            stop.store(true, Ordering::SeqCst);
            let last = guest.await.unwrap();
            assert_eq!(record(&bench, "first-copy"), last);
            assert_eq!(record(&bench, "second-copy"), last);
        });
    }
}

/// One of the targets fails inside the pivot: no disk has moved, and no guest has noticed.
#[test]
fn if_one_cannot_pivot_none_does() {
    run_both(|bench| async move {
        let (first, second) = (bench.disk("first").await, bench.disk("second").await);
        let jobs = [
            ready(&bench, "first", CopyMode::Background).await,
            ready(&bench, "second", CopyMode::Background).await,
        ];
        let target = bench.graph.node("second-copy").unwrap();
        let target = target.as_blkdebug().unwrap();
        target.set_break(DebugEvent::PivotAgreed, "held").unwrap();
        JobGroup::complete(&jobs).unwrap();
        target.wait_break("held").await.unwrap();
        // The first has swapped its root and waits for the second; its guest waits too.
        while root(&first) != "first-copy" {
            current::yield_now().await;
        }
        let write = bench.park_write(&first, BLOCK, 0xf1).await;
        target.fail("held", libc::EIO).unwrap();
        for job in &jobs {
            job.concluded().await;
        }
        write.await.unwrap();
        assert_eq!(root(&first), "first-node");
        assert_eq!(root(&second), "second-node");
        assert_eq!(block_value(&bench.bytes("first"), BLOCK), Some(0xf1));
        assert_ne!(block_value(&bench.bytes("first-copy"), BLOCK), Some(0xf1));
        assert!(!bench.has_node_of("mirror_top"));
        for name in ["first", "second"] {
            let image = format!("{name}-copy");
            assert_eq!(bench.graph.node(&image).unwrap().writer(), None);
            let disk = bench.graph.node(&format!("{name}-node")).unwrap();
            assert_eq!(disk.writer().as_deref(), Some(name));
        }
    });
}

/// A member is cancelled while it waits for the others.
#[test]
fn a_cancelled_member_takes_the_others_with_it() {
    run(|bench| async move {
        let (first, second) = (bench.disk("first").await, bench.disk("second").await);
        let jobs = [
            ready(&bench, "first", CopyMode::Background).await,
            ready(&bench, "second", CopyMode::Background).await,
        ];
        let target = bench.graph.node("second-copy").unwrap();
        let target = target.as_blkdebug().unwrap();
        target.set_break(DebugEvent::WriteAio, "copy").unwrap();
        bench.write(&second, 0, 0xf1).await;
        target.wait_break("copy").await.unwrap();
        JobGroup::complete(&jobs).unwrap();
        let waits = |_: &[_]| (jobs[0].state() == JobState::Waiting).then_some(());
        bench.wait_until(waits).await;
        // It is not held meanwhile.
        bench.write(&first, 0, 0xf2).await;
        jobs[1].cancel(true).unwrap();
        target.resume("copy").unwrap();
        for job in &jobs {
            job.concluded().await;
        }
        assert_eq!(root(&first), "first-node");
        assert_eq!(root(&second), "second-node");
    });
}

#[test]
fn what_cannot_be_completed_keeps_all_from_it() {
    run(|bench| async move {
        let (first, _second) = (bench.disk("first").await, bench.disk("second").await);
        let one = ready(&bench, "first", CopyMode::Background).await;
        let twice = JobGroup::complete(&[Arc::clone(&one), Arc::clone(&one)]);
        assert!(twice.is_err());
        bench.target("second-copy").await;
        let mut slow = common("second");
        slow.job_id = Some("second".to_owned());
        slow.speed = Some(1);
        bench.start("second-copy", slow).await.unwrap();
        let other = bench.graph.jobs().get("second").unwrap();
        let refused = JobGroup::complete(&[Arc::clone(&one), Arc::clone(&other)]).unwrap_err();
        assert!(
            refused.to_string().contains("'second' in state"),
            "{refused}"
        );
        assert_eq!(one.state(), JobState::Ready);
        // Nothing has changed for the first: it can be completed alone, and what befalls the other is nothing to it.
        other.cancel(true).unwrap();
        other.concluded().await;
        one.complete().unwrap();
        assert!(JobGroup::complete(&[Arc::clone(&one)]).is_err());
        one.concluded().await;
        assert_eq!(root(&first), "first-copy");
    });
}
