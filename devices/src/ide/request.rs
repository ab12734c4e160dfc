//! A disk operation as a value.
//!
//! Made by a channel when the guest starts a command, carried to the loop that serves the drive and perhaps held there
//! while the drive is drained. It owns all it needs: nothing in it refers to a register, so what the guest
//! does to the registers in the meantime cannot change where it reads or writes (design, section 5, rule 5).

use super::atapi::{DiscRead, Part};
use super::prd::Table;

/// Tells requests from before a reset from those after it. Every reset and every cancellation begins a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Generation(u64);

impl Generation {
    /// The one that follows.
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// What to do. Offsets and lengths are in bytes. Each is one request to the backend's gate, however many
/// pieces it has (rule 7).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Read a block for the data register, as long as this one.
    ReadBlock { offset: u64, block: Vec<u8> },
    /// Write a block that came through the data register.
    WriteBlock { offset: u64, block: Vec<u8> },
    /// Read into the memory that the table describes.
    ReadDma {
        offset: u64,
        length: usize,
        table: Table,
    },
    /// Write from the memory that the table describes.
    WriteDma {
        offset: u64,
        length: usize,
        table: Table,
    },
    /// Discard the ranges listed in the memory that the table describes.
    Trim { length: usize, table: Table },
    /// Make everything written before durable.
    Flush,
    /// Read part of what a packet command wants, for the data register.
    ReadDisc(Part),
    /// Read all that a packet command wants into the memory that the table describes.
    ReadDiscDma { read: DiscRead, table: Table },
    /// Put a packet command's answer into the memory that the table describes.
    ReplyDma { data: Vec<u8>, table: Table },
}

/// What an operation does, for people who ask what a disk is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    name: &'static str,
    /// Offset and length in bytes, if it is about one range.
    range: Option<(u64, usize)>,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)?;
        match self.range {
            Some((offset, length)) => write!(f, ", {length} bytes at byte {offset}"),
            None => Ok(()),
        }
    }
}

impl Operation {
    pub fn summary(&self) -> Summary {
        let (name, range) = match self {
            Self::ReadBlock { offset, block } => ("read", Some((*offset, block.len()))),
            Self::WriteBlock { offset, block } => ("write", Some((*offset, block.len()))),
            Self::ReadDma { offset, length, .. } => ("read by DMA", Some((*offset, *length))),
            Self::WriteDma { offset, length, .. } => ("write by DMA", Some((*offset, *length))),
            Self::Trim { .. } => ("TRIM", None),
            Self::Flush => ("flush", None),
            Self::ReadDisc(part) => ("packet read", Some((part.read.offset(), part.length))),
            Self::ReadDiscDma { read, .. } => ("packet read by DMA", Some(read.medium_range())),
            Self::ReplyDma { .. } => ("packet answer by DMA", None),
        };
        Summary { name, range }
    }
}

/// One operation on one drive of a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// The channel's generation when the command was given.
    pub generation: Generation,
    /// 0 or 1.
    pub drive: usize,
    pub operation: Operation,
    /// What it writes is durable before it ends, whatever the write cache is set to.
    pub durable: bool,
}

/// How an operation ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Well.
    Done,
    /// Well, with the block of the data register: what was read, or the memory of what was written.
    Block(Vec<u8>),
    /// Well, and the table described more memory than was needed.
    DoneWithSurplus,
    /// Nothing was transferred: the table describes less memory than is needed.
    TableTooShort,
    /// Nothing was transferred: the table, or what it describes, is not memory.
    NotMemory,
    /// The backend failed, or a TRIM range lies beyond the disk's end.
    Failed,
}

impl Outcome {
    /// Whether the operation was carried out.
    pub fn is_well(&self) -> bool {
        matches!(self, Self::Done | Self::Block(_) | Self::DoneWithSurplus)
    }
}
