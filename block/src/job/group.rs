//! [`JobGroup`]: jobs that succeed together, or not at all.
//!
//! A job alone is a group of one. Each step towards the end is taken when all members can take it: to
//! begin, to become pending, and, when every one of them was prepared, to be made final. If one fails
//! or is cancelled before that, the others are cancelled.
//!
//! Members come before any of them has begun, or are ready jobs that are completed together. Any thread; the lock is never held while a job's is
//! taken.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::error::VerbError;
use super::handle::Job;

/// A step that all take together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its creator has let it begin.
    Started,
    /// Its work is done.
    Waiting,
    /// Its last step that can fail is done.
    Prepared,
}

/// How many stages there are.
const STAGES: usize = 3;

/// None of `jobs` is to complete now; one that was to before keeps to it.
fn take_back(jobs: &[Arc<Job>]) {
    for job in jobs {
        if !job.lock().complete_requested {
            job.driver.on_complete_refused();
        }
    }
}

/// Jobs that succeed together, or not at all. All are created before any of them is started. Any thread.
#[derive(Debug, Default)]
pub struct JobGroup {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Weak<Job>>,
    reached: [usize; STAGES],
    failed: bool,
    finalize_requested: bool,
}

impl JobGroup {
    pub(super) fn join(&self, job: &Arc<Job>) {
        self.state.lock().members.push(Arc::downgrade(job));
    }

    /// Makes `jobs`, which are ready, one group and completes them: all of them switch over, or none.
    ///
    /// # Errors
    /// A job that can't be completed now, or has others it succeeds with already; nothing has changed.
    pub fn complete(jobs: &[Arc<Job>]) -> Result<(), VerbError> {
        let mut jobs = jobs.to_vec();
        // Nobody else takes the locks of two jobs; all who do so here take them in this order.
        jobs.sort_by_key(Arc::as_ptr);
        if jobs.windows(2).any(|pair| Arc::ptr_eq(&pair[0], &pair[1])) {
            return Err(VerbError::Refused("A job is named twice".to_owned()));
        }
        for (index, job) in jobs.iter().enumerate() {
            if let Err(error) = job.driver.on_complete(job) {
                take_back(&jobs[..index]);
                return Err(error);
            }
        }
        let completed = Self::complete_together(&jobs);
        if completed.is_err() {
            take_back(&jobs);
        }
        completed
    }

    fn complete_together(jobs: &[Arc<Job>]) -> Result<(), VerbError> {
        let mut cores: Vec<_> = jobs.iter().map(|job| job.lock()).collect();
        for (job, core) in jobs.iter().zip(&cores) {
            job.check_completable(core)?;
            if core.complete_requested || job.group().state.lock().members.len() > 1 {
                let why = format!("Job '{}' is completed already, or in a group", job.id());
                return Err(VerbError::Refused(why));
            }
        }
        let group = Arc::new(Self::default());
        for (job, core) in jobs.iter().zip(&mut cores) {
            group.join(job);
            group.state.lock().reached[Stage::Started as usize] += 1;
            *job.together.lock() = Arc::clone(&group);
            core.complete_requested = true;
        }
        drop(cores);
        group.wake();
        Ok(())
    }

    /// A member that will not begin.
    pub(super) fn leave(&self, job: &Job) {
        let is_it = |member: &Weak<Job>| std::ptr::eq(member.as_ptr(), job);
        self.state.lock().members.retain(|member| !is_it(member));
        self.wake();
    }

    /// One more member is that far.
    pub(super) fn reach(&self, stage: Stage) {
        self.state.lock().reached[stage as usize] += 1;
        self.wake();
    }

    /// Whether every member is that far.
    pub(super) fn have_all_reached(&self, stage: Stage) -> bool {
        let state = self.state.lock();
        state.reached[stage as usize] >= state.members.len()
    }

    /// Whether a member has failed, so that none will succeed.
    pub(super) fn has_failed(&self) -> bool {
        self.state.lock().failed
    }

    /// An operator has finalised one of them, and so all.
    pub(super) fn finalize(&self) {
        self.state.lock().finalize_requested = true;
        self.wake();
    }

    /// Whether nobody has to finalise any of them, or somebody has.
    pub(super) fn may_finalize(&self) -> bool {
        let state = self.state.lock();
        let by_itself = |member: &Weak<Job>| member.upgrade().is_none_or(|job| job.auto_finalize());
        state.finalize_requested || state.members.iter().all(by_itself)
    }

    /// `job` has failed or was cancelled: the others are cancelled.
    pub(super) fn fail(&self, job: &Job) {
        let first = !std::mem::replace(&mut self.state.lock().failed, true);
        if first {
            for sibling in self.members() {
                if !std::ptr::eq(Arc::as_ptr(&sibling), job) {
                    sibling.cancel_with_sibling();
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_finalize_requested(&self) -> bool {
        self.state.lock().finalize_requested
    }

    fn members(&self) -> Vec<Arc<Job>> {
        let state = self.state.lock();
        state.members.iter().filter_map(Weak::upgrade).collect()
    }

    fn wake(&self) {
        for member in self.members() {
            member.wake();
        }
    }
}
