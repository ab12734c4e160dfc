//! Memory that `O_DIRECT` accepts.

use crate::SECTOR_SIZE;

/// Alignment in bytes that satisfies every disk (a page).
const ALIGNMENT: usize = 4096;

/// A zeroed buffer whose start is aligned to a page.
#[derive(Debug)]
pub struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// A buffer of `sectors` zeroed sectors.
    #[must_use]
    pub fn new(sectors: usize) -> Self {
        let len = sectors * SECTOR_SIZE;
        let memory = vec![0; len + ALIGNMENT];
        // The vector is never resized, so its memory, and with it this offset, stays.
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, len }
    }

    /// The first `sectors` sectors, at most the whole buffer.
    #[must_use]
    pub fn sectors(&self, sectors: usize) -> &[[u8; SECTOR_SIZE]] {
        self.bytes(sectors).as_chunks().0
    }

    /// As [`Self::sectors`], to write to.
    #[must_use]
    pub fn sectors_mut(&mut self, sectors: usize) -> &mut [[u8; SECTOR_SIZE]] {
        self.bytes_mut(sectors).as_chunks_mut().0
    }

    /// As [`Self::sectors`], as bytes.
    #[must_use]
    pub fn bytes(&self, sectors: usize) -> &[u8] {
        &self.memory[self.start..self.start + (sectors * SECTOR_SIZE).min(self.len)]
    }

    /// As [`Self::bytes`], to write to.
    #[must_use]
    pub fn bytes_mut(&mut self, sectors: usize) -> &mut [u8] {
        let end = self.start + (sectors * SECTOR_SIZE).min(self.len);
        &mut self.memory[self.start..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_and_of_the_asked_size() {
        let mut buffer = AlignedBuffer::new(3);
        assert_eq!(buffer.bytes(3).as_ptr().align_offset(ALIGNMENT), 0);
        assert_eq!(buffer.sectors(2).len(), 2);
        assert_eq!(buffer.sectors_mut(100).len(), 3);
    }
}
