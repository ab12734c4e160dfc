//! A target that hangs when the mirror has to end; see [`Parting`](crate::parting::Parting).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::claim::{TARGET_ACCESS, TARGET_ROLE};
use super::job::MirrorJob;
use super::ledger::{CopyError, Ledger};
use crate::event::IoOperation;
use crate::job::{JobContext, JobDriver as _, JobError};
use crate::parting::{GivenUp, Target, returned_or_left};

impl MirrorJob {
    /// Waits until no copy is on its way, or the job was cancelled by force.
    pub(super) async fn settle_copies(&self, job: &JobContext) {
        let (ledger, parting) = (&self.ledger, &self.ledger.parting);
        let copied = ledger.copies.wait_idle();
        if self.own_chain.is_some() {
            // Those over its chain wait, for reads of the source too; the job for none of them.
            let returned = idle(Arc::clone(ledger));
            parting.settle(job, &self.source, copied, returned).await;
        } else {
            let returned = settled(Arc::clone(ledger));
            if parting.settle(job, &self.target, copied, returned).await {
                parting.source_idle().await;
            }
        }
    }

    /// Waits for what is on its way to the target, for as long as that makes sense. Says whether the filter is still needed: what
    /// hangs in the disk's own chain is left with all of the chain, up to the filter.
    pub(super) async fn settle_at_end(&self, job: &JobContext) -> bool {
        let returned = || settled(Arc::clone(&self.ledger));
        let is_left = if let Some(chain) = &self.own_chain {
            let idle = || idle(Arc::clone(&self.ledger));
            returned_or_left(job, Arc::clone(&chain.claimed), idle).await
        } else {
            let target = Target {
                graph: Arc::clone(&self.graph),
                node: Arc::clone(&self.target),
                role: TARGET_ROLE,
                access: TARGET_ACCESS,
                is_jobs: true,
            };
            let parting = &self.ledger.parting;
            parting.settle_at_end(job, target, returned).await
        };
        self.outcome.target_left.store(is_left, Ordering::Relaxed);
        is_left && self.own_chain.is_some()
    }

    /// Does what looks at the source. A forced cancel ends the wait for it where the job leaves its reads.
    pub(super) async fn look_at<T: 'static>(
        &self,
        job: &JobContext,
        look: impl Future<Output = T> + 'static,
    ) -> Result<T, JobError> {
        match self.leaves_reads() {
            true => self.ledger.parting.apart(job, look).await,
            false => Ok(look.await),
        }
    }

    /// Flushes the target; a forced cancel ends the wait for it.
    pub(super) async fn begin_flush(
        &self,
        job: &JobContext,
    ) -> Result<Result<(), CopyError>, JobError> {
        let written = self.ledger.tally.at_target();
        let flushed = self.ledger.parting.flush(job, &self.target).await?;
        if flushed.is_ok() {
            self.nearness.note_flushed(written);
        }
        Ok(flushed.map_err(|error| CopyError::new(IoOperation::Write, &error)))
    }
}

async fn settled(ledger: Arc<Ledger>) {
    ledger.settle().await;
}

/// Nothing reads the source any more, either.
async fn idle(ledger: Arc<Ledger>) {
    ledger.parting.source_idle().await;
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
