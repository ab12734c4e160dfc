//! Errors of either end: who suffers, and what the operator can do.

use serde_json::json;

use super::bench::*;
use crate::driver::DebugEvent;
use crate::job::{IoStatus, JobState};

const EIO: &str = "Input/output error";

#[test]
fn a_target_that_fails_ends_the_job() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        inject(&target, DebugEvent::WriteAio, libc::EIO);
        let job = bench.backup("full", &json!({})).await;
        assert_eq!(end(&job).await.as_deref(), Some(EIO));
        bench.check_clean();
        // The guest goes on as if there had never been a job.
        bench.write(&disk, 0, 512, 0xaa).await;
        let errors = bench.events().into_iter().filter(|event| event == "ERROR");
        assert_eq!(errors.count(), 1, "what ails one copy ails all");
    });
}

#[test]
fn a_source_that_fails_ends_the_job() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.target("target").await;
        let source = bench.graph.node("disk").unwrap();
        inject(&source, DebugEvent::ReadAio, libc::EIO);
        let job = bench.backup("full", &json!({})).await;
        assert_eq!(end(&job).await.as_deref(), Some(EIO));
        bench.check_clean();
    });
}

#[test]
fn a_full_target_stops_the_job_until_there_is_room() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        inject(&target, DebugEvent::WriteAio, libc::ENOSPC);
        let stop = json!({"on-target-error": "enospc", "x-perf": {"max-workers": 1}});
        let job = bench.backup("full", &stop).await;
        // A section of the job's start is a pause, too.
        while job.block_job_info().io_status != IoStatus::Nospace {
            settle().await;
        }
        wait_for(&job, JobState::Paused).await;
        debug(&target).clear_errors();
        // Old data is saved all the time.
        bench.write(&disk, 4 * CLUSTER, 512, 0xaa).await;
        job.resume().unwrap();
        assert_eq!(end(&job).await, None);
        assert!(bench.bytes("target") == pattern());
    });
}

#[test]
fn an_ignored_error_is_tried_again() {
    run(|bench| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        inject(&target, DebugEvent::WriteAio, libc::EIO);
        let ignore = json!({"on-target-error": "ignore", "x-perf": {"max-workers": 2}});
        let job = bench.backup("full", &ignore).await;
        while !bench.events().contains(&"ERROR".to_owned()) {
            settle().await;
        }
        assert_eq!(job.state(), JobState::Running);
        debug(&target).clear_errors();
        assert_eq!(end(&job).await, None);
        assert!(bench.bytes("target") == pattern());
    });
}

#[test]
fn a_guests_write_fails_if_its_old_data_can_not_be_saved() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let job = bench.backup("none", &json!({})).await;
        inject(&target, DebugEvent::WriteAio, libc::ENOSPC);
        let error = bench.begin_write(&disk, 0, 512, 0xaa).await.unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC);
        assert!(bench.bytes("disk") == pattern());
        debug(&target).clear_errors();
        bench.write(&disk, 0, 512, 0xaa).await;
        assert_eq!(job.state(), JobState::Running);
        job.cancel(true).unwrap();
        end(&job).await;
    });
}

#[test]
fn or_the_job_fails_instead() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let give_up = json!({"on-cbw-error": "break-snapshot"});
        let job = bench.backup("none", &give_up).await;
        inject(&target, DebugEvent::WriteAio, libc::EIO);
        bench.write(&disk, 0, 512, 0xaa).await;
        assert_eq!(end(&job).await.as_deref(), Some(EIO));
        assert_eq!(bench.bytes("disk")[0], 0xaa);
        bench.check_clean();
    });
}

#[test]
fn a_target_that_can_not_be_flushed_is_no_backup() {
    run(|bench| async move {
        bench.disk("disk").await;
        let target = bench.target("target").await;
        inject(&target, DebugEvent::FlushToDisk, libc::EIO);
        let job = bench.backup("full", &json!({})).await;
        assert_eq!(end(&job).await.as_deref(), Some(EIO));
    });
}
