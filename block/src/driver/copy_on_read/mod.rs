//! `copy-on-read`: a filter that copies what is read from a backing image into the layer above it.
//!
//! What a read finds below is written to the file's own layer, by whole clusters, before the read
//! ends; the next one finds it there. `bottom` names the lowest image whose data is copied. The
//! chain down to it then stays as it is while the filter is there.
//!
//! A copy writes what the reader saw, so no newer write may get between its reading and its
//! writing: a copy claims its clusters alone, and everything that changes the file claims what it
//! changes. For the same reason nobody may write to the file past the filter.
//!
//! The filter of a job that has given up copies no more. A copy that still reads then will not write, so nobody waits
//! for it: only what is being written is kept apart from changes.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, select};
use sluice_aio::IoBuffer;

use super::{Allocation, BlockFuture, DebugEvent, Driver, Edge, FrozenChain, RequestFlags, Role};
use crate::error::{BlockError, Result};
use crate::io::serialise::{Claim, ClaimKind, Serialiser};
use crate::node::Node;
use crate::parting::{GivenUp, Parting};
use crate::permission::{Access, Permissions};

#[cfg(test)]
mod tests;

/// The most bytes copied at once, besides the rest of the first and the last cluster.
const MAX_COPY: u64 = 1 << 20;

/// What a parent may do through the filter.
const PASSED: Permissions = Permissions::CONSISTENT_READ
    .union(Permissions::WRITE)
    .union(Permissions::RESIZE);

/// See the [module](self). Any thread.
#[derive(Debug)]
pub struct CopyOnRead {
    file: Edge,
    /// Nothing is copied from below this image; no filter.
    bottom: Option<Arc<Node>>,
    /// The chain down to it, if the filter itself relies on that.
    _chain: Option<FrozenChain>,
    /// Changes and copies on their way.
    serialiser: Serialiser,
    /// What copies are writing, and the changes of those who have not waited for a copy to be read.
    writing: Serialiser,
    /// Whether the filter's job still wants the copies; for ever if it has none.
    parting: Arc<Parting>,
}

impl CopyOnRead {
    /// A filter over `file`, which copies what is at or above `bottom`, or everything. Called under
    /// the graph's lock.
    ///
    /// # Errors
    /// `bottom` is a filter, or not in the backing chain.
    pub(crate) fn new(file: Arc<Node>, bottom: Option<&Arc<Node>>) -> Result<Self> {
        let chain = bottom.map(|bottom| freeze(&file, bottom)).transpose()?;
        let file = Edge::new(Role::File, file);
        if let Some(chain) = &chain {
            chain.freeze_edge(&file);
        }
        Ok(Self {
            file,
            bottom: bottom.cloned(),
            _chain: chain,
            serialiser: Serialiser::default(),
            writing: Serialiser::default(),
            parting: Arc::default(),
        })
    }

    /// The filter of a job, which sees to it that the chain stays.
    pub(crate) fn of_job(file: &Arc<Node>, bottom: Arc<Node>, parting: Arc<Parting>) -> Self {
        Self {
            file: Edge::new(Role::File, Arc::clone(file)),
            bottom: Some(bottom),
            _chain: None,
            serialiser: Serialiser::default(),
            writing: Serialiser::default(),
            parting,
        }
    }

    /// Waits until nobody who is in the way changes or copies there.
    ///
    /// # Errors
    /// The job has given up: who copies there may hang.
    async fn claim(
        &self,
        range: Range<u64>,
        kind: ClaimKind,
    ) -> std::result::Result<Claim<&Serialiser>, GivenUp> {
        let claim = pin!(self.serialiser.claim(range, kind));
        match select(claim, pin!(self.parting.given_up())).await {
            Either::Left((claim, _)) => Ok(claim),
            Either::Right(_) => Err(GivenUp),
        }
    }

    /// Claims what a change of the file changes.
    async fn changing<T>(&self, offset: u64, len: u64, change: impl Future<Output = T>) -> T {
        let range = offset..offset.saturating_add(len);
        // Who copies there may hang.
        let requests = &self.parting.requests;
        let turn = self.claim(range.clone(), ClaimKind::Shared);
        let _claim = match requests.wait_turn(turn).await {
            Ok(claim) => claim,
            Err(GivenUp) => self.writing.claim(range, ClaimKind::Shared).await,
        };
        change.await
    }

    /// Whether the first part of a range is to be copied, and how long that part is. What can't be
    /// found out is not.
    async fn is_below(&self, file: &Node, range: &Range<u64>) -> (bool, u64) {
        let len = range.end - range.start;
        let Ok(status) = file.layer_status(range.start, len).await else {
            return (false, len);
        };
        if status.allocation != Allocation::Below {
            return (false, status.len);
        }
        let Some(bottom) = &self.bottom else {
            return (true, status.len);
        };
        let held = file.is_held_below(bottom, range.start, status.len);
        held.await.unwrap_or((false, status.len))
    }

    async fn read_copying(&self, file: &Node, offset: u64, buffer: &IoBuffer) -> Result<()> {
        let end = offset + buffer.len() as u64;
        let mut at = offset;
        while at < end {
            let (below, len) = self.is_below(file, &(at..end)).await;
            let range = at..at + if below { len.min(MAX_COPY) } else { len };
            let target = part(buffer, offset, &range);
            at = range.end;
            if below {
                self.copy_up(file, range, &target).await?;
            } else {
                file.read(range.start, target).await?;
            }
        }
        Ok(())
    }

    /// Copies the clusters around `wanted` up, as far as they are still below, and reads `wanted`.
    async fn copy_up(&self, file: &Node, wanted: Range<u64>, target: &IoBuffer) -> Result<()> {
        let cluster = file.driver().cluster_size().max(1);
        let clusters =
            wanted.start / cluster * cluster..wanted.end.next_multiple_of(cluster).min(file.len());
        let claim = self.claim(clusters.clone(), ClaimKind::Exclusive);
        let Ok(_claim) = claim.await else {
            return file.read(wanted.start, target.clone()).await;
        };
        let mut at = clusters.start;
        while at < clusters.end {
            // Looked at again: somebody may have written there, or copied it.
            let (below, len) = self.is_below(file, &(at..clusters.end)).await;
            let (len, zeroes) = match below {
                true => piece(file, at, len, cluster).await,
                false => (len, false),
            };
            let range = at..at + len;
            at = range.end;
            let shown = range.start.max(wanted.start)..range.end.min(wanted.end);
            if !below {
                if !shown.is_empty() {
                    let target = part(target, wanted.start, &shown);
                    file.read(shown.start, target).await?;
                }
                continue;
            }
            let copy = IoBuffer::alloc(to_len(len));
            if !zeroes {
                file.read(range.start, copy.clone()).await?;
            }
            file.debug_event(DebugEvent::CorWrite).await?;
            self.write_copy(file, range.start, &copy, zeroes).await?;
            if !shown.is_empty() {
                let seen = part(&copy, range.start, &shown).to_vec();
                part(target, wanted.start, &shown).copy_from_slice(0, &seen);
            }
        }
        Ok(())
    }

    async fn write_copy(&self, file: &Node, at: u64, copy: &IoBuffer, zeroes: bool) -> Result<()> {
        let len = copy.len() as u64;
        let writing = self.writing.claim(at..at + len, ClaimKind::Exclusive);
        let _writing = writing.await;
        // Somebody may have changed meanwhile what was read.
        if self.parting.is_over() {
            return Ok(());
        }
        let flags = RequestFlags::empty();
        if zeroes || copy.is_zero() {
            file.write_zeroes(at, len, flags).await
        } else {
            file.write(at, copy.clone(), flags).await
        }
    }
}

/// How much of a range to copy at once, whole clusters if possible, and whether it is known to be
/// zeroes, which are not read.
async fn piece(file: &Node, offset: u64, len: u64, cluster: u64) -> (u64, bool) {
    match file.block_status(offset, len).await {
        Ok(status) if status.allocation == Allocation::Zero => {
            let whole = match status.len == len {
                true => len,
                false => status.len / cluster * cluster,
            };
            match whole {
                0 => (cluster.min(len), false),
                whole => (whole, true),
            }
        }
        Ok(status) => (status.len.next_multiple_of(cluster).min(len), false),
        Err(_) => (len, false),
    }
}

/// # Errors
/// `bottom` is a filter, or not in the backing chain of `file`.
fn freeze(file: &Arc<Node>, bottom: &Arc<Node>) -> Result<FrozenChain> {
    let name = bottom.name();
    if bottom.driver().is_filter() {
        let text = format!("Bottom node '{name}' is a filter");
        return Err(BlockError::Refused(text));
    }
    FrozenChain::new(file, bottom).ok_or_else(|| {
        BlockError::Refused(format!(
            "Bottom node '{name}' is not in the backing chain of '{}'",
            file.name()
        ))
    })
}

/// The part of a buffer for the bytes from `start` that is for those of `range`.
fn part(buffer: &IoBuffer, start: u64, range: &Range<u64>) -> IoBuffer {
    buffer.slice(to_len(range.start - start), to_len(range.end - range.start))
}

/// Lengths here are those of buffers, or bounded.
fn to_len(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

impl Driver for CopyOnRead {
    fn format_name(&self) -> &'static str {
        "copy-on-read"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.file)
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        let file = self.file.node();
        BlockFuture::new(async move {
            // Without a backing image nothing is below.
            if file.backing().is_none() || self.parting.is_over() {
                return file.read(offset, buffer).await;
            }
            self.read_copying(&file, offset, &buffer).await
        })
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        let (file, len) = (self.file.node(), buffer.len() as u64);
        BlockFuture::new(async move {
            self.changing(offset, len, file.write(offset, buffer, flags))
                .await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        let file = self.file.node();
        BlockFuture::new(async move {
            self.changing(offset, len, file.write_zeroes(offset, len, flags))
                .await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        let file = self.file.node();
        BlockFuture::new(async move { self.changing(offset, len, file.discard(offset, len)).await })
    }

    fn child_access(&self, _role: Role, above: Access) -> Access {
        let mut shared = above.shared & PASSED | Permissions::WRITE_UNCHANGED;
        if !above.used.is_empty() {
            // A write past this node could be undone by a copy of what was there before.
            shared -= Permissions::WRITE;
        }
        Access {
            used: above.used & PASSED | Permissions::WRITE_UNCHANGED,
            shared,
        }
    }
}
