//! A whole run of the writer: opens the disks, starts the threads, reports, gives the verdict.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

use crate::{
    SECTOR_BYTES,
    journal::Journal,
    model::Model,
    plan::{Extent, Plan},
    prng::Prng,
    record::{Kind, Record},
    worker::{DiskStatus, Worker},
};

/// How long a device node may take to appear; disks are found in the background at boot.
const APPEAR: Duration = Duration::from_secs(30);

/// How often the main thread looks at the workers.
const TICK: Duration = Duration::from_millis(50);

/// Parts of a disk begin at multiples of this many sectors (1 MiB), or of a page on tiny disks.
const PART_ALIGNMENT: [u64; 2] = [2048, 8];

/// A disk to write to, as given on the command line: `NAME=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOption {
    /// The name in the output.
    pub name: String,
    /// The device.
    pub path: PathBuf,
}

impl std::str::FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok(Self {
                name: name.to_owned(),
                path: PathBuf::from(path),
            }),
            _ => Err("a disk is given as NAME=PATH, e.g. ide=/dev/sda".to_owned()),
        }
    }
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The disks under test, at most 255.
    pub disks: Vec<DiskOption>,
    /// The log disk.
    pub log: PathBuf,
    /// Threads for each disk.
    pub threads: u16,
    /// Operations a second for each disk; 0 for as many as it takes.
    pub rate: u32,
    /// Seed of everything random.
    pub seed: u64,
    /// Stop when each disk has had this many operations.
    pub operations: Option<u64>,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Time between progress lines.
    pub report: Duration,
}

/// What a run found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Operations done on all disks.
    pub operations: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Sectors that read back wrong.
    pub mismatches: u64,
    /// Sectors verified by the last read-back.
    pub verified: u64,
    /// The log is whole.
    pub log_complete: bool,
}

impl Outcome {
    /// Whether nothing at all went wrong.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        self.errors == 0 && self.mismatches == 0 && self.log_complete
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            operations,
            errors,
            mismatches,
            verified,
            log_complete,
        } = self;
        let word = if self.is_ok() { "ok" } else { "FAIL" };
        let log = if *log_complete {
            "complete"
        } else {
            "incomplete"
        };
        write!(
            f,
            "verdict {word} operations={operations} verified={verified} errors={errors} \
             mismatches={mismatches} log={log}"
        )
    }
}

/// Sets `stop` when the line `stop` arrives on standard input. Starts a thread that is never
/// joined: it ends with the process. The end of the input does not stop the writer.
pub fn stop_on_console_line(stop: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if line.trim() == "stop" {
                println!("writer: stopping");
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
}

/// Runs the writer until it is done, printing progress to standard output.
///
/// # Errors
/// A disk or the log can't be opened or is too small. Failures of I/O during the run are no error
/// here: they are counted in the outcome.
pub fn run(options: &Options, stop: &Arc<AtomicBool>) -> Result<Outcome> {
    let log = open(&options.log, libc::O_DIRECT)?;
    let capacity = size(&log, &options.log)? / SECTOR_BYTES;
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let session = Prng::from_parts(&[options.seed, since_epoch.subsec_nanos().into()]).next_u64();
    let journal = Journal::start(log, capacity, session).context("cannot start the log thread")?;

    let started = Instant::now();
    let mut disks = Vec::new();
    for (number, disk) in options.disks.iter().enumerate() {
        let number = u8::try_from(number).context("too many disks")?;
        disks.push(prepare(options, number, disk, &journal, started, stop)?);
    }
    println!(
        "writer: started disks={} seed={}",
        disks.len(),
        options.seed
    );

    let statuses: Vec<_> = disks.iter().map(|(status, _)| Arc::clone(status)).collect();
    let mut threads = Vec::new();
    for worker in disks.into_iter().flat_map(|(_, workers)| workers) {
        let name = format!("{}-{}", worker.status.name, worker.thread);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || worker.work().read_back());
        threads.push(thread.context("cannot start a writer thread")?);
    }
    watch(options, &threads, &statuses, &journal, started, stop);

    let mut outcome = Outcome::default();
    for thread in threads {
        match thread.join() {
            Ok(sectors) => outcome.verified += sectors as u64,
            Err(_) => outcome.errors += 1,
        }
    }
    let end = Record {
        kind: Kind::End,
        disk: 0,
        thread: 0,
        sectors: 0,
        seq: outcome.verified,
        first: 0,
        micros: 0,
    };
    journal.handle(started).append(end);
    match journal.finish() {
        Ok(_) => outcome.log_complete = true,
        Err(error) => println!("writer: ERROR log: {error}"),
    }
    for status in statuses {
        outcome.operations += status.operations.load(Ordering::Relaxed);
        outcome.errors += status.errors.load(Ordering::Relaxed);
        outcome.mismatches += status.mismatches.load(Ordering::Relaxed);
    }
    Ok(outcome)
}

/// Reports progress until all threads have ended, and tells them to stop when it is time.
fn watch(
    options: &Options,
    threads: &[JoinHandle<usize>],
    statuses: &[Arc<DiskStatus>],
    journal: &Journal,
    started: Instant,
    stop: &AtomicBool,
) {
    let mut next_report = started + options.report;
    while !threads.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(TICK);
        let now = Instant::now();
        let is_late = options.duration.is_some_and(|limit| now - started >= limit);
        if is_late || journal.has_failed() {
            stop.store(true, Ordering::Relaxed);
        }
        if now >= next_report {
            next_report = now + options.report;
            println!("{}", progress(statuses, now - started));
        }
    }
}

fn progress(statuses: &[Arc<DiskStatus>], elapsed: Duration) -> String {
    let mut line = format!("writer: t={}", elapsed.as_secs());
    let mut errors = 0;
    let mut mismatches = 0;
    for status in statuses {
        line += &format!(
            " {}={}",
            status.name,
            status.operations.load(Ordering::Relaxed)
        );
        errors += status.errors.load(Ordering::Relaxed);
        mismatches += status.mismatches.load(Ordering::Relaxed);
    }
    line + &format!(" errors={errors} mismatches={mismatches}")
}

/// Opens one disk and makes its workers.
fn prepare(
    options: &Options,
    number: u8,
    disk: &DiskOption,
    journal: &Journal,
    started: Instant,
    stop: &Arc<AtomicBool>,
) -> Result<(Arc<DiskStatus>, Vec<Worker>)> {
    let status = Arc::new(DiskStatus {
        name: disk.name.clone(),
        ..DiskStatus::default()
    });
    let bytes = size(&open(&disk.path, 0)?, &disk.path)?;
    let threads = options.threads.max(1);
    let parts = parts(bytes / SECTOR_BYTES, threads)
        .with_context(|| format!("{} is too small: {bytes} bytes", disk.path.display()))?;
    let interval = match options.rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs(1) * u32::from(threads) / rate,
    };
    let operations = options
        .operations
        .map(|all| all.div_ceil(u64::from(threads)));
    let worker = |(thread, area)| {
        Ok(Worker {
            disk: number,
            thread,
            threads,
            direct: open(&disk.path, libc::O_DIRECT)?,
            buffered: open(&disk.path, 0)?,
            plan: Plan::new(options.seed, u32::from(number), thread, area),
            model: Model::new(u32::from(number), area),
            journal: journal.handle(started),
            status: Arc::clone(&status),
            interval,
            operations,
            stop: Arc::clone(stop),
        })
    };
    let workers = (0..threads)
        .zip(parts)
        .map(worker)
        .collect::<Result<Vec<_>>>()?;
    Ok((status, workers))
}

/// Divides a disk among `threads`; `None` if it is too small for that. The last thread takes what
/// is left over.
fn parts(sectors: u64, threads: u16) -> Option<Vec<Extent>> {
    let share = sectors / u64::from(threads);
    let alignment = PART_ALIGNMENT
        .into_iter()
        .find(|alignment| share >= *alignment)?;
    let share = share / alignment * alignment;
    let last = u64::from(threads) - 1;
    let part = |number| {
        let first = number * share;
        Extent {
            first,
            sectors: if number == last {
                sectors - first
            } else {
                share
            },
        }
    };
    Some((0..=last).map(part).collect())
}

/// Opens a disk for reading and writing, waiting for its node to appear.
fn open(path: &Path, flags: libc::c_int) -> Result<File> {
    let deadline = Instant::now() + APPEAR;
    loop {
        match OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
        {
            Ok(file) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                std::thread::sleep(TICK);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open {}", path.display()));
            }
        }
    }
}

/// Length in bytes of a file or block device.
fn size(mut file: &File, path: &Path) -> Result<u64> {
    let bytes = file
        .seek(SeekFrom::End(0))
        .with_context(|| format!("cannot find the size of {}", path.display()))?;
    if bytes < SECTOR_BYTES {
        bail!("{} is smaller than a sector", path.display());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
