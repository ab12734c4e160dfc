//! `sluice-demo`: runs the demo on this machine, which must have KVM. `ci/demo` calls it.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use sluice_tests::demo::{self, Options, Scenario};

/// Mirror and pivot a running guest's disks, and check that nothing was lost.
///
/// Prints a table and the checks, and exits with 0 if all are good, 1 if not, 2 if the run broke
/// off.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// The program under test.
    #[arg(long, value_name = "FILE", default_value = "./sluice")]
    sluice: PathBuf,
    /// The guest's kernel.
    #[arg(long, value_name = "FILE", default_value = "./bzImage")]
    kernel: PathBuf,
    /// The guest's initramfs.
    #[arg(long, value_name = "FILE", default_value = "./initramfs.cpio")]
    initrd: PathBuf,
    /// Directory for images and sockets, made if need be; must be empty.
    #[arg(long, value_name = "DIR", default_value = "./demo")]
    work: PathBuf,
    /// Size of each disk, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256,
          value_parser = clap::value_parser!(u64).range(16..=65536))]
    disk_size: u64,
    /// Operations a second that the guest tries on each disk.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only the IDE disk, held in the window between the target's last flush and the swap of the
    /// root.
    #[arg(long, group = "scenario")]
    twin: bool,
    /// As --twin, with a device that does not postpone: succeeds if the lost writes are detected.
    /// Needs a program built with the feature `test-hooks`.
    #[arg(long, group = "scenario")]
    negative: bool,
    /// Leave out the round in which the images are compared while the section is held.
    #[arg(long, group = "scenario")]
    quick: bool,
    /// Copy the guest's console to this file as it grows.
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// Say on standard error what happens.
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let scenario = match (cli.twin, cli.negative, cli.quick) {
        (true, _, _) => Scenario::Twin,
        (_, true, _) => Scenario::Negative,
        (_, _, true) => Scenario::Quick,
        _ => Scenario::Demo,
    };
    let options = Options {
        scenario,
        sluice: cli.sluice,
        kernel: cli.kernel,
        initrd: cli.initrd,
        work: cli.work,
        disk_bytes: cli.disk_size << 20,
        rate: cli.rate,
        seed: cli.seed,
        console: cli.console,
        verbose: cli.verbose,
    };
    if let Err(error) = std::fs::create_dir_all(&options.work) {
        eprintln!("sluice-demo: {}: {error}", options.work.display());
        return ExitCode::from(2);
    }
    match demo::run(&options) {
        Ok(report) => {
            println!("{report}");
            if report.is_good() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            }
        }
        Err(error) => {
            eprintln!("sluice-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}
