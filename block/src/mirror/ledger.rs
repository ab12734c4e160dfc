//! [`Ledger`]: what the filter and the copier of one mirror both go by.
//!
//! The filter runs in the loops of the guest's requests, the copier in the job's. They meet in the
//! dirty bitmap, in the claims that keep copies and twofold writes of one place apart, and here.

use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;
use sluice_aio::{Clock, Gate, Token};

use super::options::CopyMode;
use crate::dirty::DirtyBitmap;
use crate::error::BlockError;
use crate::event::IoOperation;
use crate::io::serialise::Serialiser;
use crate::job::JobKicker;
use crate::node::Node;
use crate::parting::Parting;
use crate::room::{Room, Taken};

/// Why a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CopyError {
    pub(super) operation: IoOperation,
    pub(super) errno: Errno,
}

impl CopyError {
    pub(super) fn new(operation: IoOperation, error: &BlockError) -> Self {
        Self {
            operation,
            errno: Errno::from_raw_os_error(error.errno()),
        }
    }
}

/// What has been done so far, in bytes; for reports.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Read from the source and written to the target by the job.
    pub(super) copied: AtomicU64,
    /// Made zeroes at the target by the job.
    pub(super) zeroed: AtomicU64,
    /// Left alone by the first copy, because the target shows the same there anyway.
    pub(super) skipped: AtomicU64,
    /// Copied or written to both in vain, and tried again because the job went on.
    pub(super) retried: AtomicU64,
    /// Written to both sides by the guest.
    pub(super) twofold: AtomicU64,
}

impl Tally {
    /// All that was written to the target so far.
    pub(super) fn at_target(&self) -> u64 {
        let counters = [&self.copied, &self.zeroed, &self.twofold].into_iter();
        counters
            .map(|counter| counter.load(Ordering::Relaxed))
            .sum()
    }
}

/// What the job has not taken notice of yet.
#[derive(Debug, Default)]
struct News {
    errors: Vec<CopyError>,
    finished: Finished,
    /// Bytes that failed. Whether they are tried again is not decided yet.
    failed: u64,
}

/// What copies have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Finished {
    /// Bytes that reached the target.
    pub(super) bytes: u64,
    /// Bytes of data among them that nobody had foreseen when the copies began.
    pub(super) unforeseen: u64,
}

/// See the [module](self). Any thread.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) dirty: DirtyBitmap,
    pub(super) target: Arc<Node>,
    /// Places at which the target is being changed: only one change of a place at a time.
    pub(super) claims: Arc<Serialiser>,
    pub(super) tally: Tally,
    /// Whether the job has given up, and twofold writes and flushes that have not ended at the target.
    pub(super) parting: Parting,
    /// Bytes of guest writes that are on their way to both sides.
    pub(super) on_their_way: AtomicU64,
    /// Memory of twofold writes.
    pub(super) memory: Memory,
    /// What the operator wants.
    mode: Mutex<CopyMode>,
    /// Guest writes go to both sides.
    twofold: AtomicBool,
    /// Guest writes on their way to the source alone that began before the last stretch.
    pub(super) recorded: Gate,
    /// The pivot is near: guest writes go to both sides whatever the operator wants, so that it has nothing to copy.
    last_stretch: AtomicBool,
    /// The target has failed a guest's write, and the job has not judged that yet.
    suspended: AtomicBool,
    news: Mutex<News>,
    kicker: OnceLock<JobKicker>,
    /// Counts copies in flight.
    pub(super) copies: Gate,
}

impl Ledger {
    pub(super) fn new(
        dirty: DirtyBitmap,
        target: Arc<Node>,
        mode: CopyMode,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            dirty,
            target,
            claims: Arc::default(),
            tally: Tally::default(),
            parting: Parting::default(),
            on_their_way: AtomicU64::new(0),
            memory: Memory::new(),
            mode: Mutex::new(mode),
            twofold: AtomicBool::new(mode == CopyMode::WriteBlocking),
            recorded: Gate::new("writes to the source alone", clock.clone()),
            last_stretch: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
            news: Mutex::default(),
            kicker: OnceLock::new(),
            copies: Gate::new("mirror copies", clock),
        })
    }

    /// Whom to wake when a guest's write has met an error.
    pub(super) fn set_kicker(&self, kicker: JobKicker) {
        // A job runs once.
        let _ = self.kicker.set(kicker);
    }

    /// What the operator wants.
    pub(super) fn mode(&self) -> CopyMode {
        *self.mode.lock()
    }

    /// Begins another mode, for the writes that come from now on. One that is on its way marks what it
    /// changed when it ends, or has claimed its place: either way nothing is lost.
    pub(super) fn set_mode(&self, mode: CopyMode) {
        let mut asked = self.mode.lock();
        *asked = mode;
        if mode != CopyMode::Automatic {
            let twofold = mode == CopyMode::WriteBlocking;
            self.twofold.store(twofold, Ordering::Release);
        }
    }

    /// Follows a decision of an automatic mirror, unless the operator has decided otherwise meanwhile.
    pub(super) fn set_twofold(&self, twofold: bool) {
        let asked = self.mode.lock();
        if *asked == CopyMode::Automatic {
            self.twofold.store(twofold, Ordering::Release);
        }
    }

    /// Has guest writes go to both sides as long as what is returned lives; then as the operator wants again.
    pub(super) fn begin_last_stretch(&self) -> LastStretch<'_> {
        self.last_stretch.store(true, Ordering::Release);
        LastStretch(self)
    }

    /// Counts a guest's write to the source alone, which leaves a mark when it ends, while what is returned lives.
    pub(super) fn begin_recorded(&self) -> Option<Token> {
        // In the last stretch only those that had begun before are waited for.
        (!self.is_last_stretch()).then(|| self.recorded.try_enter())?
    }

    fn is_last_stretch(&self) -> bool {
        self.last_stretch.load(Ordering::Acquire)
    }

    /// Whether guest writes are meant to go to both sides.
    pub(super) fn is_twofold(&self) -> bool {
        self.twofold.load(Ordering::Acquire) || self.is_last_stretch()
    }

    /// Whether a guest's write that comes now goes to both sides.
    pub(super) fn writes_both(&self) -> bool {
        self.is_twofold() && !self.suspended.load(Ordering::Acquire) && !self.parting.is_over()
    }

    /// Waits until nothing of the mirror is on its way to the target.
    pub(super) async fn settle(&self) {
        self.copies.wait_idle().await;
        self.parting.target_idle().await;
    }

    /// The part of a guest's change that the target gets at once: all but the ends that lie in chunks which
    /// are dirty and will be copied as a whole. The caller has claimed the range, so the chunks stay dirty.
    pub(super) fn shared_part(&self, range: &Range<u64>) -> Range<u64> {
        let (granularity, size) = (self.dirty.granularity(), self.dirty.size());
        let (mut start, mut end) = (range.start, range.end);
        if !start.is_multiple_of(granularity) && self.dirty.is_dirty(start) {
            start = start.next_multiple_of(granularity).min(end);
        }
        if !end.is_multiple_of(granularity) && end < size && self.dirty.is_dirty(end) {
            end = (end / granularity * granularity).max(start);
        }
        start..end
    }

    /// Notes that the target has failed; the guest need not know. Until the job has judged it, the guest's
    /// writes are only recorded.
    pub(super) fn report(&self, error: CopyError) {
        self.report_failed(error, 0);
    }

    /// As [`report`](Self::report), for as many `bytes` that are dirty again.
    pub(super) fn report_failed(&self, error: CopyError, bytes: u64) {
        let mut news = self.news.lock();
        news.failed += bytes;
        if !news.errors.contains(&error) {
            news.errors.push(error);
        }
        drop(news);
        if let Some(kicker) = self.kicker.get() {
            kicker.kick();
        }
    }

    /// Leaves errors that were taken to be judged later.
    pub(super) fn report_again(&self, errors: Vec<CopyError>) {
        errors.into_iter().for_each(|error| self.report(error));
    }

    /// As [`report_failed`](Self::report_failed), by a guest's write.
    pub(super) fn suspend(&self, error: CopyError, bytes: u64) {
        self.suspended.store(true, Ordering::Release);
        self.report_failed(error, bytes);
    }

    /// The job goes on after an error. What guests' writes have met since it was judged is forgotten: they left their
    /// places dirty, so the job meets it itself if it is still so, and need not be told to go on once more.
    pub(super) fn resume(&self) {
        let mut news = self.news.lock();
        news.errors.clear();
        let failed = std::mem::take(&mut news.failed);
        self.tally.retried.fetch_add(failed, Ordering::Relaxed);
        drop(news);
        self.suspended.store(false, Ordering::Release);
    }

    /// Counts what has reached the target.
    pub(super) fn add_finished(&self, new: Finished) {
        let finished = &mut self.news.lock().finished;
        finished.bytes += new.bytes;
        finished.unforeseen += new.unforeseen;
    }

    /// What was finished since the last call, and the errors met.
    pub(super) fn take_news(&self) -> (Finished, Vec<CopyError>) {
        let mut news = self.news.lock();
        let errors = std::mem::take(&mut news.errors);
        (std::mem::take(&mut news.finished), errors)
    }

    /// Whether source and target hold the same, and will do so after every write that ends.
    pub(super) fn is_in_sync(&self) -> bool {
        self.writes_both() && self.copies.in_flight() == 0 && self.dirty.is_clean()
    }
}

/// See [`Ledger::begin_last_stretch`].
#[must_use = "the stretch ends when it is dropped"]
#[derive(Debug)]
pub(super) struct LastStretch<'a>(&'a Ledger);

impl Drop for LastStretch<'_> {
    fn drop(&mut self) {
        self.0.last_stretch.store(false, Ordering::Release);
    }
}

/// Memory for guests' data on its way to both sides, bounded for all requests together.
#[derive(Debug)]
pub(super) struct Memory(Room);

impl Memory {
    /// The most bytes of one piece of a guest's write.
    pub(super) const PIECE: usize = 1 << 20;
    /// The most bytes of all pieces.
    pub(super) const ALL: u64 = 8 << 20;

    fn new() -> Self {
        Self(Room::new(Self::ALL))
    }

    /// Waits until `bytes` more may be used; they are given back when what is returned is dropped.
    pub(super) async fn take(&self, bytes: usize) -> Taken<'_> {
        self.0.take((bytes as u64).min(Self::ALL)).await
    }
}
