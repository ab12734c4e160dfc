//! `throttle`: a filter whose requests keep to the limits of a [`ThrottleGroup`].
//!
//! Reads and writes wait before they go to the child; flushes, which move no bytes, do not. In a
//! drained section the node has no limits, or the section would wait for a timer.

mod bucket;
mod group;
mod limits;
mod registry;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arc_swap::ArcSwap;
use sluice_aio::IoBuffer;

use super::reopening::{Change, Reopened, Reopening};
use super::{BlockFuture, Driver, Edge, RequestFlags};
use crate::error::{BlockError, Result};
use crate::options::BlockdevOptions;
pub use group::{Admission, Direction, ThrottleGroup, ThrottleMember};
pub use limits::{LimitsError, ThrottleLimits};
pub use registry::{ThrottleError, ThrottleGroups};

/// See the [module](self).
#[derive(Debug)]
pub struct Throttle {
    file: Edge,
    /// A reopen replaces it.
    member: ArcSwap<ThrottleMember>,
}

impl Throttle {
    /// A filter over `file` that takes its turns as `member`.
    #[must_use]
    pub fn new(file: Edge, member: ThrottleMember) -> Self {
        Self {
            file,
            member: ArcSwap::from_pointee(member),
        }
    }

    fn member(&self) -> Arc<ThrottleMember> {
        self.member.load_full()
    }
}

/// The group that a node's options name.
///
/// # Errors
/// There is none.
pub(crate) fn find_group(groups: &ThrottleGroups, name: &str) -> Result<Arc<ThrottleGroup>> {
    let missing = || BlockError::Refused(format!("Throttle group '{name}' does not exist"));
    groups.get(name).ok_or_else(missing)
}

impl Driver for Throttle {
    fn format_name(&self) -> &'static str {
        "throttle"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.file)
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let bytes = buffer.len() as u64;
            self.member().admit(Direction::Read, bytes).await;
            self.file.node().read(offset, buffer).await
        })
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let bytes = buffer.len() as u64;
            self.member().admit(Direction::Write, bytes).await;
            self.file.node().write(offset, buffer, flags).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.member().admit(Direction::Write, len).await;
            self.file.node().write_zeroes(offset, len, flags).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.member().admit(Direction::Write, len).await;
            self.file.node().discard(offset, len).await
        })
    }

    fn drained_begin(&self) {
        self.member().set_unlimited();
    }

    fn drained_end(&self) {
        self.member().set_limited();
    }

    fn throttling(&self) -> Option<Arc<ThrottleMember>> {
        Some(self.member())
    }

    fn changeable_options(&self) -> &'static [&'static str] {
        &["throttle-group"]
    }

    fn prepare_reopen<'a>(&'a self, wanted: Reopening<'a>) -> BlockFuture<'a, Reopened> {
        BlockFuture::new(async move {
            let mut reopened = Reopened::unchanged(wanted.read_only);
            if let BlockdevOptions::Throttle(node) = wanted.options
                && node.throttle_group != self.member().group().name()
            {
                let group = find_group(wanted.groups, &node.throttle_group)?;
                reopened.change = Change::Throttle(group.join());
            }
            Ok(reopened)
        })
    }

    fn commit_reopen(&self, reopened: Reopened) {
        if let Change::Throttle(member) = reopened.change {
            // The section that covers the node has told its predecessor; it will tell this one of
            // its end.
            member.set_unlimited();
            self.member.store(Arc::new(member));
        }
    }
}
