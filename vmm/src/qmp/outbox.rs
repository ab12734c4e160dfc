//! What is on its way to one client: bounded, written by one task.
//!
//! Replies and events of a session share one queue, so a client sees them in the order in which
//! they happened. Memory is bounded from two sides. Replies: the session reads no further command
//! while more than [`HIGH_WATER`] bytes wait. Events, which nobody can hold back: if more than
//! [`OVERFLOW`] bytes wait, the session is closed. A gap in the events would mislead a client
//! without its knowing; a closed connection tells it to come back and ask for the present state.
//!
//! [`Outbox::push`] may be called from any thread; the rest runs in the main context.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use event_listener::Event;
use futures_util::future;
use parking_lot::Mutex;
use sluice_aio::current;

use super::json::Layout;
use crate::chardev::Output;

/// A session whose client leaves more than this unread is given no further replies to queue.
pub const HIGH_WATER: usize = 1 << 20;
/// A session whose client leaves more than this unread is closed.
pub const OVERFLOW: usize = 8 << 20;

/// Why nothing more is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ending {
    /// Not at all yet.
    Open,
    /// The client has finished sending; what is queued is still written.
    Finish,
    /// At once: the client is gone, or too slow.
    Abandon,
}

/// What the other end reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    /// Messages.
    Messages(Layout),
    /// Text; no events.
    Text,
}

#[derive(Debug)]
struct State {
    lines: VecDeque<Arc<str>>,
    /// Bytes of all lines together.
    bytes: usize,
    ending: Ending,
    /// Whether events are wanted: from the end of the negotiation on.
    events: bool,
}

/// The outgoing queue of one session.
#[derive(Debug)]
pub(super) struct Outbox {
    form: Form,
    state: Mutex<State>,
    /// Something in `state` changed.
    changed: Event,
}

impl Outbox {
    pub(super) fn new(form: Form) -> Arc<Self> {
        Arc::new(Self {
            form,
            state: Mutex::new(State {
                lines: VecDeque::new(),
                bytes: 0,
                ending: Ending::Open,
                events: false,
            }),
            changed: Event::new(),
        })
    }

    /// Lets events through from now on.
    pub(super) fn enable_events(&self) {
        self.state.lock().events = true;
    }

    /// How messages to this client are laid out; none: it gets none.
    pub(super) fn layout(&self) -> Option<Layout> {
        match self.form {
            Form::Messages(layout) => Some(layout),
            Form::Text => None,
        }
    }

    /// Queues a reply; `line` ends with its line end.
    pub(super) fn reply(&self, line: Arc<str>) {
        self.push(line, false);
    }

    /// Queues an event in the session's layout, if the session wants events.
    pub(super) fn event(&self, line: Arc<str>) {
        self.push(line, true);
    }

    fn push(&self, line: Arc<str>, is_event: bool) {
        let mut state = self.state.lock();
        if state.ending != Ending::Open || (is_event && !state.events) {
            return;
        }
        state.bytes += line.len();
        if is_event && state.bytes > OVERFLOW {
            tracing::warn!(
                bytes = state.bytes,
                "a QMP client does not read its events; closing its session"
            );
            state.ending = Ending::Abandon;
        } else {
            state.lines.push_back(line);
        }
        drop(state);
        self.changed.notify(usize::MAX);
    }

    /// Takes nothing more; what is queued is written.
    pub(super) fn finish(&self) {
        self.end(Ending::Finish);
    }

    /// Takes nothing more and writes nothing more.
    pub(super) fn abandon(&self) {
        self.end(Ending::Abandon);
    }

    fn end(&self, ending: Ending) {
        let mut state = self.state.lock();
        if ending == Ending::Abandon || state.ending == Ending::Open {
            state.ending = ending;
        }
        drop(state);
        self.changed.notify(usize::MAX);
    }

    /// Waits until the client has read enough for another reply to be queued; false if the session
    /// is over.
    pub(super) async fn has_room(&self) -> bool {
        self.wait(|state| match state.ending {
            Ending::Open if state.bytes > HIGH_WATER => None,
            Ending::Open => Some(true),
            Ending::Finish | Ending::Abandon => Some(false),
        })
        .await
    }

    /// Waits until the session is abandoned.
    pub(super) async fn abandoned(&self) {
        self.wait(|state| (state.ending == Ending::Abandon).then_some(()))
            .await;
    }

    async fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let listener = self.changed.listen();
            let found = ready(&mut self.state.lock());
            if let Some(found) = found {
                return found;
            }
            listener.await;
        }
    }

    /// Writes what is queued to `output` until the session is over. One task
    /// per session does this.
    ///
    /// # Errors
    /// The client can't be written to any more.
    pub(super) async fn write_to(&self, output: &Output) -> io::Result<()> {
        loop {
            let line = self.wait(|state| match (state.ending, state.lines.front()) {
                (Ending::Abandon, _) | (Ending::Finish, None) => Some(None),
                (_, Some(line)) => Some(Some(Arc::clone(line))),
                (Ending::Open, None) => None,
            });
            let Some(line) = line.await else {
                return Ok(());
            };
            output.write_all(line.as_bytes()).await?;
            let mut state = self.state.lock();
            state.lines.pop_front();
            state.bytes -= line.len();
            drop(state);
            self.changed.notify(usize::MAX);
        }
    }

    /// As [`flushed`](Self::flushed), but for no longer than `limit`.
    pub(super) async fn flushed_or(&self, limit: Duration) {
        let flushed = std::pin::pin!(self.flushed());
        let timeout = std::pin::pin!(current::sleep(limit));
        future::select(flushed, timeout).await;
    }

    /// Waits until everything queued so far has been written, or the session is over.
    pub(super) async fn flushed(&self) {
        self.wait(|state| {
            (state.lines.is_empty() || state.ending == Ending::Abandon).then_some(())
        })
        .await;
    }
}
