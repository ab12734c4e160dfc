//! [`JobGroup`]: jobs that succeed together, or not at all.
//!
//! A job alone is a group of one. Each step towards the end is taken when all members can take it: to
//! begin, to become pending, to keep their guests out, to switch over, and, when every one of them has, to be made final.
//! If one fails or is cancelled before that, the others are cancelled. One that has caught up and falls behind again while others do not
//! come to that *withdraws*. If one that keeps its guest out can't go on with that, all *retreat*: they let their guests go on, and catch up once more.
//!
//! Members come before any of them has begun, or are ready jobs that are completed together. Any thread; the lock is never held while a job's is
//! taken.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::error::VerbError;
use super::handle::Job;
use super::state::JobVerb;

/// A step that all take together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its creator has let it begin.
    Started,
    /// Its work is done.
    Waiting,
    /// What can be done with the guest running is done.
    CaughtUp,
    /// Its guest is kept out, and nothing is left to do but the switch-over.
    Held,
    /// Its last step that can fail is done.
    Prepared,
}

/// How many stages there are.
const STAGES: usize = 5;

/// The stages that are given up in a retreat.
const RETREATED: [Stage; 2] = [Stage::CaughtUp, Stage::Held];

/// The attempt to end together, counted from the group's beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Round(u64);

/// Whether a member may take its next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Others are not that far.
    NotYet,
    /// All are.
    All,
    /// One of them could not go on: all begin another round.
    Retreated,
}

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
    round: Round,
    failed: bool,
    finalize_requested: bool,
}

impl State {
    fn is_current(&self, stage: Stage, round: Round) -> bool {
        self.round == round || !RETREATED.contains(&stage)
    }

    fn standing(&self, stage: Stage, round: Round) -> Standing {
        if !self.is_current(stage, round) {
            Standing::Retreated
        } else if self.reached[stage as usize] >= self.members.len() {
            Standing::All
        } else {
            Standing::NotYet
        }
    }
}

impl JobGroup {
    pub(super) fn join(&self, job: &Arc<Job>) {
        self.state.lock().members.push(Arc::downgrade(job));
    }

    /// Makes `jobs`, which are ready, one group and completes them: all of them switch over, or none.
    ///
    /// # Errors
    /// There is none; a job that can't be completed now, or has others it succeeds with already; nothing has changed.
    pub fn complete(jobs: &[Arc<Job>]) -> Result<(), VerbError> {
        if jobs.is_empty() {
            return Err(VerbError::Refused("No job is named".to_owned()));
        }
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
            job.check_verb(core, JobVerb::Complete)?;
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
            job.note_told_to_end(core);
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

    /// The attempt of now.
    pub(super) fn round(&self) -> Round {
        self.state.lock().round
    }

    /// One more member is that far, in an attempt that may be over by now.
    pub(super) fn reach(&self, stage: Stage, round: Round) {
        let mut state = self.state.lock();
        if state.is_current(stage, round) {
            state.reached[stage as usize] += 1;
        }
        drop(state);
        self.wake();
    }

    /// Its creator has let one more begin.
    pub(super) fn start(&self) {
        self.reach(Stage::Started, Round::default());
    }

    /// Whether every member may begin.
    pub(super) fn have_all_started(&self) -> bool {
        self.standing(Stage::Started, Round::default()) == Standing::All
    }

    /// Whether every member is that far, in this attempt.
    pub(super) fn standing(&self, stage: Stage, round: Round) -> Standing {
        self.state.lock().standing(stage, round)
    }

    /// A member is not that far any more, unless all have been by now: then it is held to it. Says how they stood.
    pub(super) fn withdraw(&self, stage: Stage, round: Round) -> Standing {
        let mut state = self.state.lock();
        let standing = state.standing(stage, round);
        if standing == Standing::NotYet {
            state.reached[stage as usize] -= 1;
        }
        standing
    }

    /// A member can't go on: all begin another round, unless they have done so.
    pub(super) fn retreat(&self, round: Round) {
        let mut state = self.state.lock();
        if state.round == round {
            state.round.0 += 1;
            for stage in RETREATED {
                state.reached[stage as usize] = 0;
            }
        }
        drop(state);
        self.wake();
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
