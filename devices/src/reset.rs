//! What a machine reset means to a device.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// The rest of a reset: ready when the device has nothing in flight and is in its power-on state.
/// Polled in the main loop's context, so it need not be `Send`.
pub type Resetting = Pin<Box<dyn Future<Output = ()>>>;

/// A device that has to go back to its power-on state when the machine is reset.
///
/// The machine stops every vCPU, calls the hooks in the order in which the devices were added and
/// awaits each, on the main thread; only then it loads the kernel anew and lets the vCPUs run. So
/// a device that *settles* (finishes or cancels what is its own) before it clears its registers
/// never has a request in flight that could write into the new guest's memory.
pub trait ResetHook: Send + Sync {
    /// Settles the device, then puts it into the state it has after power-on. A device in another
    /// context does so there (`AioContext::call`); one with nothing in flight may do all of it at
    /// once and return [`settled`].
    fn reset(self: Arc<Self>) -> Resetting;
}

/// For devices whose reset is over when [`ResetHook::reset`] returns.
#[must_use]
pub fn settled() -> Resetting {
    Box::pin(std::future::ready(()))
}
