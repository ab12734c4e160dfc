//! Block status: what a range of a node holds, in its own layer and down its backing chain.
//!
//! A *layer* is a node that is no filter, with the filters that stand directly above it: they show
//! its status as their own. What a layer does not hold is its backing image's.

use std::sync::Arc;

use super::span::Span;
use crate::driver::{Allocation, BlockStatus, Edge};
use crate::error::Result;
use crate::node::Node;

impl Node {
    /// What the first part of a range reads as, whichever layer holds it: data or zeroes; `len`
    /// must not be zero.
    ///
    /// # Errors
    /// Out of range, or a medium's.
    pub async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let mut status = self.layer_status(offset, len).await?;
        let mut below = self.backing();
        while status.allocation == Allocation::Below {
            let zeroes = BlockStatus {
                allocation: Allocation::Zero,
                len: status.len,
            };
            let Some(node) = below else {
                return Ok(zeroes);
            };
            let Some(len) = node.within(offset, status.len) else {
                return Ok(zeroes);
            };
            status = node.layer_status(offset, len).await?;
            below = node.backing();
        }
        Ok(status)
    }

    /// What this layer holds in the first part of a range; `len` must not be zero.
    ///
    /// # Errors
    /// Out of range, or the medium's.
    pub async fn layer_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        self.check_range(offset, len)?;
        let span = Span::new(offset, len);
        let outer = span.widened(self.io.bounds.alignment(), self.len());
        let status = self.driver().block_status(outer.start, outer.len()).await?;
        let before = offset - outer.start;
        if status.len <= before {
            // Of the range itself nothing was said. That it has to be read is always true.
            return Ok(BlockStatus {
                allocation: Allocation::Data,
                len: len.min(self.io.bounds.alignment() - before),
            });
        }
        Ok(BlockStatus {
            len: len.min(status.len - before),
            ..status
        })
    }

    /// Whether a layer below this one, `last` being the lowest that counts, holds the first part of
    /// a range, and how long that part is. `last` is no filter.
    ///
    /// # Errors
    /// A medium's.
    pub(crate) async fn is_held_below(
        &self,
        last: &Arc<Node>,
        offset: u64,
        mut len: u64,
    ) -> Result<(bool, u64)> {
        if self.is_layer_of(last) {
            return Ok((false, len));
        }
        let mut below = self.backing();
        while let Some(node) = below {
            if let Some(within) = node.within(offset, len) {
                let status = node.layer_status(offset, within).await?;
                len = status.len;
                if status.allocation != Allocation::Below {
                    return Ok((true, len));
                }
            }
            below = match node.is_layer_of(last) {
                true => None,
                false => node.backing(),
            };
        }
        Ok((false, len))
    }

    /// The same with this layer included: data, or [`Allocation::Below`] where no layer holds anything.
    ///
    /// # Errors
    /// A medium's.
    pub(crate) async fn status_down_to(
        &self,
        last: &Arc<Node>,
        offset: u64,
        len: u64,
    ) -> Result<BlockStatus> {
        let own = self.layer_status(offset, len).await?;
        if own.allocation != Allocation::Below {
            return Ok(own);
        }
        let (held, len) = self.is_held_below(last, offset, own.len).await?;
        let allocation = match held {
            true => Allocation::Data,
            false => Allocation::Below,
        };
        Ok(BlockStatus { allocation, len })
    }

    /// The image below this layer: what shows where the layer holds nothing.
    #[must_use]
    pub fn backing(&self) -> Option<Arc<Node>> {
        match self.unfiltered() {
            Some(below) => below.backing(),
            None => self.driver().backing()?.node(),
        }
    }

    /// The images below this layer, the uppermost first.
    #[must_use]
    pub fn backing_chain(&self) -> Vec<Arc<Node>> {
        let chain = std::iter::successors(self.backing(), |node| node.backing());
        chain.collect()
    }

    /// What a filter filters.
    fn unfiltered(&self) -> Option<Arc<Node>> {
        let driver = self.driver();
        let edge = driver.filtered().filter(|_| driver.is_filter());
        edge.map(Edge::node)
    }

    fn is_layer_of(&self, node: &Arc<Node>) -> bool {
        match self.unfiltered() {
            Some(below) => below.is_layer_of(node),
            None => std::ptr::eq(self, Arc::as_ptr(node)),
        }
    }

    /// How many of `len` bytes from `offset` the node has, if it has the first.
    fn within(&self, offset: u64, len: u64) -> Option<u64> {
        let rest = self.len().checked_sub(offset)?;
        (rest > 0).then(|| len.min(rest))
    }
}
