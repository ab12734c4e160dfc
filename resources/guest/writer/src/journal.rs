//! The thread that writes the log disk.
//!
//! Worker threads hand it records through a channel; it gathers what comes within a few
//! milliseconds and appends it in one direct write. A worker's records stay in the order in which
//! it gave them.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    SECTOR_BYTES,
    buffer::AlignedBuffer,
    record::{self, RECORDS_PER_SECTOR, Record},
};

/// How long the log may lag behind. Long enough to fill a sector at some hundred operations a
/// second, short enough for a host that waits for an acknowledgement to appear.
const GATHER: Duration = Duration::from_millis(10);

/// At most this many sectors go out in one write.
const BATCH_SECTORS: usize = 64;

/// Records that may wait; beyond that workers are held up, which bounds memory.
const QUEUE: usize = 16 * 1024;

/// The running log thread.
#[derive(Debug)]
pub struct Journal {
    sender: SyncSender<Record>,
    thread: JoinHandle<io::Result<u64>>,
    failed: Arc<AtomicBool>,
}

/// A worker's end of the log; cheap to clone, may be used from any thread.
#[derive(Clone, Debug)]
pub struct JournalHandle {
    sender: SyncSender<Record>,
    started: Instant,
}

impl JournalHandle {
    /// Appends a record, with the time filled in. Waits only if the log disk is far behind. After
    /// a failure of the log disk, records are dropped: the failure itself ends the run.
    pub fn append(&self, record: Record) {
        let micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let _dropped_after_failure = self.sender.send(Record { micros, ..record });
    }
}

impl Journal {
    /// Starts the thread on the log disk `file`, which is opened with `O_DIRECT` and is
    /// `capacity` sectors long.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(file: File, capacity: u64, session: u64) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let failed = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn({
            let failed = Arc::clone(&failed);
            move || {
                let result = run(&file, capacity, session, &receiver);
                failed.store(result.is_err(), Ordering::Relaxed);
                result
            }
        })?;
        Ok(Self {
            sender,
            thread,
            failed,
        })
    }

    /// A handle for a worker; `started` is the zero of the records' time.
    #[must_use]
    pub fn handle(&self, started: Instant) -> JournalHandle {
        JournalHandle {
            sender: self.sender.clone(),
            started,
        }
    }

    /// Whether the log disk has failed or is full.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits until everything is written and returns the length of the log in sectors. All
    /// [`JournalHandle`]s must have been dropped.
    ///
    /// # Errors
    /// The log disk failed or is full.
    pub fn finish(self) -> io::Result<u64> {
        drop(self.sender);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("log thread panicked")))
    }
}

fn run(file: &File, capacity: u64, session: u64, receiver: &Receiver<Record>) -> io::Result<u64> {
    let mut buffer = AlignedBuffer::new(BATCH_SECTORS);
    let mut batch = Vec::with_capacity(BATCH_SECTORS * RECORDS_PER_SECTOR);
    let mut index = 0;
    loop {
        let Ok(first) = receiver.recv() else {
            return Ok(index);
        };
        batch.push(first);
        let deadline = Instant::now() + GATHER;
        while batch.len() < BATCH_SECTORS * RECORDS_PER_SECTOR {
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(record) => batch.push(record),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        let sectors = batch.len().div_ceil(RECORDS_PER_SECTOR);
        let after = index + sectors as u64;
        if after > capacity {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the log disk is full",
            ));
        }
        let chunks = batch.chunks(RECORDS_PER_SECTOR);
        for ((number, chunk), sector) in (index..).zip(chunks).zip(buffer.sectors_mut(sectors)) {
            record::encode_sector(session, number, chunk, sector);
        }
        file.write_all_at(buffer.bytes(sectors), index * SECTOR_BYTES)?;
        index = after;
        batch.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Kind, LogReader};

    fn record(seq: u64) -> Record {
        Record {
            kind: Kind::Ack,
            disk: 0,
            thread: 0,
            sectors: 1,
            seq,
            first: 0,
            micros: 0,
        }
    }

    #[test]
    fn everything_appended_is_in_the_log_in_order() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let journal = Journal::start(file.try_clone().unwrap(), 2048, 42).unwrap();
        let handle = journal.handle(Instant::now());
        for seq in 1..=3000 {
            handle.append(record(seq));
        }
        drop(handle);
        assert!(journal.finish().unwrap() >= 200);
        let seqs: Vec<_> = LogReader::new(file)
            .poll()
            .unwrap()
            .iter()
            .map(|record| record.seq)
            .collect();
        assert_eq!(seqs, (1..=3000).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_log_is_an_error_and_nobody_hangs() {
        let file = tempfile::tempfile().unwrap();
        let journal = Journal::start(file, 2, 42).unwrap();
        let handle = journal.handle(Instant::now());
        for seq in 1..100_000 {
            handle.append(record(seq));
        }
        drop(handle);
        assert_eq!(
            journal.finish().unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
    }
}
