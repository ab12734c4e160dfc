//! `raw`: a disk whose bytes are those of its file, or of a window of it.

use std::sync::atomic::{AtomicU64, Ordering};

use sluice_aio::IoBuffer;
use sluice_aio::current::Transfer;

use super::limits::MAX_SIZE;
use super::reopening::{Change, Reopened, Reopening};
use super::{BlockFuture, BlockStatus, Driver, Edge, RequestFlags, holds};
use crate::error::{BlockError, Result};
use crate::io::{DetectZeroes, Place};
use crate::options::BlockdevOptions;

/// Bytes of a sector, of which a window must have whole ones.
const SECTOR: u64 = 512;

/// Which part of the file the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// First byte.
    offset: u64,
    /// Bytes, or the whole rest of the file.
    size: Option<u64>,
}

impl Window {
    /// # Errors
    /// The window does not lie within a file of `whole` bytes, or has parts of sectors.
    fn new(offset: u64, size: Option<u64>, whole: u64) -> Result<Self> {
        let refused = |why: String| Err(BlockError::Refused(why));
        if offset > whole {
            return refused(format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({whole})"
            ));
        }
        if let Some(size) = size.filter(|size| *size > whole - offset) {
            return refused(format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the \
                 actual size of the containing file ({whole})"
            ));
        }
        if size.is_some_and(|size| !size.is_multiple_of(SECTOR)) {
            return refused(format!("Specified size is not multiple of {SECTOR}"));
        }
        Ok(Self { offset, size })
    }

    /// Bytes of the window into a file of `whole` bytes.
    pub(super) fn len(&self, whole: u64) -> u64 {
        let rest = whole.saturating_sub(self.offset);
        self.size.unwrap_or(rest)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Raw {
    file: Edge,
    /// First byte of the window. Both change only inside sections.
    offset: AtomicU64,
    /// Bytes of the window; [`REST`] for the whole rest of the file.
    size: AtomicU64,
}

/// No window is so large.
const REST: u64 = u64::MAX;

impl Raw {
    /// A disk over `file`, `size` bytes from byte `offset` (all the rest if `None`).
    ///
    /// # Errors
    /// The window does not lie within the file, or has parts of sectors.
    pub fn new(file: Edge, offset: u64, size: Option<u64>) -> Result<Self> {
        let window = Window::new(offset, size, file.node().len())?;
        let raw = Self {
            file,
            offset: AtomicU64::new(0),
            size: AtomicU64::new(REST),
        };
        raw.set(window);
        Ok(raw)
    }

    fn window(&self) -> Window {
        Window {
            offset: self.offset(),
            size: self.fixed_size(),
        }
    }

    fn set(&self, window: Window) {
        self.offset.store(window.offset, Ordering::Relaxed);
        let size = window.size.unwrap_or(REST);
        self.size.store(size, Ordering::Relaxed);
    }

    fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    fn fixed_size(&self) -> Option<u64> {
        let size = self.size.load(Ordering::Relaxed);
        (size != REST).then_some(size)
    }
}

impl Driver for Raw {
    fn format_name(&self) -> &'static str {
        "raw"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.file)
    }

    /// A format: what is below its file is the file's affair.
    fn offset_in_child(&self) -> u64 {
        self.offset()
    }

    fn is_filter(&self) -> bool {
        false
    }

    fn size(&self) -> u64 {
        self.window().len(self.file.len())
    }

    fn truncate(&self, size: u64) -> BlockFuture<'_, ()> {
        let node = self.file.node();
        BlockFuture::new(async move {
            if self.fixed_size().is_some() {
                let why = "Cannot resize fixed-size raw disks";
                return Err(BlockError::Refused(why.to_owned()));
            }
            let whole = size.checked_add(self.offset());
            let Some(whole) = whole.filter(|whole| *whole <= MAX_SIZE) else {
                let why = "Disk size too large for the chosen offset";
                return Err(BlockError::Refused(why.to_owned()));
            };
            node.resize(whole).await
        })
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        let node = self.file.node();
        BlockFuture::new(async move { node.read(offset + self.offset(), buffer).await })
    }

    fn transfer(&self, offset: u64, buffer: IoBuffer) -> std::result::Result<Transfer, IoBuffer> {
        let size = self.fixed_size().unwrap_or(u64::MAX);
        match offset.checked_add(self.offset()) {
            Some(inside) if holds(size, offset, buffer.len()) => self.file.transfer(inside, buffer),
            _ => Err(buffer),
        }
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        let node = self.file.node();
        BlockFuture::new(async move { node.write(offset + self.offset(), buffer, flags).await })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        let node = self.file.node();
        BlockFuture::new(async move { node.write_zeroes(offset + self.offset(), len, flags).await })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        let node = self.file.node();
        BlockFuture::new(async move { node.discard(offset + self.offset(), len).await })
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        let node = self.file.node();
        BlockFuture::new(async move { node.block_status(offset + self.offset(), len).await })
    }

    fn place(&self, offset: u64, len: u64) -> Option<Place> {
        let node = self.file.node();
        // The file's node sees to writes of zeroes, if it was asked to.
        let plain = node.policy().detect_zeroes() == DetectZeroes::Off;
        plain
            .then(|| node.place(offset + self.offset(), len))
            .flatten()
    }

    fn changeable_options(&self) -> &'static [&'static str] {
        &["offset", "size"]
    }

    fn prepare_reopen<'a>(&'a self, wanted: Reopening<'a>) -> BlockFuture<'a, Reopened> {
        BlockFuture::new(async move {
            let mut reopened = Reopened::unchanged(wanted.read_only);
            if let BlockdevOptions::Raw(raw) = wanted.options {
                let window = Window::new(raw.offset, raw.size, wanted.child_size)?;
                reopened.moves = window.offset != self.offset();
                reopened.change = Change::Raw(window);
            }
            Ok(reopened)
        })
    }

    fn commit_reopen(&self, reopened: Reopened) {
        if let Change::Raw(window) = reopened.change {
            self.set(window);
        }
    }
}
