//! [`Leaves`]: the marks of a bitmap, cut into leaves, of which only those that are mixed take memory.
//!
//! A leaf is all clear, all set, or *mixed*; then it has words of its own, and keeps them for as long as the bitmap
//! lives. So a bitmap that was just made or set as a whole takes next to nothing however large its disk is, and
//! who marks or clears never holds words that somebody else gives back. A leaf becomes mixed without changing what it
//! says: its words are made as it stands (all clear or all set), then it is said that they count, and only after that
//! is a bit changed. Who finds that it stands otherwise by now begins anew.
//!
//! Any method may be called from any thread at any time; none takes a lock, but who needs the words of a leaf that
//! somebody else is just making waits for them.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};

use super::geometry::{BitmapError, reserved};

/// Bits in one word.
pub(super) const WORD_BITS: usize = u64::BITS as usize;
/// Words of one leaf: as many as one word of the bitmap's summary has bits.
pub(super) const LEAF_WORDS: usize = WORD_BITS;
/// Chunks of one leaf.
pub(super) const LEAF_CHUNKS: usize = LEAF_WORDS * WORD_BITS;
/// What an allocator adds to a leaf's words at most, in bytes.
const ALLOCATOR: u64 = 16;

type Words = [AtomicU64; LEAF_WORDS];

/// No chunk is marked.
const CLEAR: u8 = 0;
/// All chunks are marked.
const SET: u8 = 1;
/// The words count that were all clear at first.
const MIXED_FROM_CLEAR: u8 = 2;
/// The words count that were all set at first.
const MIXED_FROM_SET: u8 = 3;

#[derive(Debug)]
struct Leaf {
    state: AtomicU8,
    from_clear: OnceLock<Box<Words>>,
    from_set: OnceLock<Box<Words>>,
}

impl Leaf {
    fn new() -> Self {
        Self {
            state: AtomicU8::new(CLEAR),
            from_clear: OnceLock::new(),
            from_set: OnceLock::new(),
        }
    }

    /// Goes over, if it still is in the state `from`. Also `from` to itself: that is what a mark amounts to which is
    /// there already, and what orders it before the clear that comes next.
    fn becomes(&self, from: u8, to: u8) -> bool {
        let changed = self.state.compare_exchange(from, to, SeqCst, SeqCst);
        changed.is_ok()
    }
}

/// How a leaf stands.
enum Stand<'a> {
    Clear,
    Set,
    Mixed(&'a Words),
}

/// A part of a range of chunks.
pub(super) enum Piece {
    /// All chunks of the leaf of that number.
    Leaf(usize),
    /// Chunks of the word of that number.
    Word(usize, u64),
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Leaves {
    leaves: Box<[Leaf]>,
    chunks: usize,
}

impl Leaves {
    /// All clear.
    ///
    /// # Errors
    /// [`BitmapError::OutOfMemory`].
    pub(super) fn new(chunks: usize) -> Result<Self, BitmapError> {
        let leaves = reserved(chunks.div_ceil(LEAF_CHUNKS), chunks, Leaf::new)?;
        Ok(Self { leaves, chunks })
    }

    /// How many words there are, be they made or not.
    pub(super) fn word_count(&self) -> usize {
        self.chunks.div_ceil(WORD_BITS)
    }

    /// Marks chunks of a word; returns it as it was before.
    pub(super) fn mark(&self, word: usize, mask: u64) -> u64 {
        let leaf = &self.leaves[word / LEAF_WORDS];
        loop {
            match self.stand(word / LEAF_WORDS) {
                Stand::Mixed(words) => return words[word % LEAF_WORDS].fetch_or(mask, SeqCst),
                Stand::Set => {
                    if leaf.becomes(SET, SET) {
                        return self.in_use(word);
                    }
                }
                Stand::Clear => {
                    leaf.from_clear
                        .get_or_init(|| Box::new([const { AtomicU64::new(0) }; LEAF_WORDS]));
                    leaf.becomes(CLEAR, MIXED_FROM_CLEAR);
                }
            }
        }
    }

    /// Clears chunks of a word; returns it as it was before.
    pub(super) fn clear(&self, word: usize, mask: u64) -> u64 {
        let number = word / LEAF_WORDS;
        let leaf = &self.leaves[number];
        loop {
            match self.stand(number) {
                Stand::Clear => return 0,
                Stand::Mixed(words) => return take(&words[word % LEAF_WORDS], mask),
                Stand::Set => {
                    let first = number * LEAF_WORDS;
                    leaf.from_set.get_or_init(|| {
                        Box::new(std::array::from_fn(|at| {
                            AtomicU64::new(self.in_use(first + at))
                        }))
                    });
                    leaf.becomes(SET, MIXED_FROM_SET);
                }
            }
        }
    }

    /// Marks a whole leaf; returns how many of its chunks were marked before.
    pub(super) fn mark_leaf(&self, number: usize) -> u64 {
        let leaf = &self.leaves[number];
        loop {
            match self.stand(number) {
                Stand::Mixed(words) => {
                    let marked = words.iter().zip(number * LEAF_WORDS..);
                    return marked
                        .map(|(word, at)| count(word.fetch_or(self.in_use(at), SeqCst)))
                        .sum();
                }
                Stand::Set => {
                    if leaf.becomes(SET, SET) {
                        return self.len(number);
                    }
                }
                Stand::Clear => {
                    if leaf.becomes(CLEAR, SET) {
                        return 0;
                    }
                }
            }
        }
    }

    /// Clears a whole leaf; returns how many of its chunks were marked.
    pub(super) fn clear_leaf(&self, number: usize) -> u64 {
        let leaf = &self.leaves[number];
        loop {
            match self.stand(number) {
                Stand::Clear => return 0,
                Stand::Mixed(words) => {
                    return words.iter().map(|word| count(take(word, u64::MAX))).sum();
                }
                Stand::Set => {
                    if leaf.becomes(SET, CLEAR) {
                        return self.len(number);
                    }
                }
            }
        }
    }

    /// A word as it is now; one beyond the end is 0.
    pub(super) fn load(&self, word: usize) -> u64 {
        match self.stand(word / LEAF_WORDS) {
            Stand::Clear => 0,
            Stand::Set => self.in_use(word),
            Stand::Mixed(words) => words[word % LEAF_WORDS].load(SeqCst),
        }
    }

    /// The first marked chunk of `range`.
    pub(super) fn first_marked(&self, range: Range<usize>) -> Option<usize> {
        self.pieces(range).find_map(|piece| match piece {
            Piece::Word(word, mask) => first(word, self.load(word) & mask),
            Piece::Leaf(leaf) => match self.stand(leaf) {
                Stand::Clear => None,
                Stand::Set => Some(leaf * LEAF_CHUNKS),
                Stand::Mixed(words) => {
                    let mut words = words.iter().zip(leaf * LEAF_WORDS..);
                    words.find_map(|(word, at)| first(at, word.load(SeqCst)))
                }
            },
        })
    }

    /// The first chunk of `range` that is not marked.
    pub(super) fn first_clear(&self, range: Range<usize>) -> Option<usize> {
        self.pieces(range).find_map(|piece| match piece {
            Piece::Word(word, mask) => first(word, !self.load(word) & mask),
            Piece::Leaf(leaf) => match self.stand(leaf) {
                Stand::Set => None,
                Stand::Clear => Some(leaf * LEAF_CHUNKS),
                Stand::Mixed(words) => {
                    let mut words = words.iter().zip(leaf * LEAF_WORDS..);
                    words.find_map(|(word, at)| first(at, !word.load(SeqCst) & self.in_use(at)))
                }
            },
        })
    }

    /// A range, cut into whole leaves and, at its ends, words.
    pub(super) fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = Piece> {
        let (mut at, end, chunks) = (range.start, range.end, self.chunks);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let leaf_end = chunks.min(at.saturating_add(LEAF_CHUNKS));
            if at.is_multiple_of(LEAF_CHUNKS) && end >= leaf_end {
                let leaf = at / LEAF_CHUNKS;
                at = leaf_end;
                return Some(Piece::Leaf(leaf));
            }
            let word = at / WORD_BITS;
            let word_end = (word + 1) * WORD_BITS;
            let mut mask = from_bit(at);
            if end < word_end {
                mask &= !from_bit(end);
            }
            at = word_end;
            Some(Piece::Word(word, mask))
        })
    }

    /// Bytes of memory that it takes now.
    pub(super) fn memory(&self) -> u64 {
        let made = |leaf: &Leaf| {
            u64::from(leaf.from_clear.get().is_some()) + u64::from(leaf.from_set.get().is_some())
        };
        let mixed: u64 = self.leaves.iter().map(made).sum();
        size_of_val(&*self.leaves) as u64 + mixed * WORDS_SIZE
    }

    fn stand(&self, number: usize) -> Stand<'_> {
        let leaf = &self.leaves[number];
        let words = match leaf.state.load(SeqCst) {
            SET => return Stand::Set,
            MIXED_FROM_CLEAR => leaf.from_clear.get(),
            MIXED_FROM_SET => leaf.from_set.get(),
            _ => None,
        };
        // They are made before it is said that they count.
        words.map_or(Stand::Clear, |words| Stand::Mixed(words))
    }

    /// Chunks of a leaf; the last one may be shorter.
    fn len(&self, leaf: usize) -> u64 {
        let first = leaf * LEAF_CHUNKS;
        (self.chunks - first).min(LEAF_CHUNKS) as u64
    }

    /// The bits of a word that stand for chunks.
    fn in_use(&self, word: usize) -> u64 {
        match self.chunks.saturating_sub(word * WORD_BITS) {
            WORD_BITS.. => u64::MAX,
            left => !from_bit(left),
        }
    }
}

/// Bytes of a mixed leaf's words.
const WORDS_SIZE: u64 = size_of::<Words>() as u64 + ALLOCATOR;

/// Bytes of memory that the leaves of `chunks` take if all are mixed.
pub(super) fn memory_of(chunks: u64) -> u64 {
    let each = size_of::<Leaf>() as u64 + WORDS_SIZE;
    chunks.div_ceil(LEAF_CHUNKS as u64).saturating_mul(each)
}

/// Clears bits; returns the word as it was before.
fn take(word: &AtomicU64, mask: u64) -> u64 {
    // To see that it is empty is cheaper. A mark that comes later stays, whichever way this looks.
    match word.load(SeqCst) {
        0 => 0,
        _ => word.fetch_and(!mask, SeqCst),
    }
}

fn count(word: u64) -> u64 {
    word.count_ones().into()
}

/// The chunk of the lowest of `bits`, which are of the word of that number.
fn first(word: usize, bits: u64) -> Option<usize> {
    (bits != 0).then(|| word * WORD_BITS + bits.trailing_zeros() as usize)
}

/// All bits of the word of item `index` from that item on.
pub(super) fn from_bit(index: usize) -> u64 {
    u64::MAX << (index % WORD_BITS)
}
