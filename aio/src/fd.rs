//! File descriptors that a loop watches: handlers of devices, and tasks that wait for readiness.
//!
//! A handler is *external* (a guest's doorbell, an export's client) or *internal*. External ones
//! are held by the loop's gate: while it is closed they are not called, and not watched either, so
//! that a level-triggered descriptor does not spin the loop; when the gate opens they are watched
//! again and called if still ready.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
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

type Handler = Rc<RefCell<dyn FnMut()>>;

/// What happens when a descriptor is ready.
enum Action {
    Call {
        handler: Handler,
        source: Source,
        paused: Rc<Cell<bool>>,
    },
    Wake {
        waker: Waker,
        ready: Rc<Cell<bool>>,
    },
}

struct Entry {
    fd: RawFd,
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
        fd: RawFd,
        interest: epoll::Events,
        action: Action,
    ) -> io::Result<u64> {
        let mut table = local.fds.borrow_mut();
        table.generation = table.generation.wrapping_add(1);
        let generation = table.generation;
        let slot = table.entries.insert(Entry {
            fd,
            generation,
            interest,
            action,
        });
        let key = Self::key(slot, generation);
        let watched = watch(local, fd, interest, key);
        let refused = watched.is_err().then(|| table.entries.remove(slot));
        drop(table);
        drop(refused);
        watched.map(|()| key)
    }

    fn remove(local: &Local, key: u64) {
        let mut table = local.fds.borrow_mut();
        let Some(fd) = table.entry(key).map(|entry| entry.fd) else {
            return;
        };
        unwatch(local, fd);
        // `entry` found it, so the slot part of the key fits.
        let slot = usize::try_from(key & ((1 << SLOT_BITS) - 1)).unwrap_or(usize::MAX);
        let entry = table.entries.try_remove(slot);
        drop(table);
        // Only now: a handler may own other handlers, and a waker its task.
        drop(entry);
    }

    /// Drops all handlers, for the loop's end.
    pub(crate) fn clear(local: &Local) {
        loop {
            let entries = std::mem::take(&mut local.fds.borrow_mut().entries);
            if entries.is_empty() {
                return;
            }
            // Without the borrow: a handler may own its own registration.
            drop(entries);
        }
    }

    /// Serves one ready descriptor. The table is not borrowed while user code runs.
    pub(crate) fn dispatch(local: &Rc<Local>, key: u64, _events: u32) {
        let mut table = local.fds.borrow_mut();
        let Some(entry) = table.entry(key) else {
            return;
        };
        match &entry.action {
            Action::Wake { waker, ready } => {
                ready.set(true);
                let waker = waker.clone();
                drop(table);
                waker.wake();
            }
            Action::Call {
                handler,
                source,
                paused,
            } => {
                let (handler, source, paused) = (Rc::clone(handler), *source, Rc::clone(paused));
                let fd = entry.fd;
                drop(table);
                Self::call(local, key, fd, &handler, source, &paused);
            }
        }
    }

    fn call(
        local: &Rc<Local>,
        key: u64,
        fd: RawFd,
        handler: &Handler,
        source: Source,
        paused: &Rc<Cell<bool>>,
    ) {
        let gate = local.shared.gate();
        let token = match source {
            Source::Internal => None,
            Source::External => match gate.try_enter() {
                Some(token) => Some(token),
                None => {
                    if !paused.replace(true) {
                        unwatch(local, fd);
                        let opened = gate.opened();
                        let paused = Rc::clone(paused);
                        current::spawn_local(async move {
                            if opened.await.is_ok() {
                                paused.set(false);
                                current::with(|local| Self::rewatch(local, key));
                            }
                        })
                        .detach();
                    }
                    return;
                }
            },
        };
        // A handler can't be called from within itself: dispatch happens only in the loop.
        if let Ok(mut handler) = handler.try_borrow_mut() {
            event_loop::guarded(local.shared.name(), "an fd handler", &mut *handler);
        }
        drop(token);
    }

    fn rewatch(local: &Local, key: u64) {
        let mut table = local.fds.borrow_mut();
        if let Some(entry) = table.entry(key) {
            let (fd, interest) = (entry.fd, entry.interest);
            if let Err(error) = watch(local, fd, interest, key) {
                tracing::error!(%error, fd, "a device's event fd can't be watched again");
            }
        }
    }
}

fn watch(local: &Local, fd: RawFd, interest: epoll::Events, key: u64) -> io::Result<()> {
    let event = epoll::Event::new(interest, key);
    epoll::ctl(
        local.epoll.as_raw_fd(),
        epoll::ControlOptions::EPOLL_CTL_ADD,
        fd,
        event,
    )
}

fn unwatch(local: &Local, fd: RawFd) {
    let event = epoll::Event::new(epoll::Events::empty(), 0);
    // It may be unwatched already (a paused handler that is dropped): nothing to do then.
    drop(epoll::ctl(
        local.epoll.as_raw_fd(),
        epoll::ControlOptions::EPOLL_CTL_DEL,
        fd,
        event,
    ));
}

/// A watched descriptor with its handler; dropping it (in the loop's thread) removes it.
pub struct FdHandler {
    local: Weak<Local>,
    key: u64,
    _fd: Arc<OwnedFd>,
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

/// See [`current::add_fd`].
pub(crate) fn add_fd(
    local: &Rc<Local>,
    fd: Arc<OwnedFd>,
    source: Source,
    handler: impl FnMut() + 'static,
) -> io::Result<FdHandler> {
    let action = Action::Call {
        handler: Rc::new(RefCell::new(handler)),
        source,
        paused: Rc::new(Cell::new(false)),
    };
    let key = FdTable::insert(local, fd.as_raw_fd(), epoll::Events::EPOLLIN, action)?;
    Ok(FdHandler {
        local: Rc::downgrade(local),
        key,
        _fd: fd,
    })
}

/// Future of [`current::readable`] and [`current::writable`].
pub struct Readiness {
    /// A duplicate: several tasks may wait for the same descriptor, but epoll takes each only once.
    fd: Option<OwnedFd>,
    error: Option<io::Error>,
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
        let (fd, error) = match fd.as_fd().try_clone_to_owned() {
            Ok(fd) => (Some(fd), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            fd,
            error,
            interest,
            ready: Rc::new(Cell::new(false)),
            registration: None,
        }
    }

    fn unregister(&mut self) {
        if let Some((local, key)) = self.registration.take()
            && let Some(local) = local.upgrade()
        {
            FdTable::remove(&local, key);
        }
    }
}

impl Future for Readiness {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Err(error));
        }
        if self.ready.get() {
            return Poll::Ready(Ok(()));
        }
        let Some(fd) = self.fd.as_ref().map(AsRawFd::as_raw_fd) else {
            return Poll::Ready(Ok(()));
        };
        self.unregister();
        let action = Action::Wake {
            waker: cx.waker().clone(),
            ready: Rc::clone(&self.ready),
        };
        let interest = self.interest | epoll::Events::EPOLLONESHOT;
        let registered = current::with(|local| {
            FdTable::insert(local, fd, interest, action).map(|key| (Rc::downgrade(local), key))
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
        self.unregister();
    }
}
