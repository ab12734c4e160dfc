//! [`Wire`]: an interrupt line's changes on their way from a device's state to the line.
//!
//! Under KVM driving a line is a system call that wakes a processor of the guest's, which then asks the device at once
//! why. So it is done without the lock of that state: who changes the line under that lock takes the number of changes
//! with him, and carries out those that nobody has carried out yet when he has let go of it. Every change is
//! carried out once and in order, so no edge is lost, whoever comes first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::IrqLine;

/// Changes of a line that was low at first: it is high after an odd number of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LineChanges(u64);

impl LineChanges {
    /// Whether the line is high after them.
    pub fn level(self) -> bool {
        self.0 % 2 == 1
    }

    /// One more.
    pub fn flip(&mut self) {
        self.0 += 1;
    }
}

/// See the [module](self).
pub(crate) struct Wire {
    line: Arc<dyn IrqLine>,
    /// Taken to drive the line.
    driving: Mutex<()>,
    /// Changes carried out or being carried out; written by whoever drives.
    begun: AtomicU64,
}

impl Wire {
    /// A wire to `line`, which is low.
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self {
            line,
            driving: Mutex::new(()),
            begun: AtomicU64::new(0),
        }
    }

    /// Carries out the changes up to `changes`, except what another thread is carrying out just now: nobody waits who
    /// has nothing to carry out himself. Any thread, without the lock under which they were made.
    pub fn follow(&self, changes: LineChanges) {
        if self.begun.load(Ordering::Acquire) >= changes.0 {
            return;
        }
        let _driving = self.driving.lock();
        let mut done = LineChanges(self.begun.load(Ordering::Acquire));
        while done.0 < changes.0 {
            done.flip();
            self.begun.store(done.0, Ordering::Release);
            self.line.set(done.level());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers every level it was driven to.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<bool>>);

    impl IrqLine for Recorder {
        fn set(&self, level: bool) {
            self.0.lock().push(level);
        }
    }

    #[test]
    fn each_edge_is_seen_though_one_thread_comes_late() {
        let recorder = Arc::new(Recorder::default());
        let wire = Wire::new(Arc::clone(&recorder) as _);
        let mut changes = LineChanges::default();
        changes.flip();
        let late = changes;
        changes.flip();
        changes.flip();
        wire.follow(changes);
        wire.follow(late);
        assert_eq!(*recorder.0.lock(), [true, false, true]);
        wire.follow(changes);
        assert_eq!(recorder.0.lock().len(), 3);
    }

    #[test]
    fn edges_alternate_whoever_carries_them_out() {
        const THREADS: usize = 4;
        const EACH: usize = 1000;
        let recorder = Arc::new(Recorder::default());
        let wire = Wire::new(Arc::clone(&recorder) as _);
        let core = Mutex::new(LineChanges::default());
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let changes = {
                            let mut changes = core.lock();
                            changes.flip();
                            *changes
                        };
                        wire.follow(changes);
                    }
                });
            }
        });
        let seen = recorder.0.lock();
        assert_eq!(seen.len(), THREADS * EACH);
        assert!(seen.iter().step_by(2).all(|level| *level));
        assert!(seen.iter().skip(1).step_by(2).all(|level| !level));
    }
}
