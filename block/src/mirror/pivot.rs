//! The pivot: the disk goes over to the target while its guest is held.
//!
//! It is made ready in the job's `prepare`, up to the swapped root, and stands from `commit` on: the
//! section between the two is what jobs that switch over together share. So all of their disks are held at
//! one instant, and what each target has then is what its guest had been told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::job::{MAX_PASSES, MirrorJob, Pace, failed};
use super::replaced::{self, Replaced};
use crate::drain::Section;
use crate::driver::DebugEvent;
use crate::graph::parent::{Parent, ParentEdge};
use crate::job::{JobContext, JobError};
use crate::node::Node;
use crate::permission::Access;

/// A pivot that was made and does not stand yet.
#[derive(Debug)]
pub(super) struct Held {
    section: Section,
    /// The one on the node whose place the target has taken, if that is not the source.
    beside: Option<Section>,
    /// What stood above the target before.
    known: Vec<ParentEdge>,
    /// Time for which a fault injector held it.
    excluded: Duration,
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Time inside a section, less what a fault injector held it for.
#[derive(Default)]
struct Stopwatch {
    excluded: std::cell::Cell<Duration>,
}

impl Stopwatch {
    async fn excluding(
        &self,
        section: &Section,
        event: impl Future<Output = crate::error::Result<()>>,
    ) -> Result<(), JobError> {
        let before = section.age();
        let result = event.await.map_err(failed);
        self.excluded
            .set(self.excluded.get() + section.age().saturating_sub(before));
        result
    }

    fn excluded(&self) -> Duration {
        self.excluded.get()
    }
}

impl MirrorJob {
    /// The pivot: returns inside the section that it has begun, with the guest held.
    async fn catch_up_in_section(&self, job: &JobContext) -> Result<Section, JobError> {
        // Much may have become dirty since the work's end, while the job waited to be finalised.
        // One pass in any case: what it copies need not be copied with the guest held.
        for _ in 0..MAX_PASSES {
            self.pass(job, Pace::Pivot).await?;
            if self.is_nearly_converged() {
                break;
            }
        }
        // So that the flush inside the section is a short one.
        self.flush_target(job, Pace::Pivot).await?;
        let holder = format!("pivot of job '{}'", job.job().id());
        let section = self
            .graph
            .drain_by_job(&self.filter, &holder, job.job())
            .await;
        // Requests that ended while draining have left marks.
        loop {
            self.copy_until(job, Pace::Pivot, || false).await?;
            self.flush_target(job, Pace::Pivot).await?;
            if self.copier.is_converged() {
                return Ok(section);
            }
            tracing::error!(job = job.job().id(), "a write inside a drained section");
        }
    }

    pub(super) async fn pivot(&self, job: &JobContext) -> Result<(), JobError> {
        let section = self.catch_up_in_section(job).await?;
        let stopwatch = Stopwatch::default();
        stopwatch
            .excluding(&section, self.target.debug_event(DebugEvent::PivotClean))
            .await?;
        let swap = !job.cancel_requested();
        let known = self.target.edges_above();
        let mut beside = None;
        if swap {
            self.fit_target().await?;
            let place = self.place();
            if let Some(node) = &place {
                let holder = format!("pivot of job '{}'", job.job().id());
                beside = Some(self.graph.drain_by_job(node, &holder, job.job()).await);
            }
            self.swap_root(job, place.as_ref())?;
            let swapped = self.target.debug_event(DebugEvent::PivotSwapped);
            if let Err(error) = stopwatch.excluding(&section, swapped).await {
                tracing::warn!(%error, "the disk is on the target all the same");
            }
        } else {
            self.take_filter_out(job)?;
        }
        // The guest goes on when every job of the group has come so far.
        *self.held.lock() = Some(Held {
            section,
            beside,
            known,
            excluded: stopwatch.excluded(),
        });
        Ok(())
    }

    /// The pivot stands: lets the guest go on.
    pub(super) fn end_pivot(&self) {
        let Some(held) = self.held.lock().take() else {
            return;
        };
        let (section, outcome) = (held.section, &self.outcome);
        let held_back = section.held_back();
        let pause = section.age().saturating_sub(held.excluded);
        let figures = [
            (&outcome.pause_us, micros(pause)),
            (&outcome.postponed, held_back.requests),
            (&outcome.longest_wait_us, micros(held_back.longest_wait)),
        ];
        for (counter, figure) in figures {
            counter.store(figure, Ordering::Relaxed);
        }
        drop(section);
        drop(held.beside);
    }

    /// Another job of the group has failed: if the disk is on the target already, puts it back where it was,
    /// before the guest goes on. Whether the filter is out.
    pub(super) fn take_pivot_back(&self, job: &JobContext) -> bool {
        let Some(held) = self.held.lock().take() else {
            return self.outcome.pivoted.load(Ordering::Relaxed);
        };
        if self.outcome.pivoted.load(Ordering::Relaxed)
            && let Err(error) = self.swap_back(job, &held.known)
        {
            tracing::error!(%error, "the disk stays on its new image");
        }
        drop(held);
        true
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
        moved.and_then(|()| change.commit()).map_err(failed)
    }
}
