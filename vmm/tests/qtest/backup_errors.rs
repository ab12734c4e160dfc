//! Backups that can't save what a guest is about to overwrite, and `drive-backup`, of an IDE disk and of a virtio disk in an
//! I/O thread.

use serde_json::json;

use super::two_disks::{Disk, SECTOR};
use super::writer::{CLUSTER, Writer, on_both};

/// A cluster of data, behind the first, whose copy to the target fails once.
const FAILS: u64 = 9 * CLUSTER;

/// Begins a backup whose own first copy hangs; returns what the target must hold at the end. Saving [`FAILS`] will fail once.
fn begin_backup(writer: &mut Writer, disk: Disk, on_error: &str) -> Vec<u8> {
    let rules = json!({"inject-error": [
        {"event": "write_aio", "iotype": "write", "errno": libc::EIO, "once": true, "sector": FAILS}
    ]});
    writer.guest.add_target(disk, &rules);
    writer.guest.hold(disk, "write_aio");
    let arguments = json!({
        "device": disk.name(), "target": disk.copy(), "job-id": disk.name(), "sync": "full",
        "on-cbw-error": on_error, "x-perf": {"max-workers": 1, "max-chunk": 65536}
    });
    writer.ask_during_writes(&[disk], "blockdev-backup", &arguments);
    writer.guest.wait_held(disk);
    writer.expected(disk)
}

/// The guest's disk fails, as any disk may; nothing was written, and the backup goes on.
#[test]
fn a_guests_write_fails_rather_than_the_backup() {
    on_both(|writer, disk| {
        let start = begin_backup(writer, disk, "break-guest-write");
        writer.write_fails(disk, FAILS + 3);
        writer.write_some(disk);
        assert_eq!(writer.told(disk)["status"], "running");
        // The guest tries again.
        writer.write(disk, FAILS + 3);
        writer.write_some(disk);
        writer.guest.let_go(disk);
        writer.guest.wait_completed(disk);
        writer.assert_image(disk, &disk.copy(), &start);
        writer.assert_disk(disk, disk.name());
    });
}

/// The guest goes on at once, wherever it writes, and the job ends with the error.
#[test]
fn a_backup_fails_rather_than_a_guests_write() {
    on_both(|writer, disk| {
        let start = begin_backup(writer, disk, "break-snapshot");
        writer.write(disk, FAILS + 3);
        // Nothing is saved any more, not even where the first copy is on its way.
        writer.write_some(disk);
        writer.write(disk, 5);
        writer.guest.let_go(disk);
        let failed = writer.guest.wait_job(disk, "BLOCK_JOB_COMPLETED");
        assert_eq!(failed.text("error"), "Input/output error");
        writer.wait_no_job();
        writer.assert_disk(disk, disk.name());
        let saved = writer.guest.bytes(&disk.copy());
        let at = usize::try_from(FAILS).unwrap() * SECTOR;
        assert_ne!(
            saved[at..at + SECTOR],
            start[at..at + SECTOR],
            "nothing has failed"
        );
    });
}

/// The target is made, and holds the disk of the start, whatever the guest writes.
#[test]
fn a_drive_backup_holds_the_disk_of_its_start() {
    for mode in ["absolute-paths", "existing"] {
        on_both(|writer, disk| {
            writer.write_some(disk);
            let name = format!("{}-backup", disk.name());
            let target = writer.guest.image(&name);
            if mode == "existing" {
                let old = writer.expected(disk);
                std::fs::write(&target, vec![0x5a; old.len()]).unwrap();
            }
            let mut read = json!({"node-name": disk.name(), "event": "read_aio", "tag": "read"});
            writer.guest.execute("x-debug-break", &read);
            let arguments = json!({
                "device": disk.name(), "target": target, "format": "raw", "mode": mode, "sync": "full",
                "job-id": disk.name(), "x-perf": {"max-workers": 1, "max-chunk": 65536}
            });
            writer.ask_during_writes(&[disk], "drive-backup", &arguments);
            let start = writer.expected(disk);
            read = json!({"node-name": disk.name(), "tag": "read"});
            writer.guest.execute("x-debug-wait-break", &read);
            writer.write_some(disk);
            writer.trim(disk, 11 * CLUSTER, 200);
            writer.begin(disk, 7);
            writer.assert_waits(disk, "the old data is not saved yet");
            writer.guest.execute("x-debug-resume", &read);
            writer.guest.wait(disk);
            writer.write_some(disk);
            writer.guest.wait_completed(disk);
            writer.assert_image(disk, &name, &start);
            writer.assert_disk(disk, disk.name());
        });
    }
}
