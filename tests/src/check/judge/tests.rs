//! Each kind of damage, done to a small disk, must be found, and found for what it is.

use sluice_writer::{record::Kind, stamp::StampFlags};

use super::*;
use crate::check::synthetic::Synthetic;

/// Writes 2 at 100..108, then 4 over 104..112, all acknowledged.
fn disk() -> Synthetic {
    let mut disk = Synthetic::new();
    disk.write(2, 100, 8);
    disk.write(4, 104, 8);
    disk
}

fn judge(disk: &Synthetic) -> Findings {
    let history = disk.history.disk(0);
    acknowledged_writes(&disk.image(), history, history, LogState::Complete).unwrap()
}

fn stamp(sector: u64, seq: u64) -> Stamp {
    Stamp {
        disk: 0,
        flags: StampFlags::empty(),
        sector,
        seq,
    }
}

#[test]
fn a_sound_disk_has_no_findings() {
    assert_eq!(judge(&disk()), Findings::default());
}

#[test]
fn a_write_in_flight_may_be_there_or_not_or_in_part() {
    let mut disk = disk();
    disk.log(Kind::SubmitDirect, 6, 100, 4);
    assert!(judge(&disk).is_empty());
    disk.stamp(stamp(101, 6), 101);
    assert!(judge(&disk).is_empty());
}

#[test]
fn a_lost_write_is_found() {
    let disk = disk();
    disk.stamp(stamp(105, 2), 105);
    let lost = Violation::Lost {
        sector: 105,
        acknowledged: 4,
        found: Some(2),
    };
    assert_eq!(judge(&disk).listed(), [lost]);
    assert_eq!(
        lost_writes(&disk.image(), disk.history.disk(0)).unwrap(),
        [(4, 1)]
    );
}

#[test]
fn a_write_that_never_arrived_is_found() {
    let disk = disk();
    disk.put(111, &[0; SECTOR_SIZE]);
    let lost = Violation::Lost {
        sector: 111,
        acknowledged: 4,
        found: None,
    };
    assert_eq!(judge(&disk).listed(), [lost]);
}

#[test]
fn a_torn_sector_is_found() {
    let disk = disk();
    let mut bytes = disk.sector(105);
    disk.stamp(stamp(105, 2), 105);
    bytes[256..].copy_from_slice(&disk.sector(105)[256..]);
    disk.put(105, &bytes);
    let findings = judge(&disk);
    assert!(matches!(
        findings.listed(),
        [Violation::Damaged {
            sector: 105,
            error: StampError::Checksum { .. }
        }]
    ));
}

#[test]
fn a_misdirected_write_is_found() {
    let disk = disk();
    disk.put(200, &disk.sector(105));
    assert_eq!(
        judge(&disk).listed(),
        [Violation::Misplaced {
            sector: 200,
            found: stamp(105, 4)
        }]
    );
}

#[test]
fn another_disks_write_is_found() {
    let disk = disk();
    let foreign = Stamp {
        disk: 1,
        ..stamp(105, 4)
    };
    disk.stamp(foreign, 105);
    assert_eq!(
        judge(&disk).listed(),
        [Violation::Misplaced {
            sector: 105,
            found: foreign
        }]
    );
}

#[test]
fn a_write_that_was_never_submitted_is_found_if_the_log_is_complete() {
    let disk = disk();
    disk.stamp(stamp(105, 9), 105);
    assert_eq!(
        judge(&disk).listed(),
        [Violation::NeverSubmitted {
            sector: 105,
            seq: 9
        }]
    );
    let history = disk.history.disk(0);
    let behind = acknowledged_writes(&disk.image(), history, history, LogState::Behind).unwrap();
    assert!(behind.is_empty());
}

#[test]
fn a_write_of_other_sectors_is_not_excused_by_its_number() {
    let disk = disk();
    disk.stamp(stamp(300, 4), 300);
    assert_eq!(
        judge(&disk).listed(),
        [Violation::NeverSubmitted {
            sector: 300,
            seq: 4
        }]
    );
}

#[test]
fn an_image_frozen_earlier_is_held_to_the_log_of_that_time() {
    let mut disk = disk();
    let then = disk.history.clone();
    let old = disk.snapshot("old");
    disk.write(6, 100, 4);
    let now = disk.history.disk(0);
    let findings = acknowledged_writes(&old, then.disk(0), now, LogState::Complete).unwrap();
    assert!(findings.is_empty());
    let findings = acknowledged_writes(&old, now, now, LogState::Complete).unwrap();
    assert_eq!(findings.count(), 4);
}

#[test]
fn findings_are_all_counted_and_few_listed() {
    let mut disk = disk();
    disk.log(Kind::SubmitDirect, 6, 1000, 500);
    disk.log(Kind::Ack, 6, 1000, 500);
    let findings = judge(&disk);
    assert_eq!((findings.count(), findings.listed().len()), (500, LISTED));
    assert_eq!(
        lost_writes(&disk.image(), disk.history.disk(0)).unwrap(),
        [(6, 500)]
    );
}

#[test]
fn a_clean_pivot_leaves_only_newer_writes() {
    let mut disk = disk();
    let old = disk.snapshot("old");
    assert!(only_newer_writes(&old, &disk.image()).unwrap().is_empty());
    disk.write(6, 106, 300);
    assert!(only_newer_writes(&old, &disk.image()).unwrap().is_empty());
}

#[test]
fn a_write_that_reached_only_the_old_source_is_found() {
    let mut disk = disk();
    let new = disk.snapshot("new");
    disk.write(6, 106, 1);
    disk.write(8, 500, 1);
    let findings = only_newer_writes(&disk.image(), &new).unwrap();
    assert_eq!(
        findings.listed(),
        [
            Violation::Reverted {
                sector: 106,
                old: 6,
                new: Some(4)
            },
            Violation::Reverted {
                sector: 500,
                old: 8,
                new: None
            },
        ]
    );
}

#[test]
fn a_sector_that_was_not_copied_is_found() {
    let disk = disk();
    let old = disk.snapshot("old");
    disk.put(2000, &[0; SECTOR_SIZE]);
    let mut damaged = disk.sector(100);
    damaged[77] ^= 1;
    disk.put(100, &damaged);
    let findings = only_newer_writes(&old, &disk.image()).unwrap();
    assert!(matches!(
        findings.listed(),
        [
            Violation::Damaged { sector: 100, .. },
            Violation::Changed { sector: 2000 }
        ]
    ));
}
