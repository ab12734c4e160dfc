//! A guest boots, and ends by itself in all the ways there are.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    lab::{INIT_REACHED, Lab, PATIENCE, value_of},
    script::command_line,
};

/// Exit status of a guest whose kernel panicked (docs/command-line.md).
const PANICKED: i32 = 10;

/// The guest reaches its init, finds its processors, and powers itself off by ACPI.
pub fn boots(lab: &Lab<'_>, kernel: &Path, cpus: u32) -> Result<()> {
    let line = command_line("echo processors: $(nproc)", "");
    let mut guest = lab.start_kernel(kernel, &line, &["--smp", &cpus.to_string()])?;
    guest.wait(INIT_REACHED)?;
    let console = guest.finish_script()?;
    let found = value_of(&console, "processors:")?;
    ensure!(
        found == cpus.to_string(),
        "{found} processors, not {cpus}, in the guest"
    );
    let powered_off = console.contains("reboot: Power down");
    ensure!(powered_off, "the kernel did not power down:\n{console}");
    Ok(())
}

/// The panic reaches the machine by the panic port, in the time between the kernel's report and
/// its restart.
pub fn panic_has_its_status(lab: &Lab<'_>) -> Result<()> {
    let mut guest = lab.start("console=ttyS0 quiet panic=-1 sluice.run=panic", &[])?;
    guest.wait("Kernel panic - not syncing")?;
    guest.ends_with(PANICKED)?;
    let said = guest.messages();
    ensure!(said.contains("panicked"), "said only: {said}");
    Ok(())
}

/// A restart is the end for a machine that must not restart.
pub fn no_reboot_ends(lab: &Lab<'_>) -> Result<()> {
    let line = "console=ttyS0 quiet sluice.run=reboot";
    let mut guest = lab.start(line, &["--no-reboot", "--smp", "2"])?;
    guest.wait("reboot: Restarting system")?;
    guest.ends_with(0)?;
    let said = guest.messages();
    ensure!(said.contains("--no-reboot"), "said only: {said}");
    let boots = guest.console().matches(INIT_REACHED).count();
    ensure!(boots == 1, "the guest booted {boots} times");
    Ok(())
}

/// A restart boots the same kernel again, on all processors, until somebody quits.
pub fn restart_boots_again(lab: &Lab<'_>) -> Result<()> {
    let line = "console=ttyS0 quiet sluice.run=reboot";
    let (mut guest, mut qmp) = lab.start_controlled(line, &["--smp", "2"])?;
    guest.wait("reboot: Restarting system")?;
    qmp.wait_event("RESET", PATIENCE, |event| {
        event.event == "RESET" && event.data["guest"] == true
    })?;
    guest.wait(INIT_REACHED)?;
    qmp.execute("quit", &json!({}))?;
    guest.ends_with(0)
}
