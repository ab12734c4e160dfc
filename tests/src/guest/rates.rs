//! How fast one Linux reads an IDE disk and a virtio disk, at depth 1: a benchmark, which no test
//! judges. `ci/bench guest` runs it.
//!
//! Both disks are in one guest and are read in turns, so that a host that becomes slower meanwhile
//! is slower for both.

use std::fmt;

use anyhow::{Context, Result, ensure};

use super::{
    Options,
    lab::{Lab, sha256},
    script::command_line,
};

/// Size of each disk, in bytes.
const DISK: usize = 32 << 20;

/// How often each disk is read as a whole; the first time is not counted.
const TURNS: usize = 6;

/// The least share of virtio's rate that IDE is to reach.
const WANTED: f64 = 0.6;

/// What was measured: MiB per second, one value a turn, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// The transfer mode that Linux has chosen for the IDE disk.
    pub mode: String,
    /// Of the IDE disk.
    pub ide: Vec<f64>,
    /// Of the virtio disk.
    pub virtio: Vec<f64>,
}

impl Rates {
    /// IDE's rate divided by virtio's: the median of the turns' ratios.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let ratios = self.ide.iter().zip(&self.virtio);
        median(ratios.map(|(ide, virtio)| ide / virtio).collect())
    }

    /// Whether the target is met.
    #[must_use]
    pub fn met(&self) -> bool {
        self.ratio() >= WANTED
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = format!(
            "IDE {} against virtio, 64 KiB reads at depth 1",
            self.mode.trim_start_matches("XFER_")
        );
        write!(
            f,
            "{what:57} {:>6} {:>11.1} {:>11.1} {:>6.2} {:>9} {}",
            "MiB/s",
            median(self.ide.clone()),
            median(self.virtio.clone()),
            self.ratio(),
            format!(">= {WANTED}x"),
            if self.met() { "met" } else { "MISSED" }
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Reads both disks of one guest in turns.
///
/// # Errors
/// The guest does not start, or does not say what it measured.
pub fn measure(options: &Options) -> Result<Rates> {
    std::fs::create_dir_all(&options.work)
        .with_context(|| format!("cannot make {}", options.work.display()))?;
    let directory = options.work.join("rates");
    std::fs::create_dir(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let lab = Lab { options, directory };
    let disks = ["ide", "virtio"].map(|kind| lab.random_image(&format!("{kind}.img"), DISK, 7));
    let [ide, virtio] = disks;
    let (ide, virtio) = (ide?, virtio?);
    // What is read first is in the host's memory, as it is for all later turns.
    ensure!(sha256(&ide)? == sha256(&virtio)?, "the disks differ");
    let script = format!(
        "echo mode: $(cat /sys/class/ata_device/dev1.0/xfer_mode); \
         for turn in $(seq {TURNS}); do for disk in sda vda; do \
         echo rate: $disk $(sluice-writer --time-reads /dev/$disk); \
         done; done"
    );
    let line = command_line(&script, "sluice.wait=/dev/sda,/dev/vda");
    let arguments = [
        "--machine",
        "pc,ide=piix4",
        "--object",
        "iothread,id=io0",
        "--drive",
        &format!("file={},format=raw,if=ide", ide.display()),
        "--drive",
        &format!("file={},format=raw,if=none,id=fast", virtio.display()),
        "--device",
        "virtio-blk-pci,drive=fast,iothread=io0",
    ];
    let console = lab.start(&line, &arguments)?.finish_script()?;
    rates(&console)
}

/// What a console says of the turns, the first left out.
fn rates(console: &str) -> Result<Rates> {
    let mut rates = Rates::default();
    for line in console.lines() {
        if let Some(mode) = line.strip_prefix("mode:") {
            mode.trim().clone_into(&mut rates.mode);
        } else if let Some(said) = line.strip_prefix("rate:") {
            let rate = rate(said).with_context(|| format!("no rate in {line:?}"))?;
            let of_ide = said.trim_start().starts_with("sda");
            let rates = if of_ide {
                &mut rates.ide
            } else {
                &mut rates.virtio
            };
            rates.push(rate);
        }
    }
    for turns in [&mut rates.ide, &mut rates.virtio] {
        ensure!(
            turns.len() == TURNS,
            "{} turns instead of {TURNS}:\n{console}",
            turns.len()
        );
        turns.remove(0);
    }
    Ok(rates)
}

/// MiB per second out of `sda writer: read 33554432 bytes in 250000000 ns`.
fn rate(said: &str) -> Option<f64> {
    let words: Vec<&str> = said.split_whitespace().collect();
    let number = |unit: &str| -> Option<f64> {
        let at = words.iter().position(|word| *word == unit)?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    };
    let (bytes, nanoseconds) = (number("bytes")?, number("ns")?);
    (nanoseconds > 0.0).then(|| bytes / f64::from(1 << 20) / (nanoseconds / 1e9))
}

#[cfg(test)]
mod tests {
    use super::{TURNS, rate, rates};

    const SAID: &str = "writer: read 33554432 bytes in 250000000 ns";

    #[test]
    fn a_rate_is_what_was_copied_by_the_time_it_took() {
        assert_eq!(rate(&format!(" sda {SAID}")), Some(128.0));
        assert_eq!(rate(" sda writer: verdict FAIL cannot open /dev/sda"), None);
    }

    #[test]
    fn the_first_turn_does_not_count_and_none_may_be_missing() {
        let turn = |disk: &str| format!("rate: {disk} {SAID}\n");
        let both = format!("{}{}", turn("sda"), turn("vda"));
        let found = rates(&format!("mode: XFER_UDMA_5\n{}", both.repeat(TURNS))).unwrap();
        assert_eq!(
            (found.ide.len(), found.virtio.len()),
            (TURNS - 1, TURNS - 1)
        );
        assert_eq!((found.mode.as_str(), found.ratio()), ("XFER_UDMA_5", 1.0));
        assert!(found.met());
        assert!(rates(&both.repeat(TURNS - 1)).is_err());
    }
}
