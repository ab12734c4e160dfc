//! [`Room`]: so much of something, for all that ask; who finds too little left waits.

use event_listener::Event;
use parking_lot::Mutex;

/// See the [module](self). Any thread.
#[derive(Debug)]
pub(crate) struct Room {
    left: Mutex<u64>,
    freed: Event,
}

impl Room {
    /// Of this much.
    pub(crate) const fn new(size: u64) -> Self {
        Self {
            left: Mutex::new(size),
            freed: Event::new(),
        }
    }

    /// Waits until there is room for `amount`, which must not be more than all; it is given back when what is returned is
    /// dropped.
    pub(crate) async fn take(&self, amount: u64) -> Taken<'_> {
        loop {
            // Most find room, and pay nothing for those who wait.
            if let Some(taken) = self.try_take(amount) {
                return taken;
            }
            let freed = self.freed.listen();
            if let Some(taken) = self.try_take(amount) {
                return taken;
            }
            freed.await;
        }
    }

    fn try_take(&self, amount: u64) -> Option<Taken<'_>> {
        let mut left = self.left.lock();
        *left = left.checked_sub(amount)?;
        drop(left);
        Some(Taken { room: self, amount })
    }
}

/// See [`Room::take`].
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    room: &'a Room,
    amount: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.room.left.lock() += self.amount;
        self.room.freed.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn who_finds_no_room_waits_for_it() {
        let turns = Room::new(2);
        let first = turns.take(1).now_or_never().unwrap();
        let _second = turns.take(1).now_or_never().unwrap();
        let mut third = pin!(turns.take(1));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_some());
    }
}
