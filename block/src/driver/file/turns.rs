//! [`Turns`]: how many worker threads looks at files may take.
//!
//! A look at a file system that hangs keeps its worker. With as many files there as a loop has workers, nothing else
//! that needs one would go on, a healthy disk with `aio=threads` among it.

use event_listener::Event;
use parking_lot::Mutex;

/// Those of all files; a loop has 64 workers if nobody says otherwise.
pub(super) static LOOKS: Turns = Turns::new(16);

/// So many may do something at once; others wait. Any thread.
#[derive(Debug)]
pub(super) struct Turns {
    free: Mutex<usize>,
    freed: Event,
}

impl Turns {
    pub(super) const fn new(count: usize) -> Self {
        Self {
            free: Mutex::new(count),
            freed: Event::new(),
        }
    }

    /// Waits for a turn, which lasts until what is returned is dropped.
    pub(super) async fn take(&self) -> Turn<'_> {
        loop {
            let freed = self.freed.listen();
            if let Some(turn) = self.try_take() {
                return turn;
            }
            freed.await;
        }
    }

    fn try_take(&self) -> Option<Turn<'_>> {
        let mut free = self.free.lock();
        *free = free.checked_sub(1)?;
        Some(Turn(self))
    }
}

/// A turn.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.freed.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn no_more_looks_than_there_are_turns_take_a_worker() {
        let turns = Turns::new(2);
        let first = turns.take().now_or_never().unwrap();
        let _second = turns.take().now_or_never().unwrap();
        let mut third = pin!(turns.take());
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_some());
    }
}
