//! `null-co`: a disk without storage, for tests and for measuring everything above it.

use std::time::Duration;

use sluice_aio::{IoBuffer, current};

use super::{Allocation, BlockFuture, BlockStatus, Driver, ImageInfo, RequestFlags};

/// Reads nothing, keeps nothing.
#[derive(Debug)]
pub struct Null {
    /// Size in bytes.
    size: u64,
    /// Whether reads fill the buffer with zeroes; otherwise they leave it alone.
    read_zeroes: bool,
    /// How long each request takes.
    latency: Duration,
}

impl Null {
    /// A disk of `size` bytes whose requests take `latency`.
    #[must_use]
    pub fn new(size: u64, read_zeroes: bool, latency: Duration) -> Self {
        Self {
            size,
            read_zeroes,
            latency,
        }
    }

    fn done(&self) -> BlockFuture<'_, ()> {
        let latency = self.latency;
        BlockFuture::new(async move {
            if !latency.is_zero() {
                current::sleep(latency).await;
            }
            Ok(())
        })
    }
}

impl Driver for Null {
    fn format_name(&self) -> &'static str {
        "null-co"
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, _offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        if self.read_zeroes {
            buffer.fill(0, buffer.len(), 0);
        }
        self.done()
    }

    fn write(&self, _offset: u64, _buffer: IoBuffer, _flags: RequestFlags) -> BlockFuture<'_, ()> {
        self.done()
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _flags: RequestFlags) -> BlockFuture<'_, ()> {
        self.done()
    }

    fn discard(&self, _offset: u64, _len: u64) -> BlockFuture<'_, ()> {
        self.done()
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        self.done()
    }

    fn block_status(&self, _offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        let allocation = if self.read_zeroes {
            Allocation::Zero
        } else {
            Allocation::Data
        };
        BlockFuture::new(async move { Ok(BlockStatus { allocation, len }) })
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            filename: "null-co://".to_owned(),
            ..ImageInfo::default()
        }
    }
}
