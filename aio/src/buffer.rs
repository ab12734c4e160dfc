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

use std::alloc::{Layout, handle_alloc_error};
use std::cell::RefCell;
use std::sync::Arc;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use crate::pooled::Memory;

/// The guest's memory as all of Sluice sees it.
pub type GuestRam = GuestMemoryMmap<()>;

/// Alignment of memory made by [`IoBuffer::alloc`], in bytes: enough for O_DIRECT anywhere.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// Bytes that are copied at once where a whole buffer is filled or looked at.
const CHUNK: usize = 4096;

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

/// Memory of one's own, aligned; all of it has been written to.
#[derive(Debug)]
struct Heap(#[expect(dead_code, reason = "keeps the memory")] Memory);

// SAFETY: an allocation that nobody else owns; any thread may use and free it.
unsafe impl Send for Heap {}
// SAFETY: shared memory is used as a guest's is, by the rule under which vm-memory's regions are
// `Sync`. All access is by address: copies through a `VolatileSlice`, and the kernel's. No reference
// into it exists, so no code is compiled on the assumption that the bytes hold still, and bytes of
// any value are valid. Who fills a buffer and who uses it come after each other, because it is passed
// on by an operation's start and end or through a queue; callers who copy into clones of one buffer
// in two threads at once get either's bytes, as from a guest that writes to a request's memory.
unsafe impl Sync for Heap {}

#[derive(Clone, Debug)]
enum Keep {
    Empty,
    Heap(Arc<Heap>),
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
    /// A segment of no bytes.
    pub(crate) const EMPTY: Self = Self(libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    });

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

/// Segments that fit in the buffer itself.
const FEW: usize = 2;

/// So many segments; copied as a whole with every buffer.
#[derive(Clone, Copy, Debug)]
struct Few {
    segments: [Segment; FEW],
    count: usize,
}

impl Few {
    const NONE: Self = Self {
        segments: [Segment::EMPTY; FEW],
        count: 0,
    };

    fn as_slice(&self) -> &[Segment] {
        &self.segments[..self.count]
    }

    fn last_mut(&mut self) -> Option<&mut Segment> {
        self.segments[..self.count].last_mut()
    }

    /// Adds a segment; false if there is no room.
    fn push(&mut self, segment: Segment) -> bool {
        let Some(place) = self.segments.get_mut(self.count) else {
            return false;
        };
        *place = segment;
        self.count += 1;
        true
    }
}

/// See the [module](self). Cheap to clone; may be sent between threads.
///
/// Cloning and slicing allocate nothing; a scattered buffer's list of segments comes from a list of
/// free ones that each thread keeps, and goes back there.
#[derive(Clone, Debug)]
pub struct IoBuffer {
    list: List,
    len: usize,
    keep: Keep,
}

/// Where a buffer's segments are written down.
#[derive(Clone, Debug)]
enum List {
    /// In the buffer.
    Few(Few),
    /// In memory shared with clones and slices; the buffer begins `skip` bytes into it.
    Many { shared: SharedList, skip: usize },
}

impl List {
    fn new() -> Self {
        Self::Few(Few::NONE)
    }

    fn parts(&self) -> (&[Segment], usize) {
        match self {
            Self::Few(few) => (few.as_slice(), 0),
            Self::Many { shared, skip } => (shared.as_slice(), *skip),
        }
    }
}

impl IoBuffer {
    /// A buffer of no bytes, for operations that move none.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            list: List::new(),
            len: 0,
            keep: Keep::Empty,
        }
    }

    /// Zeroed memory of `len` bytes in one segment, aligned to [`BUFFER_ALIGNMENT`].
    #[must_use]
    pub fn alloc(len: usize) -> Self {
        Self::filled(len, |buffer| {
            for segment in buffer.segments(0) {
                // SAFETY: the memory was just taken, for so many bytes, and nobody else knows of it.
                unsafe { segment.base().write_bytes(0, segment.len()) };
            }
        })
    }

    /// Memory of `len` bytes in one segment, aligned to [`BUFFER_ALIGNMENT`], all of which `fill` writes to: there may
    /// be anything in it, even what another guest has written.
    fn filled(len: usize, fill: impl FnOnce(&Self)) -> Self {
        let mut buffer = Self::empty();
        if len == 0 {
            return buffer;
        }
        let Ok(layout) = Layout::from_size_align(len, BUFFER_ALIGNMENT) else {
            // Only a length beyond the address space gets here.
            handle_alloc_error(Layout::new::<u8>())
        };
        let memory = Memory::take(layout);
        buffer.push(Segment::new(memory.as_ptr(), len));
        buffer.keep = Keep::Heap(Arc::new(Heap(memory)));
        fill(&buffer);
        buffer
    }

    /// A copy of `bytes` in memory of its own.
    #[must_use]
    pub fn copied_from(bytes: &[u8]) -> Self {
        Self::filled(bytes.len(), |buffer| {
            buffer.copy_from_slice(0, bytes);
        })
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

    /// Adds a segment to a buffer that nobody shares yet, joining it to the last one where they
    /// touch.
    fn push(&mut self, segment: Segment) {
        if segment.len() == 0 {
            return;
        }
        self.len += segment.len();
        let last = match &mut self.list {
            List::Few(few) => few.last_mut(),
            List::Many { shared, .. } => shared.own().and_then(|list| list.last_mut()),
        };
        if let Some(last) = last
            && last.base().wrapping_add(last.len()) == segment.base()
        {
            *last = Segment::new(last.base(), last.len() + segment.len());
            return;
        }
        match &mut self.list {
            List::Few(few) => {
                if few.push(segment) {
                    return;
                }
                let mut shared = SharedList::take();
                if let Some(list) = shared.own() {
                    list.extend_from_slice(few.as_slice());
                    list.push(segment);
                }
                self.list = List::Many { shared, skip: 0 };
            }
            List::Many { shared, .. } => {
                if let Some(list) = shared.own() {
                    list.push(segment);
                }
            }
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

    /// Whether the memory is in more than one piece.
    pub(crate) fn is_scattered(&self) -> bool {
        self.list.parts().0.len() > 1
    }

    /// The memory of the bytes from `offset` on, in order.
    pub(crate) fn segments(&self, offset: usize) -> Pieces<'_> {
        self.pieces(offset, self.len)
    }

    fn pieces(&self, offset: usize, len: usize) -> Pieces<'_> {
        let (list, skip) = self.list.parts();
        let offset = offset.min(self.len);
        Pieces {
            list,
            skip: skip + offset,
            left: len.min(self.len - offset),
        }
    }

    /// The part `[offset, offset + len)`, sharing the memory; cut short at the buffer's end.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let pieces = self.pieces(offset, len);
        let len = pieces.left;
        let mut few = Few::NONE;
        let mut list = None;
        for piece in pieces {
            if few.push(piece) {
                continue;
            }
            if let List::Many { shared, skip } = &self.list {
                list = Some(List::Many {
                    shared: shared.clone(),
                    skip: skip + offset,
                });
                break;
            }
        }
        Self {
            list: list.unwrap_or(List::Few(few)),
            len,
            keep: self.keep.clone(),
        }
    }

    /// Whether every segment's address and length is a multiple of `alignment` (a power of two).
    #[must_use]
    pub fn is_aligned(&self, alignment: usize) -> bool {
        self.is_aligned_to(alignment, alignment)
    }

    /// Whether every segment's address is a multiple of `address`, and its length one of `length`
    /// (powers of two).
    #[must_use]
    pub fn is_aligned_to(&self, address: usize, length: usize) -> bool {
        self.segments(0).all(|segment| {
            let misplaced = segment.base().addr() & (address - 1);
            let uneven = segment.len() & (length - 1);
            misplaced | uneven == 0
        })
    }

    /// Whether this is memory of its own that nothing else uses any more: no clone, no slice, no operation. It
    /// may be used for something else then.
    #[must_use]
    pub fn is_unshared(&mut self) -> bool {
        match &mut self.keep {
            Keep::Heap(heap) => Arc::get_mut(heap).is_some(),
            Keep::Empty | Keep::Guest(_) => false,
        }
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
        let chunk = [value; CHUNK];
        self.for_range(offset, len, |segment, _| {
            for at in (0..segment.len()).step_by(CHUNK) {
                let len = CHUNK.min(segment.len() - at);
                let piece = Segment::new(segment.base().wrapping_add(at), len);
                volatile(&piece).copy_from(&chunk[..len]);
            }
        });
    }

    /// Whether all bytes were zero when looked at.
    #[must_use]
    pub fn is_zero(&self) -> bool {
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

    /// A buffer of its own with the same bytes, in one piece: they were looked at once.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self::filled(self.len, |copy| {
            self.for_range(0, self.len, |segment, at| {
                copy.for_range(at, segment.len(), |to, _| {
                    volatile(&segment).copy_to_volatile_slice(volatile(&to));
                });
            });
        })
    }

    /// Calls `visit(segment, offset from the range's start)` for the pieces of a range; returns the
    /// bytes visited.
    fn for_range(&self, offset: usize, len: usize, mut visit: impl FnMut(Segment, usize)) -> usize {
        let mut done = 0;
        for piece in self.pieces(offset, len) {
            visit(piece, done);
            done += piece.len();
        }
        done
    }
}

/// The memory of a range, piece by piece.
#[derive(Clone, Debug)]
pub(crate) struct Pieces<'a> {
    list: &'a [Segment],
    /// Bytes of `list` before the range.
    skip: usize,
    /// Bytes of the range still to come.
    left: usize,
}

impl Pieces<'_> {
    /// Whether no piece is left.
    pub(crate) fn is_at_end(&self) -> bool {
        self.left == 0
    }
}

impl Iterator for Pieces<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        while self.left > 0 {
            let (first, rest) = self.list.split_first()?;
            self.list = rest;
            if self.skip >= first.len() {
                self.skip -= first.len();
                continue;
            }
            let len = (first.len() - self.skip).min(self.left);
            let piece = Segment::new(first.base().wrapping_add(self.skip), len);
            self.skip = 0;
            self.left -= len;
            return Some(piece);
        }
        None
    }
}

/// A list of segments that clones share; the last of them gives its memory back to the thread.
#[derive(Clone, Debug)]
struct SharedList(Arc<Vec<Segment>>);

/// Lists that one thread keeps for its next scattered buffers.
const SPARE_LISTS: usize = 256;
/// Segments that a list which is kept may have room for; a rare longer one is freed.
const SPARE_ROOM: usize = 1024;

thread_local! {
    static SPARE: RefCell<Vec<Arc<Vec<Segment>>>> = const { RefCell::new(Vec::new()) };
    /// What stands in for the list of a [`SharedList`] that is dropped.
    static NONE: Arc<Vec<Segment>> = Arc::default();
}

impl SharedList {
    /// An empty list of one's own.
    fn take() -> Self {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop());
        Self(spare.ok().flatten().unwrap_or_default())
    }

    fn as_slice(&self) -> &[Segment] {
        &self.0
    }

    /// The list to change; none if it is shared.
    fn own(&mut self) -> Option<&mut Vec<Segment>> {
        Arc::get_mut(&mut self.0)
    }
}

impl Drop for SharedList {
    fn drop(&mut self) {
        let Some(list) = self.own() else { return };
        if list.capacity() > SPARE_ROOM {
            return;
        }
        list.clear();
        // A thread that ends has no lists any more, and needs none.
        let Ok(none) = NONE.try_with(Arc::clone) else {
            return;
        };
        let list = std::mem::replace(&mut self.0, none);
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_LISTS {
                spare.push(list);
            }
        });
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
    fn memory_that_was_used_before_is_given_out_as_new() {
        for len in [1, 5000, 64 << 10, 70 << 10] {
            let used = IoBuffer::alloc(len);
            used.fill(0, len, 7);
            let place = used.segments(0).next().unwrap().base();
            drop(used);
            let next = IoBuffer::alloc(len);
            if len <= 64 << 10 {
                assert_eq!(next.segments(0).next().unwrap().base(), place);
            }
            assert!(next.is_zero());
            let bytes = vec![9; len];
            drop(next);
            assert_eq!(IoBuffer::copied_from(&bytes).duplicate().to_vec(), bytes);
        }
    }

    #[test]
    fn only_memory_that_nothing_else_uses_is_unshared() {
        let mut buffer = IoBuffer::alloc(100);
        assert!(buffer.is_unshared());
        let others: [fn(&IoBuffer) -> IoBuffer; 2] = [IoBuffer::clone, |own| own.slice(10, 10)];
        for share in others {
            let other = share(&buffer);
            assert!(!buffer.is_unshared(), "an operation may have it");
            drop(other);
            assert!(buffer.is_unshared());
        }
        let ram = ram();
        let mut guests = IoBuffer::from_guest(&ram, &[(GuestAddress(0), 100)]).unwrap();
        assert!(!guests.is_unshared(), "the guest has it");
        assert!(!IoBuffer::empty().is_unshared());
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
    fn slices_of_many_segments_are_the_bytes_they_name() {
        const SEGMENTS: usize = 7;
        let ram = ram();
        // Every second run of 16 bytes: no two of them touch.
        let ranges: Vec<_> = (0..SEGMENTS)
            .map(|at| (GuestAddress(at as u64 * 32), 16))
            .collect();
        let whole = IoBuffer::from_guest(&ram, &ranges).unwrap();
        assert_eq!(whole.segments(0).count(), SEGMENTS);
        let bytes: Vec<u8> = (0..112).collect();
        whole.copy_from_slice(0, &bytes);
        for start in 0..=whole.len() {
            for len in 0..=whole.len() {
                let part = whole.slice(start, len);
                let expected = &bytes[start..(start + len).min(bytes.len())];
                assert_eq!(part.to_vec(), expected);
                assert_eq!(part.len(), expected.len());
                // A slice of a slice counts from the slice's start.
                assert_eq!(part.slice(3, 40).to_vec(), {
                    let rest = expected.get(3..).unwrap_or_default();
                    &rest[..rest.len().min(40)]
                });
                let from_two: usize = part.segments(2).map(|segment| segment.len()).sum();
                assert_eq!(from_two, expected.len().saturating_sub(2));
            }
        }
    }

    #[test]
    fn a_list_that_comes_back_is_empty_and_one_that_is_shared_stays() {
        let ram = ram();
        let ranges = [0u64, 32, 64, 96].map(|at| (GuestAddress(at), 16));
        let first = IoBuffer::from_guest(&ram, &ranges).unwrap();
        first.fill(0, 64, 1);
        let clone = first.clone();
        drop(first);
        // The list is still the clone's: a new buffer gets another one.
        let second = IoBuffer::from_guest(&ram, &ranges[..3]).unwrap();
        assert_eq!(clone.to_vec(), [1; 64]);
        assert_eq!(second.segments(0).count(), 3);
        drop((clone, second));
        let third = IoBuffer::from_guest(&ram, &ranges[1..]).unwrap();
        assert_eq!(third.segments(0).count(), 3);
        assert_eq!(third.len(), 48);
    }

    #[test]
    fn a_fill_reaches_every_byte_of_its_range_and_no_other() {
        let ram = ram();
        let ranges = [(GuestAddress(1), 0x1800), (GuestAddress(0x1900), 0x600)];
        let scattered = IoBuffer::from_guest(&ram, &ranges).unwrap();
        for buffer in [IoBuffer::alloc(3 * CHUNK), scattered] {
            buffer.fill(5, CHUNK + 3000, 0xab);
            buffer.fill(buffer.len() - 7, CHUNK, 0xcd);
            buffer.fill(buffer.len() + 1, 1, 0xef);
            let mut expected = vec![0; buffer.len()];
            expected[5..5 + CHUNK + 3000].fill(0xab);
            let end = buffer.len() - 7;
            expected[end..].fill(0xcd);
            assert_eq!(buffer.to_vec(), expected);
        }
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
