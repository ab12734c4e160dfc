//! Our side: a disk in a loop of this thread, and tasks that write to it as a device does.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use sluice_aio::{Clock, EventLoop, IoBuffer, LoopConfig, current};
use sluice_block::{Backend, Graph};

use super::{BLOCK, Offsets, Span};
use crate::disk::Quiet;

/// How often it is looked whether all writers have ended.
const LOOK: Duration = Duration::from_millis(1);

/// A loop as an iothread's.
pub(super) fn event_loop() -> Result<EventLoop> {
    let config = LoopConfig {
        alone: true,
        ..LoopConfig::default()
    };
    Ok(EventLoop::new("bench", &config)?)
}

/// An empty graph.
pub(super) fn graph() -> Arc<Graph> {
    Graph::new(Arc::new(Quiet), Clock::real())
}

/// Adds the node `raw` over the file at `path`.
pub(super) async fn add_node(graph: &Arc<Graph>, name: &str, path: &Path) -> Result<()> {
    let options = json!({
        "driver": "raw", "node-name": name,
        "file": {"driver": "file", "filename": path, "aio": "io_uring"},
    });
    let node = graph.add_node(&serde_json::from_value(options)?).await;
    node.with_context(|| format!("can't open {}", path.display()))?;
    Ok(())
}

/// Writes that keep coming. Runs in the loop of the thread that made it.
pub(super) struct Writers {
    backend: Arc<Backend>,
    offsets: RefCell<Offsets>,
    running: Cell<usize>,
    over: Cell<bool>,
    last: Option<Instant>,
    spans: RefCell<Vec<Span>>,
    failure: Cell<Option<anyhow::Error>>,
}

impl Writers {
    /// Starts `depth` of them. They write until they are ended, or until the instant `last`.
    pub(super) fn start(backend: &Arc<Backend>, depth: usize, last: Option<Instant>) -> Rc<Self> {
        let writers = Rc::new(Self {
            backend: Arc::clone(backend),
            offsets: RefCell::new(Offsets::below(backend.len())),
            running: Cell::new(depth),
            over: Cell::new(false),
            last,
            spans: RefCell::default(),
            failure: Cell::default(),
        });
        for _ in 0..depth {
            let writer = Rc::clone(&writers);
            let writing = async move {
                if let Err(error) = writer.write().await {
                    writer.failure.set(Some(error));
                }
                writer.running.set(writer.running.get() - 1);
            };
            current::spawn_local(writing).detach();
        }
        writers
    }

    async fn write(&self) -> Result<()> {
        let buffer = IoBuffer::alloc(usize::try_from(BLOCK)?);
        while !self.over.get() {
            let offset = self.offsets.borrow_mut().next();
            let began = Instant::now();
            let token = self.backend.enter().await?;
            self.backend.write(&token, offset, buffer.clone()).await?;
            drop(token);
            let ended = Instant::now();
            self.spans.borrow_mut().push(Span { began, ended });
            if self.last.is_some_and(|last| ended >= last) {
                break;
            }
        }
        Ok(())
    }

    /// Ends them; returns what they wrote, in the order of the ends.
    pub(super) async fn stop(&self) -> Result<Vec<Span>> {
        self.over.set(true);
        while self.running.get() > 0 {
            current::sleep(LOOK).await;
        }
        match self.failure.take() {
            Some(error) => Err(error).context("a write failed"),
            None => Ok(self.spans.take()),
        }
    }
}
