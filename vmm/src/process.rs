//! The process from the parsed command line to its exit status.
//!
//! Runs on the main thread. Everything that has to be undone (raw terminal, serial output) is
//! undone here, whichever way the machine ends.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures_util::future::{self, Either};
use sluice_aio::{AioContext, Clock, EndPatience, EventLoop, LoopConfig, LoopError, current};
use sluice_block::event::ErrorAction;
use sluice_block::graph::LeftTarget;
use sluice_block::{BlockEvent, EventSink, Graph};
use sluice_devices::legacy::{Ejector, SerialSink};
use thiserror::Error;

use crate::chardev::{Chardevs, Endpoints, InheritError, Inherited, OpenError};
use crate::cli::CommandLine;
use crate::clock::MachineClock;
use crate::console::{ConsoleInput, PrintPlace, Printer, QueuedOutput, RawTerminal};
use crate::control::{Cause, VmControl};
use crate::exit::{Exit, ExitStatus};
use crate::iothreads::IoThreads;
use crate::machine::config::{AcceleratorConfig, MachineConfig, MachineKind, SerialConfig};
use crate::machine::disks::{self, DiskError, DiskParts};
use crate::machine::hotplug::{HotPlug, HotPlugParts};
use crate::machine::{BuildError, Chore, Controller, Machine, MachineBuilder, Notice};
use crate::main_loop::{MainLoop, MainLoopError, Signals};
use crate::qmp::{Devices, EventBus, Monitor, QmpServer};
use crate::{qtest, slow_end};

/// How long the end waits for calls of which nothing ends when all disks are at rest.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// The same if nobody wants to wait for disks: what does not hang ends, or can be called back, in this time.
const HURRY: Duration = Duration::from_millis(100);

/// Runs what `command_line` asks for, and tells how the process shall end.
pub fn run(command_line: &CommandLine) -> Exit {
    // First of all: whatever is open now was inherited.
    let inherited = match Inherited::take(&command_line.chardevs) {
        Ok(inherited) => inherited,
        Err(error) => return StartError::from(error).into(),
    };
    match serial_output(&command_line.machine.serial) {
        Ok(Serial { output, sink }) => {
            let printer = Arc::new(Printer::new(print_place(command_line, output.as_ref())));
            let exit = with_serial(command_line, sink, &printer, inherited);
            printer.close();
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
    output: Option<Arc<QueuedOutput>>,
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
    let output = QueuedOutput::start(file, "serial output")
        .map_err(setup("no thread for serial output".into()))?;
    let output = Arc::new(output);
    Ok(Serial {
        sink: Some(Arc::clone(&output) as _),
        output: Some(output),
    })
}

/// Where requests by hand print. The messages of a protocol on standard output stay whole.
fn print_place(command_line: &CommandLine, serial: Option<&Arc<QueuedOutput>>) -> PrintPlace {
    if command_line.speaks_on_stdio() {
        return PrintPlace::StandardError;
    }
    match (&command_line.machine.serial, serial) {
        (SerialConfig::Stdio, Some(serial)) => PrintPlace::Shared(Arc::clone(serial)),
        _ => PrintPlace::StandardOutput,
    }
}

/// Why the process cannot get as far as a running machine.
#[derive(Debug, Error)]
enum StartError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Inherit(#[from] InheritError),
    #[error(transparent)]
    Chardev(#[from] OpenError),
    #[error("--chardev {0} is used twice")]
    ChardevTwice(String),
    #[error(transparent)]
    Loop(#[from] LoopError),
    #[error(transparent)]
    MainLoop(#[from] MainLoopError),
    #[error("the terminal cannot be switched to raw mode: {0}")]
    Terminal(#[source] io::Error),
}

impl From<StartError> for Exit {
    fn from(error: StartError) -> Self {
        let status = match &error {
            StartError::Build(error) => error.status(),
            _ => ExitStatus::Setup,
        };
        Self::because(status, error)
    }
}

fn with_serial(
    command_line: &CommandLine,
    sink: Option<Arc<dyn SerialSink>>,
    printer: &Arc<Printer>,
    inherited: Inherited,
) -> Exit {
    start_and_serve(command_line, sink, printer, inherited).unwrap_or_else(Exit::from)
}

/// Where the end of the process is announced, and how it shall be.
type Finished = Rc<Cell<Option<Exit>>>;

/// Builds everything, as a task of the main loop: disks are opened there. Leaves a task behind
/// that sees to the end.
async fn assemble(
    command_line: CommandLine,
    mut endpoints: Endpoints,
    main: AioContext,
    loop_config: LoopConfig,
    sink: Option<Arc<dyn SerialSink>>,
    printer: Arc<Printer>,
    finished: Finished,
) -> Result<Machine, StartError> {
    let clock = loop_config.clock.clone();
    // Under qtest the guest's clock stands still until it is moved: that of its devices, of the limits of its
    // disks and of events. Loops and jobs go by real time.
    let manual = match &command_line.machine.accelerator {
        AcceleratorConfig::Kvm => None,
        AcceleratorConfig::Qtest(_) => Some(Clock::manual()),
    };
    let devices_clock = manual.clone().unwrap_or_else(|| clock.clone());
    let events = EventBus::on_clock(main.clone(), manual);
    let disk_events = Arc::new(DiskEvents::new(Arc::clone(&events)));
    let limits_clock = devices_clock.clone();
    let graph = Graph::with_clocks(Arc::clone(&disk_events) as _, clock, limits_clock);
    let end_patience = loop_config.end_patience.clone();
    let iothreads = Arc::new(IoThreads::new(loop_config));
    let machine_clock = Arc::new(MachineClock::new(devices_clock.clone()));
    let builder = MachineBuilder::new(&command_line.machine, main.clone(), machine_clock, sink)?;
    let plug = HotPlugParts {
        graph: Arc::clone(&graph),
        iothreads: Arc::clone(&iothreads),
        main: main.clone(),
        events: Arc::clone(&events) as _,
    };
    let plug = HotPlug::new(&builder, plug);
    let parts = DiskParts {
        graph: &graph,
        iothreads: &iothreads,
        main: &main,
        piix: command_line.piix,
        kind: command_line.machine.kind,
        devices: &plug,
    };
    disks::add(&builder, &command_line.storage, parts).await?;
    let machine = builder.finish()?;

    let controller = &machine.controller;
    controller.subscribe(Arc::clone(&events) as _);
    controller.on_stop(quiesce(&graph));
    controller.on_resume(resume_disks(&graph));
    disk_events.attach(controller);
    let chardevs = Arc::new(Chardevs::new(endpoints.opened()));
    let devices = match command_line.machine.kind {
        MachineKind::Pc => Some(Devices {
            plug: Arc::clone(&plug),
            reader: command_line.devices,
        }),
        MachineKind::None => None,
    };
    let monitor = Monitor {
        chardevs: Arc::clone(&chardevs),
        qemu_io: Arc::default(),
        printer,
        descriptors: Arc::default(),
        graph: Arc::clone(&graph),
        vm: Arc::clone(controller) as _,
        iothreads,
        devices: devices.map(Arc::new),
        main,
    };
    let mut take = |id: &str| {
        let endpoint = endpoints.take(id);
        endpoint.ok_or_else(|| StartError::ChardevTwice(id.to_owned()))
    };
    let mut qmp = QmpServer::new(monitor, events);
    for config in &command_line.monitors {
        let id = &config.chardev;
        qmp.serve(take(id)?, config.mode, chardevs.attach(id));
    }
    if let (AcceleratorConfig::Qtest(config), Some(interrupts)) =
        (&command_line.machine.accelerator, &machine.qtest)
        && let Some(id) = &config.chardev
    {
        let present = Arc::clone(&plug);
        let target = qtest::Target {
            buses: machine.buses.clone(),
            ram: Arc::clone(&machine.ram),
            interrupts: Arc::clone(interrupts),
            clock: devices_clock,
            has_device: Box::new(move |name| present.list().iter().any(|device| device.is(name))),
        };
        qtest::serve(take(id)?, chardevs.attach(id), &config.log, target);
    }
    let ending = Arc::clone(controller);
    let retiring = machine.retire_disks();
    let retiring = async move {
        plug.ejected().await;
        retiring.await;
    };
    let farewell = async move {
        let end = async {
            let exit = ending.ended().await;
            (exit, farewell(&graph, retiring, qmp, &end_patience).await)
        };
        let notes = slow_end::note(Arc::clone(&ending), Arc::clone(&graph));
        let (exit, left) = match future::select(pin!(end), pin!(notes)).await {
            Either::Left((ended, _)) => ended,
            Either::Right((never, _)) => match never {},
        };
        // Those that nobody uses are open as long as the process is.
        drop(endpoints);
        finished.set(Some(leaving(exit, &left)));
    };
    current::spawn_local(farewell).detach();
    Ok(machine)
}

/// What `cont` does before the vCPUs: disks do again what an error has halted, and begin what has come meanwhile.
fn resume_disks(graph: &Arc<Graph>) -> Notice {
    let graph = Arc::clone(graph);
    Arc::new(move || graph.resume())
}

/// The graph's events: told to everybody, and to the machine if one of them asks it to stop.
struct DiskEvents {
    bus: Arc<EventBus>,
    controller: OnceLock<Weak<Controller>>,
}

impl DiskEvents {
    fn new(bus: Arc<EventBus>) -> Self {
        Self {
            bus,
            controller: OnceLock::new(),
        }
    }

    /// Says which machine is to be stopped. Until then no guest has made a request.
    fn attach(&self, controller: &Arc<Controller>) {
        self.controller.get_or_init(|| Arc::downgrade(controller));
    }
}

impl EventSink for DiskEvents {
    fn emit(&self, event: BlockEvent) {
        let stops = matches!(
            event,
            BlockEvent::BlockIoError {
                action: ErrorAction::Stop,
                ..
            }
        );
        EventSink::emit(&*self.bus, event);
        let controller = self.controller.get().and_then(Weak::upgrade);
        if let Some(controller) = controller.filter(|_| stops) {
            controller.stop_for_io_error();
        }
    }
}

/// What a stop does after the vCPUs: waits for the requests in flight, flushes the disks.
fn quiesce(graph: &Arc<Graph>) -> Chore {
    let graph = Arc::clone(graph);
    Box::new(move || {
        let graph = Arc::clone(&graph);
        Box::pin(async move {
            // What a job has left behind is no disk's, and is told of when the machine ends.
            drop(graph.come_to_rest("stop").await);
        })
    })
}

/// What has to be done between the end of the machine and that of the process. Returns what can't be awaited.
async fn farewell(
    graph: &Graph,
    retiring: impl Future<Output = ()>,
    qmp: QmpServer,
    end_patience: &EndPatience,
) -> Vec<LeftTarget> {
    graph.jobs().shut_down().await;
    retiring.await;
    let left = graph.come_to_rest("shutdown").await;
    // What guests and jobs wrote is safe, or was given up. What still runs in the kernel hangs, or is a query's.
    end_patience.shorten(LAST_PATIENCE);
    for backend in graph.backends() {
        graph.remove_backend(&backend).await;
    }
    qmp.shut_down().await;
    left
}

/// The end of a process that leaves these targets behind.
fn leaving(exit: Exit, left: &[LeftTarget]) -> Exit {
    if left.is_empty() {
        return exit;
    }
    let left: Vec<_> = left.iter().map(LeftTarget::to_string).collect();
    let left = format!("left behind: {}", left.join("; "));
    let reason = match exit.reason {
        Some(reason) => format!("{reason}; {left}"),
        None => left,
    };
    Exit::because(exit.status, reason)
}

fn start_and_serve(
    command_line: &CommandLine,
    sink: Option<Arc<dyn SerialSink>>,
    printer: &Arc<Printer>,
    inherited: Inherited,
) -> Result<Exit, StartError> {
    let config = &command_line.machine;
    let signals = Signals::catch()?;
    let loop_config = LoopConfig::default();
    let end_patience = loop_config.end_patience.clone();
    let mut aio = EventLoop::new("main", &loop_config)?;
    let context = aio.context();
    let finished = Finished::default();
    let endpoints = Endpoints::open(&command_line.chardevs, inherited)?;
    // Both are given back: nothing borrows them for as long as a task could live.
    let (endpoints, signals, awaited) = aio.run_until(async move {
        let awaited = {
            let clients = std::pin::pin!(endpoints.clients());
            let signal = std::pin::pin!(signals.arrival());
            matches!(future::select(clients, signal).await, Either::Left(_))
        };
        (endpoints, signals, awaited)
    })?;
    if !awaited {
        let why = "ended by a signal, while it waited for a connection";
        return Ok(Exit::because(ExitStatus::Success, why));
    }
    let assembling = assemble(
        command_line.clone(),
        endpoints,
        context.clone(),
        loop_config,
        sink.clone(),
        Arc::clone(printer),
        Rc::clone(&finished),
    );
    let machine = aio.run_until(assembling)??;
    let controller = &machine.controller;

    let mut main_loop = MainLoop::new(aio)?;
    end_on(signals, &mut main_loop, controller, &finished, end_patience);
    let terminal = attach_console(&mut main_loop, config, &machine, sink)?;
    if !config.start_paused {
        let starting = Arc::clone(controller);
        context.spawn(move || async move { starting.launch().await });
    }
    let mut exit = None;
    main_loop.run_until(|| {
        exit = finished.take();
        exit.is_some()
    })?;
    drop(terminal);
    Ok(exit.unwrap_or_else(|| Exit::quiet(ExitStatus::Internal)))
}

/// The first signal ends the machine in order, or finds it ending; another one ends the process without
/// waiting for disks or clients.
fn end_on(
    signals: Signals,
    main_loop: &mut MainLoop,
    controller: &Arc<Controller>,
    finished: &Finished,
    end_patience: EndPatience,
) {
    let (controller, finished) = (Arc::clone(controller), Rc::clone(finished));
    let signalled = Rc::new(Cell::new(false));
    main_loop.watch_signals(signals, move |signal| {
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
        if signalled.replace(true) {
            let why = format!("ended by {name}, before everything was finished in order");
            end_patience.shorten(HURRY);
            finished.set(Some(Exit::because(ExitStatus::Setup, why)));
        } else if !controller.is_ending() {
            let exit = Exit::because(ExitStatus::Success, format!("ended by {name}"));
            controller.end(exit, Cause::HostSignal);
        }
    });
}

/// Connects the serial port to the terminal. Raw mode comes last before the guest runs: errors
/// before this are printed as usual.
fn attach_console(
    main_loop: &mut MainLoop,
    config: &MachineConfig,
    machine: &Machine,
    sink: Option<Arc<dyn SerialSink>>,
) -> Result<Option<RawTerminal>, StartError> {
    let (SerialConfig::Stdio, Some(port), Some(sink)) = (&config.serial, &machine.serial, sink)
    else {
        return Ok(None);
    };
    let terminal = RawTerminal::enter().map_err(StartError::Terminal)?;
    if ConsoleInput::possible() {
        let quitting = Arc::clone(&machine.controller);
        let quit = move || quitting.quit(Cause::HostSignal);
        let port = Arc::clone(port);
        main_loop.subscribe(ConsoleInput::new(port, sink, terminal.is_some(), quit));
    }
    Ok(terminal)
}
