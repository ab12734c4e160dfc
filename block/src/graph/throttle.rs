//! Limits of a disk, as `block_set_io_throttle` sets them.

use std::collections::HashSet;
use std::sync::Arc;

use super::Graph;
use crate::backend::Backend;
use crate::drain::{Section, begin_section};
use crate::driver::throttle::{LimitsError, ThrottleLimits, ThrottleMember};
use crate::job::Job;

/// Limits that hold nobody up while it lives.
#[must_use = "they hold again when it is dropped"]
#[derive(Debug)]
pub(crate) struct LiftedLimits(Vec<Arc<ThrottleMember>>);

impl Drop for LiftedLimits {
    fn drop(&mut self) {
        self.0.iter().for_each(|member| member.set_limited());
    }
}

/// Who holds the disk while it joins or leaves a group, in diagnostics.
const HOLDER: &str = "throttle group";

impl Graph {
    /// Limits a disk's reads and writes. A disk without limits joins the group of that name, or the
    /// one named like the disk if none is given; one that has limits stays in its group unless
    /// another is named. The limits are those of the group: all its members share them. Limits that
    /// limit nothing take the disk out of its group.
    ///
    /// A group that does not exist is made, and goes with its last member. While the disk joins or
    /// leaves a group it is drained, with its limits lifted.
    ///
    /// # Errors
    /// The limits contradict each other; then nothing has changed.
    pub async fn set_io_throttle(
        &self,
        backend: &Arc<Backend>,
        group: Option<&str>,
        limits: ThrottleLimits,
    ) -> Result<(), LimitsError> {
        limits.check()?;
        let present = backend.throttle_group();
        if !limits.is_limiting() {
            if present.is_some() {
                let _section = self.hold_requests(backend).await;
                backend.set_throttle_group(None);
            }
            return Ok(());
        }
        let stays = |present: &str| group.is_none_or(|name| name == present);
        let (group, _section) = match present {
            Some(present) if stays(present.name()) => (present, None),
            _ => {
                let name = group.unwrap_or(backend.name());
                let wanted = self.throttle_groups.get_or_make(name);
                let section = self.hold_requests(backend).await;
                backend.set_throttle_group(Some(&wanted));
                (wanted, Some(section))
            }
        };
        group.set_limits(limits)
    }

    /// Lifts the limits of all nodes that `job` uses, and of those below them, while what is returned lives: a job that is to
    /// end waits for what it has asked, which a slow limit would hold up for minutes. Guests of these nodes have no limits
    /// meanwhile either, as in a section.
    pub(crate) fn lift_limits_of(&self, job: &Arc<Job>) -> LiftedLimits {
        let topology = self.topology();
        let mut members = Vec::new();
        let mut seen = HashSet::new();
        let mut nodes = topology.nodes_of(job);
        while let Some(node) = nodes.pop() {
            if seen.insert(Arc::as_ptr(&node).addr()) {
                members.extend(node.driver().throttling());
                nodes.extend(node.children().into_iter().map(|(_, child)| child));
            }
        }
        drop(topology);
        members.iter().for_each(|member| member.set_unlimited());
        LiftedLimits(members)
    }

    /// A section over one disk's own requests.
    async fn hold_requests(&self, backend: &Arc<Backend>) -> Section {
        begin_section(self, HOLDER, None, |section| section.cover(backend)).await
    }
}
