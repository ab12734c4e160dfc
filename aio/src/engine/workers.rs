//! Worker threads for calls that block: the `threads` engine, opens, hole searches.
//!
//! A pool keeps `min` threads from its start to its end, and starts more, up to `max`, when there
//! is work and none is idle. A thread beyond `min` ends when it has had nothing to do for a while, one
//! beyond a `max` that was lowered when it has done what it does.
//! They are named `wrk:` and the loop's name.
//!
//! That while is real time, waited for in the worker itself; whether a thread lives or is started
//! anew is nothing that a request or a test with a clock of its own could notice.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use futures_channel::oneshot;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::cancelled;
use super::operation::Operation;
use super::table::Key;
use super::threads::perform;

/// How long a thread beyond the lower limit stays without work.
const IDLE: Duration = Duration::from_secs(10);

/// How a worker tells its loop that there are results.
pub(super) type Bell = Box<dyn Fn() + Send + Sync>;

/// What a worker does.
enum Job {
    /// A blocking call; it tells its result itself.
    Call(Box<dyn FnOnce() + Send>),
    /// A file operation, owned meanwhile.
    Operation(Key, Operation),
}

/// A file operation that has ended, to be given back.
pub(super) struct Finished {
    pub(super) key: Key,
    pub(super) operation: Operation,
    pub(super) result: io::Result<usize>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that wait for a job.
    idle: usize,
    /// Threads that have not ended.
    live: usize,
    handles: Vec<(ThreadId, JoinHandle<()>)>,
    ending: bool,
    /// The system has refused the last thread that was wanted.
    refused: bool,
    min: usize,
    max: usize,
}

impl Queue {
    /// Whether jobs wait for a thread that may be started.
    fn needs_another(&self) -> bool {
        self.idle < self.jobs.len() && self.live < self.max
    }

    /// The calling worker ends, and nobody need wait for it.
    fn forget_current_thread(&mut self) {
        let own = thread::current().id();
        self.handles.retain(|(id, _)| *id != own);
    }
}

/// # Errors
/// [`io::ErrorKind::InvalidInput`]: a pool can't have so many threads.
pub(crate) fn check_limits(min: usize, max: usize) -> io::Result<()> {
    if max == 0 || min > max {
        let why = "bad thread-pool-min/thread-pool-max values";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(())
}

struct Pool {
    name: String,
    idle_time: Duration,
    queue: Mutex<Queue>,
    /// There is a job, or the pool ends.
    wake: Condvar,
    /// While the pool ends: a job or a thread has.
    ended: Condvar,
    results: Mutex<Vec<Finished>>,
    has_results: AtomicBool,
    bell: Bell,
}

/// The worker threads of one loop. Used by the loop's thread.
pub(crate) struct WorkerPool(Arc<Pool>);

impl WorkerPool {
    /// A pool of at least `min` and at most `max` threads, which rings `bell` when file operations
    /// have ended.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `max` is 0 or less than `min`.
    pub(super) fn new(name: &str, min: usize, max: usize, bell: Bell) -> io::Result<Self> {
        Self::with_idle_time(name, min, max, bell, IDLE)
    }

    fn with_idle_time(
        name: &str,
        min: usize,
        max: usize,
        bell: Bell,
        idle_time: Duration,
    ) -> io::Result<Self> {
        check_limits(min, max)?;
        let pool = Self(Arc::new(Pool {
            name: name.to_owned(),
            idle_time,
            queue: Mutex::default(),
            wake: Condvar::new(),
            ended: Condvar::new(),
            results: Mutex::default(),
            has_results: AtomicBool::new(false),
            bell,
        }));
        pool.set_limits(min, max)?;
        Ok(pool)
    }

    /// Changes how many threads there are.
    ///
    /// # Errors
    /// As [`WorkerPool::new`].
    pub(crate) fn set_limits(&self, min: usize, max: usize) -> io::Result<()> {
        check_limits(min, max)?;
        let mut queue = self.0.queue.lock();
        (queue.min, queue.max) = (min, max);
        // Those that are always there, and those for whom there is work that has waited for them.
        let unserved = queue.jobs.len().saturating_sub(queue.idle);
        let wanted = min.max((queue.live + unserved).min(max));
        while !queue.ending && queue.live < wanted {
            if let Err(error) = self.start_thread(&mut queue) {
                // The first job that needs it tries again.
                tracing::warn!(%error, loop_name = self.0.name, "a worker thread can't be started");
                break;
            }
        }
        drop(queue);
        // All who rest find out whether they are one too many. So whom a job wakes later is not.
        self.0.wake.notify_all();
        Ok(())
    }

    /// Runs `call` in a worker; the receiver fails if the call panics or no thread can be started.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let refused = self.push(Job::Call(Box::new(move || drop(sender.send(call())))));
        // Without the lock: what the call owns may have a call to make when it is dropped.
        drop(refused);
        receiver
    }

    /// Does a file operation in a worker. Given back at once if no thread can be started.
    #[must_use]
    pub(super) fn perform(&self, key: Key, operation: Operation) -> Option<Operation> {
        match self.push(Job::Operation(key, operation)) {
            Some(Job::Operation(_, operation)) => Some(operation),
            _ => None,
        }
    }

    /// Queues a job; returns it if nobody would ever do it.
    fn push(&self, job: Job) -> Option<Job> {
        let mut queue = self.0.queue.lock();
        if queue.ending {
            return Some(job);
        }
        queue.jobs.push_back(job);
        if queue.needs_another() {
            match self.start_thread(&mut queue) {
                Ok(()) => queue.refused = false,
                Err(error) if queue.live == 0 => {
                    tracing::error!(%error, "no worker thread can be started");
                    return queue.jobs.pop_back();
                }
                // Once, and not with each of the jobs that wait for those that there are.
                Err(error) if !std::mem::replace(&mut queue.refused, true) => {
                    tracing::warn!(%error, "no further worker thread can be started");
                }
                Err(_) => {}
            }
        }
        drop(queue);
        self.0.wake.notify_one();
        None
    }

    fn start_thread(&self, queue: &mut Queue) -> io::Result<()> {
        let pool = Arc::clone(&self.0);
        let handle = thread::Builder::new()
            .name(format!("wrk:{}", self.0.name.replace('\0', "?")))
            .spawn(move || pool.serve())?;
        queue.live += 1;
        queue.handles.push((handle.thread().id(), handle));
        Ok(())
    }

    /// Whether [`WorkerPool::take_results`] would find some.
    pub(super) fn has_results(&self) -> bool {
        self.0.has_results.load(Ordering::Relaxed)
    }

    /// Takes the file operations that have ended into `into`, which is empty.
    pub(super) fn take_results(&self, into: &mut Vec<Finished>) {
        // A load first, because it costs nothing when there is nothing, as there mostly is.
        if self.has_results() && self.0.has_results.swap(false, Ordering::Acquire) {
            std::mem::swap(&mut *self.0.results.lock(), into);
        }
    }

    /// Lets the calls that were taken end, and the threads with them; operations that no worker has
    /// begun are cancelled.
    ///
    /// If nothing ends for the time of `patience`, the rest is left behind: threads that hang in a
    /// system call, with what their call owns. Returns how many.
    pub(super) fn finish(&self, patience: Duration) -> usize {
        let mut queue = self.0.queue.lock();
        queue.ending = true;
        let mut results = self.0.results.lock();
        queue.jobs = std::mem::take(&mut queue.jobs)
            .into_iter()
            .filter_map(|job| match job {
                Job::Call(_) => Some(job),
                Job::Operation(key, operation) => {
                    results.push(Finished {
                        key,
                        operation,
                        result: Err(cancelled()),
                    });
                    None
                }
            })
            .collect();
        drop(results);
        self.0.has_results.store(true, Ordering::Release);
        self.0.wake.notify_all();
        while queue.live > 0 {
            if self.0.ended.wait_for(&mut queue, patience).timed_out() {
                break;
            }
        }
        let left = queue.live;
        if left > 0 {
            tracing::warn!(
                loop_name = self.0.name,
                threads = left,
                "a loop ends before its blocking calls do, which hang; their threads are left behind"
            );
        }
        // Nobody may begin anything after the end of the loop.
        let unbegun = std::mem::take(&mut queue.jobs);
        let handles = std::mem::take(&mut queue.handles);
        drop(queue);
        drop(unbegun);
        if left == 0 {
            for (_, handle) in handles {
                // A worker survives the panics of its calls.
                drop(handle.join());
            }
        }
        left
    }
}

impl Pool {
    fn serve(&self) {
        let mut queue = self.queue.lock();
        loop {
            if queue.live > queue.max && !queue.ending {
                queue.forget_current_thread();
                break;
            }
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                self.perform(job);
                queue = self.queue.lock();
                if queue.ending {
                    self.ended.notify_all();
                }
            } else if queue.ending {
                break;
            } else if !self.rest(&mut queue) {
                queue.forget_current_thread();
                break;
            }
        }
        queue.live -= 1;
        self.ended.notify_all();
    }

    /// Waits for a job; false if the thread is not needed any more.
    fn rest(&self, queue: &mut MutexGuard<'_, Queue>) -> bool {
        queue.idle += 1;
        let bored = if queue.live > queue.min {
            self.wake.wait_for(queue, self.idle_time).timed_out()
        } else {
            self.wake.wait(queue);
            false
        };
        queue.idle -= 1;
        !bored || !queue.jobs.is_empty() || queue.live <= queue.min
    }

    fn perform(&self, job: Job) {
        match job {
            Job::Call(call) => {
                if catch_unwind(AssertUnwindSafe(call)).is_err() {
                    tracing::error!("a blocking call panicked");
                }
            }
            Job::Operation(key, mut operation) => {
                let result = perform(&mut operation);
                self.results.lock().push(Finished {
                    key,
                    operation,
                    result,
                });
                self.has_results.store(true, Ordering::Release);
                (self.bell)();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn pool(min: usize, max: usize, idle_time: Duration) -> WorkerPool {
        WorkerPool::with_idle_time("test", min, max, Box::new(|| {}), idle_time).unwrap()
    }

    fn live(pool: &WorkerPool) -> usize {
        pool.0.queue.lock().live
    }

    fn result<T>(mut receiver: oneshot::Receiver<T>) -> T {
        loop {
            if let Some(value) = receiver.try_recv().unwrap() {
                return value;
            }
            thread::yield_now();
        }
    }

    /// Keeps `count` workers busy until the senders are dropped.
    fn occupy(pool: &WorkerPool, count: usize) -> Vec<mpsc::Sender<()>> {
        let (began, begun) = mpsc::channel();
        let senders = (0..count)
            .map(|_| {
                let (release, released) = mpsc::channel::<()>();
                let began = began.clone();
                drop(pool.run(move || {
                    began.send(()).unwrap();
                    let _ = released.recv();
                }));
                release
            })
            .collect();
        for _ in 0..count {
            begun.recv().unwrap();
        }
        senders
    }

    #[test]
    fn limits_that_contradict_are_refused() {
        for (min, max) in [(0, 0), (1, 0), (5, 4)] {
            let refused = WorkerPool::new("test", min, max, Box::new(|| {}));
            let error = refused.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let expected = "bad thread-pool-min/thread-pool-max values";
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn the_least_are_there_from_the_start_and_stay() {
        let pool = pool(3, 5, Duration::ZERO);
        assert_eq!(live(&pool), 3);
        drop(occupy(&pool, 5));
        while live(&pool) > 3 {
            thread::yield_now();
        }
        // Those that are left still work, and none of them leaves. One that is not idle yet when its
        // call comes may get help, which goes again.
        drop(occupy(&pool, 3));
        while live(&pool) > 3 {
            thread::yield_now();
        }
        assert_eq!(live(&pool), 3);
        assert_eq!(pool.finish(Duration::MAX), 0);
    }

    #[test]
    fn without_a_least_none_stays() {
        let pool = pool(0, 4, Duration::ZERO);
        assert_eq!(live(&pool), 0);
        drop(occupy(&pool, 4));
        while live(&pool) > 0 {
            thread::yield_now();
        }
        assert!(pool.0.queue.lock().handles.is_empty());
        // The next call starts another.
        drop(occupy(&pool, 1));
    }

    #[test]
    fn there_are_never_more_than_the_most() {
        let pool = pool(0, 2, Duration::MAX);
        let busy = occupy(&pool, 2);
        let waiting: Vec<_> = (0..10).map(|at| pool.run(move || at)).collect();
        assert_eq!(live(&pool), 2);
        drop(busy);
        assert_eq!(pool.finish(Duration::MAX), 0);
        for (at, mut receiver) in waiting.into_iter().enumerate() {
            assert_eq!(receiver.try_recv(), Ok(Some(at)));
        }
    }

    #[test]
    fn limits_that_change_are_kept_from_then_on() {
        let pool = pool(0, 1, Duration::MAX);
        let refused = pool.set_limits(2, 1).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        // More at once, without any work.
        pool.set_limits(3, 8).unwrap();
        assert_eq!(live(&pool), 3);
        let busy = occupy(&pool, 8);
        let waiting: Vec<_> = (0..10).map(|at| pool.run(move || at)).collect();
        assert_eq!(live(&pool), 8);
        // Fewer when they are done, and what waits is done by those that stay.
        pool.set_limits(0, 2).unwrap();
        assert_eq!(live(&pool), 8, "nobody is stopped in the middle of a call");
        drop(busy);
        while live(&pool) > 2 {
            thread::yield_now();
        }
        for (at, receiver) in waiting.into_iter().enumerate() {
            assert_eq!(result(receiver), at);
        }
        // Those that rest leave, too.
        while pool.0.queue.lock().idle < 2 {
            thread::yield_now();
        }
        pool.set_limits(0, 1).unwrap();
        while live(&pool) > 1 {
            thread::yield_now();
        }
        assert_eq!(pool.0.queue.lock().handles.len(), 1);
        assert_eq!(result(pool.run(|| 7)), 7);
        assert_eq!(pool.finish(Duration::MAX), 0);
    }

    #[test]
    fn jobs_that_wait_get_the_threads_that_are_allowed_later() {
        let pool = pool(0, 1, Duration::MAX);
        let hanging = occupy(&pool, 1);
        let waiting: Vec<_> = (0..3).map(|at| pool.run(move || at)).collect();
        pool.set_limits(0, 3).unwrap();
        for (at, receiver) in waiting.into_iter().enumerate() {
            assert_eq!(result(receiver), at);
        }
        assert_eq!(live(&pool), 3, "one hangs");
        drop(hanging);
        assert_eq!(pool.finish(Duration::MAX), 0);
    }

    #[test]
    fn a_least_that_is_lowered_lets_go_of_those_that_rest() {
        let pool = pool(3, 3, Duration::ZERO);
        while pool.0.queue.lock().idle < 3 {
            thread::yield_now();
        }
        pool.set_limits(1, 3).unwrap();
        while live(&pool) > 1 {
            thread::yield_now();
        }
        assert_eq!(result(pool.run(|| 7)), 7);
    }

    #[test]
    fn an_idle_thread_is_used_before_another_is_started() {
        let pool = pool(0, 8, Duration::MAX);
        for _ in 0..20 {
            drop(occupy(&pool, 1));
            while pool.0.queue.lock().idle == 0 {
                thread::yield_now();
            }
        }
        assert_eq!(live(&pool), 1);
    }

    #[test]
    fn a_call_that_hangs_is_left_behind_with_all_that_waits_for_it() {
        let pool = pool(0, 1, Duration::MAX);
        let hanging = occupy(&pool, 1);
        let mut never = pool.run(|| ());
        assert_eq!(pool.finish(Duration::ZERO), 1);
        assert!(never.try_recv().is_err(), "begun after the end");
        // What comes later is refused.
        assert!(pool.run(|| ()).try_recv().is_err());
        drop(hanging);
        while live(&pool) > 0 {
            thread::yield_now();
        }
    }
}
