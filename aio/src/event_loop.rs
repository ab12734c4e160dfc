//! [`EventLoop`]: one thread's loop of epoll, tasks, timers and I/O engines.
//!
//! # A turn
//! 1. take what other threads sent; run the tasks that are ready, each at most once;
//! 2. hand all prepared I/O to the kernel with one system call;
//! 3. sleep in `epoll_wait`, not at all if something is ready already;
//! 4. dispatch what epoll reported: wake-ups, timers, completions, file descriptors;
//! 5. once more 1 and 2, so that a turn ends with its consequences begun.
//!
//! # Fairness
//! A turn runs only the tasks that were ready when the step began, and dispatches each ready file
//! descriptor once; what they make ready waits for the next step. So every source is served once
//! before a busy one is served twice.
//!
//! # Threads
//! An `EventLoop` belongs to the thread that made it. Alone in a thread it is driven by
//! [`EventLoop::run_until`]; nested in another epoll loop, [`EventLoop::as_fd`] becomes readable
//! when there is something to do and [`EventLoop::dispatch`] does it. Loops are never nested in
//! themselves: nothing in a task can run a turn.
//!
//! # Panics
//! A panic in a task, a bottom half or a handler ends that one, is logged, and leaves the loop and
//! its other work alone; who waits for the task is told ([`crate::Cancelled`]). Only a panic of the
//! future given to [`EventLoop::run_until`] goes on in its caller.
//!
//! # Shutdown
//! Dropping the loop destroys its gate, cancels its tasks (dropping their futures in this thread),
//! drops its handlers, closes its remote queue, and waits for the kernel and the worker threads to
//! finish with every buffer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use async_task::Runnable;
use futures_util::FutureExt as _;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use slab::Slab;

use crate::clock::Clock;
use crate::context::{AioContext, Remote, Shared};
use crate::current::{self, Scope};
use crate::engine::{EngineKind, Engines};
use crate::fd::FdTable;
use crate::timer::Timers;

/// How an event loop is set up.
#[derive(Clone, Debug)]
pub struct LoopConfig {
    /// The clock its timers run on.
    pub clock: Clock,
    /// The engine that serves files which ask for none in particular.
    pub engine: EngineKind,
    /// Worker threads for calls that block which are started with the loop and always kept.
    pub thread_pool_min: usize,
    /// The most worker threads the loop may have; those beyond `thread_pool_min` end when they
    /// have been idle for a while. At least 1, and at least `thread_pool_min`.
    pub thread_pool_max: usize,
}

impl Default for LoopConfig {
    fn default() -> Self {
        Self {
            clock: Clock::real(),
            engine: EngineKind::IoUring,
            thread_pool_min: 0,
            thread_pool_max: 64,
        }
    }
}

/// Why a loop can't be set up or go on.
#[derive(Debug, thiserror::Error)]
#[error("event loop '{name}': can't {action}: {source}")]
pub struct LoopError {
    /// The loop's name.
    pub name: String,
    /// What was attempted.
    pub action: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Data words of the epoll registrations that are not file descriptors of users.
mod tag {
    pub(super) const WAKE: u64 = u64::MAX;
    pub(super) const TIMER: u64 = u64::MAX - 1;
    pub(super) const RING: u64 = u64::MAX - 2;
}

/// The state of a loop that code running inside it can reach through [`crate::current`].
pub(crate) struct Local {
    pub(crate) shared: Arc<Shared>,
    pub(crate) epoll: OwnedFd,
    pub(crate) ready: RefCell<VecDeque<Runnable>>,
    /// Every live task, so that shutdown can find those that sleep.
    pub(crate) tasks: RefCell<Slab<Waker>>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) fds: RefCell<FdTable>,
    pub(crate) engines: Engines,
    pub(crate) shutting_down: Cell<bool>,
}

/// One thread's event loop; see the [module](self).
pub struct EventLoop {
    local: Rc<Local>,
    timer_fd: OwnedFd,
    armed: Option<Duration>,
    name: String,
    /// What other threads sent, while it is worked off; kept for its capacity.
    arrived: Vec<Remote>,
}

/// Events taken from the kernel by one `epoll_wait`.
const EVENTS_PER_TURN: usize = 64;

impl EventLoop {
    /// A new loop owned by the calling thread.
    ///
    /// If io_uring was asked for and the kernel refuses it (seccomp, sysctl, limits), the loop
    /// falls back to worker threads and logs a warning that says why.
    ///
    /// # Errors
    /// The kernel's refusal of the epoll, timer or event file descriptors; limits of the thread
    /// pool that contradict each other ([`io::ErrorKind::InvalidInput`]).
    pub fn new(name: &str, config: &LoopConfig) -> Result<Self, LoopError> {
        let fail = |action| {
            move |source: io::Error| LoopError {
                name: name.to_owned(),
                action,
                source,
            }
        };
        let context =
            AioContext::new(name, config.clock.clone()).map_err(fail("create its event fd"))?;
        let epoll = new_epoll().map_err(fail("create its epoll instance"))?;
        let timer_fd = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(|errno| fail("create its timer")(errno.into()))?;
        let engines = Engines::new(name, config).map_err(fail("set up its worker threads"))?;
        let add = |fd: BorrowedFd<'_>, tag| {
            let event = epoll::Event::new(epoll::Events::EPOLLIN, tag);
            epoll::ctl(
                epoll.as_raw_fd(),
                epoll::ControlOptions::EPOLL_CTL_ADD,
                fd.as_raw_fd(),
                event,
            )
        };
        add(context.0.wake_fd(), tag::WAKE).map_err(fail("watch its event fd"))?;
        add(timer_fd.as_fd(), tag::TIMER).map_err(fail("watch its timer"))?;
        if let Some(ring) = engines.ring_fd() {
            add(ring, tag::RING).map_err(fail("watch its ring"))?;
        }
        let local = Rc::new(Local {
            shared: context.0,
            epoll,
            ready: RefCell::default(),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            fds: RefCell::default(),
            engines,
            shutting_down: Cell::new(false),
        });
        Ok(Self {
            local,
            timer_fd,
            armed: None,
            name: name.to_owned(),
            arrived: Vec::new(),
        })
    }

    /// The handle through which any thread gives this loop work.
    #[must_use]
    pub fn context(&self) -> AioContext {
        AioContext(Arc::clone(&self.local.shared))
    }

    /// Runs tasks and dispatches what is ready without sleeping: for a loop nested in another.
    ///
    /// # Errors
    /// The kernel refused to wait or to take I/O; the loop can't go on.
    pub fn dispatch(&mut self) -> Result<(), LoopError> {
        self.turn(Some(Duration::ZERO))?;
        self.announce_work();
        Ok(())
    }

    /// Makes the loop's file descriptor readable if there is work that no descriptor tells of: an
    /// outer loop sees only that.
    fn announce_work(&self) {
        if self.has_work() {
            self.local.shared.notify();
        }
    }

    /// One turn; sleeps at most `timeout` (for ever if `None`) when nothing is ready.
    ///
    /// # Errors
    /// As [`EventLoop::dispatch`].
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<(), LoopError> {
        let scope = Scope::enter(&self.local);
        self.work()?;
        let timeout = if self.has_work() {
            Some(Duration::ZERO)
        } else {
            timeout
        };
        self.arm_timer()?;
        self.wait(timeout)?;
        self.fire_timers();
        self.work()?;
        // Timers that this turn's work set count from now on, also for a nested loop.
        self.arm_timer()?;
        drop(scope);
        Ok(())
    }

    /// Runs the loop until `future` (a task of this loop) is done.
    ///
    /// # Errors
    /// As [`EventLoop::dispatch`].
    ///
    /// # Panics
    /// With the panic of `future`, if it panics.
    pub fn run_until<T: 'static>(
        &mut self,
        future: impl Future<Output = T> + 'static,
    ) -> Result<T, LoopError> {
        let slot = Rc::new(Cell::new(None));
        let scope = Scope::enter(&self.local);
        let result = Rc::clone(&slot);
        current::spawn_local(async move {
            result.set(Some(AssertUnwindSafe(future).catch_unwind().await));
            // This may be the turn's step before its sleep.
            current::context().notify();
        })
        .detach();
        drop(scope);
        loop {
            self.turn(None)?;
            if let Some(outcome) = slot.take() {
                // The loop may be nested in another from now on.
                self.announce_work();
                return Ok(outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.local.ready.borrow().is_empty()
            || self.local.shared.has_remote()
            || self.local.engines.has_unsubmitted()
    }

    /// Steps 1 and 2 of a turn.
    fn work(&mut self) -> Result<(), LoopError> {
        self.local.shared.take_remote(&mut self.arrived);
        for item in self.arrived.drain(..) {
            match item {
                Remote::Task(task) => self.local.ready.borrow_mut().push_back(task),
                Remote::Call(call) => guarded(&self.name, "a bottom half", call),
            }
        }
        let batch = self.local.ready.borrow().len();
        for _ in 0..batch {
            let Some(task) = self.local.ready.borrow_mut().pop_front() else {
                break;
            };
            guarded(&self.name, "a task", || task.run());
        }
        self.local
            .engines
            .submit()
            .map_err(|source| self.error("submit I/O", source))
    }

    fn error(&self, action: &'static str, source: io::Error) -> LoopError {
        LoopError {
            name: self.name.clone(),
            action,
            source,
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), LoopError> {
        // Rounded up, or a short sleep would become a busy wait.
        let millis = timeout.map_or(-1, |timeout| {
            i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        let mut events = [epoll::Event::new(epoll::Events::empty(), 0); EVENTS_PER_TURN];
        let count = match epoll::wait(self.local.epoll.as_raw_fd(), millis, &mut events) {
            Ok(count) => count,
            // A completion delivered as task work interrupts the wait: look again at once.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(self.error("wait for events", error)),
        };
        for event in &events[..count] {
            let tag = event.data;
            match tag {
                tag::WAKE => self.local.shared.clear_notification(),
                tag::TIMER => self.consume_timer(),
                tag::RING => {}
                key => FdTable::dispatch(&self.local, key, event.events),
            }
        }
        self.local.engines.reap();
        Ok(())
    }

    fn consume_timer(&mut self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.timer_fd, &mut count);
        self.armed = None;
    }

    fn fire_timers(&mut self) {
        let now = self.local.shared.clock().now();
        let due = self.local.timers.borrow_mut().take_due(now);
        for waker in due {
            waker.wake();
        }
    }

    /// Sets the timer fd to the earliest deadline, if that changed.
    fn arm_timer(&mut self) -> Result<(), LoopError> {
        let clock = self.local.shared.clock();
        let deadline = self.local.timers.borrow().next_deadline();
        if clock.is_manual() {
            // A manual clock is advanced by somebody who then notifies; only what is due
            // already must keep us from sleeping.
            if deadline.is_some_and(|deadline| deadline <= clock.now()) {
                self.local.shared.notify();
            }
            return Ok(());
        }
        if self.armed == deadline {
            return Ok(());
        }
        let delay = deadline.map(|deadline| {
            // A zero delay would disarm the timer.
            deadline
                .saturating_sub(clock.now())
                .max(Duration::from_nanos(1))
        });
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = delay.map_or(zero, |delay| Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(delay.subsec_nanos()),
        });
        let spec = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        rustix::time::timerfd_settime(&self.timer_fd, TimerfdTimerFlags::empty(), &spec)
            .map_err(|errno| self.error("set its timer", errno.into()))?;
        self.armed = deadline;
        Ok(())
    }

    /// Cancels every task in this thread, those that only a dropped one would wake included.
    fn cancel_tasks(&mut self) {
        self.local.shutting_down.set(true);
        loop {
            let sleeping: Vec<Waker> = self
                .local
                .tasks
                .borrow()
                .iter()
                .map(|(_, waker)| waker.clone())
                .collect();
            for waker in &sleeping {
                waker.wake_by_ref();
            }
            let mut arrived = Vec::new();
            self.local.shared.take_remote(&mut arrived);
            let woken: Vec<Runnable> = self.local.ready.borrow_mut().drain(..).collect();
            if sleeping.is_empty() && arrived.is_empty() && woken.is_empty() {
                return;
            }
            // Dropping a runnable drops its future; that may wake or spawn others: once more.
            drop(woken);
            drop(arrived);
        }
    }
}

impl AsFd for EventLoop {
    /// The loop's epoll instance: readable when [`EventLoop::dispatch`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.local.epoll.as_fd()
    }
}

impl AsRawFd for EventLoop {
    fn as_raw_fd(&self) -> RawFd {
        self.local.epoll.as_raw_fd()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        let scope = Scope::enter(&self.local);
        self.local.shared.gate().destroy();
        self.cancel_tasks();
        FdTable::clear(&self.local);
        drop(self.local.shared.close());
        self.cancel_tasks();
        self.local.engines.finish();
        drop(scope);
    }
}

/// Runs one piece of the loop's work; a panic in it ends that piece, not the loop.
pub(crate) fn guarded<T>(loop_name: &str, what: &str, work: impl FnOnce() -> T) {
    if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!(loop_name, "{what} panicked and was dropped");
    }
}

#[expect(
    unsafe_code,
    reason = "takes ownership of the fd that the epoll crate returns raw"
)]
fn new_epoll() -> io::Result<OwnedFd> {
    let raw = epoll::create(true)?;
    // SAFETY: `raw` was just created and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Yields to the other tasks of the loop once.
pub(crate) fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}
