//! The process from the parsed command line to its exit status.
//!
//! Runs on the main thread. Everything that has to be undone (raw terminal, serial output) is
//! undone here, whichever way the machine ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use sluice_aio::{Clock, EventLoop, LoopConfig};
use sluice_devices::legacy::SerialSink;

use crate::cli::CommandLine;
use crate::clock::MachineClock;
use crate::console::{ConsoleInput, RawTerminal, SerialOutput};
use crate::control::{Cause, VmControl};
use crate::exit::{Exit, ExitStatus};
use crate::machine::config::{AcceleratorConfig, SerialConfig};
use crate::machine::{Machine, MachineBuilder};
use crate::main_loop::MainLoop;

/// Runs what `command_line` asks for, and tells how the process shall end.
pub fn run(command_line: &CommandLine) -> Exit {
    match serial_output(&command_line.machine.serial) {
        Ok(Serial { output, sink }) => {
            let exit = with_serial(command_line, sink);
            if let Some(lost) = output.map(|output| output.close()).filter(|lost| *lost > 0) {
                tracing::warn!("{lost} bytes of serial output were lost: nobody read them");
            }
            exit
        }
        Err(exit) => exit,
    }
}

/// Where the guest's serial output goes.
struct Serial {
    output: Option<Arc<SerialOutput>>,
    sink: Option<Arc<dyn SerialSink>>,
}

/// Swallows everything.
struct NullSink;

impl SerialSink for NullSink {
    fn send(&self, _: u8) {}
}

fn serial_output(config: &SerialConfig) -> Result<Serial, Exit> {
    let setup = |what: String| {
        move |error: io::Error| Exit::because(ExitStatus::Setup, format!("{what}: {error}"))
    };
    let file: OwnedFd = match config {
        SerialConfig::None => {
            return Ok(Serial {
                output: None,
                sink: None,
            });
        }
        SerialConfig::Null => {
            return Ok(Serial {
                output: None,
                sink: Some(Arc::new(NullSink)),
            });
        }
        SerialConfig::Stdio => io::stdout().as_fd().try_clone_to_owned().map_err(setup(
            "--serial stdio: standard output cannot be used".into(),
        ))?,
        SerialConfig::File(path) => File::create(path)
            .map_err(setup(format!(
                "--serial file: cannot create '{}'",
                path.display()
            )))?
            .into(),
    };
    let output = SerialOutput::start(file).map_err(setup("no thread for serial output".into()))?;
    let output = Arc::new(output);
    Ok(Serial {
        sink: Some(Arc::clone(&output) as _),
        output: Some(output),
    })
}

fn with_serial(command_line: &CommandLine, sink: Option<Arc<dyn SerialSink>>) -> Exit {
    let config = &command_line.machine;
    let qtest = matches!(config.accelerator, AcceleratorConfig::Qtest(_));
    let clock = if qtest {
        Clock::manual()
    } else {
        Clock::real()
    };
    let loop_config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let aio = match EventLoop::new("main", &loop_config) {
        Ok(aio) => aio,
        Err(error) => return Exit::because(ExitStatus::Setup, error),
    };
    let devices_clock = Arc::new(MachineClock::new(clock));
    let built = MachineBuilder::new(config, aio.context(), devices_clock, sink.clone())
        .and_then(MachineBuilder::finish);
    let machine = match built {
        Ok(machine) => machine,
        Err(error) => return Exit::because(error.status(), error),
    };
    match serve(command_line, aio, &machine, sink) {
        Ok(exit) => exit,
        Err(error) => Exit::because(ExitStatus::Setup, error),
    }
}

/// The main loop, from the first instruction to the last chore.
fn serve(
    command_line: &CommandLine,
    aio: EventLoop,
    machine: &Machine,
    sink: Option<Arc<dyn SerialSink>>,
) -> Result<Exit, Box<dyn std::error::Error>> {
    let controller = &machine.controller;
    let context = aio.context();
    let mut main_loop = MainLoop::new(aio)?;
    let signalled = Arc::clone(controller);
    main_loop.catch_signals(move |signal| {
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
        let exit = Exit::because(ExitStatus::Success, format!("ended by {name}"));
        signalled.end(exit, Cause::HostSignal);
    })?;

    // Raw mode comes last before the guest runs: errors before this are printed as usual.
    let stdio = command_line.machine.serial == SerialConfig::Stdio;
    let mut terminal = None;
    if let (true, Some(port), Some(sink)) = (stdio, &machine.serial, sink) {
        terminal = RawTerminal::enter()?;
        if ConsoleInput::possible() {
            let quitting = Arc::clone(controller);
            let quit = move || quitting.quit(Cause::HostSignal);
            let port = Arc::clone(port);
            main_loop.subscribe(ConsoleInput::new(port, sink, terminal.is_some(), quit));
        }
    }

    if !command_line.machine.start_paused {
        let starting = Arc::clone(controller);
        context.spawn(move || async move {
            // The only refusal is that the machine is ending already.
            let _ = starting.resume().await;
        });
    }
    main_loop.run_until(|| controller.is_finished())?;
    drop(terminal);
    Ok(controller.exit())
}
