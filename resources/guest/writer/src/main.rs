//! `sluice-writer`: writes to disks from inside the guest and checks what it wrote.
//!
//! Started by the guest's init. Talks over standard output (the serial console) and listens for
//! the line `stop` on standard input.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use clap::Parser;
use sluice_writer::{
    engine::{self, DiskOption, Options},
    reading,
};

/// Write to several disks at once, log what they acknowledged, and read it all back at the end.
///
/// Every sector carries its disk, its number, a sequence number and a checksum. Runs until the
/// line `stop` arrives on standard input, or a limit below is reached. Exit code: 0 if every
/// sector read back right and no operation failed, 1 if not, 2 if it could not start.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// A disk to write to; everything on it is lost. May be given several times.
    #[arg(
        long = "disk",
        value_name = "NAME=PATH",
        required_unless_present = "time_reads"
    )]
    disks: Vec<DiskOption>,
    /// The disk that takes the log.
    #[arg(long, value_name = "PATH", required_unless_present = "time_reads")]
    log: Option<PathBuf>,
    /// Threads for each disk.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Operations a second for each disk; 0: as fast as it goes.
    #[arg(long, default_value_t = 40)]
    rate: u32,
    /// Seed of the plan: the same seed gives the same operations.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop when each disk has had this many operations.
    #[arg(long, value_name = "N")]
    ops: Option<u64>,
    /// Stop after this many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Write nothing: only say how long this disk takes to be read, 64 KiB after 64 KiB.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["disks", "log"])]
    time_reads: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(disk) = &cli.time_reads {
        return time_reads(disk);
    }
    let options = Options {
        disks: cli.disks,
        log: cli.log.unwrap_or_default(),
        threads: cli.threads,
        rate: cli.rate,
        seed: cli.seed,
        operations: cli.ops,
        duration: cli.seconds.map(Duration::from_secs),
        report: Duration::from_secs(1),
    };
    let stop = Arc::new(AtomicBool::new(false));
    engine::stop_on_console_line(Arc::clone(&stop));
    match engine::run(&options, &stop) {
        Ok(outcome) => {
            println!("writer: {outcome}");
            if outcome.is_ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            }
        }
        Err(error) => {
            println!("writer: verdict FAIL {error:#}");
            ExitCode::from(2)
        }
    }
}

fn time_reads(disk: &Path) -> ExitCode {
    match reading::time_reads(disk) {
        Ok((bytes, time)) => {
            println!("writer: read {bytes} bytes in {} ns", time.as_nanos());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("writer: verdict FAIL {error:#}");
            ExitCode::from(2)
        }
    }
}
