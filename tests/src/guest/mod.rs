//! Linux in a machine: what a guest sees of its processors and disks, and all the ways in which it
//! starts again or ends.
//!
//! [`run`] is called by the program `sluice-guest-tests`, which `ci/guest-tests` takes to a host
//! with KVM. Each case has machines and a directory of its own, and one thread, which outlives its
//! machines. The cases:
//!
//! * `boot`: kernels of both kinds, processors, power-off, panic, restart.
//! * `operator`: QMP's verbs as a running Linux feels them.
//! * `disks`: root file systems, transfer modes, contents on both sides.
//! * `filesystems`: made, stressed and checked while their disks are mirrored and drained.
//! * `resize`: a disk that grows and shrinks under a guest.
//! * `zeroes`: what a guest discards or zeroes.

mod boot;
mod disks;
mod filesystems;
mod hotplug;
mod lab;
mod operator;
pub mod rates;
mod resize;
mod script;
mod zeroes;

use std::{
    fmt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result};

use crate::host;
use lab::Lab;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program `sluice`.
    pub sluice: PathBuf,
    /// The guest's kernel as packaged.
    pub bzimage: PathBuf,
    /// The same as ELF.
    pub vmlinux: PathBuf,
    /// The guest's initramfs.
    pub initrd: PathBuf,
    /// A root file system with the same programs.
    pub root: PathBuf,
    /// An empty directory for images and sockets.
    pub work: PathBuf,
    /// Cases at a time.
    pub jobs: usize,
    /// Only cases whose name contains one of these words; all if there is none.
    pub only: Vec<String>,
}

/// A case: its name, and what shows that it is so.
struct Case {
    name: &'static str,
    run: fn(&Lab<'_>) -> Result<()>,
}

const fn case(name: &'static str, run: fn(&Lab<'_>) -> Result<()>) -> Case {
    Case { name, run }
}

const CASES: &[Case] = &[
    case("bzImage boots on 1 vCPU and powers off", |lab| {
        boot::boots(lab, &lab.options.bzimage, 1)
    }),
    case("bzImage boots on 2 vCPUs and powers off", |lab| {
        boot::boots(lab, &lab.options.bzimage, 2)
    }),
    case("PVH vmlinux boots on 1 vCPU and powers off", |lab| {
        boot::boots(lab, &lab.options.vmlinux, 1)
    }),
    case("PVH vmlinux boots on 2 vCPUs and powers off", |lab| {
        boot::boots(lab, &lab.options.vmlinux, 2)
    }),
    case("panic has its exit status", boot::panic_has_its_status),
    case("restart ends with --no-reboot", boot::no_reboot_ends),
    case("restart boots again", boot::restart_boots_again),
    case("system_reset boots again", operator::reset_boots_again),
    case(
        "system_powerdown presses the power button",
        operator::power_button,
    ),
    case(
        "a stopped guest stands still and goes on",
        operator::stop_and_go_on,
    ),
    case(
        "ext4 root on IDE, PIIX3: MWDMA2",
        disks::root_on_ide_by_mwdma,
    ),
    case("ext4 root on virtio", disks::root_on_virtio),
    case(
        "IDE, PIIX4: UDMA, and a disk on the second channel",
        disks::ide_copies_by_udma,
    ),
    case(
        "virtio on an iothread reads and writes",
        disks::virtio_copies,
    ),
    case("virtio with two queues on two iothreads, MSI-X", |lab| {
        disks::queues_copy(lab, "")
    }),
    case("virtio with two queues on two iothreads, INTx", |lab| {
        disks::queues_copy(lab, r#","vectors":0"#)
    }),
    case(
        "ext4 root on IDE and another one on virtio, both at once",
        disks::both_at_once,
    ),
    case("a CD-ROM is read", disks::cd_rom),
    case(
        "file systems on IDE and virtio survive mirrors and drains",
        filesystems::survive_mirrors_and_drains,
    ),
    case(
        "a virtio disk grows and shrinks under Linux",
        resize::virtio_follows,
    ),
    case(
        "virtio disks come and go under Linux, one of them under a mirror",
        hotplug::disk_comes_and_goes,
    ),
    case(
        "virtio on an iothread discards",
        zeroes::discard_makes_holes,
    ),
    case("an IDE disk trims", zeroes::trim_makes_holes),
    case(
        "virtio on an iothread writes zeroes",
        zeroes::zeroes_replace_what_was_there,
    ),
];

/// The names of all cases, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.name)
}

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// These are good.
    pub passed: usize,
    /// These are not.
    pub failed: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs the cases, printing a line for each as it ends.
///
/// # Errors
/// No case matches, or the directory for images can't be made. A case that fails is not an error.
pub fn run(options: &Options) -> Result<Tally> {
    let wanted: Vec<&Case> = CASES
        .iter()
        .filter(|case| matches(case.name, &options.only))
        .collect();
    anyhow::ensure!(
        !wanted.is_empty(),
        "no case has a name with {:?}",
        options.only
    );
    std::fs::create_dir_all(&options.work)
        .with_context(|| format!("cannot make {}", options.work.display()))?;
    let queue = Mutex::new(wanted.into_iter().enumerate());
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((number, case)) = next else { break };
                    let good = run_case(options, number, case);
                    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                    if good {
                        tally.passed += 1;
                    } else {
                        tally.failed += 1;
                    }
                }
            });
        }
    });
    Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Runs one case in a directory of its own and says how it went.
fn run_case(options: &Options, number: usize, case: &Case) -> bool {
    let began = Instant::now();
    let mut attempt = 1;
    let result = loop {
        let directory = options.work.join(format!("case-{number}-{attempt}"));
        let result = std::fs::create_dir(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))
            .and_then(|()| (case.run)(&Lab { options, directory }));
        match &result {
            Err(error) if attempt < host::ATTEMPTS && host::is_to_blame(&format!("{error:#}")) => {
                println!(
                    "again   {}: the emulated host spoilt it: {error:#}",
                    case.name
                );
                attempt += 1;
            }
            _ => break result,
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    match &result {
        Ok(()) => println!("ok      {} ({seconds:.1} s)", case.name),
        Err(error) => println!("FAILED  {} ({seconds:.1} s): {error:#}", case.name),
    }
    result.is_ok()
}

fn matches(name: &str, words: &[String]) -> bool {
    words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
}

#[cfg(test)]
mod tests {
    use super::{CASES, Tally, matches};

    #[test]
    fn words_choose_cases() {
        let words = ["virtio".to_owned(), "panic".to_owned()];
        assert!(matches("panic has its exit status", &words));
        assert!(!matches("restart boots again", &words));
        assert!(matches("restart boots again", &[]));
    }

    #[test]
    fn names_are_unique() {
        for (at, case) in CASES.iter().enumerate() {
            assert!(CASES[..at].iter().all(|other| other.name != case.name));
        }
    }

    #[test]
    fn closing_line_is_the_one_that_ci_test_counts() {
        let tally = Tally {
            passed: 3,
            failed: 1,
        };
        assert_eq!(tally.to_string(), "3 passed, 1 failed");
    }
}
