//! A request as a value: parsed once from a chain, checked against the disk, executed by a backend.
//!
//! Parsing happens when the chain is popped, in the queue's loop. What cannot be a request at all
//! (no room for a header or a status) breaks the device; what can but is wrong gets an error
//! status. The limits of the disk are looked at when the request runs, because the disk may change
//! while requests wait.

use std::cell::RefCell;
use std::sync::Arc;

use sluice_aio::{GuestRam, IoBuffer};
use sluice_block::BlockError;
use sluice_block::backend::{Account, Backend, Request};

use super::layout::{
    DISCARD_SEGMENT_LEN, Features, HEADER_LEN, RequestStatus, SECTOR, SERIAL_LEN, STATUS_LEN,
    SegmentFlags, request_type,
};
use crate::virtio::{Chain, RingError};

/// Most sectors that a discard or write zeroes segment can be allowed to have.
pub const MAX_DISCARD_SECTORS: u32 = (1 << 31) / 512 - 1;
/// Most segments of a discard or write zeroes request.
pub(super) const MAX_DISCARD_SEGMENTS: usize = 32;

/// Most bytes that one request may read or write: 16 MiB. A chain may name the same memory in every
/// descriptor, so that neither the guest's memory nor the disk bounds what it costs. `size_max` is
/// set such that a driver that minds it and `seg_max` never comes here; one that does not is told
/// of an error. (Linux limits itself to `max_sectors_kb`, 1280 KiB unless it is raised.)
pub(super) const MAX_TRANSFER: usize = 16 << 20;

/// Where a chain's answer goes.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: u16,
    /// Buffer of the status byte.
    status: IoBuffer,
    /// Bytes that the device may write in front of the status.
    data_len: usize,
    /// How many of them it has written when the request has succeeded, from the first.
    filled: usize,
}

/// What a request wants.
#[derive(Debug)]
pub(super) enum Operation {
    Read {
        sector: u64,
        data: IoBuffer,
    },
    Write {
        sector: u64,
        data: IoBuffer,
    },
    Flush,
    GetId {
        /// At most [`SERIAL_LEN`] bytes: no more are touched (section 5.2.6).
        data: IoBuffer,
    },
    Discard {
        segments: Segments,
    },
    WriteZeroes {
        segments: Segments,
    },
    /// Nothing this device does.
    Unsupported,
}

/// A range of a discard or write zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Segment {
    /// In bytes.
    fn len(&self) -> u64 {
        u64::from(self.sectors) * SECTOR
    }
}

/// The ranges of a request: a list whose room comes from one that a request before it has used.
#[derive(Debug)]
pub(super) struct Segments(Vec<Segment>);

/// Lists that one thread keeps; a longer one than a request may have is never made.
const SPARE_LISTS: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<Vec<Segment>>> = const { RefCell::new(Vec::new()) };
}

impl FromIterator<Segment> for Segments {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> Self {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop());
        let mut list = spare.ok().flatten().unwrap_or_default();
        list.extend(segments);
        Self(list)
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        let mut list = std::mem::take(&mut self.0);
        list.clear();
        // A thread that ends needs no lists any more.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_LISTS {
                spare.push(list);
            }
        });
    }
}

/// What the requests of a queue are executed against.
pub(super) struct Disk {
    pub(super) backend: Arc<Backend>,
    pub(super) serial: [u8; SERIAL_LEN],
    /// Bytes; a multiple of the sector.
    pub(super) block_size: u32,
    /// Most sectors of a discard segment.
    pub(super) max_discard_sectors: u32,
    /// Most sectors of a write zeroes segment.
    pub(super) max_write_zeroes_sectors: u32,
}

/// Splits a chain into what it asks and where the answer goes.
pub(super) fn parse(
    chain: &Chain,
    memory: &Arc<GuestRam>,
) -> Result<(Operation, Answer), RingError> {
    let out = IoBuffer::from_guest(memory, &chain.readable)?;
    let mut header = [0; HEADER_LEN];
    if out.copy_to_slice(0, &mut header) < HEADER_LEN {
        return Err(RingError::Request("the header is too short"));
    }
    let back = IoBuffer::from_guest(memory, &chain.writable)?;
    let Some(data_len) = back.len().checked_sub(STATUS_LEN) else {
        return Err(RingError::Request("there is no status byte"));
    };
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let to_guest = || back.slice(0, data_len);
    let from_guest = || out.slice(HEADER_LEN, out.len() - HEADER_LEN);
    let operation = match u32::from_le_bytes([t0, t1, t2, t3]) {
        request_type::IN => Operation::Read {
            sector,
            data: to_guest(),
        },
        request_type::OUT => Operation::Write {
            sector,
            data: from_guest(),
        },
        request_type::FLUSH => Operation::Flush,
        request_type::GET_ID => Operation::GetId {
            data: back.slice(0, data_len.min(SERIAL_LEN)),
        },
        request_type::DISCARD => parse_segments(&from_guest())
            .map_or(Operation::Unsupported, |segments| Operation::Discard {
                segments,
            }),
        request_type::WRITE_ZEROES => parse_segments(&from_guest())
            .map_or(Operation::Unsupported, |segments| Operation::WriteZeroes {
                segments,
            }),
        _ => Operation::Unsupported,
    };
    let filled = match &operation {
        Operation::Read { .. } => data_len,
        Operation::GetId { data } => data.len(),
        _ => 0,
    };
    let answer = Answer {
        head: chain.head,
        status: back.slice(data_len, STATUS_LEN),
        data_len,
        filled,
    };
    Ok((operation, answer))
}

/// The segments of a discard; `None` if there are none, too many, or a part of one.
fn parse_segments(data: &IoBuffer) -> Option<Segments> {
    let count = data.len() / DISCARD_SEGMENT_LEN;
    if !data.len().is_multiple_of(DISCARD_SEGMENT_LEN)
        || !(1..=MAX_DISCARD_SEGMENTS).contains(&count)
    {
        return None;
    }
    let segments = (0..count).map(|index| {
        let mut bytes = [0; DISCARD_SEGMENT_LEN];
        data.copy_to_slice(index * DISCARD_SEGMENT_LEN, &mut bytes);
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
        Segment {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes(flags),
        }
    });
    Some(segments.collect())
}

impl Answer {
    /// Writes the status. Returns how many of the chain's writable bytes are valid, from the first:
    /// there may be a gap before the status.
    pub(super) fn give(&self, status: RequestStatus) -> u32 {
        self.status.copy_from_slice(0, &[status as u8]);
        let filled = match status {
            RequestStatus::Ok => self.filled,
            _ => 0,
        };
        let valid = if filled == self.data_len {
            filled + STATUS_LEN
        } else {
            filled
        };
        // A chain has less than 4 GiB.
        u32::try_from(valid).unwrap_or(u32::MAX)
    }
}

impl Disk {
    /// Executes what a driver with these features asks. One request is one entry, however many
    /// ranges it has.
    pub(super) async fn execute(
        &self,
        operation: Operation,
        features: Features,
        request: &mut Request<'_>,
    ) -> RequestStatus {
        let backend = &self.backend;
        match operation {
            Operation::Read { sector, data } => {
                let Some(offset) = self.transfer(sector, &data) else {
                    return self.refuse(Account::Read);
                };
                if data.is_empty() {
                    return RequestStatus::Ok;
                }
                status_of(request.read(offset, data).await)
            }
            Operation::Write { sector, data } => {
                let range = self.transfer(sector, &data);
                let (Some(offset), false) = (range, backend.is_read_only()) else {
                    return self.refuse(Account::Write);
                };
                if data.is_empty() {
                    return RequestStatus::Ok;
                }
                status_of(request.write(offset, data).await)
            }
            Operation::Flush => status_of(request.flush().await),
            Operation::GetId { data } => {
                data.copy_from_slice(0, &self.serial);
                RequestStatus::Ok
            }
            Operation::Discard { segments } => {
                if !features.contains(Features::DISCARD) {
                    return RequestStatus::Unsupported;
                }
                self.each_segment(&segments, SegmentFlags::empty(), request)
                    .await
            }
            Operation::WriteZeroes { segments } => {
                if !features.contains(Features::WRITE_ZEROES) {
                    return RequestStatus::Unsupported;
                }
                self.each_segment(&segments, SegmentFlags::UNMAP, request)
                    .await
            }
            Operation::Unsupported => RequestStatus::Unsupported,
        }
    }

    /// Discards (if no flag is `allowed`) or zeroes all segments, after all were checked.
    async fn each_segment(
        &self,
        segments: &Segments,
        allowed: SegmentFlags,
        request: &mut Request<'_>,
    ) -> RequestStatus {
        if segments
            .0
            .iter()
            .any(|segment| segment.flags & !allowed.bits() != 0)
        {
            return RequestStatus::Unsupported;
        }
        let (kind, most) = if allowed.is_empty() {
            (Account::Unmap, self.max_discard_sectors)
        } else {
            (Account::Write, self.max_write_zeroes_sectors)
        };
        let within = |segment: &Segment| {
            segment.sectors <= most && self.range(segment.sector, segment.len()).is_some()
        };
        if !segments.0.iter().all(within) || self.backend.is_read_only() {
            return self.refuse(kind);
        }
        for segment in &segments.0 {
            let (offset, len) = (segment.sector * SECTOR, segment.len());
            let result = if len == 0 {
                Ok(())
            } else if allowed.is_empty() {
                request.discard(offset, len).await
            } else {
                let unmap = segment.flags & SegmentFlags::UNMAP.bits() != 0;
                request.write_zeroes(offset, len, unmap).await
            };
            if result.is_err() {
                return status_of(result);
            }
        }
        RequestStatus::Ok
    }

    /// The answer to a request that the disk can't be asked for; it is counted as invalid.
    fn refuse(&self, kind: Account) -> RequestStatus {
        self.backend.account_invalid(kind);
        RequestStatus::IoError
    }

    /// Size in sectors. What does not fill a block at the end cannot be reached.
    pub(super) fn capacity(&self) -> u64 {
        let block = u64::from(self.block_size);
        self.backend.len() / block * (block / SECTOR)
    }

    /// Byte offset of a transfer of data, if it is on the disk and not too large.
    fn transfer(&self, sector: u64, data: &IoBuffer) -> Option<u64> {
        let offset = self.range(sector, data.len() as u64)?;
        (data.len() <= MAX_TRANSFER).then_some(offset)
    }

    /// Byte offset of an access, if it consists of whole blocks on the disk.
    fn range(&self, sector: u64, len: u64) -> Option<u64> {
        let block = u64::from(self.block_size);
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(len)?;
        (end <= self.backend.len() && offset.is_multiple_of(block) && len.is_multiple_of(block))
            .then_some(offset)
    }
}

fn status_of(result: Result<(), BlockError>) -> RequestStatus {
    match result {
        Ok(()) => RequestStatus::Ok,
        Err(error) => {
            tracing::debug!(%error, "virtio-blk: a request failed");
            RequestStatus::IoError
        }
    }
}
