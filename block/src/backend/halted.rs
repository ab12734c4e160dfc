//! Requests that have to wait until the machine goes on: those that an error has halted, and all that come to a machine
//! that stands still.
//!
//! A halted request holds no token: the disk is at rest while the machine stands still, and can be
//! drained. But the gate stays closed for as long as any is halted, so that nothing overtakes it.
//! When the machine goes on, the halted ones take places at the gate before all who came meanwhile,
//! in the order in which they were first made, before it opens; each then does again what failed.
//!
//! Any thread; no lock is held while anybody is woken.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use sluice_aio::gate::{Cancelled, Closed, Enter};
use sluice_aio::{Gate, Token};

/// Who holds the gate closed, in diagnostics.
const HOLDER: &str = "I/O error";
/// The same, for a machine that stands still.
const STOPPED: &str = "stopped machine";

/// What becomes of a halted request.
#[derive(Debug)]
enum Fate {
    Halted,
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
    fate: Fate,
    waker: Option<Waker>,
}

/// A halted request, known to the queue until it has entered again or was cancelled.
type Shared = Arc<Mutex<Slot>>;

#[derive(Debug, Default)]
struct Queue {
    slots: Vec<Shared>,
    /// The gate's section while any has not been resumed.
    closed: Option<Closed>,
    /// The gate's section while the machine stands still.
    stopped: Option<Closed>,
}

impl Queue {
    fn halted(&self) -> impl Iterator<Item = &Shared> {
        let slots = self.slots.iter();
        slots.filter(|slot| matches!(slot.lock().fate, Fate::Halted))
    }

    /// The section if nobody needs it any more; to be dropped without the lock.
    fn release(&mut self) -> Option<Closed> {
        if self.halted().next().is_some() {
            return None;
        }
        self.closed.take()
    }
}

/// A backend's halted requests.
#[derive(Debug, Default)]
pub(super) struct Halted(Mutex<Queue>);

impl Halted {
    /// Halts a request. From now on the gate is closed.
    pub(super) fn halt(&self, gate: &Gate, sequence: u64, submitter: u64) -> Halting<'_> {
        let slot = Arc::new(Mutex::new(Slot {
            sequence,
            submitter,
            fate: Fate::Halted,
            waker: None,
        }));
        let mut queue = self.0.lock();
        queue.closed.get_or_insert_with(|| gate.close(HOLDER));
        queue.slots.push(Arc::clone(&slot));
        Halting { halted: self, slot }
    }

    /// The machine stands still: the gate is closed until it goes on.
    pub(super) fn stop(&self, gate: &Gate) {
        let closed = gate.close(STOPPED);
        let before = self.0.lock().stopped.replace(closed);
        drop(before);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.lock().halted().count()
    }

    /// Lets all of them go on, in the order in which they were made, and then who came to a machine that stood still.
    /// Those that were let go before and have not got in since are put in order with them.
    pub(super) fn resume(&self, gate: &Gate) {
        // Dropped last: it may be the last section of the gate.
        let stopped = self.0.lock().stopped.take();
        self.resume_halted(gate);
        drop(stopped);
    }

    fn resume_halted(&self, gate: &Gate) {
        let mut queue = self.0.lock();
        if queue.halted().next().is_none() {
            return;
        }
        let mut waiting = queue.slots.clone();
        waiting.retain(|slot| !matches!(slot.lock().fate, Fate::Cancelled));
        waiting.sort_by_key(|slot| slot.lock().sequence);
        let mut woken = Vec::new();
        let mut former = Vec::new();
        // Each takes its place before all others, whoever has come meanwhile: so the first is last.
        for slot in waiting.into_iter().rev() {
            let mut enter = gate.enter_again();
            // The gate is closed.
            let _ = Pin::new(&mut enter).poll(&mut Context::from_waker(Waker::noop()));
            let mut slot = slot.lock();
            former.push(std::mem::replace(&mut slot.fate, Fate::Resumed(enter)));
            woken.extend(slot.waker.take());
        }
        let opened = queue.release();
        drop(queue);
        drop((former, opened));
        woken.into_iter().rev().for_each(Waker::wake);
    }

    /// Cancels those of one submitter, also if they have not got further than the gate.
    pub(super) fn cancel(&self, submitter: u64) {
        let mut queue = self.0.lock();
        let mut fates = Vec::new();
        let mut woken = Vec::new();
        for slot in &queue.slots {
            let mut slot = slot.lock();
            if slot.submitter == submitter {
                fates.push(std::mem::replace(&mut slot.fate, Fate::Cancelled));
                woken.extend(slot.waker.take());
            }
        }
        let opened = queue.release();
        drop(queue);
        // Places at the gate are given up, which lets others go on.
        drop((fates, opened));
        woken.into_iter().for_each(Waker::wake);
    }
}

/// Waits for the machine to go on, and enters again. Dropping it gives up.
#[derive(Debug)]
pub(super) struct Halting<'a> {
    halted: &'a Halted,
    slot: Shared,
}

impl Future for Halting<'_> {
    type Output = Result<Token, Cancelled>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.slot.lock();
        let result = match &mut slot.fate {
            Fate::Halted => Poll::Pending,
            Fate::Resumed(enter) => Pin::new(enter).poll(cx),
            Fate::Cancelled => Poll::Ready(Err(Cancelled)),
        };
        if result.is_pending() {
            slot.waker = Some(cx.waker().clone());
        }
        result
    }
}

impl Drop for Halting<'_> {
    fn drop(&mut self) {
        let mut queue = self.halted.0.lock();
        queue.slots.retain(|slot| !Arc::ptr_eq(slot, &self.slot));
        let fate = std::mem::replace(&mut self.slot.lock().fate, Fate::Cancelled);
        let opened = queue.release();
        drop(queue);
        drop((fate, opened));
    }
}
