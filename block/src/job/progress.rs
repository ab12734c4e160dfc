//! How far a job has come: two counters that the job moves and anybody may read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Work done and work in total; bytes for all of today's jobs. Any thread.
///
/// The two are read one after the other, so a reader may see a total that is a little old, but
/// never less than what is done.
#[derive(Debug, Default)]
pub struct Progress {
    current: AtomicU64,
    remaining: AtomicU64,
}

impl Progress {
    /// Adds finished work.
    pub fn add_done(&self, amount: u64) {
        self.current.fetch_add(amount, Relaxed);
    }

    /// Says how much is left from now on.
    pub fn set_remaining(&self, amount: u64) {
        self.remaining.store(amount, Relaxed);
    }

    /// Adds work that turned up, as guest writes do during a mirror.
    pub fn add_remaining(&self, amount: u64) {
        self.remaining.fetch_add(amount, Relaxed);
    }

    /// Work done.
    #[must_use]
    pub fn current(&self) -> u64 {
        self.current.load(Relaxed)
    }

    /// Work in total.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.current().saturating_add(self.remaining.load(Relaxed))
    }
}
