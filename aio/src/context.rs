//! [`AioContext`]: the handle of an event loop that any thread may hold.
//!
//! Other threads give work to a loop only through its *remote queue*: bottom halves, new tasks,
//! and tasks that a waker of another thread made runnable. Each push wakes the loop unless a wake
//! is already on its way, so a submission from a vCPU thread is seen even by a loop that sleeps.

use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_task::Runnable;
use futures_channel::oneshot;
use parking_lot::Mutex;
use rustix::event::EventfdFlags;

use crate::clock::Clock;
use crate::current;
use crate::gate::{Cancelled, Gate};

/// Work from outside the loop's thread, in order of arrival.
pub(crate) enum Remote {
    /// A task that was woken.
    Task(Runnable),
    /// A bottom half.
    Call(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct RemoteQueue {
    items: Vec<Remote>,
    /// Set when the loop is gone: nothing is taken any more.
    closed: bool,
}

/// What an event loop shares with other threads.
pub(crate) struct Shared {
    name: String,
    gate: Gate,
    clock: Clock,
    remote: Mutex<RemoteQueue>,
    /// A wake is on its way and not yet consumed.
    notified: AtomicBool,
    wake_fd: OwnedFd,
}

/// An event loop as other threads see it: clone it, keep it, give it work.
#[derive(Clone)]
pub struct AioContext(pub(crate) Arc<Shared>);

impl std::fmt::Debug for AioContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AioContext({})", self.0.name)
    }
}

impl PartialEq for AioContext {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for AioContext {}

impl AioContext {
    pub(crate) fn new(name: &str, clock: Clock) -> std::io::Result<Self> {
        let wake_fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared {
            name: name.to_owned(),
            gate: Gate::new(name, clock.clone()),
            clock,
            remote: Mutex::default(),
            notified: AtomicBool::new(false),
            wake_fd,
        })))
    }

    /// The loop's name, as given at creation (an iothread's id, or `main`).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The gate of all external sources of this loop. Any thread.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.0.gate
    }

    /// The clock that the loop's timers run on.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Whether the caller runs inside this very loop.
    #[must_use]
    pub fn is_current(&self) -> bool {
        current::is(&self.0)
    }

    /// Makes the loop take one turn, also if it sleeps. Any thread.
    pub fn notify(&self) {
        self.0.notify();
    }

    /// Runs `call` in the loop soon (a *bottom half*), in order of scheduling. Any thread.
    ///
    /// If the loop has ended, `call` is dropped unrun. A panic in it is logged; the loop goes on.
    pub fn schedule(&self, call: impl FnOnce() + Send + 'static) {
        self.0.push(Remote::Call(Box::new(call)));
    }

    /// Starts the task that `make` returns in the loop. Any thread.
    ///
    /// `make` runs in the loop, so the future itself need not be `Send`. If the loop has ended,
    /// `make` is dropped unrun: the task is cancelled.
    pub fn spawn<F, Fut>(&self, make: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        self.schedule(move || current::spawn_local(make()).detach());
    }

    /// Runs a task in the loop and waits for its result from wherever the caller runs.
    ///
    /// # Errors
    /// [`Cancelled`] if the loop ended before the task did. Dropping the returned future does not
    /// stop the task.
    pub fn call<F, Fut, T>(
        &self,
        make: F,
    ) -> impl Future<Output = Result<T, Cancelled>> + use<F, Fut, T>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        self.spawn(move || {
            let task = make();
            async move {
                // The caller may have lost interest; that is no concern of the task.
                drop(sender.send(task.await));
            }
        });
        async move { receiver.await.map_err(|_| Cancelled) }
    }
}

impl Shared {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn push(&self, item: Remote) {
        let mut queue = self.remote.lock();
        if queue.closed {
            drop(queue);
            // Every task was dropped before the queue closed, so a runnable here has no future
            // left to drop, and a call may be dropped on any thread.
            drop(item);
            return;
        }
        queue.items.push(item);
        drop(queue);
        self.notify();
    }

    /// Takes everything that has arrived, in order, into `into` (which is empty).
    pub(crate) fn take_remote(&self, into: &mut Vec<Remote>) {
        std::mem::swap(&mut self.remote.lock().items, into);
    }

    pub(crate) fn has_remote(&self) -> bool {
        !self.remote.lock().items.is_empty()
    }

    /// Refuses everything from now on; returns what had arrived.
    pub(crate) fn close(&self) -> Vec<Remote> {
        let mut queue = self.remote.lock();
        queue.closed = true;
        std::mem::take(&mut queue.items)
    }

    pub(crate) fn notify(&self) {
        if !self.notified.swap(true, Ordering::AcqRel) {
            // An eventfd write fails only when its counter would overflow; then it is readable.
            let _ = rustix::io::write(&self.wake_fd, &1u64.to_ne_bytes());
        }
    }

    /// Consumes a pending wake; everything pushed before it will be seen by the turn that follows.
    pub(crate) fn clear_notification(&self) {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.wake_fd, &mut counter);
        // A swap, not a store: it synchronises with the notifier whose flag it takes back, so what
        // that one did before is visible to the turn that follows.
        self.notified.swap(false, Ordering::AcqRel);
    }

    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd.as_fd()
    }
}
