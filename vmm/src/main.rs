//! The `sluice` command: a virtual machine with disks that can be mirrored while it runs.

use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;

use sluice_vmm::cli;
use sluice_vmm::exit::ExitStatus;
use sluice_vmm::log::Ration;
use sluice_vmm::process;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The variable that says what is logged; by default warnings and errors are.
const LOG_VARIABLE: &str = "SLUICE_LOG";

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A file would keep the codes.
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .finish()
        .with(Ration::new())
        .init();

    let command_line = match cli::parse(std::env::args_os().skip(1)) {
        Ok(command_line) => command_line,
        Err(refusal) => {
            let status = refusal.status();
            // Nobody is left to be told of a closed standard output or error.
            let _ = if status == ExitStatus::Success {
                writeln!(std::io::stdout(), "{refusal}")
            } else {
                writeln!(std::io::stderr(), "{refusal}")
            };
            return status.into();
        }
    };
    for warning in &command_line.warnings {
        // As above.
        let _ = writeln!(std::io::stderr(), "sluice: warning: {warning}");
    }
    let exit = process::run(&command_line);
    if let Some(reason) = exit.reason {
        let _ = writeln!(std::io::stderr(), "sluice: {reason}");
    }
    exit.status.into()
}
