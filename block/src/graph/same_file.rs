//! One file by several nodes: no two jobs copy to it, each as if it had it alone.
//!
//! File locks don't see to that: a backup lets others write to its target. Nodes that stand on the same node of the file are
//! told apart by their permissions there, as windows into one file are.

use std::sync::Arc;

use super::Graph;
use crate::driver::Role;
use crate::error::{BlockError, Result};
use crate::node::Node;

impl Graph {
    /// Whether `user`, a job, may copy to `target` as far as others go that are at work in the same file.
    ///
    /// # Errors
    /// Another job has a node of that file.
    pub(crate) fn check_file_is_nobodys(&self, target: &Arc<Node>, user: &str) -> Result<()> {
        let own = own_files(target);
        let is_elsewhere = |file: &Arc<Node>| {
            let mut own = own.iter();
            own.any(|own| own.file_identity() == file.file_identity() && !Arc::ptr_eq(own, file))
        };
        let path = || target.info().filename;
        let taken = self.taken_by_job(is_elsewhere, path, user);
        taken.map_or(Ok(()), Err)
    }

    /// An `error` by which the file of another node was refused to `user`: with the job that has it, if there is one.
    pub(crate) fn naming_job_of_file(&self, error: BlockError, user: &str) -> BlockError {
        let BlockError::FileInUse { path, identity } = &error else {
            return error;
        };
        let is_it = |file: &Arc<Node>| file.file_identity() == Some(*identity);
        let taken = self.taken_by_job(is_it, || path.clone(), user);
        taken.unwrap_or(error)
    }

    /// That a job has a node with a file for which `is_it` is true.
    fn taken_by_job(
        &self,
        is_it: impl Fn(&Arc<Node>) -> bool,
        path: impl Fn() -> String,
        user: &str,
    ) -> Option<BlockError> {
        let nodes = self.nodes().into_iter();
        let of_jobs = nodes.filter(|node| node.blocker().is_some());
        let mut there = of_jobs.filter(|node| own_files(node).iter().any(&is_it));
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

/// The nodes of files to which writes to `node` go.
fn own_files(node: &Arc<Node>) -> Vec<Arc<Node>> {
    let children = node.children_by_role().into_iter();
    let own = children.filter(|(role, _)| matches!(role, Role::File | Role::Filtered));
    let mut files: Vec<_> = own.flat_map(|(_, child)| own_files(&child)).collect();
    let is_file = node.file_identity().is_some();
    files.extend(is_file.then(|| Arc::clone(node)));
    files
}
