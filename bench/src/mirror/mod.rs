//! A full mirror of an image beside `qemu-storage-daemon` and `cp`: throughput, processor time,
//! memory, and how sparse the target is.
//!
//! Each copy is made by a program that is started for it, onto a target that was made anew, in turns. What is
//! timed is the job from the command to its readiness, which includes the target's flush; of `cp`, which
//! flushes nothing, the whole program.

mod daemon;
pub mod ours;

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::children;
use crate::daemon::is_installed;
use crate::random;
use crate::report::{Row, Sink, Target};
use crate::timing::{Effort, median};

const MIB: u64 = 1 << 20;
/// A disk larger than any that is copied, in bytes.
const HUGE: u64 = 64 << 40;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through the page cache.
    Buffered,
    /// The same, with nodes that were not given `discard=unmap`.
    Keeping,
    /// Past it, with O_DIRECT.
    Direct,
}

impl Way {
    const ALL: [Self; 3] = [Self::Buffered, Self::Keeping, Self::Direct];

    /// As an argument of the program.
    fn name(self) -> &'static str {
        match self {
            Self::Buffered => "buffered",
            Self::Keeping => "keeping",
            Self::Direct => "direct",
        }
    }

    /// The way of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.name() == name)
    }
}

/// What a copy took.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Wall-clock time.
    pub seconds: f64,
    /// Processor time of all its threads.
    pub computed: f64,
}

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Ours,
    Daemon,
    /// `cp --reflink=` with this.
    Cp(&'static str),
    /// `dd` past the page cache: about what the disk gives, since one request waits for the other.
    Dd,
}

/// An image and its copies.
struct Images {
    directory: tempfile::TempDir,
    size: u64,
}

/// Fills a buffer with bytes that nothing can compress or take for zeroes.
fn scramble(buffer: &mut [u8], state: &mut u64) {
    for word in buffer.chunks_exact_mut(8) {
        word.copy_from_slice(&random::next(state).to_le_bytes());
    }
}

impl Images {
    /// An image of `size` bytes in a directory below `place`, of which `data` bytes are data: a piece of 1 MiB
    /// at equal distances.
    fn new(place: &Path, size: u64, data: u64) -> Result<Self> {
        let directory = tempfile::tempdir_in(place).context("can't make a directory")?;
        let images = Self { directory, size };
        let file = File::create(images.source())?;
        file.set_len(size)?;
        let mut piece = vec![0; usize::try_from(MIB)?];
        let mut state = random::SEED;
        let distance = size / (data / MIB).max(1) / MIB * MIB;
        for number in 0..data / MIB {
            scramble(&mut piece, &mut state);
            file.write_all_at(&piece, number * distance)?;
        }
        file.sync_all()?;
        Ok(images)
    }

    fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("target")
    }

    /// Makes an empty target, as large as the source.
    fn renew_target(&self) -> Result<()> {
        let _not_there = std::fs::remove_file(self.target());
        Ok(File::create(self.target())?.set_len(self.size)?)
    }

    /// MiB that the target takes.
    fn allocated(&self) -> Result<f64> {
        let blocks = std::fs::metadata(self.target())?.blocks();
        Ok(mib(blocks * 512))
    }

    /// Has `program` copy the image. Returns what it took, and the memory, in MiB, if it says so.
    fn copy(&self, program: Program, way: Way) -> Result<(Copied, Option<f64>)> {
        let (source, target) = (self.source(), self.target());
        match program {
            Program::Ours => {
                self.renew_target()?;
                let own = std::env::current_exe().context("can't find this program")?;
                let mut command = Command::new(own);
                command.arg("--mirror").arg(source).arg(target);
                command.arg(way.name());
                let (output, computed) = children::run(&mut command)?;
                let report: ours::Report = serde_json::from_slice(&output)?;
                let memory = mib(report.memory << 10);
                Ok((report.copied(computed), Some(memory)))
            }
            Program::Daemon => {
                self.renew_target()?;
                Ok((daemon::mirror(&source, &target, way)?, None))
            }
            Program::Cp(reflink) => {
                let _not_there = std::fs::remove_file(&target);
                let mut command = Command::new("cp");
                command
                    .arg(format!("--reflink={reflink}"))
                    .args([source, target]);
                Ok((timed(&mut command)?, None))
            }
            Program::Dd => {
                self.renew_target()?;
                let mut command = Command::new("dd");
                let file = |name, path: &Path| format!("{name}={}", path.display());
                command
                    .args([file("if", &source), file("of", &target)])
                    .args([
                        "bs=1M",
                        "iflag=direct",
                        "oflag=direct",
                        "conv=notrunc,fsync",
                    ]);
                Ok((timed(&mut command)?, None))
            }
        }
    }
}

/// Runs a program that copies and ends.
fn timed(command: &mut Command) -> Result<Copied> {
    let began = Instant::now();
    let (_, computed) = children::run(command)?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Copied { seconds, computed })
}

fn mib(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 4096).unwrap_or(u32::MAX)) / 256.0
}

/// One side's copies.
#[derive(Default)]
struct Samples {
    seconds: Vec<f64>,
    computed: Vec<f64>,
    memory: f64,
    allocated: f64,
}

impl Samples {
    fn rate(&self, size: u64) -> f64 {
        mib(size) / median(&self.seconds)
    }
}

/// Copies in turns, each side `rounds` times.
fn compare(images: &Images, programs: &[Program], way: Way, rounds: usize) -> Result<Vec<Samples>> {
    let mut all: Vec<_> = programs.iter().map(|_| Samples::default()).collect();
    for _ in 0..rounds {
        for (program, samples) in programs.iter().zip(&mut all) {
            let (copied, memory) = images.copy(*program, way)?;
            samples.seconds.push(copied.seconds);
            samples.computed.push(copied.computed);
            samples.memory = samples.memory.max(memory.unwrap_or(0.0));
            samples.allocated = images.allocated()?;
        }
    }
    let _not_there = std::fs::remove_file(images.target());
    Ok(all)
}

fn row(what: &str, unit: &'static str, ours: f64, reference: Option<f64>, target: Target) -> Row {
    Row {
        benchmark: "mirror",
        what: what.to_owned(),
        unit,
        ours,
        reference,
        target,
    }
}

/// A directory on the disk that the build is on.
fn on_disk() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().context("this program is nowhere")?;
    Ok(directory.to_owned())
}

/// A disk far too large to be copied: what the command and its bitmaps take.
fn huge() -> Result<[Row; 2]> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--huge").arg(HUGE.to_string());
    let (output, _) = children::run(&mut command)?;
    let report: ours::Report = serde_json::from_slice(&output)?;
    let memory = mib(report.memory << 10);
    let milliseconds = report.seconds * 1e3;
    Ok([
        row(
            "null nodes of 64 TiB: the command's time",
            "ms",
            milliseconds,
            None,
            Target::AtMost(10.0),
        ),
        row(
            "the same: memory beyond what was in use",
            "MiB",
            memory,
            None,
            Target::AtMost(32.0),
        ),
    ])
}

/// Mirrors images, in turns with the daemon's mirrors and with `cp`; each row is given to `report` when it is there.
///
/// # Errors
/// An image can't be made, or a copy fails.
pub fn measure(effort: Effort, report: Sink<'_>) -> Result<()> {
    let memory = Path::new("/dev/shm");
    let disk = on_disk()?;
    let tmpfs = if memory.is_dir() { memory } else { &disk };
    let rounds = effort.of(5, 1);
    let daemon = is_installed().then_some(Program::Daemon);

    let size = effort.of(2048, 8) * MIB;
    let images = Images::new(tmpfs, size, size)?;
    let programs = [Program::Ours, Program::Cp("auto"), Program::Cp("never")];
    let programs: Vec<_> = programs.into_iter().chain(daemon).collect();
    let samples = compare(&images, &programs, Way::Buffered, rounds)?;
    let of_daemon = |samples: &[Samples], figure: &dyn Fn(&Samples) -> f64| {
        daemon.and(samples.last()).map(figure)
    };
    let rate = |samples: &Samples| samples.rate(size);
    let computed = |samples: &Samples| median(&samples.computed);
    // What follows the figures of each comparison.
    let computed_row = |samples: &[Samples]| {
        let theirs = of_daemon(samples, &computed);
        row(
            "the same: processor time",
            "s",
            computed(&samples[0]),
            theirs,
            Target::None,
        )
    };
    let memory_row = |samples: &[Samples]| {
        row(
            "the same: memory beyond what was in use",
            "MiB",
            samples[0].memory,
            None,
            Target::AtMost(32.0),
        )
    };
    let cp = rate(&samples[1]).max(rate(&samples[2]));
    let rows = [
        row(
            "tmpfs, in the page cache: copied per second",
            "MiB",
            rate(&samples[0]),
            of_daemon(&samples, &rate),
            Target::RatioAtLeast(1.3),
        ),
        row(
            "the same, beside the better cp",
            "MiB",
            rate(&samples[0]),
            Some(cp),
            Target::RatioAtLeast(1.0),
        ),
        computed_row(&samples),
        memory_row(&samples),
    ];
    rows.into_iter().for_each(&mut *report);
    drop(images);

    let images = Images::new(&disk, size, size)?;
    let programs = [Program::Ours, Program::Dd].into_iter().chain(daemon);
    let programs: Vec<_> = programs.collect();
    let samples = compare(&images, &programs, Way::Direct, rounds)?;
    let rows = [
        row(
            "disk, past the page cache: copied per second",
            "MiB",
            rate(&samples[0]),
            of_daemon(&samples, &rate),
            Target::RatioAtLeast(1.3),
        ),
        row(
            "the same, beside dd",
            "MiB",
            rate(&samples[0]),
            Some(rate(&samples[1])),
            Target::None,
        ),
        computed_row(&samples),
        memory_row(&samples),
    ];
    rows.into_iter().for_each(&mut *report);
    drop(images);

    let programs: Vec<_> = [Program::Ours].into_iter().chain(daemon).collect();
    let (size, data) = (effort.of(64 << 10, 64) * MIB, effort.of(1024, 4) * MIB);
    let images = Images::new(tmpfs, size, data)?;
    let samples = compare(&images, &programs, Way::Buffered, rounds)?;
    let seconds = |samples: &Samples| median(&samples.seconds);
    let allocated = |samples: &Samples| samples.allocated;
    let rows = [
        row(
            "tmpfs, 64 GiB with 1 GiB of data: time",
            "s",
            seconds(&samples[0]),
            of_daemon(&samples, &seconds),
            Target::RatioAtMost(1.0),
        ),
        row(
            "the same: memory that the target takes",
            "MiB",
            allocated(&samples[0]),
            of_daemon(&samples, &allocated),
            Target::RatioAtMost(1.0),
        ),
        computed_row(&samples),
        memory_row(&samples),
    ];
    rows.into_iter().for_each(&mut *report);
    // The daemon fills the target then, until memory runs out.
    let samples = compare(&images, &[Program::Ours], Way::Keeping, 1)?;
    report(row(
        "without discard=unmap: memory that the target takes",
        "MiB",
        allocated(&samples[0]),
        None,
        Target::AtMost(mib(data)),
    ));
    huge()?.into_iter().for_each(report);
    Ok(())
}
