//! File descriptors that a loop watches: handlers of devices, and tasks that wait for readiness.
//!
//! A handler is *external* (a guest's doorbell, an export's client) or *internal*. External ones
//! are held by the loop's gate: while it is closed they are not called, and not watched either, so
//! that a level-triggered descriptor does not spin the loop; when the gate opens they are watched
//! again and called if still ready.
//!
//! # Whose descriptors
//! The loop watches a duplicate of its own. So the same descriptor may be watched by several, its
//! owner may close it without a word, and a number that is used again for another file is nobody's
//! confusion: a handler stays with the file it was made for until it is dropped. (The file stays
//! open as long: who wants the other end to see it closed must drop the handler.)
//!
//! # Handlers that can be asked
//! A handler may come with a *look*: a closure that says without any system call whether there is
//! work, for example because a ring's index has moved. While the loop polls
//! ([`crate::polling::Polling`]) it asks all of them in turn, and calls those which say yes.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::current;
use crate::event_loop::{self, Local};

/// Where work that arrives at a file descriptor comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From outside the block layer: held back while the loop's gate is closed.
    External,
    /// The loop's own business: always served.
    Internal,
}

/// Why a handler is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its descriptor is readable.
    Readable,
    /// Its look said that there is work. The descriptor may be readable as well, or become so.
    Looked,
}

/// A handler with what is known about it.
struct Watched {
    handler: RefCell<Box<dyn FnMut(Cause)>>,
    look: Option<RefCell<Box<dyn FnMut() -> bool>>>,
    source: Source,
    /// Held back by the gate: neither watched nor asked.
    paused: Cell<bool>,
}

/// What happens when a descriptor is ready.
enum Action {
    Call(Rc<Watched>),
    Wake { waker: Waker, ready: Rc<Cell<bool>> },
}

struct Entry {
    fd: OwnedFd,
    generation: u32,
    interest: epoll::Events,
    action: Action,
}

/// The descriptors of one loop. Keys carry a generation, so an event that was fetched before its
/// descriptor was removed finds nobody.
#[derive(Default)]
pub(crate) struct FdTable {
    entries: Slab<Entry>,
    generation: u32,
    /// Those that can be asked.
    lookers: Vec<(u64, Rc<Watched>)>,
}

const SLOT_BITS: u32 = 31;

impl FdTable {
    fn key(slot: usize, generation: u32) -> u64 {
        // Slots are far fewer than 2^31: there are not as many descriptors.
        (u64::from(generation) << SLOT_BITS) | (slot as u64)
    }

    fn entry(&mut self, key: u64) -> Option<&mut Entry> {
        let slot = usize::try_from(key & ((1 << SLOT_BITS) - 1)).ok()?;
        let generation = u32::try_from(key >> SLOT_BITS).ok()?;
        self.entries
            .get_mut(slot)
            .filter(|entry| entry.generation == generation)
    }

    fn insert(
        local: &Local,
        fd: OwnedFd,
        interest: epoll::Events,
        action: Action,
    ) -> io::Result<u64> {
        let mut table = local.fds.borrow_mut();
        table.generation = table.generation.wrapping_add(1);
        let generation = table.generation;
        let looker = match &action {
            Action::Call(watched) if watched.look.is_some() => Some(Rc::clone(watched)),
            _ => None,
        };
        let slot = table.entries.insert(Entry {
            fd,
            generation,
            interest,
            action,
        });
        let key = Self::key(slot, generation);
        let operation = epoll::ControlOptions::EPOLL_CTL_ADD;
        let watched = control(local, operation, &table.entries[slot].fd, interest, key);
        let refused = if watched.is_err() {
            Some(table.entries.remove(slot))
        } else {
            table.lookers.extend(looker.map(|looker| (key, looker)));
            None
        };
        drop(table);
        drop(refused);
        watched.map(|()| key)
    }

    fn remove(local: &Local, key: u64) {
        let mut table = local.fds.borrow_mut();
        let Some(entry) = table.entry(key) else {
            return;
        };
        let nothing = epoll::Events::empty();
        // Nothing to be done if it fails: the kernel forgets the descriptor when it is closed.
        let _ = control(
            local,
            epoll::ControlOptions::EPOLL_CTL_DEL,
            &entry.fd,
            nothing,
            key,
        );
        // `entry` found it, so the slot part of the key fits.
        let slot = usize::try_from(key & ((1 << SLOT_BITS) - 1)).unwrap_or(usize::MAX);
        let entry = table.entries.try_remove(slot);
        let looker = table.lookers.iter().position(|(other, _)| *other == key);
        let looker = looker.map(|index| table.lookers.swap_remove(index));
        drop(table);
        // Only now: a handler may own other handlers, and a waker its task.
        drop((entry, looker));
    }

    /// Drops all handlers, for the loop's end; true if there were any.
    pub(crate) fn clear(local: &Local) -> bool {
        let mut table = local.fds.borrow_mut();
        let entries = std::mem::take(&mut table.entries);
        let lookers = std::mem::take(&mut table.lookers);
        drop(table);
        // Without the borrow: a handler may own its own registration. The lookers hold the same
        // handlers, which are dropped with the entries, one by one.
        drop(lookers);
        let any = !entries.is_empty();
        for (_, entry) in entries {
            match entry.action {
                // A task of this loop is gone by now; one of another is told that nothing will come.
                Action::Wake { waker, .. } => event_loop::wake_each(local.shared.name(), [waker]),
                Action::Call(watched) => {
                    event_loop::drop_each(local.shared.name(), [watched]);
                }
            }
        }
        any
    }

    /// Asks all handlers that can be asked; appends the keys of those that have work to `found`. One whose
    /// look panics is not asked or called again.
    pub(crate) fn look(local: &Local, found: &mut Vec<u64>) {
        let mut index = 0;
        loop {
            // Not borrowed while foreign code runs.
            let looker = match local.fds.borrow().lookers.get(index) {
                Some((key, watched)) if !watched.paused.get() => Some((*key, Rc::clone(watched))),
                Some(_) => None,
                None => return,
            };
            index += 1;
            let Some((key, watched)) = looker else {
                continue;
            };
            let name = local.shared.name();
            let asked = event_loop::guarded(name, "a look", || {
                if let Some(look) = &watched.look
                    && let Ok(mut look) = look.try_borrow_mut()
                    && (*look)()
                {
                    found.push(key);
                }
            });
            if !asked {
                Self::remove(local, key);
                // Another may be in its place now.
                index -= 1;
            }
            event_loop::release(name, "an fd handler", watched);
        }
    }

    /// Serves one ready descriptor. The table is not borrowed while user code runs.
    pub(crate) fn dispatch(local: &Rc<Local>, key: u64, cause: Cause) {
        let mut table = local.fds.borrow_mut();
        let Some(entry) = table.entry(key) else {
            return;
        };
        local.shared.counters().fd_dispatches.bump();
        match &entry.action {
            Action::Wake { waker, ready } => {
                ready.set(true);
                let waker = waker.clone();
                drop(table);
                event_loop::guarded(local.shared.name(), "a waker", || waker.wake());
            }
            Action::Call(watched) => {
                let watched = Rc::clone(watched);
                drop(table);
                Self::call(local, key, &watched, cause);
                // It may have removed itself.
                event_loop::release(local.shared.name(), "an fd handler", watched);
            }
        }
    }

    fn call(local: &Rc<Local>, key: u64, watched: &Watched, cause: Cause) {
        let gate = local.shared.gate();
        let token = match watched.source {
            Source::Internal => None,
            Source::External => match gate.try_enter() {
                Some(token) => Some(token),
                None => {
                    if !watched.paused.replace(true) {
                        Self::pause(local, key);
                        let opened = gate.opened();
                        current::spawn_local(async move {
                            if opened.await.is_ok() {
                                current::with(|local| Self::resume(local, key));
                            }
                        })
                        .detach();
                    }
                    return;
                }
            },
        };
        tracing::trace!(loop_name = local.shared.name(), key, ?cause, "kick");
        // A handler can't be called from within itself: dispatch happens only in the loop.
        if let Ok(mut handler) = watched.handler.try_borrow_mut() {
            let name = local.shared.name();
            let done = event_loop::guarded(name, "an fd handler", || (*handler)(cause));
            drop(handler);
            if !done {
                // Its descriptor may be ready as before, and would be for ever.
                Self::remove(local, key);
            }
        }
        drop(token);
    }

    /// Watches for nothing but what the kernel insists on (errors, a hang-up), and for that once.
    fn pause(local: &Local, key: u64) {
        Self::change_interest(local, key, epoll::Events::EPOLLONESHOT);
    }

    fn resume(local: &Local, key: u64) {
        let mut table = local.fds.borrow_mut();
        if let Some(entry) = table.entry(key) {
            if let Action::Call(watched) = &entry.action {
                watched.paused.set(false);
            }
            let interest = entry.interest;
            drop(table);
            Self::change_interest(local, key, interest);
        }
    }

    fn change_interest(local: &Local, key: u64, interest: epoll::Events) {
        let mut table = local.fds.borrow_mut();
        if let Some(entry) = table.entry(key) {
            let operation = epoll::ControlOptions::EPOLL_CTL_MOD;
            if let Err(error) = control(local, operation, &entry.fd, interest, key) {
                tracing::error!(%error, key, "a descriptor can't be watched as it should");
            }
        }
    }
}

fn control(
    local: &Local,
    operation: epoll::ControlOptions,
    fd: &OwnedFd,
    interest: epoll::Events,
    key: u64,
) -> io::Result<()> {
    let event = epoll::Event::new(interest, key);
    epoll::ctl(local.epoll.as_raw_fd(), operation, fd.as_raw_fd(), event)
}

/// A watched descriptor with its handler; dropping it (in the loop's thread) removes it.
pub struct FdHandler {
    local: Weak<Local>,
    key: u64,
}

impl std::fmt::Debug for FdHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FdHandler({:#x})", self.key)
    }
}

impl Drop for FdHandler {
    fn drop(&mut self) {
        if let Some(local) = self.local.upgrade() {
            FdTable::remove(&local, self.key);
        }
    }
}

/// See [`current::add_fd`] and [`current::add_fd_with_look`].
pub(crate) fn add_fd(
    local: &Rc<Local>,
    fd: &impl AsFd,
    source: Source,
    look: Option<Box<dyn FnMut() -> bool>>,
    handler: Box<dyn FnMut(Cause)>,
) -> io::Result<FdHandler> {
    let action = Action::Call(Rc::new(Watched {
        handler: RefCell::new(handler),
        look: look.map(RefCell::new),
        source,
        paused: Cell::new(false),
    }));
    let fd = fd.as_fd().try_clone_to_owned()?;
    let key = FdTable::insert(local, fd, epoll::Events::EPOLLIN, action)?;
    Ok(FdHandler {
        local: Rc::downgrade(local),
        key,
    })
}

/// Future of [`current::readable`] and [`current::writable`].
pub struct Readiness {
    /// The duplicate to watch, until it is watched; or why there is none.
    fd: Option<io::Result<OwnedFd>>,
    interest: epoll::Events,
    ready: Rc<Cell<bool>>,
    /// Where it is registered: the loop in which it was polled, and the key there.
    registration: Option<(Weak<Local>, u64)>,
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readiness")
            .field("interest", &self.interest)
            .finish_non_exhaustive()
    }
}

impl Readiness {
    pub(crate) fn new(fd: &impl AsFd, interest: epoll::Events) -> Self {
        Self {
            fd: Some(fd.as_fd().try_clone_to_owned()),
            interest,
            ready: Rc::new(Cell::new(false)),
            registration: None,
        }
    }

    /// Makes the registration wake `waker`; false if there is no such registration any more.
    fn rewake(&self, waker: &Waker) -> bool {
        let Some((local, key)) = &self.registration else {
            return false;
        };
        let Some(local) = local.upgrade() else {
            return false;
        };
        let mut table = local.fds.borrow_mut();
        let Some(entry) = table.entry(*key) else {
            return false;
        };
        let Action::Wake { waker: old, .. } = &mut entry.action else {
            return false;
        };
        let old = std::mem::replace(old, waker.clone());
        drop(table);
        // After the borrow: it may have been the last hold on a task with descriptors of its own.
        drop(old);
        true
    }
}

impl Future for Readiness {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.ready.get() {
            return Poll::Ready(Ok(()));
        }
        let Some(fd) = self.fd.take() else {
            return if self.rewake(cx.waker()) {
                Poll::Pending
            } else {
                // The loop is gone, or an error was reported already.
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            };
        };
        let action = Action::Wake {
            waker: cx.waker().clone(),
            ready: Rc::clone(&self.ready),
        };
        let interest = self.interest | epoll::Events::EPOLLONESHOT;
        let registered = fd.and_then(|fd| {
            current::with(|local| {
                FdTable::insert(local, fd, interest, action).map(|key| (Rc::downgrade(local), key))
            })
        });
        match registered {
            Ok(registration) => {
                self.registration = Some(registration);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        if let Some((local, key)) = self.registration.take()
            && let Some(local) = local.upgrade()
        {
            FdTable::remove(&local, key);
        }
    }
}
