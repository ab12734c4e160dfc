//! Backups from bitmaps, and what becomes of the bitmaps.

use serde_json::{Value, json};

use super::bench::*;
use crate::driver::DebugEvent;
use crate::job::JobState;

#[test]
fn an_incremental_backup_brings_the_last_one_up_to_date() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        bench.add_bitmap("b");
        let full = json!({"bitmap": "b", "bitmap-mode": "on-success"});
        let job = bench.backup("full", &full).await;
        assert_eq!(end(&job).await, None);
        job.dismiss().unwrap();
        for round in 1..4 {
            for cluster in [round, round * 7] {
                bench.write(&disk, cluster * CLUSTER, 512, 0xa0).await;
            }
            let wanted = bench.bytes("disk");
            assert_eq!(bench.marked("b"), [round, round * 7]);
            let job = bench.backup("incremental", &json!({"bitmap": "b"})).await;
            assert_eq!(end(&job).await, None);
            assert_eq!(job.info().total_progress, 2 * CLUSTER as u64);
            job.dismiss().unwrap();
            assert!(bench.bytes("target") == wanted, "round {round}");
            assert!(bench.marked("b").is_empty());
        }
    });
}

/// What is marked in the end: the clusters that were at the start, those that were written during
/// the job, and those that were not copied.
struct Case {
    sync: &'static str,
    mode: &'static str,
    fails: bool,
    marked: &'static [usize],
}

const AT_START: usize = 1;
const COPIED: usize = 2;
const DURING: usize = 30;

#[test]
fn what_is_left_in_a_bitmap_follows_from_its_mode_and_the_jobs_end() {
    let cases = [
        ("incremental", "on-success", false, &[DURING][..]),
        (
            "incremental",
            "on-success",
            true,
            &[AT_START, COPIED, DURING],
        ),
        ("bitmap", "on-success", false, &[DURING]),
        ("bitmap", "on-success", true, &[AT_START, COPIED, DURING]),
        ("bitmap", "never", false, &[AT_START, COPIED, DURING]),
        ("bitmap", "never", true, &[AT_START, COPIED, DURING]),
        ("bitmap", "always", false, &[DURING]),
        ("bitmap", "always", true, &[AT_START, DURING]),
        ("full", "on-success", false, &[DURING]),
        ("full", "on-success", true, &[AT_START, COPIED, DURING]),
        ("top", "always", false, &[DURING]),
    ];
    for (sync, mode, fails, marked) in cases {
        let case = Case {
            sync,
            mode,
            fails,
            marked,
        };
        run(|bench| check(bench, case));
    }
}

async fn check(bench: Bench, case: Case) {
    let Case {
        sync,
        mode,
        fails,
        marked,
    } = case;
    let disk = bench.disk("disk").await;
    let target = bench.target("target").await;
    bench.add_bitmap("b");
    for cluster in [AT_START, COPIED] {
        bench.write(&disk, cluster * CLUSTER, 512, 0xaa).await;
    }
    let wanted = bench.bytes("disk");
    debug(&target)
        .set_break(DebugEvent::WriteAio, "copy")
        .unwrap();
    let more = json!({
        "bitmap": "b", "bitmap-mode": mode,
        "x-perf": {"max-workers": 1, "max-chunk": CLUSTER}
    });
    let job = bench.backup(sync, &more).await;
    debug(&target).wait_break("copy").await.unwrap();
    let info = bench.graph.node("disk").unwrap().dirty_bitmaps();
    assert!(info[0].busy && info[0].recording);
    assert_eq!(info[0].count, 2 * CLUSTER as u64);
    bench.write(&disk, DURING * CLUSTER, 512, 0xbb).await;
    if fails {
        if matches!(sync, "incremental" | "bitmap") {
            // The cluster after the one that is held is saved by a write, so it is copied.
            bench.write(&disk, COPIED * CLUSTER, 512, 0xaa).await;
        }
        debug(&target).fail("copy", libc::EIO).unwrap();
    } else {
        debug(&target).resume("copy").unwrap();
    }
    assert_eq!(end(&job).await.is_some(), fails, "{sync} {mode}");
    let mut marked = marked.to_vec();
    if fails && matches!(sync, "incremental" | "bitmap") {
        marked.extend([COPIED]);
        marked.sort_unstable();
        marked.dedup();
    }
    assert_eq!(bench.marked("b"), marked, "{sync} {mode} fails: {fails}");
    let info = bench.graph.node("disk").unwrap().dirty_bitmaps();
    assert!(!info[0].busy);
    if !fails {
        let copy = bench.bytes("target");
        for cluster in [AT_START, COPIED] {
            let range = cluster * CLUSTER..(cluster + 1) * CLUSTER;
            assert!(copy[range.clone()] == wanted[range]);
        }
    }
}

#[test]
fn a_cancelled_backup_keeps_its_bitmap() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        bench.add_bitmap("b");
        bench.write(&disk, 0, 512, 0xaa).await;
        let manual = json!({"bitmap": "b", "auto-finalize": false});
        let job = bench.backup("incremental", &manual).await;
        wait_for(&job, JobState::Pending).await;
        bench.write(&disk, 5 * CLUSTER, 512, 0xaa).await;
        job.cancel(true).unwrap();
        end(&job).await;
        assert_eq!(bench.marked("b"), [0, 5]);
    });
}

#[test]
fn a_bitmap_serves_one_job_at_a_time() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.target("target").await;
        bench.add_bitmap("b");
        let manual = json!({"bitmap": "b", "auto-finalize": false});
        let job = bench.backup("incremental", &manual).await;
        let more: Value = json!({"job-id": "job1", "bitmap": "b"});
        let error = bench.start(arguments("disk-disk", "incremental", &more), "target");
        let error = error.await.unwrap_err().to_string();
        assert!(error.contains("is busy"), "{error}");
        wait_for(&job, JobState::Pending).await;
        job.finalize().unwrap();
        assert_eq!(end(&job).await, None);
    });
}
