//! [`JobRegistry`]: all jobs of a machine by name.
//!
//! Any thread. Locks are taken in the order job, registry; creating a job takes them the other way
//! round, but nobody else knows that job yet.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::driver::JobDriver;
use super::error::{CreateError, VerbError};
use super::group::JobGroup;
use super::handle::Job;
use super::id::JobId;
use super::info::{BlockJobInfo, JobInfo};
use super::lifecycle::Life;
use super::state::{JobState, JobVerb};
use crate::error::BlockError;
use crate::event::EventSink;
use crate::home::Home;
use crate::node::Node;

/// What every job needs to be told at its creation.
#[derive(Debug, Clone)]
pub struct JobOptions {
    /// Its name.
    pub id: JobId,
    /// Go from pending on without `job-finalize`.
    pub auto_finalize: bool,
    /// Go away without `job-dismiss`.
    pub auto_dismiss: bool,
    /// Bytes per second; 0: no limit.
    pub speed: u64,
    /// The jobs that it succeeds with; it is alone if none is given.
    pub group: Option<Arc<JobGroup>>,
}

impl JobOptions {
    /// The defaults of QMP's commands: no limit, and nothing to be done by hand.
    #[must_use]
    pub fn new(id: JobId) -> Self {
        Self {
            id,
            auto_finalize: true,
            auto_dismiss: true,
            speed: 0,
            group: None,
        }
    }

    /// As a command asks for them, for a job on `node`: without a name it has that of the node's disk.
    ///
    /// # Errors
    /// No name can be had, or it is not well formed; the speed is negative.
    pub(crate) fn asked_for(
        node: &Node,
        job_id: Option<&str>,
        speed: i64,
        auto_finalize: Option<bool>,
        auto_dismiss: Option<bool>,
    ) -> Result<Self, BlockError> {
        let refused = |error: CreateError| BlockError::Refused(error.to_string());
        let backends = node.backends();
        let backend = backends.first().map(|backend| backend.name());
        let id = JobId::choose(job_id, backend).map_err(refused)?;
        let mut options = Self::new(id).with_speed(speed).map_err(refused)?;
        options.auto_finalize = auto_finalize.unwrap_or(options.auto_finalize);
        options.auto_dismiss = auto_dismiss.unwrap_or(options.auto_dismiss);
        Ok(options)
    }

    /// Sets the speed as a command gives it.
    ///
    /// # Errors
    /// [`CreateError::NegativeSpeed`].
    pub fn with_speed(mut self, speed: i64) -> Result<Self, CreateError> {
        self.speed = u64::try_from(speed).map_err(|_| CreateError::NegativeSpeed)?;
        Ok(self)
    }
}

/// All jobs. A cheap handle: clones are the same registry.
#[derive(Clone)]
pub struct JobRegistry {
    shared: Arc<Shared>,
    events: Arc<dyn EventSink>,
}

#[derive(Default)]
pub(super) struct Shared {
    jobs: Mutex<Jobs>,
}

#[derive(Default)]
struct Jobs {
    /// In order of creation.
    all: Vec<Arc<Job>>,
    /// Names that jobs are going to have.
    held_ids: Vec<String>,
    shutting_down: bool,
}

impl Jobs {
    /// # Errors
    /// The name is taken, or all jobs are to end.
    fn check_new(&self, id: &str) -> Result<(), NotNew> {
        if self.shutting_down {
            return Err(NotNew::ShuttingDown);
        }
        let job = self.all.iter().find(|job| job.id() == id);
        if job.is_some() || self.held_ids.iter().any(|held| held == id) {
            return Err(NotNew::IdInUse(job.cloned()));
        }
        Ok(())
    }
}

/// Why there can be no job of that name.
enum NotNew {
    /// It is this one's, or is held for one that is going to be.
    IdInUse(Option<Arc<Job>>),
    ShuttingDown,
}

impl NotNew {
    /// Not under the registry's lock: a job that goes away takes that under its own.
    fn into_error(self, id: &JobId) -> CreateError {
        let id = id.to_string();
        match self {
            Self::IdInUse(job) => CreateError::IdInUse {
                id,
                has_ended: job.is_some_and(|job| JobVerb::Dismiss.allowed_in(job.state())),
            },
            Self::ShuttingDown => CreateError::ShuttingDown { id },
        }
    }
}

/// The name of a job that is going to be: nobody else gets it until this is dropped. Who then creates the job at once,
/// without waiting for anything, gets it.
pub(crate) struct HeldId {
    registry: Arc<Shared>,
    id: String,
}

impl Drop for HeldId {
    fn drop(&mut self) {
        let mut jobs = self.registry.jobs.lock();
        jobs.held_ids.retain(|held| *held != self.id);
    }
}

impl Shared {
    pub(super) fn is_shutting_down(&self) -> bool {
        self.jobs.lock().shutting_down
    }

    pub(super) fn remove(&self, job: &Job) {
        self.jobs
            .lock()
            .all
            .retain(|other| !std::ptr::eq(Arc::as_ptr(other), job));
    }
}

impl JobRegistry {
    /// An empty registry; its jobs tell their events to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn EventSink>) -> Self {
        Self {
            shared: Arc::default(),
            events,
        }
    }

    /// Keeps a name for a job that can't be created yet.
    ///
    /// # Errors
    /// [`CreateError::IdInUse`], [`CreateError::ShuttingDown`].
    pub(crate) fn hold(&self, id: &JobId) -> Result<HeldId, CreateError> {
        let mut jobs = self.shared.jobs.lock();
        if let Err(error) = jobs.check_new(id.as_str()) {
            drop(jobs);
            return Err(error.into_error(id));
        }
        jobs.held_ids.push(id.to_string());
        Ok(HeldId {
            registry: Arc::clone(&self.shared),
            id: id.to_string(),
        })
    }

    /// Creates a job that will do `driver`'s work in the event loop `home`, and keeps that until it has
    /// ended.
    ///
    /// The creator calls [`Job::start`] or [`Job::discard`] when it has made everything ready. If
    /// the loop ends before the job does, the job fails.
    ///
    /// # Errors
    /// [`CreateError::IdInUse`], [`CreateError::ShuttingDown`].
    pub fn create(
        &self,
        options: JobOptions,
        driver: Box<dyn JobDriver>,
        home: impl Into<Home>,
    ) -> Result<Arc<Job>, CreateError> {
        let mut jobs = self.shared.jobs.lock();
        if let Err(error) = jobs.check_new(options.id.as_str()) {
            drop(jobs);
            return Err(error.into_error(&options.id));
        }
        let registry = Arc::downgrade(&self.shared);
        let job = Arc::new(Job::new(
            options,
            driver,
            home.into(),
            registry,
            Arc::clone(&self.events),
        ));
        let created = job.transition(&mut job.lock(), JobState::Created);
        debug_assert!(created.is_ok());
        job.group().join(&job);
        jobs.all.push(Arc::clone(&job));
        drop(jobs);
        Life::begin(&job);
        Ok(job)
    }

    /// All jobs in order of creation.
    #[must_use]
    pub fn jobs(&self) -> Vec<Arc<Job>> {
        self.shared.jobs.lock().all.clone()
    }

    /// The job named `id`.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Job>> {
        self.shared
            .jobs
            .lock()
            .all
            .iter()
            .find(|job| job.id() == id)
            .cloned()
    }

    /// The job that a `block-job-*` command names.
    ///
    /// # Errors
    /// [`VerbError::BlockJobNotFound`].
    pub fn find_block_job(&self, id: &str) -> Result<Arc<Job>, VerbError> {
        self.get(id)
            .ok_or_else(|| VerbError::BlockJobNotFound { id: id.to_owned() })
    }

    /// The job that a `job-*` command names.
    ///
    /// # Errors
    /// [`VerbError::JobNotFound`].
    pub fn find_job(&self, id: &str) -> Result<Arc<Job>, VerbError> {
        self.get(id).ok_or(VerbError::JobNotFound)
    }

    /// The answer to `query-block-jobs`.
    #[must_use]
    pub fn query_block_jobs(&self) -> Vec<BlockJobInfo> {
        self.jobs().iter().map(|job| job.block_job_info()).collect()
    }

    /// The answer to `query-jobs`.
    #[must_use]
    pub fn query_jobs(&self) -> Vec<JobInfo> {
        self.jobs().iter().map(|job| job.info()).collect()
    }

    /// What those jobs wait for that have been waiting for a second or longer, for people: a line for each.
    #[must_use]
    pub fn describe_awaited(&self) -> Vec<String> {
        let jobs = self.jobs().into_iter();
        let waiting = jobs.filter_map(|job| {
            let request = job.awaited().into_iter().next()?;
            Some(format!("{} for {request}", job.kind().named(job.id())))
        });
        waiting.collect()
    }

    /// Cancels all jobs by force, waits until each has ended, and forgets them; no new ones are
    /// taken. Jobs that are just being made final end as they would have.
    ///
    /// No drained section may hold the jobs for ever. What they wait for is not said in the log meanwhile: that is left to the
    /// caller, by [`describe_awaited`](Self::describe_awaited).
    pub async fn shut_down(&self) {
        self.shared.jobs.lock().shutting_down = true;
        let jobs = self.jobs();
        for job in &jobs {
            // Refused only if the job is at its end anyway.
            if let Err(error) = job.cancel(true) {
                tracing::debug!(%error, "job is not cancelled");
            }
        }
        for job in jobs {
            job.concluded().await;
            if let Err(error) = job.dismiss() {
                tracing::debug!(%error, "job has gone by itself");
            }
        }
    }
}

impl fmt::Debug for JobRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.jobs().iter().map(|job| job.id().to_owned()))
            .finish()
    }
}
