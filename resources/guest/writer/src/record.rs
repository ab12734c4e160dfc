//! The log: what the writer submitted, and what the disks acknowledged.
//!
//! The log lives on a raw disk of its own, so that the host can read it while the guest runs. It
//! is append-only: sector 0, 1, 2 … are each written once, in order, with up to
//! [`RECORDS_PER_SECTOR`] records. A reader takes sectors from the front until one does not
//! verify; that one has not been written yet (or is being written) and is tried again later.
//!
//! An acknowledgement is logged only after the disk gave it. So whatever acknowledgement a reader
//! finds had happened before it looked; the newest ones may be missing.
//!
//! Sector layout, little endian: magic `SLUICELG`, session (u64), sector index (u64), number of
//! records (u32), CRC-32C of the sector with this field zero (u32); then records of 32 bytes:
//! kind (u8), disk (u8), thread (u16), sectors (u32), sequence number (u64), first sector (u64),
//! microseconds since the start of the writer (u64).

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::{
    SECTOR_BYTES, SECTOR_SIZE,
    stamp::{u32_at, u64_at},
};

const MAGIC: [u8; 8] = *b"SLUICELG";
const HEADER: usize = 32;
const RECORD: usize = 32;
const CHECKSUM: usize = 28;

/// How many records one sector of the log holds.
pub const RECORDS_PER_SECTOR: usize = (SECTOR_SIZE - HEADER) / RECORD;

/// How many sectors the reader asks the file for at once.
const READ_AHEAD: usize = 256;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A direct write is about to be issued.
    SubmitDirect = 1,
    /// A buffered write is about to be issued; from here on the guest's kernel may write it back
    /// at any time.
    SubmitBuffered = 2,
    /// The disk acknowledged the write: the direct write returned, or the flush after the
    /// buffered write did.
    Ack = 3,
    /// A flush is about to be issued.
    SubmitFlush = 4,
    /// The flush returned; `seq` is the newest write of the thread that it covers.
    Flushed = 5,
    /// The write failed: its sectors may hold the old or the new content.
    Failed = 6,
    /// The writer stopped in good order and the log is complete.
    End = 7,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::SubmitDirect,
            2 => Self::SubmitBuffered,
            3 => Self::Ack,
            4 => Self::SubmitFlush,
            5 => Self::Flushed,
            6 => Self::Failed,
            7 => Self::End,
            _ => return None,
        })
    }
}

/// One entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What happened.
    pub kind: Kind,
    /// Number of the disk in the writer's list.
    pub disk: u8,
    /// Number of the thread on that disk.
    pub thread: u16,
    /// Length of the write in sectors; 0 for a flush.
    pub sectors: u32,
    /// Sequence number of the write.
    pub seq: u64,
    /// First sector of the write.
    pub first: u64,
    /// Guest time, microseconds since the writer started.
    pub micros: u64,
}

/// Writes one log sector. `records` beyond [`RECORDS_PER_SECTOR`] are not taken; the number taken
/// is returned.
pub fn encode_sector(
    session: u64,
    index: u64,
    records: &[Record],
    out: &mut [u8; SECTOR_SIZE],
) -> usize {
    let taken = records.len().min(RECORDS_PER_SECTOR);
    out.fill(0);
    out[..8].copy_from_slice(&MAGIC);
    out[8..16].copy_from_slice(&session.to_le_bytes());
    out[16..24].copy_from_slice(&index.to_le_bytes());
    // At most RECORDS_PER_SECTOR, which fits in a byte.
    out[24] = u8::try_from(taken).unwrap_or(u8::MAX);
    for (record, bytes) in records.iter().zip(out[HEADER..].chunks_exact_mut(RECORD)) {
        bytes[0] = record.kind as u8;
        bytes[1] = record.disk;
        bytes[2..4].copy_from_slice(&record.thread.to_le_bytes());
        bytes[4..8].copy_from_slice(&record.sectors.to_le_bytes());
        bytes[8..16].copy_from_slice(&record.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&record.first.to_le_bytes());
        bytes[24..32].copy_from_slice(&record.micros.to_le_bytes());
    }
    let checksum = crc32c::crc32c(&out[..]);
    out[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.to_le_bytes());
    taken
}

/// A sector of the log as read back.
#[derive(Debug, PartialEq, Eq)]
pub struct LogSector {
    /// Random number of the writer's run.
    pub session: u64,
    /// Number of this sector, counted from 0.
    pub index: u64,
    /// Its records, oldest first.
    pub records: Vec<Record>,
}

/// Reads one log sector, or `None` if these bytes are not (yet) a whole one.
#[must_use]
pub fn decode_sector(bytes: &[u8; SECTOR_SIZE]) -> Option<LogSector> {
    if bytes[..8] != MAGIC {
        return None;
    }
    let mut blank = *bytes;
    blank[CHECKSUM..CHECKSUM + 4].fill(0);
    if crc32c::crc32c(&blank) != u32_at(bytes, CHECKSUM) {
        return None;
    }
    let count = usize::try_from(u32_at(bytes, 24)).ok()?;
    if count > RECORDS_PER_SECTOR {
        return None;
    }
    let records = (0..count)
        .map(|slot| {
            let at = HEADER + slot * RECORD;
            Some(Record {
                kind: Kind::from_byte(bytes[at])?,
                disk: bytes[at + 1],
                thread: u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]),
                sectors: u32_at(bytes, at + 4),
                seq: u64_at(bytes, at + 8),
                first: u64_at(bytes, at + 16),
                micros: u64_at(bytes, at + 24),
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(LogSector {
        session: u64_at(bytes, 8),
        index: u64_at(bytes, 16),
        records,
    })
}

/// Follows a growing log from its front. Runs on the host, in whatever thread calls it.
#[derive(Debug)]
pub struct LogReader {
    file: File,
    session: Option<u64>,
    next: u64,
}

impl LogReader {
    /// A reader at the front of the log in `file` (a disk image or the disk itself).
    #[must_use]
    pub const fn new(file: File) -> Self {
        Self {
            file,
            session: None,
            next: 0,
        }
    }

    /// Hands over every record that has been written since the last call, oldest first, and
    /// returns them.
    ///
    /// # Errors
    /// The file can't be read. A sector that does not verify is no error: it ends the log for now.
    pub fn poll(&mut self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut bytes = vec![0; READ_AHEAD * SECTOR_SIZE];
        loop {
            let got = read_up_to(&self.file, &mut bytes, self.next * SECTOR_BYTES)?;
            let (sectors, _) = bytes[..got].as_chunks::<SECTOR_SIZE>();
            for sector in sectors {
                let Some(sector) = decode_sector(sector) else {
                    return Ok(records);
                };
                if sector.index != self.next
                    || *self.session.get_or_insert(sector.session) != sector.session
                {
                    return Ok(records);
                }
                self.next += 1;
                records.extend(sector.records);
            }
            if sectors.len() < READ_AHEAD {
                return Ok(records);
            }
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64) -> Record {
        Record {
            kind: Kind::Ack,
            disk: 1,
            thread: 2,
            sectors: 3,
            seq,
            first: 5,
            micros: 6,
        }
    }

    fn sector(session: u64, index: u64, records: &[Record]) -> [u8; SECTOR_SIZE] {
        let mut bytes = [0xff; SECTOR_SIZE];
        encode_sector(session, index, records, &mut bytes);
        bytes
    }

    #[test]
    fn reads_back_what_was_written() {
        let records: Vec<_> = (1..=RECORDS_PER_SECTOR as u64).map(record).collect();
        let read = decode_sector(&sector(9, 4, &records)).unwrap();
        assert_eq!(
            read,
            LogSector {
                session: 9,
                index: 4,
                records
            }
        );
    }

    #[test]
    fn takes_no_more_than_a_sector_holds() {
        let records: Vec<_> = (1..=20).map(record).collect();
        let mut bytes = [0; SECTOR_SIZE];
        assert_eq!(
            encode_sector(0, 0, &records, &mut bytes),
            RECORDS_PER_SECTOR
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sector(9, 4, &[record(1), record(2)]);
        for byte in 0..SECTOR_SIZE {
            let mut bytes = good;
            bytes[byte] ^= 0x10;
            assert_eq!(decode_sector(&bytes), None, "byte {byte}");
        }
    }

    #[test]
    fn reader_follows_a_growing_log_and_stops_at_stale_sectors() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        // Left over from an older run: same place, another session.
        file.write_all_at(&sector(1, 2, &[record(99)]), 2 * SECTOR_BYTES)
            .unwrap();
        let mut reader = LogReader::new(file.try_clone().unwrap());
        assert_eq!(reader.poll().unwrap(), []);
        file.write_all_at(&sector(2, 0, &[record(1), record(2)]), 0)
            .unwrap();
        assert_eq!(reader.poll().unwrap(), [record(1), record(2)]);
        assert_eq!(reader.poll().unwrap(), []);
        file.write_all_at(&sector(2, 1, &[record(3)]), SECTOR_BYTES)
            .unwrap();
        assert_eq!(reader.poll().unwrap(), [record(3)]);
        assert_eq!(reader.poll().unwrap(), []);
        file.write_all_at(&sector(2, 2, &[record(4)]), 2 * SECTOR_BYTES)
            .unwrap();
        assert_eq!(reader.poll().unwrap(), [record(4)]);
    }

    #[test]
    fn reader_crosses_its_read_ahead() {
        let file = tempfile::tempfile().unwrap();
        let count = READ_AHEAD as u64 + 3;
        for index in 0..count {
            file.write_all_at(&sector(5, index, &[record(index)]), index * SECTOR_BYTES)
                .unwrap();
        }
        assert_eq!(LogReader::new(file).poll().unwrap().len() as u64, count);
    }
}
