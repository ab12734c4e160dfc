//! Tests of the generic layer, over a driver that takes nothing but what its limits allow.

mod random;
mod serialising;
mod shapes;

use std::cell::Cell;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_aio::{EventLoop, IoBuffer, LoopConfig, current};

use crate::driver::{Allocation, BlockFuture, BlockStatus, Driver, Limits, RequestFlags};
use crate::error::Result;
use crate::node::{Node, Owner};

/// A generator of test decisions: the same seed, the same run.
#[derive(Debug)]
pub(super) struct Random(Cell<u64>);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    pub(super) fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Below `limit`.
    pub(super) fn below(&self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What the driver was asked: operation, offset, length.
pub(super) type Call = (&'static str, u64, u64);

/// A disk in memory whose requests take a random number of turns for each of their steps, and
/// which panics about a request that its limits forbid.
#[derive(Debug)]
pub(super) struct Strict {
    limits: Limits,
    bytes: Mutex<Vec<u8>>,
    calls: Mutex<Vec<(Call, RequestFlags)>>,
    /// Whether it can write zeroes by itself.
    zeroes: bool,
    /// Bytes that change between two turns.
    step: usize,
    random: Mutex<u64>,
}

impl Strict {
    async fn pause(&self) {
        let turns = {
            let mut state = self.random.lock();
            let random = Random(Cell::new(*state | 1));
            let turns = random.below(3);
            *state = random.0.get();
            turns
        };
        for _ in 0..turns {
            current::yield_now().await;
        }
    }

    fn call(&self, name: &'static str, offset: u64, len: u64, flags: RequestFlags) {
        self.calls.lock().push(((name, offset, len), flags));
    }

    fn check(&self, offset: u64, len: u64, max: Option<u64>) {
        let alignment = u64::from(self.limits.request_alignment);
        let end = offset + len;
        let size = self.size();
        assert!(offset.is_multiple_of(alignment), "begins at {offset}");
        assert!(
            end.is_multiple_of(alignment) || end == size,
            "ends at {end}"
        );
        assert!(end <= size && len > 0, "{offset}+{len}");
        assert!(max.is_none_or(|max| len <= max), "{len} bytes");
    }

    /// Changes a range step by step, as a disk does.
    async fn change(&self, offset: u64, data: &[u8]) {
        let mut at = usize::try_from(offset).unwrap();
        for part in data.chunks(self.step) {
            self.pause().await;
            self.bytes.lock()[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.pause().await;
    }
}

impl Driver for Strict {
    fn format_name(&self) -> &'static str {
        "strict"
    }

    fn size(&self) -> u64 {
        self.bytes.lock().len() as u64
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        let len = buffer.len() as u64;
        self.check(offset, len, self.limits.max_transfer);
        self.call("read", offset, len, RequestFlags::empty());
        BlockFuture::new(async move {
            let start = usize::try_from(offset).unwrap();
            for at in (0..buffer.len()).step_by(self.step) {
                self.pause().await;
                let end = buffer.len().min(at + self.step);
                let part = self.bytes.lock()[start + at..start + end].to_vec();
                buffer.copy_from_slice(at, &part);
            }
            self.pause().await;
            Ok(())
        })
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        let len = buffer.len() as u64;
        self.check(offset, len, self.limits.max_transfer);
        self.call("write", offset, len, flags);
        BlockFuture::new(async move {
            let data = buffer.to_vec();
            self.change(offset, &data).await;
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        self.check(offset, len, self.limits.max_write_zeroes);
        self.call("zero", offset, len, flags);
        BlockFuture::new(async move {
            if !self.zeroes {
                return Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP).into());
            }
            self.change(offset, &vec![0; usize::try_from(len).unwrap()])
                .await;
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        self.check(offset, len, self.limits.max_discard);
        self.call("discard", offset, len, RequestFlags::empty());
        BlockFuture::new(async move {
            self.change(offset, &vec![0; usize::try_from(len).unwrap()])
                .await;
            Ok(())
        })
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        self.call("flush", 0, 0, RequestFlags::empty());
        BlockFuture::new(async { Ok(()) })
    }

    /// By 512-byte sectors, whatever the alignment: zero or data.
    fn block_status(&self, offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        let bytes = self.bytes.lock();
        let start = usize::try_from(offset).unwrap();
        let range = &bytes[start..start + usize::try_from(len).unwrap()];
        let mut sectors = range
            .chunks(512)
            .map(|sector| sector.iter().all(|byte| *byte == 0));
        let zero = sectors.next().unwrap();
        let more = sectors.take_while(|other| *other == zero).count() as u64;
        let allocation = if zero {
            Allocation::Zero
        } else {
            Allocation::Data
        };
        let len = len.min((more + 1) * 512);
        BlockFuture::new(async move { Ok(BlockStatus { allocation, len }) })
    }
}

/// What a test's disk is like.
pub(super) struct Recipe {
    pub(super) size: usize,
    pub(super) limits: Limits,
    pub(super) zeroes: bool,
    pub(super) step: usize,
    pub(super) seed: u64,
}

impl Recipe {
    pub(super) fn new(size: usize, limits: Limits) -> Self {
        Self {
            size,
            limits,
            zeroes: true,
            step: usize::MAX,
            seed: 1,
        }
    }

    pub(super) fn make(self) -> Disk {
        let strict = Arc::new(Strict {
            limits: self.limits,
            bytes: Mutex::new(vec![0xaa; self.size]),
            calls: Mutex::default(),
            zeroes: self.zeroes,
            step: self.step.min(self.size),
            random: Mutex::new(Random::new(self.seed).next()),
        });
        let driver = Box::new(Shared(Arc::clone(&strict)));
        Disk {
            node: Node::new("disk".to_owned(), driver, false, Owner::Monitor),
            strict,
        }
    }
}

/// Contents for a disk: no two neighbouring bytes, sectors or blocks are the same.
pub(super) fn initial(index: usize) -> u8 {
    u8::try_from((index + index / 512 * 7 + index / 4096 * 3) % 251).unwrap() + 1
}

/// A node, and its driver to look into.
pub(super) struct Disk {
    pub(super) node: Arc<Node>,
    strict: Arc<Strict>,
}

impl Disk {
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.strict.bytes.lock().clone()
    }

    pub(super) fn set_bytes(&self, change: impl FnOnce(&mut [u8])) {
        change(&mut self.strict.bytes.lock());
    }

    /// What the driver was asked since the last time.
    pub(super) fn calls(&self) -> Vec<Call> {
        let calls = self.strict.calls.lock().drain(..).collect::<Vec<_>>();
        calls.into_iter().map(|(call, _)| call).collect()
    }

    /// The same with the requests' flags.
    pub(super) fn calls_with_flags(&self) -> Vec<(Call, RequestFlags)> {
        self.strict.calls.lock().drain(..).collect()
    }

    pub(super) async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let buffer = IoBuffer::alloc(len);
        self.node.read(offset, buffer.clone()).await?;
        Ok(buffer.to_vec())
    }

    pub(super) async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let buffer = IoBuffer::copied_from(bytes);
        self.node.write(offset, buffer, RequestFlags::empty()).await
    }
}

/// The driver's handle in its node.
#[derive(Debug)]
struct Shared(Arc<Strict>);

impl Driver for Shared {
    fn format_name(&self) -> &'static str {
        self.0.format_name()
    }

    fn size(&self) -> u64 {
        self.0.size()
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        self.0.read(offset, buffer)
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        self.0.write(offset, buffer, flags)
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        self.0.write_zeroes(offset, len, flags)
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        self.0.discard(offset, len)
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        self.0.flush()
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        self.0.block_status(offset, len)
    }
}

/// Limits of a disk with blocks of `alignment` bytes.
pub(super) fn blocks_of(alignment: u32) -> Limits {
    Limits {
        request_alignment: alignment,
        ..Limits::default()
    }
}

/// Runs `test` as a task of a loop.
pub(super) fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F) {
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    event_loop.run_until(test()).unwrap();
}
