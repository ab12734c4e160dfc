//! What a mirror costs a guest that writes: how long nothing of it ends at the pivot, and what its writes
//! take meanwhile.
//!
//! The guest is 32 writers, or one, of 4 KiB at random places of a file in memory. Ours writes as a device does, in the
//! disk's loop, through gate and node; the daemon's is a client of its NBD export.

mod latency;
mod nbd;
mod ours;
mod pivot;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::random;
use crate::report::{Row, Sink, Target};
use crate::timing::Effort;

/// Bytes of one write.
const BLOCK: u64 = 4096;

/// From when to when a write was on its way.
#[derive(Clone, Copy, Debug)]
struct Span {
    began: Instant,
    ended: Instant,
}

/// Where writes go: random multiples of [`BLOCK`] below a size.
struct Offsets {
    state: u64,
    blocks: u64,
}

impl Offsets {
    fn below(size: u64) -> Self {
        Self {
            state: random::SEED,
            blocks: (size / BLOCK).max(1),
        }
    }

    fn next(&mut self) -> u64 {
        random::next(&mut self.state) % self.blocks * BLOCK
    }
}

/// Two files in memory of `size` bytes, of which the first is full of data.
struct Images {
    directory: tempfile::TempDir,
}

impl Images {
    fn new(size: u64) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let directory = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let images = Self {
            directory: directory.context("can't make a directory")?,
        };
        let piece = vec![0x5a; usize::try_from(size)?];
        std::fs::write(images.path("a"), piece)?;
        std::fs::File::create(images.path("b"))?.set_len(size)?;
        Ok(images)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A row of this benchmark, in microseconds.
fn row(what: String, ours: f64, reference: Option<f64>, target: Target) -> Row {
    Row {
        benchmark: "live",
        what,
        unit: "us",
        ours,
        reference,
        target,
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Pivots of a disk whose guest writes, in turns with the daemon's, and the latency of writes under mirrors; each row is
/// given to `report` when it is there.
///
/// # Errors
/// An image can't be made, or a side fails.
pub fn measure(effort: Effort, report: Sink<'_>) -> Result<()> {
    pivot::measure(effort, report)?;
    latency::measure(effort, report)
}
