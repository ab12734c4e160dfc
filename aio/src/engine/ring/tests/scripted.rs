//! A kernel that answers from a script, and a ring on it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use super::super::*;
use vm_memory::GuestAddress;

use crate::aside::Aside;
use crate::buffer::{GuestRam, IoBuffer};
use crate::engine::EngineKind;
use crate::engine::operation::Memory;

/// What the scripted kernel is and has seen.
#[derive(Default)]
pub(super) struct Script {
    /// Room in the submission queue.
    pub(super) room: usize,
    /// What is in it.
    pub(super) queue: VecDeque<(u64, Request)>,
    /// The next answers of `submit`: how many entries to take, or an errno. Then it takes all.
    pub(super) answers: VecDeque<Result<usize, i32>>,
    /// Calls of `submit`.
    pub(super) submits: usize,
    /// What it took, in order.
    pub(super) taken: Vec<(u64, Request)>,
    /// The completion queue.
    pub(super) completions: VecDeque<(u64, i32)>,
    /// What did not fit into it.
    pub(super) overflowed: VecDeque<(u64, i32)>,
    pub(super) flushes: usize,
    /// Delays of the alarm, in order of setting.
    pub(super) alarms: Vec<Duration>,
    pub(super) rung: bool,
    pub(super) cancels: usize,
    /// The errno of `cancel_all`.
    pub(super) uncancellable: Option<i32>,
    /// Somebody sleeps elsewhere and is to be told of completions.
    pub(super) told: bool,
    /// `tell` fails.
    pub(super) mute: bool,
    /// Calls of `wait`.
    pub(super) waits: usize,
    /// How long each of these waits might take.
    pub(super) limits: Vec<Duration>,
    /// Calls of `submit_and_wait`; each is one of `submit`, too.
    pub(super) sleeps: usize,
    /// What `wait` and `submit_and_wait` deliver, call by call; nothing left: the time passes.
    pub(super) arrivals: VecDeque<Vec<(u64, i32)>>,
}

#[derive(Clone)]
pub(super) struct Scripted(pub(super) Rc<RefCell<Script>>);

impl Scripted {
    pub(super) fn new(room: usize) -> Self {
        Self(Rc::new(RefCell::new(Script {
            room,
            ..Script::default()
        })))
    }

    pub(super) fn answer(&self, answers: impl IntoIterator<Item = Result<usize, i32>>) {
        self.0.borrow_mut().answers.extend(answers);
    }

    /// Completes the oldest taken entry that has not been completed.
    pub(super) fn complete(&self, at: usize, result: i32) {
        let mut script = self.0.borrow_mut();
        let user_data = script.taken[at].0;
        script.completions.push_back((user_data, result));
    }

    pub(super) fn ring_alarm(&self) {
        self.0.borrow_mut().rung = true;
    }

    pub(super) fn submits(&self) -> usize {
        self.0.borrow().submits
    }

    pub(super) fn taken(&self) -> Vec<Request> {
        let script = self.0.borrow();
        script.taken.iter().map(|(_, request)| *request).collect()
    }
}

impl Port for Scripted {
    fn push(&mut self, user_data: u64, request: &Request) -> bool {
        let mut script = self.0.borrow_mut();
        let fits = script.queue.len() < script.room;
        if fits {
            script.queue.push_back((user_data, *request));
        }
        fits
    }

    fn submit(&mut self) -> io::Result<usize> {
        let mut script = self.0.borrow_mut();
        script.submits += 1;
        let all = script.queue.len();
        let answer = script.answers.pop_front().unwrap_or(Ok(all));
        let count = answer.map_err(io::Error::from_raw_os_error)?;
        let taken: Vec<_> = script.queue.drain(..count).collect();
        script.taken.extend(taken);
        Ok(count)
    }

    fn submit_and_wait(&mut self) -> io::Result<usize> {
        let taken = self.submit()?;
        let arrived = self.0.borrow_mut().arrivals.pop_front();
        let mut script = self.0.borrow_mut();
        script.sleeps += 1;
        script.completions.extend(arrived.into_iter().flatten());
        Ok(taken)
    }

    fn pop(&mut self) -> Option<(u64, i32)> {
        self.0.borrow_mut().completions.pop_front()
    }

    fn has_completed(&mut self) -> bool {
        let script = self.0.borrow();
        !script.completions.is_empty() || !script.overflowed.is_empty()
    }

    fn needs_flush(&mut self) -> bool {
        !self.0.borrow().overflowed.is_empty()
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut script = self.0.borrow_mut();
        script.flushes += 1;
        // The completion queue has room for two.
        for _ in 0..2 {
            let next = script.overflowed.pop_front();
            script.completions.extend(next);
        }
        Ok(())
    }

    fn cancel_all(&mut self) -> io::Result<()> {
        let mut script = self.0.borrow_mut();
        script.cancels += 1;
        let errno = script.uncancellable.map(io::Error::from_raw_os_error);
        errno.map_or(Ok(()), Err)
    }

    fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        let mut script = self.0.borrow_mut();
        script.waits += 1;
        script.limits.push(limit);
        let arrived = script.arrivals.pop_front();
        let any = arrived.is_some();
        script.completions.extend(arrived.into_iter().flatten());
        Ok(any)
    }

    fn set_alarm(&mut self, delay: Duration) -> io::Result<()> {
        self.0.borrow_mut().alarms.push(delay);
        Ok(())
    }

    fn take_alarm(&mut self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().rung)
    }

    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn tell(&mut self, sleeps: bool) -> io::Result<()> {
        let mut script = self.0.borrow_mut();
        if script.mute {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        script.told = sleeps;
        Ok(())
    }

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A ring, its table, and a hand on its kernel.
pub(super) struct Bench {
    pub(super) kernel: Scripted,
    pub(super) ring: Ring<Scripted>,
    pub(super) table: Table,
    pub(super) file: Arc<Aside<File>>,
}

pub(super) const LEN: usize = 4096;
pub(super) const WHOLE: i32 = 4096;

impl Bench {
    pub(super) fn new(room: usize) -> Self {
        let kernel = Scripted::new(room);
        Self {
            ring: Ring::with_port(kernel.clone()),
            kernel,
            table: Table::default(),
            file: Arc::new(tempfile::tempfile().unwrap().into()),
        }
    }

    pub(super) fn start(&mut self, kind: OperationKind, offset: u64, buffer: IoBuffer) -> Key {
        let file = Arc::clone(&self.file);
        let key = self
            .table
            .insert(kind, EngineKind::IoUring.into(), file, offset, buffer);
        self.ring.start(key, &mut self.table);
        key
    }

    /// Starts `count` reads; the offset of each is its number.
    pub(super) fn reads(&mut self, count: u64) -> Vec<Key> {
        (0..count)
            .map(|at| self.start(OperationKind::Read, at, IoBuffer::alloc(LEN)))
            .collect()
    }

    /// Submits; nothing may be left for others.
    pub(super) fn submit(&mut self) {
        assert!(self.ring.submit(&mut self.table).is_empty());
    }

    pub(super) fn reap(&mut self) {
        self.ring.reap(&mut self.table);
    }

    pub(super) fn result(&mut self, key: Key) -> Option<io::Result<usize>> {
        match self.table.poll(key, Waker::noop()).0 {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    pub(super) fn errno(&mut self, key: Key) -> Option<i32> {
        self.result(key)?.err()?.raw_os_error()
    }

    pub(super) fn offsets_taken_of_reads(&self) -> Vec<u64> {
        let mut taken = self.kernel.taken();
        taken.retain(|request| matches!(request, Request::Read { .. }));
        taken.iter().map(|request| shape(request).0).collect()
    }

    pub(super) fn offsets_taken(&self) -> Vec<u64> {
        let taken = self.kernel.taken();
        taken.iter().map(|request| shape(request).0).collect()
    }
}

/// Offset, address and length of a transfer of one piece.
pub(super) fn shape(request: &Request) -> (u64, usize, u32) {
    match *request {
        Request::Read {
            offset,
            memory: Memory::One { base, len },
            ..
        }
        | Request::Write {
            offset,
            memory: Memory::One { base, len },
            ..
        } => (offset, base as usize, len),
        other => panic!("not a transfer of one piece: {other:?}"),
    }
}

pub(super) fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), LEN)]).unwrap())
}
