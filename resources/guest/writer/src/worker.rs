//! One writer thread: does its plan on its part of one disk and knows what must be there.
//!
//! Its operations are strictly one after the other; concurrency on a disk comes from several
//! workers with parts of their own. Parts begin at page boundaries, so no page of the guest's page
//! cache belongs to two workers.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    SECTOR_BYTES,
    buffer::AlignedBuffer,
    journal::JournalHandle,
    model::{self, Mismatch, Model},
    plan::{Extent, MAX_SECTORS, Plan, Step},
    record::{Kind, Record},
    stamp::StampFlags,
};

/// Complaints printed per disk; the rest is only counted.
const COMPLAINTS: u64 = 10;

/// What the workers of one disk count together.
#[derive(Debug, Default)]
pub struct DiskStatus {
    /// The disk's name, for messages.
    pub name: String,
    /// Operations done.
    pub operations: AtomicU64,
    /// Operations that the kernel answered with an error.
    pub errors: AtomicU64,
    /// Sectors that read back wrong.
    pub mismatches: AtomicU64,
}

impl DiskStatus {
    fn error(&self, what: &str, extent: Extent, error: &io::Error) {
        if self.errors.fetch_add(1, Ordering::Relaxed) < COMPLAINTS {
            let Extent { first, sectors } = extent;
            println!(
                "writer: ERROR {}: {what} of {sectors} at {first}: {error}",
                self.name
            );
        }
    }

    fn mismatch(&self, mismatch: &Mismatch) {
        if self.mismatches.fetch_add(1, Ordering::Relaxed) < COMPLAINTS {
            println!("writer: MISMATCH {}: {mismatch}", self.name);
        }
    }
}

/// Everything one thread needs.
#[derive(Debug)]
pub struct Worker {
    /// Number of the disk.
    pub disk: u8,
    /// Number of this thread on the disk.
    pub thread: u16,
    /// How many threads the disk has; sequence numbers are unique per disk by it.
    pub threads: u16,
    /// The disk, opened with `O_DIRECT`.
    pub direct: File,
    /// The disk, opened without; of this worker alone, for the kernel reports a failed write-back
    /// once for each open file.
    pub buffered: File,
    /// What to do.
    pub plan: Plan,
    /// What must be there.
    pub model: Model,
    /// The log.
    pub journal: JournalHandle,
    /// The disk's counters.
    pub status: Arc<DiskStatus>,
    /// Least time from one operation's start to the next.
    pub interval: Duration,
    /// Stop after this many operations.
    pub operations: Option<u64>,
    /// Set by anyone: stop soon.
    pub stop: Arc<AtomicBool>,
}

/// A worker at work, and afterwards: what it needs to verify its part.
#[derive(Debug)]
pub struct Run {
    worker: Worker,
    buffer: AlignedBuffer,
    seq: u64,
    unflushed: Vec<(u64, Extent)>,
}

impl Worker {
    /// Works until told to stop or done, then makes everything durable.
    #[must_use]
    pub fn work(self) -> Run {
        let mut run = Run {
            buffer: AlignedBuffer::new(MAX_SECTORS as usize),
            seq: u64::from(self.thread),
            unflushed: Vec::new(),
            worker: self,
        };
        run.work();
        run.flush();
        run
    }
}

impl Run {
    /// Reads back every sector the worker ever wrote, counts those that are wrong in the disk's
    /// status, and returns how many were looked at.
    #[must_use]
    pub fn read_back(mut self) -> usize {
        let area = self.worker.model.area();
        let mut first = area.first;
        let end = area.first + area.sectors;
        while first < end {
            let extent = Extent {
                first,
                sectors: u64::from(MAX_SECTORS).min(end - first),
            };
            if self.worker.model.is_touched(extent) {
                self.read(extent);
            }
            first += extent.sectors;
        }
        self.worker.model.touched()
    }

    fn work(&mut self) {
        let started = Instant::now();
        let mut due = started;
        let mut done = 0;
        while !self.worker.stop.load(Ordering::Relaxed)
            && self.worker.operations.is_none_or(|limit| done < limit)
        {
            let now = Instant::now();
            if let Some(early) = due.checked_duration_since(now) {
                std::thread::sleep(early);
            } else if now.duration_since(due) > Duration::from_secs(1) {
                // The disk is slower than the rate, or was held: do not make up for it in a burst.
                due = now;
            }
            due += self.worker.interval;
            match self.worker.plan.next() {
                Some(Step::WriteDirect(extent)) => self.write_direct(extent),
                Some(Step::WriteBuffered(extent)) => self.write_buffered(extent),
                Some(Step::Read(extent)) => self.read(extent),
                Some(Step::Flush) => self.flush(),
                None => break,
            }
            done += 1;
            self.worker
                .status
                .operations
                .fetch_add(1, Ordering::Relaxed);
        }
    }

    fn log(&self, kind: Kind, seq: u64, extent: Extent) {
        self.worker.journal.append(Record {
            kind,
            disk: self.worker.disk,
            thread: self.worker.thread,
            // At most MAX_SECTORS.
            sectors: u32::try_from(extent.sectors).unwrap_or(u32::MAX),
            seq,
            first: extent.first,
            micros: 0,
        });
    }

    /// Gives the next sequence number and fills the buffer with it.
    fn prepare(&mut self, flags: StampFlags, extent: Extent) -> u64 {
        self.seq += u64::from(self.worker.threads);
        let sectors = self.buffer.sectors_mut(extent.count());
        model::fill(
            u32::from(self.worker.disk),
            flags,
            extent.first,
            self.seq,
            sectors,
        );
        self.seq
    }

    fn write_direct(&mut self, extent: Extent) {
        let seq = self.prepare(StampFlags::empty(), extent);
        self.log(Kind::SubmitDirect, seq, extent);
        let bytes = self.buffer.bytes(extent.count());
        match self
            .worker
            .direct
            .write_all_at(bytes, extent.first * SECTOR_BYTES)
        {
            Ok(()) => {
                self.log(Kind::Ack, seq, extent);
                self.worker.model.written(extent, seq);
            }
            Err(error) => self.failed("write", seq, extent, &error),
        }
    }

    fn write_buffered(&mut self, extent: Extent) {
        let seq = self.prepare(StampFlags::BUFFERED, extent);
        self.log(Kind::SubmitBuffered, seq, extent);
        let bytes = self.buffer.bytes(extent.count());
        match self
            .worker
            .buffered
            .write_all_at(bytes, extent.first * SECTOR_BYTES)
        {
            Ok(()) => {
                self.worker.model.written(extent, seq);
                self.unflushed.push((seq, extent));
            }
            Err(error) => self.failed("buffered write", seq, extent, &error),
        }
    }

    fn failed(&mut self, what: &str, seq: u64, extent: Extent, error: &io::Error) {
        self.log(Kind::Failed, seq, extent);
        self.worker.model.unknown(extent);
        self.worker.status.error(what, extent, error);
    }

    fn flush(&mut self) {
        let all = Extent {
            first: self.worker.model.area().first,
            sectors: 0,
        };
        self.log(Kind::SubmitFlush, self.seq, all);
        let result = self.worker.buffered.sync_data();
        let unflushed = std::mem::take(&mut self.unflushed);
        match result {
            Ok(()) => {
                for (seq, extent) in unflushed {
                    self.log(Kind::Ack, seq, extent);
                }
                self.log(Kind::Flushed, self.seq, all);
            }
            Err(error) => {
                self.worker.status.error("flush", all, &error);
                for (seq, extent) in unflushed {
                    self.log(Kind::Failed, seq, extent);
                    self.worker.model.unknown(extent);
                }
            }
        }
    }

    fn read(&mut self, extent: Extent) {
        let bytes = self.buffer.bytes_mut(extent.count());
        match self
            .worker
            .direct
            .read_exact_at(bytes, extent.first * SECTOR_BYTES)
        {
            Ok(()) => {
                let read = self.buffer.sectors(extent.count());
                for mismatch in self.worker.model.compare(extent.first, read) {
                    self.worker.status.mismatch(&mismatch);
                }
            }
            Err(error) => self.worker.status.error("read", extent, &error),
        }
    }
}

#[cfg(test)]
mod tests;
