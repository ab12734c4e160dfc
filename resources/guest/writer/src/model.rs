//! What one thread knows must be on its part of a disk.
//!
//! A thread owns its part alone, and its operations on it are strictly one after the other, so for
//! each sector there is exactly one write that the next read must return: the last one submitted,
//! unless that failed.

use crate::{
    SECTOR_SIZE,
    plan::Extent,
    stamp::{Stamp, StampError, StampFlags},
};

/// What a sector is expected to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Never written by this run: anything.
    Untouched,
    /// The write with this sequence number.
    Written(u64),
    /// A write failed half-way: old or new content.
    Unknown,
}

/// The newest write of each sector of one thread's area.
#[derive(Debug)]
pub struct Model {
    disk: u32,
    area: Extent,
    expected: Vec<Expected>,
}

/// A sector that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Sector number on the disk.
    pub sector: u64,
    /// Sequence number of the write that must be there.
    pub expected: u64,
    /// What is there instead.
    pub found: Result<Stamp, StampError>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "sector {} must hold write {}, but holds ",
            self.sector, self.expected
        )?;
        match &self.found {
            Ok(stamp) => write!(
                f,
                "write {} of sector {} of disk {}",
                stamp.seq, stamp.sector, stamp.disk
            ),
            Err(error) => write!(f, "something else: {error}"),
        }
    }
}

impl Model {
    /// A model of an area that nothing was written to.
    #[must_use]
    pub fn new(disk: u32, area: Extent) -> Self {
        Self {
            disk,
            area,
            expected: vec![Expected::Untouched; area.count()],
        }
    }

    /// The area it models.
    #[must_use]
    pub const fn area(&self) -> Extent {
        self.area
    }

    fn slot(&self, sector: u64) -> usize {
        // Below the length of `expected`, which is a usize.
        usize::try_from(sector - self.area.first).unwrap_or(usize::MAX)
    }

    fn slots(&mut self, extent: Extent) -> &mut [Expected] {
        let from = self.slot(extent.first);
        let to = self.slot(extent.first + extent.sectors);
        &mut self.expected[from..to]
    }

    /// Notes that `extent` now holds write `seq`.
    pub fn written(&mut self, extent: Extent, seq: u64) {
        self.slots(extent).fill(Expected::Written(seq));
    }

    /// Notes that a write of `extent` failed.
    pub fn unknown(&mut self, extent: Extent) {
        self.slots(extent).fill(Expected::Unknown);
    }

    /// Number of sectors of the area that were written.
    #[must_use]
    pub fn touched(&self) -> usize {
        self.expected
            .iter()
            .filter(|expected| **expected != Expected::Untouched)
            .count()
    }

    /// Whether any sector of `extent` was written.
    #[must_use]
    pub fn is_touched(&self, extent: Extent) -> bool {
        let from = self.slot(extent.first);
        let to = self.slot(extent.first + extent.sectors);
        self.expected[from..to]
            .iter()
            .any(|expected| *expected != Expected::Untouched)
    }

    /// Compares sectors that were read, starting at `first`, and returns those that are wrong.
    #[must_use]
    pub fn compare(&self, first: u64, read: &[[u8; SECTOR_SIZE]]) -> Vec<Mismatch> {
        let from = self.slot(first);
        let expected = &self.expected[from..];
        (first..)
            .zip(expected.iter().zip(read))
            .filter_map(|(sector, (expected, bytes))| {
                let Expected::Written(seq) = *expected else {
                    return None;
                };
                let found = Stamp::decode(bytes);
                let right = found.is_ok_and(|stamp| {
                    stamp.disk == self.disk && stamp.sector == sector && stamp.seq == seq
                });
                (!right).then_some(Mismatch {
                    sector,
                    expected: seq,
                    found,
                })
            })
            .collect()
    }
}

/// Fills `sectors` with the content of write `seq` at `first` of `disk`.
pub fn fill(disk: u32, flags: StampFlags, first: u64, seq: u64, sectors: &mut [[u8; SECTOR_SIZE]]) {
    for (sector, bytes) in (first..).zip(sectors) {
        Stamp {
            disk,
            flags,
            sector,
            seq,
        }
        .encode(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Extent = Extent {
        first: 100,
        sectors: 50,
    };

    fn content(first: u64, sectors: usize, seq: u64) -> Vec<[u8; SECTOR_SIZE]> {
        let mut content = vec![[0; SECTOR_SIZE]; sectors];
        fill(1, StampFlags::empty(), first, seq, &mut content);
        content
    }

    #[test]
    fn newest_write_counts() {
        let mut model = Model::new(1, AREA);
        model.written(
            Extent {
                first: 110,
                sectors: 10,
            },
            1,
        );
        model.written(
            Extent {
                first: 115,
                sectors: 10,
            },
            2,
        );
        assert_eq!(model.touched(), 15);
        assert_eq!(model.compare(115, &content(115, 10, 2)), []);
        let stale = model.compare(115, &content(115, 10, 1));
        assert_eq!(stale.len(), 10);
        assert_eq!((stale[0].sector, stale[0].expected), (115, 2));
    }

    #[test]
    fn untouched_and_unknown_sectors_may_hold_anything() {
        let mut model = Model::new(1, AREA);
        assert!(!model.is_touched(AREA));
        model.written(
            Extent {
                first: 100,
                sectors: 4,
            },
            1,
        );
        model.unknown(Extent {
            first: 100,
            sectors: 4,
        });
        assert_eq!(model.compare(100, &vec![[7; SECTOR_SIZE]; 50]), []);
        assert!(model.is_touched(AREA));
    }

    #[test]
    fn a_neighbours_content_is_a_mismatch() {
        let mut model = Model::new(1, AREA);
        model.written(
            Extent {
                first: 100,
                sectors: 1,
            },
            1,
        );
        assert_eq!(model.compare(100, &content(101, 1, 1)).len(), 1);
    }
}
