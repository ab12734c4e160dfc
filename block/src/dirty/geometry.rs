//! The arithmetic of a bitmap: bytes to chunks, and which way a range is rounded.
//!
//! Pure values; used by [`DirtyBitmap`](super::DirtyBitmap) only, from any thread.

use std::iter;
use std::ops::Range;

use thiserror::Error;

/// Why a bitmap can't be made.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum BitmapError {
    /// The granularity is outside 512 bytes to 64 MiB. The words are those of QEMU's mirror.
    #[error("Parameter 'granularity' expects a value in range [512B, 64MB]")]
    GranularityRange,
    /// The granularity is not a power of two.
    #[error("Parameter 'granularity' expects a power of 2")]
    GranularityPower,
    /// The granularity is none that a named bitmap can have.
    #[error("Granularity must be power of 2 and at least 512")]
    NamedGranularity,
    /// There is no memory for a bitmap of so many chunks.
    #[error("No memory for a dirty bitmap of {chunks} chunks")]
    OutOfMemory {
        /// Chunks that were asked for.
        chunks: u64,
    },
}

/// How many bytes of disk one bit stands for: a power of two from 512 bytes to 64 MiB, or to 2 GiB in a
/// bitmap with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granularity {
    shift: u32,
}

impl Granularity {
    /// The smallest granularity in bytes: a sector.
    pub const MIN: u64 = 512;
    /// The largest granularity in bytes.
    pub const MAX: u64 = 64 << 20;
    /// The largest granularity of a bitmap with a name.
    pub(crate) const MAX_NAMED: u64 = 2 << 30;

    /// A granularity of `bytes`.
    ///
    /// # Errors
    /// [`BitmapError::GranularityRange`] or [`BitmapError::GranularityPower`], in that order.
    pub fn new(bytes: u64) -> Result<Self, BitmapError> {
        if !(Self::MIN..=Self::MAX).contains(&bytes) {
            return Err(BitmapError::GranularityRange);
        }
        if !bytes.is_power_of_two() {
            return Err(BitmapError::GranularityPower);
        }
        Ok(Self {
            shift: bytes.trailing_zeros(),
        })
    }

    /// That of a bitmap with a name: a power of two from 512 bytes to 2 GiB.
    ///
    /// # Errors
    /// [`BitmapError::NamedGranularity`].
    pub fn of_named(bytes: u64) -> Result<Self, BitmapError> {
        if !(Self::MIN..=Self::MAX_NAMED).contains(&bytes) || !bytes.is_power_of_two() {
            return Err(BitmapError::NamedGranularity);
        }
        Ok(Self {
            shift: bytes.trailing_zeros(),
        })
    }

    /// The smallest with which a disk of `size` bytes has no more than `chunks` chunks, and at least `least` bytes. It
    /// may be larger than what can be asked for.
    pub(crate) fn for_chunks(size: u64, chunks: u64, least: u64) -> Self {
        let bytes = size.div_ceil(chunks).max(least).max(Self::MIN);
        let shift = u64::BITS - (bytes - 1).leading_zeros();
        Self { shift }
    }

    /// Bytes that one bit stands for.
    #[must_use]
    pub fn bytes(self) -> u64 {
        1 << self.shift
    }
}

/// The most chunks of one bitmap: their leaves take 192 MiB even if all are clear.
const MAX_CHUNKS: u64 = 1 << 34;

/// `count` items of a bitmap of `chunks`.
///
/// # Errors
/// [`BitmapError::OutOfMemory`].
pub(super) fn reserved<T>(
    count: usize,
    chunks: usize,
    item: impl FnMut() -> T,
) -> Result<Box<[T]>, BitmapError> {
    let mut items = Vec::new();
    items
        .try_reserve_exact(count)
        .map_err(|_| BitmapError::OutOfMemory {
            chunks: chunks as u64,
        })?;
    items.extend(iter::repeat_with(item).take(count));
    Ok(items.into_boxed_slice())
}

/// A disk of `size` bytes cut into chunks; the last one may be shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) size: u64,
    pub(super) granularity: Granularity,
    pub(super) chunks: usize,
}

impl Geometry {
    /// # Errors
    /// [`BitmapError::OutOfMemory`] when the chunks can't even be numbered.
    pub(super) fn new(size: u64, granularity: Granularity) -> Result<Self, BitmapError> {
        let chunks = size.div_ceil(granularity.bytes());
        let granted = usize::try_from(chunks)
            .ok()
            .filter(|_| chunks <= MAX_CHUNKS);
        let chunks = granted.ok_or(BitmapError::OutOfMemory { chunks })?;
        Ok(Self {
            size,
            granularity,
            chunks,
        })
    }

    /// Every chunk that `[offset, offset + len)` touches, the part beyond the disk's end left out.
    pub(super) fn outward(&self, offset: u64, len: u64) -> Range<usize> {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return 0..0;
        }
        self.chunk_of(offset)..self.chunk_of(end - 1) + 1
    }

    /// Every chunk that `[offset, offset + len)` covers entirely; a short last chunk counts as
    /// covered when the range reaches the disk's end.
    pub(super) fn inward(&self, offset: u64, len: u64) -> Range<usize> {
        let end = offset.saturating_add(len);
        if offset >= self.size {
            return 0..0;
        }
        let first = self.clamp(offset.div_ceil(self.granularity.bytes()));
        let last = if end >= self.size {
            self.chunks
        } else {
            self.chunk_of(end)
        };
        if first < last { first..last } else { 0..0 }
    }

    /// The chunk that holds the byte `offset`, or the number of chunks when there is none.
    pub(super) fn chunk_of(&self, offset: u64) -> usize {
        self.clamp(offset >> self.granularity.shift)
    }

    /// First byte of `chunk`, at most the disk's size.
    pub(super) fn offset_of(&self, chunk: usize) -> u64 {
        (chunk as u64)
            .saturating_mul(self.granularity.bytes())
            .min(self.size)
    }

    /// Bytes by which the last chunk is shorter than the others; 0 for an empty disk.
    pub(super) fn missing_tail(&self) -> u64 {
        (self.chunks as u64 * self.granularity.bytes()).saturating_sub(self.size)
    }

    fn clamp(&self, chunk: u64) -> usize {
        usize::try_from(chunk).map_or(self.chunks, |chunk| chunk.min(self.chunks))
    }
}
