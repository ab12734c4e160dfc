//! `fio`, the program our figures are held against.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::disk::SIZE;
use crate::timing::median;

/// What fio measured.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Reads per second.
    pub rate: f64,
    /// Processor time per read, that of the kernel's threads for it included, in nanoseconds.
    pub computed_each: f64,
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    read: Read,
}

#[derive(Deserialize)]
struct Read {
    iops: f64,
    total_ios: f64,
}

/// Whether there is a fio to run.
#[must_use]
pub fn is_installed() -> bool {
    let mut command = Command::new("fio");
    command.arg("--version").stdout(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// fio, with what it computes before and after it reads.
#[derive(Debug)]
pub struct Fio {
    path: PathBuf,
    /// Seconds.
    overhead: f64,
}

impl Fio {
    /// For reads of `path`, a file of [`SIZE`] bytes.
    ///
    /// # Errors
    /// fio is missing or fails.
    pub fn new(path: &Path) -> Result<Self> {
        let mut fio = Self {
            path: path.to_owned(),
            overhead: 0.0,
        };
        let mut samples = Vec::new();
        for _ in 0..3 {
            samples.push(fio.run(1, &["--number_ios=1"])?.1);
        }
        fio.overhead = median(&samples);
        Ok(fio)
    }

    /// Random reads of 4 KiB for `seconds`, by `io_uring` at `depth`.
    ///
    /// # Errors
    /// fio fails, or says what we do not understand.
    pub fn random_read(&self, depth: usize, seconds: u32) -> Result<Measured> {
        let runtime = format!("--runtime={seconds}");
        let (read, computed) = self.run(depth, &["--time_based", &runtime])?;
        Ok(Measured {
            rate: read.iops,
            computed_each: (computed - self.overhead) * 1e9 / read.total_ios,
        })
    }

    /// Returns what fio read, and the seconds that all its threads computed.
    fn run(&self, depth: usize, more: &[&str]) -> Result<(Read, f64)> {
        let mut command = Command::new("fio");
        command.args([
            "--name=read",
            "--ioengine=io_uring",
            "--rw=randread",
            "--bs=4k",
            "--direct=0",
            // Neither side remembers what it has read.
            "--norandommap",
            "--readonly",
            "--output-format=json",
        ]);
        command.arg(format!("--iodepth={depth}"));
        command.arg(format!("--size={SIZE}"));
        command.arg(format!("--filename={}", self.path.display()));
        command.args(more);
        let before = children_processor_time()?;
        let output = command.output().context("can't run fio")?;
        ensure!(
            output.status.success(),
            "fio failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok((parse(&output.stdout)?, children_processor_time()? - before))
    }
}

fn parse(text: &[u8]) -> Result<Read> {
    let output: Output = serde_json::from_slice(text).context("can't read fio's output")?;
    let job = output.jobs.into_iter().next().context("fio ran no job")?;
    ensure!(job.read.total_ios > 0.0, "fio read nothing");
    Ok(job.read)
}

/// Seconds that ended children have computed, their kernel threads' time included: fio's own
/// figures leave out the ring's workers, in which the reads of some file systems happen.
fn children_processor_time() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    children_ticks(&text)
        .map(|ticks| ticks / TICKS_PER_SECOND)
        .context("can't read /proc/self/stat")
}

/// The unit of times in `/proc`: USER_HZ, which is 100 on every x86 Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The fields `cutime` and `cstime`, the 16th and 17th, added up; see proc_pid_stat(5).
fn children_ticks(stat: &str) -> Option<f64> {
    // The second field, the program's name, may contain anything but ends at the last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(13);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_taken_from_the_first_job() {
        let text = br#"{"jobs": [{"jobname": "read", "job_runtime": 1000, "usr_cpu": 20.0,
            "sys_cpu": 30.0, "read": {"iops": 1e5, "total_ios": 100000, "bw": 1}}]}"#;
        let read = parse(text).unwrap();
        assert!((read.iops - 1e5).abs() < 1.0);
        assert!((read.total_ios - 1e5).abs() < 1.0);
    }

    #[test]
    fn output_without_a_result_is_an_error() {
        for text in [&b"fio: out of luck"[..], br#"{"jobs": []}"#] {
            assert!(parse(text).is_err());
        }
    }

    #[test]
    fn the_time_of_children_is_found_behind_any_name() {
        let stat = "1 (a) 9 (b) S 4 5 6 7 8 9 10 11 12 13 14 15 160 170 18 19 20";
        assert_eq!(children_ticks(stat), Some(330.0));
        assert_eq!(children_ticks("1 (a) S 4"), None);
    }
}
