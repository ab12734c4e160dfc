//! A blocking client of the control socket (QMP).
//!
//! One thread reads the socket and sorts replies from events. Commands are issued one at a time;
//! events are kept until somebody waits for them. Every wait has a time limit and says, when that
//! is over, what it had been waiting for and what came instead. Used from test threads.

use std::{
    collections::VecDeque,
    io::{self, BufReader, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub use schema::Schema;
use serde::Deserialize;
use serde_json::{Value, json};

/// How long a reply may take. The machine may be emulated in software twice over.
const REPLY: Duration = Duration::from_secs(60);

/// How often a socket that is not there yet is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// What can go wrong with a command.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The command was refused by the other side.
    #[error("{command}: {class}: {desc}")]
    Refused {
        /// The command's name.
        command: String,
        /// QMP's error class.
        class: String,
        /// The text.
        desc: String,
    },
    /// Nothing came in time.
    #[error("no {what} within {seconds} s; last heard: {heard}")]
    Timeout {
        /// What had been waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// The last events, or how the connection ended.
        heard: String,
    },
    /// The other side closed the connection or sent what is not QMP.
    #[error("connection lost while waiting for {0}")]
    Lost(String),
    /// The machine says what is not in its schema.
    #[error("against the schema: {0}")]
    Untrue(String),
    /// The socket failed.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
}

impl QmpError {
    /// The error class, if the command was refused.
    #[must_use]
    pub fn class(&self) -> Option<&str> {
        match self {
            Self::Refused { class, .. } => Some(class),
            _ => None,
        }
    }
}

/// An event as it came.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Its name, e.g. `BLOCK_JOB_READY`.
    pub event: String,
    /// Its data; null if it has none.
    #[serde(default)]
    pub data: Value,
    /// Its time stamp.
    pub timestamp: Timestamp,
    /// When this client read it.
    #[serde(skip, default = "Instant::now")]
    pub received: Instant,
}

/// The sender's clock, since the epoch.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// And microseconds.
    pub microseconds: i64,
}

impl Event {
    /// A text member of the data, or "".
    #[must_use]
    pub fn text(&self, member: &str) -> &str {
        self.data[member].as_str().unwrap_or_default()
    }
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    closed: bool,
    /// What events are held against, if anything.
    schema: Option<Arc<Schema>>,
    /// What of them the schema does not allow.
    untrue: Option<String>,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection after the handshake.
pub struct Qmp {
    stream: UnixStream,
    replies: mpsc::Receiver<Value>,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    greeting: Value,
    next_id: u64,
    schema: Option<Arc<Schema>>,
}

impl Qmp {
    /// Connects, waiting up to `limit` for the socket to appear, and negotiates.
    ///
    /// # Errors
    /// The socket did not appear or did not greet in time.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => std::thread::sleep(RETRY),
                Err(error) => {
                    let what = format!("connection to {}", path.display());
                    let heard = error.to_string();
                    return Err(QmpError::Timeout {
                        what,
                        seconds: limit.as_secs(),
                        heard,
                    });
                }
            }
        };
        Self::over(
            stream,
            deadline.max(Instant::now() + RETRY) - Instant::now(),
        )
    }

    /// Negotiates on a connected stream, waiting up to `limit` for the greeting.
    ///
    /// # Errors
    /// The other side did not greet in time.
    pub fn over(stream: UnixStream, limit: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + limit;
        let mut qmp = Self::on_stream(stream)?;
        qmp.greeting = qmp.reply("greeting", deadline, limit)?;
        if qmp.greeting.get("QMP").is_none() {
            return Err(QmpError::Lost(format!("greeting, got {}", qmp.greeting)));
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn on_stream(stream: UnixStream) -> Result<Self, QmpError> {
        let shared = Arc::new(Shared::default());
        let (sender, replies) = mpsc::channel();
        let reader = std::thread::Builder::new().name("qmp".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            let input = BufReader::new(stream.try_clone()?);
            move || read(input, &sender, &shared)
        })?;
        let greeting = Value::Null;
        Ok(Self {
            stream,
            replies,
            shared,
            reader: Some(reader),
            greeting,
            next_id: 0,
            schema: None,
        })
    }

    /// Asks for the schema, and from now on holds all replies and events against it: what it does not allow is
    /// [`QmpError::Untrue`] for the command or the wait at hand, or a panic at the latest when the client is dropped.
    ///
    /// # Errors
    /// There is no schema.
    pub fn hold_to_schema(&mut self) -> Result<(), QmpError> {
        let answer = self.execute("query-qmp-schema", &json!({}))?;
        let schema = Arc::new(Schema::new(&answer));
        self.shared.lock().schema = Some(Arc::clone(&schema));
        self.schema = Some(schema);
        Ok(())
    }

    fn check_truth(&self, command: &str, reply: &Value) -> Result<(), QmpError> {
        let checked = self.schema.as_ref();
        let checked = checked.map_or(Ok(()), |schema| schema.check_reply(command, reply));
        checked.map_err(QmpError::Untrue)
    }

    /// The greeting.
    #[must_use]
    pub const fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Issues a command and returns its result.
    ///
    /// # Errors
    /// The command was refused, or no reply came.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        self.next_id += 1;
        let id = self.next_id;
        let request = json!({"execute": command, "arguments": arguments, "id": id});
        self.stream.write_all(request.to_string().as_bytes())?;
        loop {
            let mut reply = self.reply(command, Instant::now() + REPLY, REPLY)?;
            if reply["id"] != id {
                // The answer to an earlier command whose wait had ended.
                continue;
            }
            self.check_truth(command, &reply)?;
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
            let text = |member: &str| reply["error"][member].as_str().unwrap_or("?").to_owned();
            let command = command.to_owned();
            return Err(QmpError::Refused {
                command,
                class: text("class"),
                desc: text("desc"),
            });
        }
    }

    fn reply(&self, what: &str, deadline: Instant, limit: Duration) -> Result<Value, QmpError> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.replies
            .recv_timeout(left)
            .map_err(|error| match error {
                mpsc::RecvTimeoutError::Disconnected => QmpError::Lost(what.to_owned()),
                mpsc::RecvTimeoutError::Timeout => QmpError::Timeout {
                    what: format!("reply to {what}"),
                    seconds: limit.as_secs(),
                    heard: last(&self.shared.lock().events),
                },
            })
    }

    /// Takes the oldest kept event for which `wanted` holds, waiting for it if need be. Other
    /// events stay for others to wait for.
    ///
    /// # Errors
    /// It did not come in time, or the connection ended; the message names `what`.
    pub fn wait_event(
        &self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Event, QmpError> {
        let deadline = Instant::now() + limit;
        let mut inbox = self.shared.lock();
        loop {
            if let Some(untrue) = &inbox.untrue {
                return Err(QmpError::Untrue(untrue.clone()));
            }
            if let Some(at) = inbox.events.iter().position(&mut wanted) {
                return inbox
                    .events
                    .remove(at)
                    .ok_or_else(|| QmpError::Lost(what.to_owned()));
            }
            if inbox.closed {
                return Err(QmpError::Lost(format!(
                    "{what}; last: {}",
                    last(&inbox.events)
                )));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let heard = last(&inbox.events);
                let what = what.to_owned();
                return Err(QmpError::Timeout {
                    what,
                    seconds: limit.as_secs(),
                    heard,
                });
            }
            let waited = self.shared.changed.wait_timeout(inbox, left);
            inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Self::wait_event`], for the event `name` of the job `device`.
    ///
    /// # Errors
    /// As there.
    pub fn wait_job_event(
        &self,
        name: &str,
        device: &str,
        limit: Duration,
    ) -> Result<Event, QmpError> {
        self.wait_event(&format!("{name} of {device}"), limit, |event| {
            event.event == name && event.text("device") == device
        })
    }

    /// A copy of all kept events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.shared.lock().events.iter().cloned().collect()
    }

    /// Waits until the other side closes the connection, as it does when it ends.
    ///
    /// # Errors
    /// It did not within `limit`.
    pub fn wait_closed(&self, limit: Duration) -> Result<(), QmpError> {
        match self.wait_event("end of the connection", limit, |_| false) {
            Err(QmpError::Lost(_)) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        // Wakes the reader, which holds a duplicate of the socket.
        let _already_closed = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _panicked = reader.join();
        }
        let untrue = self.shared.lock().untrue.take();
        if let Some(untrue) = untrue.filter(|_| !std::thread::panicking()) {
            panic!("against the schema: {untrue}");
        }
    }
}

/// Sorts what comes until the connection ends. Runs in a thread of its own.
fn read(input: impl io::Read, replies: &mpsc::Sender<Value>, shared: &Shared) {
    for value in serde_json::Deserializer::from_reader(input).into_iter::<Value>() {
        let Ok(value) = value else { break };
        if value.get("event").is_some() {
            let schema = shared.lock().schema.clone();
            if let Some(Err(untrue)) = schema.map(|schema| schema.check_event(&value)) {
                shared.lock().untrue.get_or_insert(untrue);
            }
            let Ok(event) = serde_json::from_value::<Event>(value) else {
                break;
            };
            shared.lock().events.push_back(event);
            shared.changed.notify_all();
        } else if replies.send(value).is_err() {
            break;
        }
    }
    shared.lock().closed = true;
    shared.changed.notify_all();
}

/// The last few events, for a message.
fn last(events: &VecDeque<Event>) -> String {
    const FEW: usize = 5;
    if events.is_empty() {
        return "no events".to_owned();
    }
    let names: Vec<_> = events
        .iter()
        .skip(events.len().saturating_sub(FEW))
        .map(|event| format!("{} {}", event.event, event.data))
        .collect();
    names.join(", ")
}

mod schema;
#[cfg(test)]
mod tests;
