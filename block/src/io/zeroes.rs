//! Zeroes and discards, cut to what the driver takes; zeroes are written where it can't make them.

use sluice_aio::IoBuffer;

use super::blocks::to_len;
use super::span::Span;
use crate::driver::RequestFlags;
use crate::error::Result;
use crate::node::Node;

/// The most bytes of zeroes in memory at once, for a driver that has to be given them.
const ZERO_BUFFER: u64 = 1 << 20;

impl Node {
    /// The general way of [`Node::write_zeroes`].
    pub(super) async fn zero_blocks(&self, span: Span, flags: RequestFlags) -> Result<()> {
        let bounds = self.io.bounds.get();
        let _claim = self.claim_blocks(span).await;
        let inner = span.narrowed(bounds.alignment, self.len());
        if inner.is_empty() {
            return self.write_zero_buffer(span, flags).await;
        }
        let head = Span {
            start: span.start,
            end: inner.start,
        };
        let tail = Span {
            start: inner.end,
            end: span.end,
        };
        for end in [head, tail] {
            if !end.is_empty() {
                self.write_zero_buffer(end, flags).await?;
            }
        }
        for part in inner.parts(bounds.zero_alignment) {
            for piece in part.pieces(bounds.max_zeroes) {
                let zeroed = self
                    .driver()
                    .write_zeroes(piece.start, piece.len(), flags)
                    .await;
                match zeroed {
                    Err(error) if error.is_unsupported() => {
                        self.write_zeroes_as_data(piece, flags).await?;
                    }
                    result => result?,
                }
            }
        }
        Ok(())
    }

    /// Zeroes a part of one or two blocks; the claim is held.
    async fn write_zero_buffer(&self, span: Span, flags: RequestFlags) -> Result<()> {
        let zeroes = IoBuffer::alloc(to_len(span.len()));
        self.write_blocks(span.start, &zeroes, flags).await
    }

    /// Writes zeroes as if they were data, a bounded buffer at a time.
    pub(super) async fn write_zeroes_as_data(&self, span: Span, flags: RequestFlags) -> Result<()> {
        // A whole number of blocks, whatever they are: both are powers of two.
        let most = ZERO_BUFFER.max(self.io.bounds.alignment());
        let zeroes = IoBuffer::alloc(to_len(span.len().min(most)));
        for piece in span.pieces(most) {
            let part = zeroes.slice(0, to_len(piece.len()));
            self.write_pieces(piece, &part, flags).await?;
        }
        Ok(())
    }

    /// The general way of [`Node::discard`]: parts of blocks are left alone.
    pub(super) async fn discard_blocks(&self, span: Span) -> Result<()> {
        let bounds = self.io.bounds.get();
        let inner = span.narrowed(bounds.alignment, self.len());
        let _claim = self.claim_blocks(inner).await;
        for part in inner.parts(bounds.discard_alignment) {
            for piece in part.pieces(bounds.max_discard) {
                match self.driver().discard(piece.start, piece.len()).await {
                    // A hint that can't be taken is no error.
                    Err(error) if error.is_unsupported() => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }
}
