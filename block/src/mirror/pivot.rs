//! The pivot: the disk goes over to the target while its guest is held.
//!
//! Its phases are those of every job's end (`docs/jobs.md`). When all jobs of the group have [come near](super::approach) the pivot
//! *begins*. In its *last stretch* the guest's writes go to both sides, whatever the copy mode, until nothing is left to
//! copy. Then, in a drained section, the bitmap is looked at again, what has failed meanwhile is copied, and the target flushed.
//! An error ends all that, and the job approaches once more. When all are there the
//! roots are swapped, which stands from `commit` on. The sections of a group last until then: so all of their disks are held at
//! one instant, and what each target has is what its guest had been told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::approach::PIVOT_BACKLOG;
use super::copier::Pace;
use super::job::{MirrorJob, failed};
use super::replaced::{self, Replaced};
use crate::drain::Section;
use crate::driver::DebugEvent;
use crate::graph::parent::{Parent, ParentEdge};
use crate::job::{JobContext, JobError};
use crate::node::Node;
use crate::permission::Access;

/// A pivot that was begun and does not stand yet.
#[derive(Debug)]
pub(super) struct Held {
    section: Section,
    /// The one on the node whose place the target has taken, if that is not the source.
    beside: Option<Section>,
    /// The filter is out, and the root swapped, unless the job was cancelled softly.
    switched: bool,
    /// What stood above the target before.
    known: Vec<ParentEdge>,
    stopwatch: Stopwatch,
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Time inside a section, less what a fault injector held it for.
#[derive(Debug, Default)]
struct Stopwatch {
    excluded: Duration,
}

impl Stopwatch {
    async fn excluding(
        &mut self,
        section: &Section,
        event: impl Future<Output = crate::error::Result<()>>,
    ) -> Result<(), JobError> {
        let before = section.age();
        let result = event.await.map_err(failed);
        self.excluded += section.age().saturating_sub(before);
        result
    }
}

impl MirrorJob {
    /// Keeps the guest out, and makes both sides the same. False if that was not possible now; the guest goes on
    /// then.
    pub(super) async fn begin_pivot(&self, job: &JobContext) -> Result<bool, JobError> {
        // However it ends, from the section on, or when the guest goes on, it is over.
        let stretch = self.ledger.begin_last_stretch();
        if !self.go_the_last_stretch(job).await? {
            return Ok(false);
        }
        let section = self.drain(job, &self.filter).await?;
        drop(stretch);
        // Requests that ended while draining may have left marks.
        loop {
            if !self.copy_and_flush(job, u64::MAX, Pace::Fast).await? {
                return Ok(false);
            }
            if self.copier.is_converged() {
                break;
            }
            tracing::error!(job = job.job().id(), "a write inside a drained section");
        }
        let mut stopwatch = Stopwatch::default();
        let clean = self.target.debug_event(DebugEvent::PivotClean);
        let clean = stopwatch.excluding(&section, clean);
        job.unless_cancelled(clean).await??;
        let beside = match self.place() {
            Some(node) if !job.cancel_requested() => Some(self.drain(job, &node).await?),
            _ => None,
        };
        *self.held.lock() = Some(Held {
            section,
            beside,
            switched: false,
            known: self.target.edges_above(),
            stopwatch,
        });
        Ok(true)
    }

    /// Leaves nothing for the section to copy but what fails: rather than hold all of the guest for that, has each of
    /// its writes wait for the target. False if that was not possible now.
    async fn go_the_last_stretch(&self, job: &JobContext) -> Result<bool, JobError> {
        job.unless_cancelled(self.ledger.recorded.wait_idle())
            .await?;
        // A guest whose writes all fail could keep it from ending.
        let most = self.copier.remaining() * 2 + PIVOT_BACKLOG;
        self.copy_and_flush(job, most, Pace::Brief).await
    }

    /// Copies what is dirty, `most` bytes or a little more, and makes it durable. False if there was an error, which is
    /// left to be judged when the guest goes on.
    async fn copy_and_flush(
        &self,
        job: &JobContext,
        most: u64,
        pace: Pace,
    ) -> Result<bool, JobError> {
        if !self.copy_rest(job, most, pace).await? {
            return Ok(false);
        }
        if let Err(error) = self.begin_flush(job).await? {
            self.ledger.report(error);
            return Ok(false);
        }
        Ok(true)
    }

    async fn drain(&self, job: &JobContext, node: &Arc<Node>) -> Result<Section, JobError> {
        let holder = format!("pivot of job '{}'", job.job().id());
        let section = self.graph.drain_by_job(node, &holder, job.job());
        job.unless_cancelled(section).await
    }

    /// Nothing was switched over: the guest goes on as before.
    pub(super) fn let_guest_go_on(&self) {
        let held = self.held.lock().take_if(|held| !held.switched);
        drop(held);
    }

    /// Swaps the root, or takes the filter out if the job was cancelled softly. It can't be cancelled any more.
    pub(super) async fn pivot(&self, job: &JobContext) -> Result<(), JobError> {
        let held = self.held.lock().take();
        let mut held = held.ok_or_else(|| failed("the disk is not held"))?;
        let agreed = self.target.debug_event(DebugEvent::PivotAgreed);
        held.stopwatch.excluding(&held.section, agreed).await?;
        if job.cancel_requested() {
            self.take_filter_out(job)?;
        } else {
            self.fit_target().await?;
            self.swap_root(job, self.place().as_ref())?;
            let swapped = self.target.debug_event(DebugEvent::PivotSwapped);
            let swapped = held.stopwatch.excluding(&held.section, swapped);
            if let Err(error) = swapped.await {
                tracing::warn!(%error, "the disk is on the target all the same");
            }
        }
        held.switched = true;
        // The guest goes on when every job of the group has come so far.
        *self.held.lock() = Some(held);
        Ok(())
    }

    /// The pivot stands: lets the guest go on.
    pub(super) fn end_pivot(&self) {
        let Some(held) = self.held.lock().take() else {
            return;
        };
        if self.outcome.pivoted.load(Ordering::Relaxed) {
            self.keep_read_only();
        }
        let (section, outcome) = (held.section, &self.outcome);
        let held_back = section.held_back();
        let pause = section.age().saturating_sub(held.stopwatch.excluded);
        let figures = [
            (&outcome.pause_us, micros(pause)),
            (&outcome.postponed, held_back.requests),
            (&outcome.longest_wait_us, micros(held_back.longest_wait)),
        ];
        for (counter, figure) in figures {
            counter.store(figure, Ordering::Relaxed);
        }
        outcome.held.store(true, Ordering::Relaxed);
        drop(section);
        drop(held.beside);
    }

    /// Makes the target read-only if the image is whose place it has taken. That somebody else writes to it all the same
    /// is no reason to fail: the disk is on it.
    fn keep_read_only(&self) {
        let replaced = self.place().unwrap_or_else(|| Arc::clone(&self.source));
        if replaced.is_read_only()
            && let Err(error) = self.graph.set_read_only(&self.target, true)
        {
            tracing::warn!(node = self.target.name(), %error, "a target stays writable");
        }
    }

    /// Another job of the group has failed: if the disk is on the target already, puts it back where it was,
    /// before the guest goes on. Whether the filter is out.
    pub(super) fn take_pivot_back(&self, job: &JobContext) -> bool {
        let Some(held) = self.held.lock().take() else {
            return false;
        };
        if self.outcome.pivoted.load(Ordering::Relaxed)
            && let Err(error) = self.swap_back(job, &held.known)
        {
            tracing::error!(%error, "the disk stays on its new image");
        }
        held.switched
    }

    fn swap_back(&self, job: &JobContext, known: &[ParentEdge]) -> Result<(), JobError> {
        let place = self.place().unwrap_or_else(|| Arc::clone(&self.source));
        let is_known = |edge: &ParentEdge| {
            let same = |other: &ParentEdge| other.parent.is_same(&edge.parent);
            known
                .iter()
                .any(|other| same(other) && other.role == edge.role)
        };
        let mut moved = self.target.edges_above();
        moved.retain(|edge| !is_known(edge));
        let mut change = self.graph.transaction();
        let back = change.move_edges(&self.target, &place, moved);
        back.map_err(failed)?;
        let own = Parent::job(job.job());
        change.set_access(&self.target, &own, Access::NONE);
        change.commit().map_err(failed)?;
        self.outcome.pivoted.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The node whose place the target takes, if that is not the source.
    fn place(&self) -> Option<Arc<Node>> {
        self.replaced.as_ref().and_then(Replaced::node)
    }

    /// Points everything above the filter to the target, which is theirs alone from then on; with
    /// them goes all use of the source. If the target takes another node's `place`, the source stays in use,
    /// above the target.
    fn swap_root(&self, job: &JobContext, place: Option<&Arc<Node>>) -> Result<(), JobError> {
        let mut change = self.graph.transaction();
        let below = match place {
            Some(node) => {
                replaced::replace(&mut change, &self.source, node, &self.target)?;
                &self.source
            }
            None => &self.target,
        };
        change.move_parents(&self.filter, below).map_err(failed)?;
        change.leave_to_job(&self.filter);
        change.set_access(&self.target, &Parent::job(job.job()), Access::NONE);
        change.commit().map_err(failed)?;
        self.outcome.pivoted.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn take_filter_out(&self, job: &JobContext) -> Result<(), JobError> {
        let mut change = self.graph.transaction();
        // Those who see the source from now on do not share what the job did with a target below it.
        change.set_access(&self.target, &Parent::job(job.job()), Access::NONE);
        let moved = change.move_parents(&self.filter, &self.source);
        change.leave_to_job(&self.filter);
        moved.and_then(|()| change.commit()).map_err(failed)
    }
}
