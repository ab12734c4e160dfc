//! Timers of one loop: deadlines on the loop's clock and who to wake.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Weak;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::event_loop::Local;

/// All timers of a loop, by deadline, then by age.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    by_deadline: BTreeMap<(Duration, u64), Waker>,
    next: u64,
}

impl Timers {
    fn insert(&mut self, deadline: Duration, waker: Waker) -> (Duration, u64) {
        self.next += 1;
        let key = (deadline, self.next);
        self.by_deadline.insert(key, waker);
        key
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.by_deadline
            .keys()
            .next()
            .map(|(deadline, _)| *deadline)
    }

    /// Removes and returns those whose time has come, earliest first.
    pub(crate) fn take_due(&mut self, now: Duration) -> Vec<Waker> {
        if self.next_deadline().is_none_or(|deadline| deadline > now) {
            return Vec::new();
        }
        let later = self.by_deadline.split_off(&(now, u64::MAX));
        std::mem::replace(&mut self.by_deadline, later)
            .into_values()
            .collect()
    }
}

/// Future of [`crate::current::sleep`]; it waits on the clock of the loop that made it.
pub struct Sleep {
    local: Weak<Local>,
    deadline: Duration,
    key: Option<(Duration, u64)>,
}

impl Sleep {
    pub(crate) fn until(local: Weak<Local>, deadline: Duration) -> Self {
        Self {
            local,
            deadline,
            key: None,
        }
    }

    fn unregister(&mut self) {
        if let (Some(key), Some(local)) = (self.key.take(), self.local.upgrade()) {
            // Dropped after the borrow: a waker's drop may drop a task with timers of its own.
            let waker = local.timers.borrow_mut().by_deadline.remove(&key);
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.unregister();
        let Some(local) = self.local.upgrade() else {
            // The loop is gone: nobody will ever wake us, so there is nothing to wait for.
            return Poll::Ready(());
        };
        if local.shared.clock().now() >= self.deadline {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let key = local.timers.borrow_mut().insert(self.deadline, waker);
        self.key = Some(key);
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
        self.unregister();
    }
}
