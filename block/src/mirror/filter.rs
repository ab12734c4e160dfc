//! `mirror_top`: the filter that stands above a mirror's source and sees every write.
//!
//! A write goes to the source and is recorded in the dirty bitmap *after* it has ended, whether it
//! succeeded or failed (a failed write may have changed some of its bytes): the copier clears a
//! chunk's mark before it reads, so whatever the order, the last write is copied or still marked.
//! Recording is on from the moment the filter is in place, before anything is copied. In the mode
//! `write-blocking` it goes [to both sides](super::twofold) instead.

use std::sync::Arc;

use sluice_aio::IoBuffer;

use super::ledger::Ledger;
use super::twofold::{Change, write_both_boxed, write_recorded};
use crate::driver::{BlockFuture, Driver, Edge, RequestFlags, Role};
use crate::node::Node;
use crate::permission::{Access, Permissions};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct MirrorTop {
    source: Edge,
    ledger: Arc<Ledger>,
    /// The target is one of the images below the source.
    above_its_target: bool,
}

impl MirrorTop {
    pub(super) fn new(source: Arc<Node>, ledger: Arc<Ledger>) -> Self {
        Self {
            source: Edge::new(Role::Filtered, source),
            ledger,
            above_its_target: false,
        }
    }

    /// The filter of an active commit.
    pub(super) fn above_its_target(source: Arc<Node>, ledger: Arc<Ledger>) -> Self {
        Self {
            above_its_target: true,
            ..Self::new(source, ledger)
        }
    }

    fn change(&self, offset: u64, len: u64, change: Change) -> BlockFuture<'_, ()> {
        let (source, range) = (self.source.node(), offset..offset + len);
        BlockFuture::new(async move {
            if self.ledger.writes_both() && len > 0 {
                write_both_boxed(&self.ledger, &source, range, change).await
            } else {
                let _recorded = self.ledger.begin_recorded();
                write_recorded(&self.ledger, &source, range, change).await
            }
        })
    }
}

impl Driver for MirrorTop {
    fn format_name(&self) -> &'static str {
        "mirror_top"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.source)
    }

    fn child_access(&self, _role: Role, above: Access) -> Access {
        if !self.above_its_target {
            let mut access = above;
            if above != Access::NONE {
                // What is written past this node is not copied.
                access.shared -= Permissions::WRITE;
            }
            return access;
        }
        // As QEMU has it: otherwise what is done here with the chain would forbid the job to write to
        // the base. What it writes is what is read here in any case.
        Access {
            used: above.used - Permissions::CONSISTENT_READ,
            shared: above.shared | Permissions::WRITE,
        }
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        let len = buffer.len() as u64;
        self.change(offset, len, Change::Data(buffer, flags))
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        self.change(offset, len, Change::Zeroes(flags))
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        if !self.source.node().policy().unmaps() {
            // It would be ignored: nothing changes, so there is nothing to copy.
            return BlockFuture::new(async { Ok(()) });
        }
        self.change(offset, len, Change::Discard)
    }
}
