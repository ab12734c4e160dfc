//! Runs one worker on a plain file and damages the file before the read-back.

use std::os::unix::fs::FileExt;

use super::*;
use crate::{
    SECTOR_SIZE,
    journal::Journal,
    record::LogReader,
    stamp::{Stamp, StampError},
};

const AREA: Extent = Extent {
    first: 64,
    sectors: 4096,
};

struct Rig {
    disk: File,
    log: File,
    journal: Journal,
    status: Arc<DiskStatus>,
    run: Run,
}

fn rig() -> Rig {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len((AREA.first + AREA.sectors) * SECTOR_BYTES)
        .unwrap();
    let log = tempfile::tempfile().unwrap();
    let journal = Journal::start(log.try_clone().unwrap(), 4096, 1).unwrap();
    let status = Arc::new(DiskStatus {
        name: "test".to_owned(),
        ..DiskStatus::default()
    });
    let worker = Worker {
        disk: 3,
        thread: 1,
        threads: 2,
        direct: disk.try_clone().unwrap(),
        buffered: disk.try_clone().unwrap(),
        plan: Plan::new(1, 3, 1, AREA),
        model: Model::new(3, AREA),
        journal: journal.handle(Instant::now()),
        status: Arc::clone(&status),
        interval: Duration::ZERO,
        operations: Some(100),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let run = worker.work();
    Rig {
        disk,
        log,
        journal,
        status,
        run,
    }
}

fn a_written_sector(rig: &Rig) -> (u64, Stamp) {
    (AREA.first..AREA.first + AREA.sectors)
        .find_map(|sector| {
            let mut bytes = [0; SECTOR_SIZE];
            rig.disk
                .read_exact_at(&mut bytes, sector * SECTOR_BYTES)
                .unwrap();
            Stamp::decode(&bytes).ok().map(|stamp| (sector, stamp))
        })
        .unwrap()
}

#[test]
fn an_undamaged_disk_reads_back_right() {
    let rig = rig();
    assert!(rig.run.read_back() > 1000);
    assert_eq!(rig.status.mismatches.load(Ordering::Relaxed), 0);
    assert_eq!(rig.status.errors.load(Ordering::Relaxed), 0);
}

#[test]
fn one_lost_sector_is_noticed() {
    let rig = rig();
    let (sector, _) = a_written_sector(&rig);
    rig.disk
        .write_all_at(&[0; SECTOR_SIZE], sector * SECTOR_BYTES)
        .unwrap();
    let _verified = rig.run.read_back();
    assert_eq!(rig.status.mismatches.load(Ordering::Relaxed), 1);
}

#[test]
fn one_stale_sector_is_noticed() {
    let rig = rig();
    let (sector, stamp) = a_written_sector(&rig);
    let mut bytes = [0; SECTOR_SIZE];
    Stamp {
        seq: stamp.seq - 2,
        ..stamp
    }
    .encode(&mut bytes);
    rig.disk
        .write_all_at(&bytes, sector * SECTOR_BYTES)
        .unwrap();
    let _verified = rig.run.read_back();
    assert_eq!(rig.status.mismatches.load(Ordering::Relaxed), 1);
}

#[test]
fn a_write_that_fails_is_counted_and_logged_as_failed() {
    let mut rig = rig();
    rig.run.worker.direct = File::open("/dev/full").unwrap();
    rig.run.write_direct(Extent {
        first: AREA.first,
        sectors: 2,
    });
    assert_eq!(rig.status.errors.load(Ordering::Relaxed), 1);
    drop(rig.run);
    rig.journal.finish().unwrap();
    let records = LogReader::new(rig.log).poll().unwrap();
    let last = records.last().unwrap();
    assert_eq!(
        (last.kind, last.first, last.sectors),
        (Kind::Failed, AREA.first, 2)
    );
}

#[test]
fn mismatches_say_what_is_there() {
    let mismatch = Mismatch {
        sector: 5,
        expected: 7,
        found: Err(StampError::NoMagic),
    };
    assert_eq!(
        mismatch.to_string(),
        "sector 5 must hold write 7, but holds something else: not a stamped sector"
    );
}
