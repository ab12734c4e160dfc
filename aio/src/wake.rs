//! [`WakeState`]: who has to ring a loop's bell, and when.
//!
//! A system call per wake is what cross-thread work costs most, so it is made only for a loop that
//! sleeps. One atomic word says what the loop does; a notifier and the loop change it in one step
//! each, so one of them comes first: either the loop sees that it was notified and does not sleep,
//! or the notifier sees that it sleeps and rings. Between a notification and the loop's next look
//! further notifiers do nothing.
//!
//! Any thread notifies; only the loop's thread dozes and awakens. Checked under loom.

use crate::sync::{AtomicUsize, Ordering};

/// The loop runs, and will look at its queue before it sleeps.
const AWAKE: usize = 0;
/// The loop sleeps, or another loop sleeps for it: the bell must be rung.
const ASLEEP: usize = 1;
/// There is something in the queue that the loop has not looked at.
const NOTIFIED: usize = 2;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct WakeState(AtomicUsize);

impl WakeState {
    /// The state of a loop that nobody drives yet.
    pub(crate) fn asleep() -> Self {
        Self(AtomicUsize::new(ASLEEP))
    }

    /// Tells the loop of what the caller has put into its queue; true if the bell must be rung.
    #[must_use]
    pub(crate) fn notify(&self) -> bool {
        self.0.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP
    }

    /// The loop runs from now on; true if it was notified, and must look at its queue.
    #[must_use]
    pub(crate) fn awaken(&self) -> bool {
        // What is missed by this cheap look is not missed by `doze`.
        self.0.load(Ordering::Relaxed) != AWAKE && self.0.swap(AWAKE, Ordering::AcqRel) == NOTIFIED
    }

    /// The loop sleeps from now on, if it was not notified since it awoke.
    #[must_use]
    pub(crate) fn doze(&self) -> bool {
        self.0
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Whether [`WakeState::doze`] would fail: for a loop that looks again and again.
    #[cfg(not(loom))]
    pub(crate) fn is_notified(&self) -> bool {
        self.0.load(Ordering::Relaxed) == NOTIFIED
    }
}

/// The models run the real type against a queue and a bell as plain as can be. A wake that is lost
/// is a deadlock, which loom reports.
#[cfg(loom)]
#[cfg(test)]
mod loom_tests {
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Condvar, Mutex};
    use loom::thread;

    use super::WakeState;

    struct Model {
        state: WakeState,
        rung: Mutex<bool>,
        bell: Condvar,
        /// How many items wait in the queue.
        work: Mutex<usize>,
    }

    impl Model {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                state: WakeState::asleep(),
                rung: Mutex::new(false),
                bell: Condvar::new(),
                work: Mutex::new(0),
            })
        }

        fn push(&self) {
            *self.work.lock().unwrap() += 1;
            if self.state.notify() {
                *self.rung.lock().unwrap() = true;
                self.bell.notify_one();
            }
        }

        /// Serves until `count` items were taken.
        fn serve(&self, count: usize) {
            let mut taken = 0;
            loop {
                if self.state.awaken() {
                    taken += std::mem::take(&mut *self.work.lock().unwrap());
                }
                if taken == count {
                    return;
                }
                if self.state.doze() {
                    let mut rung = self.rung.lock().unwrap();
                    while !*rung {
                        rung = self.bell.wait(rung).unwrap();
                    }
                    *rung = false;
                }
            }
        }
    }

    #[test]
    fn no_wake_is_lost() {
        loom::model(|| {
            let model = Model::new();
            let notifier = {
                let model = Arc::clone(&model);
                thread::spawn(move || model.push())
            };
            model.serve(1);
            notifier.join().unwrap();
        });
    }

    #[test]
    fn two_notifiers_are_both_heard() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let model = Model::new();
            let notifiers = [(); 2].map(|()| {
                let model = Arc::clone(&model);
                thread::spawn(move || model.push())
            });
            model.serve(2);
            for notifier in notifiers {
                notifier.join().unwrap();
            }
        });
    }

    #[test]
    fn what_was_done_before_a_notification_is_seen_after_it() {
        loom::model(|| {
            let shared = Arc::new((WakeState::asleep(), AtomicUsize::new(0)));
            let notifier = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.1.store(7, Ordering::Relaxed);
                    let _ = shared.0.notify();
                })
            };
            if shared.0.awaken() {
                assert_eq!(shared.1.load(Ordering::Relaxed), 7);
            }
            notifier.join().unwrap();
        });
    }
}
