//! Which operations a writer thread does, in which order: a function of the seed alone.
//!
//! Sizes go from one sector to 1 MiB with the small ones more often; offsets prefer a hot zone and
//! the neighbourhood of the previous write, so that sectors are rewritten and writes overlap, and
//! still reach every part of the disk.

use crate::prng::Prng;

/// Longest write: 1 MiB.
pub const MAX_SECTORS: u32 = 2048;

/// A share of the accesses go to the first part of a partition, at most this long (4 MiB).
const HOT_SECTORS: u64 = 8192;

/// A thread flushes at the latest when it has this many buffered writes that are not durable.
pub const MAX_UNFLUSHED: usize = 16;

/// A run of sectors on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First sector, counted from the start of the disk.
    pub first: u64,
    /// How many.
    pub sectors: u64,
}

impl Extent {
    /// The length as an index into memory. Extents of reads and writes are at most
    /// [`MAX_SECTORS`] long.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::try_from(self.sectors).unwrap_or(usize::MAX)
    }
}

/// One step of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write with `O_DIRECT`.
    WriteDirect(Extent),
    /// Write through the page cache; a later [`Step::Flush`] makes it durable.
    WriteBuffered(Extent),
    /// Read back with `O_DIRECT` and compare.
    Read(Extent),
    /// fdatasync.
    Flush,
}

/// The endless sequence of one thread's steps.
#[derive(Clone, Debug)]
pub struct Plan {
    prng: Prng,
    area: Extent,
    previous: Extent,
    unflushed: usize,
}

impl Plan {
    /// The plan of `thread` on `disk`, confined to `area` (which must not be empty).
    #[must_use]
    pub fn new(seed: u64, disk: u32, thread: u16, area: Extent) -> Self {
        let prng = Prng::from_parts(&[seed, u64::from(disk), u64::from(thread)]);
        Self {
            prng,
            area,
            previous: Extent {
                first: area.first,
                sectors: 1,
            },
            unflushed: 0,
        }
    }

    fn sectors(&mut self) -> u64 {
        let exponent = self.prng.below(12).min(self.prng.below(12));
        let power = 1 << exponent;
        (power + self.prng.below(power))
            .min(u64::from(MAX_SECTORS))
            .min(self.area.sectors)
    }

    fn extent(&mut self) -> Extent {
        let sectors = self.sectors();
        let last = self.area.sectors - sectors;
        let offset = match self.prng.below(10) {
            0..3 => {
                let previous = self.previous.first - self.area.first;
                (previous + self.prng.below(self.previous.sectors)).saturating_sub(sectors / 2)
            }
            3..6 => self.prng.below(HOT_SECTORS.min(self.area.sectors)),
            _ => self.prng.below(last + 1),
        };
        Extent {
            first: self.area.first + offset.min(last),
            sectors,
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.unflushed >= MAX_UNFLUSHED {
            self.unflushed = 0;
            return Some(Step::Flush);
        }
        let extent = self.extent();
        Some(match self.prng.below(16) {
            0..8 => {
                self.previous = extent;
                Step::WriteDirect(extent)
            }
            8..13 => {
                self.previous = extent;
                self.unflushed += 1;
                Step::WriteBuffered(extent)
            }
            13..15 => Step::Read(extent),
            _ => {
                self.unflushed = 0;
                Step::Flush
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Extent = Extent {
        first: 10_000,
        sectors: 40_000,
    };

    #[test]
    fn is_reproducible_and_differs_between_threads() {
        let steps = |thread| Plan::new(3, 1, thread, AREA).take(100).collect::<Vec<_>>();
        assert_eq!(steps(0), steps(0));
        assert_ne!(steps(0), steps(1));
    }

    #[test]
    fn covers_all_kinds_and_sizes_and_overlaps_within_its_area() {
        let steps: Vec<_> = Plan::new(3, 0, 0, AREA).take(5000).collect();
        let mut writes = Vec::new();
        for step in &steps {
            if let Step::WriteDirect(extent) | Step::WriteBuffered(extent) | Step::Read(extent) =
                step
            {
                assert!(extent.first >= AREA.first && extent.sectors > 0);
                assert!(extent.first + extent.sectors <= AREA.first + AREA.sectors);
                writes.push(*extent);
            }
        }
        assert!(writes.iter().any(|extent| extent.sectors == 1));
        assert!(
            writes
                .iter()
                .any(|extent| extent.sectors == u64::from(MAX_SECTORS))
        );
        assert!(steps.contains(&Step::Flush));
        assert!(
            steps
                .iter()
                .any(|step| matches!(step, Step::WriteBuffered(_)))
        );
        let overlapping = writes.windows(2).filter(|pair| {
            pair[0].first < pair[1].first + pair[1].sectors
                && pair[1].first < pair[0].first + pair[0].sectors
        });
        assert!(overlapping.count() > 100);
    }

    #[test]
    fn never_leaves_more_than_the_limit_unflushed() {
        let mut unflushed = 0;
        for step in Plan::new(1, 0, 0, AREA).take(5000) {
            match step {
                Step::WriteBuffered(_) => unflushed += 1,
                Step::Flush => unflushed = 0,
                Step::WriteDirect(_) | Step::Read(_) => {}
            }
            assert!(unflushed <= MAX_UNFLUSHED);
        }
    }

    #[test]
    fn a_tiny_area_works() {
        let area = Extent {
            first: 0,
            sectors: 1,
        };
        for step in Plan::new(1, 0, 0, area).take(100) {
            if let Step::WriteDirect(extent) | Step::WriteBuffered(extent) | Step::Read(extent) =
                step
            {
                assert_eq!(extent, area);
            }
        }
    }
}
