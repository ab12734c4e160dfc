//! Random reads of a file measured from outside, in programs of their own: fio's, and ours, which is
//! `sluice-bench` again with `--reads`.
//!
//! Both sides begin anew each time, and both are measured by the same code.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use sluice_aio::EngineKind;

use crate::children;
use crate::disk::{Disk, Medium, SIZE, Until};
use crate::timing::median;

/// What a program measured.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Reads per second.
    pub rate: f64,
    /// Processor time per read, that of the kernel's threads for it included, in nanoseconds.
    pub computed_each: f64,
}

/// A program's word about its reads.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Reads {
    /// A second.
    #[serde(rename = "iops")]
    pub rate: f64,
    /// In all.
    #[serde(rename = "total_ios")]
    pub count: f64,
}

/// How long a program reads.
#[derive(Clone, Copy, Debug)]
enum Length {
    One,
    For(Duration),
}

/// A program that reads.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// A loop with a node, as a device uses it.
    Ours,
    /// `fio --ioengine=io_uring`.
    Fio,
}

impl Program {
    fn command(self, path: &Path, depth: usize, length: Length) -> Result<Command> {
        let mut command;
        match self {
            Self::Ours => {
                let own = std::env::current_exe().context("can't find this program")?;
                command = Command::new(own);
                let milliseconds = match length {
                    Length::One => 0,
                    Length::For(time) => time.as_millis(),
                };
                command.arg("--reads").arg(path);
                command.args([depth.to_string(), milliseconds.to_string()]);
            }
            Self::Fio => {
                command = Command::new("fio");
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
                command.arg(format!("--filename={}", path.display()));
                match length {
                    Length::One => command.arg("--number_ios=1"),
                    Length::For(time) => command
                        .arg("--time_based")
                        .arg(format!("--runtime={}ms", time.as_millis())),
                };
            }
        }
        Ok(command)
    }

    fn run(self, path: &Path, depth: usize, length: Length) -> Result<(Reads, f64)> {
        let (output, computed) = children::run(&mut self.command(path, depth, length)?)?;
        let reads = match self {
            Self::Ours => serde_json::from_slice(&output).context("can't read our own output")?,
            Self::Fio => parse(&output)?,
        };
        ensure!(reads.count > 0.0, "nothing was read");
        Ok((reads, computed))
    }
}

/// A program, with what it computes before and after it reads.
#[derive(Debug)]
pub struct Reader {
    program: Program,
    path: PathBuf,
    /// Seconds.
    overhead: f64,
}

impl Reader {
    /// For reads of `path`, a file of [`SIZE`] bytes.
    ///
    /// # Errors
    /// The program is missing or fails.
    pub fn new(program: Program, path: &Path) -> Result<Self> {
        let overhead = (0..3)
            .map(|_| Ok(program.run(path, 1, Length::One)?.1))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            program,
            path: path.to_owned(),
            overhead: median(&overhead),
        })
    }

    /// Random reads of 4 KiB for `time`, by `io_uring` at `depth`.
    ///
    /// # Errors
    /// The program fails, or says what we do not understand.
    pub fn measure(&self, depth: usize, time: Duration) -> Result<Measured> {
        let (reads, computed) = self.program.run(&self.path, depth, Length::For(time))?;
        Ok(Measured {
            rate: reads.rate,
            computed_each: (computed - self.overhead) * 1e9 / reads.count,
        })
    }
}

/// What the program does that [`Program::Ours`] starts: reads for `milliseconds`, or once if that is 0.
///
/// # Errors
/// The disk's.
pub fn read(path: &Path, depth: usize, milliseconds: u64) -> Result<Reads> {
    let mut disk = Disk::open(&Medium::File(path, EngineKind::IoUring))?;
    let until = match milliseconds {
        0 => Until::Requests(1),
        _ => Until::Elapsed(Duration::from_millis(milliseconds)),
    };
    let run = disk.read(depth, until)?;
    Ok(Reads {
        rate: run.rate(),
        count: f64::from(u32::try_from(run.requests)?),
    })
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    read: Reads,
}

/// Whether there is a fio to run.
#[must_use]
pub fn fio_is_installed() -> bool {
    let mut command = Command::new("fio");
    command.arg("--version").stdout(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn parse(text: &[u8]) -> Result<Reads> {
    let output: Output = serde_json::from_slice(text).context("can't read fio's output")?;
    let job = output.jobs.into_iter().next().context("fio ran no job")?;
    Ok(job.read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_taken_from_the_first_job() {
        let text = br#"{"jobs": [{"jobname": "read", "job_runtime": 1000, "usr_cpu": 20.0,
            "sys_cpu": 30.0, "read": {"iops": 1e5, "total_ios": 100000, "bw": 1}}]}"#;
        let read = parse(text).unwrap();
        assert!((read.rate - 1e5).abs() < 1.0);
        assert!((read.count - 1e5).abs() < 1.0);
    }

    #[test]
    fn output_without_a_result_is_an_error() {
        for text in [&b"fio: out of luck"[..], br#"{"jobs": []}"#] {
            assert!(parse(text).is_err());
        }
    }
}
