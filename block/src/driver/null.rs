//! `null-co` and `null-aio`: disks without storage, for tests and for measuring everything above.
//!
//! A request of `null-co` without latency ends where it begins; one of `null-aio` lets the loop's
//! other tasks run first, as a device would.

use std::time::Duration;

use sluice_aio::{IoBuffer, current};

use super::limits::MAX_SIZE;
use super::{Allocation, BlockFuture, BlockStatus, Driver, ImageInfo, RequestFlags};
use crate::error::{BlockError, Result};
use crate::options::NullNode;

/// Bytes of a sector, of which a disk has whole ones.
const SECTOR: u64 = 512;

/// Reads nothing, keeps nothing.
#[derive(Debug)]
pub struct Null {
    name: &'static str,
    /// Size in bytes.
    size: u64,
    /// Whether reads fill the buffer with zeroes; otherwise they leave it alone.
    read_zeroes: bool,
    /// How long each request takes.
    latency: Duration,
    /// Whether other tasks run before a request ends.
    yields: bool,
}

impl Null {
    /// A disk of the driver `null-co`; its size is rounded up to whole sectors.
    ///
    /// # Errors
    /// The size can't be rounded up.
    pub fn co(options: &NullNode) -> Result<Self> {
        Self::new("null-co", options, false)
    }

    /// The same of `null-aio`.
    ///
    /// # Errors
    /// As [`Null::co`].
    pub fn aio(options: &NullNode) -> Result<Self> {
        Self::new("null-aio", options, true)
    }

    fn new(name: &'static str, options: &NullNode, yields: bool) -> Result<Self> {
        let size = options.size.checked_next_multiple_of(SECTOR);
        let size = size.filter(|size| *size <= MAX_SIZE);
        Ok(Self {
            name,
            size: size.ok_or_else(|| BlockError::Refused("size is invalid".to_owned()))?,
            read_zeroes: options.read_zeroes,
            latency: Duration::from_nanos(options.latency_ns),
            yields,
        })
    }

    fn done(&self) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            if !self.latency.is_zero() {
                current::sleep(self.latency).await;
            } else if self.yields {
                current::yield_now().await;
            }
            Ok(())
        })
    }
}

impl Driver for Null {
    fn format_name(&self) -> &'static str {
        self.name
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
            filename: format!("{}://", self.name),
            ..ImageInfo::default()
        }
    }

    fn actual_size(&self) -> BlockFuture<'_, Option<u64>> {
        BlockFuture::new(async { Ok(Some(0)) })
    }
}

#[cfg(test)]
mod tests {
    use sluice_aio::{Clock, EventLoop, LoopConfig};

    use super::*;

    fn options(json: serde_json::Value) -> NullNode {
        serde_json::from_value(json).unwrap()
    }

    fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Clock) -> F) {
        let clock = Clock::manual();
        let config = LoopConfig {
            clock: clock.clone(),
            ..LoopConfig::default()
        };
        let mut event_loop = EventLoop::new("test", &config).unwrap();
        event_loop.run_until(test(clock)).unwrap();
    }

    #[test]
    fn sizes_are_whole_sectors() {
        let size = |size: u64| Null::co(&options(serde_json::json!({"size": size})));
        assert_eq!(size(0).unwrap().size(), 0);
        assert_eq!(size(10).unwrap().size(), 512);
        assert!(size(i64::MAX.unsigned_abs()).is_err());
        assert!(size(u64::MAX).is_err());
        assert_eq!(
            Null::co(&options(serde_json::json!({}))).unwrap().size(),
            1 << 30
        );
    }

    #[test]
    fn reads_give_zeroes_or_leave_the_memory_alone() {
        run(|_| async {
            for read_zeroes in [false, true] {
                let node = options(serde_json::json!({"read-zeroes": read_zeroes}));
                let driver = Null::aio(&node).unwrap();
                let buffer = IoBuffer::alloc(512);
                buffer.fill(0, 512, 7);
                driver.read(0, buffer.clone()).await.unwrap();
                assert_eq!(buffer.is_zero(), read_zeroes);
                let status = driver.block_status(0, 4096).await.unwrap();
                let zero = status.allocation == Allocation::Zero;
                assert_eq!((zero, status.len), (read_zeroes, 4096));
                let name = driver.format_name();
                assert_eq!(driver.info().filename, format!("{name}://"));
            }
        });
    }

    #[test]
    fn every_request_takes_its_time() {
        run(|clock| async move {
            let slow = Null::co(&options(serde_json::json!({"latency-ns": 5_000_000}))).unwrap();
            let requests = [
                slow.read(0, IoBuffer::alloc(512)),
                slow.write(0, IoBuffer::alloc(512), RequestFlags::empty()),
                slow.write_zeroes(0, 512, RequestFlags::empty()),
                slow.discard(0, 512),
                slow.flush(),
            ];
            for request in requests {
                let mut request = std::pin::pin!(request);
                assert!(futures_util::poll!(&mut request).is_pending());
                clock.advance(Duration::from_nanos(4_999_999));
                assert!(futures_util::poll!(&mut request).is_pending());
                clock.advance(Duration::from_nanos(1));
                request.await.unwrap();
            }
            // Without latency: one ends at once, the other lets others run.
            let co = Null::co(&options(serde_json::json!({}))).unwrap();
            assert!(futures_util::poll!(co.flush()).is_ready());
            let aio = Null::aio(&options(serde_json::json!({}))).unwrap();
            assert!(futures_util::poll!(aio.flush()).is_pending());
        });
    }
}
