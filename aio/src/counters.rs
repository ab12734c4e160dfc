//! What a loop counts about itself, and how anybody reads it.
//!
//! Only the loop's thread writes, with a plain load and store and no locked instruction (except
//! [`LoopStats::wakes`], which those count who ring: a system call is dearer); any thread reads at any
//! time and stops nobody. A snapshot is not of one instant: its figures may be apart by
//! what happened while it was taken.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::stats::Histogram;

/// A number that one thread counts up and all may read.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        let value = self.0.load(Ordering::Relaxed).wrapping_add(count);
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn bump(&self) {
        self.add(1);
    }

    fn raise_to(&self, value: u64) {
        if value > self.get() {
            self.0.store(value, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The buckets of a [`Histogram`], likewise.
#[derive(Debug, Default)]
pub(crate) struct Buckets([Counter; Histogram::BUCKETS]);

impl Buckets {
    pub(crate) fn record(&self, value: u64) {
        self.0[Histogram::bucket(value)].bump();
    }

    fn snapshot(&self) -> Histogram {
        Histogram::from_counts(std::array::from_fn(|bucket| self.0[bucket].get()))
    }
}

/// The counters of one loop; see [`LoopStats`] for what they mean.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) turns: Counter,
    pub(crate) sleeps: Counter,
    wakes: AtomicU64,
    pub(crate) tasks: Counter,
    pub(crate) bottom_halves: Counter,
    pub(crate) remote: Counter,
    pub(crate) fd_dispatches: Counter,
    pub(crate) timers: Counter,
    pub(crate) batches: Counter,
    pub(crate) operations: Counter,
    pub(crate) thread_operations: Counter,
    pub(crate) batch_sizes: Buckets,
    pub(crate) polls_hit: Counter,
    pub(crate) polls_missed: Counter,
    pub(crate) poll_nanos: Counter,
    pub(crate) poll_times: Buckets,
    slow_turns: Counter,
    longest_turn_nanos: Counter,
    /// Set once: a ring that is gone does not come back.
    pub(crate) without_ring: OnceLock<String>,
}

/// From how long on without a look for events a loop counts as slow.
const SLOW: Duration = Duration::from_millis(20);

impl Counters {
    /// Counts that the calling thread, whichever it is, rings the loop's bell.
    pub(crate) fn rung(&self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a batch of operations that was handed to the kernel.
    pub(crate) fn batch(&self, operations: u64) {
        self.batches.bump();
        self.operations.add(operations);
        self.batch_sizes.record(operations);
    }

    /// Counts the end of a time of polling.
    pub(crate) fn polled(&self, hit: bool, nanos: u64) {
        let counter = if hit {
            &self.polls_hit
        } else {
            &self.polls_missed
        };
        counter.bump();
        self.poll_nanos.add(nanos);
        self.poll_times.record(nanos);
    }

    /// Counts a time in which the loop did not look for events.
    pub(crate) fn worked(&self, time: Duration) {
        if time >= SLOW {
            self.slow_turns.bump();
            let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.longest_turn_nanos.raise_to(nanos);
        }
    }

    pub(crate) fn snapshot(&self) -> LoopStats {
        LoopStats {
            turns: self.turns.get(),
            sleeps: self.sleeps.get(),
            wakes: self.wakes.load(Ordering::Relaxed),
            tasks: self.tasks.get(),
            bottom_halves: self.bottom_halves.get(),
            remote: self.remote.get(),
            fd_dispatches: self.fd_dispatches.get(),
            timers: self.timers.get(),
            batches: self.batches.get(),
            operations: self.operations.get(),
            thread_operations: self.thread_operations.get(),
            without_ring: self.without_ring.get().cloned(),
            batch_sizes: self.batch_sizes.snapshot(),
            polls_hit: self.polls_hit.get(),
            polls_missed: self.polls_missed.get(),
            poll_time: Duration::from_nanos(self.poll_nanos.get()),
            poll_times: self.poll_times.snapshot(),
            slow_turns: self.slow_turns.get(),
            longest_turn: Duration::from_nanos(self.longest_turn_nanos.get()),
        }
    }
}

/// A snapshot of a loop's counters ([`crate::AioContext::stats`]); all since the loop was made.
#[derive(Clone, Debug, Default)]
pub struct LoopStats {
    /// Turns taken.
    pub turns: u64,
    /// Turns in which the loop was ready to sleep in the kernel. A nested loop never is: the outer
    /// one sleeps.
    pub sleeps: u64,
    /// Times that somebody with work for the loop found it asleep, and had to ring its bell.
    pub wakes: u64,
    /// Times that a task was run.
    pub tasks: u64,
    /// Bottom halves run, those of a single use included.
    pub bottom_halves: u64,
    /// Items taken from the remote queue.
    pub remote: u64,
    /// Ready descriptors that were served.
    pub fd_dispatches: u64,
    /// Timers that fired.
    pub timers: u64,
    /// Batches of operations handed to the ring.
    pub batches: u64,
    /// Operations in them.
    pub operations: u64,
    /// Operations of files that worker threads were given: by `aio=threads`, or in the ring's place.
    pub thread_operations: u64,
    /// Why worker threads serve `aio=io_uring` here, if they do.
    pub without_ring: Option<String>,
    /// Operations per batch.
    pub batch_sizes: Histogram,
    /// Times that polling found something before its time was over.
    pub polls_hit: u64,
    /// Times that it found nothing, and the loop went to sleep.
    pub polls_missed: u64,
    /// Time spent in polling.
    pub poll_time: Duration,
    /// How long it lasted each time, in nanoseconds.
    pub poll_times: Histogram,
    /// Times that the loop did not look for events for 20 ms or longer: a task or a handler held it
    /// up. Taken from a clock of a few milliseconds' resolution.
    pub slow_turns: u64,
    /// The longest of them.
    pub longest_turn: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_what_was_counted() {
        let counters = Counters::default();
        counters.batch(3);
        counters.batch(1);
        counters.polled(true, 100);
        counters.polled(false, 1000);
        counters.worked(Duration::from_millis(19));
        counters.worked(Duration::from_millis(30));
        counters.worked(Duration::from_millis(25));
        let stats = counters.snapshot();
        assert_eq!((stats.batches, stats.operations), (2, 4));
        let sizes: Vec<_> = stats.batch_sizes.buckets().collect();
        assert_eq!(sizes, [(2, 1), (4, 1)]);
        assert_eq!((stats.polls_hit, stats.polls_missed), (1, 1));
        assert_eq!(stats.poll_time, Duration::from_nanos(1100));
        assert_eq!(stats.poll_times.buckets().count(), 2);
        assert_eq!(stats.slow_turns, 2);
        assert_eq!(stats.longest_turn, Duration::from_millis(30));
    }
}
