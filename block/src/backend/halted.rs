//! Requests that an error has halted, until the machine goes on.
//!
//! A halted request holds no token: the disk is at rest while the machine stands still, and can be
//! drained. But the gate stays closed for as long as any is halted, so that nothing overtakes it.
//! When the machine goes on, the halted ones take their places at the gate in the order in which
//! they were first made, before it opens; each then does again what failed.
//!
//! Any thread; no lock is held while anybody is woken.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use sluice_aio::Gate;
use sluice_aio::gate::{Cancelled, Closed, Enter};

/// Who holds the gate closed, in diagnostics.
const HOLDER: &str = "I/O error";

/// What becomes of a halted request.
#[derive(Debug)]
enum Fate {
    Halted(Option<Waker>),
    /// It has its place at the gate.
    Resumed(Enter),
    Cancelled,
}

#[derive(Debug)]
struct Slot {
    /// When it was made: requests go on in this order.
    sequence: u64,
    /// Who made it.
    submitter: u64,
    fate: Mutex<Fate>,
}

impl Slot {
    /// Decides its fate and returns who is to be told.
    fn decide(&self, fate: Fate) -> Option<Waker> {
        match std::mem::replace(&mut *self.fate.lock(), fate) {
            Fate::Halted(waker) => waker,
            Fate::Resumed(_) | Fate::Cancelled => None,
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    slots: Vec<Arc<Slot>>,
    /// The gate's section while there are any.
    closed: Option<Closed>,
}

/// A backend's halted requests.
#[derive(Debug, Default)]
pub(super) struct Halted(Mutex<Queue>);

impl Halted {
    /// Halts a request. From now on the gate is closed.
    pub(super) fn halt(&self, gate: &Gate, sequence: u64, submitter: u64) -> Halting<'_> {
        let slot = Arc::new(Slot {
            sequence,
            submitter,
            fate: Mutex::new(Fate::Halted(None)),
        });
        let mut queue = self.0.lock();
        queue.closed.get_or_insert_with(|| gate.close(HOLDER));
        queue.slots.push(Arc::clone(&slot));
        Halting { halted: self, slot }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.lock().slots.len()
    }

    /// Lets all of them go on, in the order in which they were made.
    pub(super) fn resume(&self, gate: &Gate) {
        let mut queue = std::mem::take(&mut *self.0.lock());
        queue.slots.sort_by_key(|slot| slot.sequence);
        let mut woken = Vec::new();
        for slot in queue.slots {
            let mut enter = gate.enter();
            // Takes its place: the gate is closed.
            let _ = Pin::new(&mut enter).poll(&mut Context::from_waker(Waker::noop()));
            woken.extend(slot.decide(Fate::Resumed(enter)));
        }
        drop(queue.closed);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Cancels those of one submitter.
    pub(super) fn cancel(&self, submitter: u64) {
        let (cancelled, _opened) = self.remove(|slot| slot.submitter == submitter);
        let woken = cancelled
            .iter()
            .filter_map(|slot| slot.decide(Fate::Cancelled));
        woken.for_each(Waker::wake);
    }

    /// Takes slots out; with the last one the section, which the caller drops without the lock.
    fn remove(&self, which: impl Fn(&Slot) -> bool) -> (Vec<Arc<Slot>>, Option<Closed>) {
        let mut queue = self.0.lock();
        let removed = queue.slots.extract_if(.., |slot| which(slot)).collect();
        let closed = if queue.slots.is_empty() {
            queue.closed.take()
        } else {
            None
        };
        (removed, closed)
    }
}

/// Waits for the machine to go on, and gives the place at the gate. Dropping it gives up.
#[derive(Debug)]
pub(super) struct Halting<'a> {
    halted: &'a Halted,
    slot: Arc<Slot>,
}

impl Future for Halting<'_> {
    type Output = Result<Enter, Cancelled>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut fate = self.slot.fate.lock();
        match std::mem::replace(&mut *fate, Fate::Cancelled) {
            Fate::Halted(_) => {
                *fate = Fate::Halted(Some(cx.waker().clone()));
                Poll::Pending
            }
            Fate::Resumed(enter) => Poll::Ready(Ok(enter)),
            Fate::Cancelled => Poll::Ready(Err(Cancelled)),
        }
    }
}

impl Drop for Halting<'_> {
    fn drop(&mut self) {
        let _opened = self
            .halted
            .remove(|slot| std::ptr::eq(slot, Arc::as_ptr(&self.slot)));
    }
}
