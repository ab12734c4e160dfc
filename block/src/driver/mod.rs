//! What every vertex of the block graph can do: the [`Driver`] trait and the drivers themselves.
//!
//! A driver is called through its [`Node`], which checks ranges and read-only first;
//! so a driver may rely on `offset + len <= size()` and on writes being allowed. Its futures run in
//! the loop of whoever submitted the request: a driver has no loop of its own, is shared between
//! threads and takes no lock across an await. A driver with children reaches them through
//! [`Edge`]s, which the graph may re-point inside a drained section.
//!
//! A *filter* names the child whose bytes it shows ([`Driver::filtered`]); whatever it does not do
//! itself then goes there. A driver with storage of its own implements all requests.

mod background;
pub mod blkdebug;
pub mod copy_before_write;
pub mod copy_on_read;
mod edge;
pub mod file;
pub(crate) mod limits;
pub mod null;
#[cfg(any(test, feature = "test-hooks"))]
pub(crate) mod overlay;
pub mod raw;
mod reopening;
pub mod throttle;

use std::io;
use std::sync::Arc;

use bitflags::bitflags;
use sluice_aio::current::Transfer;
use sluice_aio::{IoBuffer, PooledFuture};

use crate::error::{BlockError, Result};
use crate::io::Place;
use crate::node::Node;
use crate::permission::Access;
pub use background::Background;
pub(crate) use background::Running;
pub use blkdebug::{Blkdebug, DebugEvent, InjectError};
pub(crate) use edge::FrozenChain;
pub use edge::{BackingEdge, Edge, Role};
pub use limits::Limits;
pub use reopening::{Reopened, Reopening};

/// A request on its way, made by `BlockFuture::new(async move { … })`; it stays in the loop that
/// submitted it, and its memory is that of an earlier request.
pub type BlockFuture<'a, T> = PooledFuture<'a, Result<T>>;

bitflags! {
    /// Properties of one request.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RequestFlags: u32 {
        /// On stable storage before the request ends. Nodes see to it; it never reaches a driver.
        const FUA = 1;
        /// Zeroes may be stored as a hole.
        const MAY_UNMAP = 1 << 1;
    }
}

/// What a range of a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Bytes that have to be read to be known.
    Data,
    /// Reads as zeroes without storage behind it.
    Zero,
    /// Not held by this layer: what shows is the backing image's. Only a format with a backing
    /// image says so; without one it says `Zero`.
    Below,
}

/// The answer to a block status query: the first `len` bytes are of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// What they are.
    pub allocation: Allocation,
    /// How many, in bytes; at least 1 and at most what was asked.
    pub len: u64,
}

/// What a query tells of a driver's medium.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageInfo {
    /// The file, or a pseudo name such as `null-co://`.
    pub filename: String,
    /// Opened with O_DIRECT.
    pub direct: bool,
    /// Flushes are ignored.
    pub no_flush: bool,
}

/// One vertex's behaviour; see the [module](self). All methods may be called from any loop.
///
/// Methods with a default pass the call on to the [`filtered`](Self::filtered) child; without one,
/// requests end with `ENOTSUP` and questions get the empty answer.
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// The driver's name in options and queries.
    fn format_name(&self) -> &'static str;

    /// The child whose bytes this node shows, for filters and for formats that add nothing.
    fn filtered(&self) -> Option<&Edge> {
        None
    }

    /// Where in the [`filtered`](Self::filtered) child the first byte is that this node shows.
    fn offset_in_child(&self) -> u64 {
        0
    }

    /// Whether the filtered child's backing chain is the node's own: a format that adds nothing to
    /// its file is no filter.
    fn is_filter(&self) -> bool {
        self.filtered().is_some()
    }

    /// The edge to a backing image; none if the driver can't have one. It is not among the
    /// [`children`](Self::children), since there may be no image now.
    fn backing(&self) -> Option<&BackingEdge> {
        None
    }

    /// Bytes of the units in which the driver allocates.
    fn cluster_size(&self) -> u64 {
        self.filtered()
            .map_or(1, |child| child.node().driver().cluster_size())
    }

    /// The edges to children, in order.
    fn children(&self) -> Vec<&Edge> {
        self.filtered().into_iter().collect()
    }

    /// Size in bytes.
    fn size(&self) -> u64 {
        self.filtered().map_or(0, Edge::len)
    }

    /// What requests to this driver must look like; asked once. A filter need not repeat what the
    /// node below asks for: each node sees to its own driver's.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Makes the medium `size` bytes long; new bytes are zeroes. Nothing else is in flight.
    fn truncate(&self, size: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            match self.filtered() {
                Some(child) => child.node().resize(size).await,
                None => Err(BlockError::Refused(
                    "Image format driver does not support resize".to_owned(),
                )),
            }
        })
    }

    /// Reads `buffer.len()` bytes from byte `offset`.
    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move { child_of(self)?.read(offset, buffer).await })
    }

    /// Writes all of `buffer` at byte `offset`.
    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move { child_of(self)?.write(offset, buffer, flags).await })
    }

    /// Makes the range read as zeroes.
    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move { child_of(self)?.write_zeroes(offset, len, flags).await })
    }

    /// Says that the range's contents are not needed any more; what it reads as is not defined.
    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move { child_of(self)?.discard(offset, len).await })
    }

    /// Makes everything durable whose write ended before this call.
    fn flush(&self) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move { child_of(self)?.flush().await })
    }

    /// What the range holds in this layer, as far as one answer goes; `len` is not zero.
    fn block_status(&self, offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        BlockFuture::new(async move { child_of(self)?.layer_status(offset, len).await })
    }

    /// Begins the read and gives it to the caller, if it is one transfer of the loop's engine and nothing
    /// else: then neither the driver nor its node is needed until it ends, and the layers above cost next
    /// to nothing. A driver that has more to do gives the buffer back, and is asked to
    /// [`read`](Self::read).
    ///
    /// Unlike a read, it may lie outside of the driver's size: then, too, the buffer is given back. So a
    /// driver that is as long as its child leaves that question to the child.
    ///
    /// # Errors
    /// The buffer.
    fn transfer(&self, _offset: u64, buffer: IoBuffer) -> std::result::Result<Transfer, IoBuffer> {
        Err(buffer)
    }

    /// Where a range's bytes are, if they are just those of a file in the page cache, and requests do nothing
    /// but move them. The caller has checked that the range lies within the driver's size.
    fn place(&self, _offset: u64, _len: u64) -> Option<Place> {
        None
    }

    /// The medium, for queries. Waits for nothing.
    fn info(&self) -> ImageInfo {
        self.filtered()
            .map_or_else(ImageInfo::default, |child| child.node().info())
    }

    /// How many bytes the medium takes, where that is known. May hang as the medium's file system does, so it is
    /// the node's look that asks ([`crate::look`]), and nobody else.
    fn actual_size(&self) -> BlockFuture<'_, Option<u64>> {
        BlockFuture::new(async move {
            match self.filtered() {
                Some(child) => Ok(child.node().look().await),
                None => Ok(None),
            }
        })
    }

    /// Tells the drivers below that something worth stopping at happens; only `blkdebug` listens.
    fn debug_event(&self, event: DebugEvent) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            match child_of(self) {
                Ok(child) => child.debug_event(event).await,
                Err(_) => Ok(()),
            }
        })
    }

    /// The driver as a file's, if it is one, for tests that look into it.
    #[cfg(test)]
    fn as_file(&self) -> Option<&file::FileDriver> {
        None
    }

    /// The driver as fault injector, if it is one.
    fn as_blkdebug(&self) -> Option<&Blkdebug> {
        None
    }

    /// Identity of the file behind a protocol node, to find two nodes on one file.
    fn file_identity(&self) -> Option<FileIdentity> {
        None
    }

    /// The options of its own, besides children, that may change while the node is there.
    fn changeable_options(&self) -> &'static [&'static str] {
        &[]
    }

    /// Makes ready what other options ask of the driver. Nothing changes before
    /// [`commit_reopen`](Self::commit_reopen).
    ///
    /// # Errors
    /// The driver or its medium refuses them.
    fn prepare_reopen<'a>(&'a self, wanted: Reopening<'a>) -> BlockFuture<'a, Reopened> {
        BlockFuture::new(async move { Ok(Reopened::unchanged(wanted.read_only)) })
    }

    /// Goes on with what was prepared. Called inside a section, under the graph's lock; limits are
    /// asked for again afterwards.
    fn commit_reopen(&self, _reopened: Reopened) {}

    /// What the node does with a child, given what all its parents do with the node.
    fn child_access(&self, role: Role, above: Access) -> Access {
        match role {
            Role::Backing => above.of_backing(),
            _ => above,
        }
    }

    /// Makes sure that the medium can be used like this, in addition to how it is used now; other
    /// processes are told. Called under the graph's lock: it must not wait, but for a moment.
    ///
    /// # Errors
    /// Somebody else stands against it. [`finish_access`](Self::finish_access) follows in any case.
    fn prepare_access(&self, _access: Access) -> Result<()> {
        Ok(())
    }

    /// From now on the medium is used like this, and no more: what was prepared, or what was before
    /// if that was given up.
    fn finish_access(&self, _access: Access) {}

    /// A drained section covers the node from now on. What the driver itself holds up, it must let
    /// go, since the section waits for it. Called once until the last section has ended, under
    /// locks: it must not wait.
    fn drained_begin(&self) {}

    /// A section that covered the node has ended; balances [`drained_begin`](Self::drained_begin).
    fn drained_end(&self) {}

    /// The limits that hold up requests here, for whoever wants them lifted for a while.
    fn throttling(&self) -> Option<Arc<throttle::ThrottleMember>> {
        None
    }

    /// Work of the driver's own that outlives the request which began it: sections over the node
    /// wait for its end.
    fn background(&self) -> Option<&Arc<Background>> {
        None
    }
}

/// Whether `len` bytes from byte `offset` lie within `size` bytes.
pub(crate) fn holds(size: u64, offset: u64, len: usize) -> bool {
    let end = offset.checked_add(len as u64);
    end.is_some_and(|end| end <= size)
}

/// The end of a transfer that has been begun: so the future, which is copied with each request, holds none of
/// what that takes.
pub(crate) fn ended(transfer: Transfer) -> BlockFuture<'static, ()> {
    BlockFuture::new(async move {
        transfer.await?;
        Ok(())
    })
}

/// The node below a filter.
///
/// # Errors
/// `ENOTSUP`: there is none, so a request has come to a driver that can't do it.
fn child_of<D: Driver + ?Sized>(driver: &D) -> Result<Arc<Node>> {
    let child = driver.filtered().map(Edge::node);
    child.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTSUP).into())
}

/// Device and inode of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}
