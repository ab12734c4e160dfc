//! [`Job`]: a job as everybody but its own work sees it.
//!
//! Commands, drained sections and queries come here from any thread. They change the job's state
//! under its lock, wake its task, and return; only what is marked `async` waits for the job.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use event_listener::Event;
use parking_lot::{Mutex, MutexGuard};
use sluice_aio::{AioContext, Clock};

use super::driver::JobDriver;
use super::group::JobGroup;
use super::id::JobId;
use super::inner::Core;
use super::progress::Progress;
use super::registry::{JobOptions, Shared};
use super::state::{IllegalTransition, JobKind, JobState};
use crate::event::{BlockEvent, EventSink, JobReport};
use crate::home::Home;

/// A long-running block operation with QEMU's life cycle.
///
/// Its registry keeps it alive until it is dismissed. Any thread.
pub struct Job {
    id: JobId,
    auto_finalize: bool,
    auto_dismiss: bool,
    /// Those that it succeeds with, itself among them.
    /// What it succeeds or fails with.
    pub(super) together: Mutex<Arc<JobGroup>>,
    pub(super) driver: Box<dyn JobDriver>,
    /// That of the loop in which it was created.
    clock: Clock,
    registry: Weak<Shared>,
    events: Arc<dyn EventSink>,
    progress: Progress,
    core: Mutex<Core>,
    /// Something in `core` has changed, or `kicked` was set.
    changed: Event,
    /// The next sleep of the job's work ends at once.
    kicked: AtomicBool,
    /// The job is to end, as of now.
    pub(super) told_to_end: Event,
}

impl Job {
    pub(super) fn new(
        options: JobOptions,
        driver: Box<dyn JobDriver>,
        home: Home,
        registry: Weak<Shared>,
        events: Arc<dyn EventSink>,
    ) -> Self {
        let clock = home.context().clock().clone();
        let core = Mutex::new(Core::new(home, options.speed, clock.now()));
        Self {
            id: options.id,
            auto_finalize: options.auto_finalize,
            auto_dismiss: options.auto_dismiss,
            together: Mutex::new(options.group.unwrap_or_default()),
            driver,
            clock,
            registry,
            events,
            progress: Progress::default(),
            core,
            changed: Event::new(),
            kicked: AtomicBool::new(false),
            told_to_end: Event::new(),
        }
    }

    /// The job's name.
    #[must_use]
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// The kind of job.
    #[must_use]
    pub fn kind(&self) -> JobKind {
        self.driver.kind()
    }

    /// The event loop that the job's work runs in; it changes when its nodes go elsewhere.
    #[must_use]
    pub fn home(&self) -> AioContext {
        self.lock().home.context().clone()
    }

    /// What the job's times are measured by.
    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> JobState {
        self.lock().state
    }

    /// Whether the job goes from `Pending` on by itself.
    #[must_use]
    pub fn auto_finalize(&self) -> bool {
        self.auto_finalize
    }

    /// Whether the job goes away by itself when it has ended.
    #[must_use]
    pub fn auto_dismiss(&self) -> bool {
        self.auto_dismiss
    }

    /// Lets the created job begin.
    pub fn start(&self) {
        let before = std::mem::replace(&mut self.lock().start_requested, true);
        if !before {
            self.group().start();
        }
    }

    /// Waits until a job that was started has begun, or is at its end without: whoever tells of it then tells of no job
    /// that is only created. It needs the job's loop to come by, and the start of the others of its group; not the end of a
    /// drained section.
    pub async fn begun(&self) {
        let has_begun = |core: &mut Core| (core.state != JobState::Created).then_some(());
        self.wait(has_begun).await;
    }

    /// Drops a job that was created but will not be started, because something else failed. Neither
    /// the driver's `abort` nor `clean` is called, also if it was cancelled. Not once it was started.
    pub fn discard(&self) {
        self.lock().discarded = true;
        self.group().leave(self);
        self.wake();
    }

    /// Ends the sleep of the job's work, or the next one if it does not sleep: there is something
    /// to do.
    ///
    /// Cheap if that was said before and not yet heard, so every guest write may call it.
    pub fn kick(&self) {
        if !self.kicked.swap(true, Ordering::AcqRel) {
            self.changed.notify(usize::MAX);
        }
    }

    /// A way to [`kick`](Self::kick) the job without keeping it alive.
    #[must_use]
    pub fn kicker(self: &Arc<Self>) -> JobKicker {
        JobKicker(Arc::downgrade(self))
    }

    /// Waits until the job is `Concluded` or `Null`.
    pub async fn concluded(&self) {
        self.wait(|core| core.state.has_ended().then_some(())).await;
    }

    /// Whether all jobs are to end.
    pub(super) fn is_shut_down(&self) -> bool {
        let registry = self.registry.upgrade();
        registry.is_some_and(|registry| registry.is_shutting_down())
    }

    /// The jobs that it succeeds or fails with.
    pub(super) fn group(&self) -> Arc<JobGroup> {
        Arc::clone(&self.together.lock())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// Makes everybody who waits look again, and ends the work's sleep.
    pub(super) fn wake(&self) {
        self.kicked.store(true, Ordering::Release);
        self.changed.notify(usize::MAX);
    }

    /// The same without an end to the work's sleep.
    pub(super) fn tell_of_change(&self) {
        self.changed.notify(usize::MAX);
    }

    /// Takes notice of a kick.
    pub(super) fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::AcqRel)
    }

    /// Waits until `ready`, which is called under the job's lock after every change, returns
    /// something.
    pub(super) async fn wait<T>(&self, mut ready: impl FnMut(&mut Core) -> Option<T>) -> T {
        loop {
            let listener = self.changed.listen();
            // The lock is released before the wait; whoever changes something notifies afterwards,
            // and the listener was there before the look.
            let found = ready(&mut self.lock());
            if let Some(found) = found {
                return found;
            }
            listener.await;
        }
    }

    /// Goes to the state `to` and tells the world, in one step.
    ///
    /// # Errors
    /// [`IllegalTransition`]; nothing has changed then.
    pub(super) fn transition(
        &self,
        core: &mut Core,
        to: JobState,
    ) -> Result<(), IllegalTransition> {
        core.state.check(to)?;
        if core.state != to {
            core.state = to;
            self.emit(BlockEvent::JobStatusChange {
                id: self.id.to_string(),
                status: to,
            });
        }
        Ok(())
    }

    /// Logs that the engine left its own table: a mistake in the program that no client can bring
    /// about.
    pub(super) fn report_mistake(&self, result: Result<(), IllegalTransition>) {
        if let Err(error) = result {
            tracing::error!(job = self.id(), %error, "job engine broke its table of states");
            debug_assert!(false, "{error}");
        }
    }

    /// Emits an event; call it under the lock for events whose order matters.
    pub(super) fn emit(&self, event: BlockEvent) {
        self.events.emit(event);
    }

    pub(super) fn job_report(&self, core: &Core) -> JobReport {
        JobReport {
            kind: self.kind(),
            device: self.id.to_string(),
            len: self.progress.total(),
            offset: self.progress.current(),
            speed: core.rate.speed(),
        }
    }

    /// Leaves the registry and becomes `Null`, in this order: who sees the event may use the name
    /// again.
    pub(super) fn retire(&self, core: &mut Core) -> Result<(), IllegalTransition> {
        core.state.check(JobState::Null)?;
        if let Some(registry) = self.registry.upgrade() {
            registry.remove(self);
        }
        self.transition(core, JobState::Null)
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.id())
            .field("kind", &self.kind())
            .field("home", &self.home())
            .field("core", &*self.lock())
            .finish_non_exhaustive()
    }
}

/// Wakes a job's work; does not keep the job alive. Any thread.
#[derive(Debug, Clone)]
pub struct JobKicker(Weak<Job>);

impl JobKicker {
    /// See [`Job::kick`]. Nothing happens if the job is gone.
    pub fn kick(&self) {
        if let Some(job) = self.0.upgrade() {
            job.kick();
        }
    }
}
