//! A target that hangs when the job has to end.
//!
//! What is on its way to the target belongs to the kernel until it returns; nobody can call it back. But the
//! disk has nothing to do with it. So the end of a job waits for it only for a while ([`PATIENCE`]), in which a target
//! that works returns everything. Then the filter is taken out and the source given back. The target is *left
//! to its requests*: it stays blocked and written to, its locks stay where they are, and every section over it waits, until
//! the last has returned. None of them begins anything new.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{Either, select};
use rustix::io::Errno;
use sluice_aio::current;

use super::job::MirrorJob;
use super::ledger::{CopyError, Ledger};
use super::start::{TARGET_ACCESS, TARGET_ROLE};
use crate::driver::Running;
use crate::error::Result;
use crate::event::IoOperation;
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::job::{JobContext, JobError};
use crate::node::Node;

/// How long the end of a job waits for a target.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A target whose job has ended before its requests; dropped, when they have returned, or their loop is at its end.
struct Left {
    graph: Arc<Graph>,
    target: Arc<Node>,
    /// Stands above the target for the job.
    parent: Parent,
    /// What sections wait for.
    running: Option<Running>,
}

impl Drop for Left {
    fn drop(&mut self) {
        self.running = None;
        self.graph.let_go(&self.target, &self.parent, TARGET_ROLE);
        self.target.unblock();
        self.graph.remove_if_unused(&self.target);
        tracing::info!(node = self.target.name(), "the last request has returned");
    }
}

impl MirrorJob {
    /// Waits until no copy is on its way, or the job was cancelled by force: then sections over the target wait for
    /// the copies, and those over the source only until none reads it.
    pub(super) async fn settle_copies(&self, job: &JobContext) {
        let idle = pin!(self.ledger.copies.wait_idle());
        if let Either::Right(_) = select(idle, pin!(job.cancelled())).await {
            let running = self.target.left_behind().begin();
            let ledger = Arc::clone(&self.ledger);
            current::spawn_local(async move {
                ledger.settle().await;
                drop(running);
            })
            .detach();
            self.ledger.at_source.wait_idle().await;
        }
    }

    /// Waits for what is on its way to the target, for as long as that makes sense.
    ///
    /// An image of the disk's own chain is waited for without an end: it stays in that chain.
    pub(super) async fn settle_at_end(&self, job: &JobContext) {
        self.ledger.at_source.wait_idle().await;
        if self.own_chain.is_some() {
            return self.ledger.settle().await;
        }
        let settled = pin!(self.ledger.settle());
        if let Either::Right(_) = select(settled, pin!(current::sleep(PATIENCE))).await {
            let (id, target) = (job.job().id(), self.target.name());
            tracing::warn!(
                job = id,
                target,
                "the target hangs; the job ends without it"
            );
            match self.leave_target(id, job) {
                Ok(()) => self.outcome.target_left.store(true, Ordering::Relaxed),
                Err(error) => {
                    tracing::error!(%error, "the target can't be left alone");
                    self.ledger.settle().await;
                }
            }
        }
    }

    /// Puts the target into the keeping of its requests.
    fn leave_target(&self, id: &str, job: &JobContext) -> Result<()> {
        let parent = Parent::Claim(format!("the last writes of mirror job '{id}'").into());
        let own = Parent::job(job.job());
        let mut change = self.graph.transaction();
        change.detach(&self.target, &own, TARGET_ROLE);
        change.attach(&self.target, parent.clone(), TARGET_ROLE, TARGET_ACCESS);
        change.commit()?;
        self.target.block_again(&format!(
            "mirror '{id}', whose last writes have not returned"
        ));
        let left = Left {
            graph: Arc::clone(&self.graph),
            target: Arc::clone(&self.target),
            parent,
            running: Some(self.target.left_behind().begin()),
        };
        let ledger = Arc::clone(&self.ledger);
        current::spawn_local(async move {
            ledger.settle().await;
            drop(left);
        })
        .detach();
        Ok(())
    }

    /// Flushes the target, in a task of its own: a forced cancel ends the wait for it.
    pub(super) async fn begin_flush(
        &self,
        job: &JobContext,
    ) -> std::result::Result<std::result::Result<(), CopyError>, JobError> {
        let running = self.ledger.at_target.begin();
        let target = Arc::clone(&self.target);
        let flush = current::spawn_local(async move {
            let flushed = target.flush().await;
            drop(running);
            flushed
        });
        match select(flush, pin!(job.cancelled())).await {
            Either::Left((Ok(flushed), _)) => {
                Ok(flushed.map_err(|error| CopyError::new(IoOperation::Write, &error)))
            }
            // The loop is at its end.
            Either::Left((Err(_), _)) => Err(JobError::Cancelled),
            Either::Right(_) => Err(JobError::Cancelled),
        }
    }
}

impl Ledger {
    /// Counts a look at the source, until what is returned is dropped.
    ///
    /// # Errors
    /// The job has given up: nothing is begun any more.
    pub(super) fn look_at_source(&self) -> std::result::Result<Running, CopyError> {
        let running = self.at_source.begin();
        self.check_going_on()?;
        Ok(running)
    }

    /// # Errors
    /// The job has given up.
    pub(super) fn check_going_on(&self) -> std::result::Result<(), CopyError> {
        if !self.is_over() {
            return Ok(());
        }
        Err(CopyError {
            operation: IoOperation::Read,
            errno: Errno::CANCELED,
        })
    }
}
