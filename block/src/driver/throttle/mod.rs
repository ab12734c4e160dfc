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

use sluice_aio::IoBuffer;

use super::{BlockFuture, Driver, Edge, RequestFlags};
pub use group::{Admission, Direction, ThrottleGroup, ThrottleMember};
pub use limits::{LimitsError, ThrottleLimits};
pub use registry::{ThrottleError, ThrottleGroups};

/// See the [module](self).
#[derive(Debug)]
pub struct Throttle {
    file: Edge,
    member: ThrottleMember,
}

impl Throttle {
    /// A filter over `file` that takes its turns as `member`.
    #[must_use]
    pub fn new(file: Edge, member: ThrottleMember) -> Self {
        Self { file, member }
    }
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
            self.member.admit(Direction::Read, bytes).await;
            self.file.node().read(offset, buffer).await
        })
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let bytes = buffer.len() as u64;
            self.member.admit(Direction::Write, bytes).await;
            self.file.node().write(offset, buffer, flags).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.member.admit(Direction::Write, len).await;
            self.file.node().write_zeroes(offset, len, flags).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.member.admit(Direction::Write, len).await;
            self.file.node().discard(offset, len).await
        })
    }

    fn drained_begin(&self) {
        self.member.set_unlimited();
    }

    fn drained_end(&self) {
        self.member.set_limited();
    }
}
