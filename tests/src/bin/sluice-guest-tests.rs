//! `sluice-guest-tests`: runs Linux in machines of all kinds on this machine, which must have KVM.
//! `ci/guest-tests` calls it.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use sluice_tests::guest::{self, Options};

/// Boot Linux in all the ways there are, and check what it sees and how it ends.
///
/// Prints a line for each case and a closing line with counts. Exits with 0 if all are good, 1 if
/// not, 2 if they could not be run.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// The program under test.
    #[arg(long, value_name = "FILE", default_value = "./sluice")]
    sluice: PathBuf,
    /// The guest's kernel, a bzImage.
    #[arg(long, value_name = "FILE", default_value = "./bzImage")]
    bzimage: PathBuf,
    /// The same kernel, an ELF file.
    #[arg(long, value_name = "FILE", default_value = "./vmlinux")]
    vmlinux: PathBuf,
    /// The guest's initramfs.
    #[arg(long, value_name = "FILE", default_value = "./initramfs.cpio")]
    initrd: PathBuf,
    /// The guest's root file system.
    #[arg(long, value_name = "FILE", default_value = "./root.ext4")]
    root: PathBuf,
    /// Directory for images and sockets, made if need be; must be empty.
    #[arg(long, value_name = "DIR", default_value = "./guest-tests")]
    work: PathBuf,
    /// Cases at a time. Guests with more processors than their host get in each other's way.
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Name the cases and end.
    #[arg(long)]
    list: bool,
    /// Measure how fast Linux reads an IDE disk beside a virtio disk, and end with 1 if that is too slow.
    #[arg(long, conflicts_with_all = ["only", "list"])]
    rates: bool,
    /// Run only cases whose name contains one of these words.
    #[arg(value_name = "WORD")]
    only: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for name in guest::names() {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    }
    let options = Options {
        sluice: cli.sluice,
        bzimage: cli.bzimage,
        vmlinux: cli.vmlinux,
        initrd: cli.initrd,
        root: cli.root,
        work: cli.work,
        jobs: cli.jobs,
        only: cli.only,
    };
    if cli.rates {
        return rates(&options);
    }
    match guest::run(&options) {
        Ok(tally) => {
            println!("{tally}");
            ExitCode::from(u8::from(tally.failed > 0))
        }
        Err(error) => {
            eprintln!("sluice-guest-tests: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn rates(options: &Options) -> ExitCode {
    match guest::rates::measure(options) {
        Ok(rates) => {
            println!("{rates}");
            ExitCode::from(u8::from(!rates.met()))
        }
        Err(error) => {
            eprintln!("sluice-guest-tests: {error:#}");
            ExitCode::from(2)
        }
    }
}
