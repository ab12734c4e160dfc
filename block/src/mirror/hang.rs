//! A target that hangs when the mirror has to end; see [`Parting`](crate::parting::Parting).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::job::MirrorJob;
use super::ledger::{CopyError, Ledger};
use super::start::{TARGET_ACCESS, TARGET_ROLE};
use crate::event::IoOperation;
use crate::graph::parent::Parent;
use crate::job::{JobContext, JobError};
use crate::parting::{GivenUp, Target};

impl MirrorJob {
    /// Waits until no copy is on its way, or the job was cancelled by force.
    pub(super) async fn settle_copies(&self, job: &JobContext) {
        let ledger = &self.ledger;
        let (idle, returned) = (ledger.copies.wait_idle(), settled(Arc::clone(ledger)));
        let parting = &ledger.parting;
        parting.settle(job, &self.target, idle, returned).await;
    }

    /// Waits for what is on its way to the target, for as long as that makes sense.
    ///
    /// An image of the disk's own chain is waited for without an end: it stays in that chain.
    pub(super) async fn settle_at_end(&self, job: &JobContext) {
        let parting = &self.ledger.parting;
        if self.own_chain.is_some() {
            parting.source_idle().await;
            return self.ledger.settle().await;
        }
        let target = Target {
            graph: &self.graph,
            node: &self.target,
            role: TARGET_ROLE,
            access: TARGET_ACCESS,
            user: Some(Parent::job(job.job())),
        };
        let returned = || settled(Arc::clone(&self.ledger));
        if parting.settle_at_end(job, target, returned).await {
            self.outcome.target_left.store(true, Ordering::Relaxed);
        }
    }

    /// Flushes the target; a forced cancel ends the wait for it.
    pub(super) async fn begin_flush(
        &self,
        job: &JobContext,
    ) -> Result<Result<(), CopyError>, JobError> {
        let flushed = self.ledger.parting.flush(job, &self.target).await?;
        Ok(flushed.map_err(|error| CopyError::new(IoOperation::Write, &error)))
    }
}

async fn settled(ledger: Arc<Ledger>) {
    ledger.settle().await;
}

impl From<GivenUp> for CopyError {
    fn from(GivenUp: GivenUp) -> Self {
        Self {
            operation: IoOperation::Read,
            errno: Errno::CANCELED,
        }
    }
}
