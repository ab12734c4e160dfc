//! The `threads` engine: file operations as plain system calls in worker threads.
//!
//! An operation moves to the worker as a whole and comes back with its result, so neither side can
//! touch it while the other does.

#![expect(unsafe_code, reason = "positional system calls on raw segments")]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use super::operation::{Memory, Next, Operation, OperationKind, Request, Verdict};
use super::table::{Key, Table};
use super::workers::{Finished, WorkerPool};
use super::{Engine, cancelled};

/// `BLKDISCARD` of linux/fs.h: `_IO(0x12, 119)`, with a pair of 64-bit start and length in bytes.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// See the [module](self). Used only by the thread of its loop.
pub(super) struct Threads {
    pool: Rc<WorkerPool>,
    /// What came back, while it is worked off; kept for its room.
    results: Vec<Finished>,
}

impl Threads {
    pub(super) fn new(pool: Rc<WorkerPool>) -> Self {
        Self {
            pool,
            results: Vec::new(),
        }
    }
}

impl Engine for Threads {
    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        // Workers ring the loop's own bell.
        None
    }

    fn serves(&self, _kind: OperationKind) -> bool {
        true
    }

    fn start(&mut self, key: Key, table: &mut Table) {
        let Some(operation) = table.lend(key) else {
            return;
        };
        if let Some(operation) = self.pool.perform(key, operation) {
            table.give_back(key, operation);
            let error = io::Error::other("no worker thread could be started");
            table.finish(key, Err(error));
        }
    }

    fn submit(&mut self, _table: &mut Table) -> Vec<Key> {
        Vec::new()
    }

    fn is_retired(&self) -> bool {
        false
    }

    fn has_work(&self) -> bool {
        false
    }

    fn sleep(&mut self, _events: BorrowedFd<'_>, _table: &mut Table) -> Option<bool> {
        None
    }

    fn is_busy(&self) -> bool {
        false
    }

    fn has_completed(&mut self) -> bool {
        self.pool.has_results()
    }

    fn reap(&mut self, table: &mut Table) {
        self.pool.take_results(&mut self.results);
        for finished in self.results.drain(..) {
            table.give_back(finished.key, finished.operation);
            table.finish(finished.key, finished.result);
        }
    }

    fn finish(&mut self, table: &mut Table, _patience: Duration) {
        // The pool has ended before (`Engines::finish`): a worker that has not given an operation
        // back hangs, and owns what it works on.
        self.reap(table);
        table.forget_lent();
    }
}

/// Does an operation with plain system calls, in the calling thread.
pub(super) fn perform(operation: &mut Operation) -> io::Result<usize> {
    loop {
        let answer = ask(&operation.request());
        // Asking later makes no sense here: a plain call waits for what it needs, and `EAGAIN`
        // means that the owner of the file told it not to.
        if let Err(error) = &answer
            && error.kind() == io::ErrorKind::WouldBlock
        {
            return answer;
        }
        match operation.advance(answer) {
            Verdict::Finished(result) => return result,
            Verdict::Again(Next::AtOnce) => {}
            Verdict::Again(Next::Later(_)) => return Err(cancelled()),
        }
    }
}

/// One system call.
fn ask(request: &Request) -> io::Result<usize> {
    let result = match *request {
        Request::Read {
            fd, offset, memory, ..
        } => transfer(fd, offset, memory, false)?,
        Request::Write {
            fd, offset, memory, ..
        } => transfer(fd, offset, memory, true)?,
        // SAFETY: the call touches no memory of ours.
        Request::Fsync { fd } => unsafe { libc::fsync(fd) as isize },
        // SAFETY: as above.
        Request::Fdatasync { fd } => unsafe { libc::fdatasync(fd) as isize },
        Request::Fallocate {
            fd,
            mode,
            offset,
            len,
        } => {
            let (offset, len) = (file_offset(offset)?, file_offset(len)?);
            // SAFETY: as above.
            unsafe { libc::fallocate(fd, mode, offset, len) as isize }
        }
        Request::Discard { fd, offset, len } => {
            let range = [offset, len];
            // SAFETY: the call reads two 64-bit numbers, which `range` are.
            unsafe { libc::ioctl(fd, BLKDISCARD, range.as_ptr()) as isize }
        }
        // No operation asks for it.
        Request::Poll { .. } => 0,
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn transfer(fd: RawFd, offset: u64, memory: Memory, write: bool) -> io::Result<isize> {
    let offset = file_offset(offset)?;
    let one;
    let (vectors, count) = match memory {
        Memory::One { base, len } => {
            one = libc::iovec {
                iov_base: base.cast(),
                iov_len: len as usize,
            };
            (&raw const one, 1)
        }
        Memory::Many { vectors, count } => (vectors, i32::try_from(count).unwrap_or(i32::MAX)),
    };
    // SAFETY: the vectors are the request's, whose operation the caller has: it keeps them and the
    // memory they name alive during the call.
    Ok(unsafe {
        if write {
            libc::pwritev(fd, vectors, count, offset)
        } else {
            libc::preadv(fd, vectors, count, offset)
        }
    })
}

fn file_offset(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
