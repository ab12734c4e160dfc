//! [`EventLoop`]: one thread's loop of epoll, tasks, timers and I/O engines.
//!
//! # A turn
//! 1. run the bottom halves and start the tasks that other threads sent; run the tasks that are
//!    ready, each at most once;
//! 2. hand all prepared I/O to the kernel with one system call; if there is nothing more to do, poll
//!    for a while ([`crate::polling`]), then sleep: in that same call if I/O is under way, otherwise
//!    in `epoll_wait`;
//! 3. dispatch what epoll reported, completions, and timers that are due;
//! 4. once more 1; the I/O that was prepared there is handed over at once if there is other work,
//!    otherwise with the next sleep, or before the loop is left to an outer one.
//!
//! # Fairness
//! **No source is served again before all others that were ready had their turn.** In one turn
//! * a task runs at most twice (once in step 1, once in step 4): what is woken meanwhile waits for the
//!   next step;
//! * at most 512 items of the remote queue are served (256 in each step), in order; the rest waits;
//! * a timer that is due fires once; a sleep, however short, lasts until the next turn at least;
//! * all completions that are there are taken; what they wake waits for the next step;
//! * each ready descriptor is served once, of more than 64 ready ones each in its turn.
//!
//! A loop with other work at hand asks the kernel for events only in every 16th turn; so does one that
//! polls and always finds something, and one that polls for long asks every 50 µs besides. So whatever
//! keeps a loop busy, a descriptor, a timer, a task, a bottom half or a completion is served at most
//! 17 turns after it became ready (and one more for each further 64 ready descriptors or 512 remote
//! items before it). What this rule can't bound is the length of a single run: code of the loop
//! must not block, and should yield in long computations ([`current::yield_now`]).
//!
//! # Threads
//! An `EventLoop` belongs to the thread that made it. Alone in a thread it is driven by
//! [`EventLoop::run_until`]; nested in another epoll loop, [`EventLoop::as_fd`] becomes readable
//! when there is something to do and [`EventLoop::dispatch`] does it. A nested loop never polls.
//! Loops are never nested in themselves: nothing in a task can run a turn.
//!
//! # Panics
//! A panic in the loop's work is logged, and leaves the loop and its other work alone. A task has
//! ended with it, and who waits for the task is told ([`crate::Cancelled`]). A handler is not called
//! again, nor asked, whether it panicked or its look: its descriptor may still be ready, and would be for
//! ever. A bottom half has only ended
//! that run. Only a panic of the future given to [`EventLoop::run_until`] goes on in its caller.
//!
//! # Shutdown
//! Dropping the loop completes or cancels all it holds, in this order: its gate is destroyed, so
//! what is parked there is cancelled; its tasks are cancelled, their futures being dropped in this
//! thread; its handlers and bottom halves are dropped; its remote queue is closed, and what is in it
//! dropped; the engines end. Who waits for any of this from elsewhere is woken and gets [`crate::Cancelled`], or of a
//! transfer or a descriptor an error that says so. Whatever panics meanwhile, the end goes on.
//!
//! Calls that worker threads have begun or taken are made to their end. I/O that the kernel has not
//! been given is cancelled, what it has is cancelled where it can be, and memory that it uses stays
//! until it has done with it: the drop waits for all of these. If none of them ends for half a
//! minute, as on a file server that is gone, the drop goes on without: threads and memory that are
//! still in use are left behind, never freed, and the log says so.
//!
//! # Observability
//! [`AioContext::stats`] counts. At level `TRACE` there is an event `kick` for every call of a handler
//! (target `sluice_aio::fd`) and an event `submit` for every batch that goes to the ring (target
//! `sluice_aio::engine`). Where no subscriber wants them they cost a comparison each.

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

use futures_util::FutureExt as _;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::bottom_half::BottomHalves;
use crate::clock::{Clock, step};
use crate::context::{AioContext, Remote, Shared};
use crate::current::{self, Scope};
use crate::engine::{EngineKind, Engines};
use crate::fd::{Cause, FdTable};
use crate::patience::EndPatience;
use crate::polling::{Polling, Window};
use crate::task::{self, Tasks};
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
    /// How long it looks for work before it sleeps.
    pub polling: Polling,
    /// So many operations are handed to the ring as soon as they are prepared; 0 leaves all of
    /// them to the end of the step. QEMU's `aio-max-batch`.
    pub max_batch: u64,
    /// The loop is driven by [`EventLoop::run_until`] only, and not nested in another: its descriptor
    /// need not tell of the ring's completions. That saves processor time (Linux 6.1 and later).
    /// [`IoThread::spawn`](crate::IoThread::spawn) sets it.
    pub alone: bool,
    /// How long its end waits for what hangs; clones of the configuration share it.
    pub end_patience: EndPatience,
}

impl Default for LoopConfig {
    fn default() -> Self {
        Self {
            clock: Clock::real(),
            engine: EngineKind::IoUring,
            thread_pool_min: 0,
            thread_pool_max: 64,
            polling: Polling::OFF,
            max_batch: 0,
            alone: false,
            end_patience: EndPatience::default(),
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
    pub(super) const ALARM: u64 = u64::MAX - 2;
    pub(super) const RING: u64 = u64::MAX - 3;
    pub(super) const EVENTS: u64 = u64::MAX - 4;
}

/// The state of a loop that code running inside it can reach through [`crate::current`].
pub(crate) struct Local {
    pub(crate) shared: Arc<Shared>,
    pub(crate) epoll: OwnedFd,
    /// The tasks to poll next.
    pub(crate) ready: RefCell<VecDeque<Arc<task::Ticket>>>,
    pub(crate) tasks: RefCell<Tasks>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) fds: RefCell<FdTable>,
    pub(crate) bottom_halves: RefCell<BottomHalves>,
    pub(crate) engines: Engines,
    pub(crate) shutting_down: Cell<bool>,
}

/// One thread's event loop; see the [module](self).
pub struct EventLoop {
    local: Rc<Local>,
    /// The loop's epoll instance and its ring's completions together; none if there is no ring.
    outer: Option<OwnedFd>,
    timer_fd: OwnedFd,
    armed: Option<Duration>,
    name: String,
    /// What other threads sent, while it is worked off; kept for its capacity.
    arrived: VecDeque<Remote>,
    /// More has arrived that is not taken yet.
    heard: bool,
    /// Wakers of timers that are due, likewise.
    due: Vec<Waker>,
    /// Handlers that polling found work for, likewise.
    looked: Vec<u64>,
    window: Window,
    /// When the loop had nothing more to do, if the window is to learn from what comes next.
    waits_since: Option<Duration>,
    /// Turns taken since the kernel was last asked for events ([`EventLoop::ask`]).
    unasked: u32,
    /// When it was, on the coarse clock; none while the loop is out of the hands of this type.
    asked_at: Option<Duration>,
}

/// Events taken from the kernel by one `epoll_wait`.
const EVENTS_PER_TURN: usize = 64;

/// Items of the remote queue that are served in one step.
const REMOTE_PER_STEP: usize = 256;

/// A loop that has work at hand asks the kernel for events once in so many turns.
const TURNS_PER_ASKING: u32 = 16;

/// A loop that polls asks the kernel for events once in so long: a system call of less than a
/// microsecond, which bounds how long a descriptor waits that nobody can look at.
const POLLING_PER_ASKING: Duration = Duration::from_micros(50);

impl EventLoop {
    /// A new loop owned by the calling thread.
    ///
    /// If io_uring was asked for and the kernel refuses it (seccomp, sysctl, limits), the loop
    /// falls back to worker threads; the first operation that wants it logs a warning that says why.
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
        let context = AioContext::new(name, config).map_err(fail("create its event fd"))?;
        let epoll = new_epoll().map_err(fail("create its epoll instance"))?;
        let timer_fd = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(|errno| fail("create its timer")(errno.into()))?;
        let engines = Engines::new(Arc::clone(&context.0), config)
            .map_err(fail("set up its worker threads"))?;
        let add = |fd: BorrowedFd<'_>, interest, tag| add_to(&epoll, fd, interest, tag);
        let readable = epoll::Events::EPOLLIN;
        let rung = readable | epoll::Events::EPOLLET;
        add(context.0.wake_fd(), rung, tag::WAKE).map_err(fail("watch its event fd"))?;
        add(timer_fd.as_fd(), readable, tag::TIMER).map_err(fail("watch its timer"))?;
        let watch = |fd: BorrowedFd<'_>| add(fd, readable, tag::ALARM);
        engines
            .watch_alarm(watch)
            .map_err(fail("watch its engines"))?;
        let outer = engines
            .watch_completions(|completions| {
                let outer = new_epoll()?;
                add_to(&outer, completions, readable, tag::RING)?;
                add_to(&outer, epoll.as_fd(), readable, tag::EVENTS)?;
                Ok(outer)
            })
            .map_err(fail("watch its engines"))?;
        let local = Rc::new(Local {
            shared: context.0,
            epoll,
            ready: RefCell::default(),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            fds: RefCell::default(),
            bottom_halves: RefCell::default(),
            engines,
            shutting_down: Cell::new(false),
        });
        Ok(Self {
            local,
            outer,
            timer_fd,
            armed: None,
            name: name.to_owned(),
            arrived: VecDeque::new(),
            heard: false,
            due: Vec::new(),
            looked: Vec::new(),
            window: Window::default(),
            waits_since: None,
            unasked: 0,
            asked_at: None,
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
        self.turn(Some(Duration::ZERO))
    }

    /// One turn, events included; sleeps at most `timeout` (for ever if `None`) when nothing is
    /// ready. For who has to look at something else between turns, as the tests of the crates above
    /// do, which drive loop and guest in one thread.
    ///
    /// # Errors
    /// As [`EventLoop::dispatch`].
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<(), LoopError> {
        self.unasked = TURNS_PER_ASKING;
        self.step(timeout)?;
        self.let_go()
    }

    /// Leaves the loop to an outer one, which sees only its descriptor: that tells of everything
    /// from now on, work that is at hand included.
    fn let_go(&mut self) -> Result<(), LoopError> {
        self.note_work();
        self.asked_at = None;
        self.local.engines.submit();
        self.arm_timer()?;
        let shared = &self.local.shared;
        if self.has_work() || self.local.engines.has_unsubmitted() || !shared.wake().doze() {
            shared.ring();
        }
        Ok(())
    }

    /// One turn; see the [module](self).
    fn step(&mut self, timeout: Option<Duration>) -> Result<(), LoopError> {
        let _scope = Scope::enter(&self.local);
        self.local.shared.counters().turns.bump();
        self.work();
        if self.has_work() && self.unasked < TURNS_PER_ASKING {
            self.local.engines.submit();
            self.unasked += 1;
        } else {
            self.rest(timeout)?;
        }
        self.local.engines.reap();
        self.fire_timers();
        self.work();
        if self.has_work() {
            // What was prepared does not wait for other work; only a sleep is worth waiting for.
            self.local.engines.submit();
        }
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
            self.step(None)?;
            if let Some(outcome) = slot.take() {
                // The loop may be nested in another from now on.
                self.let_go()?;
                return Ok(outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
        }
    }

    /// Whether there is something to do, besides handing over I/O, that needs no event.
    fn has_work(&self) -> bool {
        let local = &self.local;
        !local.ready.borrow().is_empty()
            || !self.arrived.is_empty()
            || self.heard
            || local.shared.wake().is_notified()
            || local.engines.has_completed()
            || self.is_timer_due()
    }

    fn is_timer_due(&self) -> bool {
        let deadline = self.local.timers.borrow_mut().next_deadline();
        deadline.is_some_and(|deadline| deadline <= self.local.shared.clock().now())
    }

    /// Steps 1 and 4 of a turn.
    fn work(&mut self) {
        step::begin();
        let counters = self.local.shared.counters();
        self.heard |= self.local.shared.wake().awaken();
        // What does not fit into one step keeps its place before what arrives later.
        if self.arrived.is_empty() && std::mem::take(&mut self.heard) {
            self.local.shared.take_remote(&mut self.arrived);
        }
        let batch = self.arrived.len().min(REMOTE_PER_STEP);
        counters.remote.add(batch as u64);
        for _ in 0..batch {
            match self.arrived.pop_front() {
                Some(Remote::Task(ticket)) => self.local.ready.borrow_mut().push_back(ticket),
                Some(Remote::Call(call)) => {
                    counters.bottom_halves.bump();
                    guarded(&self.name, "a bottom half", call);
                }
                Some(Remote::BottomHalf(ticket)) => {
                    if BottomHalves::run(&self.local, &ticket) {
                        counters.bottom_halves.bump();
                    }
                }
                None => break,
            }
        }
        let batch = self.local.ready.borrow().len();
        counters.tasks.add(batch as u64);
        for _ in 0..batch {
            let Some(ticket) = self.local.ready.borrow_mut().pop_front() else {
                break;
            };
            guarded(&self.name, "a task", || task::run(&self.local, ticket));
        }
    }

    fn error(&self, action: &'static str, source: io::Error) -> LoopError {
        LoopError {
            name: self.name.clone(),
            action,
            source,
        }
    }

    /// Step 2 of a turn, and the dispatch of events.
    fn rest(&mut self, timeout: Option<Duration>) -> Result<(), LoopError> {
        let idle = timeout != Some(Duration::ZERO) && !self.has_work();
        if !idle {
            self.local.engines.submit();
            return self.ask(0).map(drop);
        }
        let polls = self.local.shared.limits().is_on();
        // A clock that stands still has no window that ends.
        if !polls || self.local.shared.clock().is_manual() {
            return self.sleep(timeout);
        }
        self.local.engines.submit();
        if self.unasked >= TURNS_PER_ASKING && self.ask(0)? {
            return Ok(());
        }
        let began = self.local.shared.clock().now();
        self.waits_since = Some(began);
        if self.poll(began, timeout)? {
            self.learn();
            step::begin();
            // The kernel's events may wait a little, as in any turn with work at hand.
            self.unasked += 1;
            let mut looked = std::mem::take(&mut self.looked);
            for key in looked.drain(..) {
                FdTable::dispatch(&self.local, key, Cause::Looked);
            }
            self.looked = looked;
        } else {
            self.sleep(timeout)?;
        }
        self.learn();
        Ok(())
    }

    /// Work has come after a wait, of which the window learns: not of how long the work takes.
    fn learn(&mut self) {
        if let Some(began) = self.waits_since.take() {
            let waited = self.local.shared.clock().now().saturating_sub(began);
            let waited = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
            self.window.learn(self.local.shared.limits(), waited);
        }
    }

    /// Sleeps in the kernel, unless the loop is notified in this moment.
    fn sleep(&mut self, timeout: Option<Duration>) -> Result<(), LoopError> {
        self.arm_timer()?;
        if !self.local.shared.wake().doze() {
            self.local.engines.submit();
            return self.ask(0).map(drop);
        }
        self.local.shared.counters().sleeps.bump();
        self.note_work();
        self.asked_at = None;
        if timeout.is_none() {
            let slept = self.local.engines.sleep(self.local.epoll.as_fd());
            if let Some(events) = slept {
                self.woken();
                self.learn();
                if events {
                    return self.ask(0).map(drop);
                }
                // The ring has watched for them, and there are none.
                self.unasked = 0;
                return Ok(());
            }
        }
        self.local.engines.submit();
        // Rounded up, or a short sleep would become a busy wait.
        let millis = timeout.map_or(-1, |timeout| {
            i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        let engines = &self.local.engines;
        if engines.has_completed() {
            return self.ask(0).map(drop);
        }
        let outer = self.outer.as_ref().filter(|_| engines.is_busy());
        let Some(outer) = outer else {
            return self.ask(millis).map(drop);
        };
        let mut events = [epoll::Event::new(epoll::Events::empty(), 0); 2];
        wait_for(outer, millis, &mut events)
            .map_err(|source| self.error("wait for events", source))?;
        self.ask(0).map(drop)
    }

    /// Looks for work until the window is over; true if there is some.
    fn poll(&mut self, began: Duration, timeout: Option<Duration>) -> Result<bool, LoopError> {
        let shared = Arc::clone(&self.local.shared);
        let window = Duration::from_nanos(self.window.length(shared.limits()));
        let mut end = began.saturating_add(window.min(timeout.unwrap_or(Duration::MAX)));
        let deadline = self.local.timers.borrow_mut().next_deadline();
        end = end.min(deadline.unwrap_or(Duration::MAX));
        if end <= began {
            return Ok(false);
        }
        // The loop looks for work all the time until the end.
        self.note_work();
        self.asked_at = None;
        let mut now = began;
        let mut ask_at = began.saturating_add(POLLING_PER_ASKING);
        let hit = loop {
            FdTable::look(&self.local, &mut self.looked);
            let found = !self.looked.is_empty()
                || shared.wake().is_notified()
                || self.local.engines.has_completed();
            if found || now >= end {
                break found;
            }
            if now >= ask_at {
                if self.ask(0)? {
                    break true;
                }
                self.asked_at = None;
                ask_at = now.saturating_add(POLLING_PER_ASKING);
            }
            std::hint::spin_loop();
            now = shared.clock().now();
        };
        let nanos = now.saturating_sub(began).as_nanos();
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        shared.counters().polled(hit, nanos);
        self.asked_at = Some(shared.clock().coarse());
        Ok(hit)
    }

    /// Counts how long the loop has not asked for events, which it does now or is about to.
    fn note_work(&mut self) {
        if let Some(asked_at) = self.asked_at {
            let shared = &self.local.shared;
            let worked = shared.clock().coarse().saturating_sub(asked_at);
            shared.counters().worked(worked);
        }
    }

    /// Takes events from the kernel, waiting at most `millis` for the first (for ever if -1), and
    /// dispatches them. False if there were none, and nobody has notified the loop either.
    fn ask(&mut self, millis: i32) -> Result<bool, LoopError> {
        self.unasked = 0;
        self.note_work();
        let mut events = [epoll::Event::new(epoll::Events::empty(), 0); EVENTS_PER_TURN];
        let count = wait_for(&self.local.epoll, millis, &mut events)
            .map_err(|source| self.error("wait for events", source))?;
        self.woken();
        if count > 0 || self.heard {
            // Before what has come is dispatched.
            self.learn();
        }
        if count == EVENTS_PER_TURN {
            // There may be more, whose turn it is next.
            self.unasked = TURNS_PER_ASKING;
        }
        for event in &events[..count] {
            let tag = event.data;
            match tag {
                // The loop is awake now, and has taken note of it.
                tag::WAKE | tag::ALARM => {}
                tag::TIMER => self.consume_timer(),
                key => FdTable::dispatch(&self.local, key, Cause::Readable),
            }
        }
        Ok(count > 0 || self.heard)
    }

    /// The loop may have slept: at once, for what handlers push from now on needs no bell.
    fn woken(&mut self) {
        step::begin();
        self.heard |= self.local.shared.wake().awaken();
        self.asked_at = Some(self.local.shared.clock().coarse());
    }

    fn consume_timer(&mut self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.timer_fd, &mut count);
        self.armed = None;
    }

    fn fire_timers(&mut self) {
        let mut timers = self.local.timers.borrow_mut();
        if timers.is_empty() {
            return;
        }
        timers.take_due(self.local.shared.clock().now(), &mut self.due);
        drop(timers);
        self.local
            .shared
            .counters()
            .timers
            .add(self.due.len() as u64);
        for waker in self.due.drain(..) {
            guarded(&self.name, "a timer's waker", || waker.wake());
        }
    }

    /// Sets the timer fd to the earliest deadline, if that changed.
    fn arm_timer(&mut self) -> Result<(), LoopError> {
        let clock = self.local.shared.clock();
        let deadline = self.local.timers.borrow_mut().next_deadline();
        if clock.is_manual() {
            // It is advanced by somebody who then notifies.
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

    /// Drops everything that runs or may run in this thread, until nothing is left: what is dropped
    /// may wake, start and register others.
    fn cancel_all(&mut self) {
        loop {
            let mut arrived = std::mem::take(&mut self.arrived);
            let mut rest = drop_each(&self.name, arrived.drain(..));
            self.local.shared.take_remote(&mut arrived);
            rest |= drop_each(&self.name, arrived);
            self.local.ready.borrow_mut().clear();
            rest |= task::drop_all(&self.local);
            rest |= FdTable::clear(&self.local);
            rest |= BottomHalves::clear(&self.local);
            if !rest {
                return;
            }
        }
    }
}

impl AsFd for EventLoop {
    /// An epoll instance: readable when [`EventLoop::dispatch`] has something to do (but see
    /// [`LoopConfig::alone`]).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outer.as_ref().unwrap_or(&self.local.epoll).as_fd()
    }
}

impl AsRawFd for EventLoop {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        let scope = Scope::enter(&self.local);
        self.local.shutting_down.set(true);
        guarded(&self.name, "what waited at the gate", || {
            self.local.shared.gate().destroy();
        });
        self.cancel_all();
        drop_each(&self.name, self.local.shared.close());
        self.cancel_all();
        self.local.engines.finish();
        drop(scope);
    }
}

/// Runs one piece of the loop's work; a panic in it ends that piece, not the loop. False if it did.
pub(crate) fn guarded<T>(loop_name: &str, what: &str, work: impl FnOnce() -> T) -> bool {
    let done = std::panic::catch_unwind(AssertUnwindSafe(work)).is_ok();
    if !done {
        tracing::error!(loop_name, "{what} panicked, and has ended with that");
    }
    done
}

/// Drops a hold on foreign code after a call of it, which may have been the last: its destructor is a part of
/// the call.
pub(crate) fn release<T: ?Sized>(loop_name: &str, what: &str, hold: Rc<T>) {
    if Rc::strong_count(&hold) == 1 {
        guarded(loop_name, what, || drop(hold));
    }
}

/// Wakes those who wait for what ends with a loop, each by itself.
pub(crate) fn wake_each(loop_name: &str, wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        guarded(loop_name, "a waker", || waker.wake());
    }
}

/// Drops what a loop holds at its end, each by itself: a destructor that panics must not keep the
/// others from running, nor the engines from coming to rest. True if there was anything.
pub(crate) fn drop_each<T>(loop_name: &str, items: impl IntoIterator<Item = T>) -> bool {
    let mut any = false;
    for item in items {
        any = true;
        guarded(loop_name, "what was cancelled", || drop(item));
    }
    any
}

fn add_to(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    interest: epoll::Events,
    tag: u64,
) -> io::Result<()> {
    let event = epoll::Event::new(interest, tag);
    let add = epoll::ControlOptions::EPOLL_CTL_ADD;
    epoll::ctl(epoll.as_raw_fd(), add, fd.as_raw_fd(), event)
}

fn wait_for(epoll: &OwnedFd, millis: i32, events: &mut [epoll::Event]) -> io::Result<usize> {
    match epoll::wait(epoll.as_raw_fd(), millis, events) {
        // A completion delivered as task work interrupts the wait: look again at once.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
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
