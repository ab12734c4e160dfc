//! The first copy: what is there before the guest's next write.
//!
//! 1. *looking*: the source is asked, once and from beginning to end, where it holds what. The filter records
//!    already, so what is written behind the look is marked in any case.
//! 2. *zeroing*, unless the target is known to be zero: where the source is zero, the target is made so. Only
//!    these chunks are marked, and copied like any others: a zeroed place is claimed and looked at again, a
//!    pause, a cancel and an error meet the phase as they meet copies.
//! 3. *copying*: all that holds data is marked.
//!
//! Zeroing comes first and by itself, since it is quick, or slow, in another way than copying: an operator who
//! sees both in one number can tell nothing from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::job::{MirrorJob, failed};
use crate::dirty::DirtyBitmap;
use crate::driver::{Allocation, BlockStatus};
pub(super) use crate::job::FirstCopyPhase as Phase;
use crate::job::{AwaitedOperation, JobContext, JobDetails, JobError, here};

/// What a mirror copies besides what is written while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstCopy {
    /// The whole disk.
    All,
    /// What is not zeroes: the target holds nothing else.
    Data,
    /// What the top layer holds; the target shows the rest by a backing image of its own.
    TopLayer,
    /// What the images above the target hold, of whose chain the target is a part.
    AboveTarget,
    /// Nothing.
    Nothing,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct First {
    kind: FirstCopy,
    phase: Mutex<Phase>,
    /// Bytes to be made zeroes, as far as that is known.
    zeroes: AtomicU64,
    /// Bytes that will be marked when the zeroes are done.
    to_come: AtomicU64,
    /// Bytes of memory of the bitmap that says which those are.
    memory: AtomicU64,
}

impl First {
    pub(super) fn new(kind: FirstCopy) -> Self {
        Self {
            kind,
            phase: Mutex::new(Phase::Looking),
            zeroes: AtomicU64::new(0),
            to_come: AtomicU64::new(0),
            memory: AtomicU64::new(0),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        *self.phase.lock() == Phase::Ready
    }

    pub(super) fn enter(&self, phase: Phase) {
        *self.phase.lock() = phase;
    }

    /// Bytes that are to be copied and not marked yet.
    pub(super) fn to_come(&self) -> u64 {
        self.to_come.load(Ordering::Relaxed)
    }

    /// Bytes of memory that a bitmap takes which only the first copy has.
    pub(super) fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// The phase and how far the zeroes are, of which the job has made `zeroed` bytes up to now.
    pub(super) fn report(&self, zeroed: u64, details: &mut JobDetails) {
        let phase = *self.phase.lock();
        let len = self.zeroes.load(Ordering::Relaxed);
        let offset = match phase {
            Phase::Looking => 0,
            Phase::Zeroing => zeroed.min(len),
            Phase::Copying | Phase::Ready => len,
        };
        details.phase = Some(phase);
        details.zeroing_len = Some(len);
        details.zeroing_offset = Some(offset);
    }
}

impl MirrorJob {
    /// Makes the target zeroes where that is needed, and marks what is to be copied.
    pub(super) async fn begin_first_copy(&self, job: &JobContext) -> Result<(), JobError> {
        let dirty = &self.ledger.dirty;
        match self.first.kind {
            FirstCopy::Nothing => {}
            FirstCopy::Data => {
                self.look(job, |status| status.allocation == Allocation::Data)
                    .await?;
            }
            FirstCopy::TopLayer | FirstCopy::AboveTarget => {
                self.look(job, |status| status.allocation != Allocation::Below)
                    .await?;
            }
            FirstCopy::All => {
                let data = self.part(job).await?;
                if self.first.zeroes.load(Ordering::Relaxed) > 0 {
                    self.first.enter(Phase::Zeroing);
                    self.pass(job).await?;
                }
                dirty.merge(&data);
                drop(data);
                self.first.memory.store(0, Ordering::Relaxed);
                self.first.to_come.store(0, Ordering::Relaxed);
            }
        }
        self.first.enter(Phase::Copying);
        Ok(())
    }

    /// Marks what is `wanted` of the source.
    async fn look(
        &self,
        job: &JobContext,
        wanted: impl Fn(BlockStatus) -> bool,
    ) -> Result<(), JobError> {
        let dirty = &self.ledger.dirty;
        let mut at = 0;
        while at < dirty.size() {
            let status = self.status(job, at).await?;
            if status.allocation == Allocation::Data {
                self.copier.expect_data(at..at + status.len);
            }
            if wanted(status) {
                dirty.set_dirty(at, status.len);
            } else {
                let skipped = &self.ledger.tally.skipped;
                skipped.fetch_add(status.len, Ordering::Relaxed);
            }
            at += status.len;
        }
        Ok(())
    }

    /// Marks the chunks in which the source has nothing but zeroes; returns all others.
    async fn part(&self, job: &JobContext) -> Result<DirtyBitmap, JobError> {
        let dirty = &self.ledger.dirty;
        let data = dirty.emptied().map_err(failed)?;
        let (size, chunk) = (dirty.size(), dirty.granularity());
        job.progress().set_remaining(size);
        let mut at = 0;
        while at < size {
            let status = self.status(job, at).await?;
            let end = at + status.len;
            if status.allocation == Allocation::Zero {
                // A chunk that is zeroes in part is data.
                let first = at.next_multiple_of(chunk).min(end);
                let last = if end == size {
                    end
                } else {
                    end / chunk * chunk
                };
                let zeroes = last.saturating_sub(first);
                if zeroes == 0 {
                    data.set_dirty(at, status.len);
                } else {
                    dirty.set_dirty(first, zeroes);
                    data.set_dirty(at, first - at);
                    data.set_dirty(last, end - last);
                    self.first.zeroes.fetch_add(zeroes, Ordering::Relaxed);
                }
            } else {
                data.set_dirty(at, status.len);
                self.copier.expect_data(at..end);
            }
            at = end;
        }
        self.first.to_come.store(data.count(), Ordering::Relaxed);
        self.first.memory.store(data.memory(), Ordering::Relaxed);
        Ok(data)
    }

    /// What the source holds from `at` on; what is not known counts as data.
    async fn status(&self, job: &JobContext, at: u64) -> Result<BlockStatus, JobError> {
        job.pause_point().await;
        job.check_cancelled()?;
        let left = self.ledger.dirty.size() - at;
        let requests = &self.ledger.parting.requests;
        let awaiting = requests.begin(&self.source, AwaitedOperation::Look);
        let (kind, source) = (self.first.kind, Arc::clone(&self.source));
        let lowest = self
            .own_chain
            .as_ref()
            .map(|chain| Arc::clone(&chain.lowest));
        let look = async move {
            let _awaiting = awaiting;
            match (kind, lowest) {
                (FirstCopy::TopLayer, _) => source.layer_status(at, left).await,
                (FirstCopy::AboveTarget, Some(lowest)) => {
                    source.status_down_to(&lowest, at, left).await
                }
                _ => source.block_status(at, left).await,
            }
        };
        let status = here(self.look_at(job, look)).await?;
        Ok(status.unwrap_or(BlockStatus {
            allocation: Allocation::Data,
            len: left,
        }))
    }
}
