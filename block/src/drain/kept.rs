//! Guests' writes that wait for a job: whoever waits for them is told, or their disk alone would get the blame.

use std::collections::HashSet;
use std::sync::Arc;

use super::SectionInner;
use crate::graph::parent::Parent;
use crate::job::Job;
use crate::node::Node;

impl SectionInner {
    /// What keeps writes for which the section waits, and whose job that is, for people.
    pub(super) fn describe_kept_writes(&self) -> Vec<String> {
        let backends: Vec<_> = {
            let held = self.held.lock();
            let busy = held.backends.iter().filter(|covered| covered.is_busy());
            busy.filter_map(|covered| covered.backend.upgrade())
                .collect()
        };
        let mut jobs = Jobs::default();
        for root in backends.iter().filter_map(|backend| backend.node()) {
            jobs.add_from(&root);
        }
        let busy = self.busy_jobs();
        let kept = jobs.found.iter().filter_map(|job| {
            let own_said = busy.iter().any(|busy| Arc::ptr_eq(busy, job));
            let kept = job.describe_kept_write(own_said)?;
            Some(format!(
                "{kept} ('job-cancel', or 'block-job-cancel' with force, lets the guest go on)"
            ))
        });
        kept.collect()
    }
}

/// The jobs that have to do with a disk.
#[derive(Default)]
struct Jobs {
    found: Vec<Arc<Job>>,
    /// Nodes that were looked at, by address.
    seen: HashSet<usize>,
}

impl Jobs {
    /// Adds those that stand right above the node, or above one below it.
    fn add_from(&mut self, node: &Arc<Node>) {
        if !self.seen.insert(Arc::as_ptr(node).addr()) {
            return;
        }
        for parent in node.parents() {
            if let Parent::Job(job) = parent
                && let Some(job) = job.upgrade()
                && !self.found.iter().any(|known| Arc::ptr_eq(known, &job))
            {
                self.found.push(job);
            }
        }
        for (_, child) in node.children() {
            self.add_from(&child);
        }
    }
}
