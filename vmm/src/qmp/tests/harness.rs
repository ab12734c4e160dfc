//! A QMP server without a machine, and a client that blocks.
//!
//! The server runs in an event loop of the test's thread; the test's body runs in one of the loop's
//! worker threads and talks to the server over real sockets.

use std::io::{PipeReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_aio::{AioContext, Clock, EventLoop, LoopConfig, current};
use sluice_block::Graph;
use sluice_tests::qmp::Schema;
use tempfile::TempDir;

use crate::chardev::{
    Backend, ChardevConfig, Chardevs, Endpoints, Inherited, SocketAddress, SocketConfig, SocketEnd,
};
use crate::console::{PrintPlace, Printer, QueuedOutput};
use crate::control::{
    Accelerator, Cause, ControlError, LocalFuture, RunState, VmControl, VmEvent, VmEventSink,
};
use crate::iothreads::IoThreads;
use crate::machine::config::MachineKind;
use crate::qmp::json::{Framer, parse};
use crate::qmp::schema::schema;
use crate::qmp::{EventBus, Monitor, MonitorMode, QmpServer};

/// A test that hangs fails after this time.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A machine that only remembers what was asked of it.
pub(super) struct FakeVm {
    state: Mutex<RunState>,
    events: Arc<EventBus>,
    quit: Mutex<Option<Cause>>,
}

impl VmControl for FakeVm {
    fn name(&self) -> Option<String> {
        Some("fake".into())
    }

    fn uuid(&self) -> Option<String> {
        None
    }

    fn machine_kind(&self) -> MachineKind {
        MachineKind::Pc
    }

    fn cpu_threads(&self) -> Vec<u32> {
        vec![10, 11]
    }

    fn accelerator(&self) -> Accelerator {
        Accelerator::Qtest
    }

    fn status(&self) -> RunState {
        *self.state.lock()
    }

    fn pause(&self) -> LocalFuture<'_, Result<(), ControlError>> {
        Box::pin(async {
            *self.state.lock() = RunState::Paused;
            VmEventSink::emit(&*self.events, VmEvent::Stop);
            Ok(())
        })
    }

    fn resume(&self) -> LocalFuture<'_, Result<(), ControlError>> {
        Box::pin(async {
            *self.state.lock() = RunState::Running;
            VmEventSink::emit(&*self.events, VmEvent::Resume);
            Ok(())
        })
    }

    fn powerdown(&self) -> Result<(), ControlError> {
        let state = self.status();
        if state != RunState::Running {
            let verb = "system_powerdown";
            return Err(ControlError::WrongState { verb, state });
        }
        VmEventSink::emit(&*self.events, VmEvent::Powerdown);
        Ok(())
    }

    fn reset(&self, cause: Cause) -> LocalFuture<'_, Result<(), ControlError>> {
        Box::pin(async move {
            VmEventSink::emit(&*self.events, VmEvent::Reset(cause));
            Ok(())
        })
    }

    fn quit(&self, cause: Cause) {
        *self.quit.lock() = Some(cause);
        VmEventSink::emit(&*self.events, VmEvent::Shutdown(cause));
    }
}

/// What a test's body works with.
pub(super) struct World {
    pub(super) directory: TempDir,
    pub(super) socket: std::path::PathBuf,
    pub(super) graph: Arc<Graph>,
    pub(super) vm: Arc<FakeVm>,
    pub(super) events: Arc<EventBus>,
    pub(super) clock: Clock,
    /// What requests by hand print.
    printed: PipeReader,
    pub(super) main: AioContext,
}

impl World {
    /// A client that has negotiated.
    pub(super) fn client(&self) -> Client {
        let mut client = Client::connect(&self.socket);
        client.greet();
        client
    }

    pub(super) fn quit_cause(&self) -> Option<Cause> {
        *self.vm.quit.lock()
    }

    /// What requests by hand have printed since this was last asked for.
    pub(super) fn printed(&self) -> String {
        let mut text = Vec::new();
        rustix::io::ioctl_fionbio(&self.printed, true).unwrap();
        let end = (&self.printed).read_to_end(&mut text).unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::WouldBlock);
        String::from_utf8(text).unwrap()
    }

    /// Moves the manual clock of [`run_with_clock`].
    pub(super) fn advance(&self, by: Duration) {
        assert!(self.clock.advance(by));
        self.main.notify();
    }

    /// A file of `len` bytes that are all `byte`.
    pub(super) fn image(&self, name: &str, len: usize, byte: u8) -> String {
        let path = self.path(name);
        std::fs::write(&path, vec![byte; len]).unwrap();
        path
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.directory
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    }
}

/// Runs `body` against a server on a socket of its own.
pub(super) fn run(body: impl FnOnce(&World) + Send + 'static) {
    run_with_clock(Clock::real(), body);
}

/// As [`run`], with the loop's timers on `clock`.
pub(super) fn run_with_clock(clock: Clock, body: impl FnOnce(&World) + Send + 'static) {
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("main", &config).unwrap();
    let main = event_loop.context();
    let directory = tempfile::tempdir().unwrap();
    let test = async move {
        let events = EventBus::new(main.clone());
        let graph = Graph::new(Arc::clone(&events) as _, clock.clone());
        let vm = Arc::new(FakeVm {
            state: Mutex::new(RunState::Running),
            events: Arc::clone(&events),
            quit: Mutex::default(),
        });
        let socket = directory.path().join("qmp");
        let configs = ["qmp", "pretty", "lines"].map(|id| ChardevConfig {
            option: "--chardev",
            id: id.to_owned(),
            backend: Backend::Socket(SocketConfig {
                address: SocketAddress::Unix(directory.path().join(id)),
                end: SocketEnd::Server,
                wait: false,
            }),
        });
        let chardevs = Arc::new(Chardevs::new(&configs));
        let (printed, print_to) = std::io::pipe().unwrap();
        let print_to = Arc::new(QueuedOutput::start(print_to.into(), "test").unwrap());
        let monitor = Monitor {
            chardevs: Arc::clone(&chardevs),
            qemu_io: Arc::default(),
            printer: Arc::new(Printer::new(PrintPlace::Shared(print_to))),
            descriptors: Arc::default(),
            graph: Arc::clone(&graph),
            vm: Arc::clone(&vm) as _,
            iothreads: Arc::new(IoThreads::new(LoopConfig::default())),
            devices: None,
            main: main.clone(),
        };
        let mut server = QmpServer::new(monitor, Arc::clone(&events));
        let mut endpoints = Endpoints::open(&configs, Inherited::default()).unwrap();
        let mode = MonitorMode::Control { pretty: false };
        server.serve(endpoints.take("qmp").unwrap(), mode, chardevs.attach("qmp"));
        let mode = MonitorMode::Control { pretty: true };
        server.serve(
            endpoints.take("pretty").unwrap(),
            mode,
            chardevs.attach("pretty"),
        );
        let mode = MonitorMode::Readline;
        server.serve(
            endpoints.take("lines").unwrap(),
            mode,
            chardevs.attach("lines"),
        );
        let world = World {
            directory,
            socket,
            graph: Arc::clone(&graph),
            vm,
            events,
            clock,
            printed,
            main,
        };
        let world = current::blocking(move || {
            body(&world);
            world
        })
        .await
        .expect("the test's body panicked");
        graph.jobs().shut_down().await;
        server.shut_down().await;
        assert!(!world.socket.exists(), "the socket's file is removed");
    };
    event_loop.run_until(test).unwrap();
}

/// What all that the server says is held against.
static SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::new(&serde_json::to_value(schema()).unwrap()));

/// A client that blocks, and that keeps events aside while it waits for replies.
pub(super) struct Client {
    pub(super) stream: UnixStream,
    framer: Framer,
    events: Vec<Value>,
}

impl Client {
    pub(super) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            framer: Framer::default(),
            events: Vec::new(),
        }
    }

    /// Reads the greeting and negotiates.
    pub(super) fn greet(&mut self) {
        let greeting = self.message().expect("a greeting");
        assert!(
            greeting["QMP"]["version"]["qemu"]["major"].is_u64(),
            "{greeting}"
        );
        assert_eq!(
            self.execute(&json!({"execute": "qmp_capabilities"})),
            json!({"return": {}})
        );
    }

    /// Sends bytes as they are; nothing ends a message but its last bracket.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next message, whatever it is; none at the end of the stream.
    pub(super) fn message(&mut self) -> Option<Value> {
        loop {
            if let Some(message) = self.framer.pop() {
                let message = parse(&message.unwrap()).unwrap();
                if message.get("event").is_some() {
                    SCHEMA.check_event(&message).unwrap();
                }
                return Some(message);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.framer.push(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no message: {error}"),
            }
        }
    }

    /// The next reply.
    pub(super) fn reply(&mut self) -> Value {
        loop {
            let message = self.message().expect("a reply");
            if message.get("event").is_none() {
                return message;
            }
            self.events.push(message);
        }
    }

    /// The next event, from those kept aside first.
    pub(super) fn event(&mut self) -> Value {
        if !self.events.is_empty() {
            return self.events.remove(0);
        }
        let message = self.message().expect("an event");
        assert!(message.get("event").is_some(), "{message}");
        message
    }

    /// The events that came before what was read last, and that nobody has asked for.
    pub(super) fn events_so_far(&self) -> &[Value] {
        &self.events
    }

    /// Skips events until one of that name.
    pub(super) fn wait_event(&mut self, name: &str) -> Value {
        loop {
            let event = self.event();
            if event["event"] == name {
                return event;
            }
        }
    }

    pub(super) fn execute(&mut self, request: &Value) -> Value {
        self.send(request.to_string().as_bytes());
        let reply = self.reply();
        let command = request.get("execute").or(request.get("exec-oob"));
        if let Some(command) = command.and_then(Value::as_str) {
            SCHEMA.check_reply(command, &reply).unwrap();
        }
        reply
    }

    /// Executes a command that must succeed, and returns what it returns.
    pub(super) fn ok(&mut self, command: &str, arguments: Value) -> Value {
        let mut reply = self.execute(&request(command, arguments));
        assert!(reply.get("return").is_some(), "{command}: {reply}");
        reply["return"].take()
    }

    /// Executes a command that must fail, and returns class and description.
    pub(super) fn fails(&mut self, command: &str, arguments: Value) -> (String, String) {
        let reply = self.execute(&request(command, arguments));
        let error = reply
            .get("error")
            .unwrap_or_else(|| panic!("{command}: {reply}"));
        let text = |member: &str| error[member].as_str().unwrap().to_owned();
        (text("class"), text("desc"))
    }

    /// As [`Client::fails`] with class `GenericError`, whose description it returns.
    pub(super) fn generic(&mut self, command: &str, arguments: Value) -> String {
        let (class, desc) = self.fails(command, arguments);
        assert_eq!(class, "GenericError", "{desc}");
        desc
    }
}

fn request(command: &str, arguments: Value) -> Value {
    let mut request = json!({"execute": command});
    request["arguments"] = arguments;
    request
}
