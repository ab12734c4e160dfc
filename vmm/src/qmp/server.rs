//! QMP on Unix sockets: listening, accepting, and one pair of tasks per client.
//!
//! Everything runs in the main context. A client's *reader* task takes messages off the socket and
//! executes them one after the other; its *writer* task sends what is in the [`Outbox`]. A client
//! that disconnects takes its session with it and nothing else: jobs it started go on.

use std::cell::RefCell;
use std::io::{self, Read as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{self, Either};
use sluice_aio::{JoinHandle, current};

use super::commands::Monitor;
use super::events::EventBus;
use super::json::Framer;
use super::outbox::Outbox;
use super::session::Session;
use super::socket::{self, SocketError, SocketFile};
use crate::cli::QmpSocket;

/// Clients at once, over all sockets; more are turned away.
const MAX_CLIENTS: usize = 64;
/// Bytes taken off a socket at once. Also bounds how many messages can wait to be executed.
const READ_SIZE: usize = 4096;
/// After an error that repeats at once (no descriptors left), accepting pauses this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
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
    _files: Vec<SocketFile>,
}

struct Shared {
    monitor: Arc<Monitor>,
    events: Arc<EventBus>,
    sessions: RefCell<Vec<std::sync::Weak<Outbox>>>,
}

impl QmpServer {
    /// A server without sockets, whose sessions hear the events of `events`. Call it in a task of
    /// the main context.
    pub fn new(monitor: Monitor, events: Arc<EventBus>) -> Self {
        let shared = Shared {
            monitor: Arc::new(monitor),
            events,
            sessions: RefCell::default(),
        };
        Self {
            shared: Rc::new(shared),
            listeners: Vec::new(),
            _files: Vec::new(),
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
            self._files.push(file);
            let shared = Rc::downgrade(&self.shared);
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
        self.shared.admit(stream);
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

    fn admit(&self, stream: UnixStream) {
        if self.living_sessions().len() >= MAX_CLIENTS {
            tracing::warn!(MAX_CLIENTS, "too many QMP clients; turning one away");
            return;
        }
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
        self.events.subscribe(&outbox);
        self.sessions.borrow_mut().push(Arc::downgrade(&outbox));
        let session = Session::new(Arc::clone(&self.monitor), Arc::clone(&outbox));
        current::spawn_local(write(writer, Arc::clone(&outbox))).detach();
        let monitor = Arc::clone(&self.monitor);
        current::spawn_local(read(stream, session, outbox, monitor)).detach();
    }
}

/// Accepts clients until the server is gone.
async fn accept(shared: Weak<Shared>, listener: UnixListener, path: std::path::PathBuf) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                match stream.set_nonblocking(true) {
                    Ok(()) => shared.admit(stream),
                    Err(error) => tracing::warn!(%error, "a QMP client can't be served"),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if let Err(error) = current::readable(&listener).await {
                    report(&path, &error);
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                report(&path, &error);
                current::sleep(ACCEPT_PAUSE).await;
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
                    Either::Left((Err(_), _)) | Either::Right(_) => break outbox.abandon(),
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
