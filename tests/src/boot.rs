//! How long it takes from the start of the monitor to the guest's init, and how much memory the
//! monitor takes for itself, side by side with QEMU on the same host in the same run.
//!
//! Called by `sluice-demo --boot-time`. One machine runs at a time, turn by turn, so that whatever
//! slows the host slows all of them.

use std::{
    fmt::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    demo::PATIENCE,
    process::{Machine, Mark},
};

/// What the guest says first.
const INIT_REACHED: &str = "sluice-guest: init reached";

/// Memory of the guest in MiB.
const GUEST_MIB: u64 = 512;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program `sluice`.
    pub sluice: PathBuf,
    /// QEMU, if it is to be measured too.
    pub qemu: Option<PathBuf>,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initrd: PathBuf,
    /// Boots of each machine.
    pub boots: u32,
}

/// A monitor with a machine type.
#[derive(Debug)]
struct Contender {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    boots: Vec<Boot>,
}

/// One boot.
#[derive(Clone, Copy, Debug)]
struct Boot {
    to_init: Duration,
    own_kib: u64,
}

/// The table.
#[derive(Debug)]
pub struct BootReport(Vec<Contender>);

/// Boots every contender `boots` times, in turns.
///
/// # Errors
/// A machine did not reach its init.
pub fn measure(options: &Options) -> Result<BootReport> {
    let mut contenders = contenders(options);
    for _ in 0..options.boots {
        for contender in &mut contenders {
            let name = contender.name;
            let boot = boot(contender).with_context(|| format!("{name} did not boot"))?;
            contender.boots.push(boot);
        }
    }
    Ok(BootReport(contenders))
}

fn contenders(options: &Options) -> Vec<Contender> {
    let common = |more: &[&str]| {
        let (kernel, initrd) = (options.kernel.display(), options.initrd.display());
        let mut arguments: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
        let rest = [
            "-m",
            &GUEST_MIB.to_string(),
            "-smp",
            "2",
            "-serial",
            "stdio",
            "-no-reboot",
        ];
        arguments.extend(rest.map(str::to_owned));
        arguments.extend(["-kernel".to_owned(), kernel.to_string()]);
        arguments.extend(["-initrd".to_owned(), initrd.to_string()]);
        let command_line = "console=ttyS0 quiet sluice.run=shell";
        arguments.extend(["-append".to_owned(), command_line.to_owned()]);
        arguments
    };
    let contender = |name, program: &Path, more: &[&str]| Contender {
        name,
        program: program.to_owned(),
        arguments: common(more),
        boots: Vec::new(),
    };
    let mut contenders = vec![contender("sluice", &options.sluice, &["-accel", "kvm"])];
    if let Some(qemu) = &options.qemu {
        let machine = |kind| {
            [
                "-M",
                kind,
                "-accel",
                "kvm",
                "-cpu",
                "host",
                "-nodefaults",
                "-display",
                "none",
            ]
        };
        contenders.push(contender("qemu -M pc", qemu, &machine("pc")));
        contenders.push(contender("qemu -M microvm", qemu, &machine("microvm")));
    }
    contenders
}

fn boot(contender: &Contender) -> Result<Boot> {
    let program = contender.program.display().to_string();
    let mut machine = Machine::start(&program, &contender.arguments)?;
    machine.wait_console(INIT_REACHED, Mark::default(), PATIENCE)?;
    let to_init = Instant::now() - machine.started();
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", machine.pid()))?;
    Ok(Boot {
        to_init,
        own_kib: own_memory(&maps),
    })
}

/// Resident memory in KiB in the words of `/proc/PID/smaps`, without the guest's memory: mappings
/// of at least half its size are taken for it (it may be split by the hole below 4 GiB).
fn own_memory(smaps: &str) -> u64 {
    let mut size = 0;
    let mut resident = 0;
    for line in smaps.lines() {
        let kib = || {
            line.split_whitespace()
                .nth(1)
                .and_then(|word| word.parse::<u64>().ok())
        };
        if line.starts_with("Size:") {
            size = kib().unwrap_or(0);
        } else if line.starts_with("Rss:") && size < GUEST_MIB * 1024 / 2 {
            resident += kib().unwrap_or(0);
        }
    }
    resident
}

impl fmt::Display for BootReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16} {:>5}  {:>22}  {:>14}",
            "machine", "boots", "to init, s: min/med/max", "own memory"
        )?;
        for Contender { name, boots, .. } in &self.0 {
            let mut times: Vec<_> = boots
                .iter()
                .map(|boot| boot.to_init.as_secs_f64())
                .collect();
            times.sort_by(f64::total_cmp);
            let memory = boots
                .iter()
                .map(|boot| boot.own_kib)
                .max()
                .unwrap_or_default();
            let mut line = String::new();
            if let (Some(least), Some(most)) = (times.first(), times.last()) {
                let middle = times[times.len() / 2];
                write!(line, "{least:.2} / {middle:.2} / {most:.2}")?;
            }
            let memory = format!("{}.{} MiB", memory / 1024, memory % 1024 * 10 / 1024);
            writeln!(f, "{name:<16} {:>5}  {line:>23}  {memory:>14}", boots.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::own_memory;

    #[test]
    fn guest_memory_is_left_out() {
        let smaps = "7f00-7f10 r-xp 00000000 00:00 0  /bin/sluice\nSize:   1024 kB\nRss:    800 kB\n\
                     7f20-7f30 rw-s 00000000 00:00 0  /memfd:ram\nSize: 524288 kB\nRss:  90000 kB\n\
                     7f40-7f50 rw-p 00000000 00:00 0  [heap]\nSize:    132 kB\nRss:     20 kB\n";
        assert_eq!(own_memory(smaps), 820);
    }
}
