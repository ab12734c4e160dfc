//! A graph over a driver that watches: who asks it for what, when, and whether that was allowed.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use event_listener::Event;
use parking_lot::Mutex;
use serde_json::Value;
use sluice_aio::{Clock, EventLoop, IoBuffer, LoopConfig, current};

use crate::backend::Backend;
use crate::driver::{Allocation, BlockFuture, BlockStatus, Driver, Edge, RequestFlags, Role};
use crate::error::Result;
use crate::event::{BlockEvent, EventSink};
use crate::graph::Graph;
use crate::node::{Node, Owner};

/// Size of a probe in bytes; requests use offsets as their names.
pub(super) const SIZE: u64 = 1 << 40;

/// What a [`Probe`] has seen.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Offsets of the writes, in the order in which they reached the driver.
    pub(super) log: Mutex<Vec<u64>>,
    /// Sections that claim to have the node for themselves now.
    pub(super) exclusive: AtomicUsize,
    /// Requests inside the driver now.
    pub(super) running: AtomicUsize,
    /// A request was seen inside a section.
    pub(super) broken: AtomicBool,
    /// Times that the driver was told of sections, and of their ends.
    pub(super) begun: AtomicUsize,
    pub(super) ended: AtomicUsize,
    /// What happens the next time that it is told of one.
    pub(super) on_begin: Hook,
    holding: AtomicBool,
    released: Event,
}

/// Something to do once.
#[derive(Default)]
pub(super) struct Hook(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

impl Hook {
    pub(super) fn set(&self, hook: impl FnOnce() + Send + 'static) {
        *self.0.lock() = Some(Box::new(hook));
    }

    fn run(&self) {
        let hook = self.0.lock().take();
        if let Some(hook) = hook {
            hook();
        }
    }
}

impl Watch {
    fn check(&self) {
        if self.exclusive.load(Ordering::SeqCst) > 0 {
            self.broken.store(true, Ordering::SeqCst);
        }
    }

    /// Keeps the requests that come from now on inside the driver.
    pub(super) fn hold(&self) {
        self.holding.store(true, Ordering::SeqCst);
    }

    pub(super) fn release(&self) {
        self.holding.store(false, Ordering::SeqCst);
        self.released.notify(usize::MAX);
    }

    /// How often the driver was told that a section begins, and ends.
    pub(super) fn told(&self) -> (usize, usize) {
        let load = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        (load(&self.begun), load(&self.ended))
    }

    fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.on_begin.run();
    }

    fn end(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst) > 0
    }
}

/// A protocol without storage that watches.
#[derive(Debug)]
struct Probe(Arc<Watch>);

impl Probe {
    fn request(&self, offset: u64) -> BlockFuture<'_, ()> {
        let watch = &self.0;
        BlockFuture::new(async move {
            watch.running.fetch_add(1, Ordering::SeqCst);
            watch.check();
            watch.log.lock().push(offset);
            while watch.holding.load(Ordering::SeqCst) {
                let released = watch.released.listen();
                if watch.holding.load(Ordering::SeqCst) {
                    released.await;
                }
            }
            current::yield_now().await;
            watch.check();
            watch.running.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
    }
}

impl Driver for Probe {
    fn format_name(&self) -> &'static str {
        "probe"
    }

    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, offset: u64, _buffer: IoBuffer) -> BlockFuture<'_, ()> {
        self.request(offset)
    }

    fn write(&self, offset: u64, _buffer: IoBuffer, _flags: RequestFlags) -> BlockFuture<'_, ()> {
        self.request(offset)
    }

    fn write_zeroes(&self, offset: u64, _len: u64, _flags: RequestFlags) -> BlockFuture<'_, ()> {
        self.request(offset)
    }

    fn discard(&self, offset: u64, _len: u64) -> BlockFuture<'_, ()> {
        self.request(offset)
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        self.request(SIZE)
    }

    fn block_status(&self, _offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        let allocation = Allocation::Data;
        BlockFuture::new(async move { Ok(BlockStatus { allocation, len }) })
    }

    fn drained_begin(&self) {
        self.0.begin();
    }

    fn drained_end(&self) {
        self.0.end();
    }
}

/// A filter that passes everything on and watches sections. A second child stands there only to be
/// below it: no request goes that way.
#[derive(Debug)]
struct Pass {
    below: Edge,
    beside: Option<Edge>,
    watch: Arc<Watch>,
}

impl Driver for Pass {
    fn format_name(&self) -> &'static str {
        "pass"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.below)
    }

    fn children(&self) -> Vec<&Edge> {
        [Some(&self.below), self.beside.as_ref()]
            .into_iter()
            .flatten()
            .collect()
    }

    fn drained_begin(&self) {
        self.watch.begin();
    }

    fn drained_end(&self) {
        self.watch.end();
    }
}

/// The driver of a filter above `below`, and above `beside` if there is one.
pub(super) fn pass(below: &Arc<Node>, beside: Option<&Arc<Node>>) -> (Box<dyn Driver>, Arc<Watch>) {
    let watch = Arc::new(Watch::default());
    let driver = Pass {
        below: Edge::new(Role::Filtered, Arc::clone(below)),
        beside: beside.map(|node| Edge::new(Role::File, Arc::clone(node))),
        watch: Arc::clone(&watch),
    };
    (Box::new(driver), watch)
}

/// Nobody listens.
pub(super) struct Silence;

impl EventSink for Silence {
    fn emit(&self, _event: BlockEvent) {}
}

pub(super) struct Bench {
    pub(super) graph: Arc<Graph>,
}

/// Runs `test` as a task of a loop.
pub(super) fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Bench) -> F) {
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let graph = Graph::new(Arc::new(Silence), Clock::real());
    event_loop.run_until(test(Bench { graph })).unwrap();
}

impl Bench {
    /// Adds a probe named `name`, as `blockdev-add` would.
    pub(super) fn probe(&self, name: &str, read_only: bool) -> (Arc<Node>, Arc<Watch>) {
        let watch = Arc::new(Watch::default());
        let driver = Box::new(Probe(Arc::clone(&watch)));
        let node = Node::new(name.to_owned(), driver, read_only, Owner::Monitor);
        let mut change = self.graph.transaction();
        change.add_node(&node);
        change.commit().unwrap();
        (node, watch)
    }

    /// Adds a filter named `name`.
    pub(super) fn filter(
        &self,
        name: &str,
        below: &Arc<Node>,
        beside: Option<&Arc<Node>>,
    ) -> (Arc<Node>, Arc<Watch>) {
        let (driver, watch) = pass(below, beside);
        let node = Node::new(
            name.to_owned(),
            driver,
            below.is_read_only(),
            Owner::Monitor,
        );
        let mut change = self.graph.transaction();
        change.add_node(&node);
        change.commit().unwrap();
        (node, watch)
    }

    pub(super) async fn add(&self, options: Value) -> Result<Arc<Node>> {
        let options = serde_json::from_value(options).unwrap();
        self.graph.add_node(&options).await
    }

    /// A disk of its own: backend, probe and what the probe sees.
    pub(super) fn disk(&self, name: &str) -> (Arc<Backend>, Arc<Node>, Arc<Watch>) {
        let (node, watch) = self.probe(&format!("{name}-node"), false);
        (self.graph.add_backend(name, &node).unwrap(), node, watch)
    }
}

/// A guest's write named by its offset.
pub(super) async fn write(disk: &Backend, offset: u64) -> Result<()> {
    let token = disk.enter().await?;
    disk.write(&token, offset, IoBuffer::alloc(512)).await
}

/// Lets everything that can happen without outside help happen.
pub(super) async fn settle() {
    for _ in 0..50 {
        current::yield_now().await;
    }
}
