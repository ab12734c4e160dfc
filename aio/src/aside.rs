//! [`Aside`]: a value whose end may block, which a thread of its own drops.
//!
//! close(2) asks the file system (FUSE's `flush`, the write-back of NFS, the last sync of a device), and if that
//! hangs, so does the caller, in a way that nothing interrupts. Who lets a file go last is mostly a loop: it would
//! stand still with every guest and monitor that it serves. So the file goes to a thread that does nothing but close
//! it, and who lets it go waits for that, but only a moment: files whose file system answers *are* closed then, with
//! their locks, and can be opened again at once. One that hangs is left to its thread, which is waited for by
//! nobody, not even the end of the process.
//!
//! It is no worker of the loop: those are limited and can all hang, and the end of a loop waits for them.
//!
//! The thread and the moment, which is real time, are nothing that a loop with a clock of its own could notice: as
//! long as dropping the value takes no time itself, it is over when the drop returns, as without a thread. The moment
//! does not begin before the thread runs, so that a busy host does not use it up.

#![expect(
    unsafe_code,
    reason = "a value is taken out of what is dropped, without a check at each use of it"
)]

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::Builder;
use std::time::Duration;

/// How long a drop waits for the thread. An ordinary close takes microseconds.
const PATIENCE: Duration = Duration::from_millis(20);

/// What is left of that at least, however many hang already.
const LEAST_PATIENCE: Duration = Duration::from_millis(1);

/// Threads that are closing something. Those that hang share one patience, so that hundreds of files of one server
/// that is gone do not add up to a long stop.
static CLOSING: AtomicU32 = AtomicU32::new(0);

/// See the [module](self). Any thread may have it, use it and drop it.
#[derive(Debug)]
pub struct Aside<T: Send + 'static> {
    value: ManuallyDrop<T>,
    /// For people, who should learn what hangs.
    name: Box<str>,
}

impl<T: Send + 'static> Aside<T> {
    /// A value that is to end so; `name` is what the log calls it, a path if there is one.
    pub fn new(value: T, name: impl Into<Box<str>>) -> Self {
        Self {
            value: ManuallyDrop::new(value),
            name: name.into(),
        }
    }
}

/// Something of which nobody has a name.
impl<T: Send + 'static> From<T> for Aside<T> {
    fn from(value: T) -> Self {
        Self::new(value, "a file")
    }
}

impl<T: Send + 'static> Deref for Aside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: AsFd + Send + 'static> AsFd for Aside<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.value.as_fd()
    }
}

impl<T: Send + 'static> Drop for Aside<T> {
    fn drop(&mut self) {
        // SAFETY: the value is taken once, here, and nobody can use it after the drop.
        let value = unsafe { ManuallyDrop::take(&mut self.value) };
        let closer = Builder::new().name("close".to_owned());
        drop_aside(value, &self.name, PATIENCE, closer);
    }
}

/// Counts a thread that is closing something.
struct Closing;

impl Closing {
    fn begin() -> Self {
        CLOSING.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        CLOSING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn drop_aside<T: Send + 'static>(value: T, name: &str, patience: Duration, closer: Builder) {
    let (told, stages) = mpsc::sync_channel(1);
    let work = move || {
        // Told of the end by its own, also if the value's drop panics.
        let told = told;
        let _closing = Closing::begin();
        let _ = told.send(());
        drop(value);
    };
    if let Err(error) = closer.spawn(work) {
        // What was not handed over has been closed here.
        tracing::warn!(%error, file = name, "no thread could be started to close a file");
        return;
    }
    // A thread that was started runs, whatever hangs.
    let _ = stages.recv();
    let threads = CLOSING.load(Ordering::Relaxed).max(1);
    let patience = (patience / threads).max(LEAST_PATIENCE);
    if stages.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
        tracing::warn!(
            file = name,
            "a file's system does not answer its close; a thread is left with that, and the file's locks and descriptor stay until it does"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use rustix::fs::{FlockOperation, flock};

    use super::*;

    /// Something that closes when it is let.
    struct Hanging {
        lets: mpsc::Receiver<()>,
        closed: mpsc::Sender<()>,
    }

    impl Drop for Hanging {
        fn drop(&mut self) {
            let _ = self.lets.recv();
            let _ = self.closed.send(());
        }
    }

    fn hanging() -> (Aside<Hanging>, mpsc::Sender<()>, mpsc::Receiver<()>) {
        let (answer, lets) = mpsc::channel();
        let (closed, is_closed) = mpsc::channel();
        let value = Hanging { lets, closed };
        (Aside::from(value), answer, is_closed)
    }

    struct Closed(Arc<AtomicBool>);

    impl Drop for Closed {
        fn drop(&mut self) {
            // Who does not wait for it comes before it.
            std::thread::sleep(Duration::from_millis(50));
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_hangs_in_its_close_holds_nobody() {
        let (all, answers): (Vec<_>, Vec<_>) = (0..50)
            .map(|_| {
                let (value, answer, is_closed) = hanging();
                (value, (answer, is_closed))
            })
            .unzip();
        drop(all);
        for (answer, is_closed) in answers {
            assert_eq!(is_closed.try_recv(), Err(mpsc::TryRecvError::Empty));
            drop(answer);
            // Its thread ends it when it can.
            assert_eq!(is_closed.recv(), Ok(()));
        }
    }

    #[test]
    fn an_ordinary_close_is_over_when_the_drop_returns() {
        let is_closed = Arc::new(AtomicBool::new(false));
        let value = Closed(Arc::clone(&is_closed));
        drop_aside(value, "ordinary", Duration::MAX, Builder::new());
        assert!(is_closed.load(Ordering::Relaxed));
    }

    #[test]
    fn the_locks_of_a_file_that_was_dropped_are_free() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let lock = |file: &File| flock(file, FlockOperation::NonBlockingLockExclusive);
        for _ in 0..100 {
            let file = File::create(&path).unwrap();
            assert_eq!(lock(&file), Ok(()));
            assert!(lock(&File::open(&path).unwrap()).is_err());
            drop_aside(file, "locked", Duration::MAX, Builder::new());
        }
    }

    #[test]
    fn without_a_thread_it_is_closed_in_place() {
        let is_closed = Arc::new(AtomicBool::new(false));
        let value = Closed(Arc::clone(&is_closed));
        // No system has room for such a stack.
        let closer = Builder::new().stack_size(1 << 60);
        drop_aside(value, "in place", Duration::MAX, closer);
        assert!(is_closed.load(Ordering::Relaxed));
    }

    #[test]
    fn a_drop_that_panics_is_over() {
        struct Panics;
        impl Drop for Panics {
            fn drop(&mut self) {
                panic!("a test's");
            }
        }
        drop_aside(Panics, "panics", Duration::MAX, Builder::new());
    }
}
