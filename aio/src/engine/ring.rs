//! The io_uring engine of one loop.
//!
//! # Why the memory of an operation in flight is safe
//! The kernel reads and writes memory behind the compiler's back from submission to completion.
//! Every operation is *moved* into a slot of the ring's table before its submission entry is
//! pushed, and leaves it only when its completion has been reaped. The slot owns the file, the
//! buffer (which keeps its memory alive) and, for scattered buffers, the array of segments; slots
//! hold them behind stable addresses. A waiting future holds only the slot's number: dropping it
//! marks the slot as orphaned and frees nothing. The ring itself ends by waiting for all its
//! operations; if the kernel will not let it wait, it leaks them.

#![expect(
    unsafe_code,
    reason = "submission entries carry raw addresses; see the module's argument"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use super::{Operation, OperationKind};
use crate::buffer::Segment;

/// Submission entries of one ring. More operations than this wait in the backlog for a turn.
const ENTRIES: u32 = 256;

/// What one operation owns while the kernel has it.
struct InFlight {
    operation: Operation,
    /// The segment array of a scattered buffer: the kernel reads it at submission or later.
    segments: Option<Box<[Segment]>>,
}

enum Slot {
    Running {
        owned: InFlight,
        waker: Option<Waker>,
        orphaned: bool,
    },
    Done(io::Result<usize>),
}

struct State {
    ring: IoUring,
    slots: Slab<Slot>,
    /// Slots whose entry did not fit yet, oldest first.
    backlog: VecDeque<usize>,
    running: usize,
}

/// See the [module](self). Used only by the thread of its loop.
#[derive(Clone)]
pub(crate) struct Ring(Rc<RefCell<State>>);

impl Ring {
    pub(super) fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder
            .setup_submit_all()
            .setup_coop_taskrun()
            .setup_single_issuer();
        let ring = match builder.build(ENTRIES) {
            // Linux before 6.0 does not know all of these: they only save time.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(ENTRIES)?,
            other => other?,
        };
        Ok(Self(Rc::new(RefCell::new(State {
            ring,
            slots: Slab::new(),
            backlog: VecDeque::new(),
            running: 0,
        }))))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        let raw = self.0.borrow().ring.as_raw_fd();
        // SAFETY: the ring lives as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }

    pub(super) fn start(&self, operation: Operation) -> RingCompletion {
        let mut state = self.0.borrow_mut();
        let segments = match operation.buffer.segments() {
            [] | [_] => None,
            many => Some(many.to_vec().into_boxed_slice()),
        };
        let owned = InFlight {
            operation,
            segments,
        };
        let slot = state.slots.insert(Slot::Running {
            owned,
            waker: None,
            orphaned: false,
        });
        state.running += 1;
        state.backlog.push_back(slot);
        RingCompletion {
            ring: self.clone(),
            slot: Some(slot),
        }
    }

    /// Moves the backlog into the submission queue and enters the kernel once for all of it, or
    /// once for every queue full of it.
    ///
    /// What the kernel does not take now stays for the next turn ([`Ring::has_unsubmitted`]).
    pub(super) fn submit(&self) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        while state.fill() > 0 {
            match state.ring.submit() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The completion queue is full or memory is short: reap first.
                    Some(libc::EBUSY | libc::EAGAIN) => break,
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Whether operations wait that the kernel has not seen.
    pub(super) fn has_unsubmitted(&self) -> bool {
        let mut state = self.0.borrow_mut();
        !state.backlog.is_empty() || !state.ring.submission().is_empty()
    }

    pub(super) fn reap(&self) {
        let mut wakers = Vec::new();
        {
            let mut state = self.0.borrow_mut();
            state.collect(&mut wakers);
            // Completions that overflowed the queue stay in the kernel until asked for.
            while state.ring.submission().cq_overflow() {
                if state.ring.submit_and_wait(0).is_err() {
                    break;
                }
                state.collect(&mut wakers);
            }
        }
        for waker in wakers {
            waker.wake();
        }
    }

    pub(super) fn finish(&self) {
        loop {
            if self.submit().is_err() {
                break;
            }
            self.reap();
            let state = self.0.borrow_mut();
            if state.running == 0 {
                return;
            }
            match state.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EBUSY) => {}
                    // Memory is short: others must be let run to free some.
                    Some(libc::EAGAIN) => std::thread::yield_now(),
                    _ => break,
                },
            }
        }
        // The kernel may still use the memory: better leaked than freed.
        let slots = std::mem::take(&mut self.0.borrow_mut().slots);
        tracing::error!(
            operations = slots.len(),
            "the ring can't be waited for; leaking its buffers"
        );
        std::mem::forget(slots);
    }
}

impl State {
    /// Pushes entries for the backlog while there is room; returns how many the queue holds then.
    fn fill(&mut self) -> usize {
        while let Some(&slot) = self.backlog.front() {
            let Some(Slot::Running { owned, .. }) = self.slots.get(slot) else {
                self.backlog.pop_front();
                continue;
            };
            let entry = entry_for(owned).user_data(slot as u64);
            // SAFETY: everything the entry points to is owned by the slot until its completion is
            // reaped (module doc).
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
        self.ring.submission().len()
    }

    fn collect(&mut self, wakers: &mut Vec<Waker>) {
        let Self {
            ring,
            slots,
            backlog,
            running,
            ..
        } = self;
        for completion in ring.completion() {
            let Ok(key) = usize::try_from(completion.user_data()) else {
                continue;
            };
            let Some(slot) = slots.get_mut(key) else {
                continue;
            };
            let Slot::Running {
                waker, orphaned, ..
            } = slot
            else {
                continue;
            };
            if matches!(-completion.result(), libc::EINTR | libc::EAGAIN) {
                backlog.push_back(key);
                continue;
            }
            *running -= 1;
            let result = usize::try_from(completion.result())
                .map_err(|_| io::Error::from_raw_os_error(-completion.result()));
            wakers.extend(waker.take());
            if *orphaned {
                slots.remove(key);
            } else {
                *slot = Slot::Done(result);
            }
        }
    }
}

/// The most bytes Linux moves in one call; a longer transfer comes back short and is continued.
const MAX_TRANSFER: u32 = 0x7fff_f000;

fn entry_for(owned: &InFlight) -> squeue::Entry {
    let InFlight {
        operation,
        segments,
    } = owned;
    let fd = types::Fd(operation.file.as_raw_fd());
    let offset = operation.offset;
    match operation.kind {
        OperationKind::Fdatasync => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        OperationKind::Fallocate { mode, len } => opcode::Fallocate::new(fd, len)
            .offset(offset)
            .mode(mode)
            .build(),
        OperationKind::Read | OperationKind::Write => {
            let write = operation.kind == OperationKind::Write;
            if let Some(segments) = segments {
                // A segment is an iovec (repr(transparent)); longer arrays come back short.
                let vectors = segments.as_ptr().cast::<libc::iovec>();
                let count = u32::try_from(segments.len().min(MAX_SEGMENTS)).unwrap_or(0);
                if write {
                    opcode::Writev::new(fd, vectors, count)
                        .offset(offset)
                        .build()
                } else {
                    opcode::Readv::new(fd, vectors, count)
                        .offset(offset)
                        .build()
                }
            } else {
                let (base, len) = operation
                    .buffer
                    .segments()
                    .first()
                    .map_or((std::ptr::null_mut(), 0), |segment| {
                        (segment.base(), segment.len())
                    });
                let len = u32::try_from(len).unwrap_or(u32::MAX).min(MAX_TRANSFER);
                if write {
                    opcode::Write::new(fd, base, len).offset(offset).build()
                } else {
                    opcode::Read::new(fd, base, len).offset(offset).build()
                }
            }
        }
    }
}

/// Linux' `UIO_MAXIOV`.
const MAX_SEGMENTS: usize = 1024;

/// Waits for one operation.
pub(crate) struct RingCompletion {
    ring: Ring,
    slot: Option<usize>,
}

impl Future for RingCompletion {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(key) = self.slot else {
            return Poll::Ready(Err(io::Error::other("polled after completion")));
        };
        let ring = self.ring.clone();
        let mut state = ring.0.borrow_mut();
        match state.slots.get_mut(key) {
            Some(Slot::Running { waker, .. }) => {
                let old = waker.replace(cx.waker().clone());
                drop(state);
                // Without the borrow: a waker's drop may drop a task with operations of its own.
                drop(old);
                Poll::Pending
            }
            Some(Slot::Done(_)) => {
                self.slot = None;
                match state.slots.remove(key) {
                    Slot::Done(result) => Poll::Ready(result),
                    Slot::Running { .. } => Poll::Pending,
                }
            }
            // Only a ring that leaked its operations gets here.
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl Drop for RingCompletion {
    fn drop(&mut self) {
        let Some(key) = self.slot else { return };
        let mut state = self.ring.0.borrow_mut();
        let mut unused = None;
        match state.slots.get_mut(key) {
            Some(Slot::Running {
                orphaned, waker, ..
            }) => {
                *orphaned = true;
                unused = waker.take();
            }
            Some(Slot::Done(_)) => drop(state.slots.remove(key)),
            None => {}
        }
        drop(state);
        drop(unused);
    }
}
