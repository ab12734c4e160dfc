//! [`Background`]: work of a driver that goes on when the request that began it has ended.
//!
//! A drained section waits for requests by the gates they came through; for such work it asks the
//! driver. Begun and ended in any loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_listener::Event;

/// Work of a driver that goes on when the request that began it has ended; a drained section waits for it.
#[derive(Debug, Default)]
pub struct Background {
    running: AtomicUsize,
    ended: Event,
}

impl Background {
    /// Counts one piece of work until what is returned is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::AcqRel);
        Running(Arc::clone(self))
    }

    /// How many pieces are running.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    /// Waits until none is.
    pub(crate) async fn wait_idle(&self) {
        while self.running() > 0 {
            let ended = self.ended.listen();
            if self.running() > 0 {
                ended.await;
            }
        }
    }
}

/// A piece of work that is running.
#[derive(Debug)]
pub(crate) struct Running(Arc<Background>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
        self.0.ended.notify(usize::MAX);
    }
}
