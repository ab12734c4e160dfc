//! [`Parting`]: how a job ends whose target hangs.
//!
//! What is on its way to the target belongs to the kernel until it returns; nobody can call it back. But the
//! disk has nothing to do with it. So a job that gives up begins nothing new and lets go of the guests, and its end
//! waits for the target only for a while ([`PATIENCE`]), in which one that works returns everything. Then the filter
//! is taken out and the source given back. The target is *left to its requests*: it stays blocked and written to, its
//! locks stay where they are, and every section over it waits, until the last has returned. None of them begins anything new.
//!
//! A job that copies from image to image of a disk's own chain leaves all of that, in the same way
//! ([`chain::Claimed`](crate::chain)).

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use event_listener::{Event, listener};
use futures_util::future::{Either, select};
use sluice_aio::current;

use crate::driver::{Background, Running};
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::graph::transaction::Transaction;
pub(crate) use crate::job::PATIENCE;
use crate::job::{Awaited, AwaitedOperation, JobContext, JobError, Requests};
use crate::node::Node;
use crate::permission::Access;

mod left;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use left::Leftover;

/// How the holder of a target ends whose job has ended without it.
pub(crate) const NOT_RETURNED: &str = ", whose last requests have not returned";

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
    /// What the job has asked of nodes, with whatever waits for that on its account.
    pub(crate) requests: Arc<Requests>,
}

/// The target of a job, and what the job does with it.
pub(crate) struct Target {
    pub(crate) graph: Arc<Graph>,
    pub(crate) node: Arc<Node>,
    pub(crate) role: &'static str,
    pub(crate) access: Access,
    /// The job itself stands above it, and leaves it at once; otherwise its filter does.
    pub(crate) is_jobs: bool,
}

impl Leftover for Target {
    fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    fn node(&self) -> &Arc<Node> {
        &self.node
    }

    fn hand_over(&self, change: &mut Transaction<'_>, job: &Parent, user: &Parent) {
        if self.is_jobs {
            change.detach(&self.node, job, self.role);
        }
        change.attach(&self.node, user.clone(), self.role, self.access);
    }

    fn block_again(&self, holder: &str) {
        self.node.block_again(holder);
    }

    async fn restore(&self, _user: &Parent) {}

    fn let_go(&self, user: &Parent) {
        self.graph.let_go(&self.node, user, self.role);
        self.node.unblock();
        self.graph.remove_if_unused(&self.node);
    }
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

    /// What the job, or a guest on its account, has been waiting for since a moment ago or longer, the oldest first. When the job has given up
    /// no guest waits any more: what guests' writes have begun is the job's own then.
    pub(crate) fn awaited(&self, now: Duration) -> Awaited {
        let mut awaited = self.requests.awaited(now);
        if self.is_over() {
            awaited.turn = None;
            let requests = awaited.requests.iter_mut();
            requests.for_each(|request| request.of_guest = false);
        }
        awaited
    }

    /// Completes when the job has given up.
    pub(crate) async fn given_up(&self) {
        while !self.is_over() {
            // Each guest's write to both sides waits for this: the listener has its place in the future.
            listener!(self.ended => ended);
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

    /// Waits for `idle`, or until the job was cancelled by force, and says whether it was: then sections over `node` wait until
    /// all has `returned`.
    pub(crate) async fn settle(
        &self,
        job: &JobContext,
        node: &Node,
        idle: impl Future<Output = ()>,
        returned: impl Future<Output = ()> + 'static,
    ) -> bool {
        let Either::Right(_) = select(pin!(idle), pin!(job.cancelled())).await else {
            return false;
        };
        let running = node.left_behind().begin();
        current::spawn_local(async move {
            returned.await;
            drop(running);
        })
        .detach();
        true
    }

    /// Waits for what is under way, once the job has given up: for the source as long as it takes, until all has
    /// `returned` from the target only for [`PATIENCE`]. Says whether the target was left to its requests then, which
    /// give it back.
    pub(crate) async fn settle_at_end<F: Future<Output = ()> + 'static>(
        &self,
        job: &JobContext,
        target: Target,
        returned: impl Fn() -> F,
    ) -> bool {
        self.source_idle().await;
        returned_or_left(job, target, returned).await
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
        let target = Arc::clone(target);
        let awaiting = self.requests.begin(&target, AwaitedOperation::Flush);
        let flush = async move {
            let flushed = target.flush().await;
            drop(awaiting);
            flushed
        };
        self.apart(job, flush).await
    }

    /// Has `work` at the target done, in a task of its own: a forced cancel ends the wait for it.
    ///
    /// # Errors
    /// The job was cancelled.
    pub(crate) async fn apart<T: 'static>(
        &self,
        job: &JobContext,
        work: impl Future<Output = T> + 'static,
    ) -> std::result::Result<T, JobError> {
        let running = self.begin_at_target();
        let work = current::spawn_local(async move {
            let done = work.await;
            drop(running);
            done
        });
        match select(work, pin!(job.cancelled())).await {
            Either::Left((Ok(done), _)) => Ok(done),
            // The loop is at its end.
            Either::Left((Err(_), _)) => Err(JobError::Cancelled),
            Either::Right(_) => Err(JobError::Cancelled),
        }
    }
}

/// Waits for what has to return from the nodes, for [`PATIENCE`]. Then leaves them to it, and says so: the job ends without them.
pub(crate) async fn returned_or_left<F: Future<Output = ()> + 'static>(
    job: &JobContext,
    nodes: impl Leftover,
    returned: impl Fn() -> F,
) -> bool {
    let patience = pin!(current::sleep(PATIENCE));
    let Either::Right(_) = select(pin!(returned()), patience).await else {
        return false;
    };
    let (id, node) = (job.job().id(), Arc::clone(nodes.node()));
    tracing::warn!(
        job = id,
        node = node.name(),
        "requests hang; the job ends without them"
    );
    if let Err(error) = left::leave(job, nodes, returned()) {
        tracing::error!(node = node.name(), %error, "the node can't be left alone");
        returned().await;
        return false;
    }
    true
}
