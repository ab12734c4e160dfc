//! A disk as a device has it, and requests made the way a device makes them.
//!
//! A request is a task of its own: it enters the backend's gate, reads, and leaves. As many are in
//! flight as the depth says; each that ends starts the next. For comparison the same tasks can read
//! by the loop's engine alone, without the block layer.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::poll_fn;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sluice_aio::{Aside, Clock, EngineKind, EventLoop, IoBuffer, LoopConfig, Route, current};
use sluice_block::driver::throttle::ThrottleLimits;
use sluice_block::{Backend, BlockEvent, EventSink, Graph};
use tracing::Instrument as _;

use crate::allocations::Counting;
use crate::job::{mirror, ready};
use crate::random;
use crate::timing::processor_time;

/// Bytes of one request.
pub const BLOCK: u64 = 4096;
/// Bytes of a test disk.
pub const SIZE: u64 = 64 << 20;

/// What a disk is made of.
#[derive(Clone, Copy, Debug)]
pub enum Medium<'a> {
    /// The node `null-co`.
    Null,
    /// The filter `blkdebug`, without rules, over `null-co`.
    FilteredNull,
    /// The format `raw` over `null-co`.
    RawNull,
    /// A throttle group without limits above [`Medium::Null`].
    ThrottledNull,
    /// `copy-on-read` above [`Medium::Null`], which has nothing to copy from.
    CopyOnReadNull,
    /// The node `file`, alone, on a file of [`SIZE`] bytes.
    File(&'a Path, EngineKind),
    /// The format `raw` over that, by the ring.
    RawFile(&'a Path),
    /// No node at all: the file is read by the loop's ring.
    Engine(&'a Path),
}

impl Medium<'_> {
    /// The options of the nodes; none if there are none.
    fn options(&self) -> Option<Value> {
        let nothing = json!({"driver": "null-co", "size": SIZE});
        let file = |path, aio| json!({"driver": "file", "filename": path, "aio": aio});
        Some(match self {
            Self::Null => nothing,
            Self::FilteredNull => json!({"driver": "blkdebug", "image": nothing}),
            Self::RawNull => json!({"driver": "raw", "file": nothing}),
            Self::ThrottledNull => {
                json!({"driver": "throttle", "throttle-group": UNLIMITED, "file": nothing})
            }
            Self::CopyOnReadNull => json!({"driver": "copy-on-read", "file": nothing}),
            Self::File(path, EngineKind::IoUring) => file(path, "io_uring"),
            Self::File(path, EngineKind::Threads) => file(path, "threads"),
            Self::RawFile(path) => json!({"driver": "raw", "file": file(path, "io_uring")}),
            Self::Engine(_) => return None,
        })
    }
}

/// Nobody hears what a benchmark's graph has to say.
pub(crate) struct Quiet;

impl EventSink for Quiet {
    fn emit(&self, _: BlockEvent) {}
}

/// A graph with one backend, and the loop that serves it.
pub struct Disk {
    event_loop: EventLoop,
    source: Source,
    /// Requests have spans, as a device's do.
    spans: bool,
    /// Lives as long as the backend does.
    graph: Option<Arc<Graph>>,
}

/// What requests read from.
#[derive(Clone)]
enum Source {
    Backend(Arc<Backend>),
    Engine(Arc<Aside<File>>, Route),
}

/// A throttle group that every graph has.
const UNLIMITED: &str = "unlimited";

/// Adds a disk, a node with all below it and a backend above it, to a new graph.
///
/// # Errors
/// The options are wrong, or the medium can't be opened.
pub async fn add_disk(mut options: Value) -> Result<(Arc<Graph>, Arc<Backend>)> {
    let graph = Graph::new(Arc::new(Quiet), Clock::real());
    let groups = graph.throttle_groups();
    groups.add(UNLIMITED, ThrottleLimits::default())?;
    options["node-name"] = "disk".into();
    let options = serde_json::from_value(options)?;
    let node = graph.add_node(&options).await;
    let backend = graph.add_backend("bench", &node.context("can't open the disk")?)?;
    Ok((graph, backend))
}

/// Which way a run's requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the disk.
    Read,
    /// To it.
    Write,
}

/// When a run of requests is over.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// So many have ended.
    Requests(u64),
    /// So much time has passed.
    Elapsed(Duration),
}

/// What a run of requests took.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Requests that ended.
    pub requests: u64,
    /// Wall-clock time.
    pub elapsed: Duration,
    /// Processor time of the whole process.
    pub computed: Duration,
    /// Allocations of the whole process; 0 unless [`Counting`] is its allocator.
    pub allocations: u64,
}

impl Run {
    /// Requests per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        count(self.requests) / self.elapsed.as_secs_f64()
    }

    /// Processor time per request, in nanoseconds.
    #[must_use]
    pub fn computed_each(&self) -> f64 {
        self.computed.as_secs_f64() * 1e9 / count(self.requests.max(1))
    }
}

/// A count as a number to divide by; exact up to 2^32, which no run reaches.
fn count(requests: u64) -> f64 {
    f64::from(u32::try_from(requests).unwrap_or(u32::MAX))
}

impl Disk {
    /// Opens the medium in a loop of the calling thread.
    ///
    /// # Errors
    /// The medium's, or the loop's.
    pub fn open(medium: &Medium<'_>) -> Result<Self> {
        // As an iothread's.
        let config = LoopConfig {
            alone: true,
            ..LoopConfig::default()
        };
        let mut event_loop = EventLoop::new("bench", &config)?;
        let (graph, source) = match (medium.options(), medium) {
            (Some(options), _) => {
                let (graph, backend) = event_loop.run_until(add_disk(options))??;
                (Some(graph), Source::Backend(backend))
            }
            (None, Medium::Engine(path)) => {
                let file = File::open(path)?;
                let route = Route::to(&file, EngineKind::IoUring);
                (None, Source::Engine(Arc::new(file.into()), route))
            }
            (None, _) => anyhow::bail!("nothing to read"),
        };
        Ok(Self {
            event_loop,
            source,
            spans: false,
            graph,
        })
    }

    /// Has a mirror in its ready phase above the disk from now on.
    ///
    /// # Errors
    /// It can't be started, or there is no disk.
    pub fn mirror(&mut self) -> Result<()> {
        let graph = self.graph.clone().context("there are no nodes")?;
        self.event_loop.run_until(async move {
            let target = json!({"driver": "null-co", "size": SIZE, "node-name": "target"});
            graph.add_node(&serde_json::from_value(target)?).await?;
            let job = mirror(&graph, "bench", "target", json!({"sync": "none"})).await?;
            ready(&job).await?;
            Ok(())
        })?
    }

    /// Gives each request a span from now on.
    pub fn make_spans(&mut self) {
        self.spans = true;
    }

    /// Keeps `depth` random reads of [`BLOCK`] bytes in flight until it is time to stop.
    ///
    /// # Errors
    /// The first request's that failed.
    pub fn read(&mut self, depth: usize, until: Until) -> Result<Run> {
        self.run(Direction::Read, depth, until)
    }

    /// Keeps `depth` random requests of [`BLOCK`] bytes in flight until it is time to stop.
    ///
    /// # Errors
    /// The first request's that failed.
    pub fn run(&mut self, direction: Direction, depth: usize, until: Until) -> Result<Run> {
        let buffers = (0..depth)
            .map(|_| IoBuffer::alloc(usize::try_from(BLOCK).unwrap_or(0)))
            .collect::<Vec<_>>();
        let flood = Rc::new(Flood {
            source: self.source.clone(),
            direction,
            spans: self.spans,
            until,
            began: Instant::now(),
            ended: Cell::new(0),
            running: Cell::new(0),
            stop: Cell::new(false),
            failure: Cell::new(None),
            random: Cell::new(random::SEED),
            waiter: RefCell::new(None),
        });
        let (computed, allocations) = (processor_time(), Counting::allocations());
        let running = Rc::clone(&flood);
        let (allocated, elapsed) = self.event_loop.run_until(async move {
            for buffer in buffers {
                running.start(buffer);
            }
            poll_fn(|cx| running.poll_over(cx.waker())).await;
            (Counting::allocations(), running.began.elapsed())
        })?;
        let run = Run {
            requests: flood.ended.get(),
            elapsed,
            computed: processor_time() - computed,
            allocations: allocated - allocations,
        };
        match flood.failure.take() {
            Some(error) => Err(error).context("a request failed"),
            None => Ok(run),
        }
    }
}

/// One run of requests.
struct Flood {
    source: Source,
    direction: Direction,
    spans: bool,
    until: Until,
    began: Instant,
    ended: Cell<u64>,
    running: Cell<usize>,
    stop: Cell<bool>,
    failure: Cell<Option<anyhow::Error>>,
    /// State of the offsets' generator.
    random: Cell<u64>,
    waiter: RefCell<Option<Waker>>,
}

/// How many requests end between two looks at the clock.
const LOOK_EVERY: u64 = 64;

impl Flood {
    fn start(self: &Rc<Self>, buffer: IoBuffer) {
        self.running.set(self.running.get() + 1);
        let flood = Rc::clone(self);
        let spans = self.spans;
        let request = async move {
            if let Err(error) = flood.request(buffer.clone()).await {
                flood.failure.set(Some(error));
                flood.stop.set(true);
            }
            flood.end(buffer);
        };
        if spans {
            let span = tracing::trace_span!("request", bytes = BLOCK);
            current::spawn_local(request.instrument(span)).detach();
        } else {
            current::spawn_local(request).detach();
        }
    }

    async fn request(&self, buffer: IoBuffer) -> Result<()> {
        match &self.source {
            Source::Backend(backend) => {
                let token = backend.enter().await?;
                match self.direction {
                    Direction::Read => backend.read(&token, self.offset(), buffer).await?,
                    Direction::Write => backend.write(&token, self.offset(), buffer).await?,
                }
            }
            Source::Engine(file, route) => {
                let (route, offset) = (*route, self.offset());
                let transfer = match self.direction {
                    Direction::Read => current::read_at(route, file, offset, buffer),
                    Direction::Write => current::write_at(route, file, offset, buffer),
                };
                transfer.await?;
            }
        }
        Ok(())
    }

    fn offset(&self) -> u64 {
        let mut state = self.random.get();
        let random = random::next(&mut state);
        self.random.set(state);
        random % (SIZE / BLOCK) * BLOCK
    }

    fn end(self: &Rc<Self>, buffer: IoBuffer) {
        let ended = self.ended.get() + 1;
        self.ended.set(ended);
        self.running.set(self.running.get() - 1);
        if !self.is_over(ended) {
            self.start(buffer);
        } else if self.running.get() == 0
            && let Some(waiter) = self.waiter.take()
        {
            waiter.wake();
        }
    }

    fn is_over(&self, ended: u64) -> bool {
        let over = match self.until {
            Until::Requests(all) => ended.saturating_add(self.running.get() as u64) >= all,
            Until::Elapsed(time) => {
                ended.is_multiple_of(LOOK_EVERY) && self.began.elapsed() >= time
            }
        };
        if over {
            self.stop.set(true);
        }
        self.stop.get()
    }

    fn poll_over(&self, waker: &Waker) -> Poll<()> {
        if self.stop.get() && self.running.get() == 0 {
            return Poll::Ready(());
        }
        *self.waiter.borrow_mut() = Some(waker.clone());
        Poll::Pending
    }
}
