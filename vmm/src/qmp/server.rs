//! Monitors on character devices: accepting, and one pair of tasks per client.
//!
//! Everything runs in the main context. A client's *reader* task takes messages off the stream and
//! executes them one after the other; its *writer* task sends what is in the [`Outbox`]. A client
//! that disconnects takes its session with it and nothing else: jobs it started go on.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{self, Either};
use sluice_aio::{JoinHandle, current};

use super::commands::Monitor;
use super::console::Console;
use super::control;
use super::events::EventBus;
use super::json::Layout;
use super::outbox::{Form, Outbox};
use crate::chardev::{Attachment, Endpoint, Input, Listener, Output, SocketFile, Stream};

/// Clients at once, over all monitors; more wait in the sockets' backlogs.
const MAX_CLIENTS: usize = 64;
/// Bytes taken off a stream at once. Also bounds how many messages can wait to be executed.
pub(super) const READ_SIZE: usize = 4096;
/// What needs a descriptor and finds none left is tried again after this long.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long the end of the process waits for clients to take their last events.
pub(super) const FAREWELL: Duration = Duration::from_millis(500);

/// How a monitor speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MonitorMode {
    /// QMP, for programs.
    Control {
        /// Replies and events over several lines.
        pretty: bool,
    },
    /// Lines of text, for people.
    Readline,
}

/// The sessions of all monitors.
///
/// Lives in the main context and is made and dropped there. Dropping it closes all sessions and
/// removes the sockets' files.
pub struct QmpServer {
    shared: Rc<Shared>,
    listeners: Vec<JoinHandle<()>>,
    /// Removed when dropped.
    files: Vec<SocketFile>,
}

struct Shared {
    monitor: Arc<Monitor>,
    events: Arc<EventBus>,
    sessions: RefCell<Vec<std::sync::Weak<Outbox>>>,
    /// Clients that are connected now.
    clients: Cell<usize>,
    /// A client has gone.
    client_gone: Event,
}

/// A client's place among [`MAX_CLIENTS`]. Its writer has it, which ends with the session: the reader may be in the
/// middle of a command that hangs, when its client has long gone.
struct Place(Rc<Shared>);

impl Place {
    fn take(shared: &Rc<Shared>) -> Self {
        shared.clients.set(shared.clients.get() + 1);
        Self(Rc::clone(shared))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.clients.set(self.0.clients.get().saturating_sub(1));
        self.0.client_gone.notify(usize::MAX);
    }
}

impl QmpServer {
    /// A server without sockets, whose sessions hear the events of `events`. Call it in a task of
    /// the main context.
    pub fn new(monitor: Monitor, events: Arc<EventBus>) -> Self {
        let shared = Shared {
            monitor: Arc::new(monitor),
            events,
            sessions: RefCell::default(),
            clients: Cell::new(0),
            client_gone: Event::new(),
        };
        Self {
            shared: Rc::new(shared),
            listeners: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Serves a monitor on `endpoint`, which counts as used by `attachment`. Call it in a task of the main
    /// context.
    pub fn serve(&mut self, endpoint: Endpoint, mode: MonitorMode, attachment: Attachment) {
        match endpoint {
            Endpoint::Null => {}
            Endpoint::Connected(stream) => admit(&self.shared, stream, mode, attachment),
            Endpoint::Listening(mut listener) => {
                self.files.extend(listener.take_file());
                let accepting = accept(Rc::clone(&self.shared), listener, mode, attachment);
                self.listeners.push(current::spawn_local(accepting));
            }
        }
    }

    /// Ends all sessions: what is queued for the clients is sent, for a short time at most. To be
    /// awaited before the process ends, in the main context.
    pub async fn shut_down(mut self) {
        for listener in self.listeners.drain(..) {
            listener.cancel();
        }
        let sessions = self.shared.living_sessions();
        for session in &sessions {
            session.finish();
        }
        let flushed = future::join_all(sessions.iter().map(|session| session.flushed()));
        let timeout = current::sleep(FAREWELL);
        future::select(Box::pin(flushed), Box::pin(timeout)).await;
    }
}

impl Drop for QmpServer {
    fn drop(&mut self) {
        for listener in self.listeners.drain(..) {
            listener.cancel();
        }
        for session in self.shared.living_sessions() {
            session.abandon();
        }
    }
}

impl Shared {
    fn living_sessions(&self) -> Vec<Arc<Outbox>> {
        let mut sessions = self.sessions.borrow_mut();
        sessions.retain(|session| session.strong_count() > 0);
        sessions
            .iter()
            .filter_map(std::sync::Weak::upgrade)
            .collect()
    }

    /// Waits until another client may be admitted.
    async fn room(&self) {
        loop {
            let gone = self.client_gone.listen();
            if self.clients.get() < MAX_CLIENTS {
                return;
            }
            gone.await;
        }
    }
}

fn admit(shared: &Rc<Shared>, stream: Stream, mode: MonitorMode, attachment: Attachment) {
    let form = match mode {
        MonitorMode::Control { pretty: false } => Form::Messages(Layout::Line),
        MonitorMode::Control { pretty: true } => Form::Messages(Layout::Pretty),
        MonitorMode::Readline => Form::Text,
    };
    let outbox = Outbox::new(form);
    shared.events.subscribe(&outbox);
    shared.sessions.borrow_mut().push(Arc::downgrade(&outbox));
    let monitor = shared.monitor.for_client();
    let place = Place::take(shared);
    let client = attachment.client();
    let Stream { input, output } = stream;
    let writing = {
        let outbox = Arc::clone(&outbox);
        async move {
            write(output, outbox).await;
            drop((place, client, attachment));
        }
    };
    current::spawn_local(writing).detach();
    let reading = async move {
        match mode {
            MonitorMode::Control { .. } => control::converse(input, outbox, monitor).await,
            MonitorMode::Readline => converse(input, outbox, monitor).await,
        }
    };
    current::spawn_local(reading).detach();
}

/// Accepts clients until it is cancelled.
async fn accept(shared: Rc<Shared>, listener: Listener, mode: MonitorMode, attachment: Attachment) {
    loop {
        shared.room().await;
        match listener.accept() {
            Ok(Some(stream)) => admit(&shared, stream, mode, attachment.clone()),
            Ok(None) => {
                if current::readable(&listener).await.is_err() {
                    current::sleep(RETRY_PAUSE).await;
                }
            }
            Err(error) => {
                let chardev = attachment.label();
                tracing::warn!(%error, chardev, "can't accept a monitor's client");
                current::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// The writer task of one client.
async fn write(output: Output, outbox: Arc<Outbox>) {
    {
        let writing = std::pin::pin!(outbox.write_to(&output));
        let abandoned = std::pin::pin!(outbox.abandoned());
        if let Either::Left((Err(error), _)) = future::select(writing, abandoned).await {
            tracing::debug!(%error, "a monitor's client is gone");
        }
    }
    outbox.abandon();
    // The other descriptor is the reader's, who may be in the middle of a command; the client
    // shall see the end now.
    output.close();
}

/// The reader task of a client that reads lines of text.
async fn converse(input: Input, outbox: Arc<Outbox>, monitor: Arc<Monitor>) {
    let mut console = Console::new(monitor, Arc::clone(&outbox), input.comes_unseen());
    let mut buffer = [0; READ_SIZE];
    let mut descriptors = Vec::new();
    loop {
        while control::attend(&input, &outbox, console.step()).await {
            if !outbox.has_room().await {
                return;
            }
        }
        let read = {
            let reading = std::pin::pin!(input.read(&mut buffer, &mut descriptors));
            let abandoned = std::pin::pin!(outbox.abandoned());
            match future::select(reading, abandoned).await {
                Either::Left((read, _)) => read,
                Either::Right(_) => break outbox.abandon(),
            }
        };
        // No command takes one. Kept, they would be as many as a client likes.
        descriptors.clear();
        match read {
            Ok(0) => break outbox.finish(),
            Ok(count) => console.push(buffer.get(..count).unwrap_or_default()),
            Err(error) => {
                tracing::debug!(%error, "a monitor's client is gone");
                break outbox.abandon();
            }
        }
    }
}
