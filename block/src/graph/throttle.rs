//! Limits of a disk, as `block_set_io_throttle` sets them.

use std::sync::Arc;

use super::Graph;
use crate::backend::Backend;
use crate::drain::{Section, begin_section};
use crate::driver::throttle::{LimitsError, ThrottleLimits};

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

    /// A section over one disk's own requests.
    async fn hold_requests(&self, backend: &Arc<Backend>) -> Section {
        begin_section(self, HOLDER, None, |section| section.cover(backend)).await
    }
}
