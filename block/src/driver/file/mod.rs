//! `file` and `host_device`: a disk in a regular file, or on a block device of the host, read and
//! written at byte offsets.
//!
//! Data moves by the engine chosen with `aio=`; calls that may block and that the ring can't do
//! (opening, searching holes) go to worker threads. The file's right to be written is guarded by
//! [locks](lock) that other programs of this family respect.

pub mod create;
mod device;
pub mod lock;
mod open;
mod probe;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustix::fs::SeekFrom;
use sluice_aio::{EngineKind, IoBuffer, current};

use super::{
    Allocation, BlockFuture, BlockStatus, Driver, FileIdentity, ImageInfo, Limits, ReopenedMedium,
    RequestFlags,
};
use crate::error::{BlockError, Result};
use crate::options::Locking;
use crate::permission::Access;
pub use create::create_image;
pub use open::{FileKind, FileOptions};
use probe::Alignment;

/// The most bytes that are copied to aligned memory at once.
const BOUNCE: usize = 1 << 20;

/// Zeroes written at once where the file system can't zero a range by itself, in bytes.
const ZERO_CHUNK: u64 = 1 << 20;

/// See the [module](self).
#[derive(Debug)]
pub struct FileDriver {
    /// Requests go through it; a reopen replaces it.
    file: ArcSwap<File>,
    /// What was opened first: it keeps the locks, which belong to one opening of the file.
    locks: Arc<File>,
    path: PathBuf,
    /// Size in bytes at opening, or as it was set since.
    size: AtomicU64,
    identity: FileIdentity,
    writable: AtomicBool,
    auto_read_only: bool,
    engine: EngineKind,
    kind: FileKind,
    direct: bool,
    /// What the file asks of requests: nothing, unless it was opened with O_DIRECT.
    alignment: Alignment,
    locking: Locking,
    no_flush: bool,
    /// `discard=unmap`: discards reach the file system.
    unmap: bool,
}

impl FileDriver {
    /// Opens the file; blocks, so it runs in a worker thread.
    ///
    /// # Errors
    /// The file is missing, not permitted, a directory, or no whole number of sectors.
    pub fn open(options: FileOptions) -> Result<Self> {
        open::open(options)
    }

    /// Whether the file was opened for writing.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    fn file(&self) -> Arc<File> {
        self.file.load_full()
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// O_DIRECT needs aligned memory; guests mostly bring it, and the rest is copied.
    fn needs_bounce(&self, buffer: &IoBuffer) -> bool {
        let bytes = |alignment: u32| usize::try_from(alignment).unwrap_or(usize::MAX);
        let Alignment { request, memory } = self.alignment;
        self.direct && !buffer.is_aligned_to(bytes(memory), bytes(request))
    }

    async fn read_all(&self, offset: u64, buffer: &IoBuffer) -> io::Result<()> {
        let count = current::read_at(self.engine, &self.file(), offset, buffer.clone()).await?;
        // The file shrank behind our back: what is gone reads as zeroes.
        buffer.fill(count, buffer.len() - count, 0);
        Ok(())
    }

    /// Reads by way of aligned memory, piece by piece: how much a guest asks for at once must not
    /// decide how much memory that takes.
    async fn read_bounced(&self, offset: u64, buffer: &IoBuffer) -> io::Result<()> {
        let bounce = IoBuffer::alloc(buffer.len().min(BOUNCE));
        for at in (0..buffer.len()).step_by(BOUNCE) {
            let piece = bounce.slice(0, buffer.len() - at);
            self.read_all(offset + at as u64, &piece).await?;
            buffer.copy_from_slice(at, &piece.to_vec());
        }
        Ok(())
    }

    /// Writes by way of aligned memory, as [`read_bounced`](Self::read_bounced) reads.
    async fn write_bounced(&self, offset: u64, buffer: &IoBuffer) -> io::Result<()> {
        for at in (0..buffer.len()).step_by(BOUNCE) {
            let piece = IoBuffer::copied_from(&buffer.slice(at, BOUNCE).to_vec());
            current::write_at(self.engine, &self.file(), offset + at as u64, piece).await?;
        }
        Ok(())
    }

    async fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        current::fallocate(self.engine, &self.file(), mode, offset, len).await
    }

    async fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let chunk = usize::try_from(len.min(ZERO_CHUNK)).unwrap_or(0);
        let zeroes = IoBuffer::alloc(chunk);
        let mut done = 0;
        while done < len {
            let part = zeroes.slice(0, usize::try_from(len - done).unwrap_or(chunk));
            let count = part.len() as u64;
            current::write_at(self.engine, &self.file(), offset + done, part).await?;
            done += count;
        }
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        if self.no_flush {
            return Ok(());
        }
        current::fdatasync(self.engine, &self.file()).await
    }

    /// Asks the file system for the next data and hole, in a worker thread.
    async fn search(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let file = self.file();
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

    async fn zero(&self, offset: u64, len: u64, flags: RequestFlags) -> Result<()> {
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

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    )
}

impl Driver for FileDriver {
    fn format_name(&self) -> &'static str {
        self.kind.driver_name()
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.alignment.request,
            ..Limits::default()
        }
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn truncate(&self, size: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            // What could not be opened again is not made.
            let unit = u64::from(self.alignment.request).max(SECTOR);
            if size == 0 || size % unit != 0 {
                return Err(BlockError::Refused(format!(
                    "The new size must be a multiple of {unit} bytes, and not 0"
                )));
            }
            let file = self.file();
            current::blocking(move || -> Result<()> {
                if !file.metadata()?.is_file() {
                    let why = "Cannot resize device files";
                    return Err(BlockError::Refused(why.to_owned()));
                }
                Ok(file.set_len(size)?)
            })
            .await??;
            self.size.store(size, Ordering::Relaxed);
            Ok(())
        })
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            if self.needs_bounce(&buffer) {
                return Ok(self.read_bounced(offset, &buffer).await?);
            }
            Ok(self.read_all(offset, &buffer).await?)
        })
    }

    fn write(&self, offset: u64, buffer: IoBuffer, _flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            if self.needs_bounce(&buffer) {
                self.write_bounced(offset, &buffer).await?;
            } else {
                current::write_at(self.engine, &self.file(), offset, buffer).await?;
            }
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.zero(offset, len, flags).await?;
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            if !self.unmap || len == 0 {
                return Ok(());
            }
            let given_up = match self.kind {
                FileKind::Regular => {
                    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                    self.fallocate(mode, offset, len).await
                }
                FileKind::Device => current::discard(self.engine, &self.file(), offset, len).await,
            };
            match given_up {
                // A discard is a hint: a file system that can't is not an error.
                Err(error) if !is_unsupported(&error) => Err(error.into()),
                _ => Ok(()),
            }
        })
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move { Ok(self.sync().await?) })
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        BlockFuture::new(self.search(offset, len))
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            filename: self.path.to_string_lossy().into_owned(),
            actual_size: self
                .locks
                .metadata()
                .ok()
                .map(|meta| meta.blocks() * SECTOR),
            direct: self.direct,
            no_flush: self.no_flush,
        }
    }

    fn file_identity(&self) -> Option<FileIdentity> {
        Some(self.identity)
    }

    /// Another opening of the file, if what there is can't be written and shall be. The file may
    /// have been replaced under its name: then it is not this node's.
    fn prepare_reopen(&self, read_only: bool) -> BlockFuture<'_, ReopenedMedium> {
        BlockFuture::new(async move {
            if read_only || self.is_writable() {
                return Ok(ReopenedMedium::unchanged(read_only));
            }
            let mut options = FileOptions::new(&self.path);
            options.kind = self.kind;
            options.direct = self.direct;
            options.auto_read_only = self.auto_read_only;
            let identity = self.identity;
            let opened = current::blocking(move || open::reopen(&options, identity)).await??;
            Ok(
                opened.map_or(ReopenedMedium::unchanged(true), |file| ReopenedMedium {
                    read_only: false,
                    file: Some(Arc::new(file)),
                }),
            )
        })
    }

    fn commit_reopen(&self, medium: ReopenedMedium) {
        if let Some(file) = medium.file {
            self.file.store(file);
            self.writable.store(true, Ordering::Relaxed);
        }
    }

    fn prepare_access(&self, access: Access) -> Result<()> {
        match self.locking {
            Locking::Off => Ok(()),
            locking => lock::prepare(&self.locks, &self.path, access, locking),
        }
    }

    fn finish_access(&self, access: Access) {
        if self.locking != Locking::Off {
            lock::finish(&self.locks, access);
        }
    }
}

/// Unit of `st_blocks` (stat(2)) and of an ATA or virtio sector, in bytes.
const SECTOR: u64 = 512;
