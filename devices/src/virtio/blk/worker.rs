//! The service of one queue, in the loop of its AioContext.
//!
//! A worker lives in one thread and takes no lock. It consists of an external handler of the
//! doorbell, which pops what the driver made available; one task per request; a bottom half, which
//! interrupts the driver once for a batch of completions; and the queue's own task ([`serve`]), for
//! the look at the ring after a drained section, and the end.
//!
//! A loop that polls looks at the ring itself: it sees a request before its doorbell has got
//! through to it.
//!
//! # Traces
//! At level `TRACE` a span `request` (queue, head of its chain) goes with each request, with the events
//! `enter` and `complete` in it; `notify` is the interrupt, the loop's own `kick` and `submit`
//! the rest of the way. Without a subscriber for them they cost a comparison each.
//!
//! # Drained sections
//! Before anything is popped a token is taken. If the gate is closed nothing is popped: the ring is
//! the queue. The queue's task then waits for the gate and looks at the ring once; what came in
//! meanwhile is seen because looking ends with enabling the driver's kicks and looking again.
//!
//! # The end
//! A stop (a reset on a vCPU thread) closes the worker: it pops no more and tells the driver
//! nothing more; requests in flight run to their end, since the kernel may still move their data,
//! and only then the stop is settled. So a completion of an older life never reaches a younger one.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use sluice_aio::gate::Opened;
use sluice_aio::{BottomHalf, Cause, Source, Token, current};
use sluice_block::backend::Submitter;
use tracing::Instrument as _;

use super::Shared;
use super::layout::{Features, RequestStatus};
use super::request::{Answer, Operation, parse};
use crate::virtio::{ActiveQueue, Interrupts, Kick, Ring, RingError, RingFeatures, Settling};

/// How a vCPU thread asks a worker to stop. Held by the device while the queue runs, and by the
/// worker: a request is settled when both have let go, also if the loop went away with its worker.
#[derive(Default)]
pub(super) struct Stop {
    requested: AtomicBool,
    waker: AtomicWaker,
    settling: Mutex<Option<Settling>>,
}

impl Stop {
    /// Asks for the end; `settling` is dropped when it has come.
    pub(super) fn request(self: Arc<Self>, settling: Settling) {
        *self.settling.lock() = Some(settling);
        self.requested.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// One queue in service.
struct Worker {
    shared: Arc<Shared>,
    submitter: Submitter,
    index: u16,
    features: Features,
    ring: RefCell<Ring>,
    kick: Arc<Kick>,
    interrupts: Arc<dyn Interrupts>,
    /// The driver must be told nothing and asked for nothing any more: stopped, or the ring is
    /// broken.
    closed: Cell<bool>,
    in_flight: Cell<usize>,
    /// Interrupts the driver, if it wants it, for what was pushed since the last time.
    notify: BottomHalf,
    /// The ring has more than one turn may take.
    more: Cell<bool>,
    /// The end of the drained section that the ring waits for.
    opened: RefCell<Option<Opened>>,
    /// Wakes the queue's task.
    waker: RefCell<Waker>,
}

/// Starts the service of a queue in the current loop's thread; [`Stop`] ends it.
pub(super) async fn serve(shared: Arc<Shared>, queue: ActiveQueue, stop: Arc<Stop>) {
    let worker = Rc::new_cyclic(|worker: &Weak<Worker>| Worker {
        submitter: Submitter::new(Arc::clone(&shared.disk.backend)),
        shared,
        index: queue.index,
        features: Features::from_bits_truncate(queue.features),
        ring: RefCell::new(Ring::new(
            queue.queue,
            queue.memory,
            RingFeatures::from_bits_truncate(queue.features),
        )),
        kick: queue.kick,
        interrupts: queue.interrupts,
        closed: Cell::new(false),
        in_flight: Cell::new(0),
        notify: {
            let worker = Weak::clone(worker);
            current::bottom_half(move || {
                if let Some(worker) = worker.upgrade() {
                    worker.interrupt();
                }
            })
        },
        more: Cell::new(false),
        opened: RefCell::new(None),
        waker: RefCell::new(Waker::noop().clone()),
    });
    let handler = {
        let (seen, worker) = (Rc::clone(&worker), Rc::clone(&worker));
        let watched = worker.kick.watched();
        let look = move || seen.has_work();
        current::add_fd_with_look(&watched, Source::External, look, move |cause| {
            if cause == Cause::Readable {
                worker.kick.clear();
            }
            worker.look();
        })
    };
    let handler = match handler {
        Ok(handler) => handler,
        Err(error) => {
            worker.interrupts.needs_reset(&error);
            return;
        }
    };
    // The driver may have made requests available before there was anybody to hear the doorbell.
    worker.kick.ring();
    poll_fn(|cx| worker.poll(cx, &stop)).await;
    drop(handler);
    worker.closed.set(true);
    worker.opened.take();
    // What an error has halted would keep the queue until the machine goes on.
    worker.submitter.settle();
    poll_fn(|cx| worker.poll_idle(cx)).await;
    drop(worker);
    drop(stop);
}

impl Worker {
    /// The queue's task: everything that is not the doorbell's or a request's own business.
    fn poll(self: &Rc<Self>, cx: &mut Context<'_>, stop: &Stop) -> Poll<()> {
        stop.waker.register(cx.waker());
        if stop.requested.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.waker.borrow_mut().clone_from(cx.waker());
        if self.more.take() {
            self.look();
        }
        while self.gate_has_opened(cx) {
            self.look();
        }
        Poll::Pending
    }

    fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.borrow_mut().clone_from(cx.waker());
        if self.in_flight.get() == 0 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Whether a section that the ring waited for has ended just now.
    fn gate_has_opened(&self, cx: &mut Context<'_>) -> bool {
        let mut waiting = self.opened.borrow_mut();
        let Some(opened) = waiting.as_mut() else {
            return false;
        };
        let Poll::Ready(result) = Pin::new(opened).poll(cx) else {
            return false;
        };
        *waiting = None;
        // A destroyed gate never lets anything in again: the disk is gone, its ring stays as it is.
        result.is_ok()
    }

    fn wake(&self) {
        self.waker.borrow().wake_by_ref();
    }

    /// Whether the driver has made something available that may be popped. Costs two loads.
    fn has_work(&self) -> bool {
        let waits = self.closed.get() || self.opened.borrow().is_some();
        !waits && self.interrupts.may_access_memory() && self.ring.borrow().has_available()
    }

    /// Pops what the driver made available, as far as the disk's gate and fairness allow.
    fn look(self: &Rc<Self>) {
        let waits = self.closed.get() || self.opened.borrow().is_some();
        if waits || !self.interrupts.may_access_memory() {
            return;
        }
        if let Err(error) = self.pop_batch() {
            self.fail(&error);
        }
    }

    fn pop_batch(self: &Rc<Self>) -> Result<(), RingError> {
        let mut ring = self.ring.borrow_mut();
        let mut budget = ring.size();
        let mut expected = false;
        loop {
            ring.disable_kicks()?;
            let before = budget;
            while budget > 0 {
                let Some(token) = self.shared.disk.backend.try_enter() else {
                    *self.opened.borrow_mut() = Some(self.shared.disk.backend.opened());
                    self.wake();
                    return Ok(());
                };
                let Some(chain) = ring.pop()? else { break };
                let (operation, answer) = parse(&chain, ring.memory())?;
                ring.recycle(chain);
                self.start(operation, answer, token);
                budget -= 1;
            }
            if budget == 0 {
                self.more.set(true);
                self.wake();
                return Ok(());
            }
            // What was there, and is not, would let a driver keep the loop for as long as it likes.
            if expected && budget == before {
                return Err(RingError::Retreat);
            }
            expected = ring.enable_kicks()?;
            if !expected {
                return Ok(());
            }
        }
    }

    /// Runs one request as a task of its own.
    fn start(self: &Rc<Self>, operation: Operation, answer: Answer, token: Token) {
        self.count_in_flight(self.in_flight.get() + 1);
        let worker = Rc::clone(self);
        let span = tracing::trace_span!("request", queue = self.index, head = answer.head);
        let serve = async move {
            tracing::trace!(?operation, "enter");
            let in_flight = InFlight(&worker);
            let mut request = worker.submitter.request(token);
            let disk = &worker.shared.disk;
            let status = disk.execute(operation, worker.features, &mut request).await;
            in_flight.0.complete(&answer, status);
            drop(in_flight);
            // The driver's view is complete before the disk counts as idle.
            drop(request);
        };
        current::spawn_local(serve.instrument(span)).detach();
    }

    fn count_in_flight(&self, count: usize) {
        self.in_flight.set(count);
        // For those who ask from elsewhere.
        let shown = self.shared.in_flight.get(usize::from(self.index));
        if let Some(shown) = shown {
            shown.store(count, Ordering::Relaxed);
        }
    }

    fn complete(&self, answer: &Answer, status: RequestStatus) {
        if self.closed.get() {
            return;
        }
        let written = answer.give(status);
        tracing::trace!(?status, written, "complete");
        let pushed = self.ring.borrow_mut().push(answer.head, written);
        match pushed {
            Ok(()) => {
                self.notify.schedule();
            }
            Err(error) => self.fail(&error),
        }
    }

    /// One interrupt for all that was pushed, if the driver wants it.
    fn interrupt(&self) {
        if self.closed.get() {
            return;
        }
        let wanted = self.ring.borrow_mut().wants_interrupt();
        match wanted {
            Ok(true) => {
                tracing::trace!(queue = self.index, "notify");
                self.interrupts.queue(self.index);
            }
            Ok(false) => {}
            Err(error) => self.fail(&error),
        }
    }

    /// The driver broke the ring: it is left alone until a reset.
    fn fail(&self, error: &RingError) {
        if !self.closed.replace(true) {
            self.interrupts.needs_reset(error);
        }
    }
}

/// Counts a request as in flight, also if its task is cancelled or panics.
struct InFlight<'a>(&'a Worker);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let left = self.0.in_flight.get().saturating_sub(1);
        self.0.count_in_flight(left);
        if left == 0 && self.0.closed.get() {
            self.0.wake();
        }
    }
}
