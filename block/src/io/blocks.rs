//! Requests that a driver does not take as they are: widened to its blocks, or split.
//!
//! A write that covers a block in part reads the block, puts the new bytes in and writes it back.
//! Meanwhile nobody else may write to that block, although he may mean other bytes of it: such a
//! write claims its blocks alone, and every other write to this node claims what it writes. Reads
//! claim nothing: the bytes that are written back around the new ones are those that are there.

use sluice_aio::IoBuffer;

use super::serialise::{Claim, ClaimKind, Serialiser};
use super::span::Span;
use crate::driver::{DebugEvent, RequestFlags};
use crate::error::Result;
use crate::node::Node;

/// Bytes up to which a request is widened in memory as a whole; of a larger one only its first and
/// its last block are.
const WIDEN_WHOLE: u64 = 64 << 10;

/// The events before a write's first and last block are read, to be put around its data.
const BEFORE_READ: [DebugEvent; 2] = [DebugEvent::PwritevRmwHead, DebugEvent::PwritevRmwTail];
/// Those after it.
const AFTER_READ: [DebugEvent; 2] = [
    DebugEvent::PwritevRmwAfterHead,
    DebugEvent::PwritevRmwAfterTail,
];

impl Node {
    /// Claims the blocks that a change of `span` touches; nothing if the driver has none.
    pub(super) async fn claim_blocks(&self, span: Span) -> Option<Claim<&Serialiser>> {
        let alignment = self.io.bounds.alignment();
        if alignment == 1 || span.is_empty() {
            return None;
        }
        let outer = span.widened(alignment, self.len());
        let kind = if outer == span {
            ClaimKind::Shared
        } else {
            ClaimKind::Exclusive
        };
        Some(self.io.serialiser.claim(outer.start..outer.end, kind).await)
    }

    pub(super) async fn read_blocks(&self, offset: u64, buffer: IoBuffer) -> Result<()> {
        let span = Span::new(offset, buffer.len() as u64);
        let outer = span.widened(self.io.bounds.alignment(), self.len());
        if outer == span {
            return self.read_pieces(span, &buffer).await;
        }
        for part in self.around(span) {
            let target = part_of(&buffer, span, part);
            let outer = part.widened(self.io.bounds.alignment(), self.len());
            if outer == part {
                self.read_pieces(part, &target).await?;
            } else {
                let whole = IoBuffer::alloc(to_len(outer.len()));
                self.read_pieces(outer, &whole).await?;
                target.copy_from_slice(0, &part_of(&whole, outer, part).to_vec());
            }
        }
        Ok(())
    }

    /// Writes with the claim on the blocks held.
    pub(super) async fn write_blocks(
        &self,
        offset: u64,
        buffer: &IoBuffer,
        flags: RequestFlags,
    ) -> Result<()> {
        let span = Span::new(offset, buffer.len() as u64);
        for part in self.around(span) {
            let source = part_of(buffer, span, part);
            let outer = part.widened(self.io.bounds.alignment(), self.len());
            if outer == part {
                self.write_pieces(part, &source, flags).await?;
            } else {
                let whole = IoBuffer::alloc(to_len(outer.len()));
                self.modify_event(part, outer, BEFORE_READ).await?;
                self.read_pieces(outer, &whole).await?;
                self.modify_event(part, outer, AFTER_READ).await?;
                whole.copy_from_slice(to_len(part.start - outer.start), &source.to_vec());
                self.write_pieces(outer, &whole, flags).await?;
            }
        }
        Ok(())
    }

    /// Lets a fault injector below stop where `outer` is read for a write of `part`: at the event of
    /// each end that lies within a block. One read serves both.
    async fn modify_event(
        &self,
        part: Span,
        outer: Span,
        [head, tail]: [DebugEvent; 2],
    ) -> Result<()> {
        if part.start > outer.start {
            self.debug_event(head).await?;
        }
        if part.end < outer.end {
            self.debug_event(tail).await?;
        }
        Ok(())
    }

    /// The parts in which a span is done: as a whole if it is short, else its ends by themselves,
    /// so that the long middle need not be copied.
    fn around(&self, span: Span) -> impl Iterator<Item = Span> {
        let alignment = self.io.bounds.alignment();
        let whole = span.widened(alignment, self.len());
        let parts = if whole == span || whole.len() <= WIDEN_WHOLE.max(2 * alignment) {
            [span, Span::new(span.end, 0), Span::new(span.end, 0)]
        } else {
            span.parts(alignment)
        };
        parts.into_iter().filter(|part| !part.is_empty())
    }

    async fn read_pieces(&self, span: Span, buffer: &IoBuffer) -> Result<()> {
        for piece in span.pieces(self.io.bounds.get().max_transfer) {
            let part = part_of(buffer, span, piece);
            self.driver().read(piece.start, part).await?;
        }
        Ok(())
    }

    pub(super) async fn write_pieces(
        &self,
        span: Span,
        buffer: &IoBuffer,
        flags: RequestFlags,
    ) -> Result<()> {
        for piece in span.pieces(self.io.bounds.get().max_transfer) {
            let part = part_of(buffer, span, piece);
            self.driver().write(piece.start, part, flags).await?;
        }
        Ok(())
    }
}

/// What `buffer`, which holds `whole`, has of `part`.
fn part_of(buffer: &IoBuffer, whole: Span, part: Span) -> IoBuffer {
    buffer.slice(to_len(part.start - whole.start), to_len(part.len()))
}

/// A length within memory: it is that of a buffer, or bounded by one.
pub(super) fn to_len(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
