//! `qemu-io DEV "COMMAND"`: requests by hand, as the program `qemu-io` makes them, with its words.
//!
//! On a disk they go through a gate beside the guest's, which is open on a machine that stands still; on a node that has
//! none, through a backend for the command's time. Asynchronous requests (`aio_read`, `aio_write`) run on when the command
//! has been answered; what they have to say is printed when they end or, if it is wanted in answers, comes with that to the
//! next such `qemu-io` command, `aio_flush` for one, which waits for them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use event_listener::Event;
use parking_lot::Mutex;
use rustix::io::Errno;
use sluice_aio::{IoBuffer, current};
use sluice_block::driver::{Blkdebug, DebugEvent};
use sluice_block::error::errno_text;
use sluice_block::{Access, Backend, BlockError, Graph, Node, Permissions};

use super::Show;
use super::numbers::{rate, read_size, size, to_float};
use crate::qmp::commands::Monitor;

/// The most bytes of one request (QEMU's `BDRV_REQUEST_MAX_BYTES`).
const MAX_BYTES: u64 = 2_147_483_136;
/// What a buffer holds before something is read into it, and what is written without `-P`.
const DEFAULT_PATTERN: u8 = 0xcd;

/// The asynchronous requests of a monitor.
#[derive(Debug, Default)]
pub struct QemuIo {
    state: Mutex<State>,
    ended: Event,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    said: String,
}

impl QemuIo {
    fn take_said(&self) -> String {
        std::mem::take(&mut self.state.lock().said)
    }

    async fn flush(&self) {
        loop {
            let ended = self.ended.listen();
            if self.state.lock().running == 0 {
                return;
            }
            ended.await;
        }
    }

    fn begin(self: &Arc<Self>) -> Running {
        self.state.lock().running += 1;
        Running(Arc::clone(self))
    }
}

/// One asynchronous request.
struct Running(Arc<QemuIo>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state.lock().running -= 1;
        self.0.ended.notify(usize::MAX);
    }
}

/// What a data command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    WriteZeroes,
    Discard,
}

/// One data command, with its options.
#[derive(Clone, Copy, Debug)]
struct Request {
    operation: Operation,
    offset: u64,
    len: u64,
    pattern: Option<u8>,
    unmap: bool,
    fua: bool,
    quiet: bool,
}

/// What a data command is called, which options it has, and how it is explained.
struct Syntax {
    name: &'static str,
    options: &'static str,
    usage: &'static str,
    operation: Operation,
    asynchronous: bool,
}

const DATA: &[Syntax] = &[
    Syntax {
        name: "read",
        options: "qP:",
        usage: "read [-q] [-P pattern] off len -- reads a number of bytes at a specified offset",
        operation: Operation::Read,
        asynchronous: false,
    },
    Syntax {
        name: "write",
        options: "fqP:uz",
        usage: "write [-fquz] [-P pattern] off len -- writes a number of bytes at a specified offset",
        operation: Operation::Write,
        asynchronous: false,
    },
    Syntax {
        name: "aio_read",
        options: "qP:",
        usage: "aio_read [-q] [-P pattern] off len -- asynchronously reads a number of bytes",
        operation: Operation::Read,
        asynchronous: true,
    },
    Syntax {
        name: "aio_write",
        options: "fqP:uz",
        usage: "aio_write [-fquz] [-P pattern] off len -- asynchronously writes a number of bytes",
        operation: Operation::Write,
        asynchronous: true,
    },
    Syntax {
        name: "discard",
        options: "q",
        usage: "discard [-q] off len -- discards a number of bytes at a specified offset",
        operation: Operation::Discard,
        asynchronous: false,
    },
];

/// Why a command was not executed.
enum Refusal {
    /// The program says so.
    Said(String),
    /// The monitor does, in its answer.
    Answered(String),
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::Said(text)
    }
}

impl Refusal {
    fn by_monitor(error: &BlockError) -> Self {
        Self::Answered(format!("{error}\n"))
    }
}

/// Runs one command and returns the answer.
pub(super) async fn run(
    monitor: &Monitor,
    device: &str,
    command: &str,
    by_device_path: bool,
    show: Show,
) -> String {
    let target = match Target::find(&monitor.graph, device, by_device_path) {
        Ok(target) => target,
        Err(error) => return error,
    };
    let words: Vec<_> = command.split_ascii_whitespace().collect();
    let done = match words.split_first() {
        Some((name, arguments)) => execute(monitor, target, name, arguments, show).await,
        None => Ok(String::new()),
    };
    let (said, answer) = match done {
        Ok(said) | Err(Refusal::Said(said)) => (said, String::new()),
        Err(Refusal::Answered(answer)) => (String::new(), answer),
    };
    match show {
        Show::Print => {
            monitor.printer.print(&said).await;
            answer
        }
        Show::Answer => monitor.qemu_io.take_said() + &said + &answer,
    }
}

async fn execute(
    monitor: &Monitor,
    target: Target,
    name: &str,
    arguments: &[&str],
    show: Show,
) -> Result<String, Refusal> {
    let graph = &monitor.graph;
    if let Some(syntax) = DATA.iter().find(|syntax| syntax.name == name) {
        let request = parse(syntax, arguments)?;
        let session = Session::begin(graph, target, request.access())?;
        if !syntax.asynchronous {
            return Ok(session.run(request, syntax.name).await);
        }
        let running = monitor.qemu_io.begin();
        let printer = Arc::clone(&monitor.printer);
        // Polled at once as far as it goes: the order of the commands is that of the requests.
        current::spawn_local(async move {
            // The program's words for a failure.
            let name = match syntax.operation {
                Operation::Read => "readv",
                _ => syntax.name,
            };
            let said = session.run(request, name).await;
            match show {
                Show::Print => printer.print(&said).await,
                Show::Answer => running.0.state.lock().said.push_str(&said),
            }
            drop(running);
        })
        .detach();
        current::yield_now().await;
        return Ok(String::new());
    }
    let expect = |count: usize| match arguments.len() == count {
        true => Ok(()),
        false => {
            let given = arguments.len();
            Err(Refusal::Said(format!(
                "bad argument count {given} to {name}, expected {count} arguments\n"
            )))
        }
    };
    match name {
        "aio_flush" => {
            expect(0)?;
            monitor.qemu_io.flush().await;
            Ok(String::new())
        }
        "flush" => {
            expect(0)?;
            let session = Session::begin(graph, target, Access::NONE)?;
            let result = session.flush().await;
            result.map_err(|error| format!("flush failed: {}\n", reason(&error)))?;
            Ok(String::new())
        }
        "length" => {
            expect(0)?;
            Ok(format!("{}\n", size(to_float(target.node()?.len()))))
        }
        "truncate" => {
            expect(1)?;
            let len = read_size(arguments[0])?;
            let result = graph.resize(&target.node()?, len).await;
            result.map_err(|error| Refusal::by_monitor(&error))?;
            Ok(String::new())
        }
        "break" => {
            expect(2)?;
            let failed = |why: &str| format!("Could not set breakpoint: {why}\n");
            let node = target.blkdebug().ok_or_else(|| failed(NOT_SUPPORTED))?;
            let event = serde_json::Value::String(arguments[0].to_owned());
            let event: DebugEvent =
                serde_json::from_value(event).map_err(|_| failed("No such file or directory"))?;
            let set = debug(&node).map(|debug| debug.set_break(event, arguments[1]));
            match set {
                Some(Err(error)) => Err(failed(&error.to_string()).into()),
                _ => Ok(String::new()),
            }
        }
        "remove_break" => {
            expect(1)?;
            let tag = arguments[0];
            let failed = |why: &str| format!("Could not remove breakpoint {tag}: {why}\n");
            Ok(on_tag(&target, failed, |debug| debug.remove_break(tag))?)
        }
        "resume" => {
            expect(1)?;
            let failed = |why: &str| format!("Could not resume request: {why}\n");
            Ok(on_tag(&target, failed, |debug| debug.resume(arguments[0]))?)
        }
        "wait_break" => {
            expect(1)?;
            if let Some(node) = target.blkdebug()
                && let Some(debug) = debug(&node)
            {
                let waited = debug.wait_break(arguments[0]).await;
                waited.map_err(|error| format!("{error}\n"))?;
            }
            Ok(String::new())
        }
        _ => Err(Refusal::Said(format!("command \"{name}\" not found\n"))),
    }
}

const NOT_SUPPORTED: &str = "Operation not supported";

fn debug(node: &Node) -> Option<&Blkdebug> {
    node.as_blkdebug()
}

/// Does something with a breakpoint that must be there.
fn on_tag(
    target: &Target,
    failed: impl Fn(&str) -> String,
    action: impl FnOnce(&Blkdebug) -> Result<(), BlockError>,
) -> Result<String, String> {
    let node = target.blkdebug().ok_or_else(|| failed(NOT_SUPPORTED))?;
    match debug(&node).map(action) {
        Some(Err(_)) => Err(failed("No such file or directory")),
        _ => Ok(String::new()),
    }
}

/// Reads options and arguments of a data command, as `getopt` would.
fn parse(syntax: &Syntax, arguments: &[&str]) -> Result<Request, String> {
    let name = syntax.name;
    let mut letters = Vec::new();
    let mut pattern = None;
    let mut rest: VecDeque<&str> = arguments.iter().copied().collect();
    while let Some(group) = rest.front().and_then(|word| word.strip_prefix('-')) {
        if group.is_empty() {
            break;
        }
        rest.pop_front();
        let mut group = group.chars();
        while let Some(letter) = group.next() {
            let Some(at) = syntax.options.find(letter).filter(|_| letter != ':') else {
                let usage = syntax.usage;
                return Err(format!("{name}: invalid option -- '{letter}'\n{usage}\n"));
            };
            letters.push(letter);
            if syntax.options[at + 1..].starts_with(':') {
                let glued = group.as_str();
                let value = match glued {
                    "" => rest.pop_front().ok_or_else(|| {
                        let usage = syntax.usage;
                        format!("{name}: option requires an argument -- '{letter}'\n{usage}\n")
                    })?,
                    glued => glued,
                };
                pattern = Some(read_pattern(value)?);
                break;
            }
        }
    }
    let has = |letter: char| letters.contains(&letter);
    let (Some(offset), Some(len), 2) = (rest.front(), rest.back(), rest.len()) else {
        let count = arguments.len();
        return Err(match count < 2 {
            true => {
                format!("bad argument count {count} to {name}, expected at least 2 arguments\n")
            }
            false => format!("{}\n", syntax.usage),
        });
    };
    // The program looks at that only where it waits; elsewhere zeroes win.
    if has('z') && has('P') && !syntax.asynchronous {
        return Err("Only one of -z, -P, and -s can be specified at the same time\n".to_owned());
    }
    if has('u') && !has('z') {
        return Err("-u requires -z to be specified\n".to_owned());
    }
    let (offset, bytes) = (read_size(offset)?, read_size(len)?);
    if bytes > MAX_BYTES {
        return Err(format!("length cannot exceed {MAX_BYTES}, given {len}\n"));
    }
    let operation = match syntax.operation {
        Operation::Write if has('z') => Operation::WriteZeroes,
        operation => operation,
    };
    Ok(Request {
        operation,
        offset,
        len: bytes,
        pattern,
        unmap: has('u'),
        fua: has('f'),
        quiet: has('q'),
    })
}

fn read_pattern(text: &str) -> Result<u8, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u8::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text} is not a valid pattern byte\n"))
}

impl Request {
    fn access(self) -> Access {
        let used = match self.operation {
            Operation::Read => Permissions::CONSISTENT_READ,
            _ => Permissions::WRITE,
        };
        Access {
            used,
            shared: Permissions::all(),
        }
    }
}

/// What a command means: a disk, or a node.
enum Target {
    Disk(Arc<Backend>),
    Node(Arc<Node>),
}

impl Target {
    fn find(graph: &Graph, name: &str, by_device_path: bool) -> Result<Self, String> {
        if by_device_path {
            let backends = graph.backends();
            let backend = backends
                .into_iter()
                .find(|backend| backend.is_of_device(name));
            return backend
                .map(Self::Disk)
                .ok_or_else(|| format!("Error: Device '{name}' not found\n"));
        }
        if let Some(backend) = graph.backend(name) {
            return Ok(Self::Disk(backend));
        }
        let node = graph.node(name);
        node.map(Self::Node)
            .map_err(|_| format!("Error: Cannot find device='' nor node-name='{name}'\n"))
    }

    fn node(&self) -> Result<Arc<Node>, String> {
        match self {
            Self::Disk(backend) => backend.node().ok_or_else(|| "No medium found\n".to_owned()),
            Self::Node(node) => Ok(Arc::clone(node)),
        }
    }

    /// The fault injector of the node or of the first one below it that is one.
    fn blkdebug(&self) -> Option<Arc<Node>> {
        let mut node = self.node().ok()?;
        while node.as_blkdebug().is_none() {
            node = node.children().into_iter().next()?.1;
        }
        Some(node)
    }
}

/// A backend for the time of a command.
struct Session {
    graph: Arc<Graph>,
    backend: Arc<Backend>,
    is_own: bool,
}

impl Session {
    fn begin(graph: &Arc<Graph>, target: Target, access: Access) -> Result<Self, Refusal> {
        let (backend, is_own) = match target {
            Target::Disk(backend) => (backend, false),
            Target::Node(node) => {
                let tool = graph.add_tool(&node, access);
                (tool.map_err(|error| Refusal::by_monitor(&error))?, true)
            }
        };
        Ok(Self {
            graph: Arc::clone(graph),
            backend,
            is_own,
        })
    }

    async fn end(&self) {
        if self.is_own {
            self.graph.remove_backend(&self.backend).await;
        }
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let result = async {
            let token = self.backend.enter_as_tool().await?;
            self.backend.flush(&token).await
        };
        let result = result.await;
        self.end().await;
        result
    }

    /// Makes the request and says how it went.
    async fn run(&self, request: Request, name: &str) -> String {
        let clock = self.graph.clock();
        let began = clock.now();
        let result = self.make(request).await;
        let took = clock.now().saturating_sub(began);
        self.end().await;
        match result {
            Ok(mismatch) => {
                let report = report(request, took);
                mismatch.unwrap_or_default() + &report
            }
            Err(error) => format!("{name} failed: {}\n", reason(&error)),
        }
    }

    /// What a read found that is not as it should be.
    async fn make(&self, request: Request) -> Result<Option<String>, BlockError> {
        let Request { offset, len, .. } = request;
        let backend = &self.backend;
        let token = backend.enter_as_tool().await?;
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        match request.operation {
            Operation::Read => {
                let buffer = IoBuffer::alloc(bytes);
                backend.read(&token, offset, buffer.clone()).await?;
                let wrong = |pattern: &u8| buffer.to_vec().iter().any(|byte| byte != pattern);
                let wrong = request.pattern.as_ref().is_some_and(wrong);
                return Ok(wrong.then(|| {
                    format!("Pattern verification failed at offset {offset}, {len} bytes\n")
                }));
            }
            Operation::Write => {
                let buffer = IoBuffer::alloc(bytes);
                buffer.fill(0, bytes, request.pattern.unwrap_or(DEFAULT_PATTERN));
                backend.write(&token, offset, buffer).await?;
            }
            Operation::WriteZeroes => {
                backend
                    .write_zeroes(&token, offset, len, request.unmap)
                    .await?;
            }
            Operation::Discard => backend.discard(&token, offset, len).await?,
        }
        if request.fua {
            backend.flush(&token).await?;
        }
        Ok(None)
    }
}

fn report(request: Request, took: Duration) -> String {
    if request.quiet {
        return String::new();
    }
    let Request { offset, len, .. } = request;
    let verb = match request.operation {
        Operation::Read => "read",
        Operation::Write | Operation::WriteZeroes => "wrote",
        Operation::Discard => "discard",
    };
    let rate = rate(len, took);
    format!("{verb} {len}/{len} bytes at offset {offset}\n{rate}")
}

/// The error's text as `strerror` has it.
fn reason(error: &BlockError) -> String {
    let errno = match error {
        BlockError::OutOfRange { .. } => libc::EIO,
        other => other.errno(),
    };
    errno_text(Errno::from_raw_os_error(errno))
}
