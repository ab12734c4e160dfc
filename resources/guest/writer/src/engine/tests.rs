//! Runs the writer on plain files and looks at what it left there.

use std::{collections::HashMap, os::unix::fs::FileExt, path::PathBuf};

use super::*;
use crate::{
    SECTOR_SIZE,
    record::LogReader,
    stamp::{Stamp, StampFlags},
};

const DISK: u64 = 8 << 20;

struct Rig {
    _dir: tempfile::TempDir,
    options: Options,
}

fn rig(operations: u64) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let image = |name: &str, size| {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    };
    let disk = |name: &str| DiskOption {
        name: name.to_owned(),
        path: image(name, DISK),
    };
    let options = Options {
        disks: vec![disk("ide"), disk("virtio")],
        log: image("log", 4 << 20),
        threads: 2,
        rate: 0,
        seed: 11,
        operations: Some(operations),
        duration: None,
        report: Duration::from_secs(3600),
    };
    Rig { _dir: dir, options }
}

fn run_rig(rig: &Rig) -> Outcome {
    run(&rig.options, &Arc::new(AtomicBool::new(false))).unwrap()
}

fn sector(path: &PathBuf, number: u64) -> [u8; SECTOR_SIZE] {
    let mut bytes = [0; SECTOR_SIZE];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, number * SECTOR_BYTES)
        .unwrap();
    bytes
}

/// For each (disk, sector) the newest sequence number that a record of `kind` names.
fn newest(records: &[Record], kinds: &[Kind]) -> HashMap<(u8, u64), u64> {
    let mut newest = HashMap::new();
    for record in records.iter().filter(|record| kinds.contains(&record.kind)) {
        for sector in record.first..record.first + u64::from(record.sectors) {
            let seq = newest.entry((record.disk, sector)).or_insert(0);
            *seq = record.seq.max(*seq);
        }
    }
    newest
}

#[test]
fn what_the_log_says_is_on_the_disks() {
    let rig = rig(200);
    let outcome = run_rig(&rig);
    assert!(outcome.is_ok(), "{outcome}");
    assert_eq!(outcome.operations, 400);

    let records = LogReader::new(File::open(&rig.options.log).unwrap())
        .poll()
        .unwrap();
    assert_eq!(records.last().unwrap().kind, Kind::End);
    let submitted = newest(&records, &[Kind::SubmitDirect, Kind::SubmitBuffered]);
    let acknowledged = newest(&records, &[Kind::Ack]);
    assert_eq!(submitted, acknowledged);
    assert_eq!(submitted.len() as u64, outcome.verified);

    let mut buffered = 0;
    for ((disk, number), seq) in submitted {
        let bytes = sector(&rig.options.disks[usize::from(disk)].path, number);
        let stamp = Stamp::decode(&bytes).unwrap();
        assert_eq!(
            (stamp.disk, stamp.sector, stamp.seq),
            (u32::from(disk), number, seq)
        );
        buffered += usize::from(stamp.flags.contains(StampFlags::BUFFERED));
    }
    assert!(buffered > 0);
}

#[test]
fn an_acknowledgement_follows_its_submission() {
    let rig = rig(200);
    run_rig(&rig);
    let records = LogReader::new(File::open(&rig.options.log).unwrap())
        .poll()
        .unwrap();
    let mut open = std::collections::HashSet::new();
    for record in records {
        match record.kind {
            Kind::SubmitDirect | Kind::SubmitBuffered => {
                assert!(open.insert((record.disk, record.seq)), "reused {record:?}");
            }
            Kind::Ack => assert!(open.remove(&(record.disk, record.seq)), "{record:?}"),
            Kind::Failed => panic!("{record:?}"),
            Kind::SubmitFlush | Kind::Flushed | Kind::End => {}
        }
    }
    assert!(open.is_empty());
}

#[test]
fn same_seed_same_disks() {
    let contents = || {
        let rig = rig(100);
        run_rig(&rig);
        std::fs::read(&rig.options.disks[1].path).unwrap()
    };
    assert!(contents() == contents());
}

#[test]
fn parts_cover_the_disk_without_overlap() {
    for (sectors, threads) in [(524_288, 3), (100, 2), (8, 1), (4097, 2)] {
        let parts = parts(sectors, threads).unwrap();
        assert_eq!(parts.len(), usize::from(threads));
        let mut next = 0;
        for part in parts {
            assert_eq!((part.first, part.first % 8), (next, 0));
            next += part.sectors;
        }
        assert_eq!(next, sectors);
    }
    assert_eq!(parts(7, 1), None);
}

#[test]
fn disk_option_syntax() {
    let disk: DiskOption = "ide=/dev/sda".parse().unwrap();
    assert_eq!(
        (disk.name.as_str(), disk.path),
        ("ide", PathBuf::from("/dev/sda"))
    );
    assert!("ide".parse::<DiskOption>().is_err());
    assert!("=x".parse::<DiskOption>().is_err());
}
