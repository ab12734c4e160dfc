//! What a mirror is to its nodes, and how it takes them: nobody else gets them, and the start may fail at any point.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::Graph;
use crate::graph::home::MAIN_NODE;
use crate::graph::parent::Parent;
use crate::graph::undo::Undo;
use crate::job::JobKind;
use crate::node::Node;
use crate::permission::{Access, Permissions};

/// What the filter's node is to the job.
pub(super) const FILTER_ROLE: &str = MAIN_NODE;
/// What the target is to the job.
pub(super) const TARGET_ROLE: &str = "target";

/// Half a copy is nothing that others could read.
pub(super) const TARGET_ACCESS: Access = Access {
    used: Permissions::WRITE,
    shared: Permissions::WRITE_UNCHANGED,
};

/// Source and target claimed for a job.
pub(super) struct Claim<'a> {
    /// Lets go of both, if the start fails.
    pub(super) undo: Undo<'a>,
    /// Stands above the target until the job is there.
    pub(super) parent: Parent,
}

impl<'a> Claim<'a> {
    /// # Errors
    /// A job has one of them, one is gone, or others use the target.
    pub(super) fn take(
        graph: &'a Graph,
        source: &Arc<Node>,
        target: &Arc<Node>,
        id: &str,
    ) -> Result<Self> {
        let blocker = JobKind::Mirror.named(id);
        let mut undo = Undo::new(graph);
        undo.block(source, &blocker)?;
        undo.block(target, &blocker)?;
        let parent = Parent::Claim(format!("{} job '{id}'", JobKind::Mirror).into());
        let mut change = graph.transaction();
        // From here on neither can be deleted any more.
        change.check_present(source)?;
        change.check_present(target)?;
        change.attach(target, parent.clone(), TARGET_ROLE, TARGET_ACCESS);
        change.commit()?;
        let (node, claimant) = (Arc::clone(target), parent.clone());
        undo.push(move |graph| graph.let_go(&node, &claimant, TARGET_ROLE));
        Ok(Self { undo, parent })
    }
}
