//! Random reads through a loop: allocations, rate and processor time, the latter beside fio's.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sluice_aio::EngineKind;
use tempfile::NamedTempFile;

use crate::disk::{Disk, Medium, SIZE, Until};
use crate::fio::Fio;
use crate::report::{Row, Target};
use crate::timing::{Effort, median};

/// A file of [`SIZE`] bytes, none of them a hole, in the memory file system if there is one.
///
/// # Errors
/// It can't be written.
pub fn test_file() -> Result<NamedTempFile> {
    let memory = Path::new("/dev/shm");
    let file = if memory.is_dir() {
        NamedTempFile::new_in(memory)
    } else {
        NamedTempFile::new()
    };
    let file = file.context("can't make a test file")?;
    fill(file.as_file()).context("can't fill the test file")?;
    Ok(file)
}

fn fill(mut file: &File) -> std::io::Result<()> {
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..SIZE / (1 << 20) {
        file.write_all(&chunk)?;
    }
    Ok(())
}

/// Allocations per request in steady state. The program must have
/// [`Counting`](crate::allocations::Counting) as its allocator.
///
/// # Errors
/// The disk's.
pub fn allocations(effort: Effort) -> Result<Vec<Row>> {
    let file = test_file()?;
    let media = [
        ("null node", Medium::Null),
        (
            "file by io_uring",
            Medium::File(file.path(), EngineKind::IoUring),
        ),
        (
            "file by threads",
            Medium::File(file.path(), EngineKind::Threads),
        ),
    ];
    let requests = effort.of(20_000, 2000);
    let mut rows = Vec::new();
    for (name, medium) in media {
        for depth in [1, 32] {
            let mut disk = Disk::open(&medium)?;
            disk.read(depth, Until::Requests(requests))?;
            // One run's own setup; and one that lasts longer by the requests in question.
            let short = disk.read(depth, Until::Requests(1000))?;
            let long = disk.read(depth, Until::Requests(1000 + requests))?;
            let allocated = long.allocations.saturating_sub(short.allocations);
            let more = long.requests - short.requests;
            rows.push(Row {
                benchmark: "allocations",
                what: format!("read of the {name}, depth {depth}: allocations each"),
                unit: "",
                ours: f64::from(u32::try_from(allocated)?) / f64::from(u32::try_from(more)?),
                reference: None,
                target: Target::AtMost(0.0),
            });
        }
    }
    Ok(rows)
}

/// The depths that are measured.
pub const DEPTHS: [usize; 3] = [1, 32, 128];

/// Rate and processor time of reads of a file and of the null node, in turns with fio's.
///
/// # Errors
/// The disk's, or fio's.
pub fn measure(effort: Effort) -> Result<Vec<Row>> {
    let file = test_file()?;
    let fio = match effort {
        Effort::Full => Some(Fio::new(file.path())?),
        Effort::Smoke => None,
    };
    let (rounds, time) = (
        effort.of(3, 1),
        effort.of(Duration::from_millis(700), Duration::from_millis(5)),
    );
    let mut rows = Vec::new();
    for depth in DEPTHS {
        let mut from_file = Disk::open(&Medium::File(file.path(), EngineKind::IoUring))?;
        let mut from_null = Disk::open(&Medium::Null)?;
        let mut rates: [Vec<f64>; 3] = Default::default();
        let mut times: [Vec<f64>; 3] = Default::default();
        for _ in 0..rounds {
            for (index, disk) in [&mut from_file, &mut from_null].into_iter().enumerate() {
                disk.read(depth, Until::Requests(1000))?;
                let run = disk.read(depth, Until::Elapsed(time))?;
                rates[index].push(run.rate());
                times[index].push(run.computed_each());
            }
            if let Some(fio) = &fio {
                let run = fio.random_read(depth, 1)?;
                rates[2].push(run.rate);
                times[2].push(run.computed_each);
            }
        }
        let reference = |samples: &[f64]| fio.as_ref().map(|_| median(samples));
        for (index, name) in ["file", "null"].into_iter().enumerate() {
            rows.push(Row {
                benchmark: "random-read",
                what: format!("{name}, depth {depth}: reads per second"),
                unit: "1/s",
                ours: median(&rates[index]),
                reference: reference(&rates[2]),
                target: Target::RatioAtLeast(0.9),
            });
            rows.push(Row {
                benchmark: "random-read",
                what: format!("{name}, depth {depth}: processor time of a read"),
                unit: "ns",
                ours: median(&times[index]),
                reference: reference(&times[2]),
                target: Target::RatioAtMost(1.0),
            });
        }
    }
    Ok(rows)
}
