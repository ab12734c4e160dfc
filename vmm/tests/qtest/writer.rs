//! A guest that writes records to both of its disks and knows what each of them must hold.

use std::collections::BTreeSet;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use sluice_tests::qmp::{Qmp, QmpError};

use super::two_disks::{Disk, FILLER, Guest, LIMIT, SECTOR, SECTORS};

/// Sectors of what bitmaps and backups count in, 64 KiB.
pub(super) const CLUSTER: u64 = 128;
/// Writes after this many sectors alone, where the test holds what is before.
pub(super) const APART: u64 = 4 * CLUSTER;

/// What the guest has made of one of its disks.
#[derive(Default)]
struct Model {
    bytes: Vec<u8>,
    /// The sectors written since they were looked at.
    written: BTreeSet<u64>,
}

pub(super) struct Writer {
    pub(super) guest: Guest,
    operator: Qmp,
    models: [Model; 2],
    /// The node in which a disk's writes can be held.
    root: fn(Disk) -> &'static str,
    /// Of the last record.
    number: u64,
}

/// Plays with each of the disks of one machine.
pub(super) fn on_both(play: impl Fn(&mut Writer, Disk)) {
    let mut writer = Writer::new(Guest::start());
    for disk in Disk::BOTH {
        play(&mut writer, disk);
    }
    writer.guest.end();
}

pub(super) fn clusters(sectors: &BTreeSet<u64>) -> BTreeSet<u64> {
    sectors.iter().map(|sector| sector / CLUSTER).collect()
}

/// What an image holds that was full of [`FILLER`] and got these `units`, of so many sectors each, of `data`.
pub(super) fn filled_with(data: &[u8], units: &BTreeSet<u64>, sectors: u64) -> Vec<u8> {
    let mut bytes = vec![FILLER; data.len()];
    let size = usize::try_from(sectors).unwrap() * SECTOR;
    for unit in units {
        let at = usize::try_from(*unit).unwrap() * size;
        bytes[at..at + size].copy_from_slice(&data[at..at + size]);
    }
    bytes
}

impl Writer {
    pub(super) fn new(guest: Guest) -> Self {
        Self::on(guest, Disk::name)
    }

    /// The same with disks on these nodes.
    pub(super) fn on(guest: Guest, root: fn(Disk) -> &'static str) -> Self {
        let models = Disk::BOTH.map(|disk| Model {
            bytes: guest.bytes(disk.name()),
            ..Model::default()
        });
        let operator = guest.second_monitor();
        Self {
            guest,
            operator,
            models,
            root,
            number: 0,
        }
    }

    fn model(&mut self, disk: Disk) -> &mut Model {
        let [ide, virtio] = &mut self.models;
        match disk {
            Disk::Ide => ide,
            Disk::Virtio => virtio,
        }
    }

    /// What the disk must hold now.
    pub(super) fn expected(&mut self, disk: Disk) -> Vec<u8> {
        self.model(disk).bytes.clone()
    }

    /// The sectors that were written since the last call.
    pub(super) fn take_written(&mut self, disk: Disk) -> BTreeSet<u64> {
        std::mem::take(&mut self.model(disk).written)
    }

    /// Begins to write the next record to a sector. The disk must hold it from then on.
    pub(super) fn begin(&mut self, disk: Disk, sector: u64) {
        self.number += 1;
        let mut record = [0xc3; SECTOR];
        record[..8].copy_from_slice(&self.number.to_le_bytes());
        record[8..16].copy_from_slice(&sector.to_le_bytes());
        let model = self.model(disk);
        let at = usize::try_from(sector).unwrap() * SECTOR;
        model.bytes[at..at + SECTOR].copy_from_slice(&record);
        model.written.insert(sector);
        self.guest.begin_write(disk, sector, &record);
    }

    /// What was begun has not ended, although others had all the time.
    pub(super) fn assert_waits(&mut self, disk: Disk, why: &str) {
        for _ in 0..50 {
            self.guest.execute("query-status", &json!({}));
            assert!(!self.guest.has_ended(disk), "{disk:?}: {why}");
        }
    }

    pub(super) fn write(&mut self, disk: Disk, sector: u64) {
        self.begin(disk, sector);
        self.guest.wait(disk);
    }

    /// Writes the next record to a sector, which fails: the disk must hold what it did before.
    pub(super) fn write_fails(&mut self, disk: Disk, sector: u64) {
        let before = self.expected(disk);
        self.begin(disk, sector);
        self.model(disk).bytes = before;
        let succeeded = loop {
            if let Some(outcome) = self.guest.outcome(disk) {
                break outcome;
            }
        };
        assert!(!succeeded, "{disk:?}: no error");
    }

    /// What the monitor tells of the disk's job.
    pub(super) fn told(&mut self, disk: Disk) -> Value {
        let jobs = self.guest.execute("query-block-jobs", &json!({}));
        let mut all = jobs.as_array().unwrap().iter();
        let job = all.find(|job| job["device"] == disk.name());
        job.unwrap_or_else(|| panic!("no job: {jobs}")).clone()
    }

    /// Waits until there is no job: it goes right after its last event.
    pub(super) fn wait_no_job(&mut self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let jobs = self.guest.execute("query-jobs", &json!({}));
            if jobs == json!([]) {
                break;
            }
            assert!(Instant::now() < deadline, "a job stays: {jobs}");
        }
    }

    /// Writes records all over the disk, behind [`APART`], elsewhere each time.
    pub(super) fn write_some(&mut self, disk: Disk) {
        for _ in 0..8 {
            // Steps of a number without a common divisor come everywhere.
            let sector = APART + (self.number * 1_237) % (SECTORS - APART);
            self.write(disk, sector);
        }
    }

    pub(super) fn trim(&mut self, disk: Disk, sector: u64, count: u16) {
        self.guest.trim(disk, sector, count);
        let model = self.model(disk);
        model.written.extend(sector..sector + u64::from(count));
        let at = usize::try_from(sector).unwrap() * SECTOR;
        model.bytes[at..at + usize::from(count) * SECTOR].fill(0);
    }

    /// Has an operator give a command while a write of the guest is on its way to each of these disks, and lets
    /// them go when the command waits for them or was answered. Returns whether it has waited, and the answer.
    pub(super) fn during_writes(
        &mut self,
        disks: &[Disk],
        command: &str,
        arguments: &Value,
    ) -> (bool, Result<Value, QmpError>) {
        for disk in disks {
            let root = (self.root)(*disk);
            self.guest.hold_at(root, "write_aio");
            self.begin(*disk, APART);
            self.guest.wait_held_at(root);
        }
        let root = self.root;
        let (guest, operator) = (&mut self.guest, &mut self.operator);
        thread::scope(|scope| {
            let asked = scope.spawn(|| operator.execute(command, arguments));
            let is_drained = |guest: &mut Guest| {
                let drains = guest.execute("x-query-block-drains", &json!({}));
                let mut drains = drains.as_array().unwrap().iter();
                drains.any(|drain| !drain["holders"].as_array().unwrap().is_empty())
            };
            let mut waited = false;
            while !waited && !asked.is_finished() {
                waited = is_drained(guest);
            }
            for disk in disks {
                guest.let_go_at(root(*disk));
                guest.wait(*disk);
            }
            (waited, asked.join().unwrap())
        })
    }

    /// The same with a command that has to wait for the writes, and succeeds.
    pub(super) fn ask_during_writes(&mut self, disks: &[Disk], command: &str, arguments: &Value) {
        let (waited, answer) = self.during_writes(disks, command, arguments);
        answer.unwrap();
        assert!(waited, "{command} did not wait for the guest's write");
    }

    /// The image holds just what it should, once the guest has flushed its disk.
    pub(super) fn assert_image(&mut self, disk: Disk, image: &str, expected: &[u8]) {
        self.guest.flush(disk);
        let bytes = self.guest.bytes(image);
        assert_eq!(bytes.len(), expected.len(), "{image}");
        let sectors = bytes.chunks(SECTOR).zip(expected.chunks(SECTOR));
        let wrong = sectors.enumerate().find(|(_, (is, should))| is != should);
        let wrong = wrong.map(|(sector, (is, should))| (sector, &is[..16], &should[..16]));
        assert!(wrong.is_none(), "{image}: {wrong:x?}");
    }

    /// The disk is on that image and holds what the guest wrote.
    pub(super) fn assert_disk(&mut self, disk: Disk, image: &str) {
        self.write_some(disk);
        let expected = self.expected(disk);
        self.assert_image(disk, image, &expected);
    }
}
