//! [`Opened`]: one opening of a file, and how bytes are moved by it.
//!
//! A reopen replaces it as a whole, inside a drained section; a request uses the one that it found.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use sluice_aio::{EngineKind, IoBuffer, current};

use super::SECTOR;
use super::probe::Alignment;
use crate::driver::{Allocation, BlockStatus, RequestFlags};
use crate::error::Result;

/// The most bytes that are copied to aligned memory at once.
pub(super) const BOUNCE: usize = 1 << 20;

/// Zeroes written at once where the file system can't zero a range by itself, in bytes.
const ZERO_CHUNK: u64 = 1 << 20;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(super) file: Arc<File>,
    pub(super) writable: bool,
    pub(super) engine: EngineKind,
    pub(super) direct: bool,
    /// What the file asks of requests: nothing, unless it was opened with O_DIRECT.
    pub(super) alignment: Alignment,
    pub(super) no_flush: bool,
    /// `discard=unmap`: discards reach the file system.
    pub(super) unmap: bool,
}

impl Opened {
    /// O_DIRECT needs aligned memory; guests mostly bring it, and the rest is copied.
    pub(super) fn needs_bounce(&self, buffer: &IoBuffer) -> bool {
        let bytes = |alignment: u32| usize::try_from(alignment).unwrap_or(usize::MAX);
        let Alignment { request, memory } = self.alignment;
        self.direct && !buffer.is_aligned_to(bytes(memory), bytes(request))
    }

    pub(super) async fn read_all(&self, offset: u64, buffer: &IoBuffer) -> io::Result<()> {
        let count = current::read_at(self.engine, &self.file, offset, buffer.clone()).await?;
        if count < buffer.len() {
            // The file shrank behind our back: what is gone reads as zeroes.
            buffer.fill(count, buffer.len() - count, 0);
        }
        Ok(())
    }

    /// Reads by way of aligned memory, piece by piece: how much a guest asks for at once must not
    /// decide how much memory that takes.
    pub(super) async fn read_bounced(&self, offset: u64, buffer: &IoBuffer) -> io::Result<()> {
        let bounce = IoBuffer::alloc(buffer.len().min(BOUNCE));
        for at in (0..buffer.len()).step_by(BOUNCE) {
            let piece = bounce.slice(0, buffer.len() - at);
            self.read_all(offset + at as u64, &piece).await?;
            buffer.copy_from_slice(at, &piece.to_vec());
        }
        Ok(())
    }

    /// Writes by way of aligned memory, as [`read_bounced`](Self::read_bounced) reads.
    pub(super) async fn write_bounced(&self, offset: u64, buffer: &IoBuffer) -> io::Result<()> {
        for at in (0..buffer.len()).step_by(BOUNCE) {
            let piece = IoBuffer::copied_from(&buffer.slice(at, BOUNCE).to_vec());
            current::write_at(self.engine, &self.file, offset + at as u64, piece).await?;
        }
        Ok(())
    }

    pub(super) async fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        current::fallocate(self.engine, &self.file, mode, offset, len).await
    }

    async fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let chunk = usize::try_from(len.min(ZERO_CHUNK)).unwrap_or(0);
        let zeroes = IoBuffer::alloc(chunk);
        let mut done = 0;
        while done < len {
            let part = zeroes.slice(0, usize::try_from(len - done).unwrap_or(chunk));
            let count = part.len() as u64;
            current::write_at(self.engine, &self.file, offset + done, part).await?;
            done += count;
        }
        Ok(())
    }

    pub(super) async fn sync(&self) -> io::Result<()> {
        if self.no_flush {
            return Ok(());
        }
        current::fdatasync(self.engine, &self.file).await
    }

    /// Asks the file system for the next data and hole, in a worker thread.
    pub(super) async fn search(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let file = Arc::clone(&self.file);
        let status = current::blocking(move || -> io::Result<BlockStatus> {
            let data = match rustix::fs::seek(&*file, SeekFrom::Data(offset)) {
                Ok(data) => data,
                // No data up to the end.
                Err(rustix::io::Errno::NXIO) => offset.saturating_add(len.max(SECTOR)),
                Err(error) => return Err(error.into()),
            };
            // Whole sectors, or a file that was cut off within one would make every later
            // question an unaligned one.
            let zeroes = (data - offset) / SECTOR * SECTOR;
            if zeroes > 0 {
                return Ok(BlockStatus {
                    allocation: Allocation::Zero,
                    len: len.min(zeroes),
                });
            }
            let hole = rustix::fs::seek(&*file, SeekFrom::Hole(offset))?;
            // The hole may just have been punched: then what is known is that one sector was data.
            let data = (hole.saturating_sub(offset)).next_multiple_of(SECTOR);
            Ok(BlockStatus {
                allocation: Allocation::Data,
                len: len.min(data.max(SECTOR)),
            })
        })
        .await?;
        // A file system without holes holds data everywhere.
        Ok(status.unwrap_or(BlockStatus {
            allocation: Allocation::Data,
            len,
        }))
    }

    pub(super) async fn zero(&self, offset: u64, len: u64, flags: RequestFlags) -> Result<()> {
        if flags.contains(RequestFlags::MAY_UNMAP) && self.unmap {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            if self.fallocate(mode, offset, len).await.is_ok() {
                return Ok(());
            }
        }
        // What is a hole already reads as zeroes: writing there would only fill a sparse file.
        let mut done = 0;
        while done < len {
            let status = self.search(offset + done, len - done).await?;
            if status.allocation == Allocation::Data {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                match self.fallocate(mode, offset + done, status.len).await {
                    Ok(()) => {}
                    Err(error) if is_unsupported(&error) => {
                        self.write_zero_bytes(offset + done, status.len).await?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            done += status.len;
        }
        Ok(())
    }
}

pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    )
}
