//! The writer's log, digested: for each sector of each disk the newest submitted and the newest
//! acknowledged write.

use std::collections::HashMap;

use sluice_writer::record::{Kind, Record};

/// A record that cannot be true.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The record names a disk that was not announced.
    #[error("the log speaks of disk {0}, which there is not")]
    NoSuchDisk(u8),
    /// The record's sectors are not on the disk.
    #[error("the log speaks of sectors beyond the disk's end: {0:?}")]
    BeyondEnd(Record),
    /// A write was acknowledged or failed that was never submitted, or a number was used twice.
    #[error("the log contradicts itself: {0:?}")]
    Contradiction(Record),
}

/// One write, as submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// First sector.
    pub first: u64,
    /// Length in sectors.
    pub sectors: u64,
    /// When it was submitted: the writer's clock, microseconds.
    pub submitted_at: u64,
    /// Where it got to.
    pub state: WriteState,
}

/// Where a write got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteState {
    /// Submitted, not heard of since.
    Pending,
    /// Acknowledged by the disk.
    Acknowledged {
        /// When: the writer's clock, microseconds.
        at: u64,
    },
    /// The guest's kernel reported an error.
    Failed,
}

/// What happened to one disk.
#[derive(Clone, Debug)]
pub struct DiskHistory {
    number: u8,
    acknowledged: Vec<u64>,
    submitted: Vec<u64>,
    writes: HashMap<u64, Write>,
    acknowledged_writes: u64,
    pending_writes: u64,
    failed_writes: u64,
}

impl DiskHistory {
    fn new(number: u8, sectors: usize) -> Self {
        Self {
            number,
            acknowledged: vec![0; sectors],
            submitted: vec![0; sectors],
            writes: HashMap::new(),
            acknowledged_writes: 0,
            pending_writes: 0,
            failed_writes: 0,
        }
    }

    /// The disk's number in the writer's list.
    #[must_use]
    pub const fn number(&self) -> u8 {
        self.number
    }

    /// Size of the disk in sectors.
    #[must_use]
    pub const fn sectors(&self) -> usize {
        self.submitted.len()
    }

    /// For each sector the newest acknowledged write, 0 for none.
    #[must_use]
    pub fn acknowledged(&self) -> &[u64] {
        &self.acknowledged
    }

    /// For each sector the newest submitted write, 0 for none.
    #[must_use]
    pub fn submitted(&self) -> &[u64] {
        &self.submitted
    }

    /// The write with this sequence number.
    #[must_use]
    pub fn write(&self, seq: u64) -> Option<&Write> {
        self.writes.get(&seq)
    }

    /// All writes, in no particular order.
    pub fn writes(&self) -> impl Iterator<Item = (u64, &Write)> {
        self.writes.iter().map(|(seq, write)| (*seq, write))
    }

    /// How many writes were acknowledged.
    #[must_use]
    pub const fn acknowledged_writes(&self) -> u64 {
        self.acknowledged_writes
    }

    /// How many writes are submitted and neither acknowledged nor failed.
    #[must_use]
    pub const fn pending_writes(&self) -> u64 {
        self.pending_writes
    }

    /// How many writes failed.
    #[must_use]
    pub const fn failed_writes(&self) -> u64 {
        self.failed_writes
    }

    fn range(&self, record: &Record) -> Result<std::ops::Range<usize>, HistoryError> {
        let first = usize::try_from(record.first).ok();
        let end = first.and_then(|first| first.checked_add(usize::try_from(record.sectors).ok()?));
        match (first, end) {
            (Some(first), Some(end)) if end <= self.sectors() => Ok(first..end),
            _ => Err(HistoryError::BeyondEnd(*record)),
        }
    }

    fn absorb(&mut self, record: &Record) -> Result<(), HistoryError> {
        let range = self.range(record)?;
        match record.kind {
            Kind::SubmitDirect | Kind::SubmitBuffered => {
                let write = Write {
                    first: record.first,
                    sectors: u64::from(record.sectors),
                    submitted_at: record.micros,
                    state: WriteState::Pending,
                };
                if self.writes.insert(record.seq, write).is_some() {
                    return Err(HistoryError::Contradiction(*record));
                }
                raise(&mut self.submitted[range], record.seq);
                self.pending_writes += 1;
            }
            Kind::Ack | Kind::Failed => {
                let state = if record.kind == Kind::Ack {
                    WriteState::Acknowledged { at: record.micros }
                } else {
                    WriteState::Failed
                };
                match self.writes.get_mut(&record.seq) {
                    Some(write)
                        if write.state == WriteState::Pending
                            && write.first == record.first
                            && write.sectors == u64::from(record.sectors) =>
                    {
                        write.state = state;
                    }
                    _ => return Err(HistoryError::Contradiction(*record)),
                }
                self.pending_writes -= 1;
                if record.kind == Kind::Ack {
                    self.acknowledged_writes += 1;
                    raise(&mut self.acknowledged[range], record.seq);
                } else {
                    self.failed_writes += 1;
                }
            }
            Kind::SubmitFlush | Kind::Flushed | Kind::End => {}
        }
        Ok(())
    }
}

fn raise(sectors: &mut [u64], seq: u64) {
    for newest in sectors {
        *newest = seq.max(*newest);
    }
}

/// The whole log, so far.
#[derive(Clone, Debug)]
pub struct History {
    disks: Vec<DiskHistory>,
    is_complete: bool,
}

impl History {
    /// An empty history of disks of these sizes (in sectors), in the writer's order.
    #[must_use]
    pub fn new(sizes: &[usize]) -> Self {
        let disks = (0..=u8::MAX).zip(sizes);
        Self {
            disks: disks
                .map(|(number, sectors)| DiskHistory::new(number, *sectors))
                .collect(),
            is_complete: false,
        }
    }

    /// Adds records, oldest first.
    ///
    /// # Errors
    /// The first record that can't be true; those before it have been added.
    pub fn absorb(&mut self, records: &[Record]) -> Result<(), HistoryError> {
        for record in records {
            self.disks
                .get_mut(usize::from(record.disk))
                .ok_or(HistoryError::NoSuchDisk(record.disk))?
                .absorb(record)?;
            self.is_complete |= record.kind == Kind::End;
        }
        Ok(())
    }

    /// One disk's history.
    ///
    /// # Panics
    /// If there is no such disk.
    #[must_use]
    pub fn disk(&self, number: usize) -> &DiskHistory {
        &self.disks[number]
    }

    /// Whether the writer closed the log: every submission is in it.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.is_complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, seq: u64, first: u64, sectors: u32) -> Record {
        Record {
            kind,
            disk: 0,
            thread: 0,
            sectors,
            seq,
            first,
            micros: 0,
        }
    }

    #[test]
    fn keeps_the_newest_of_each_sector() {
        let mut history = History::new(&[10]);
        history
            .absorb(&[
                record(Kind::SubmitBuffered, 2, 0, 4),
                record(Kind::SubmitDirect, 4, 2, 4),
                record(Kind::Ack, 4, 2, 4),
                // The older, buffered write is acknowledged by a later flush.
                record(Kind::Ack, 2, 0, 4),
                record(Kind::SubmitDirect, 6, 9, 1),
            ])
            .unwrap();
        let disk = history.disk(0);
        assert_eq!(disk.acknowledged(), [2, 2, 4, 4, 4, 4, 0, 0, 0, 0]);
        assert_eq!(disk.submitted(), [2, 2, 4, 4, 4, 4, 0, 0, 0, 6]);
        assert_eq!((disk.acknowledged_writes(), disk.pending_writes()), (2, 1));
        assert!(!history.is_complete());
        history.absorb(&[record(Kind::End, 0, 0, 0)]).unwrap();
        assert!(history.is_complete());
    }

    #[test]
    fn refuses_what_cannot_be() {
        let absorb = |records: &[Record]| History::new(&[10]).absorb(records);
        let submit = record(Kind::SubmitDirect, 2, 0, 4);
        assert!(matches!(
            absorb(&[Record { disk: 1, ..submit }]),
            Err(HistoryError::NoSuchDisk(1))
        ));
        assert!(matches!(
            absorb(&[Record { first: 7, ..submit }]),
            Err(HistoryError::BeyondEnd(_))
        ));
        assert!(matches!(
            absorb(&[Record {
                first: u64::MAX,
                ..submit
            }]),
            Err(HistoryError::BeyondEnd(_))
        ));
        let ack = record(Kind::Ack, 2, 0, 4);
        for records in [
            vec![ack],
            vec![submit, submit],
            vec![submit, ack, ack],
            vec![submit, Record { first: 1, ..ack }],
        ] {
            assert!(matches!(
                absorb(&records),
                Err(HistoryError::Contradiction(_))
            ));
        }
    }
}
