//! Our side: one mirror in a process of its own, as `sluice-bench --mirror SOURCE TARGET WAY`, or `--huge BYTES`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sluice_aio::{Clock, EventLoop, LoopConfig, current};
use sluice_block::{Graph, Node};

use super::{Copied, Way};
use crate::disk::Quiet;
use crate::job;

/// What the process says of itself.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    /// The copy's time, in seconds.
    pub seconds: f64,
    /// The most memory at once beyond what was in use before, in KiB.
    pub memory: u64,
}

impl Report {
    /// What is compared of it.
    #[must_use]
    pub fn copied(&self, computed: f64) -> Copied {
        Copied {
            seconds: self.seconds,
            computed,
        }
    }
}

async fn open(graph: &Arc<Graph>, name: &str, path: &Path, way: Way) -> Result<Arc<Node>> {
    let cache = json!({"direct": way == Way::Direct});
    let discard = match way {
        Way::Keeping => "ignore",
        Way::Buffered | Way::Direct => "unmap",
    };
    let options = json!({
        "driver": "raw", "node-name": name, "discard": discard, "cache": cache,
        "file": {"driver": "file", "filename": path, "discard": discard, "cache": cache},
    });
    let node = graph.add_node(&serde_json::from_value(options)?).await;
    node.context("can't open an image")
}

/// Mirrors `source` to `target`, which is there and as large, and measures until the job is ready.
///
/// # Errors
/// The images', or the job's.
pub fn mirror(source: &Path, target: &Path, way: Way) -> Result<Report> {
    let mut event_loop = EventLoop::new("bench", &LoopConfig::default())?;
    let (source, target) = (source.to_owned(), target.to_owned());
    event_loop.run_until(async move {
        let graph = Graph::new(Arc::new(Quiet), Clock::real());
        let node = open(&graph, "source", &source, way).await?;
        graph.add_backend("disk", &node)?;
        open(&graph, "target", &target, way).await?;
        let idle = memory("VmRSS:")?;
        let began = Instant::now();
        let mirror = job::mirror(&graph, "disk", "target", json!({"auto-dismiss": false})).await?;
        job::ready(&mirror).await?;
        let seconds = began.elapsed().as_secs_f64();
        let memory = memory("VmHWM:")?.saturating_sub(idle);
        mirror.cancel(true)?;
        mirror.concluded().await;
        Ok(Report { seconds, memory })
    })?
}

/// How long a mirror runs that would never end.
const MOMENT: Duration = Duration::from_secs(1);

/// Begins to mirror a null node of `size` bytes, which says that all of it is data, to another one, and measures the
/// command's time and what is in use after a moment.
///
/// # Errors
/// The job's.
pub fn huge(size: u64) -> Result<Report> {
    let mut event_loop = EventLoop::new("bench", &LoopConfig::default())?;
    event_loop.run_until(async move {
        let graph = Graph::new(Arc::new(Quiet), Clock::real());
        for name in ["source", "target"] {
            let options = json!({"driver": "null-co", "node-name": name, "size": size});
            graph.add_node(&serde_json::from_value(options)?).await?;
        }
        let idle = memory("VmRSS:")?;
        let began = Instant::now();
        let more = json!({"auto-dismiss": false});
        let mirror = job::mirror(&graph, "source", "target", more).await?;
        let seconds = began.elapsed().as_secs_f64();
        current::sleep(MOMENT).await;
        let memory = memory("VmHWM:")?.saturating_sub(idle);
        mirror.cancel(true)?;
        mirror.concluded().await;
        Ok(Report { seconds, memory })
    })?
}

/// A figure of this process's memory, in KiB.
fn memory(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let figure = line.and_then(|line| line.split_whitespace().next());
    Ok(figure.context("the kernel does not tell")?.parse()?)
}
