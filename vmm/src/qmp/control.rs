//! A client that speaks QMP: what it sends is taken apart while its commands run.
//!
//! Commands are executed one after the other, in the order in which they came. A client that has negotiated
//! `oob` may send [`WAITING`] of them ahead, and *out-of-band* commands overtake all that wait and the one that
//! runs. Without it nothing is read while a command runs. A command that has begun is brought to its end also when its
//! client is gone, if it changes anything; those that wait are dropped then.
//!
//! The loop that this runs in has others to serve, guests among them. However large a message is and however fast it comes,
//! the loop has its turns meanwhile: after [`TURN`] bytes of input, and while a longer message is parsed, which a worker
//! thread does.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use event_listener::Event;
use futures_util::future::{self, Either};
use serde_json::Value;
use sluice_aio::{Aside, current};

use super::commands::Monitor;
use super::descriptors::Descriptors;
use super::json::{self, Framer, JsonError};
use super::outbox::Outbox;
use super::server::{FAREWELL, READ_SIZE};
use super::session::Session;
use crate::chardev::Input;

/// Commands that a client with `oob` may have waiting (QEMU: `QMP_REQ_QUEUE_LEN_MAX`).
const WAITING: usize = 8;
/// Bytes of input that are worked at without a turn of the loop: some tenths of a millisecond.
pub(super) const TURN: usize = 64 << 10;

type Message = Result<Value, JsonError>;

/// Commands that wait for the one that runs.
#[derive(Default)]
struct Queue {
    waiting: RefCell<VecDeque<Message>>,
    /// One is being executed.
    busy: Cell<bool>,
    /// No more will come.
    closed: Cell<bool>,
    changed: Event,
}

impl Queue {
    fn push(&self, message: Message) {
        self.waiting.borrow_mut().push_back(message);
        self.changed.notify(usize::MAX);
    }

    /// The next one, which runs until [`ended`](Self::ended); none: there will be no more.
    async fn next(&self) -> Option<Message> {
        let next = || {
            let next = self.waiting.borrow_mut().pop_front();
            self.busy.set(next.is_some());
            let over = next.is_none() && self.closed.get();
            (next.is_some() || over).then_some(next)
        };
        let next = self.wait(next).await;
        self.changed.notify(usize::MAX);
        next
    }

    fn ended(&self) {
        self.busy.set(false);
        self.changed.notify(usize::MAX);
    }

    /// Waits until nothing runs and nothing waits; also if there will be nothing more.
    async fn idle(&self) {
        self.wait(|| {
            let idle = !self.busy.get() && self.waiting.borrow().is_empty();
            (idle || self.closed.get()).then_some(())
        })
        .await;
    }

    /// Waits until another may wait.
    async fn room(&self) {
        self.wait(|| {
            let room = self.waiting.borrow().len() < WAITING;
            (room || self.closed.get()).then_some(())
        })
        .await;
    }

    /// Takes no more; those that wait are still executed, or else dropped.
    fn close(&self, execute: bool) {
        self.closed.set(true);
        if !execute {
            self.waiting.borrow_mut().clear();
        }
        self.changed.notify(usize::MAX);
    }

    async fn wait<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.changed.listen();
            if let Some(found) = ready() {
                return found;
            }
            changed.await;
        }
    }
}

/// Serves a client until it is gone, or too slow.
pub(super) async fn converse(input: Input, outbox: Arc<Outbox>, monitor: Arc<Monitor>) {
    let session = Session::new(Arc::clone(&monitor), Arc::clone(&outbox));
    let queue = Queue::default();
    let reading = async {
        let execute = read(&input, &session, &queue, &outbox, &monitor.descriptors).await;
        queue.close(execute);
    };
    let executing = async {
        while let Some(message) = queue.next().await {
            let handled = attend(&input, &outbox, session.handle(message)).await;
            if let Some(after_reply) = handled {
                outbox.flushed_or(FAREWELL).await;
                after_reply(&monitor);
            }
            if !outbox.has_room().await {
                queue.close(false);
            }
            queue.ended();
        }
    };
    future::join(reading, executing).await;
    // What was executed last has been answered.
    outbox.finish();
}

/// Awaits a command; the session of a client that hangs up meanwhile is over at once.
pub(super) async fn attend<T>(
    input: &Input,
    outbox: &Outbox,
    command: impl Future<Output = T>,
) -> T {
    let mut command = std::pin::pin!(command);
    let gone = std::pin::pin!(input.hung_up());
    match future::select(command.as_mut(), gone).await {
        Either::Left((done, _)) => done,
        Either::Right(_) => {
            outbox.abandon();
            command.await
        }
    }
}

/// Takes messages off the stream. Returns whether what waits then is still to be executed.
async fn read(
    input: &Input,
    session: &Session,
    queue: &Queue,
    outbox: &Outbox,
    given: &Descriptors,
) -> bool {
    let mut framer = Framer::default();
    let mut buffer = [0; READ_SIZE];
    let mut descriptors: Vec<Aside<OwnedFd>> = Vec::new();
    let mut taken = 0;
    loop {
        while let Some(text) = framer.pop() {
            if !turn(session, queue).await {
                return false;
            }
            let message = parse(text).await;
            if Session::is_greeting(&message) {
                // Each would answer the other's answers for ever.
                tracing::warn!(
                    "a monitor's client is a monitor itself, and is let go; a monitor that this process was to \
                     be reached by has connected to another process's socket: give it a path of its own, or \
                     server=on"
                );
                queue.push(message);
                return true;
            }
            if session.is_out_of_band(&message) {
                // It waits for nothing, and nothing comes after its reply.
                session.handle(message).await;
                if !outbox.has_room().await {
                    return false;
                }
            } else {
                queue.push(message);
            }
        }
        if !turn(session, queue).await {
            return false;
        }
        let read = {
            let reading = std::pin::pin!(input.read(&mut buffer, &mut descriptors));
            let abandoned = std::pin::pin!(outbox.abandoned());
            match future::select(reading, abandoned).await {
                Either::Left((read, _)) => read,
                Either::Right(_) => return false,
            }
        };
        given.receive(&mut descriptors);
        match read {
            Ok(0) => return true,
            Ok(count) => {
                framer.push(buffer.get(..count).unwrap_or_default());
                taken += count;
                // A client that sends as fast as it is read never lets the reading wait.
                if taken >= TURN {
                    taken = 0;
                    current::yield_now().await;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a monitor's client is gone");
                outbox.abandon();
                return false;
            }
        }
    }
}

/// Parses a message, a long one in a worker thread.
async fn parse(text: Result<Vec<u8>, JsonError>) -> Message {
    let text = text?;
    if text.len() <= TURN {
        return json::parse(&text);
    }
    let text = Arc::new(text);
    let in_worker = Arc::clone(&text);
    let parsed = current::blocking(move || json::parse(&in_worker)).await;
    // Without a thread it is done here.
    parsed.unwrap_or_else(|_| json::parse(&text))
}

/// Waits until another message may be taken; false: none is taken any more.
async fn turn(session: &Session, queue: &Queue) -> bool {
    match session.has_oob() {
        true => queue.room().await,
        false => queue.idle().await,
    }
    !queue.closed.get()
}
