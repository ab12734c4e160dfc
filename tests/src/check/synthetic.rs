//! A small disk with a history, made by hand, that tests can damage.

use std::{os::unix::fs::FileExt, path::PathBuf};

use sluice_writer::{
    SECTOR_SIZE,
    record::{Kind, Record},
    stamp::{Stamp, StampFlags},
};

use super::{history::History, image::Image};

/// Size of the disk in sectors.
pub const SECTORS: usize = 4096;

/// An image file and the log of what the guest did to it. Before that, it is full of noise.
pub struct Synthetic {
    dir: tempfile::TempDir,
    pub history: History,
}

impl Synthetic {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let noise: Vec<u8> = (0..=250).cycle().take(SECTORS * SECTOR_SIZE).collect();
        std::fs::write(dir.path().join("disk"), noise).unwrap();
        Self {
            dir,
            history: History::new(&[SECTORS]),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    pub fn image(&self) -> Image {
        Image::open(&self.path()).unwrap()
    }

    /// A copy of the disk as it is now.
    pub fn snapshot(&self, name: &str) -> Image {
        let path = self.dir.path().join(name);
        std::fs::copy(self.path(), &path).unwrap();
        Image::open(&path).unwrap()
    }

    pub fn sector(&self, sector: u64) -> [u8; SECTOR_SIZE] {
        let mut bytes = [0; SECTOR_SIZE];
        let file = std::fs::File::open(self.path()).unwrap();
        file.read_exact_at(&mut bytes, sector * SECTOR_SIZE as u64)
            .unwrap();
        bytes
    }

    pub fn put(&self, sector: u64, bytes: &[u8; SECTOR_SIZE]) {
        let file = std::fs::File::options()
            .write(true)
            .open(self.path())
            .unwrap();
        file.write_all_at(bytes, sector * SECTOR_SIZE as u64)
            .unwrap();
    }

    pub fn stamp(&self, stamp: Stamp, at: u64) {
        let mut bytes = [0; SECTOR_SIZE];
        stamp.encode(&mut bytes);
        self.put(at, &bytes);
    }

    pub fn log(&mut self, kind: Kind, seq: u64, first: u64, sectors: u32) {
        let record = Record {
            kind,
            disk: 0,
            thread: 0,
            sectors,
            seq,
            first,
            micros: 0,
        };
        self.history.absorb(&[record]).unwrap();
    }

    /// Submits a write and puts it on the disk, without an acknowledgement.
    pub fn submit(&mut self, seq: u64, first: u64, sectors: u32) {
        self.log(Kind::SubmitDirect, seq, first, sectors);
        for sector in first..first + u64::from(sectors) {
            self.stamp(
                Stamp {
                    disk: 0,
                    flags: StampFlags::empty(),
                    sector,
                    seq,
                },
                sector,
            );
        }
    }

    /// A write that was submitted, done and acknowledged.
    pub fn write(&mut self, seq: u64, first: u64, sectors: u32) {
        self.submit(seq, first, sectors);
        self.log(Kind::Ack, seq, first, sectors);
    }
}
