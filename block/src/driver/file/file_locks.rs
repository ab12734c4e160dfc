//! [`FileLocks`]: the [image locks](super::lock) of a node's file, whose file system may hang.
//!
//! A change of the graph takes and gives back locks in a loop and under the graph's lock, where nothing can be awaited: a
//! change is whole or not at all. But fcntl(2) asks the file system (the lock manager of an NFS server, FUSE), and one
//! that does not answer would hold the loop. So a thread of its own makes the calls, one at a time for a file, and the loop
//! waits for it no longer than a second. (Where the kernel itself keeps the locks it answers at once, and no guest should
//! wait for a thread in a pivot: there the loop asks.) In this order:
//!
//! 1. [`prepare`](FileLocks::prepare) takes what is wanted in addition to what is *granted*. It succeeds only when all of
//!    that is held: nobody writes a byte before.
//! 2. If the thread does not come back in time it is *late*: the change is refused, and rolled back as for a conflict.
//! 3. [`finish`](FileLocks::finish), which ends a change that was made as well as one that was rolled back, notes what is granted
//!    from now on, and has everything else given back. Who returns from it finds that given back, unless the file
//!    system hangs.
//! 4. Whoever is late looks at what is granted when its call returns at last, and gives back everything else, until
//!    nothing has changed meanwhile. What is granted is never given back: it is taken before it is noted, and only step 3
//!    of a later change takes it away.
//! 5. While somebody is late nothing further is asked of the file system. A change is refused if it needs a lock that is not
//!    granted; one that needs no other never fails, so that what hangs can always be let go.

use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::open::unsuitable;
use crate::error::Result;
use crate::permission::{Access, Permissions};

/// How long a loop waits for a lock, of real time: so many times so long, a second in all, as a section may hold a guest.
/// A host that stands still meanwhile takes only one of them.
const PATIENCE: u32 = 100;
const STEP: Duration = Duration::from_millis(10);

/// What is asked of a file system; each call may block.
pub(super) trait Calls: std::fmt::Debug + Send + Sync + 'static {
    /// Takes the locks that `access` needs, in addition to those that are held.
    ///
    /// # Errors
    /// Somebody else stands against it.
    fn take(&self, access: Access) -> Result<()>;

    /// Gives back all locks that `access` does not need.
    fn give_back(&self, access: Access);

    /// Whether the kernel answers by itself, whatever becomes of what holds the file.
    fn answer_at_once(&self) -> bool;

    /// What the file is called, for people.
    fn path(&self) -> &std::path::Path;
}

#[derive(Debug, Default)]
enum Call {
    #[default]
    None,
    /// Somebody waits for its end.
    Running,
    Ended(Result<()>),
    /// Nobody does.
    Late,
}

#[derive(Debug, Default)]
struct State {
    granted: Access,
    /// What is held at most.
    held: Access,
    call: Call,
}

#[derive(Debug)]
struct Shared<C> {
    calls: C,
    state: Mutex<State>,
    ended: Condvar,
}

/// See the [module](self). Used under the graph's lock, by one thread at a time.
#[derive(Debug)]
pub(super) struct FileLocks<C: Calls> {
    shared: Arc<Shared<C>>,
    /// How many steps.
    patience: u32,
}

impl<C: Calls> FileLocks<C> {
    /// Of a file of which nothing is granted yet. It may be locked already, until something is.
    pub(super) fn new(calls: C) -> Self {
        let held = Access {
            used: Permissions::all(),
            shared: Permissions::empty(),
        };
        let state = State {
            held,
            ..State::default()
        };
        Self {
            shared: Arc::new(Shared {
                calls,
                state: Mutex::new(state),
                ended: Condvar::new(),
            }),
            patience: PATIENCE,
        }
    }

    /// Takes what `access` needs; [`finish`](Self::finish) follows in any case.
    ///
    /// # Errors
    /// Somebody else stands against it, or the file system does not answer.
    pub(super) fn prepare(&self, access: Access) -> Result<()> {
        {
            let mut state = self.shared.state.lock();
            let granted = state.granted;
            if granted.covers(access) {
                return Ok(());
            }
            state.held = state.held.and(access);
        }
        match self.ask(move |calls| calls.take(access)) {
            Some(taken) => taken,
            None => Err(unsuitable(
                self.shared.calls.path(),
                "its file system doesn't answer when it is asked for a lock",
            )),
        }
    }

    /// Grants `access`, which was prepared or granted before, and has all else given back.
    pub(super) fn finish(&self, access: Access) {
        let before = {
            let mut state = self.shared.state.lock();
            let before = std::mem::replace(&mut state.granted, access);
            if state.held == access {
                return;
            }
            before
        };
        let given_back = self.ask(move |calls| {
            calls.give_back(access);
            Ok(())
        });
        match given_back {
            Some(Ok(())) => self.shared.state.lock().held = access,
            // There was no thread to be had: nothing may stay locked that nobody uses.
            Some(Err(_)) => self.shared.calls.give_back(access),
            None if before != access => {
                let file = self.shared.calls.path().display();
                tracing::warn!(%file, "a file's system does not answer; it keeps the file's locks until it does");
            }
            None => {}
        }
    }

    /// Has a thread do that, if it may hang, and waits for it. None if somebody is late, or is so now.
    fn ask(&self, work: impl FnOnce(&C) -> Result<()> + Send + 'static) -> Option<Result<()>> {
        if self.shared.calls.answer_at_once() {
            return Some(work(&self.shared.calls));
        }
        let mut state = self.shared.state.lock();
        if matches!(state.call, Call::Late) {
            return None;
        }
        state.call = Call::Running;
        drop(state);
        let shared = Arc::clone(&self.shared);
        let asked = Builder::new().name("lock".to_owned()).spawn(move || {
            let ended = work(&shared.calls);
            shared.end(ended);
        });
        let thread = match asked {
            Ok(thread) => thread,
            Err(error) => {
                self.shared.state.lock().call = Call::None;
                return Some(Err(error.into()));
            }
        };
        let mut state = self.shared.state.lock();
        for _ in 0..self.patience {
            if !matches!(state.call, Call::Running) {
                break;
            }
            self.shared.ended.wait_for(&mut state, STEP);
        }
        match std::mem::take(&mut state.call) {
            Call::Ended(ended) => {
                drop(state);
                // Nothing hangs any more, and the file is nobody else's when this returns: who drops it then closes it.
                drop(thread.join());
                Some(ended)
            }
            _ => {
                state.call = Call::Late;
                None
            }
        }
    }
}

impl<C: Calls> Shared<C> {
    /// The thread's call has returned.
    fn end(&self, ended: Result<()>) {
        let mut state = self.state.lock();
        if !matches!(state.call, Call::Late) {
            state.call = Call::Ended(ended);
            self.ended.notify_all();
            return;
        }
        loop {
            let granted = state.granted;
            drop(state);
            self.calls.give_back(granted);
            state = self.state.lock();
            if state.granted == granted {
                state.held = granted;
                state.call = Call::None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread::ThreadId;

    use super::*;

    /// A file system that holds each call until it is let.
    #[derive(Debug)]
    struct Held {
        held: Mutex<Access>,
        lets: Mutex<Option<mpsc::Receiver<()>>>,
        asked: Mutex<mpsc::Sender<()>>,
        at_once: bool,
        /// Who has asked it.
        askers: Mutex<HashSet<ThreadId>>,
    }

    impl Held {
        fn wait(&self) {
            self.askers.lock().insert(std::thread::current().id());
            let _ = self.asked.lock().send(());
            if let Some(lets) = &*self.lets.lock() {
                let _ = lets.recv();
            }
        }
    }

    impl Calls for Arc<Held> {
        fn take(&self, access: Access) -> Result<()> {
            self.wait();
            let mut held = self.held.lock();
            *held = held.and(access);
            Ok(())
        }

        fn give_back(&self, access: Access) {
            self.wait();
            *self.held.lock() = access;
        }

        fn answer_at_once(&self) -> bool {
            self.at_once
        }

        fn path(&self) -> &Path {
            Path::new("image")
        }
    }

    struct Bench {
        system: Arc<Held>,
        locks: FileLocks<Arc<Held>>,
        asked: mpsc::Receiver<()>,
    }

    impl Bench {
        fn new() -> Self {
            Self::of(false)
        }

        fn of(at_once: bool) -> Self {
            let (sender, asked) = mpsc::channel();
            let system = Arc::new(Held {
                held: Mutex::default(),
                lets: Mutex::default(),
                asked: Mutex::new(sender),
                at_once,
                askers: Mutex::default(),
            });
            let mut locks = FileLocks::new(Arc::clone(&system));
            locks.patience = u32::MAX;
            Self {
                system,
                locks,
                asked,
            }
        }

        /// Calls from now on hang, until what is returned is dropped; they are soon late.
        fn hang(&mut self) -> mpsc::Sender<()> {
            self.locks.patience = 1;
            let (lets, held) = mpsc::channel();
            *self.system.lets.lock() = Some(held);
            lets
        }

        /// Waits until nobody is late.
        fn wait(&self) {
            while matches!(self.locks.shared.state.lock().call, Call::Late) {
                std::thread::yield_now();
            }
        }

        fn held(&self) -> Access {
            *self.system.held.lock()
        }
    }

    const READ: Access = Access::of_device(true);
    const WRITE: Access = Access::of_device(false);

    #[test]
    fn only_what_may_hang_is_asked_by_a_thread() {
        let here = std::thread::current().id();
        for at_once in [false, true] {
            let bench = Bench::of(at_once);
            bench.locks.prepare(WRITE).unwrap();
            bench.locks.finish(WRITE);
            assert_eq!(bench.held(), WRITE);
            assert_eq!(bench.system.askers.lock().contains(&here), at_once);
        }
    }

    #[test]
    fn what_is_granted_is_held_and_nothing_else() {
        let bench = Bench::new();
        bench.locks.prepare(WRITE).unwrap();
        assert_eq!(bench.held(), WRITE);
        bench.locks.finish(WRITE);
        bench.locks.prepare(READ).unwrap();
        assert_eq!(bench.held(), WRITE, "given back too early");
        bench.locks.finish(READ);
        assert_eq!(bench.held(), READ);
    }

    #[test]
    fn a_lock_that_hangs_is_refused_and_given_back_when_it_comes() {
        let mut bench = Bench::new();
        bench.locks.prepare(READ).unwrap();
        bench.locks.finish(READ);
        let lets = bench.hang();
        let error = bench.locks.prepare(WRITE).unwrap_err().to_string();
        assert!(error.contains("doesn't answer"), "{error}");
        bench.locks.finish(READ);
        // Nothing more is asked of it.
        let asked = bench.asked.try_iter().count();
        bench.locks.prepare(WRITE).unwrap_err();
        bench.locks.finish(READ);
        assert_eq!(bench.asked.try_iter().count(), 0, "after {asked}");
        drop(lets);
        bench.wait();
        assert_eq!(bench.held(), READ);
    }

    #[test]
    fn what_hangs_can_be_let_go() {
        let mut bench = Bench::new();
        bench.locks.prepare(WRITE).unwrap();
        bench.locks.finish(WRITE);
        let lets = bench.hang();
        // A change that does not come about, and one that gives up everything.
        let more = WRITE.and(Access {
            used: Permissions::RESIZE,
            shared: Permissions::all(),
        });
        bench.locks.prepare(more).unwrap_err();
        bench.locks.finish(WRITE);
        bench.locks.prepare(Access::NONE).unwrap();
        bench.locks.finish(Access::NONE);
        drop(lets);
        bench.wait();
        assert_eq!(bench.held(), Access::NONE);
    }
}
