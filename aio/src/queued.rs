//! [`Queued`]: whether a task or a bottom half has a place in its loop's queue, and shall run.
//!
//! However often something is woken or scheduled before its turn, it runs once, and sees what was
//! done before each of these calls. So who asks for a run puts it into the queue only if it has no
//! place there; and the loop, when the turn comes, takes the place back *before* it runs: who asks
//! from then on gets a new place, and so another run. Both are one step on one atomic word.
//!
//! Any thread asks and cancels; only the loop's thread begins. Checked under loom.

use crate::sync::{AtomicUsize, Ordering};

/// It shall run.
const ASKED: usize = 1;
/// It has a place in the queue, which it keeps if it is cancelled.
const PLACED: usize = 2;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Queued(AtomicUsize);

impl Queued {
    /// Of something that has no place in the queue.
    pub(crate) fn no() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Of something that shall run, and that its maker puts into the queue.
    #[cfg(not(loom))]
    pub(crate) fn yes() -> Self {
        Self(AtomicUsize::new(ASKED | PLACED))
    }

    /// Asks for a run; true if the caller must put it into the queue.
    #[must_use]
    pub(crate) fn ask(&self) -> bool {
        let before = self.0.fetch_or(ASKED | PLACED, Ordering::AcqRel);
        before & PLACED == 0
    }

    /// Takes back what was asked for; a run that has begun goes on.
    pub(crate) fn cancel(&self) {
        self.0.fetch_and(!ASKED, Ordering::AcqRel);
    }

    /// Its turn has come, and its place is free; true if it shall run.
    #[must_use]
    pub(crate) fn begin(&self) -> bool {
        self.0.swap(0, Ordering::AcqRel) & ASKED != 0
    }
}

/// The models run the real type against a queue as plain as can be. A request that is lost is a
/// deadlock, which loom reports.
#[cfg(loom)]
#[cfg(test)]
mod loom_tests {
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Condvar, Mutex};
    use loom::thread;

    use super::Queued;

    struct Model {
        queued: Queued,
        /// How many places it has in the queue.
        places: Mutex<usize>,
        arrived: Condvar,
        /// What each thread did before it asked.
        done: [AtomicUsize; 2],
    }

    impl Model {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                queued: Queued::no(),
                places: Mutex::new(0),
                arrived: Condvar::new(),
                done: [AtomicUsize::new(0), AtomicUsize::new(0)],
            })
        }

        /// Does something, and asks for a run that sees it.
        fn ask(&self, thread: usize) {
            self.done[thread].store(1, Ordering::Relaxed);
            if self.queued.ask() {
                let mut places = self.places.lock().unwrap();
                *places += 1;
                assert_eq!(*places, 1, "it stands in the queue already");
                self.arrived.notify_one();
            }
        }

        /// What the loop does until a run has seen what all of `threads` did; returns how many runs
        /// that took.
        fn serve(&self, threads: &[usize]) -> usize {
            let mut runs = 0;
            loop {
                let mut places = self.places.lock().unwrap();
                while *places == 0 {
                    places = self.arrived.wait(places).unwrap();
                }
                *places -= 1;
                drop(places);
                if self.queued.begin() {
                    runs += 1;
                    let seen = |thread: &usize| self.done[*thread].load(Ordering::Relaxed) == 1;
                    if threads.iter().all(seen) {
                        return runs;
                    }
                }
            }
        }
    }

    #[test]
    fn every_request_is_followed_by_a_run_that_sees_what_was_done_before() {
        loom::model(|| {
            let model = Model::new();
            let threads = [0, 1].map(|thread| {
                let model = Arc::clone(&model);
                thread::spawn(move || model.ask(thread))
            });
            assert!(model.serve(&[0, 1]) <= 2, "more runs than requests");
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn what_is_asked_for_after_a_cancellation_runs() {
        loom::model(|| {
            let model = Model::new();
            let other = {
                let model = Arc::clone(&model);
                thread::spawn(move || {
                    model.ask(0);
                    model.queued.cancel();
                    model.ask(0);
                })
            };
            assert!(model.serve(&[0]) <= 2, "more runs than requests");
            other.join().unwrap();
        });
    }

    #[test]
    fn what_is_cancelled_before_its_turn_does_not_run() {
        loom::model(|| {
            let model = Model::new();
            model.ask(0);
            let other = {
                let model = Arc::clone(&model);
                thread::spawn(move || model.queued.cancel())
            };
            other.join().unwrap();
            assert!(!model.queued.begin());
        });
    }
}
