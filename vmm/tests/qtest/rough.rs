//! Mirrors in the background to which everything happens in one run: their device is reset, their guest trims and flushes,
//! their source fails.

use std::fs::File;

use rustix::fs::{SeekFrom, seek};
use serde_json::json;

use super::two_disks::{Disk, SECTOR};
use super::writer::{APART, CLUSTER, Writer, on_both};

/// What the guest trims, in sectors, each once. The first two lie where the disk holds data from the start.
const TRIMS: [u64; 4] = [4 * CLUSTER, 8 * CLUSTER, 20 * CLUSTER, 12 * CLUSTER];

fn trim(writer: &mut Writer, disk: Disk, sector: u64) {
    writer.trim(disk, sector, u16::try_from(CLUSTER).unwrap());
}

/// A reset of the device while a write of its guest is on its way, which ends before it.
fn reset_under_a_write(writer: &mut Writer, disk: Disk) {
    let node = disk.name();
    writer.guest.hold_at(node, "write_aio");
    writer.begin(disk, APART + 3);
    writer.guest.wait_held_at(node);
    writer.guest.begin_reset(disk);
    writer.guest.let_go_at(node);
    writer.guest.end_reset(disk);
    writer.write_some(disk);
}

/// Has the next read of the source wait, which is the job's: the guest reads nothing.
fn hold_a_copy(writer: &mut Writer, disk: Disk) {
    let copy = json!({"node-name": disk.name(), "event": "read_aio", "tag": "copy"});
    writer.guest.execute("x-debug-break", &copy);
}

/// Lets it fail; the job stops, and goes on when it is told to.
fn fail_the_copy(writer: &mut Writer, disk: Disk) {
    let mut copy = json!({"node-name": disk.name(), "tag": "copy"});
    writer.guest.execute("x-debug-wait-break", &copy);
    writer.write_some(disk);
    copy["errno"] = json!(rustix::io::Errno::IO.raw_os_error());
    writer.guest.execute("x-debug-resume", &copy);
    let failed = writer.guest.wait_job(disk, "BLOCK_JOB_ERROR");
    assert_eq!(failed.text("operation"), "read");
    assert_eq!(failed.text("action"), "stop");
    // The guest does not notice.
    writer.write_some(disk);
    writer.guest.flush(disk);
}

fn resume(writer: &mut Writer, disk: Disk) {
    let job = json!({"device": disk.name()});
    writer.guest.execute("block-job-resume", &job);
}

/// Whether the file holds data at this sector.
fn is_data(writer: &Writer, image: &str, sector: u64) -> bool {
    let file = File::open(writer.guest.image(image)).unwrap();
    let at = sector * SECTOR as u64;
    seek(&file, SeekFrom::Data(at)).is_ok_and(|data| data == at)
}

#[test]
fn a_mirror_in_the_background_survives_resets_trims_flushes_and_its_sources_errors() {
    for unmap in [false, true] {
        on_both(|writer, disk| {
            writer.write_some(disk);
            trim(writer, disk, TRIMS[0]);
            hold_a_copy(writer, disk);
            let target = writer.guest.image(&disk.copy());
            let arguments = json!({
                "device": disk.name(), "target": target, "format": "raw", "sync": "full",
                "job-id": disk.name(), "node-name": disk.copy(), "unmap": unmap,
                "granularity": 65536, "on-source-error": "stop"
            });
            writer.ask_during_writes(&[disk], "drive-mirror", &arguments);
            // While it copies everything.
            trim(writer, disk, TRIMS[1]);
            writer.guest.flush(disk);
            reset_under_a_write(writer, disk);
            fail_the_copy(writer, disk);
            // While it is stopped.
            trim(writer, disk, TRIMS[2]);
            reset_under_a_write(writer, disk);
            resume(writer, disk);
            writer.guest.wait_job(disk, "BLOCK_JOB_READY");
            // While it copies what is written.
            hold_a_copy(writer, disk);
            writer.write_some(disk);
            fail_the_copy(writer, disk);
            reset_under_a_write(writer, disk);
            resume(writer, disk);
            trim(writer, disk, TRIMS[3]);
            writer.guest.flush(disk);
            reset_under_a_write(writer, disk);
            writer.guest.pivot(disk);
            assert_eq!(is_data(writer, &disk.copy(), TRIMS[3]), !unmap);
            writer.assert_disk(disk, &disk.copy());
        });
    }
}
