//! [`Parting`]: how a job ends whose target hangs.
//!
//! What is on its way to the target belongs to the kernel until it returns; nobody can call it back. But the
//! disk has nothing to do with it. So a job that gives up begins nothing new and lets go of the guests, and its end
//! waits for the target only for a while ([`PATIENCE`]), in which one that works returns everything. Then the filter
//! is taken out and the source given back. The target is *left to its requests*: it stays blocked and written to, its
//! locks stay where they are, and every section over it waits, until the last has returned. None of them begins anything new.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{Either, select};
use sluice_aio::current;

use crate::driver::{Background, Running};
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::job::{JobContext, JobError};
use crate::node::Node;
use crate::permission::Access;

#[cfg(test)]
pub(crate) mod tests;

/// How long the end of a job waits for a target.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Nothing is begun any more: the job has given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GivenUp;

/// Whether a job still wants what it copies, and what of that is under way. Any thread.
#[derive(Debug, Default)]
pub(crate) struct Parting {
    /// The job has come to its end without success: no guest waits for the target any more.
    over: AtomicBool,
    ended: Event,
    /// Looks of copies at the source that have not ended.
    at_source: Arc<Background>,
    /// What has not ended at the target, that included for which nobody waits.
    at_target: Arc<Background>,
}

/// The target of a job, and what the job does with it.
pub(crate) struct Target<'a> {
    pub(crate) graph: &'a Arc<Graph>,
    pub(crate) node: &'a Arc<Node>,
    pub(crate) role: &'static str,
    pub(crate) access: Access,
    /// Who stands above it for the job and leaves it at once; none if the job's filter does.
    pub(crate) user: Option<Parent>,
}

impl Parting {
    /// The looks at the source are counted by `at_source`.
    pub(crate) fn counted_by(at_source: &Arc<Background>) -> Self {
        Self {
            at_source: Arc::clone(at_source),
            ..Self::default()
        }
    }

    /// From now on nothing is begun, and no guest waits for the target.
    pub(crate) fn give_up(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.ended.notify(usize::MAX);
    }

    /// Whether the job has given up.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Completes when the job has given up.
    pub(crate) async fn given_up(&self) {
        while !self.is_over() {
            let ended = self.ended.listen();
            if !self.is_over() {
                ended.await;
            }
        }
    }

    /// # Errors
    /// The job has given up.
    pub(crate) fn check_going_on(&self) -> std::result::Result<(), GivenUp> {
        match self.is_over() {
            false => Ok(()),
            true => Err(GivenUp),
        }
    }

    /// Counts a look at the source, until what is returned is dropped.
    ///
    /// # Errors
    /// The job has given up: nothing is begun any more.
    pub(crate) fn look_at_source(&self) -> std::result::Result<Running, GivenUp> {
        let running = self.at_source.begin();
        self.check_going_on()?;
        Ok(running)
    }

    /// Waits until nothing that was counted looks at the source.
    pub(crate) async fn source_idle(&self) {
        self.at_source.wait_idle().await;
    }

    /// Counts something that may be at the target, until what is returned is dropped.
    pub(crate) fn begin_at_target(&self) -> Running {
        self.at_target.begin()
    }

    /// Waits until nothing that was counted is at the target.
    pub(crate) async fn target_idle(&self) {
        self.at_target.wait_idle().await;
    }

    /// Waits for `idle`, or until the job was cancelled by force: then sections over the target wait until all has
    /// `returned`, and those over the source only until nothing reads it.
    pub(crate) async fn settle(
        &self,
        job: &JobContext,
        target: &Node,
        idle: impl Future<Output = ()>,
        returned: impl Future<Output = ()> + 'static,
    ) {
        if let Either::Right(_) = select(pin!(idle), pin!(job.cancelled())).await {
            let running = target.left_behind().begin();
            current::spawn_local(async move {
                returned.await;
                drop(running);
            })
            .detach();
            self.source_idle().await;
        }
    }

    /// Waits for what is under way, once the job has given up: for the source as long as it takes, until all has
    /// `returned` from the target only for [`PATIENCE`]. Says whether the target was left to its requests then, which
    /// give it back.
    pub(crate) async fn settle_at_end<F: Future<Output = ()> + 'static>(
        &self,
        job: &JobContext,
        target: Target<'_>,
        returned: impl Fn() -> F,
    ) -> bool {
        self.source_idle().await;
        let settled = pin!(returned());
        let Either::Right(_) = select(settled, pin!(current::sleep(PATIENCE))).await else {
            return false;
        };
        let (id, node) = (job.job().id(), target.node.name());
        tracing::warn!(
            job = id,
            target = node,
            "the target hangs; the job ends without it"
        );
        if let Err(error) = leave(job, target, returned()) {
            tracing::error!(%error, "the target can't be left alone");
            returned().await;
            return false;
        }
        true
    }

    /// Flushes the target, in a task of its own: a forced cancel ends the wait for it.
    ///
    /// # Errors
    /// The job was cancelled.
    pub(crate) async fn flush(
        &self,
        job: &JobContext,
        target: &Arc<Node>,
    ) -> std::result::Result<Result<()>, JobError> {
        let (running, target) = (self.begin_at_target(), Arc::clone(target));
        let flush = current::spawn_local(async move {
            let flushed = target.flush().await;
            drop(running);
            flushed
        });
        match select(flush, pin!(job.cancelled())).await {
            Either::Left((Ok(flushed), _)) => Ok(flushed),
            // The loop is at its end.
            Either::Left((Err(_), _)) => Err(JobError::Cancelled),
            Either::Right(_) => Err(JobError::Cancelled),
        }
    }
}

/// A target whose job has ended before its requests; dropped, when they have returned, or their loop is at its end.
struct Left {
    graph: Arc<Graph>,
    target: Arc<Node>,
    role: &'static str,
    /// Stands above the target for the job.
    parent: Parent,
    /// What sections wait for.
    running: Option<Running>,
}

impl Drop for Left {
    fn drop(&mut self) {
        self.running = None;
        self.graph.let_go(&self.target, &self.parent, self.role);
        self.target.unblock();
        self.graph.remove_if_unused(&self.target);
        tracing::info!(node = self.target.name(), "the last request has returned");
    }
}

/// Puts the target into the keeping of its requests, until all have `returned`.
fn leave(
    job: &JobContext,
    target: Target<'_>,
    returned: impl Future<Output = ()> + 'static,
) -> Result<()> {
    let Target {
        graph,
        node,
        role,
        access,
        user,
    } = target;
    let (kind, id) = (job.job().kind().name(), job.job().id());
    let parent = Parent::Claim(format!("the last writes of {kind} job '{id}'").into());
    let mut change = graph.transaction();
    if let Some(user) = user {
        change.detach(node, &user, role);
    }
    change.attach(node, parent.clone(), role, access);
    change.commit()?;
    node.block_again(&format!(
        "{kind} '{id}', whose last writes have not returned"
    ));
    let left = Left {
        graph: Arc::clone(graph),
        target: Arc::clone(node),
        role,
        parent,
        running: Some(node.left_behind().begin()),
    };
    current::spawn_local(async move {
        returned.await;
        drop(left);
    })
    .detach();
    Ok(())
}
