//! The bottom of the graph, which sees what comes down to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use event_listener::Event;
use parking_lot::Mutex;
use sluice_aio::{IoBuffer, current};

use super::{DISKS, OF_DISK};
use crate::driver::{Allocation, BlockFuture, BlockStatus, Driver, RequestFlags};

/// What a guest asks a disk for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// No driver here can make them: they come down as writes.
    Zeroes,
    Discard,
    /// Has no place on a disk; the bottom only counts them.
    Flush,
}

impl Kind {
    /// What the bottom is asked for.
    fn of_bottom(self) -> Self {
        match self {
            Self::Zeroes => Self::Write,
            other => other,
        }
    }
}

/// What the bottom of the graph sees, and who claims to be alone.
#[derive(Debug)]
pub(super) struct Seen {
    /// Sections that cover the disk, by number.
    pub(super) exclusive: Vec<AtomicUsize>,
    /// Requests of the disk that have their token.
    running: Vec<AtomicUsize>,
    pub(super) log: Mutex<Vec<(u64, Kind)>>,
    pub(super) flushes: AtomicUsize,
    pub(super) broken: Mutex<Vec<String>>,
    pub(super) holding: AtomicBool,
    released: Event,
}

impl Seen {
    pub(super) fn new() -> Self {
        let zeroes = || (0..DISKS).map(|_| AtomicUsize::new(0)).collect();
        Self {
            exclusive: zeroes(),
            running: zeroes(),
            log: Mutex::default(),
            flushes: AtomicUsize::new(0),
            broken: Mutex::default(),
            holding: AtomicBool::new(false),
            released: Event::new(),
        }
    }

    /// A guest's request has its token.
    pub(super) fn begins(&self, disk: usize) {
        self.running[disk].fetch_add(1, Ordering::SeqCst);
        self.check(disk, "at its start");
    }

    /// It is about to give it back.
    pub(super) fn ends(&self, disk: usize) {
        self.check(disk, "at its end");
        self.running[disk].fetch_sub(1, Ordering::SeqCst);
    }

    /// A section that covers the disk has begun.
    pub(super) fn claim(&self, disk: usize) {
        if self.running[disk].load(Ordering::SeqCst) > 0 {
            let what = format!("disk {disk} is busy when its section begins");
            self.broken.lock().push(what);
        }
        self.exclusive[disk].fetch_add(1, Ordering::SeqCst);
    }

    fn check(&self, disk: usize, when: &str) {
        if self.exclusive[disk].load(Ordering::SeqCst) > 0 {
            let what = format!("disk {disk}: a request inside a section, {when}");
            self.broken.lock().push(what);
        }
    }

    pub(super) fn release(&self) {
        self.holding.store(false, Ordering::SeqCst);
        self.released.notify(usize::MAX);
    }

    /// Whether the bottom was asked for exactly this.
    pub(super) fn is_served(served: &[(u64, Kind)], offset: u64, kind: Kind) -> bool {
        let kinds: Vec<_> = served.iter().filter(|(at, _)| *at == offset).collect();
        matches!(kinds.as_slice(), [(_, seen)] if *seen == kind.of_bottom())
    }
}

#[derive(Debug)]
pub(super) struct Base(pub(super) Arc<Seen>);

impl Base {
    fn request(&self, offset: u64, kind: Kind) -> BlockFuture<'_, ()> {
        let seen = &self.0;
        BlockFuture::new(async move {
            let disk = usize::try_from(offset / OF_DISK).unwrap();
            seen.check(disk, "at the bottom");
            seen.log.lock().push((offset, kind));
            while seen.holding.load(Ordering::SeqCst) {
                let released = seen.released.listen();
                if seen.holding.load(Ordering::SeqCst) {
                    released.await;
                }
            }
            current::yield_now().await;
            seen.check(disk, "when the bottom ends it");
            Ok(())
        })
    }
}

impl Driver for Base {
    fn format_name(&self) -> &'static str {
        "base"
    }

    fn size(&self) -> u64 {
        1 << 40
    }

    fn read(&self, offset: u64, _: IoBuffer) -> BlockFuture<'_, ()> {
        self.request(offset, Kind::Read)
    }

    fn write(&self, offset: u64, _: IoBuffer, _: RequestFlags) -> BlockFuture<'_, ()> {
        self.request(offset, Kind::Write)
    }

    fn discard(&self, offset: u64, _: u64) -> BlockFuture<'_, ()> {
        self.request(offset, Kind::Discard)
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        self.0.flushes.fetch_add(1, Ordering::SeqCst);
        BlockFuture::new(async { Ok(()) })
    }

    fn block_status(&self, _: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        let allocation = Allocation::Data;
        BlockFuture::new(async move { Ok(BlockStatus { allocation, len }) })
    }
}
