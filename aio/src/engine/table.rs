//! The operations of one loop, from their start until their owner has taken the result.
//!
//! # Why the memory of an operation in flight is safe
//! The kernel reads and writes memory behind the compiler's back from submission to completion. An
//! [`Operation`] is moved into a slot of this table before any engine hears of it, and leaves it
//! only when the engine has told its end ([`Table::finish`]) — an engine that works in another
//! thread may borrow it as a whole ([`Table::lend`]) and owes it back. Who waits holds only the
//! slot's number: dropping that marks the slot as orphaned and frees nothing. If a loop has to end
//! while the kernel still has operations, the table leaks them when it is dropped: leaked memory is
//! a pity, freed memory that a device writes to is somebody else's data destroyed.
//!
//! The table belongs to its loop's thread. In steady state it allocates nothing: slots, the lists
//! of segments and the list of those to wake keep their room.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::task::{Poll, Waker};

use slab::Slab;

use super::Route;
use super::operation::{Next, Operation, OperationKind, Request, Verdict};
use crate::aside::Aside;
use crate::buffer::{IoBuffer, Segment};

/// Names an operation in its table. Engines may give its number to the kernel as user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(usize);

impl Key {
    /// No operation's key: an engine may use it for something of its own.
    pub(super) const NONE: Self = Self(usize::MAX);

    /// The key as 64 bits that fit no other key.
    pub(super) fn to_user_data(self) -> u64 {
        self.0 as u64
    }

    /// The key whose user data this is.
    pub(super) fn from_user_data(data: u64) -> Option<Self> {
        usize::try_from(data).ok().map(Self)
    }
}

enum Slot {
    /// An engine has it.
    Running {
        /// None while it is lent.
        operation: Option<Operation>,
        /// Who waits.
        waker: Option<Waker>,
        /// Nobody ever will.
        orphaned: bool,
    },
    /// Its owner has not asked for the result yet.
    Done(io::Result<usize>),
}

/// Lists of segments kept for the next scattered buffers.
const SPARE_VECTORS: usize = 256;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Table {
    slots: Slab<Slot>,
    running: usize,
    woken: Vec<Waker>,
    spare: Vec<Vec<Segment>>,
}

impl Table {
    /// Takes in an operation; an engine must be told of it next.
    pub(super) fn insert(
        &mut self,
        kind: OperationKind,
        route: Route,
        file: Arc<Aside<File>>,
        offset: u64,
        buffer: IoBuffer,
    ) -> Key {
        let vectors = if buffer.is_scattered() {
            self.spare.pop().unwrap_or_default()
        } else {
            Vec::new()
        };
        self.running += 1;
        Key(self.slots.insert(Slot::Running {
            operation: Some(Operation::new(kind, route, file, offset, buffer, vectors)),
            waker: None,
            orphaned: false,
        }))
    }

    fn operation(&mut self, key: Key) -> Option<&mut Option<Operation>> {
        match self.slots.get_mut(key.0) {
            Some(Slot::Running { operation, .. }) => Some(operation),
            _ => None,
        }
    }

    /// What to ask the kernel for a running operation; none for any other key.
    pub(super) fn request(&mut self, key: Key) -> Option<Request> {
        self.operation(key)?.as_mut().map(Operation::request)
    }

    /// Takes note of the kernel's answer to an operation's last request. Returns when the kernel is
    /// to be asked again; if not at all, the operation has ended (or the key is none).
    pub(super) fn advance(&mut self, key: Key, answer: io::Result<usize>) -> Option<Next> {
        match self.operation(key)?.as_mut()?.advance(answer) {
            Verdict::Finished(result) => {
                self.finish(key, result);
                None
            }
            Verdict::Again(next) => Some(next),
        }
    }

    /// Lends a running operation to a worker; [`Table::give_back`] or [`Table::finish`] follows.
    pub(super) fn lend(&mut self, key: Key) -> Option<Operation> {
        self.operation(key)?.take()
    }

    /// Takes a lent operation back; it must be finished next.
    pub(super) fn give_back(&mut self, key: Key, lent: Operation) {
        if let Some(operation) = self.operation(key) {
            *operation = Some(lent);
        }
    }

    /// Ends an operation: nobody but its owner has a right to its memory any more.
    pub(super) fn finish(&mut self, key: Key, result: io::Result<usize>) {
        let Some(slot) = self.slots.get_mut(key.0) else {
            return;
        };
        let Slot::Running {
            operation,
            waker,
            orphaned,
        } = slot
        else {
            return;
        };
        self.running -= 1;
        self.woken.extend(waker.take());
        let operation = operation.take();
        if *orphaned {
            self.slots.remove(key.0);
        } else {
            *slot = Slot::Done(result);
        }
        if let Some(operation) = operation {
            let vectors = operation.into_vectors();
            if vectors.capacity() > 0 && self.spare.len() < SPARE_VECTORS {
                self.spare.push(vectors);
            }
        }
    }

    /// Ends all operations that are lent to workers which will not give them back; theirs is the
    /// memory from now on.
    pub(super) fn forget_lent(&mut self) {
        let lent = |(key, slot): (usize, &Slot)| match slot {
            Slot::Running {
                operation: None, ..
            } => Some(Key(key)),
            _ => None,
        };
        let keys: Vec<_> = self.slots.iter().filter_map(lent).collect();
        for key in keys {
            self.finish(key, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
    }

    /// Operations that have not ended.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Whether nothing is left of any operation.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Who waits for operations that have ended. To be woken when nothing is borrowed: a waker may
    /// run foreign code.
    pub(super) fn woken(&mut self) -> &mut Vec<Waker> {
        &mut self.woken
    }

    /// The result of an operation if it has ended, which frees its slot; until then `waker` is
    /// remembered. Also returned is what must be dropped when nothing is borrowed: the waker that
    /// was remembered before.
    pub(super) fn poll(
        &mut self,
        key: Key,
        waker: &Waker,
    ) -> (Poll<io::Result<usize>>, Option<Waker>) {
        match self.slots.get_mut(key.0) {
            Some(Slot::Running { waker: kept, .. }) => {
                let same = kept.as_ref().is_some_and(|kept| kept.will_wake(waker));
                let old = if same {
                    None
                } else {
                    kept.replace(waker.clone())
                };
                (Poll::Pending, old)
            }
            Some(Slot::Done(_)) => match self.slots.remove(key.0) {
                Slot::Done(result) => (Poll::Ready(result), None),
                Slot::Running { .. } => (Poll::Pending, None),
            },
            // Only a loop that ended before its operations gets here.
            None => (Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())), None),
        }
    }

    /// Nobody will ask for the result of this operation. What is returned must be dropped when
    /// nothing is borrowed.
    pub(super) fn abandon(&mut self, key: Key) -> Option<Waker> {
        match self.slots.get_mut(key.0)? {
            Slot::Running {
                orphaned, waker, ..
            } => {
                *orphaned = true;
                waker.take()
            }
            Slot::Done(_) => {
                self.slots.remove(key.0);
                None
            }
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if self.running == 0 {
            return;
        }
        tracing::warn!(
            operations = self.running,
            "a loop ends before its I/O does; leaking the memory and the files that are in use"
        );
        std::mem::forget(std::mem::take(&mut self.slots));
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::buffer::GuestRam;
    use crate::engine::EngineKind;

    const PAGE: usize = 4096;

    /// A read into the first halves of these pages of `ram`.
    fn read(table: &mut Table, ram: &Arc<GuestRam>, pages: &[u64]) -> Key {
        let range = |page: &u64| (GuestAddress(page * PAGE as u64), PAGE / 2);
        let ranges: Vec<_> = pages.iter().map(range).collect();
        let buffer = IoBuffer::from_guest(ram, &ranges).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap().into());
        let route = Route::from(EngineKind::Threads);
        table.insert(OperationKind::Read, route, file, 0, buffer)
    }

    fn ram() -> Arc<GuestRam> {
        Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 2 * PAGE)]).unwrap())
    }

    #[test]
    fn a_result_that_nobody_wants_keeps_no_place() {
        let mut table = Table::default();
        let ram = ram();
        let early = read(&mut table, &ram, &[0]);
        table.finish(early, Ok(0));
        drop(table.abandon(early));
        let late = read(&mut table, &ram, &[0]);
        drop(table.abandon(late));
        table.finish(late, Ok(0));
        let lent = read(&mut table, &ram, &[0]);
        let operation = table.lend(lent).unwrap();
        drop(table.abandon(lent));
        table.give_back(lent, operation);
        table.finish(lent, Ok(0));
        assert!(table.is_empty());
        assert_eq!(table.running(), 0);
        assert_eq!(Arc::strong_count(&ram), 1, "a buffer was kept");
    }

    #[test]
    fn what_a_worker_keeps_has_ended_for_its_owner_and_is_the_workers() {
        let mut table = Table::default();
        let (hanging, other) = (ram(), ram());
        let memory = Arc::downgrade(&hanging);
        let kept = read(&mut table, &hanging, &[0]);
        drop(hanging);
        let with_a_ring = read(&mut table, &other, &[0]);
        let operation = table.lend(kept).unwrap();
        for key in [kept, with_a_ring] {
            assert!(table.poll(key, Waker::noop()).0.is_pending());
        }
        table.forget_lent();
        assert_eq!(table.woken().len(), 1, "nobody tells its owner");
        let Poll::Ready(Err(error)) = table.poll(kept, Waker::noop()).0 else {
            panic!("waits for a worker that hangs");
        };
        assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
        assert!(table.poll(with_a_ring, Waker::noop()).0.is_pending());
        table.finish(with_a_ring, Ok(0));
        drop(table);
        assert_eq!(memory.strong_count(), 1, "freed under the worker's feet");
        drop(operation);
        assert_eq!(memory.strong_count(), 0);
    }

    #[test]
    fn lists_of_segments_are_used_again_and_not_hoarded() {
        let mut table = Table::default();
        let ram = ram();
        let scattered: Vec<_> = (0..SPARE_VECTORS + 10)
            .map(|_| {
                let key = read(&mut table, &ram, &[0, 1]);
                assert!(table.request(key).is_some());
                key
            })
            .collect();
        for key in scattered {
            table.finish(key, Ok(0));
        }
        assert_eq!(table.spare.len(), SPARE_VECTORS);
        // One piece of memory needs no list, and leaves none.
        let one = read(&mut table, &ram, &[0]);
        assert_eq!(table.spare.len(), SPARE_VECTORS);
        let two = read(&mut table, &ram, &[0, 1]);
        assert_eq!(table.spare.len(), SPARE_VECTORS - 1);
        table.finish(one, Ok(0));
        assert_eq!(table.spare.len(), SPARE_VECTORS - 1);
        table.finish(two, Ok(0));
        assert_eq!(table.spare.len(), SPARE_VECTORS);
    }
}
