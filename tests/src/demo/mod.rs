//! The demo: a guest writes to an IDE and a virtio disk, both are mirrored and pivoted while it
//! does, and then every claim is checked.
//!
//! [`run`] is called by the program `sluice-demo`, which `ci/demo` runs on a host with KVM. One
//! thread drives everything; the helpers of [`crate::process`] and [`crate::qmp`] collect in the
//! background.
//!
//! The plan of a run, for each [`Scenario`]:
//!
//! 1. *Demo*: both disks at once, pivot undisturbed (IDE by drive-mirror, virtio by
//!    blockdev-mirror): this gives honest times. Then each disk once more, by blockdev-mirror, and the section is
//!    held right after the root was swapped, while source and target are compared.
//!    *Quick* leaves the second round out.
//! 2. *Twin*: the IDE disk alone; the section is held between the last flush of the target and the
//!    swap of the root, until the other disk has been written to for a while.
//! 3. *Negative*: as twin, but the IDE device does not postpone; the guest writes into the window
//!    and the check must find that these writes are lost.

mod disks;
mod pivot;
mod report;
mod session;
mod verdict;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};

pub use report::Report;
use session::Session;

/// How long the guest may take for anything, from booting to a command's event. Generous: the
/// host may itself be emulated, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Which story to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Two disks, four pivots.
    Demo,
    /// Two disks, two pivots that nothing holds up.
    Quick,
    /// One pivot of the IDE disk, held in the window before the swap.
    Twin,
    /// The same without postponing: must lose writes, and must be caught.
    Negative,
}

/// What to run and on what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which story.
    pub scenario: Scenario,
    /// The program `sluice`; for [`Scenario::Negative`] one built with the feature `test-hooks`.
    pub sluice: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initrd: PathBuf,
    /// Where images and sockets go; must exist and be empty.
    pub work: PathBuf,
    /// Size of each disk in bytes; a multiple of 1 MiB.
    pub disk_bytes: u64,
    /// Operations a second that the guest tries on each disk.
    pub rate: u32,
    /// Seed of everything random.
    pub seed: u64,
    /// Where to copy the guest's console to as it grows.
    pub console: Option<PathBuf>,
    /// Tell on standard error what happens.
    pub verbose: bool,
}

/// Runs a scenario to its end and returns what was found. The report is good or bad; an error
/// means that there is nothing to report on.
///
/// # Errors
/// The machine could not be started, did not answer, or ended early.
pub fn run(options: &Options) -> Result<Report> {
    let mut session = Session::start(options).context("cannot start the guest")?;
    match tell(&mut session, options.scenario) {
        Ok(pivots) => session.finish(pivots),
        // The reason first: what a long log shows of an error is its first line.
        Err(error) => bail!(
            "the run broke off: {error:#}\nthe machine's last words:\n{}",
            session.output()
        ),
    }
}

fn tell(session: &mut Session, scenario: Scenario) -> Result<Vec<pivot::Pivot>> {
    session.wait_for_writer()?;
    match scenario {
        Scenario::Demo | Scenario::Quick => {
            let mut pivots = session.undisturbed_pivots()?;
            if scenario == Scenario::Demo {
                pivots.extend(session.compared_pivots()?);
            }
            session.let_the_guest_write()?;
            Ok(pivots)
        }
        Scenario::Twin => Ok(vec![session.window_pivot(pivot::Window::Closed)?]),
        Scenario::Negative => Ok(vec![session.window_pivot(pivot::Window::Open)?]),
    }
}
