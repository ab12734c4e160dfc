//! Mirrors of an IDE disk and of a virtio disk in an I/O thread, under a guest that works by their registers.

use serde_json::json;

use super::two_disks::{Disk, Guest, SECTOR, SECTORS};

fn record(number: u64) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..8].copy_from_slice(&number.to_le_bytes());
    sector
}

/// A guest writes a record to one disk, and when that has ended to the other. The mirrors of both pivot together;
/// that of the virtio disk is held before its section, when the IDE disk is on its new image already. The
/// old images never show a record on the second disk that the first has not.
#[test]
fn related_records_on_an_ide_disk_and_a_virtio_disk_stay_related() {
    let mut guest = Guest::start();
    for disk in Disk::BOTH {
        guest.add_target(disk, &json!({}));
        guest.mirror(disk, "background");
    }
    for number in 1..=5 {
        for disk in Disk::BOTH {
            guest.write(disk, 0, &record(number));
        }
    }
    guest.hold(Disk::Virtio, "flush_to_disk");
    let devices = json!({"devices": ["ide", "virtio"]});
    guest.execute("x-block-job-complete-group", &devices);
    guest.wait_held(Disk::Virtio);
    while !guest.roots().contains(&Disk::Ide.copy()) {}
    assert!(
        guest
            .roots()
            .iter()
            .all(|root| *root != Disk::Virtio.copy())
    );
    guest.begin_write(Disk::Ide, 0, &record(6));
    // A guest goes on to the second disk when the first has its record.
    let goes_on = (0..50).any(|_| {
        guest.execute("query-status", &json!({}));
        guest.has_ended(Disk::Ide)
    });
    if goes_on {
        guest.write(Disk::Virtio, 0, &record(6));
    }
    guest.let_go(Disk::Virtio);
    if !goes_on {
        guest.wait(Disk::Ide);
        guest.write(Disk::Virtio, 0, &record(6));
    }
    for disk in Disk::BOTH {
        guest.wait_completed(disk);
    }
    let (first, second) = (guest.record("ide"), guest.record("virtio"));
    assert!(
        first >= second,
        "record {second} is there, but not {first} + 1"
    );
    for disk in Disk::BOTH {
        assert_eq!(guest.record(&disk.copy()), 6);
        guest.write(disk, 0, &record(7));
        guest.flush(disk);
        assert_eq!(guest.record(&disk.copy()), 7);
        assert_eq!(guest.record(disk.name()), 5);
    }
    guest.end();
}

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

#[test]
fn an_ide_disk_works_in_write_blocking_mode() {
    works_in_write_blocking_mode(Disk::Ide);
}

#[test]
fn a_virtio_disk_works_in_write_blocking_mode() {
    works_in_write_blocking_mode(Disk::Virtio);
}
