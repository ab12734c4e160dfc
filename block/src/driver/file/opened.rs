//! [`Opened`]: one opening of a file, and how bytes are moved by it.
//!
//! A reopen replaces it as a whole, inside a drained section; a request uses the one that it found.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::SeekFrom;
use sluice_aio::current::{self, Transfer};
use sluice_aio::{Aside, EngineKind, IoBuffer, Route};

use super::SECTOR;
use super::copying::Lanes;
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
    pub(super) file: Arc<Aside<File>>,
    pub(super) writable: bool,
    /// By which engine its bytes move.
    pub(super) route: Route,
    pub(super) direct: bool,
    /// What the file asks of requests: nothing, unless it was opened with O_DIRECT.
    pub(super) alignment: Alignment,
    pub(super) no_flush: bool,
    /// `discard=unmap`: discards reach the file system.
    pub(super) unmap: bool,
    /// The errno of the first flush of the page cache that failed; 0 if none did. Shared by all who
    /// go on with this opening of the file.
    pub(super) lost: Arc<AtomicI32>,
    /// See [`Place::lanes`](crate::io::Place::lanes).
    pub(super) lanes: Arc<Lanes>,
}

impl Opened {
    pub(super) fn engine(&self) -> EngineKind {
        self.route.engine()
    }

    /// O_DIRECT needs aligned memory; guests mostly bring it, and the rest is copied.
    pub(super) fn needs_bounce(&self, buffer: &IoBuffer) -> bool {
        let bytes = |alignment: u32| usize::try_from(alignment).unwrap_or(usize::MAX);
        let Alignment { request, memory } = self.alignment;
        self.direct && !buffer.is_aligned_to(bytes(memory), bytes(request))
    }

    /// Begins to read. What the file has lost behind our back, by shrinking, reads as zeroes.
    pub(super) fn read(&self, offset: u64, buffer: IoBuffer) -> Transfer {
        current::read_at(self.route.padded(), &self.file, offset, buffer)
    }

    /// Reads by way of aligned memory, piece by piece: how much a guest asks for at once must not
    /// decide how much memory that takes.
    pub(super) async fn read_bounced(&self, offset: u64, buffer: &IoBuffer) -> io::Result<()> {
        let bounce = IoBuffer::alloc(buffer.len().min(BOUNCE));
        for at in (0..buffer.len()).step_by(BOUNCE) {
            let piece = bounce.slice(0, buffer.len() - at);
            self.read(offset + at as u64, piece.clone()).await?;
            buffer.copy_from_slice(at, &piece.to_vec());
        }
        Ok(())
    }

    /// Writes by way of aligned memory, as [`read_bounced`](Self::read_bounced) reads.
    pub(super) async fn write_bounced(&self, offset: u64, buffer: &IoBuffer) -> io::Result<()> {
        for at in (0..buffer.len()).step_by(BOUNCE) {
            let piece = IoBuffer::copied_from(&buffer.slice(at, BOUNCE).to_vec());
            current::write_at(self.route, &self.file, offset + at as u64, piece).await?;
        }
        Ok(())
    }

    pub(super) async fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        current::fallocate(self.engine(), &self.file, mode, offset, len).await
    }

    async fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let chunk = usize::try_from(len.min(ZERO_CHUNK)).unwrap_or(0);
        let zeroes = IoBuffer::alloc(chunk);
        let mut done = 0;
        while done < len {
            let part = zeroes.slice(0, usize::try_from(len - done).unwrap_or(chunk));
            let count = part.len() as u64;
            current::write_at(self.route, &self.file, offset + done, part).await?;
            done += count;
        }
        Ok(())
    }

    /// Makes durable what was written; once that has failed, it fails for as long as the file stays
    /// open.
    ///
    /// The kernel tells an opening of a write-back error once, and may mark the pages clean all
    /// the same (fsync(2), "EIO"): the next fdatasync(2) succeeds although data is lost. Past
    /// the page cache there is nothing to lose so: there the medium's flush alone has failed, and
    /// may be tried again.
    pub(super) async fn sync(&self) -> io::Result<()> {
        if self.no_flush {
            return Ok(());
        }
        self.check_nothing_lost()?;
        let synced = current::fdatasync(self.engine(), &self.file).await;
        if let Err(error) = &synced
            && !self.direct
        {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            // The first errno stays, whichever of several flushes ends first.
            let _ = self
                .lost
                .compare_exchange(0, errno, Ordering::SeqCst, Ordering::SeqCst);
        }
        // Another flush of this file may have got the error for which the kernel would not tell
        // this one.
        self.check_nothing_lost().and(synced)
    }

    /// # Errors
    /// A flush of this opening has failed.
    fn check_nothing_lost(&self) -> io::Result<()> {
        match self.lost.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
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
