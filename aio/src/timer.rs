//! Timers of one loop: deadlines on the loop's clock and who to wake.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::current;

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

/// Future of [`current::sleep`]; must be polled in the loop whose clock it was made for.
#[derive(Debug)]
pub struct Sleep {
    deadline: Duration,
    key: Option<(Duration, u64)>,
}

impl Sleep {
    pub(crate) fn until(deadline: Duration) -> Self {
        Self {
            deadline,
            key: None,
        }
    }

    fn unregister(&mut self) {
        if let Some(key) = self.key.take() {
            current::with_if_any(|local| {
                local.timers.borrow_mut().by_deadline.remove(&key);
            });
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.unregister();
        let deadline = self.deadline;
        let key = current::with(|local| {
            (local.shared.clock().now() < deadline).then(|| {
                local
                    .timers
                    .borrow_mut()
                    .insert(deadline, cx.waker().clone())
            })
        });
        self.key = key;
        if self.key.is_some() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.unregister();
    }
}
