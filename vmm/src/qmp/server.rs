//! QMP on Unix sockets: listening, accepting, and one pair of tasks per client.
//!
//! Everything runs in the main context. A client's *reader* task takes messages off the socket and
//! executes them one after the other; its *writer* task sends what is in the [`Outbox`]. A client
//! that disconnects takes its session with it and nothing else: jobs it started go on.

use std::cell::{Cell, RefCell};
use std::io::{self, Read as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{self, Either};
use sluice_aio::{JoinHandle, current};

use super::commands::Monitor;
use super::events::EventBus;
use super::json::Framer;
use super::outbox::Outbox;
use super::session::Session;
use super::socket::{self, SocketError, SocketFile};
use crate::cli::QmpSocket;

/// Clients at once, over all sockets; more wait in the sockets' backlogs.
const MAX_CLIENTS: usize = 64;
/// Bytes taken off a socket at once. Also bounds how many messages can wait to be executed.
const READ_SIZE: usize = 4096;
/// What needs a descriptor and finds none left is tried again after this long.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long the end of the process waits for clients to take their last events.
const FAREWELL: Duration = Duration::from_millis(500);

/// The sessions of all sockets.
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

/// A client's place among [`MAX_CLIENTS`]; its tasks share it, and the last one gives it back.
struct Place(Rc<Shared>);

impl Place {
    fn take(shared: &Rc<Shared>) -> Rc<Self> {
        shared.clients.set(shared.clients.get() + 1);
        Rc::new(Self(Rc::clone(shared)))
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

    /// Serves QMP on `socket`: listens on it, or connects to it. Call it in a task of the main
    /// context.
    ///
    /// # Errors
    /// [`SocketError`], which names the path.
    pub fn serve(&mut self, socket: &QmpSocket) -> Result<(), SocketError> {
        if socket.server {
            let (listener, file) = socket::listen(&socket.path)?;
            self.files.push(file);
            let shared = Rc::clone(&self.shared);
            let path = socket.path.clone();
            let task = current::spawn_local(accept(shared, listener, path));
            self.listeners.push(task);
        } else {
            self.admit(socket::connect(&socket.path)?);
        }
        Ok(())
    }

    /// Starts a session on a connected stream that does not block.
    pub fn admit(&self, stream: UnixStream) {
        admit(&self.shared, stream);
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

fn admit(shared: &Rc<Shared>, stream: UnixStream) {
    // The reader and the writer wait for different things of the same socket; each needs a
    // descriptor of its own for that.
    let writer = match stream.try_clone() {
        Ok(writer) => writer,
        Err(error) => {
            tracing::warn!(%error, "no descriptor for a QMP client; turning it away");
            return;
        }
    };
    let outbox = Outbox::new();
    shared.events.subscribe(&outbox);
    shared.sessions.borrow_mut().push(Arc::downgrade(&outbox));
    let session = Session::new(Arc::clone(&shared.monitor), Arc::clone(&outbox));
    let monitor = Arc::clone(&shared.monitor);
    let place = Place::take(shared);
    let writing = {
        let (outbox, place) = (Arc::clone(&outbox), Rc::clone(&place));
        async move {
            write(writer, outbox).await;
            drop(place);
        }
    };
    current::spawn_local(writing).detach();
    let reading = async move {
        read(stream, session, outbox, monitor).await;
        drop(place);
    };
    current::spawn_local(reading).detach();
}

/// Accepts clients until it is cancelled.
async fn accept(shared: Rc<Shared>, listener: UnixListener, path: PathBuf) {
    loop {
        shared.room().await;
        match listener.accept() {
            Ok((stream, _)) => match stream.set_nonblocking(true) {
                Ok(()) => admit(&shared, stream),
                Err(error) => tracing::warn!(%error, "a QMP client can't be served"),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if current::readable(&listener).await.is_err() {
                    current::sleep(RETRY_PAUSE).await;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                report(&path, &error);
                current::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

fn report(path: &Path, error: &io::Error) {
    tracing::warn!(%error, path = %path.display(), "can't accept QMP clients");
}

/// The writer task of one client.
async fn write(stream: UnixStream, outbox: Arc<Outbox>) {
    {
        let writing = std::pin::pin!(outbox.write_to(&stream));
        let abandoned = std::pin::pin!(outbox.abandoned());
        if let Either::Left((Err(error), _)) = future::select(writing, abandoned).await {
            tracing::debug!(%error, "a QMP client is gone");
        }
    }
    outbox.abandon();
    // The other descriptor is the reader's, who may be in the middle of a command; the client
    // shall see the end now.
    drop(stream.shutdown(std::net::Shutdown::Both));
}

/// The reader task of one client.
async fn read(
    mut stream: UnixStream,
    mut session: Session,
    outbox: Arc<Outbox>,
    monitor: Arc<Monitor>,
) {
    let mut framer = Framer::default();
    let mut buffer = [0; READ_SIZE];
    loop {
        while let Some(message) = framer.pop() {
            let after_reply = session.handle(message).await;
            if let Some(after_reply) = after_reply {
                outbox.flushed_or(FAREWELL).await;
                after_reply(&monitor);
            }
            if !outbox.has_room().await {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => break outbox.finish(),
            Ok(count) => framer.push(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let readable = std::pin::pin!(current::readable(&stream));
                let abandoned = std::pin::pin!(outbox.abandoned());
                match future::select(readable, abandoned).await {
                    Either::Left((Ok(()), _)) => {}
                    Either::Left((Err(_), _)) => current::sleep(RETRY_PAUSE).await,
                    Either::Right(_) => break outbox.abandon(),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::debug!(%error, "a QMP client is gone");
                break outbox.abandon();
            }
        }
    }
}
