//! The job itself, for both directions, and the change of the chain at its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::LocalBoxFuture;
use sluice_aio::IoBuffer;

use super::claimed::Claimed;
use super::walk::{CopyError, Walk};
use crate::driver::{Allocation, BlockFuture, Driver, Edge, RequestFlags, Role};
use crate::event::IoOperation;
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::job::{JobContext, JobDriver, JobError, JobKind};
use crate::node::Node;
use crate::permission::Access;

/// What the filter's node is to the job.
pub(super) const FILTER_ROLE: &str = "main node";
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

/// Everything the job needs; made by [`super::start`].
pub(super) struct ChainJob {
    pub(super) graph: Arc<Graph>,
    pub(super) direction: Direction,
    pub(super) walk: Walk,
    pub(super) filter: Arc<Node>,
    /// What is below the filter.
    pub(super) below: Arc<Node>,
    pub(super) claimed: Claimed,
    pub(super) changed: AtomicBool,
}

fn failed(error: impl std::fmt::Display) -> JobError {
    JobError::Failed(error.to_string())
}

impl ChainJob {
    /// Copies one range.
    async fn copy(&self, offset: u64, len: u64) -> Result<(), CopyError> {
        let read = |error| (IoOperation::Read, error);
        let write = |error| (IoOperation::Write, error);
        // Bounded by the walk.
        let alloc = || IoBuffer::alloc(usize::try_from(len).unwrap_or(usize::MAX));
        let base = match &self.direction {
            // The filter copies up what is read through it.
            Direction::Stream { .. } => {
                return self.filter.read(offset, alloc()).await.map_err(read);
            }
            Direction::Commit { base } => base,
        };
        let top = &self.walk.top;
        let status = top.block_status(offset, len).await.map_err(read)?;
        if status.allocation == Allocation::Zero && status.len >= len {
            let zeroed = base.write_zeroes(offset, len, RequestFlags::MAY_UNMAP);
            return zeroed.await.map_err(write);
        }
        let buffer = alloc();
        top.read(offset, buffer.clone()).await.map_err(read)?;
        let written = base.write(offset, buffer, RequestFlags::empty());
        written.await.map_err(write)
    }

    async fn flush(&self) -> Result<(), JobError> {
        let flushed = self.direction.written().flush().await;
        flushed.map_err(failed)
    }

    /// Takes out of the chain what is not needed any more.
    async fn change_chain(&self, job: &JobContext) -> Result<(), JobError> {
        let holder = format!("end of job '{}'", job.job().id());
        let written = self.direction.written();
        let section = self.graph.drain_by_job(written, &holder, job.job()).await;
        self.claimed.thaw();
        let mut change = self.graph.transaction();
        // Those who stand on the base from now on do not share what the job did with it.
        change.set_access(written, &Parent::job(job.job()), Access::NONE);
        match &self.direction {
            Direction::Stream { layer, base } => {
                let moved = change.move_parents(&self.filter, &self.below);
                moved.map_err(failed)?;
                change.clear_backing(layer);
                if let Some(base) = base {
                    change.set_backing(layer, base).map_err(failed)?;
                }
            }
            Direction::Commit { base } => {
                change.move_parents(&self.filter, base).map_err(failed)?;
            }
        }
        change.commit().map_err(failed)?;
        self.changed.store(true, Ordering::Relaxed);
        drop(section);
        Ok(())
    }

    async fn take_filter_out(&self, job: &JobContext) {
        let holder = format!("end of job '{}'", job.job().id());
        let section = self
            .graph
            .drain_by_job(&self.filter, &holder, job.job())
            .await;
        self.claimed.thaw();
        let mut change = self.graph.transaction();
        let written = self.direction.written();
        change.set_access(written, &Parent::job(job.job()), Access::NONE);
        let moved = change.move_parents(&self.filter, &self.below);
        if let Err(error) = moved.and_then(|()| change.commit()) {
            tracing::error!(%error, "the job's filter can't be taken out");
        }
        drop(section);
    }
}

impl JobDriver for ChainJob {
    fn kind(&self) -> JobKind {
        match self.direction {
            Direction::Stream { .. } => JobKind::Stream,
            Direction::Commit { .. } => JobKind::Commit,
        }
    }

    fn run<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<(), JobError>> {
        Box::pin(async move {
            let copy = async |offset, len| self.copy(offset, len).await;
            self.walk.run(job, copy).await?;
            self.flush().await
        })
    }

    fn prepare<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, Result<(), JobError>> {
        Box::pin(self.change_chain(job))
    }

    fn abort<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            if !self.changed.load(Ordering::Relaxed) {
                self.take_filter_out(job).await;
            }
        })
    }

    fn clean<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            let (graph, own) = (&self.graph, job.job());
            if let Direction::Commit { base } = &self.direction {
                graph.remove_job_parent(base, own, BASE_ROLE);
            }
            graph.remove_job_parent(&self.filter, own, FILTER_ROLE);
            graph.remove_if_unused(&self.filter);
            self.claimed.give_back(graph);
        })
    }
}
