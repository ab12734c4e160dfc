//! I/O engines: how a loop hands file operations to the kernel.
//!
//! Two engines serve every loop: `io_uring` (one system call per turn for all operations prepared
//! in it) and `threads` (worker threads with positional system calls). Which one an operation goes
//! to is its node's choice (`aio=`); where the ring is refused, retired or can't do an operation,
//! the threads serve it. An operation owns its buffer and its file until the kernel has finished;
//! the future that waits for it can be dropped at any moment, the operation goes on and its memory
//! stays.
//!
//! # How to write another engine
//! Implement [`Engine`]; `threads` is the shorter example. What an engine can rely on and what it
//! owes:
//! * Operations live in the loop's [`Table`](table); an engine knows them by their key. Each key
//!   that [`Engine::start`] is given must end exactly once, by [`Table::finish`](table::Table) or by
//!   an answer of the kernel passed to `Table::advance`, which knows what a short transfer or an
//!   `EINTR` means and says when to ask again. The engine decides nothing about that.
//! * `Table::request` says what to ask the kernel now, as plain values. The memory it names stays
//!   where it is until the operation has ended; so end it only when the kernel is really done.
//!   An engine that works in other threads borrows the operation whole (`Table::lend`).
//! * Everything is called by the loop's thread, within a borrow of the table: an engine must not
//!   call foreign code (wake tasks, drop closures). Whom to wake the table collects.
//! * The loop calls [`Engine::submit`] once per turn, unless it can sleep in [`Engine::sleep`], and
//!   [`Engine::reap`] after every turn. It sleeps unless [`Engine::has_work`] or
//!   [`Engine::has_completed`]; after that only the engine's descriptors, or the loop's own bell
//!   rung from a worker, wake it.
//! * In steady state neither call allocates (`aio/tests/allocations.rs` counts).
//! * [`Engine::finish`] must come to an end whatever the kernel does.
//!
//! Then give it a value of [`EngineKind`], a place in [`Engines`], and a line in the `ENGINES` of
//! `aio/tests/event_loop/support.rs`, which runs every I/O test with it.

mod operation;
mod ring;
mod route;
mod table;
mod threads;
mod workers;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::aside::Aside;
use crate::buffer::IoBuffer;
use crate::context::Shared;
use crate::event_loop::{self, LoopConfig};
use crate::patience::EndPatience;
pub(crate) use operation::OperationKind;
use ring::Refusal;
pub use route::Route;
use table::{Key, Table};
use threads::Threads;
pub(crate) use workers::{WorkerPool, check_limits as check_pool_limits};

/// Which engine serves a file: the `aio=` option of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// The kernel's submission ring; falls back to threads where it is refused.
    IoUring,
    /// Worker threads.
    Threads,
}

/// A way to have operations done; see the [module](self) for the contract.
pub(crate) trait Engine {
    /// Readable when [`Engine::submit`] must be called; one of the loop's ordinary events.
    fn alarm(&self) -> Option<BorrowedFd<'_>>;

    /// Readable when [`Engine::reap`] must be called.
    fn completions(&self) -> Option<BorrowedFd<'_>>;

    /// Whether it can do operations of this kind, now.
    fn serves(&self, kind: OperationKind) -> bool;

    /// Takes up an operation of the table; the kernel need not hear of it yet.
    fn start(&mut self, key: Key, table: &mut Table);

    /// Hands to the kernel what was started. Returns operations that another engine must serve.
    fn submit(&mut self, table: &mut Table) -> Vec<Key>;

    /// Whether it takes nothing any more, and never will.
    fn is_retired(&self) -> bool;

    /// Whether [`Engine::submit`] must be called again without sleeping.
    fn has_work(&self) -> bool;

    /// Whether operations are under way whose end only [`Engine::completions`] tells.
    fn is_busy(&self) -> bool;

    /// As [`Engine::submit`], and sleeps until an operation has ended or the loop's `events` are
    /// readable, in one system call. Returns whether they may be. None: it did not sleep, and the
    /// loop must do so by itself.
    fn sleep(&mut self, events: BorrowedFd<'_>, table: &mut Table) -> Option<bool>;

    /// Whether operations have ended of which nobody knows yet; learnt without a system call.
    fn has_completed(&mut self) -> bool;

    /// Tells the table what has ended. Without a system call if nothing has.
    fn reap(&mut self, table: &mut Table);

    /// Cancels what can be cancelled and waits until the kernel is done with every buffer, for the
    /// loop's end; gives up if nothing ends for the time of `patience`. What has not ended then
    /// stays in the table, unless somebody else owns its memory.
    fn finish(&mut self, table: &mut Table, patience: Duration);
}

/// The engines of one loop.
pub(crate) struct Engines {
    core: Rc<RefCell<Core>>,
    workers: Rc<WorkerPool>,
    shared: Arc<Shared>,
    /// Operations of the ring that were not handed to the kernel yet; from [`Shared::max_batch`] on they
    /// are.
    prepared: Cell<u64>,
    /// Why there is no ring; none if there is one, or once somebody has been told.
    refusal: Cell<Option<Refusal>>,
    end_patience: EndPatience,
}

/// What those who wait for operations share with the engines.
struct Core {
    table: Table,
    ring: Option<Box<dyn Engine>>,
    threads: Threads,
}

impl Engines {
    /// The engines of the loop that `shared` belongs to.
    ///
    /// # Errors
    /// The limits of the thread pool contradict each other. A ring that is refused is no error:
    /// worker threads take its place, and when the first operation asks for it, a warning says why
    /// and what to do.
    pub(crate) fn new(shared: Arc<Shared>, config: &LoopConfig) -> io::Result<Self> {
        let name = shared.name();
        let home = Arc::clone(&shared);
        let bell = Box::new(move || home.notify());
        let (min, max) = (config.thread_pool_min, config.thread_pool_max);
        let workers = Rc::new(WorkerPool::new(name, min, max, bell)?);
        let (ring, refusal) = match config.engine {
            EngineKind::Threads => (None, None),
            EngineKind::IoUring => match ring::open(config.alone) {
                Ok(ring) => (Some(ring), None),
                Err(refusal) => (None, Some(refusal)),
            },
        };
        if let Some(refusal) = &refusal {
            let told = shared.counters().without_ring.set(refusal.to_string());
            debug_assert!(told.is_ok(), "a loop's engines are made once");
        }
        let core = Core {
            table: Table::default(),
            ring,
            threads: Threads::new(Rc::clone(&workers)),
        };
        Ok(Self {
            core: Rc::new(RefCell::new(core)),
            workers,
            shared,
            prepared: Cell::new(0),
            refusal: Cell::new(refusal),
            end_patience: config.end_patience.clone(),
        })
    }

    pub(crate) fn workers(&self) -> &WorkerPool {
        &self.workers
    }

    /// Calls `watch` with the engines' alarm, which is one of the loop's events, if there is one.
    ///
    /// # Errors
    /// Those of `watch`.
    pub(crate) fn watch_alarm(
        &self,
        watch: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let core = self.core.borrow();
        let alarm = core.ring.as_ref().and_then(|ring| ring.alarm());
        alarm.map_or(Ok(()), watch)
    }

    /// Calls `watch` with the descriptor that tells of completions, if there is one; it is not to be
    /// one of the loop's events ([`Engines::sleep`]).
    ///
    /// # Errors
    /// Those of `watch`.
    pub(crate) fn watch_completions<T>(
        &self,
        watch: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        let core = self.core.borrow();
        let completions = core.ring.as_ref().and_then(|ring| ring.completions());
        completions.map(watch).transpose()
    }

    /// Starts an operation on the bytes of `buffer` (empty if it moves none) at `offset`.
    pub(crate) fn start(
        &self,
        route: Route,
        kind: OperationKind,
        file: Arc<Aside<File>>,
        offset: u64,
        buffer: IoBuffer,
    ) -> Completion {
        let mut core = self.core.borrow_mut();
        let Core {
            table,
            ring,
            threads,
        } = &mut *core;
        let engine = route.engine;
        let key = table.insert(kind, route, file, offset, buffer);
        let mut full = false;
        match ring {
            Some(ring) if engine == EngineKind::IoUring && ring.serves(kind) => {
                ring.start(key, table);
                self.prepared.set(self.prepared.get() + 1);
                full = self.prepared.get() == self.shared.max_batch();
            }
            _ => {
                self.shared.counters().thread_operations.bump();
                threads.start(key, table);
            }
        }
        drop(core);
        if full {
            self.submit();
        }
        if engine == EngineKind::IoUring
            && let Some(refusal) = self.refusal.take()
        {
            tracing::warn!(
                loop_name = self.shared.name(),
                "aio=io_uring is served by worker threads here: {refusal}"
            );
        }
        Completion {
            core: Rc::clone(&self.core),
            key: Some(key),
        }
    }

    /// Hands everything prepared to the kernel.
    pub(crate) fn submit(&self) {
        let mut core = self.core.borrow_mut();
        let Core {
            table,
            ring: Some(ring),
            threads,
        } = &mut *core
        else {
            return;
        };
        self.note_batch();
        for key in ring.submit(table) {
            self.shared.counters().thread_operations.bump();
            threads.start(key, table);
        }
        if ring.is_retired() {
            // What a refusal has set stays; here there was none.
            let retired = || "the ring takes nothing any more; the log says why".to_owned();
            self.shared.counters().without_ring.get_or_init(retired);
        }
    }

    fn note_batch(&self) {
        let operations = self.prepared.take();
        if operations > 0 {
            self.shared.counters().batch(operations);
            tracing::trace!(loop_name = self.shared.name(), operations, "submit");
        }
    }

    /// Hands everything prepared to the kernel and sleeps until an operation has ended or `events`
    /// are readable; returns whether they may be. None: it did not sleep.
    pub(crate) fn sleep(&self, events: BorrowedFd<'_>) -> Option<bool> {
        let mut core = self.core.borrow_mut();
        let Core { table, ring, .. } = &mut *core;
        let slept = ring.as_mut()?.sleep(events, table);
        if slept.is_some() {
            self.note_batch();
        }
        slept
    }

    /// Whether operations are under way whose end the loop's own events do not tell.
    pub(crate) fn is_busy(&self) -> bool {
        let core = self.core.borrow();
        core.ring.as_ref().is_some_and(|ring| ring.is_busy()) || core.threads.is_busy()
    }

    /// Whether the kernel has not taken everything yet and must be asked again.
    pub(crate) fn has_unsubmitted(&self) -> bool {
        let core = self.core.borrow();
        core.ring.as_ref().is_some_and(|ring| ring.has_work()) || core.threads.has_work()
    }

    /// Whether operations have ended of which nobody knows yet; learnt without a system call.
    pub(crate) fn has_completed(&self) -> bool {
        let mut core = self.core.borrow_mut();
        // An operation may have ended while it was handed over: the ring retired, and no thread could
        // be started.
        !core.table.woken().is_empty()
            || core.ring.as_mut().is_some_and(|ring| ring.has_completed())
            || core.threads.has_completed()
    }

    /// Wakes those whose operations have ended.
    pub(crate) fn reap(&self) {
        let mut core = self.core.borrow_mut();
        let Core {
            table,
            ring,
            threads,
        } = &mut *core;
        if let Some(ring) = ring {
            ring.reap(table);
        }
        threads.reap(table);
        if table.woken().is_empty() {
            return;
        }
        let mut woken = std::mem::take(table.woken());
        drop(core);
        for waker in woken.drain(..) {
            event_loop::guarded(self.shared.name(), "a waker", || waker.wake());
        }
        // For its room.
        *self.core.borrow_mut().table.woken() = woken;
    }

    /// Waits until the kernel and the workers are done with every buffer; for the loop's end. After
    /// [`LoopConfig::end_patience`] without anything that ends, what is left stays behind, with its memory.
    pub(crate) fn finish(&self) {
        let name = self.shared.name();
        let patience = self.end_patience.get();
        // Not within the borrow: a call that is dropped unmade may own anything. Nor may it keep the
        // ring from coming to rest.
        event_loop::guarded(name, "a blocking call", || {
            if self.workers.finish(patience) > 0 {
                self.shared.note_left();
            }
        });
        let mut core = self.core.borrow_mut();
        let Core {
            table,
            ring,
            threads,
        } = &mut *core;
        threads.finish(table, patience);
        if let Some(ring) = ring {
            ring.finish(table, patience);
        }
        if table.running() > 0 {
            self.shared.note_left();
        }
        let woken = std::mem::take(table.woken());
        drop(core);
        // Tasks of this loop are gone by now; one of another is told that its operation was cancelled.
        event_loop::wake_each(name, woken);
    }
}

/// What an operation ends with that was never done.
fn cancelled() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

/// Waits for an operation: bytes moved, or the kernel's error. Dropping it leaves the operation
/// running.
pub(crate) struct Completion {
    core: Rc<RefCell<Core>>,
    key: Option<Key>,
}

impl Future for Completion {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(key) = self.key else {
            return Poll::Ready(Err(io::Error::other("polled after completion")));
        };
        let (result, old) = self.core.borrow_mut().table.poll(key, cx.waker());
        // Without the borrow: a waker's drop may drop a task with operations of its own.
        drop(old);
        if result.is_ready() {
            self.key = None;
        }
        result
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let unused = self.core.borrow_mut().table.abandon(key);
            drop(unused);
        }
    }
}
