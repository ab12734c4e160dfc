//! One file operation: what it owns, what the kernel is asked for it, what an answer means.
//!
//! Everything here is common to the engines, so that a short transfer or an interrupted call means
//! the same in each. Used by the loop's thread and, for an operation that was moved to one, by a
//! worker thread.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::Route;
use crate::aside::Aside;
use crate::buffer::{IoBuffer, Segment};

/// The most bytes Linux moves in one call (`MAX_RW_COUNT`); a longer transfer is continued.
const MAX_TRANSFER: usize = 0x7fff_f000;

/// Linux' `UIO_MAXIOV`: the most segments one call takes; a longer list is moved in parts.
pub(super) const MAX_SEGMENTS: usize = 1024;

/// Times in a row that the kernel may say "not now" (`EAGAIN`, `EINTR`) to one operation before
/// that becomes its result.
pub(super) const MAX_TRIES: u32 = 50;

/// What to do to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperationKind {
    /// Fill the buffer; ends early at the end of the file.
    Read,
    /// Write all of the buffer.
    Write,
    /// Make data and metadata durable.
    Fsync,
    /// Make data durable, and of the metadata what is needed to find it.
    Fdatasync,
    /// Allocate, punch or zero `len` bytes, by `mode` (`FALLOC_FL_*`).
    Fallocate { mode: i32, len: u64 },
    /// Tell a block device that `len` bytes are not needed any more (`BLKDISCARD`).
    Discard { len: u64 },
}

/// One operation with everything it needs, owned.
#[derive(Debug)]
pub(crate) struct Operation {
    kind: OperationKind,
    route: Route,
    file: Arc<Aside<File>>,
    /// In bytes from the file's start.
    offset: u64,
    buffer: IoBuffer,
    /// Bytes moved so far.
    done: usize,
    /// Times in a row that the kernel said "not now".
    tries: u32,
    /// What the kernel is told of a scattered buffer; on the heap, so that it stays in its place
    /// when the operation is moved.
    vectors: Vec<Segment>,
}

/// What to ask the kernel: plain values, without ownership of anything.
///
/// The addresses in it are good while the [`Operation`] that made it lives, and until the next
/// request is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `preadv`.
    Read {
        fd: RawFd,
        offset: u64,
        /// Not worth trying without waiting.
        waits: bool,
        memory: Memory,
    },
    /// `pwritev`.
    Write {
        fd: RawFd,
        offset: u64,
        /// Not worth trying without waiting.
        waits: bool,
        memory: Memory,
    },
    /// `fsync`.
    Fsync { fd: RawFd },
    /// `fdatasync`.
    Fdatasync { fd: RawFd },
    /// `fallocate`.
    Fallocate {
        fd: RawFd,
        mode: i32,
        offset: u64,
        len: u64,
    },
    /// `ioctl(BLKDISCARD)`.
    Discard { fd: RawFd, offset: u64, len: u64 },
    /// Tell when the descriptor is readable, once: no operation's, but a sleeping ring's.
    Poll { fd: RawFd },
}

/// The memory of a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// One piece of at most [`MAX_TRANSFER`] bytes.
    One { base: *mut u8, len: u32 },
    /// At most [`MAX_SEGMENTS`] pieces.
    Many {
        vectors: *const libc::iovec,
        count: u32,
    },
}

/// What the kernel's answer means for an operation.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It has ended with this: bytes moved, or the error.
    Finished(io::Result<usize>),
    /// The kernel must be asked again.
    Again(Next),
}

/// When to ask the kernel again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Something is left to do: at once.
    AtOnce,
    /// The kernel is short of something: a little later. The number counts such answers in a row,
    /// from 1.
    Later(u32),
}

impl Operation {
    /// An operation on the bytes of `buffer` (empty if none are moved) at `offset`. `vectors` is
    /// any list whose room may be used.
    pub(super) fn new(
        kind: OperationKind,
        route: Route,
        file: Arc<Aside<File>>,
        offset: u64,
        buffer: IoBuffer,
        vectors: Vec<Segment>,
    ) -> Self {
        Self {
            kind,
            route,
            file,
            offset,
            buffer,
            done: 0,
            tries: 0,
            vectors,
        }
    }

    /// Gives back the list that the operation was made with.
    pub(super) fn into_vectors(self) -> Vec<Segment> {
        self.vectors
    }

    /// What is to be asked of the kernel now: all that is left, or as much as one call takes.
    pub(super) fn request(&mut self) -> Request {
        let fd = self.file.as_raw_fd();
        let offset = self.offset;
        match self.kind {
            OperationKind::Read => Request::Read {
                fd,
                offset: offset + self.done as u64,
                waits: self.route.waits,
                memory: self.memory(),
            },
            OperationKind::Write => Request::Write {
                fd,
                offset: offset + self.done as u64,
                waits: self.route.waits,
                memory: self.memory(),
            },
            OperationKind::Fsync => Request::Fsync { fd },
            OperationKind::Fdatasync => Request::Fdatasync { fd },
            OperationKind::Fallocate { mode, len } => Request::Fallocate {
                fd,
                mode,
                offset,
                len,
            },
            OperationKind::Discard { len } => Request::Discard { fd, offset, len },
        }
    }

    fn memory(&mut self) -> Memory {
        let mut pieces = self.buffer.segments(self.done);
        let first = pieces.next().unwrap_or(Segment::EMPTY);
        if pieces.is_at_end() {
            let len = first.len().min(MAX_TRANSFER);
            return Memory::One {
                base: first.base(),
                len: u32::try_from(len).unwrap_or(u32::MAX),
            };
        }
        self.vectors.clear();
        self.vectors.push(first);
        self.vectors.extend(pieces.take(MAX_SEGMENTS - 1));
        Memory::Many {
            // A segment is an iovec (repr(transparent)).
            vectors: self.vectors.as_ptr().cast(),
            count: u32::try_from(self.vectors.len()).unwrap_or(u32::MAX),
        }
    }

    /// Takes note of the kernel's answer to the last [`request`](Self::request).
    pub(super) fn advance(&mut self, answer: io::Result<usize>) -> Verdict {
        let count = match answer {
            Ok(count) => count,
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) if self.tries < MAX_TRIES => {
                    self.tries += 1;
                    if error.kind() == io::ErrorKind::Interrupted {
                        return Verdict::Again(Next::AtOnce);
                    }
                    return Verdict::Again(Next::Later(self.tries));
                }
                _ => return Verdict::Finished(Err(error)),
            },
        };
        self.tries = 0;
        if !matches!(self.kind, OperationKind::Read | OperationKind::Write) {
            return Verdict::Finished(Ok(0));
        }
        self.done += count;
        if self.done >= self.buffer.len() {
            return Verdict::Finished(Ok(self.done));
        }
        match (count, self.kind) {
            (0, OperationKind::Write) => Verdict::Finished(Err(io::ErrorKind::WriteZero.into())),
            // The end of the file.
            (0, _) => {
                if self.route.pads {
                    let missing = self.buffer.len() - self.done;
                    self.buffer.fill(self.done, missing, 0);
                    self.done = self.buffer.len();
                }
                Verdict::Finished(Ok(self.done))
            }
            _ => Verdict::Again(Next::AtOnce),
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::super::EngineKind;
    use super::*;
    use crate::buffer::GuestRam;

    fn operation(kind: OperationKind, len: usize) -> Operation {
        let file = Arc::new(tempfile::tempfile().unwrap().into());
        Operation::new(
            kind,
            EngineKind::IoUring.into(),
            file,
            1000,
            IoBuffer::alloc(len),
            Vec::new(),
        )
    }

    fn error(errno: i32) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped() {
        for kind in [OperationKind::Read, OperationKind::Write] {
            let mut operation = operation(kind, 100);
            let whole = operation.request();
            assert!(matches!(operation.advance(Ok(30)), Verdict::Again(_)));
            let (
                Request::Read { offset, memory, .. } | Request::Write { offset, memory, .. },
                Request::Read { memory: before, .. } | Request::Write { memory: before, .. },
            ) = (operation.request(), whole)
            else {
                panic!("the kind of request changed");
            };
            assert_eq!(offset, 1030);
            let (Memory::One { base, len }, Memory::One { base: start, .. }) = (memory, before)
            else {
                panic!("one piece of memory became many");
            };
            assert_eq!((base as usize - start as usize, len), (30, 70));
            let end = operation.advance(Ok(70));
            assert!(matches!(end, Verdict::Finished(Ok(100))), "{end:?}");
        }
    }

    #[test]
    fn what_is_longer_than_one_call_moves_is_asked_for_in_whole_pages() {
        const LEN: usize = 5 << 30;
        const PAGE: usize = 4096;
        // Memory that nobody touches takes up none.
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), LEN)]).unwrap();
        let buffer = IoBuffer::from_guest(&Arc::new(ram), &[(GuestAddress(0), LEN)]).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap().into());
        let route = Route::from(EngineKind::IoUring);
        let mut write = Operation::new(OperationKind::Write, route, file, 0, buffer, Vec::new());
        let mut done = 0;
        loop {
            let Request::Write { offset, memory, .. } = write.request() else {
                panic!("the kind of request changed");
            };
            let Memory::One { len, .. } = memory else {
                panic!("one piece of memory became many");
            };
            let len = len as usize;
            assert_eq!(offset, done as u64);
            // Direct I/O takes nothing else.
            assert!(len > 0 && len.is_multiple_of(PAGE), "{len}");
            done += len;
            if let Verdict::Finished(result) = write.advance(Ok(len)) {
                return assert_eq!((result.unwrap(), done), (LEN, LEN));
            }
        }
    }

    #[test]
    fn nothing_moved_is_the_end_of_a_read_and_the_failure_of_a_write() {
        let mut read = operation(OperationKind::Read, 100);
        assert!(matches!(read.advance(Ok(60)), Verdict::Again(_)));
        assert!(matches!(read.advance(Ok(0)), Verdict::Finished(Ok(60))));
        let mut write = operation(OperationKind::Write, 100);
        assert!(matches!(write.advance(Ok(60)), Verdict::Again(_)));
        let Verdict::Finished(Err(error)) = write.advance(Ok(0)) else {
            panic!("a write that moves nothing would be repeated for ever");
        };
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn a_read_that_pads_finds_zeroes_beyond_the_end() {
        let file = Arc::new(tempfile::tempfile().unwrap().into());
        let buffer = IoBuffer::copied_from(&[7; 100]);
        let route = Route::from(EngineKind::IoUring).padded();
        let kind = OperationKind::Read;
        let mut read = Operation::new(kind, route, file, 0, buffer.clone(), Vec::new());
        assert!(matches!(read.advance(Ok(60)), Verdict::Again(_)));
        assert!(matches!(read.advance(Ok(0)), Verdict::Finished(Ok(100))));
        assert_eq!(buffer.to_vec(), [[7; 60].as_slice(), &[0; 40]].concat());
    }

    #[test]
    fn an_error_in_the_middle_is_the_result() {
        let mut write = operation(OperationKind::Write, 100);
        assert!(matches!(write.advance(Ok(60)), Verdict::Again(_)));
        let Verdict::Finished(Err(error)) = write.advance(error(libc::ENOSPC)) else {
            panic!("no space left is for the owner to know");
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn the_kernels_excuses_are_accepted_only_so_often() {
        for (errno, at_once) in [(libc::EINTR, true), (libc::EAGAIN, false)] {
            let mut read = operation(OperationKind::Read, 100);
            for tries in 1..=MAX_TRIES {
                match read.advance(error(errno)) {
                    Verdict::Again(Next::AtOnce) => assert!(at_once),
                    Verdict::Again(Next::Later(count)) => assert!(!at_once && count == tries),
                    Verdict::Finished(result) => panic!("gave up at {tries}: {result:?}"),
                }
            }
            let Verdict::Finished(Err(error)) = read.advance(error(errno)) else {
                panic!("asks for ever");
            };
            assert_eq!(error.raw_os_error(), Some(errno));
        }
    }

    #[test]
    fn progress_wins_new_patience() {
        let mut read = operation(OperationKind::Read, 100);
        for _ in 0..3 {
            for _ in 0..MAX_TRIES {
                assert!(matches!(
                    read.advance(error(libc::EAGAIN)),
                    Verdict::Again(_)
                ));
            }
            assert!(matches!(read.advance(Ok(10)), Verdict::Again(_)));
        }
    }

    #[test]
    fn calls_that_move_nothing_end_with_the_first_answer() {
        for kind in [
            OperationKind::Fsync,
            OperationKind::Fdatasync,
            OperationKind::Fallocate { mode: 0, len: 5 },
            OperationKind::Discard { len: 5 },
        ] {
            let mut operation = operation(kind, 0);
            assert!(matches!(operation.advance(Ok(0)), Verdict::Finished(Ok(0))));
        }
    }
}
