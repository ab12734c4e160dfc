//! `raw`: a disk whose bytes are those of its file, or of a window of it.

use sluice_aio::IoBuffer;

use super::limits::MAX_SIZE;
use super::{BlockFuture, BlockStatus, Driver, Edge, RequestFlags};
use crate::error::{BlockError, Result};

/// Bytes of a sector, of which a window must have whole ones.
const SECTOR: u64 = 512;

/// See the [module](self).
#[derive(Debug)]
pub struct Raw {
    file: Edge,
    /// First byte of the window.
    offset: u64,
    /// Size of the window, or the whole rest of the file.
    size: Option<u64>,
}

impl Raw {
    /// A disk over `file`, `size` bytes from byte `offset` (all the rest if `None`).
    ///
    /// # Errors
    /// The window does not lie within the file, or on sectors.
    pub fn new(file: Edge, offset: u64, size: Option<u64>) -> Result<Self> {
        let whole = file.node().len();
        for (what, bytes) in [("offset", offset), ("size", size.unwrap_or_default())] {
            if bytes % SECTOR != 0 {
                return Err(BlockError::Refused(format!(
                    "Specified {what} is not multiple of {SECTOR}"
                )));
            }
        }
        if offset > whole {
            return Err(BlockError::Refused(format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({whole})"
            )));
        }
        let rest = whole - offset;
        if size.is_some_and(|size| size > rest) {
            return Err(BlockError::Refused(format!(
                "The sum of offset ({offset}) and size ({}) has to be smaller or equal to the \
                 actual size of the containing file ({whole})",
                size.unwrap_or_default()
            )));
        }
        Ok(Self { file, offset, size })
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
    fn is_filter(&self) -> bool {
        false
    }

    fn size(&self) -> u64 {
        self.size
            .unwrap_or_else(|| self.file.node().len().saturating_sub(self.offset))
    }

    fn truncate(&self, size: u64) -> BlockFuture<'_, ()> {
        let node = self.file.node();
        BlockFuture::new(async move {
            if self.size.is_some() {
                let why = "Cannot resize fixed-size raw disks";
                return Err(BlockError::Refused(why.to_owned()));
            }
            let whole = size.checked_add(self.offset);
            let Some(whole) = whole.filter(|whole| *whole <= MAX_SIZE) else {
                let why = "Disk size too large for the chosen offset";
                return Err(BlockError::Refused(why.to_owned()));
            };
            node.resize(whole).await
        })
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        let node = self.file.node();
        BlockFuture::new(async move { node.read(offset + self.offset, buffer).await })
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        let node = self.file.node();
        BlockFuture::new(async move { node.write(offset + self.offset, buffer, flags).await })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        let node = self.file.node();
        BlockFuture::new(async move { node.write_zeroes(offset + self.offset, len, flags).await })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        let node = self.file.node();
        BlockFuture::new(async move { node.discard(offset + self.offset, len).await })
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        let node = self.file.node();
        BlockFuture::new(async move { node.block_status(offset + self.offset, len).await })
    }
}
