//! The job itself, for both directions, and the change of the chain at its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, LocalBoxFuture};
use rustix::io::Errno;
use sluice_aio::IoBuffer;

use super::claimed::Claimed;
use super::walk::{CopyError, Walk};
use crate::driver::{Allocation, BlockFuture, Driver, Edge, RequestFlags, Role};
use crate::event::IoOperation;
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::job::{
    Awaited, AwaitedOperation, IoSide, JobContext, JobDriver, JobError, JobKind, OnError, here,
};
use crate::node::Node;
use crate::parting::{GivenUp, Parting, returned_or_left};
use crate::permission::Access;

/// What a commit's base is to the job.
pub(super) const BASE_ROLE: &str = "base";

/// `commit_top`: the filter above the images that are committed. It uses nothing of them, so that their
/// base may be written to: what is written there is what those above it show already.
#[derive(Debug)]
pub(super) struct CommitTop(pub(super) Edge);

impl Driver for CommitTop {
    fn format_name(&self) -> &'static str {
        "commit_top"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.0)
    }

    fn child_access(&self, _role: Role, _above: Access) -> Access {
        Access::NONE
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        let below = self.0.node();
        BlockFuture::new(async move { below.read(offset, buffer).await })
    }
}

/// Where the data goes, and what the chain looks like afterwards.
#[derive(Debug)]
pub(super) enum Direction {
    /// Up into `layer`, whose backing image is `base` then, or none.
    Stream {
        layer: Arc<Node>,
        base: Option<Arc<Node>>,
    },
    /// Down into `base`, on which those stand then who stood above the filter.
    Commit { base: Arc<Node> },
}

impl Direction {
    /// The node that is written to.
    pub(super) fn written(&self) -> &Arc<Node> {
        match self {
            Self::Stream { layer, .. } => layer,
            Self::Commit { base } => base,
        }
    }
}

/// The images that the job works on, with its filter. What copies hold on to, also when the job has ended.
pub(super) struct Chain {
    pub(super) direction: Direction,
    pub(super) walk: Walk,
    pub(super) claimed: Arc<Claimed>,
    /// Shared with the filter, if that copies.
    pub(super) parting: Arc<Parting>,
}

impl Chain {
    /// Copies one range.
    pub(super) async fn copy(&self, offset: u64, len: u64) -> Result<(), CopyError> {
        let read = |error| (IoOperation::Read, error);
        let write = |error| (IoOperation::Write, error);
        // Bounded by the walk.
        let alloc = || IoBuffer::alloc(usize::try_from(len).unwrap_or(usize::MAX));
        let requests = &self.parting.requests;
        let base = match &self.direction {
            // The filter copies up what is read through it.
            Direction::Stream { layer, .. } => {
                let _awaiting = requests.begin(layer, AwaitedOperation::Copy);
                let filter = &self.claimed.filter;
                return filter.read(offset, alloc()).await.map_err(read);
            }
            Direction::Commit { base } => base,
        };
        let given_up = |given_up: GivenUp| write(given_up.into());
        let top = &self.walk.top;
        let looking = requests.begin(top, AwaitedOperation::Look);
        let status = top.block_status(offset, len).await.map_err(read)?;
        drop(looking);
        if status.allocation == Allocation::Zero && status.len >= len {
            self.parting.check_going_on().map_err(given_up)?;
            let _awaiting = requests.begin(base, AwaitedOperation::Zeroes);
            let zeroed = base.write_zeroes(offset, len, RequestFlags::MAY_UNMAP);
            return zeroed.await.map_err(write);
        }
        let buffer = alloc();
        let reading = requests.begin(top, AwaitedOperation::Read);
        top.read(offset, buffer.clone()).await.map_err(read)?;
        drop(reading);
        self.parting.check_going_on().map_err(given_up)?;
        let _awaiting = requests.begin(base, AwaitedOperation::Write);
        let written = base.write(offset, buffer, RequestFlags::empty());
        written.await.map_err(write)
    }

    /// The node that is read, or written. What a stream reads through its filter, the filter writes too: its errors
    /// all count as the chain's.
    pub(super) fn side(&self, operation: IoOperation) -> &Arc<Node> {
        match operation {
            IoOperation::Read => &self.walk.top,
            IoOperation::Write => self.direction.written(),
        }
    }
}

/// Everything the job needs; made by [`super::start`].
pub(super) struct ChainJob {
    pub(super) chain: Arc<Chain>,
    pub(super) on_error: OnError,
    pub(super) changed: AtomicBool,
    /// The images were left to requests that have not returned.
    pub(super) left: AtomicBool,
}

/// Completes when nothing is under way.
async fn idle(parting: Arc<Parting>) {
    parting.target_idle().await;
}

fn failed(error: impl std::fmt::Display) -> JobError {
    JobError::Failed(error.to_string())
}

impl ChainJob {
    /// Judges an error by the operator's policy; returns when it is to be tried again.
    pub(super) async fn judge(
        &self,
        job: &JobContext,
        operation: IoOperation,
        errno: i32,
    ) -> Result<(), JobError> {
        let errors = [(operation, Errno::from_raw_os_error(errno))];
        let side = |operation| IoSide {
            node: self.chain.side(operation),
            policy: self.on_error,
            argument: "on-error",
        };
        job.judge_errors(&errors, side).await
    }

    /// Makes durable what was written.
    async fn flush(&self, job: &JobContext) -> Result<(), JobError> {
        let chain = &self.chain;
        let written = match &chain.direction {
            // With the filters above the layer, by which it was written to.
            Direction::Stream { .. } => &chain.claimed.below,
            Direction::Commit { base } => base,
        };
        loop {
            job.pause_point().await;
            job.check_cancelled()?;
            let flushed = chain.parting.flush(job, written);
            let Err(error) = here(flushed).await? else {
                return Ok(());
            };
            self.judge(job, IoOperation::Write, error.errno()).await?;
        }
    }

    /// Takes out of the chain what is not needed any more.
    async fn change_chain(&self, job: &JobContext) -> Result<(), JobError> {
        let holder = format!("end of job '{}'", job.job().id());
        let Chain {
            direction, claimed, ..
        } = &*self.chain;
        let Claimed {
            graph,
            filter,
            below,
            ..
        } = &**claimed;
        let written = direction.written();
        let section = graph.drain_by_job(written, &holder, job.job()).await;
        claimed.thaw();
        let mut change = graph.transaction();
        // Those who stand on the base from now on do not share what the job did with it.
        change.set_access(written, &Parent::job(job.job()), Access::NONE);
        match direction {
            Direction::Stream { layer, base } => {
                let moved = change.move_parents(filter, below);
                moved.map_err(failed)?;
                change.clear_backing(layer);
                if let Some(base) = base {
                    change.set_backing(layer, base).map_err(failed)?;
                }
            }
            Direction::Commit { base } => {
                change.move_parents(filter, base).map_err(failed)?;
            }
        }
        change.commit().map_err(failed)?;
        self.changed.store(true, Ordering::Relaxed);
        drop(section);
        Ok(())
    }

    /// Ends a job that has not changed the chain.
    async fn give_up(&self, job: &JobContext) {
        let chain = &self.chain;
        let claimed = &chain.claimed;
        chain.parting.give_up();
        let returned = || idle(Arc::clone(&chain.parting));
        if returned_or_left(job, Arc::clone(claimed), returned).await {
            return self.left.store(true, Ordering::Relaxed);
        }
        let holder = format!("end of job '{}'", job.job().id());
        let drained = claimed
            .graph
            .drain_by_job(&claimed.filter, &holder, job.job());
        let section = drained.await;
        claimed.thaw();
        claimed.take_filter_out(&Parent::job(job.job()));
        drop(section);
    }
}

impl JobDriver for ChainJob {
    fn kind(&self) -> JobKind {
        match self.chain.direction {
            Direction::Stream { .. } => JobKind::Stream,
            Direction::Commit { .. } => JobKind::Commit,
        }
    }

    fn graph(&self) -> Option<&Arc<Graph>> {
        Some(&self.chain.claimed.graph)
    }

    fn run<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(async move {
            self.copy_all(job).await?;
            self.flush(job).await
        })
    }

    fn prepare<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<(), JobError>> {
        Box::pin(self.change_chain(job))
    }

    fn abort<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            if !self.changed.load(Ordering::Relaxed) {
                self.give_up(job).await;
            }
        })
    }

    /// All of it is done apart, and left with its images.
    fn leaves_reads(&self) -> bool {
        true
    }

    fn awaited(&self, now: Duration) -> Awaited {
        self.chain.parting.awaited(now)
    }

    fn on_cancel(&self, force: bool) {
        if force {
            self.chain.parting.give_up();
        }
    }

    fn clean<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            if !self.left.load(Ordering::Relaxed) {
                self.chain.claimed.give_back(&Parent::job(job.job()));
            }
        })
    }
}
