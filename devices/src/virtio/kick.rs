//! A queue's doorbell: the eventfd that a guest's notification signals.
//!
//! Signalled by the kernel (ioeventfd) or from vCPU threads; read by the loop that serves the
//! queue.

#![expect(
    unsafe_code,
    reason = "an EventFd can be turned into an OwnedFd only through its number"
)]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An eventfd in the two shapes it is needed in.
pub struct Kick {
    event: EventFd,
    /// A duplicate for the event loop.
    watched: Arc<OwnedFd>,
}

impl Kick {
    /// A new doorbell.
    ///
    /// # Errors
    /// No file descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let duplicate = event.try_clone()?.into_raw_fd();
        // SAFETY: `into_raw_fd` has just given up the ownership of this open descriptor.
        let watched = Arc::new(unsafe { OwnedFd::from_raw_fd(duplicate) });
        Ok(Self { event, watched })
    }

    /// For binding it to a guest store.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// For watching it in an event loop.
    pub fn watched(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.watched)
    }

    /// Rings it. Any thread; never waits.
    pub fn ring(&self) {
        // The write fails only when the counter is full, and then the doorbell has been rung
        // already.
        let _ = self.event.write(1);
    }

    /// Forgets the rings so far.
    pub fn clear(&self) {
        // The read fails only when nobody has rung.
        let _ = self.event.read();
    }
}
