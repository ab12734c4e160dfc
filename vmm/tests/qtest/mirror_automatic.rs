//! A mirror with `copy-mode=automatic` whose copies don't keep up with the guest.

use std::time::Instant;

use serde_json::{Value, json};

use super::two_disks::{Disk, Guest, LIMIT, SECTOR};

/// What a mark stands for, and what one copy moves: a guest's write of a sector makes as much work.
const CHUNK: u64 = 1 << 20;
/// As large are the disks.
const SIZE: u64 = 64 << 20;
/// As many copies are on their way at once as a mirror ever makes.
const COPIES: usize = 16;
/// What the lap of the first copy may still want, two laps of what is left then, and as much again.
const MOST_STEPS: u64 = 2 * (SIZE / CHUNK + 4 * COPIES as u64);

/// One of the disks, and its copies that are held on their way to the target.
struct Race {
    guest: Guest,
    disk: Disk,
    /// The number of the last record.
    number: u64,
    /// The last record of each chunk.
    records: [u64; COPIES],
    /// How often the chunk's copy was held.
    held: [u64; COPIES],
}

impl Race {
    /// What is told of the job.
    fn told(&mut self) -> Value {
        let mut jobs = self.guest.execute("query-block-jobs", &json!({}));
        jobs[0].take()
    }

    fn writes_to_both(&mut self) -> bool {
        self.told()["x-writes-to-both"].as_bool().unwrap()
    }

    /// The guest writes a record to the chunk.
    fn write(&mut self, chunk: usize) {
        self.number += 1;
        let mut record = [0xc3; SECTOR];
        record[..8].copy_from_slice(&self.number.to_le_bytes());
        self.records[chunk] = self.number;
        let sector = chunk as u64 * CHUNK / SECTOR as u64;
        self.guest.write(self.disk, sector, &record);
    }

    fn tag(&self, chunk: usize) -> Value {
        let tag = format!("{chunk}-{}", self.held[chunk]);
        json!({"node-name": self.disk.copy(), "tag": tag})
    }

    /// Has the next write to the target be held, which is the chunk's copy.
    fn set_trap(&mut self, chunk: usize) {
        self.held[chunk] += 1;
        let mut trap = self.tag(chunk);
        trap["event"] = json!("write_aio");
        self.guest.execute("x-debug-break", &trap);
    }

    fn wait_trapped(&mut self, chunk: usize) {
        let tag = self.tag(chunk);
        self.guest.execute("x-debug-wait-break", &tag);
    }

    /// Lets the chunk's copy end. Its next one is held: all others are on their way.
    fn copy_once(&mut self, chunk: usize) {
        let old = self.tag(chunk);
        self.set_trap(chunk);
        self.guest.execute("x-debug-resume", &old);
        self.wait_trapped(chunk);
    }
}

/// Each copy that ends finds its chunk written again, so no lap leads anywhere. Once the guest's writes go to both sides, the
/// copies that are left end it.
fn switches_by_itself(disk: Disk) {
    let mut guest = Guest::start();
    guest.add_target(disk, &json!({}));
    for node in [disk.name(), &disk.copy()] {
        guest.execute("block_resize", &json!({"node-name": node, "size": SIZE}));
    }
    let automatic = json!({"copy-mode": "automatic", "granularity": CHUNK});
    guest.begin_mirror(disk, &automatic).unwrap();
    guest.wait_job(disk, "BLOCK_JOB_READY");
    let mut race = Race {
        guest,
        disk,
        number: 0,
        records: Default::default(),
        held: Default::default(),
    };
    let chunks = 0..race.records.len();
    for chunk in chunks.clone() {
        race.set_trap(chunk);
        race.write(chunk);
        race.wait_trapped(chunk);
    }
    for chunk in chunks.clone() {
        race.write(chunk);
    }
    assert!(!race.writes_to_both());
    let mut steps = 0;
    for chunk in chunks.clone().cycle() {
        // What was copied up to now has been weighed when the chunk is on its way again.
        race.copy_once(chunk);
        if race.writes_to_both() {
            break;
        }
        race.write(chunk);
        steps += 1;
        assert!(steps < MOST_STEPS, "the guest is never made to wait");
    }
    assert!(steps > COPIES as u64, "after one lap");
    assert_eq!(race.told()["x-bytes-written-to-both"], 0);

    // A write waits for the copy of its chunk now; that of another one goes to both.
    let apart = SIZE / CHUNK - 1;
    race.guest
        .write(disk, apart * CHUNK / SECTOR as u64, &[0x71; SECTOR]);
    assert_eq!(race.told()["x-bytes-written-to-both"], SECTOR);
    for chunk in chunks.clone() {
        let tag = race.tag(chunk);
        race.guest.execute("x-debug-resume", &tag);
    }
    let deadline = Instant::now() + LIMIT;
    while race.told()["actively-synced"] != true {
        assert!(Instant::now() < deadline, "{}", race.told());
        race.write(0);
    }
    for chunk in chunks.clone() {
        race.write(chunk);
    }
    let synced = race.told();
    assert_eq!(synced["actively-synced"], true, "{synced}");
    assert_eq!(synced["x-writes-to-both"], true, "{synced}");

    race.guest.flush(disk);
    race.guest.pivot(disk);
    let copy = race.guest.bytes(&disk.copy());
    for (chunk, record) in chunks.zip(race.records) {
        let at = chunk * usize::try_from(CHUNK).unwrap();
        assert_eq!(copy[at..at + 8], record.to_le_bytes(), "chunk {chunk}");
    }
    let at = usize::try_from(apart * CHUNK).unwrap();
    assert_eq!(copy[at..at + SECTOR], [0x71; SECTOR]);
    assert_eq!(copy.len() as u64, SIZE);
    race.guest.end();
}

#[test]
fn an_automatic_mirror_of_an_ide_disk_makes_its_guest_wait() {
    switches_by_itself(Disk::Ide);
}

#[test]
fn an_automatic_mirror_of_a_virtio_disk_makes_its_guest_wait() {
    switches_by_itself(Disk::Virtio);
}
