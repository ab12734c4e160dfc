//! `mirror_top`: the filter that stands above a mirror's source and sees every write.
//!
//! A write goes to the source and is recorded in the dirty bitmap *after* it has ended, whether it
//! succeeded or failed (a failed write may have changed some of its bytes): the copier clears a
//! chunk's mark before it reads, so whatever the order, the last write is copied or still marked.
//! Recording is on from the moment the filter is in place, before anything is copied.

use std::sync::Arc;

use sluice_aio::IoBuffer;

use crate::dirty::DirtyBitmap;
use crate::driver::{BlockFuture, Driver, Edge, RequestFlags, Role};
use crate::error::Result;
use crate::node::Node;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct MirrorTop {
    source: Edge,
    dirty: Arc<DirtyBitmap>,
}

impl MirrorTop {
    pub(super) fn new(source: Arc<Node>, dirty: Arc<DirtyBitmap>) -> Self {
        Self {
            source: Edge::new(Role::Filtered, source),
            dirty,
        }
    }

    /// Does a change and records it when it has ended.
    async fn recorded(
        &self,
        offset: u64,
        len: u64,
        change: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let result = change.await;
        self.dirty.record(offset, len);
        result
    }
}

impl Driver for MirrorTop {
    fn format_name(&self) -> &'static str {
        "mirror_top"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.source)
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        let source = self.source.node();
        let len = buffer.len() as u64;
        BlockFuture::new(async move {
            self.recorded(offset, len, source.write(offset, buffer, flags))
                .await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        let source = self.source.node();
        BlockFuture::new(async move {
            self.recorded(offset, len, source.write_zeroes(offset, len, flags))
                .await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        let source = self.source.node();
        BlockFuture::new(async move {
            self.recorded(offset, len, source.discard(offset, len))
                .await
        })
    }
}
