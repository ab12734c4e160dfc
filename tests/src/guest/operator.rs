//! The operator's verbs on a running Linux.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    lab::{INIT_REACHED, Lab, PATIENCE},
    script::command_line,
};

/// No count for so long: the guest, which counts many times faster, stands still.
const STILL: Duration = Duration::from_secs(2);

/// What a script says when the operator may act.
const READY: &str = "waiting for the operator";

/// A reset from outside boots the guest again, whatever it does.
pub fn reset_boots_again(lab: &Lab<'_>) -> Result<()> {
    let line = command_line(&format!("echo {READY}; sleep 1000"), "");
    let (mut guest, mut qmp) = lab.start_controlled(&line, &["--smp", "2"])?;
    guest.wait(READY)?;
    qmp.execute("system_reset", &json!({}))?;
    qmp.wait_event("RESET", PATIENCE, |event| {
        event.event == "RESET" && event.data["guest"] == false
    })?;
    guest.wait(INIT_REACHED)?;
    guest.wait(READY)?;
    qmp.execute("quit", &json!({}))?;
    guest.ends_with(0)
}

/// The guest gets the button's event by ACPI and shuts down in its own way.
pub fn power_button(lab: &Lab<'_>) -> Result<()> {
    // acpid goes into the background before it listens; who presses earlier is not heard.
    let listening = format!(
        "until ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q /dev/input/event; \
                     do usleep 50000; done; echo {READY}; sleep 1000"
    );
    let line = command_line(&listening, "");
    let (mut guest, mut qmp) = lab.start_controlled(&line, &[])?;
    guest.wait(READY)?;
    qmp.execute("system_powerdown", &json!({}))?;
    guest.wait("sluice-guest: power button")?;
    let end = qmp.wait_event("SHUTDOWN", PATIENCE, |event| event.event == "SHUTDOWN")?;
    ensure!(end.text("reason") == "guest-shutdown", "{}", end.data);
    guest.ends_with(0)
}

/// A stopped guest does nothing; it goes on where it was, without a gap.
pub fn stop_and_go_on(lab: &Lab<'_>) -> Result<()> {
    let count = "n=0; while :; do n=$((n+1)); echo count $n.; usleep 50000; done";
    let (mut guest, mut qmp) = lab.start_controlled(&command_line(count, ""), &["--smp", "2"])?;
    guest.wait("count 5.")?;
    for _ in 0..2 {
        qmp.execute("stop", &json!({}))?;
        let status = qmp.execute("query-status", &json!({}))?;
        ensure!(status["status"] == "paused", "stopped, but {status}");
        guest.wait_silence(STILL)?;
        let counted = *counts(&guest.console()).last().context("no count")?;
        let ran: Value = qmp.execute("cont", &json!({}))?;
        ensure!(ran == json!({}), "cont returned {ran}");
        guest.wait(&format!("count {}.", counted + 5))?;
    }
    let counts = counts(&guest.console());
    let gapless = (1..).zip(&counts).all(|(wanted, count)| wanted == *count);
    ensure!(gapless, "the guest counted {counts:?}");
    qmp.execute("quit", &json!({}))?;
    guest.ends_with(0)
}

/// The numbers that the guest has counted, from its complete lines.
fn counts(console: &str) -> Vec<u64> {
    console
        .lines()
        .filter_map(|line| line.strip_prefix("count ")?.strip_suffix('.'))
        .filter_map(|number| number.parse().ok())
        .collect()
}
