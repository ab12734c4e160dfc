//! One file by several nodes: no two jobs copy to one part of it, each as if it had that alone.
//!
//! Neither claims nor locks see to that. A job claims the node that it was given, and there may be others above or below, or with
//! the same file; and a backup lets others write to its target.

use std::ops::Range;
use std::sync::Arc;

use super::Graph;
use crate::driver::Role;
use crate::error::{BlockError, Result};
use crate::node::Node;

/// A part of what a node at the lower end of a graph holds.
struct Part {
    holder: Arc<Node>,
    range: Range<u64>,
}

impl Part {
    fn overlaps(&self, other: &Self) -> bool {
        let (own, others) = (&self.holder, &other.holder);
        let same_file =
            own.file_identity().is_some() && own.file_identity() == others.file_identity();
        let (first, second) = (&self.range, &other.range);
        (same_file || Arc::ptr_eq(own, others))
            && first.start < second.end
            && second.start < first.end
    }
}

impl Graph {
    /// Whether `user`, a job, may copy to `target` as far as others go that are at work in the same place.
    ///
    /// # Errors
    /// Another job has a node that holds some of it.
    pub(crate) fn check_file_is_nobodys(&self, target: &Arc<Node>, user: &str) -> Result<()> {
        let own = parts(target);
        let is_own = |part: &Part| own.iter().any(|own| own.overlaps(part));
        let path = || target.info().filename;
        let taken = self.taken_by_job(is_own, path, user);
        taken.map_or(Ok(()), Err)
    }

    /// An `error` by which the file of another node was refused to `user`: with the job that has it, if there is one.
    pub(crate) fn naming_job_of_file(&self, error: BlockError, user: &str) -> BlockError {
        let BlockError::FileInUse { path, identity } = &error else {
            return error;
        };
        let is_it = |part: &Part| part.holder.file_identity() == Some(*identity);
        let taken = self.taken_by_job(is_it, || path.clone(), user);
        taken.unwrap_or(error)
    }

    /// That a job has a node with a part for which `is_it` is true.
    fn taken_by_job(
        &self,
        is_it: impl Fn(&Part) -> bool,
        path: impl Fn() -> String,
        user: &str,
    ) -> Option<BlockError> {
        let nodes = self.nodes().into_iter();
        let of_jobs = nodes.filter(|node| node.blocker().is_some());
        let mut there = of_jobs.filter(|node| parts(node).iter().any(&is_it));
        there.find_map(|node| match node.check_not_blocked() {
            Err(BlockError::Busy { job, with, .. }) => Some(BlockError::FileOfJob {
                path: path(),
                user: user.to_owned(),
                job,
                with,
            }),
            _ => None,
        })
    }
}

/// Where writes to `node` go.
fn parts(node: &Arc<Node>) -> Vec<Part> {
    let children = node.children_by_role().into_iter();
    let own = children.filter(|(role, _)| matches!(role, Role::File | Role::Filtered));
    let own: Vec<_> = own.map(|(_, child)| child).collect();
    if own.is_empty() {
        let (holder, range) = (Arc::clone(node), 0..node.len());
        return vec![Part { holder, range }];
    }
    let mut below: Vec<_> = own.iter().flat_map(parts).collect();
    // A format that adds something may have that anywhere in its file.
    if node.driver().filtered().is_some() {
        let (offset, len) = (node.driver().offset_in_child(), node.len());
        for Part { range, .. } in &mut below {
            range.start = range.start.saturating_add(offset);
            range.end = range.end.min(range.start.saturating_add(len));
        }
    }
    below
}
