//! `sluice-demo`: runs the demo on this machine, which must have KVM. `ci/demo` calls it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use sluice_tests::{
    boot,
    demo::{self, Options, Report, Scenario},
    host,
};

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
    /// Instead of the demo, boot this often and print how long it takes to the guest's init.
    #[arg(long, value_name = "N", group = "scenario",
          value_parser = clap::value_parser!(u32).range(1..))]
    boot_time: Option<u32>,
    /// With --boot-time: also boot this QEMU.
    #[arg(long, value_name = "FILE", requires = "boot_time")]
    qemu: Option<PathBuf>,
    /// Copy the guest's console to this file as it grows.
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// Say on standard error what happens.
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.boot_time {
        Some(boots) => measure_boots(cli, boots),
        None => run_demo(cli),
    };
    result.unwrap_or_else(|error| {
        eprintln!("sluice-demo: {error:#}");
        ExitCode::from(2)
    })
}

fn measure_boots(cli: Cli, boots: u32) -> anyhow::Result<ExitCode> {
    let Cli {
        sluice,
        qemu,
        kernel,
        initrd,
        ..
    } = cli;
    let report = boot::measure(&boot::Options {
        sluice,
        qemu,
        kernel,
        initrd,
        boots,
    })?;
    print!("{report}");
    Ok(ExitCode::SUCCESS)
}

fn run_demo(cli: Cli) -> anyhow::Result<ExitCode> {
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
    let report = run_with_patience(&options)?;
    println!("{report}");
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Runs the demo, and again from the beginning if an emulated host spoils it.
fn run_with_patience(options: &Options) -> anyhow::Result<Report> {
    let work = options.work.display();
    let mut attempt = 1;
    loop {
        std::fs::create_dir_all(&options.work).with_context(|| format!("cannot make {work}"))?;
        match demo::run(options) {
            Err(error) if attempt < host::ATTEMPTS && host::is_to_blame(&format!("{error:#}")) => {
                eprintln!(
                    "sluice-demo: {error:#}\nsluice-demo: the emulated host spoilt this run; once more"
                );
                std::fs::remove_dir_all(&options.work)
                    .with_context(|| format!("cannot clear {work}"))?;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}
