//! Mirrors that meet an error and do what the operator has said, under a guest that goes on writing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use serde_json::{Value, json};

use super::two_disks::{Disk, LIMIT};
use super::writer::{APART, CLUSTER, Writer, on_both};

/// The `io-status` after an error that is not about room.
const FAILED: &str = "failed";

/// The name that is given to a filter.
const FILTER: &str = "filter";
/// The first sector of the disk's hole.
const HOLE: u64 = 2048;

fn job(disk: Disk) -> Value {
    json!({"device": disk.name()})
}

fn has_filter(writer: &mut Writer) -> bool {
    writer.guest.roots().iter().any(|root| root == FILTER)
}

/// Has the next read of the source wait, which is the job's: the guest reads nothing.
fn hold_a_read(writer: &mut Writer, disk: Disk) {
    let read = json!({"node-name": disk.name(), "event": "read_aio", "tag": "read"});
    writer.guest.execute("x-debug-break", &read);
}

/// Lets it fail under a guest's writes. The job rests then, as long as it is not told to go on.
fn fail_the_read(writer: &mut Writer, disk: Disk, rests: &str) {
    let mut read = json!({"node-name": disk.name(), "tag": "read"});
    writer.guest.execute("x-debug-wait-break", &read);
    writer.write_some(disk);
    assert_eq!(writer.told(disk)["io-status"], "ok");
    read["errno"] = json!(libc::EIO);
    writer.guest.execute("x-debug-resume", &read);
    let failed = writer.guest.wait_job(disk, "BLOCK_JOB_ERROR");
    assert_eq!(failed.text("operation"), "read");
    assert_eq!(failed.text("action"), "stop");
    // What was on its way ends first.
    let deadline = Instant::now() + LIMIT;
    while writer.told(disk)["status"] != rests {
        assert!(Instant::now() < deadline, "the job is not {rests}");
    }
    for _ in 0..3 {
        writer.write_some(disk);
        let job = writer.told(disk);
        assert_eq!(
            (&job["paused"], &job["io-status"], &job["status"]),
            (&json!(true), &json!(FAILED), &json!(rests)),
            "{job}"
        );
    }
    // Where the read failed, and elsewhere.
    writer.write(disk, 1);
    writer.trim(disk, APART + 2 * CLUSTER, 64);
    writer.guest.flush(disk);
}

fn go_on(writer: &mut Writer, disk: Disk) {
    writer.guest.execute("block-job-resume", &job(disk));
    let job = writer.told(disk);
    assert_eq!(
        (&job["paused"], &job["io-status"]),
        (&json!(false), &json!("ok")),
        "{job}"
    );
}

/// The source fails in the first copy, and in the background once more when everything has been copied.
#[test]
fn a_source_that_fails_stops_the_job_until_it_is_told_to_go_on() {
    for mode in ["background", "write-blocking"] {
        on_both(|writer, disk| {
            writer.guest.add_target(disk, &json!({}));
            writer.write_some(disk);
            hold_a_read(writer, disk);
            // A write to both sides waits for what is being copied: that is little.
            let more = json!({"on-source-error": "stop", "copy-mode": mode, "granularity": 65536, "buf-size": 65536});
            writer.guest.begin_mirror(disk, &more).unwrap();
            fail_the_read(writer, disk, "paused");
            go_on(writer, disk);
            writer.guest.wait_job(disk, "BLOCK_JOB_READY");
            writer.write_some(disk);
            if mode == "background" {
                hold_a_read(writer, disk);
                writer.write_some(disk);
                fail_the_read(writer, disk, "standby");
                go_on(writer, disk);
            }
            writer.write_some(disk);
            writer.guest.pivot(disk);
            writer.assert_disk(disk, &disk.copy());
        });
    }
}

/// The job zeroes and has not zeroed all. It may copy what a guest writes meanwhile.
fn assert_zeroing(job: &Value) {
    assert_eq!(job["x-phase"], "zeroing", "{job}");
    let (done, all) = (&job["x-zeroing-offset"], &job["x-zeroing-len"]);
    assert!(done.as_u64().unwrap() < all.as_u64().unwrap(), "{job}");
}

/// The target is made zeroes where the disk is a hole, and the guest writes into what is just being zeroed.
#[test]
fn zeroing_is_told_while_a_guest_writes_and_the_filter_has_the_given_name() {
    for mode in ["background", "write-blocking"] {
        on_both(|writer, disk| {
            writer.guest.add_target(disk, &json!({}));
            writer.guest.hold(disk, "pwritev_zero");
            let more = json!({"copy-mode": mode, "filter-node-name": FILTER});
            writer.guest.begin_mirror(disk, &more).unwrap();
            writer.guest.wait_held(disk);
            assert_zeroing(&writer.told(disk));
            assert!(has_filter(writer));

            // Data, and then the beginning of the hole.
            writer.write(disk, 5);
            writer.begin(disk, HOLE);
            if mode == "background" {
                writer.guest.wait(disk);
                writer.write_some(disk);
                writer.trim(disk, HOLE + 4 * CLUSTER, 64);
            } else {
                writer.assert_waits(disk, "its place is being zeroed");
            }
            assert_zeroing(&writer.told(disk));
            writer.guest.let_go(disk);
            writer.guest.wait(disk);
            writer.guest.wait_job(disk, "BLOCK_JOB_READY");
            let ready = writer.told(disk);
            assert_eq!(ready["x-phase"], "ready", "{ready}");
            assert_eq!(ready["x-zeroing-offset"], ready["x-zeroing-len"], "{ready}");
            writer.write_some(disk);
            writer.guest.pivot(disk);
            assert!(!has_filter(writer));
            writer.assert_disk(disk, &disk.copy());
        });
    }
}

/// What the operator says to be zero is not made zeroes, but what a guest trims meanwhile is.
#[test]
fn a_target_that_is_zero_is_not_zeroed() {
    for mode in ["background", "write-blocking"] {
        on_both(|writer, disk| {
            writer.guest.add_target(disk, &json!({}));
            // Zeroes that nobody can tell from data.
            let image = File::options()
                .write(true)
                .open(writer.guest.image(&disk.copy()))
                .unwrap();
            let size = writer.expected(disk).len();
            image.write_all_at(&vec![0; size], 0).unwrap();
            hold_a_read(writer, disk);
            let more = json!({
                "target-is-zero": true, "filter-node-name": FILTER, "copy-mode": mode, "granularity": 65536,
                "buf-size": 65536
            });
            writer.guest.begin_mirror(disk, &more).unwrap();
            let read = json!({"node-name": disk.name(), "tag": "read"});
            writer.guest.execute("x-debug-wait-break", &read);
            let held = writer.told(disk);
            assert_eq!(held["x-phase"], "copying", "{held}");
            assert_eq!(held["x-zeroing-len"], 0, "{held}");
            assert!(has_filter(writer));
            writer.write_some(disk);
            writer.write(disk, HOLE);
            writer.trim(disk, APART, 64);
            writer.guest.execute("x-debug-resume", &read);
            writer.guest.wait_job(disk, "BLOCK_JOB_READY");
            writer.write_some(disk);
            writer.guest.pivot(disk);
            assert!(!has_filter(writer));
            writer.assert_disk(disk, &disk.copy());
        });
    }
}

/// A mirror that is ready and can't write to its target any more: it can't end well, so it is cancelled by force.
#[test]
fn a_ready_mirror_whose_target_always_fails_ends_by_force() {
    for (policy, mode) in [
        ("stop", "background"),
        ("stop", "write-blocking"),
        ("ignore", "background"),
        ("ignore", "write-blocking"),
    ] {
        on_both(|writer, disk| {
            // From the flush of the first copy on.
            let rules = json!({
                "set-state": [{"event": "flush_to_disk", "state": 1, "new_state": 2}],
                "inject-error": [{"event": "write_aio", "state": 2, "iotype": "write", "errno": libc::EIO}]
            });
            writer.guest.add_target(disk, &rules);
            let more = json!({"on-target-error": policy, "copy-mode": mode});
            writer.guest.begin_mirror(disk, &more).unwrap();
            writer.guest.wait_job(disk, "BLOCK_JOB_READY");
            writer.write_some(disk);
            let failed = writer.guest.wait_job(disk, "BLOCK_JOB_ERROR");
            assert_eq!(failed.text("operation"), "write");
            assert_eq!(failed.text("action"), policy);
            writer.write_some(disk);

            let softly = writer
                .guest
                .machine
                .qmp
                .execute("block-job-cancel", &job(disk));
            if policy == "stop" {
                let refused = softly.unwrap_err().to_string();
                assert!(refused.contains("is currently paused"), "{refused}");
                assert_eq!(writer.told(disk)["paused"], true);
            } else {
                softly.unwrap();
                // It tries for the copy of one moment, and can't have it.
                writer.guest.wait_job(disk, "BLOCK_JOB_ERROR");
                writer.write_some(disk);
                writer.guest.wait_job(disk, "BLOCK_JOB_ERROR");
                assert_eq!(writer.told(disk)["device"], disk.name());
            }
            writer.write_some(disk);
            let mut forced = job(disk);
            forced["force"] = json!(true);
            writer.guest.execute("block-job-cancel", &forced);
            writer.guest.wait_job(disk, "BLOCK_JOB_CANCELLED");
            writer.wait_no_job();
            writer.assert_disk(disk, disk.name());

            // Onto another target it works.
            let old = json!({"node-name": disk.copy()});
            writer.guest.execute("blockdev-del", &old);
            writer.guest.add_target(disk, &json!({}));
            writer.guest.mirror(disk, mode);
            writer.write_some(disk);
            writer.guest.pivot(disk);
            writer.assert_disk(disk, &disk.copy());
        });
    }
}
