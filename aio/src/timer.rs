//! Timers of one loop: deadlines on the loop's clock and who to wake.
//!
//! A heap of deadlines and a table of sleepers, both of which keep their memory: a timer that is set
//! and dropped with every request allocates nothing. Used only by the loop's thread.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Weak;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use crate::event_loop::Local;

/// A timer of a loop: its number, by which equal deadlines are ordered, and its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerKey {
    number: u64,
    slot: usize,
}

/// All timers of a loop, by deadline, then by age.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// Entries of timers that were dropped stay until they come to the front or are too many.
    queue: BinaryHeap<Reverse<(Duration, TimerKey)>>,
    sleepers: Slab<(u64, Waker)>,
    made: u64,
}

/// So many entries of dropped timers are not worth cleaning up.
const FEW: usize = 64;

impl Timers {
    fn insert(&mut self, deadline: Duration, waker: Waker) -> TimerKey {
        self.made += 1;
        let number = self.made;
        let slot = self.sleepers.insert((number, waker));
        let key = TimerKey { number, slot };
        self.queue.push(Reverse((deadline, key)));
        key
    }

    fn sleeper(&mut self, key: TimerKey) -> Option<&mut Waker> {
        match self.sleepers.get_mut(key.slot) {
            Some((number, waker)) if *number == key.number => Some(waker),
            _ => None,
        }
    }

    fn remove(&mut self, key: TimerKey) -> Option<Waker> {
        self.sleeper(key)?;
        let (_, waker) = self.sleepers.remove(key.slot);
        if self.queue.len() > 2 * self.sleepers.len() + FEW {
            let sleepers = &self.sleepers;
            self.queue
                .retain(|Reverse((_, key))| is_alive(sleepers, *key));
        }
        Some(waker)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sleepers.is_empty()
    }

    /// When the first one is due.
    pub(crate) fn next_deadline(&mut self) -> Option<Duration> {
        while let Some(Reverse((deadline, key))) = self.queue.peek() {
            if is_alive(&self.sleepers, *key) {
                return Some(*deadline);
            }
            self.queue.pop();
        }
        None
    }

    /// Removes those whose time has come, earliest first, and appends them to `due`.
    pub(crate) fn take_due(&mut self, now: Duration, due: &mut Vec<Waker>) {
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let Some(Reverse((_, key))) = self.queue.pop() else {
                return;
            };
            let (_, waker) = self.sleepers.remove(key.slot);
            due.push(waker);
        }
    }
}

fn is_alive(sleepers: &Slab<(u64, Waker)>, key: TimerKey) -> bool {
    sleepers
        .get(key.slot)
        .is_some_and(|(number, _)| *number == key.number)
}

/// Future of [`crate::current::sleep`]; it waits on the clock of the loop that made it.
///
/// It is never ready at once, also if its deadline is past: it is then in the loop's next turn.
/// So a task that sleeps without end for no time lets the others run.
pub struct Sleep {
    local: Weak<Local>,
    deadline: Duration,
    key: Option<TimerKey>,
}

impl Sleep {
    pub(crate) fn until(local: Weak<Local>, deadline: Duration) -> Self {
        Self {
            local,
            deadline,
            key: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(local) = self.local.upgrade() else {
            // The loop is gone: nobody will ever wake us, so there is nothing to wait for.
            return Poll::Ready(());
        };
        let mut timers = local.timers.borrow_mut();
        let Some(key) = self.key else {
            self.key = Some(timers.insert(self.deadline, cx.waker().clone()));
            return Poll::Pending;
        };
        let Some(waker) = timers.sleeper(key) else {
            // It has fired.
            return Poll::Ready(());
        };
        if waker.will_wake(cx.waker()) {
            return Poll::Pending;
        }
        let old = std::mem::replace(waker, cx.waker().clone());
        drop(timers);
        // After the borrow: a waker's drop may drop a task with timers of its own.
        drop(old);
        Poll::Pending
    }
}

impl std::fmt::Debug for Sleep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sleep(until {:?})", self.deadline)
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let (Some(key), Some(local)) = (self.key.take(), self.local.upgrade()) {
            let waker = local.timers.borrow_mut().remove(key);
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_timers_do_not_pile_up() {
        let mut timers = Timers::default();
        let kept = timers.insert(Duration::from_secs(1), Waker::noop().clone());
        for seconds in 0..10_000 {
            let deadline = Duration::from_secs(2 + seconds);
            let key = timers.insert(deadline, Waker::noop().clone());
            assert!(timers.remove(key).is_some());
            assert!(timers.remove(key).is_none(), "removed twice");
        }
        assert!(timers.queue.len() <= FEW + 3, "{}", timers.queue.len());
        assert_eq!(timers.next_deadline(), Some(Duration::from_secs(1)));
        timers.remove(kept);
        assert_eq!(timers.next_deadline(), None);
        assert!(timers.queue.is_empty() && timers.is_empty());
    }

    #[test]
    fn a_slot_that_is_used_again_is_not_the_old_timer() {
        let mut timers = Timers::default();
        let old = timers.insert(Duration::from_secs(1), Waker::noop().clone());
        timers.remove(old);
        let new = timers.insert(Duration::from_secs(5), Waker::noop().clone());
        assert_eq!(old.slot, new.slot);
        assert!(timers.sleeper(old).is_none());
        let mut due = Vec::new();
        timers.take_due(Duration::from_secs(3), &mut due);
        assert!(due.is_empty(), "the old deadline is nobody's");
        timers.take_due(Duration::from_secs(5), &mut due);
        assert_eq!(due.len(), 1);
    }
}
