//! A node's requests: what every driver relies on is seen to here, once, for all of them.
//!
//! A request is checked (range, read-only), treated as the node's [`IoPolicy`] says, and brought
//! into the form that the driver's [`Limits`] ask for: widened to its blocks
//! by reading around it, or split. Requests that need none of this go straight to
//! the driver, for the price of a comparison.
//!
//! Called by backends, by drivers with children and by jobs, in whatever loop submits the request.
//! A request must be awaited to its end; a drained section that keeps its source out keeps it out.

mod blocks;
mod bounds;
mod copying;
mod policy;
pub(crate) mod serialise;
mod span;
mod status;
#[cfg(test)]
mod tests;
mod zeroes;

use std::sync::atomic::{AtomicU64, Ordering};

use sluice_aio::IoBuffer;
use sluice_aio::current::Transfer;

use crate::dirty::NodeBitmaps;
use crate::driver::{BlockFuture, DebugEvent, Limits, RequestFlags, ended};
use crate::error::{BlockError, Result};
use crate::node::Node;
use bounds::{Bounds, BoundsCell};
pub use copying::Place;
pub(crate) use policy::PolicyCell;
pub use policy::{DetectZeroes, IoPolicy};
use serialise::Serialiser;
use span::Span;

/// A node's part in its requests.
#[derive(Debug)]
pub(crate) struct NodeIo {
    bounds: BoundsCell,
    policy: PolicyCell,
    /// Changes on their way, if the driver has blocks.
    serialiser: Serialiser,
    /// The end of the highest byte that was written.
    highest_write: AtomicU64,
    /// The dirty bitmaps that have a name.
    pub(crate) bitmaps: NodeBitmaps,
}

impl NodeIo {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            bounds: BoundsCell::new(Bounds::new(limits)),
            policy: PolicyCell::new(IoPolicy::PASS),
            serialiser: Serialiser::default(),
            highest_write: AtomicU64::new(0),
            bitmaps: NodeBitmaps::default(),
        }
    }
}

impl Node {
    /// How requests are treated.
    #[must_use]
    pub fn policy(&self) -> IoPolicy {
        self.io.policy.get()
    }

    /// Changes how requests are treated, from the next one on.
    pub(crate) fn set_policy(&self, policy: IoPolicy) {
        self.io.policy.set(policy);
    }

    /// Asks the driver for its limits again. Inside a section: no request is under way.
    pub(crate) fn refresh_limits(&self) {
        self.io.bounds.set(Bounds::new(self.driver().limits()));
    }

    /// Reads `buffer.len()` bytes from byte `offset`.
    ///
    /// # Errors
    /// Out of range, or the medium's.
    pub fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        match self.transfer(offset, buffer) {
            Ok(transfer) => ended(transfer),
            Err(buffer) => self.read_by_driver(offset, buffer),
        }
    }

    /// Begins a read that is but one transfer of the loop's engine all the way down, and gives it to the
    /// caller, who needs no node until it ends. Whatever else a read may be, an error included, gets
    /// its buffer back and is to go [`by the driver`](Self::read_by_driver).
    pub(crate) fn transfer(
        &self,
        offset: u64,
        buffer: IoBuffer,
    ) -> std::result::Result<Transfer, IoBuffer> {
        if self.io.bounds.takes(offset, buffer.len() as u64) {
            return self.driver().transfer(offset, buffer);
        }
        Err(buffer)
    }

    /// [`Node::read`] of what is no mere [`transfer`](Self::transfer). Most such reads are the driver's as
    /// they are: then its future is the caller's, and the node costs no state of its own.
    pub(crate) fn read_by_driver(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        let len = buffer.len() as u64;
        if let Err(error) = self.check_range(offset, len) {
            return BlockFuture::new(std::future::ready(Err(error)));
        }
        if self.io.bounds.takes(offset, len) {
            return self.driver().read(offset, buffer);
        }
        BlockFuture::new(self.read_blocks(offset, buffer))
    }

    /// Writes `buffer` at byte `offset`; durably with [`RequestFlags::FUA`], for which the driver
    /// is flushed.
    ///
    /// # Errors
    /// Read-only, out of range, or the medium's.
    pub async fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> Result<()> {
        let len = buffer.len() as u64;
        self.check_write(offset, len)?;
        let bounds = self.io.bounds.get();
        let fits = bounds.alignment == 1 && len <= bounds.max_transfer;
        let written = if fits && flags.is_empty() && !self.policy().detects() {
            self.driver().write(offset, buffer, flags).await
        } else {
            BlockFuture::new(self.write_general(offset, buffer, flags)).await
        };
        self.note_changed(offset, len);
        written?;
        self.note_written(offset + len);
        Ok(())
    }

    /// A change has ended, well or not: what failed may have changed some of its bytes. Whoever
    /// changes the medium calls it *after* that; see [`DirtyBitmap`](crate::dirty::DirtyBitmap).
    fn note_changed(&self, offset: u64, len: u64) {
        self.io.bitmaps.record(offset, len);
    }

    /// The end of the highest byte that was written to the node since it was opened, zeroes
    /// included.
    #[must_use]
    pub fn highest_write(&self) -> u64 {
        self.io.highest_write.load(Ordering::Relaxed)
    }

    fn note_written(&self, end: u64) {
        // Most writes are not the highest.
        if end > self.highest_write() {
            self.io.highest_write.fetch_max(end, Ordering::Relaxed);
        }
    }

    async fn write_general(
        &self,
        offset: u64,
        buffer: IoBuffer,
        mut flags: RequestFlags,
    ) -> Result<()> {
        let span = Span::new(offset, buffer.len() as u64);
        let durable = flags.contains(RequestFlags::FUA);
        flags.remove(RequestFlags::FUA);
        let detect = self.policy().detect_zeroes();
        if detect != DetectZeroes::Off && buffer.is_zero() {
            flags.set(RequestFlags::MAY_UNMAP, detect == DetectZeroes::Unmap);
            self.zero_blocks(span, flags).await?;
        } else {
            let _claim = self.claim_blocks(span).await;
            self.write_blocks(offset, &buffer, flags).await?;
        }
        self.flush_if(durable).await
    }

    /// What makes a request with [`RequestFlags::FUA`] durable before it ends.
    async fn flush_if(&self, durable: bool) -> Result<()> {
        if durable {
            self.driver().flush().await
        } else {
            Ok(())
        }
    }

    /// Makes `len` bytes from `offset` read as zeroes. They may become a hole only if `flags` and
    /// the node's policy both say so.
    ///
    /// # Errors
    /// As [`Node::write`].
    pub async fn write_zeroes(&self, offset: u64, len: u64, mut flags: RequestFlags) -> Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        if !self.policy().unmaps() {
            flags.remove(RequestFlags::MAY_UNMAP);
        }
        let durable = flags.contains(RequestFlags::FUA);
        flags.remove(RequestFlags::FUA);
        let zeroed = self.zero_span(Span::new(offset, len), flags).await;
        self.note_changed(offset, len);
        zeroed?;
        self.flush_if(durable).await?;
        self.note_written(offset + len);
        Ok(())
    }

    async fn zero_span(&self, span: Span, flags: RequestFlags) -> Result<()> {
        let bounds = self.io.bounds.get();
        if bounds.zero_alignment > 1 || span.len() > bounds.max_zeroes {
            return BlockFuture::new(self.zero_blocks(span, flags)).await;
        }
        match self
            .driver()
            .write_zeroes(span.start, span.len(), flags)
            .await
        {
            Err(error) if error.is_unsupported() => {
                BlockFuture::new(self.write_zeroes_as_data(span, flags)).await
            }
            result => result,
        }
    }

    /// Gives up the contents of `len` bytes from `offset`; nothing with `discard=ignore`.
    ///
    /// # Errors
    /// As [`Node::write`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        if len == 0 || !self.policy().unmaps() {
            return Ok(());
        }
        let bounds = self.io.bounds.get();
        let discarded = if bounds.discard_alignment > 1 || len > bounds.max_discard {
            BlockFuture::new(self.discard_blocks(Span::new(offset, len))).await
        } else {
            match self.driver().discard(offset, len).await {
                // A hint that can't be taken is no error.
                Err(error) if error.is_unsupported() => Ok(()),
                result => result,
            }
        };
        self.note_changed(offset, len);
        discarded
    }

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// The medium's.
    pub async fn flush(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        self.driver().flush().await
    }

    /// Makes the node `size` bytes long. New bytes are zeroes; requests beyond a new end fail.
    ///
    /// The caller holds a section of the node, so that no request is under way, and tells those who
    /// show the size to a guest.
    ///
    /// # Errors
    /// A read-only node, a driver that can't, or the medium's.
    pub async fn resize(&self, size: u64) -> Result<()> {
        if self.is_read_only() {
            return Err(BlockError::Refused("Image is read-only".to_owned()));
        }
        self.driver().truncate(size).await
    }

    /// Lets a fault injector below stop at `event`.
    ///
    /// # Errors
    /// What the injector was told to inject.
    pub async fn debug_event(&self, event: DebugEvent) -> Result<()> {
        self.driver().debug_event(event).await
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if self.is_read_only() {
            return Err(BlockError::ReadOnly(self.name().to_owned()));
        }
        self.check_range(offset, len)
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.len();
        if offset.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(BlockError::OutOfRange {
            node: self.name().to_owned(),
            offset,
            len,
            size,
        })
    }
}
