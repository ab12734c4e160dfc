//! [`AioContext`]: the handle of an event loop that any thread may hold.
//!
//! Other threads give work to a loop only through its *remote queue*: bottom halves, new tasks,
//! and tasks that a waker of another thread made runnable. Each push wakes the loop if it sleeps
//! and no wake is on its way, so a submission from a vCPU thread is seen even by a loop that
//! sleeps. A push from within the loop is the same without the wake: so bottom halves have one
//! order, whoever scheduled them.

use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_channel::oneshot;
use parking_lot::Mutex;
use rustix::event::EventfdFlags;

use crate::bottom_half::Ticket;
use crate::clock::Clock;
use crate::counters::{Counters, LoopStats};
use crate::current;
use crate::engine;
use crate::event_loop::LoopConfig;
use crate::gate::{Cancelled, Gate};
use crate::polling::{Polling, SharedPolling};
use crate::task;
use crate::wake::WakeState;

/// Work from outside the loop's thread, in order of arrival.
pub(crate) enum Remote {
    /// A task that was woken.
    Task(Arc<task::Ticket>),
    /// A bottom half of a single use.
    Call(Box<dyn FnOnce() + Send>),
    /// A bottom half.
    BottomHalf(Arc<Ticket>),
}

#[derive(Default)]
struct RemoteQueue {
    items: VecDeque<Remote>,
    /// Set when the loop is gone: nothing is taken any more.
    closed: bool,
}

/// What an event loop shares with other threads.
pub(crate) struct Shared {
    name: String,
    gate: Gate,
    clock: Clock,
    remote: Mutex<RemoteQueue>,
    wake: WakeState,
    /// The bell of a loop that sleeps. Watched edge-triggered: ringing is enough, nobody reads it.
    wake_fd: OwnedFd,
    counters: Counters,
    polling: SharedPolling,
    /// See [`LoopConfig::max_batch`].
    max_batch: AtomicU64,
    /// The loop has ended before what it had asked the kernel for.
    has_left: AtomicBool,
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
    pub(crate) fn new(name: &str, config: &LoopConfig) -> std::io::Result<Self> {
        let clock = config.clock.clone();
        let wake_fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared {
            name: name.to_owned(),
            gate: Gate::new(name, clock.clone()),
            clock,
            remote: Mutex::default(),
            wake: WakeState::asleep(),
            wake_fd,
            counters: Counters::default(),
            polling: SharedPolling::new(&config.polling),
            max_batch: AtomicU64::new(config.max_batch),
            has_left: AtomicBool::new(false),
        })))
    }

    /// The loop's name, as given at creation (an iothread's id, or `main`).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The gate of all external sources of this loop. Any thread.
    ///
    /// Every external handler passes it. Closing it holds back *all* devices of the loop, so a
    /// section over a disk closes the gates of that disk's backends instead, and so does
    /// `drain_all`: nothing in Sluice needs to stop a whole loop, which only its end does
    /// ([`Gate::destroy`]).
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.0.gate
    }

    /// The clock that the loop's timers run on.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// What the loop has counted so far. Any thread; stops nobody.
    #[must_use]
    pub fn stats(&self) -> LoopStats {
        self.0.counters.snapshot()
    }

    /// The limits of the loop's polling. Any thread.
    #[must_use]
    pub fn polling(&self) -> Polling {
        self.0.polling.get()
    }

    /// Changes them from the next time on that the loop runs out of work. Any thread.
    pub fn set_polling(&self, limits: &Polling) {
        self.0.polling.set(limits);
    }

    /// Changes [`LoopConfig::max_batch`]. Any thread.
    pub fn set_max_batch(&self, operations: u64) {
        self.0.max_batch.store(operations, Ordering::Relaxed);
    }

    /// Changes [`LoopConfig::thread_pool_min`] and [`LoopConfig::thread_pool_max`], in the loop's next
    /// turn. Any thread. Calls that are under way end as they would.
    ///
    /// # Errors
    /// [`InvalidInput`](std::io::ErrorKind::InvalidInput) if they contradict each other.
    pub fn set_thread_pool(&self, min: usize, max: usize) -> std::io::Result<()> {
        engine::check_pool_limits(min, max)?;
        self.schedule(move || {
            // They were found good above.
            let _ = current::with(|local| local.engines.workers().set_limits(min, max));
        });
        Ok(())
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

    /// Runs `call` in the loop soon (a *bottom half* of a single use), in order of scheduling. Any
    /// thread. What is scheduled again and again is better a [`crate::BottomHalf`].
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
    /// ```
    /// use sluice_aio::{EventLoop, IoThread, LoopConfig};
    ///
    /// let thread = IoThread::spawn("io0", LoopConfig::default())?;
    /// let context = thread.context().clone();
    /// let mut main = EventLoop::new("main", &LoopConfig::default())?;
    /// let answer = main.run_until(async move { context.call(|| async { 6 * 7 }).await })?;
    /// assert_eq!(answer, Ok(42));
    /// # Ok::<(), sluice_aio::LoopError>(())
    /// ```
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

    /// The loop ends before what it has asked the kernel for.
    pub(crate) fn note_left(&self) {
        self.has_left.store(true, Ordering::Relaxed);
    }

    /// Whether something of an ended loop goes on in the kernel.
    pub(crate) fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Relaxed)
    }

    /// See [`LoopConfig::max_batch`].
    pub(crate) fn max_batch(&self) -> u64 {
        self.max_batch.load(Ordering::Relaxed)
    }

    pub(crate) fn push(&self, item: Remote) {
        let mut queue = self.remote.lock();
        if queue.closed {
            drop(queue);
            // A ticket leads nowhere now, and a call may be dropped on any thread.
            drop(item);
            return;
        }
        queue.items.push_back(item);
        drop(queue);
        self.notify();
    }

    /// Takes everything that has arrived, in order, into `into` (which is empty).
    pub(crate) fn take_remote(&self, into: &mut VecDeque<Remote>) {
        std::mem::swap(&mut self.remote.lock().items, into);
    }

    /// Refuses everything from now on; returns what had arrived.
    pub(crate) fn close(&self) -> VecDeque<Remote> {
        let mut queue = self.remote.lock();
        queue.closed = true;
        std::mem::take(&mut queue.items)
    }

    pub(crate) fn notify(&self) {
        if self.wake.notify() {
            self.counters.rung();
            self.ring();
        }
    }

    /// Makes the loop's descriptor readable.
    pub(crate) fn ring(&self) {
        // An eventfd write fails only when its counter would overflow, after 2^64 rings.
        let _ = rustix::io::write(&self.wake_fd, &1u64.to_ne_bytes());
    }

    pub(crate) fn wake(&self) -> &WakeState {
        &self.wake
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn limits(&self) -> &SharedPolling {
        &self.polling
    }

    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd.as_fd()
    }
}
