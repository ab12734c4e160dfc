//! A mirror of an IDE disk and one of a virtio disk in an I/O thread, under a guest that works by their registers.

use std::time::Instant;

use serde_json::json;

use super::two_disks::{Disk, Guest, LIMIT, SECTOR, SECTORS};

/// Writes to both sides, trims, flushes, a reset in the middle of a write, a target that fails: the guest sees
/// nothing of it, and the two images are the same at the end.
fn works_in_write_blocking_mode(disk: Disk) {
    const FAILS: u64 = 7000;
    let mut guest = Guest::start();
    // Once the first copy is flushed, a write of that sector fails.
    let rules = json!({
        "set-state": [{"event": "flush_to_disk", "state": 1, "new_state": 2}],
        "inject-error": [{"event": "write_aio", "state": 2, "iotype": "write", "errno": 5, "once": true,
            "sector": FAILS}]
    });
    guest.add_target(disk, &rules);
    guest.write(disk, 100, &[0x21; SECTOR]);
    guest.mirror(disk, "write-blocking");
    for (sector, byte) in [(0, 0x31), (101, 0x32), (5000, 0x33), (SECTORS - 1, 0x34)] {
        guest.write(disk, sector, &[byte; SECTOR]);
    }
    guest.trim(disk, 128, 256);
    guest.flush(disk);
    guest.trim(disk, 5000, 1);

    // A write is on its way to both when the device is reset.
    guest.hold(disk, "write_aio");
    guest.begin_write(disk, 200, &[0x41; SECTOR]);
    guest.wait_held(disk);
    guest.begin_reset(disk);
    guest.let_go(disk);
    guest.end_reset(disk);
    guest.write(disk, 201, &[0x42; SECTOR]);
    guest.flush(disk);

    guest.write(disk, FAILS, &[0x51; SECTOR]);
    let failed = guest.wait_job(disk, "BLOCK_JOB_ERROR");
    assert_eq!(failed.text("operation"), "write");
    guest.write(disk, FAILS + 1, &[0x52; SECTOR]);

    guest.execute("block-job-complete", &json!({"device": disk.name()}));
    guest.wait_completed(disk);
    assert!(
        guest.bytes(disk.name()) == guest.bytes(&disk.copy()),
        "{disk:?}"
    );
    let copied = guest.bytes(&disk.copy());
    let first = |sector: u64| copied[usize::try_from(sector).unwrap() * SECTOR];
    assert_eq!(first(201), 0x42);
    assert_eq!(first(FAILS), 0x51);
    assert_eq!(first(5000), 0, "trimmed");
    guest.write(disk, 0, &[0x61; SECTOR]);
    guest.flush(disk);
    assert_eq!(guest.bytes(&disk.copy())[0], 0x61);
    assert_eq!(guest.bytes(disk.name())[0], 0x31);
    guest.end();
}

/// A write comes while the pivot holds the disk: what it waited, and for what, is told by the event, and by the query as
/// long as the job is not dismissed.
fn tells_what_the_pivot_cost(disk: Disk) {
    const FIGURES: [&str; 3] = [
        "x-pivot-pause-us",
        "x-postponed-requests",
        "x-longest-wait-us",
    ];
    let mut guest = Guest::start();
    guest.add_target(disk, &json!({}));
    let manual = json!({"auto-dismiss": false});
    guest.begin_mirror(disk, &manual).unwrap();
    guest.wait_job(disk, "BLOCK_JOB_READY");
    let jobs = guest.execute("query-block-jobs", &json!({}));
    for figure in FIGURES {
        assert!(jobs[0].get(figure).is_none(), "before the pivot: {jobs}");
    }

    guest.hold(disk, "pivot_clean");
    guest.execute("block-job-complete", &json!({"device": disk.name()}));
    guest.wait_held(disk);
    guest.begin_write(disk, 3, &[0x71; SECTOR]);
    let deadline = Instant::now() + LIMIT;
    loop {
        let drains = guest.execute("x-query-block-drains", &json!({}));
        let mut disks = drains.as_array().unwrap().iter();
        // What an IDE disk was given waits at the gate; a virtio disk leaves it in its ring.
        if disks.any(|one| one["parked"] == 1 || one["unserved"] == 1) {
            break;
        }
        assert!(Instant::now() < deadline, "no write waits: {drains}");
    }
    guest.let_go(disk);
    guest.wait(disk);
    let completed = guest.wait_job(disk, "BLOCK_JOB_COMPLETED").data;
    guest.wait_status(disk, "concluded");
    let jobs = guest.execute("query-block-jobs", &json!({}));
    for figure in FIGURES {
        assert_eq!(jobs[0][figure], completed[figure], "{jobs}");
        let value = completed[figure].as_u64().unwrap();
        assert!(value > 0, "{figure}: {completed}");
    }
    assert_eq!(completed["x-postponed-requests"], 1, "{completed}");
    guest.execute("job-dismiss", &json!({"id": disk.name()}));
    guest.flush(disk);
    assert_eq!(guest.bytes(&disk.copy())[3 * SECTOR], 0x71);
    assert_eq!(guest.bytes(disk.name())[3 * SECTOR], 0x11);
    guest.end();
}

#[test]
fn the_pivot_of_an_ide_disk_tells_what_it_cost() {
    tells_what_the_pivot_cost(Disk::Ide);
}

#[test]
fn the_pivot_of_a_virtio_disk_tells_what_it_cost() {
    tells_what_the_pivot_cost(Disk::Virtio);
}

#[test]
fn an_ide_disk_works_in_write_blocking_mode() {
    works_in_write_blocking_mode(Disk::Ide);
}

#[test]
fn a_virtio_disk_works_in_write_blocking_mode() {
    works_in_write_blocking_mode(Disk::Virtio);
}
