//! `file` and `host_device`: a disk in a regular file, or on a block device of the host, read and
//! written at byte offsets.
//!
//! Data moves by the engine chosen with `aio=`; calls that may block and that the ring can't do
//! (opening, searching holes) go to worker threads. The file's right to be written is guarded by
//! locks that other programs of this family respect.

pub(crate) mod copying;
mod create;
mod device;
pub mod fdset;
mod file_locks;
mod filled;
pub mod lock;
mod mapped;
mod name;
mod open;
mod opened;
mod probe;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use sluice_aio::current::{self, Transfer};
use sluice_aio::{Aside, IoBuffer, Route};

use super::reopening::{Change, Reopened, Reopening};
use super::{
    BlockFuture, BlockStatus, Driver, FileIdentity, ImageInfo, Limits, RequestFlags, ended, holds,
};
use crate::error::{BlockError, Result};
use crate::io::Place;
use crate::options::{BlockdevOptions, Locking};
use crate::permission::Access;
use crate::room::Room;
pub(crate) use create::NewImage;
pub use fdset::{FdInfo, FdSetError, FdSets};
use file_locks::{Calls, FileLocks};
pub use name::path_of;
pub use open::{FileKind, FileOptions};
pub(crate) use opened::Opened;
use opened::is_unsupported;

/// Worker threads that looks at files may take. One at a file system that hangs keeps its worker, and with as many files
/// there as a loop has workers (64 if nobody says otherwise) nothing else that needs one would go on, a healthy disk with
/// `aio=threads` among it.
static LOOKS: Room = Room::new(16);

/// See the [module](self).
#[derive(Debug)]
pub struct FileDriver {
    /// Requests go through it; a reopen replaces it.
    opened: ArcSwap<Opened>,
    /// What was opened first: it keeps the locks, which belong to one opening of the file.
    first: Arc<Aside<File>>,
    /// None with `locking=off`.
    locks: Option<FileLocks<LockedFile>>,
    /// The file, if it was to be emptied when it was opened.
    image: Option<Arc<NewImage>>,
    path: PathBuf,
    /// Where it is opened again, if the path means one of them.
    fd_sets: Arc<FdSets>,
    /// Size in bytes at opening, or as it was set since.
    size: AtomicU64,
    identity: FileIdentity,
    kind: FileKind,
}

impl FileDriver {
    /// Opens the file; blocks, so it runs in a worker thread.
    ///
    /// # Errors
    /// The file is missing, not permitted, a directory, or no whole number of sectors.
    pub fn open(options: FileOptions) -> Result<Self> {
        open::open(options, None)
    }

    /// The same over a file that is open already, and that is to be emptied; what `options` say of it is so.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn open_new(options: FileOptions, image: &Arc<NewImage>) -> Result<Self> {
        open::open(options, Some(Arc::clone(image)))
    }

    /// Whether the file was opened for writing.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.opened.load().writable
    }

    fn opened(&self) -> Arc<Opened> {
        self.opened.load_full()
    }

    /// The file, while it still holds what is to go.
    fn old(&self) -> Option<&Arc<NewImage>> {
        self.image.as_ref().filter(|image| !image.is_empty())
    }

    /// Waits until nothing old is in the file.
    ///
    /// # Errors
    /// See [`NewImage::emptied`].
    async fn ready(&self) -> Result<()> {
        match self.old() {
            Some(image) => image.emptied().await,
            None => Ok(()),
        }
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Driver for FileDriver {
    #[cfg(test)]
    fn as_file(&self) -> Option<&FileDriver> {
        Some(self)
    }

    fn format_name(&self) -> &'static str {
        self.kind.driver_name()
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.opened.load().alignment.request,
            ..Limits::default()
        }
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn truncate(&self, size: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.ready().await?;
            // What could not be opened again is not made.
            let opened = self.opened();
            let unit = u64::from(opened.alignment.request).max(SECTOR);
            if size == 0 || !size.is_multiple_of(unit) {
                return Err(BlockError::Refused(format!(
                    "The new size must be a multiple of {unit} bytes, and not 0"
                )));
            }
            let file = Arc::clone(&opened.file);
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
        match self.transfer(offset, buffer) {
            Ok(transfer) => ended(transfer),
            Err(buffer) => BlockFuture::new(async move {
                self.ready().await?;
                self.opened().read_bounced(offset, &buffer).await?;
                Ok(())
            }),
        }
    }

    fn transfer(&self, offset: u64, buffer: IoBuffer) -> std::result::Result<Transfer, IoBuffer> {
        let opened = self.opened.load();
        if self.old().is_some()
            || opened.needs_bounce(&buffer)
            || !holds(self.size(), offset, buffer.len())
        {
            return Err(buffer);
        }
        Ok(opened.read(offset, buffer))
    }

    fn write(&self, offset: u64, buffer: IoBuffer, _flags: RequestFlags) -> BlockFuture<'_, ()> {
        let opened = self.opened.load();
        if self.old().is_some() || opened.needs_bounce(&buffer) {
            let opened = Arc::clone(&opened);
            return BlockFuture::new(async move {
                self.ready().await?;
                opened.write_bounced(offset, &buffer).await?;
                Ok(())
            });
        }
        ended(current::write_at(
            opened.route,
            &opened.file,
            offset,
            buffer,
        ))
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.ready().await?;
            self.opened().zero(offset, len, flags).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.ready().await?;
            let opened = self.opened();
            if !opened.unmap || len == 0 {
                return Ok(());
            }
            let given_up = match self.kind {
                FileKind::Regular => {
                    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                    opened.fallocate(mode, offset, len).await
                }
                FileKind::Device => {
                    current::discard(opened.engine(), &opened.file, offset, len).await
                }
            };
            match given_up {
                // A discard is a hint: a file system that can't is not an error.
                Err(error) if !is_unsupported(&error) => Err(error.into()),
                _ => Ok(()),
            }
        })
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            // What is nobody's yet has nothing that was written to it.
            if self.old().is_some_and(|image| !image.is_given()) {
                return Ok(());
            }
            self.ready().await?;
            Ok(self.opened().sync().await?)
        })
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        BlockFuture::new(async move {
            self.ready().await?;
            self.opened().search(offset, len).await
        })
    }

    fn place(&self, offset: u64, _len: u64) -> Option<Place> {
        let opened = self.opened();
        let plain = self.kind == FileKind::Regular && !opened.direct;
        plain.then(|| Place {
            file: Arc::clone(&opened.file),
            lanes: Arc::clone(&opened.lanes),
            offset,
            image: self.old().cloned(),
        })
    }

    fn info(&self) -> ImageInfo {
        let opened = self.opened();
        ImageInfo {
            filename: self.path.to_string_lossy().into_owned(),
            direct: opened.direct,
            no_flush: opened.no_flush,
        }
    }

    fn actual_size(&self) -> BlockFuture<'_, Option<u64>> {
        BlockFuture::new(async move {
            let turn = LOOKS.take(1).await;
            let file = Arc::clone(&self.first);
            let look = move || {
                let found = file.metadata();
                // Also if nobody waits for the answer any more.
                drop((file, turn));
                found
            };
            let found = current::blocking(look).await?;
            Ok(found.ok().map(|meta| meta.blocks() * SECTOR))
        })
    }

    fn file_identity(&self) -> Option<FileIdentity> {
        Some(self.identity)
    }

    fn changeable_options(&self) -> &'static [&'static str] {
        &["aio"]
    }

    /// Another opening of the file, if what there is can't be written and shall be, or goes the
    /// other way round the page cache. The file may have been replaced under its name: then it is
    /// not this node's.
    fn prepare_reopen<'a>(&'a self, wanted: Reopening<'a>) -> BlockFuture<'a, Reopened> {
        BlockFuture::new(async move {
            let mut next = Opened::clone(&self.opened());
            let engine = match wanted.options {
                BlockdevOptions::File(node) | BlockdevOptions::HostDevice(node) => node.aio.into(),
                _ => next.engine(),
            };
            next.no_flush = wanted.no_flush;
            next.unmap = wanted.unmap;
            let to_write = !wanted.read_only && !next.writable;
            // The kernel tells of a failed write-back the opening that wrote: with it the news would be
            // gone, so it is flushed before it goes.
            let exchanges = to_write || wanted.direct != next.direct;
            if exchanges {
                let mut options = FileOptions::new(&self.path);
                options.kind = self.kind;
                options.fd_sets = Arc::clone(&self.fd_sets);
                options.direct = wanted.direct;
                options.read_only = wanted.read_only;
                options.auto_read_only = wanted.auto_read_only;
                let (identity, size) = (self.identity, self.size());
                let again = move || open::reopen(&options, identity, size);
                let (file, writable, alignment) = current::blocking(again).await??;
                next.file = Arc::new(file);
                next.writable = writable;
                next.direct = wanted.direct;
                next.alignment = alignment;
            }
            next.route = Route::to(&next.file, engine);
            Ok(Reopened {
                read_only: wanted.read_only || !next.writable,
                exchanges,
                moves: false,
                change: Change::File(Box::new(next)),
            })
        })
    }

    fn commit_reopen(&self, reopened: Reopened) {
        if let Change::File(next) = reopened.change {
            self.opened.store(Arc::from(next));
        }
    }

    fn prepare_access(&self, access: Access) -> Result<()> {
        let locks = self.locks.as_ref();
        locks.map_or(Ok(()), |locks| locks.prepare(access))
    }

    fn finish_access(&self, access: Access) {
        if let Some(locks) = &self.locks {
            locks.finish(access);
        }
    }
}

/// The file as it is locked.
#[derive(Debug)]
struct LockedFile {
    file: Arc<Aside<File>>,
    path: PathBuf,
    locking: Locking,
    /// See [`Calls::answer_at_once`].
    locks_are_local: bool,
}

impl Calls for LockedFile {
    fn take(&self, access: Access) -> Result<()> {
        lock::prepare(&self.file, &self.path, access, self.locking)
    }

    fn give_back(&self, access: Access) {
        lock::finish(&self.file, access);
    }

    fn answer_at_once(&self) -> bool {
        self.locks_are_local
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Unit of `st_blocks` (stat(2)) and of an ATA or virtio sector, in bytes.
const SECTOR: u64 = 512;
