//! The bitmap itself: leaves of atomic words, and a summary of them.
//!
//! Any method may be called from any thread at any time; none takes a lock. None waits, but where two need the words
//! of a leaf at the same time that has none yet.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use sha2::{Digest, Sha256};

use super::geometry::{BitmapError, Geometry, Granularity, reserved};
use super::leaves::{self, LEAF_CHUNKS, LEAF_WORDS, Leaves, Piece, WORD_BITS, from_bit};

/// A dirty bitmap over a disk.
///
/// # Memory
/// The marks are kept in leaves of 4096 chunks. One whose chunks are all clear or all marked takes a few bytes, any
/// other one bit a chunk besides: [`memory`](Self::memory) is what is taken now,
/// [`memory_at_most`](Self::memory_at_most) what the size allows. A mark or a clear takes memory at most once for each
/// leaf.
///
/// # What a copier may rely on
/// A writer marks a range *after* its write has completed ([`record`](Self::record)); a copier
/// clears a chunk *before* it reads the chunk's data ([`clear`](Self::clear)). Marking and
/// clearing are read-modify-writes of the same word, or of the same leaf's state, so one of them comes first:
///
/// - the mark came first: the clear has read it and so happens after the write that was marked;
///   the copier's read sees that write;
/// - the clear came first: the mark stays, and the chunk is found dirty again.
///
/// So no write is forgotten: it is in the copy or still marked. A mark is never skipped because the
/// bit is set already; a plain look at the bit would not order the write before the next clear.
///
/// # Accuracy of the count
/// A mark is counted before its bit is set, and a clear after its bit went away. The count
/// therefore never falls short of the bits that are set: [`is_clean`](Self::is_clean) does not
/// say yes while a completed mark stands. While a call to mark runs it may be too high by that
/// call's range; when nobody marks or clears it is exact.
///
/// # The summary
/// One bit of the upper level says that a word of the lower level may hold marks. A marker sets
/// its word and then looks at the summary bit; a clearer that emptied a word drops the summary bit
/// and then looks at the word again. Both do this in the one total order of `SeqCst`, so at
/// least one of them sees the other and the summary bit stands in the end. For the moment between
/// dropping and looking again, the clearer shows that it is at it (`scrubs_started`,
/// `scrubs_finished`); a search which came up empty while that was so looks at all words.
///
/// # Example
/// ```
/// use sluice_block::dirty::{DirtyBitmap, Granularity};
///
/// let bitmap = DirtyBitmap::new(1 << 20, Granularity::new(64 << 10)?)?;
/// bitmap.record(70_000, 512);
/// assert_eq!(bitmap.next_dirty(0, u64::MAX), Some(65_536..131_072));
/// assert_eq!(bitmap.clear(65_536, 65_536), 1);
/// assert!(bitmap.is_clean());
/// # Ok::<(), sluice_block::dirty::BitmapError>(())
/// ```
pub struct DirtyBitmap {
    geometry: Geometry,
    leaves: Leaves,
    /// One word for each leaf.
    summary: Box<[AtomicU64]>,
    dirty_chunks: AtomicU64,
    recording: AtomicBool,
    scrubs_started: AtomicU64,
    scrubs_finished: AtomicU64,
}

impl DirtyBitmap {
    /// A clean bitmap for a disk of `size` bytes; recording is on.
    ///
    /// # Errors
    /// [`BitmapError::OutOfMemory`].
    pub fn new(size: u64, granularity: Granularity) -> Result<Self, BitmapError> {
        let geometry = Geometry::new(size, granularity)?;
        let leaves = Leaves::new(geometry.chunks)?;
        let leaf_count = geometry.chunks.div_ceil(LEAF_CHUNKS);
        let summary = reserved(leaf_count, geometry.chunks, || AtomicU64::new(0))?;
        Ok(Self {
            geometry,
            leaves,
            summary,
            dirty_chunks: AtomicU64::new(0),
            recording: AtomicBool::new(true),
            scrubs_started: AtomicU64::new(0),
            scrubs_finished: AtomicU64::new(0),
        })
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.geometry.size
    }

    /// Bytes that one bit stands for.
    #[must_use]
    pub fn granularity(&self) -> u64 {
        self.geometry.granularity.bytes()
    }

    /// Switches the recording of writes on or off.
    ///
    /// A [`record`](Self::record) that runs meanwhile may still count under the old setting; who
    /// needs a sharp edge changes it inside a drained section.
    pub fn set_recording(&self, recording: bool) {
        self.recording.store(recording, SeqCst);
    }

    /// Whether writes are recorded.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.recording.load(SeqCst)
    }

    /// Marks what a completed write touched, if recording is on. Bytes; rounded outward.
    pub fn record(&self, offset: u64, len: u64) {
        if self.is_recording() {
            self.set_dirty(offset, len);
        }
    }

    /// Marks every chunk that the range touches (rounded outward, in bytes), recording or not.
    ///
    /// What lies beyond the disk's end is ignored.
    pub fn set_dirty(&self, offset: u64, len: u64) {
        let chunks = self.geometry.outward(offset, len);
        if chunks.is_empty() {
            return;
        }
        self.dirty_chunks.fetch_add(chunks.len() as u64, SeqCst);
        let mut already = 0;
        for piece in self.leaves.pieces(chunks) {
            already += match piece {
                Piece::Leaf(leaf) => {
                    let marked = self.leaves.mark_leaf(leaf);
                    self.announce(leaf, u64::MAX);
                    marked
                }
                Piece::Word(word, mask) => {
                    let before = self.leaves.mark(word, mask);
                    self.announce(word / LEAF_WORDS, bit(word));
                    u64::from((before & mask).count_ones())
                }
            };
        }
        if already > 0 {
            self.dirty_chunks.fetch_sub(already, SeqCst);
        }
    }

    /// Clears every chunk that the range covers entirely (rounded inward, in bytes) and returns how
    /// many were dirty.
    ///
    /// A short last chunk is covered when the range reaches the disk's end. Chunks that are only
    /// partly in the range stay as they are: the rest of them may be dirty.
    pub fn clear(&self, offset: u64, len: u64) -> u64 {
        let mut cleared = 0;
        for piece in self.leaves.pieces(self.geometry.inward(offset, len)) {
            cleared += match piece {
                Piece::Leaf(leaf) => {
                    let marked = self.leaves.clear_leaf(leaf);
                    if marked > 0 {
                        self.scrub(leaf, u64::MAX);
                    }
                    marked
                }
                Piece::Word(word, mask) => {
                    let before = self.leaves.clear(word, mask);
                    if before != 0 && before & !mask == 0 {
                        self.scrub(word / LEAF_WORDS, bit(word));
                    }
                    u64::from((before & mask).count_ones())
                }
            };
        }
        if cleared > 0 {
            self.dirty_chunks.fetch_sub(cleared, SeqCst);
        }
        cleared
    }

    /// Marks the whole disk.
    pub fn set_all(&self) {
        self.set_dirty(0, self.geometry.size);
    }

    /// Clears the whole disk.
    pub fn clear_all(&self) {
        self.clear(0, self.geometry.size);
    }

    /// Whether the chunk that holds the byte `offset` is dirty; false beyond the disk's end.
    #[must_use]
    pub fn is_dirty(&self, offset: u64) -> bool {
        offset < self.geometry.size && self.chunk_is_dirty(self.geometry.chunk_of(offset))
    }

    /// The first run of dirty chunks at or after the chunk that holds byte `from`, in bytes.
    ///
    /// The run begins at a chunk's first byte (before `from` if that chunk itself is dirty), ends
    /// at a chunk's end or the disk's, and is cut after `max_len` bytes rounded down to whole
    /// chunks, but holds at least one. There is no wrap-around. It is a snapshot: only a later
    /// [`clear`](Self::clear) is ordered against marks.
    #[must_use]
    pub fn next_dirty(&self, from: u64, max_len: u64) -> Option<Range<u64>> {
        if from >= self.geometry.size {
            return None;
        }
        let first = self.find_dirty(self.geometry.chunk_of(from))?;
        let most = usize::try_from(max_len / self.granularity())
            .unwrap_or(usize::MAX)
            .max(1);
        let limit = first.saturating_add(most).min(self.geometry.chunks);
        let end = self.leaves.first_clear(first + 1..limit).unwrap_or(limit);
        Some(self.geometry.offset_of(first)..self.geometry.offset_of(end))
    }

    /// Dirty bytes; a short last chunk counts with its true length. See the accuracy above.
    #[must_use]
    pub fn count(&self) -> u64 {
        let chunks = self.dirty_chunks.load(SeqCst);
        let bytes = chunks.saturating_mul(self.granularity());
        let missing = self.geometry.missing_tail();
        let tail_dirty = missing > 0 && self.chunk_is_dirty(self.geometry.chunks - 1);
        let bytes = if tail_dirty {
            bytes.saturating_sub(missing)
        } else {
            bytes
        };
        bytes.min(self.geometry.size)
    }

    /// Whether no chunk is dirty.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.dirty_chunks.load(SeqCst) == 0
    }

    /// A copy for a disk of `size` bytes with the same granularity, recording and marks.
    ///
    /// What was added is clean, what was cut off is forgotten. The caller puts the copy in this
    /// bitmap's place inside a drained section of the disk: a mark that arrives between copying and
    /// replacing would stay behind here.
    ///
    /// # Errors
    /// [`BitmapError::OutOfMemory`].
    pub fn resized(&self, size: u64) -> Result<Self, BitmapError> {
        let copy = Self::new(size, self.geometry.granularity)?;
        copy.set_recording(self.is_recording());
        copy.merge(self);
        Ok(copy)
    }

    /// A clean bitmap like this one.
    ///
    /// # Errors
    /// [`BitmapError::OutOfMemory`].
    pub fn emptied(&self) -> Result<Self, BitmapError> {
        let empty = Self::new(self.size(), self.geometry.granularity)?;
        empty.set_recording(self.is_recording());
        Ok(empty)
    }

    /// Marks all that `other` has marked, rounded outward where the granularities differ; what lies
    /// beyond this disk's end is ignored.
    pub fn merge(&self, other: &Self) {
        let mut from = 0;
        while let Some(run) = other.next_dirty(from, u64::MAX) {
            self.set_dirty(run.start, run.end - run.start);
            from = run.end;
        }
    }

    /// Bytes of memory that it takes now.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.leaves.memory() + size_of_val(&*self.summary) as u64
    }

    /// Bytes of memory that it takes when no leaf is all clear or all marked.
    #[must_use]
    pub fn memory_at_most(&self) -> u64 {
        memory_of(self.geometry.chunks as u64)
    }

    /// The marks as QEMU hashes them: one bit a chunk in words of 64, the first in the lowest, each word
    /// little-endian, at least one.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for word in 0..self.leaves.word_count() {
            hash.update(self.leaves.load(word).to_le_bytes());
        }
        if self.leaves.word_count() == 0 {
            hash.update(0_u64.to_le_bytes());
        }
        let digest = hash.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn chunk_is_dirty(&self, chunk: usize) -> bool {
        self.leaves.load(chunk / WORD_BITS) & bit(chunk) != 0
    }

    /// Makes sure that the summary shows these words of a leaf, which were just marked.
    fn announce(&self, leaf: usize, words: u64) {
        let upper = &self.summary[leaf];
        if upper.load(SeqCst) & words != words {
            upper.fetch_or(words, SeqCst);
        }
    }

    /// Takes these words of a leaf, which were emptied, out of the summary; those that were marked again meanwhile
    /// stay.
    pub(super) fn scrub(&self, leaf: usize, words: u64) {
        self.scrubs_started.fetch_add(1, SeqCst);
        let upper = &self.summary[leaf];
        upper.fetch_and(!words, SeqCst);
        let marked = bits_of(words).filter(|at| self.leaves.load(leaf * LEAF_WORDS + at) != 0);
        let back = marked.fold(0, |back, at| back | bit(at));
        if back != 0 {
            upper.fetch_or(back, SeqCst);
        }
        self.scrubs_finished.fetch_add(1, SeqCst);
    }

    fn find_dirty(&self, from: usize) -> Option<usize> {
        // Equal counters before and after: no summary bit was down for a moment while we looked.
        let finished = self.scrubs_finished.load(SeqCst);
        let found = self.find_by_summary(from);
        if found.is_some() || self.scrubs_started.load(SeqCst) == finished {
            return found;
        }
        self.leaves.first_marked(from..self.geometry.chunks)
    }

    fn find_by_summary(&self, from: usize) -> Option<usize> {
        let mut keep = from_bit(from / WORD_BITS);
        for (leaf, upper) in self.summary.iter().enumerate().skip(from / LEAF_CHUNKS) {
            let words = upper.load(SeqCst) & keep;
            keep = u64::MAX;
            let mut words = bits_of(words).map(|at| leaf * LEAF_WORDS + at);
            let found = words.find_map(|word| {
                let first = from.max(word * WORD_BITS);
                let end = self.geometry.chunks.min((word + 1) * WORD_BITS);
                self.leaves.first_marked(first..end)
            });
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyBitmap")
            .field("size", &self.size())
            .field("granularity", &self.granularity())
            .field("dirty", &self.count())
            .field("recording", &self.is_recording())
            .finish()
    }
}

/// Bytes of memory for a bitmap of `chunks` of which no leaf is all clear or all marked, the summary included.
pub(super) fn memory_of(chunks: u64) -> u64 {
    let summary = chunks.div_ceil(LEAF_CHUNKS as u64) * size_of::<AtomicU64>() as u64;
    leaves::memory_of(chunks).saturating_add(summary)
}

/// The bit of item `index` in its word.
fn bit(index: usize) -> u64 {
    1 << (index % WORD_BITS)
}

/// The places of the bits of a word, lowest first.
fn bits_of(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = word.trailing_zeros() as usize;
        word &= word.checked_sub(1)?;
        Some(at)
    })
}
