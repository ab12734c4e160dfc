//! What a reopen asks of a driver, and what the driver makes ready for it.

use super::file::Opened;
use super::raw::Window;
use super::throttle::{ThrottleGroups, ThrottleMember};
use crate::options::BlockdevOptions;

/// The options of a node, with what it inherits.
#[derive(Clone, Copy, Debug)]
pub struct Reopening<'a> {
    pub(crate) options: &'a BlockdevOptions,
    pub(crate) read_only: bool,
    pub(crate) auto_read_only: bool,
    /// Past the page cache.
    pub(crate) direct: bool,
    /// Flushes are ignored.
    pub(crate) no_flush: bool,
    /// Discards pass.
    pub(crate) unmap: bool,
    pub(crate) groups: &'a ThrottleGroups,
    /// Bytes of the child that it will have.
    pub(crate) child_size: u64,
}

/// What a driver goes on with after a reopen; dropping it gives the reopen up.
#[derive(Debug)]
pub struct Reopened {
    /// Whether the node can't be written, or shall not be.
    pub read_only: bool,
    /// Something else takes the place of what has been written to so far, which must be durable before.
    pub(crate) exchanges: bool,
    /// What the node shows is at another place of its child than before.
    pub(crate) moves: bool,
    pub(crate) change: Change,
}

/// One driver's part.
#[derive(Debug)]
pub(crate) enum Change {
    Nothing,
    File(Box<Opened>),
    Raw(Window),
    Throttle(ThrottleMember),
}

impl Change {
    /// Bytes that the node has afterwards, over a child of `below` bytes; none if that follows from no option.
    pub(crate) fn len(&self, below: u64) -> Option<u64> {
        match self {
            Self::Raw(window) => Some(window.len(below)),
            Self::Nothing | Self::File(_) | Self::Throttle(_) => None,
        }
    }
}

impl Reopened {
    /// The driver stays as it is.
    #[must_use]
    pub fn unchanged(read_only: bool) -> Self {
        Self {
            read_only,
            exchanges: false,
            moves: false,
            change: Change::Nothing,
        }
    }
}
