//! What a job that has ended before its requests leaves in their keeping, until the last has returned.

use std::future::Future;
use std::sync::Arc;

use sluice_aio::current;

use super::NOT_RETURNED;
use crate::driver::Running;
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::parent::Parent;
use crate::graph::transaction::Transaction;
use crate::job::JobContext;
use crate::node::Node;

/// Nodes that a job can leave.
pub(crate) trait Leftover: 'static {
    /// The graph.
    fn graph(&self) -> &Arc<Graph>;

    /// Sections over this node, or over what is below it, wait for the requests.
    fn node(&self) -> &Arc<Node>;

    /// Has `user` use the nodes as `job` has used them.
    fn hand_over(&self, change: &mut Transaction<'_>, job: &Parent, user: &Parent);

    /// Tells whoever wants to use the nodes that `holder` does.
    fn block_again(&self, holder: &str);

    /// The last request has returned: makes the graph what it was before the job. Not called if the loop ends before.
    fn restore(&self, user: &Parent) -> impl Future<Output = ()>;

    /// Gives back what `user` has used.
    fn let_go(&self, user: &Parent);
}

/// What was left; dropped, when the requests have returned, or their loop is at its end.
struct Left<L: Leftover> {
    nodes: L,
    /// Uses the nodes for the job.
    user: Parent,
    /// What sections wait for.
    running: Option<Running>,
}

impl<L: Leftover> Left<L> {
    /// The last request has returned.
    async fn end(mut self) {
        self.running = None;
        self.nodes.restore(&self.user).await;
    }
}

impl<L: Leftover> Drop for Left<L> {
    fn drop(&mut self) {
        self.running = None;
        self.nodes.let_go(&self.user);
        tracing::info!(
            node = self.nodes.node().name(),
            "the last request has returned"
        );
    }
}

/// Puts the nodes into the keeping of the job's requests, until all have `returned`.
///
/// # Errors
/// The graph's; nothing has changed then.
pub(super) fn leave<L: Leftover>(
    job: &JobContext,
    nodes: L,
    returned: impl Future<Output = ()> + 'static,
) -> Result<()> {
    let (kind, id) = (job.job().kind().name(), job.job().id());
    let user = Parent::Claim(format!("the last requests of {kind} job '{id}'").into());
    let mut change = nodes.graph().transaction();
    nodes.hand_over(&mut change, &Parent::job(job.job()), &user);
    change.commit()?;
    nodes.block_again(&format!("{}{NOT_RETURNED}", job.job().kind().named(id)));
    let left = Left {
        running: Some(nodes.graph().orphan_requests(nodes.node())),
        nodes,
        user,
    };
    current::spawn_local(async move {
        returned.await;
        left.end().await;
    })
    .detach();
    Ok(())
}
