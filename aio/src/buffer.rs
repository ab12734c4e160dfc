//! Scattered memory that an I/O operation owns until the kernel is done with it.
//!
//! An [`IoBuffer`] is a list of memory segments plus whatever keeps them alive: an allocation of
//! its own or the guest's memory. It travels *by value* into an operation, so dropping the future
//! that waits for the operation frees nothing that the kernel may still write. Clones and slices
//! share the memory; nobody ever gets a Rust reference into it, because a guest or the kernel may
//! change it at any moment: bytes are copied in and out, and whoever must look twice copies once.

#![expect(
    unsafe_code,
    reason = "raw segments of shared memory, shaped for the kernel"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// The guest's memory as all of Sluice sees it.
pub type GuestRam = GuestMemoryMmap<()>;

/// Alignment of memory made by [`IoBuffer::alloc`], in bytes: enough for O_DIRECT anywhere.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// A buffer can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BufferError {
    /// The range is not (wholly) guest memory.
    #[error("guest range {address:#x}+{len:#x} is not memory")]
    NotMemory {
        /// Guest physical address of the range.
        address: u64,
        /// Its length in bytes.
        len: usize,
    },
}

/// Memory of one's own, zeroed and aligned.
#[derive(Debug)]
struct Heap {
    memory: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Heap` is an exclusively owned allocation; it is only ever accessed through raw copies.
unsafe impl Send for Heap {}
// SAFETY: as above; there are no references into it that concurrent copies could invalidate.
unsafe impl Sync for Heap {}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: allocated in `IoBuffer::alloc` with this very layout, and freed only here.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

#[derive(Clone, Debug)]
enum Keep {
    Empty,
    Heap(#[expect(dead_code, reason = "keeps the memory alive")] Arc<Heap>),
    Guest(#[expect(dead_code, reason = "keeps the memory alive")] Arc<GuestRam>),
}

/// One segment, laid out as the kernel's `iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Segment(libc::iovec);

// SAFETY: a segment is an address and a length; what it points to is kept alive by the buffer.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    fn new(base: *mut u8, len: usize) -> Self {
        Self(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        })
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iov_len
    }
}

/// See the [module](self). Cheap to clone; may be sent between threads.
#[derive(Clone, Debug)]
pub struct IoBuffer {
    segments: SmallVec<[Segment; 2]>,
    len: usize,
    keep: Keep,
}

impl IoBuffer {
    /// A buffer of no bytes, for operations that move none.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            segments: SmallVec::new(),
            len: 0,
            keep: Keep::Empty,
        }
    }

    /// Zeroed memory of `len` bytes in one segment, aligned to [`BUFFER_ALIGNMENT`].
    #[must_use]
    pub fn alloc(len: usize) -> Self {
        if len == 0 {
            return Self::empty();
        }
        let Ok(layout) = Layout::from_size_align(len, BUFFER_ALIGNMENT) else {
            // Only a length beyond the address space gets here.
            handle_alloc_error(Layout::new::<u8>())
        };
        // SAFETY: the layout's size is not zero.
        let Some(memory) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        let segments = SmallVec::from_slice(&[Segment::new(memory.as_ptr(), len)]);
        Self {
            segments,
            len,
            keep: Keep::Heap(Arc::new(Heap { memory, layout })),
        }
    }

    /// A copy of `bytes` in memory of its own.
    #[must_use]
    pub fn copied_from(bytes: &[u8]) -> Self {
        let buffer = Self::alloc(bytes.len());
        buffer.copy_from_slice(0, bytes);
        buffer
    }

    /// The given ranges of guest memory, in order, without copying.
    ///
    /// # Errors
    /// A range that is not wholly guest memory is refused; nothing is kept.
    pub fn from_guest(
        memory: &Arc<GuestRam>,
        ranges: &[(GuestAddress, usize)],
    ) -> Result<Self, BufferError> {
        let mut buffer = Self::empty();
        for &(address, len) in ranges {
            let refuse = || BufferError::NotMemory {
                address: address.0,
                len,
            };
            for slice in GuestMemoryBackend::get_slices(&**memory, address, len) {
                let slice = slice.map_err(|_| refuse())?;
                buffer.push(Segment::new(slice.ptr_guard_mut().as_ptr(), slice.len()));
            }
        }
        buffer.keep = Keep::Guest(Arc::clone(memory));
        Ok(buffer)
    }

    /// Adds a segment, joining it to the last one where they touch.
    fn push(&mut self, segment: Segment) {
        if segment.len() == 0 {
            return;
        }
        self.len += segment.len();
        match self.segments.last_mut() {
            Some(last) if last.base().wrapping_add(last.len()) == segment.base() => {
                *last = Segment::new(last.base(), last.len() + segment.len());
            }
            _ => self.segments.push(segment),
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The part `[offset, offset + len)`, sharing the memory; cut short at the buffer's end.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let mut part = Self {
            segments: SmallVec::new(),
            len: 0,
            keep: self.keep.clone(),
        };
        self.for_range(offset, len, |segment, _| part.push(segment));
        part
    }

    /// Whether every segment's address and length is a multiple of `alignment` (a power of two).
    #[must_use]
    pub fn is_aligned(&self, alignment: usize) -> bool {
        self.segments
            .iter()
            .all(|segment| (segment.base() as usize | segment.len()) & (alignment - 1) == 0)
    }

    /// Copies `bytes` to `offset`; what does not fit is left out. Returns the bytes copied.
    pub fn copy_from_slice(&self, offset: usize, bytes: &[u8]) -> usize {
        self.for_range(offset, bytes.len(), |segment, at| {
            volatile(&segment).copy_from(&bytes[at..at + segment.len()]);
        })
    }

    /// Copies from `offset` to `bytes`; returns the bytes copied.
    pub fn copy_to_slice(&self, offset: usize, bytes: &mut [u8]) -> usize {
        let len = bytes.len();
        self.for_range(offset, len, |segment, at| {
            volatile(&segment).copy_to(&mut bytes[at..at + segment.len()]);
        })
    }

    /// Sets `len` bytes from `offset` to `value`.
    pub fn fill(&self, offset: usize, len: usize, value: u8) {
        self.for_range(offset, len, |segment, _| {
            // SAFETY: the segment is `len` bytes of writable memory kept alive by `self.keep`, and
            // nobody holds references into it.
            unsafe { std::ptr::write_bytes(segment.base(), value, segment.len()) };
        });
    }

    /// Whether all bytes were zero when looked at.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        const CHUNK: usize = 4096;
        let mut chunk = [0u8; CHUNK];
        (0..self.len).step_by(CHUNK).all(|offset| {
            let copied = self.copy_to_slice(offset, &mut chunk);
            chunk[..copied].iter().all(|byte| *byte == 0)
        })
    }

    /// A copy of the bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to_slice(0, &mut bytes);
        bytes
    }

    /// Calls `visit(segment, offset from the range's start)` for the pieces of a range.
    fn for_range(&self, offset: usize, len: usize, mut visit: impl FnMut(Segment, usize)) -> usize {
        let mut skip = offset;
        let mut done = 0;
        for segment in &self.segments {
            if skip >= segment.len() {
                skip -= segment.len();
                continue;
            }
            let take = (segment.len() - skip).min(len - done);
            if take == 0 {
                break;
            }
            visit(Segment::new(segment.base().wrapping_add(skip), take), done);
            done += take;
            skip = 0;
        }
        done
    }
}

/// A segment as volatile memory, for copies that a guest may race with.
fn volatile(segment: &Segment) -> VolatileSlice<'_, impl BitmapSlice> {
    // SAFETY: the segment is `len` bytes of readable and writable memory; the buffer that the
    // caller holds keeps it alive for the borrow.
    unsafe { VolatileSlice::new(segment.base(), segment.len()) }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn ram() -> Arc<GuestRam> {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        Arc::new(GuestRam::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn alloc_is_zeroed_and_aligned() {
        let buffer = IoBuffer::alloc(5000);
        assert_eq!(buffer.len(), 5000);
        assert!(buffer.is_zero());
        assert!(buffer.slice(0, 4096).is_aligned(BUFFER_ALIGNMENT));
        assert!(!buffer.is_aligned(BUFFER_ALIGNMENT));
    }

    #[test]
    fn slices_share_the_memory_across_segments() {
        let ram = ram();
        let ranges = [(GuestAddress(0xff0), 0x20), (GuestAddress(0x10), 0x10)];
        let buffer = IoBuffer::from_guest(&ram, &ranges).unwrap();
        assert_eq!(buffer.len(), 0x30);
        let middle = buffer.slice(8, 0x20);
        assert_eq!(middle.copy_from_slice(0, &[7; 64]), 0x20);
        let mut back = [0; 0x20];
        ram.read_slice(&mut back[..0x18], GuestAddress(0xff8))
            .unwrap();
        ram.read_slice(&mut back[0x18..], GuestAddress(0x10))
            .unwrap();
        assert_eq!(back, [7; 0x20]);
        assert_eq!(buffer.to_vec()[7], 0);
        assert_eq!(buffer.to_vec()[0x28], 0);
    }

    #[test]
    fn memory_outlives_its_owner() {
        let ram = ram();
        let buffer = IoBuffer::from_guest(&ram, &[(GuestAddress(0), 16)]).unwrap();
        drop(ram);
        buffer.fill(0, 16, 0xab);
        assert_eq!(buffer.to_vec(), [0xab; 16]);
    }

    #[test]
    fn a_range_outside_memory_is_refused() {
        let error = IoBuffer::from_guest(&ram(), &[(GuestAddress(0x1ff0), 0x20)]).unwrap_err();
        assert!(error.to_string().contains("0x1ff0"), "{error}");
    }
}
