//! The tasks of a loop, and [`JoinHandle`], their owner's end.
//!
//! One task is started per request, so a task costs no allocation in steady state: its future and
//! result are in pooled memory, its place in the loop's table and its ticket are used again.
//!
//! A task lives in its loop's table and never leaves the loop's thread. What other threads get of it
//! is a waker, which is a reference to a ticket: the task's place and number. Waking puts the
//! ticket into the loop's queue; a ticket whose task is gone means nothing. So there is nothing to
//! synchronise but whether it is queued, and nothing unsafe here.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::future::MaybeDone;
use futures_util::task::{ArcWake, waker_ref};
use slab::Slab;

use crate::context::{Remote, Shared};
use crate::current;
use crate::event_loop::{self, Local};
use crate::gate::Cancelled;
use crate::pooled::Pooled;
use crate::queued::Queued;

/// A future together with the place for its result.
pub(crate) trait Work {
    /// Goes on; the result stays inside.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()>;

    /// Moves the result into `place`, an `Option` of its type.
    fn take_result(self: Pin<&mut Self>, place: &mut dyn Any);
}

impl<F: Future<Output: 'static>> Work for MaybeDone<F> {
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self, cx)
    }

    fn take_result(self: Pin<&mut Self>, place: &mut dyn Any) {
        if let Some(place) = place.downcast_mut::<Option<F::Output>>() {
            *place = self.take_output();
        }
    }
}

/// Which task of its loop: where it is in the table, and a number that no other task ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    slot: usize,
    number: u64,
}

/// What a waker holds: the way to a task.
pub(crate) struct Ticket {
    home: std::sync::Weak<Shared>,
    id: Id,
    /// In a queue of the loop, so that it need not be put there again.
    queued: Queued,
}

impl ArcWake for Ticket {
    fn wake(self: Arc<Self>) {
        if self.queued.ask() {
            self.enqueue();
        }
    }

    fn wake_by_ref(ticket: &Arc<Self>) {
        if ticket.queued.ask() {
            Arc::clone(ticket).enqueue();
        }
    }
}

impl Ticket {
    fn enqueue(self: Arc<Self>) {
        let mut ticket = Some(self);
        current::with_if_any(|local| {
            let home = ticket.as_ref().map(|ticket| ticket.home.as_ptr());
            if home == Some(Arc::as_ptr(&local.shared)) {
                local.ready.borrow_mut().extend(ticket.take());
            }
        });
        if let Some(ticket) = ticket
            && let Some(home) = ticket.home.upgrade()
        {
            home.push(Remote::Task(ticket));
        }
    }
}

enum Stage {
    /// Waits to be woken, or for its turn.
    Resting(Pooled<dyn Work>),
    /// Being polled; the loop's step holds the work.
    Running,
    /// Holds its result, for the owner.
    Done(Pooled<dyn Work>),
}

struct Task {
    number: u64,
    stage: Stage,
    /// A [`JoinHandle`] exists: the result is wanted.
    owned: bool,
    /// To be dropped instead of polled.
    cancelled: bool,
    /// Who waits for the result.
    waiter: Option<Waker>,
}

/// The tickets kept for use again: as many tasks may start at once without allocating.
const SPARE_TICKETS: usize = 1024;

/// All tasks of a loop.
#[derive(Default)]
pub(crate) struct Tasks {
    table: Slab<Task>,
    next_number: u64,
    /// Of ended tasks, perhaps still referred to by forgotten wakers.
    spare: Vec<Arc<Ticket>>,
}

impl Tasks {
    fn get(&mut self, id: Id) -> Option<&mut Task> {
        let task = self.table.get_mut(id.slot);
        task.filter(|task| task.number == id.number)
    }

    fn remove(&mut self, id: Id) -> Option<Task> {
        self.get(id)?;
        self.table.try_remove(id.slot)
    }

    fn add(&mut self, work: Pooled<dyn Work>) -> Id {
        let number = self.next_number;
        self.next_number += 1;
        let slot = self.table.insert(Task {
            number,
            stage: Stage::Resting(work),
            owned: true,
            cancelled: false,
            waiter: None,
        });
        Id { slot, number }
    }

    /// A ticket for `id`, marked as queued.
    fn ticket(&mut self, id: Id, home: &Arc<Shared>) -> Arc<Ticket> {
        while let Some(mut ticket) = self.spare.pop() {
            // One that a waker still refers to is left to that waker.
            if let Some(unshared) = Arc::get_mut(&mut ticket) {
                unshared.id = id;
                unshared.queued = Queued::yes();
                return ticket;
            }
        }
        Arc::new(Ticket {
            home: Arc::downgrade(home),
            id,
            queued: Queued::yes(),
        })
    }

    fn keep(&mut self, ticket: Arc<Ticket>) {
        if self.spare.len() < SPARE_TICKETS {
            self.spare.push(ticket);
        }
    }
}

/// Starts a task in the current loop; it is polled first in the loop's next step.
pub(crate) fn spawn<T: 'static>(
    local: &Rc<Local>,
    future: impl Future<Output = T> + 'static,
) -> JoinHandle<T> {
    let work = Pooled::work(MaybeDone::Future(future));
    let mut handle = JoinHandle {
        local: Weak::new(),
        id: Id { slot: 0, number: 0 },
        result: PhantomData,
    };
    if local.shutting_down.get() {
        // Cancelled before it begins.
        drop(work);
        return handle;
    }
    let mut tasks = local.tasks.borrow_mut();
    handle.id = tasks.add(work);
    let ticket = tasks.ticket(handle.id, &local.shared);
    drop(tasks);
    local.ready.borrow_mut().push_back(ticket);
    handle.local = Rc::downgrade(local);
    handle
}

/// Polls the task that `ticket` leads to. A panic of the task goes through, and ends it.
pub(crate) fn run(local: &Local, ticket: Arc<Ticket>) {
    if !ticket.queued.begin() {
        return;
    }
    let id = ticket.id;
    let Some((work, cancelled)) = local.tasks.borrow_mut().get(id).and_then(Task::begin) else {
        return;
    };
    let running = Running { local, id };
    // Declared after `running`, so that a panic drops the work before anybody is told.
    let mut work = work;
    if cancelled {
        drop(work);
        return;
    }
    let polled = {
        let waker = waker_ref(&ticket);
        work.as_mut().poll(&mut Context::from_waker(&waker))
    };
    let mut work = Some(work);
    let mut waiter = None;
    if let Some(task) = local.tasks.borrow_mut().get(id) {
        match polled {
            Poll::Pending if !task.cancelled => {
                task.stage = work.take().map_or(Stage::Running, Stage::Resting);
            }
            Poll::Ready(()) if task.owned => {
                task.stage = work.take().map_or(Stage::Running, Stage::Done);
                waiter = task.waiter.take();
            }
            _ => {}
        }
    }
    if work.is_none() {
        // It stays in the table.
        std::mem::forget(running);
    } else {
        drop(work);
        drop(running);
    }
    if polled.is_ready() {
        local.tasks.borrow_mut().keep(ticket);
    }
    if let Some(waiter) = waiter {
        waiter.wake();
    }
}

impl Task {
    /// Takes the work out to be polled or, if `true`, to be dropped.
    fn begin(&mut self) -> Option<(Pooled<dyn Work>, bool)> {
        match std::mem::replace(&mut self.stage, Stage::Running) {
            Stage::Resting(work) => Some((work, self.cancelled)),
            other => {
                self.stage = other;
                None
            }
        }
    }
}

/// Removes a task that ends without a result, also when it panics, and tells who waits for it.
struct Running<'a> {
    local: &'a Local,
    id: Id,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let task = self.local.tasks.borrow_mut().remove(self.id);
        // This may be the unwinding of a panic already.
        let waiter = task.and_then(|task| task.waiter);
        event_loop::wake_each(self.local.shared.name(), waiter);
    }
}

/// Drops all tasks, in this thread; returns whether there were any.
pub(crate) fn drop_all(local: &Local) -> bool {
    let table = std::mem::take(&mut local.tasks.borrow_mut().table);
    let any = !table.is_empty();
    for (_, task) in table {
        event_loop::guarded(local.shared.name(), "a cancelled task", || drop(task.stage));
        event_loop::wake_each(local.shared.name(), task.waiter);
    }
    any
}

/// Waits for a task's result, in the task's loop. Dropping the handle detaches the task: it runs on.
pub struct JoinHandle<T> {
    /// Empty when there is nothing to wait for any more.
    local: Weak<Local>,
    id: Id,
    result: PhantomData<fn() -> T>,
}

impl<T> JoinHandle<T> {
    /// Lets the task run on without anybody waiting for it.
    pub fn detach(self) {
        drop(self);
    }

    /// Stops the task: its future is dropped in its loop's next step.
    pub fn cancel(self) {
        let Some(local) = self.local.upgrade() else {
            return;
        };
        let mut tasks = local.tasks.borrow_mut();
        let Some(task) = tasks.get(self.id) else {
            return;
        };
        task.cancelled = true;
        // The step that polls it, if it is that, sees the mark; and a second ticket does no harm.
        let ticket = tasks.ticket(self.id, &local.shared);
        drop(tasks);
        ticket.enqueue();
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        let Some(local) = self.local.upgrade() else {
            return;
        };
        let mut tasks = local.tasks.borrow_mut();
        let Some(task) = tasks.get(self.id) else {
            return;
        };
        task.owned = false;
        let waiter = task.waiter.take();
        let unwanted = match task.stage {
            Stage::Done(_) => tasks.remove(self.id),
            _ => None,
        };
        drop(tasks);
        drop((unwanted, waiter));
    }
}

impl<T: 'static> Future for JoinHandle<T> {
    type Output = Result<T, Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(local) = self.local.upgrade() else {
            return Poll::Ready(Err(Cancelled));
        };
        let mut tasks = local.tasks.borrow_mut();
        if let Some(task) = tasks.get(self.id)
            && !matches!(task.stage, Stage::Done(_))
        {
            let before = task.waiter.replace(cx.waker().clone());
            drop(tasks);
            drop(before);
            return Poll::Pending;
        }
        let ended = tasks.remove(self.id);
        drop(tasks);
        self.local = Weak::new();
        let mut result = None;
        // No result: the task panicked, was cancelled, or was dropped with its loop.
        if let Some(Task {
            stage: Stage::Done(mut work),
            ..
        }) = ended
        {
            work.as_mut().take_result(&mut result);
        }
        Poll::Ready(result.ok_or(Cancelled))
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JoinHandle").field(&self.id).finish()
    }
}
