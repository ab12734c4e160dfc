//! [`BottomHalf`]: a callback of a loop that is run soon after it was scheduled.
//!
//! For what has to happen once however often it was asked for: one interrupt for a batch of
//! completions, one look at a queue. Scheduling costs no memory and, from within the loop, no
//! system call.
//!
//! # The contract
//! * Bottom halves run in the order in which they were scheduled, from whichever thread; those of a
//!   single use ([`crate::AioContext::schedule`]) are in the same order.
//! * Scheduling one that is scheduled already does nothing. Once it has begun to run it may be
//!   scheduled again, also by itself; it then runs behind those that are scheduled by then, and not
//!   in the same step of the loop.
//! * [`BottomHalfHandle::cancel`] takes the scheduling back, if the run has not begun. Scheduled
//!   once more before its turn, it keeps its old place.
//! * Dropping the [`BottomHalf`] deletes it: it does not run again, and its callback is dropped; if
//!   that is what the callback itself does, when it returns.
//! * A panic in it is logged, and ends that run only.
//!
//! # Threads
//! The callback and the owner stay in the loop's thread; a [`BottomHalfHandle`] goes anywhere.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use slab::Slab;

use crate::context::{Remote, Shared};
use crate::event_loop::{self, Local};
use crate::queued::Queued;

type Callback = Rc<RefCell<dyn FnMut()>>;

/// The callbacks of one loop, each with the number of its bottom half: slots are used again.
#[derive(Default)]
pub(crate) struct BottomHalves {
    callbacks: Slab<(u64, Callback)>,
    made: u64,
}

/// What the queue, the owner and the handles share.
pub(crate) struct Ticket {
    home: Arc<Shared>,
    slot: usize,
    number: u64,
    queued: Queued,
}

/// Schedules a bottom half from any thread. It may outlive it, and does nothing then.
#[derive(Clone)]
pub struct BottomHalfHandle(Arc<Ticket>);

/// A bottom half; dropping it (in the loop's thread) deletes it. See the [module](self).
pub struct BottomHalf {
    local: Weak<Local>,
    handle: BottomHalfHandle,
}

impl std::fmt::Debug for BottomHalfHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BottomHalfHandle({})", self.0.number)
    }
}

impl std::fmt::Debug for BottomHalf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BottomHalf({})", self.handle.0.number)
    }
}

impl BottomHalfHandle {
    /// Asks for a run. Any thread; never blocks.
    pub fn schedule(&self) {
        if self.0.queued.ask() {
            self.0.home.push(Remote::BottomHalf(Arc::clone(&self.0)));
        }
    }

    /// Takes back what was scheduled; a run that has begun goes on. Any thread.
    pub fn cancel(&self) {
        self.0.queued.cancel();
    }
}

impl BottomHalf {
    /// See [`crate::current::bottom_half`].
    pub(crate) fn new(local: &Rc<Local>, callback: impl FnMut() + 'static) -> Self {
        let mut table = local.bottom_halves.borrow_mut();
        table.made += 1;
        let number = table.made;
        let slot = table
            .callbacks
            .insert((number, Rc::new(RefCell::new(callback))));
        Self {
            local: Rc::downgrade(local),
            handle: BottomHalfHandle(Arc::new(Ticket {
                home: Arc::clone(&local.shared),
                slot,
                number,
                queued: Queued::no(),
            })),
        }
    }

    /// Asks for a run.
    pub fn schedule(&self) {
        self.handle.schedule();
    }

    /// Takes back what was scheduled.
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// For scheduling it from elsewhere.
    #[must_use]
    pub fn handle(&self) -> BottomHalfHandle {
        self.handle.clone()
    }
}

impl Drop for BottomHalf {
    fn drop(&mut self) {
        let Some(local) = self.local.upgrade() else {
            return;
        };
        let ticket = &self.handle.0;
        let mut table = local.bottom_halves.borrow_mut();
        let callback = match table.callbacks.get(ticket.slot) {
            Some((number, _)) if *number == ticket.number => table.callbacks.remove(ticket.slot),
            _ => return,
        };
        drop(table);
        // Only now: a callback may own other bottom halves.
        drop(callback);
    }
}

impl BottomHalves {
    /// Runs the bottom half whose turn it is, unless it was cancelled or deleted; true if it ran.
    pub(crate) fn run(local: &Local, ticket: &Ticket) -> bool {
        // From here on it may be scheduled again.
        if !ticket.queued.begin() {
            return false;
        }
        let callback = match local.bottom_halves.borrow().callbacks.get(ticket.slot) {
            Some((number, callback)) if *number == ticket.number => Rc::clone(callback),
            _ => return false,
        };
        // It can't be running already: only the loop runs it, and loops are not nested.
        if let Ok(mut callback) = callback.try_borrow_mut() {
            event_loop::guarded(local.shared.name(), "a bottom half", &mut *callback);
        }
        // It may have deleted itself.
        event_loop::release(local.shared.name(), "a bottom half", callback);
        true
    }

    /// Drops all callbacks, for the loop's end; true if there were any.
    pub(crate) fn clear(local: &Local) -> bool {
        let callbacks = std::mem::take(&mut local.bottom_halves.borrow_mut().callbacks);
        // Without the borrow: they may own and make others.
        event_loop::drop_each(local.shared.name(), callbacks)
    }
}
