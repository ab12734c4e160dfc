//! [`Span`]: a range of bytes in terms of a driver's blocks. Arithmetic only.

/// The bytes `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Span {
    /// `len` bytes from `offset`, which the caller has checked to lie within a node.
    pub(super) fn new(offset: u64, len: u64) -> Self {
        Self {
            start: offset,
            end: offset.saturating_add(len),
        }
    }

    pub(super) fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub(super) fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Whole blocks of `alignment` that contain the span, cut short at the node's end (`size`),
    /// where the last block may be a part of one.
    pub(super) fn widened(self, alignment: u64, size: u64) -> Self {
        Self {
            start: self.start / alignment * alignment,
            end: self
                .end
                .checked_next_multiple_of(alignment)
                .map_or(size, |end| end.min(size)),
        }
    }

    /// The whole blocks within the span; a last block that the node's end cuts short is whole.
    /// Empty if there are none.
    pub(super) fn narrowed(self, alignment: u64, size: u64) -> Self {
        let end = if self.end == size {
            size
        } else {
            self.end / alignment * alignment
        };
        let start = self.start.next_multiple_of(alignment);
        Self {
            start: start.min(end),
            end,
        }
    }

    /// Head, middle and tail: the middle begins and ends on multiples of `alignment` as far as
    /// there are any inside. Parts may be empty.
    pub(super) fn parts(self, alignment: u64) -> [Self; 3] {
        let first = self.start.next_multiple_of(alignment);
        let last = self.end / alignment * alignment;
        if first >= last {
            return [self, Self::new(self.end, 0), Self::new(self.end, 0)];
        }
        let part = |start, end| Self { start, end };
        [
            part(self.start, first),
            part(first, last),
            part(last, self.end),
        ]
    }

    /// The span in pieces of at most `most` bytes.
    pub(super) fn pieces(self, most: u64) -> impl Iterator<Item = Self> {
        let mut rest = self;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let piece = Self::new(rest.start, rest.len().min(most));
            rest.start = piece.end;
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    #[test]
    fn widening_stops_at_the_nodes_end() {
        assert_eq!(span(5, 9).widened(4, 100), span(4, 12));
        assert_eq!(span(5, 9).widened(4, 10), span(4, 10));
        assert_eq!(
            span(u64::MAX - 1, u64::MAX).widened(4, u64::MAX).end,
            u64::MAX
        );
    }

    #[test]
    fn narrowing_leaves_whole_blocks() {
        assert_eq!(span(5, 13).narrowed(4, 100), span(8, 12));
        assert_eq!(span(5, 10).narrowed(4, 10), span(8, 10));
        assert!(span(5, 7).narrowed(4, 100).is_empty());
    }

    #[test]
    fn parts_and_pieces_cover_the_span_without_gaps() {
        for (start, end) in [(0, 16), (1, 16), (1, 15), (5, 6), (3, 5), (8, 8)] {
            let whole = span(start, end);
            let parts = whole.parts(4);
            assert_eq!(parts[0].start, start);
            assert_eq!(parts[0].end, parts[1].start);
            assert_eq!(parts[1].end, parts[2].start);
            assert_eq!(parts[2].end, end);
            let middle = parts[1];
            let aligned = middle.start.is_multiple_of(4) && middle.end.is_multiple_of(4);
            assert!(middle.is_empty() || aligned);
            let mut at = start;
            for piece in whole.pieces(3) {
                assert!(piece.start == at && (1..=3).contains(&piece.len()));
                at = piece.end;
            }
            assert_eq!(at, end);
        }
    }
}
