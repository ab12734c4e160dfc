//! Worker threads for calls that block: the `threads` engine, opens, hole searches.
//!
//! Threads are started when there is work and none is idle, up to a limit, and named after their
//! loop. They end with it. A finished call wakes its waiter through the loop's remote queue.

#![expect(unsafe_code, reason = "positional system calls on raw segments")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use futures_channel::oneshot;
use parking_lot::{Condvar, Mutex};

use super::{Operation, OperationKind};

type Call = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    calls: VecDeque<Call>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    ending: bool,
}

struct Pool {
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// The worker threads of one loop.
pub(crate) struct WorkerPool {
    pool: Arc<Pool>,
    name: String,
    max: usize,
}

impl WorkerPool {
    /// A pool of at least `min` and at most `max` threads; they are started when there is work.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `max` is 0 or less than `min`.
    pub(super) fn new(name: &str, min: usize, max: usize) -> io::Result<Self> {
        if max == 0 || min > max {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "bad thread-pool-min/thread-pool-max values",
            ));
        }
        let pool = Arc::new(Pool {
            queue: Mutex::default(),
            wake: Condvar::new(),
        });
        Ok(Self {
            pool,
            name: name.to_owned(),
            max,
        })
    }

    /// Runs `call` in a worker; the receiver fails if the call panics or no thread can be started.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let call: Call = Box::new(move || drop(sender.send(call())));
        let mut refused = None;
        let mut queue = self.pool.queue.lock();
        queue.calls.push_back(call);
        if queue.idle < queue.calls.len() && queue.threads.len() < self.max {
            match self.start_thread() {
                Ok(thread) => queue.threads.push(thread),
                Err(error) if queue.threads.is_empty() => {
                    tracing::error!(%error, "no worker thread can be started");
                    refused = queue.calls.pop_back();
                }
                Err(error) => tracing::warn!(%error, "no further worker thread can be started"),
            }
        }
        drop(queue);
        // Without the lock: what the call owns may have a call to make when it is dropped.
        drop(refused);
        self.pool.wake.notify_one();
        receiver
    }

    fn start_thread(&self) -> io::Result<JoinHandle<()>> {
        let pool = Arc::clone(&self.pool);
        thread::Builder::new()
            .name(format!("wrk:{}", self.name.replace('\0', "?")))
            .spawn(move || pool.serve())
    }

    /// Lets the calls that were taken end, and their threads with them.
    pub(super) fn finish(&self) {
        let threads = {
            let mut queue = self.pool.queue.lock();
            queue.ending = true;
            std::mem::take(&mut queue.threads)
        };
        self.pool.wake.notify_all();
        for thread in threads {
            // A worker survives the panics of its calls.
            drop(thread.join());
        }
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Pool {
    fn serve(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(call) = queue.calls.pop_front() {
                drop(queue);
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
                if outcome.is_err() {
                    tracing::error!("a blocking call panicked");
                }
                queue = self.queue.lock();
            } else if queue.ending {
                return;
            } else {
                queue.idle += 1;
                self.wake.wait(&mut queue);
                queue.idle -= 1;
            }
        }
    }
}

/// Does an operation with plain system calls, in the calling thread.
pub(super) fn perform(operation: &Operation) -> io::Result<usize> {
    let file = operation.file.as_raw_fd();
    let offset =
        i64::try_from(operation.offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let segments = operation.buffer.segments();
    let count = i32::try_from(segments.len().min(MAX_SEGMENTS)).unwrap_or(i32::MAX);
    let vectors = segments.as_ptr().cast::<libc::iovec>();
    loop {
        let result = match operation.kind {
            // SAFETY: the segments are iovecs (repr(transparent)) of memory that the operation
            // keeps alive during the call.
            OperationKind::Read => unsafe { libc::preadv(file, vectors, count, offset) },
            // SAFETY: as above.
            OperationKind::Write => unsafe { libc::pwritev(file, vectors, count, offset) },
            // SAFETY: the call touches no memory of ours.
            OperationKind::Fdatasync => unsafe { libc::fdatasync(file) as isize },
            OperationKind::Fallocate { mode, len } => {
                let len =
                    i64::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
                // SAFETY: the call touches no memory of ours.
                unsafe { libc::fallocate(file, mode, offset, len) as isize }
            }
        };
        match usize::try_from(result) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Linux' `UIO_MAXIOV`; a longer array is moved in parts.
const MAX_SEGMENTS: usize = 1024;
