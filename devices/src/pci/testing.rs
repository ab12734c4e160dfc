//! Stand-ins for the machine around a function, for this crate's tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use parking_lot::Mutex;

use crate::irq::{IrqError, IrqLine, MsiController, MsiVector};

/// An interrupt line that remembers its level.
#[derive(Debug, Default)]
pub(crate) struct RecordedLine(AtomicBool);

impl RecordedLine {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(crate) fn level(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl IrqLine for RecordedLine {
    fn set(&self, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

/// A line whose rise takes until it is let go.
#[derive(Debug)]
pub(crate) struct SlowLine {
    rising: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
}

/// Who holds up a [`SlowLine`].
#[derive(Debug)]
pub(crate) struct Holder {
    has_begun: Receiver<()>,
    let_go: SyncSender<()>,
}

impl SlowLine {
    /// Longer than any step takes: a test that waits in vain fails instead of hanging.
    const PATIENCE: Duration = Duration::from_secs(30);

    pub(crate) fn new() -> (Arc<Self>, Holder) {
        let (rising, has_begun) = mpsc::sync_channel(1);
        let (let_go, go_on) = mpsc::sync_channel(1);
        let line = Self {
            rising,
            go_on: Mutex::new(go_on),
        };
        (Arc::new(line), Holder { has_begun, let_go })
    }
}

impl IrqLine for SlowLine {
    fn set(&self, level: bool) {
        if level {
            self.rising.send(()).unwrap();
            self.go_on.lock().recv_timeout(Self::PATIENCE).unwrap();
        }
    }
}

impl Holder {
    /// `raise` raises the line, which takes until `ask` has been answered.
    pub(crate) fn answer_meanwhile<T: Send>(
        &self,
        raise: impl FnOnce() + Send,
        ask: impl FnOnce() -> T + Send,
    ) -> T {
        std::thread::scope(|scope| {
            scope.spawn(raise);
            self.has_begun.recv_timeout(SlowLine::PATIENCE).unwrap();
            let (answer, answered) = mpsc::sync_channel(1);
            scope.spawn(move || answer.send(ask()).unwrap());
            let answer = answered.recv_timeout(SlowLine::PATIENCE);
            self.let_go.send(()).unwrap();
            answer.unwrap()
        })
    }
}

/// A controller whose vectors record the messages they send.
#[derive(Debug, Default)]
pub(crate) struct RecordedMsi {
    sent: Arc<Mutex<Vec<(u64, u32)>>>,
    configured: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct RecordedVector {
    sent: Arc<Mutex<Vec<(u64, u32)>>>,
    configured: Arc<AtomicUsize>,
    message: Mutex<Option<(u64, u32)>>,
}

impl RecordedMsi {
    pub(crate) fn new() -> Arc<Self> {
        let new = Self::default();
        // Those who count allocations count a device's and not this list's.
        new.sent.lock().reserve(1024);
        Arc::new(new)
    }

    /// Address and data of every message so far.
    pub(crate) fn sent(&self) -> Vec<(u64, u32)> {
        self.sent.lock().clone()
    }

    /// How many vectors somebody has.
    pub(crate) fn vectors(&self) -> usize {
        Arc::strong_count(&self.sent) - 1
    }

    /// How often vectors were configured.
    pub(crate) fn configured(&self) -> usize {
        self.configured.load(Ordering::SeqCst)
    }
}

impl MsiController for RecordedMsi {
    fn allocate(&self) -> Result<Arc<dyn MsiVector>, IrqError> {
        Ok(Arc::new(RecordedVector {
            sent: Arc::clone(&self.sent),
            configured: Arc::clone(&self.configured),
            message: Mutex::default(),
        }))
    }
}

impl MsiVector for RecordedVector {
    fn configure(&self, address: u64, data: u32, masked: bool) {
        self.configured.fetch_add(1, Ordering::SeqCst);
        *self.message.lock() = (!masked).then_some((address, data));
    }

    fn trigger(&self) {
        self.sent.lock().extend(*self.message.lock());
    }
}
