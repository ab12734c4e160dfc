//! A job whose work does what the test tells it, and a loop for it to live in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, LocalBoxFuture};
use parking_lot::Mutex;
use rustix::io::Errno;
use sluice_aio::{AioContext, Clock, EventLoop, LoopConfig};

use crate::event::tests::EventLog;
use crate::event::{BlockEvent, IoOperation};
use crate::job::*;

/// What a test tells the work to do next.
pub(super) enum Step {
    Ready,
    Return(Result<(), JobError>),
    IoError(OnError, IoOperation, Errno),
    IoSuccess,
    Sleep(Duration),
    BackOff(Duration),
}

/// The outside of a scripted job: shared with the test.
#[derive(Default)]
pub(super) struct Script {
    pub(super) steps: Mutex<VecDeque<Step>>,
    /// Hooks that were called, in order.
    pub(super) calls: Mutex<Vec<String>>,
    pub(super) verdicts: Mutex<Vec<ErrorVerdict>>,
    /// The step of the end that fails, and how.
    pub(super) fails_in: Mutex<Option<(&'static str, JobError)>>,
    pub(super) refuse_complete: Mutex<bool>,
    /// The step of the end that does not end until the test lets it go.
    pub(super) held_in: Mutex<Option<&'static str>>,
    /// What was caught up is not any more.
    pub(super) falls_behind: Mutex<bool>,
    /// How often what it held was released.
    pub(super) released: Mutex<u32>,
    pub(super) soft: bool,
    /// Turns of the work; grows when it is woken.
    pub(super) turns: Mutex<u32>,
}

pub(super) struct ScriptedDriver(pub(super) Arc<Script>);

impl ScriptedDriver {
    fn call(&self, name: &str) {
        self.0.calls.lock().push(name.to_owned());
    }

    /// A step of the end.
    async fn step(&self, job: &JobContext, name: &str) -> Result<(), JobError> {
        let script = &self.0;
        while *script.held_in.lock() == Some(name) {
            // The last can't be cancelled.
            if name != "prepare" {
                job.check_cancelled()?;
            }
            let kicked = job.job().wait(|_| job.job().take_kick().then_some(()));
            kicked.await;
        }
        let fails = script.fails_in.lock().take_if(|(step, _)| *step == name);
        fails.map_or(Ok(()), |(_, error)| Err(error))
    }

    async fn work(&self, job: &JobContext) -> Result<(), JobError> {
        loop {
            *self.0.turns.lock() += 1;
            job.check_cancelled()?;
            if job.complete_requested() || job.cancel_requested() {
                return Ok(());
            }
            let step = self.0.steps.lock().pop_front();
            match step {
                None => job.sleep_until_kicked().await,
                Some(Step::Ready) => job.transition_to_ready()?,
                Some(Step::Return(result)) => return result,
                Some(Step::IoError(policy, operation, errno)) => {
                    let verdict = job.io_error("node", policy, operation, errno);
                    self.0.verdicts.lock().push(verdict);
                    match verdict {
                        ErrorVerdict::Fail => return Err(JobError::Errno(errno)),
                        ErrorVerdict::RetryAfter(_) => {}
                        ErrorVerdict::Stopped => job.pause_point().await,
                    }
                }
                Some(Step::IoSuccess) => job.io_success(),
                Some(Step::Sleep(duration)) => {
                    let wakeup = job.sleep(duration).await;
                    self.call(&format!("woke {wakeup:?}"));
                }
                Some(Step::BackOff(duration)) => {
                    job.back_off(duration).await;
                    self.call("tries again");
                }
            }
        }
    }
}

impl JobDriver for ScriptedDriver {
    fn kind(&self) -> JobKind {
        JobKind::Mirror
    }

    fn run<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        self.call("run");
        Box::pin(self.work(job))
    }

    fn settle<'a>(&'a self, _: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.call("settle") })
    }

    fn tend<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(async {
            self.step(job, "tend").await?;
            job.rest_until_called().await
        })
    }

    fn catch_up<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(self.step(job, "catch_up"))
    }

    fn keep_up<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(async {
            self.step(job, "keep_up").await?;
            let near = || !std::mem::take(&mut *self.0.falls_behind.lock());
            while near() && !job.is_called() {
                job.check_cancelled()?;
                job.sleep_until_kicked().await;
            }
            Ok(())
        })
    }

    fn hold<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<bool, JobError>> {
        Box::pin(async {
            self.step(job, "hold").await?;
            Ok(true)
        })
    }

    fn release(&self) {
        *self.0.released.lock() += 1;
    }

    fn prepare<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<(), JobError>> {
        Box::pin(async {
            self.call("prepare");
            self.step(job, "prepare").await
        })
    }

    fn commit<'a>(&'a self, _: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.call("commit") })
    }

    fn abort<'a>(&'a self, _: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.call("abort") })
    }

    fn clean<'a>(&'a self, _: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.call("clean") })
    }

    fn cancels_softly(&self) -> bool {
        self.0.soft
    }

    fn on_cancel(&self, force: bool) {
        self.call(if force {
            "on_cancel force"
        } else {
            "on_cancel soft"
        });
    }

    fn completes(&self) -> bool {
        true
    }

    fn on_complete(&self, _: &Arc<Job>) -> Result<(), VerbError> {
        if *self.0.refuse_complete.lock() {
            return Err(VerbError::Refused("Node name 'n' not found".to_owned()));
        }
        Ok(())
    }

    fn query(&self) -> JobDetails {
        JobDetails {
            actively_synced: Some(false),
            ..JobDetails::default()
        }
    }

    fn report(&self) -> JobDetails {
        JobDetails {
            pivot_pause_us: Some(5),
            ..JobDetails::default()
        }
    }
}

/// A loop with a clock that stands still, a registry, and the events so far.
pub(super) struct World {
    pub(super) event_loop: EventLoop,
    pub(super) registry: JobRegistry,
    pub(super) clock: Clock,
    log: Arc<EventLog>,
}

impl World {
    pub(super) fn new() -> Self {
        let clock = Clock::manual();
        let config = LoopConfig {
            clock: clock.clone(),
            ..LoopConfig::default()
        };
        let event_loop = EventLoop::new("test", &config).unwrap();
        let log = Arc::new(EventLog::default());
        let registry = JobRegistry::new(Arc::clone(&log) as Arc<_>);
        Self {
            event_loop,
            registry,
            clock,
            log,
        }
    }

    pub(super) fn home(&self) -> AioContext {
        self.event_loop.context()
    }

    pub(super) fn create_with(&self, options: JobOptions, soft: bool) -> Fake {
        let script = Arc::new(Script {
            soft,
            ..Script::default()
        });
        let driver = Box::new(ScriptedDriver(Arc::clone(&script)));
        let job = self.registry.create(options, driver, &self.home()).unwrap();
        Fake { job, script }
    }

    pub(super) fn create(&self, id: &str) -> Fake {
        self.create_with(options(id), true)
    }

    /// Creates and starts a job, and runs until its work has nothing to do.
    pub(super) fn start(&mut self, id: &str) -> Fake {
        self.start_with(options(id), true)
    }

    pub(super) fn start_with(&mut self, options: JobOptions, soft: bool) -> Fake {
        let fake = self.create_with(options, soft);
        fake.job.start();
        self.rest();
        assert_eq!(fake.job.state(), JobState::Running);
        fake
    }

    /// Runs the loop until no task can go on. Nothing here depends on I/O or on real time.
    pub(super) fn rest(&mut self) {
        for _ in 0..20 {
            self.event_loop.turn(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Moves the clock.
    pub(super) fn advance(&mut self, by: Duration) {
        assert!(self.clock.advance(by));
        self.rest();
    }

    /// The events themselves.
    pub(super) fn log(&self) -> Arc<EventLog> {
        Arc::clone(&self.log)
    }

    /// The events since the last call, in short.
    pub(super) fn events(&self) -> Vec<String> {
        self.log.take().iter().map(short).collect()
    }
}

/// A scripted job and what happened to it.
pub(super) struct Fake {
    pub(super) job: Arc<Job>,
    pub(super) script: Arc<Script>,
}

impl Fake {
    /// Gives the work steps to do and lets it do them.
    pub(super) fn act(&self, world: &mut World, steps: impl IntoIterator<Item = Step>) {
        self.script.steps.lock().extend(steps);
        self.job.kick();
        world.rest();
    }

    pub(super) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.script.calls.lock())
    }
}

pub(super) fn options(id: &str) -> JobOptions {
    JobOptions::new(JobId::new(id).unwrap())
}

pub(super) fn manual(id: &str) -> JobOptions {
    JobOptions {
        auto_finalize: false,
        auto_dismiss: false,
        ..options(id)
    }
}

fn short(event: &BlockEvent) -> String {
    match event {
        BlockEvent::JobStatusChange { status, .. } => status.to_string(),
        BlockEvent::BlockJobReady(_) => "READY".to_owned(),
        BlockEvent::BlockJobCancelled(_) => "CANCELLED".to_owned(),
        BlockEvent::BlockJobPending { .. } => "PENDING".to_owned(),
        BlockEvent::BlockJobCompleted { error: None, .. } => "COMPLETED".to_owned(),
        BlockEvent::BlockJobCompleted {
            error: Some(error), ..
        } => format!("COMPLETED: {error}"),
        BlockEvent::BlockJobError {
            operation, action, ..
        } => {
            format!("ERROR {operation:?} {action:?}")
        }
        BlockEvent::BlockIoError { .. } => "BLOCK_IO_ERROR".to_owned(),
        BlockEvent::DeviceTrayMoved { .. } => "DEVICE_TRAY_MOVED".to_owned(),
    }
}
