//! A clock that is moved by hand, and who waits on it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

/// By deadline, then by age.
type Key = (Duration, u64);

#[derive(Debug, Default)]
struct Sleepers {
    waiting: BTreeMap<Key, Waker>,
    made: u64,
}

/// The time of a manual clock. Any thread.
#[derive(Debug, Default)]
pub(super) struct ManualClock {
    nanos: AtomicU64,
    sleepers: Mutex<Sleepers>,
}

impl ManualClock {
    pub(super) fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Acquire))
    }

    /// Time stands still at the end of its range rather than beginning anew.
    pub(super) fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        let mut sleepers = self.sleepers.lock();
        let now = self.nanos.load(Ordering::Acquire).saturating_add(by);
        self.nanos.store(now, Ordering::Release);
        let later = sleepers
            .waiting
            .split_off(&(Duration::from_nanos(now), u64::MAX));
        let due = std::mem::replace(&mut sleepers.waiting, later);
        drop(sleepers);
        // In the order of their deadlines, and without the lock: a waker may run anything.
        due.into_values().for_each(Waker::wake);
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let sleepers = self.sleepers.lock();
        sleepers
            .waiting
            .keys()
            .next()
            .map(|(deadline, _)| *deadline)
    }

    pub(super) fn sleep(self: &Arc<Self>, duration: Duration) -> ManualSleep {
        ManualSleep {
            deadline: self.now().saturating_add(duration),
            clock: Arc::clone(self),
            key: None,
        }
    }
}

/// Waits for a time of a manual clock; ready at once if that is past.
#[derive(Debug)]
pub(super) struct ManualSleep {
    clock: Arc<ManualClock>,
    deadline: Duration,
    key: Option<Key>,
}

impl Future for ManualSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let clock = Arc::clone(&self.clock);
        let mut sleepers = clock.sleepers.lock();
        // Under the lock: the clock moves under it as well.
        if clock.now() >= self.deadline {
            return Poll::Ready(());
        }
        let key = self.key.unwrap_or_else(|| {
            sleepers.made += 1;
            (self.deadline, sleepers.made)
        });
        self.key = Some(key);
        let old = sleepers.waiting.insert(key, cx.waker().clone());
        drop(sleepers);
        drop(old);
        Poll::Pending
    }
}

impl Drop for ManualSleep {
    fn drop(&mut self) {
        let waker = self
            .key
            .and_then(|key| self.clock.sleepers.lock().waiting.remove(&key));
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn sleepers_are_woken_when_their_time_has_come_and_not_before() {
        let clock = Arc::new(ManualClock::default());
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mut late = clock.sleep(Duration::from_nanos(20));
        let mut early = clock.sleep(Duration::from_nanos(10));
        assert!(Pin::new(&mut late).poll(&mut cx).is_pending());
        assert!(Pin::new(&mut early).poll(&mut cx).is_pending());
        assert_eq!(clock.next_deadline(), Some(Duration::from_nanos(10)));
        clock.advance(Duration::from_nanos(9));
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        clock.advance(Duration::from_nanos(1));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(Pin::new(&mut early).poll(&mut cx).is_ready());
        assert!(Pin::new(&mut late).poll(&mut cx).is_pending());
        assert_eq!(clock.next_deadline(), Some(Duration::from_nanos(20)));
        drop(late);
        assert_eq!(clock.next_deadline(), None);
        clock.advance(Duration::MAX);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
