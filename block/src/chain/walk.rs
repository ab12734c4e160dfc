//! [`Walk`]: the work of both jobs, once through the image, range by range.

use std::sync::Arc;

use sluice_aio::current;

use super::job::{Chain, ChainJob};
use crate::driver::Allocation;
use crate::error::{BlockError, Result};
use crate::event::IoOperation;
use crate::job::{AwaitedOperation, JobContext, JobError, here};
use crate::node::Node;

/// The most bytes of one copy.
const MAX_COPY: u64 = 512 << 10;
/// The most bytes that are asked about at once.
const MAX_LOOK: u64 = 1 << 30;

/// Why a copy failed, and in which direction.
pub(super) type CopyError = (IoOperation, BlockError);

/// Which ranges are copied.
#[derive(Debug)]
pub(super) struct Walk {
    /// The upper end of the images that matter.
    pub(super) top: Arc<Node>,
    /// The lowest of them; no filter.
    pub(super) lowest: Arc<Node>,
    /// What the upper end itself holds is copied too; otherwise it is left out, with what is below.
    pub(super) with_top: bool,
}

impl Walk {
    /// Whether the first part of a range is to be copied, and how long that part is.
    async fn look(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let status = self.top.layer_status(offset, len).await?;
        if status.allocation != Allocation::Below {
            return Ok((self.with_top, status.len));
        }
        let below = self.top.is_held_below(&self.lowest, offset, status.len);
        below.await
    }
}

impl ChainJob {
    /// Has everything copied that is to be.
    ///
    /// # Errors
    /// A cancel, or an error that the operator wants to end the job.
    pub(super) async fn copy_all(&self, job: &JobContext) -> std::result::Result<(), JobError> {
        let size = self.chain.walk.top.len();
        let mut at = 0;
        while at < size {
            job.progress().set_remaining(size - at);
            job.pause_point().await;
            job.check_cancelled()?;
            let delay = job.rate_delay();
            if !delay.is_zero() {
                job.sleep(delay).await;
                continue;
            }
            let looked = self.apart(job, move |chain| async move {
                let requests = &chain.parting.requests;
                let _awaiting = requests.begin(&chain.walk.top, AwaitedOperation::Look);
                chain.walk.look(at, (size - at).min(MAX_LOOK)).await
            });
            let done = match looked.await? {
                Ok((false, len)) => Ok(len),
                Ok((true, len)) => {
                    let len = len.min(MAX_COPY);
                    job.charge(len);
                    let copied = self.apart(job, move |chain| async move {
                        chain.copy(at, len).await.map(|()| len)
                    });
                    copied.await?
                }
                Err(error) => Err((IoOperation::Read, error)),
            };
            match done {
                Ok(len) => {
                    job.progress().add_done(len);
                    job.io_success();
                    at += len;
                }
                Err((operation, error)) => {
                    job.check_cancelled()?;
                    self.judge(job, operation, error.errno()).await?;
                }
            }
            here(current::yield_now()).await;
        }
        job.progress().set_remaining(0);
        Ok(())
    }

    /// Has that done by a task of its own, for which a forced cancel does not wait.
    async fn apart<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        job: &JobContext,
        work: impl FnOnce(Arc<Chain>) -> F + Send,
    ) -> std::result::Result<T, JobError> {
        here(self.chain.parting.apart(job, work(Arc::clone(&self.chain)))).await
    }
}
