//! Random reads through a loop: allocations, rate and processor time, the latter beside fio's.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sluice_aio::EngineKind;
use tempfile::NamedTempFile;

use crate::confine::Confined;
use crate::disk::{Direction, Disk, Medium, SIZE, Until};
use crate::reads::{Program, Reader};
use crate::report::{Row, Target};
use crate::timing::{Effort, difference, median};

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

/// Of so many attempts the one with the fewest allocations counts: worker threads are started for as long as a
/// busy machine keeps those that there are from their work, and that is no steady state yet.
const ATTEMPTS: usize = 5;

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
            for (verb, direction) in [("read", Direction::Read), ("write", Direction::Write)] {
                let mut disk = Disk::open(&medium)?;
                let mut run = |count| disk.run(direction, depth, Until::Requests(count));
                run(requests)?;
                let mut least = f64::MAX;
                for _ in 0..ATTEMPTS {
                    // One run's own setup; and one that lasts longer by the requests in question.
                    let (short, long) = (run(1000)?, run(1000 + requests)?);
                    let allocated = long.allocations.saturating_sub(short.allocations);
                    let more = long.requests - short.requests;
                    let each =
                        f64::from(u32::try_from(allocated)?) / f64::from(u32::try_from(more)?);
                    least = least.min(each);
                }
                rows.push(Row {
                    benchmark: "allocations",
                    what: format!("{verb} of the {name}, depth {depth}: allocations each"),
                    unit: "",
                    ours: least,
                    reference: None,
                    target: Target::AtMost(0.0),
                });
            }
        }
    }
    Ok(rows)
}

/// Processor time that a device's span for a request adds to it where nobody listens.
///
/// # Errors
/// The disk's.
pub fn spans(effort: Effort) -> Result<Vec<Row>> {
    let (rounds, requests) = (effort.of(151, 1), effort.of(20_000, 200));
    let mut spanned = Disk::open(&Medium::Null)?;
    spanned.make_spans();
    let mut bare = Disk::open(&Medium::Null)?;
    let time = |disk: &mut Disk| {
        let run = disk.read(1, Until::Requests(requests))?;
        Ok::<f64, anyhow::Error>(run.computed_each())
    };
    let added = difference(rounds, || time(&mut spanned), || time(&mut bare))?;
    Ok(vec![Row {
        benchmark: "spans",
        what: "a span that nobody wants: what it adds to a read".to_owned(),
        unit: "ns",
        ours: added,
        reference: None,
        target: Target::AtMost(20.0),
    }])
}

/// Puts both sides on one processor, or says why not.
pub(crate) fn confine(effort: Effort) -> Option<Confined> {
    if effort == Effort::Smoke {
        return None;
    }
    match Confined::to_one_processor() {
        Ok(confined) => Some(confined),
        Err(error) => {
            eprintln!("can't keep both sides on one processor: {error}; their ratio will scatter");
            None
        }
    }
}

/// The depths that are measured.
pub const DEPTHS: [usize; 3] = [1, 32, 128];

/// Rates and processor times of one side.
#[derive(Default)]
struct Samples {
    rates: Vec<f64>,
    times: Vec<f64>,
}

impl Samples {
    fn add(&mut self, rate: f64, computed_each: f64) {
        self.rates.push(rate);
        self.times.push(computed_each);
    }
}

/// Rate and processor time of reads of a file and of the null node, in turns with fio's.
///
/// # Errors
/// The disk's, or fio's.
pub fn measure(effort: Effort) -> Result<Vec<Row>> {
    let file = test_file()?;
    let _confined = confine(effort);
    let ours = Reader::new(Program::Ours, file.path())?;
    let fio = match effort {
        Effort::Full => Some(Reader::new(Program::Fio, file.path())?),
        Effort::Smoke => None,
    };
    let (rounds, time) = (
        effort.of(5, 1),
        effort.of(Duration::from_millis(1500), Duration::from_millis(60)),
    );
    let mut rows = Vec::new();
    for depth in DEPTHS {
        let mut null = Disk::open(&Medium::Null)?;
        let mut samples: [Samples; 3] = Default::default();
        let [of_file, of_null, of_fio] = &mut samples;
        for _ in 0..rounds {
            let run = ours.measure(depth, time)?;
            of_file.add(run.rate, run.computed_each);
            if let Some(fio) = &fio {
                let run = fio.measure(depth, time)?;
                of_fio.add(run.rate, run.computed_each);
            }
            let run = null.read(depth, Until::Elapsed(time / 10))?;
            of_null.add(run.rate(), run.computed_each());
        }
        let reference = |samples: &[f64]| fio.as_ref().map(|_| median(samples));
        for (name, ours) in [("file", &samples[0]), ("null", &samples[1])] {
            rows.push(Row {
                benchmark: "random-read",
                what: format!("{name}, depth {depth}: reads per second"),
                unit: "1/s",
                ours: median(&ours.rates),
                reference: reference(&samples[2].rates),
                target: Target::RatioAtLeast(0.9),
            });
            rows.push(Row {
                benchmark: "random-read",
                what: format!("{name}, depth {depth}: processor time of a read"),
                unit: "ns",
                ours: median(&ours.times),
                reference: reference(&samples[2].times),
                target: Target::RatioAtMost(1.0),
            });
        }
    }
    Ok(rows)
}
