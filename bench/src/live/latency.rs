//! What a write takes under a mirror, beside what it takes without.
//!
//! One writer. Slices of the disk under the mirror and of disks without one come in turns, and the median write of
//! each slice counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sluice_aio::current;
use sluice_block::job::{Job, JobState};
use sluice_block::{Backend, Graph};

use super::ours::{Writers, add_node, event_loop, graph};
use super::{Images, micros};
use crate::job::{mirror, ready};
use crate::random_read::confine;
use crate::report::{Row, Target};
use crate::timing::{Effort, median, processor_time};

/// How long one disk is written to at a time.
const SLICE: Duration = Duration::from_millis(50);

/// What a write cost, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// From its beginning to its end.
    time: f64,
    /// What all threads computed for it, the ring's workers and the writer itself included.
    computed: f64,
}

impl Cost {
    fn of(costs: &[Self]) -> Self {
        let middle = |part: fn(&Self) -> f64| median(&costs.iter().map(part).collect::<Vec<_>>());
        Self {
            time: middle(|cost| cost.time),
            computed: middle(|cost| cost.computed),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            time: self.time + other.time,
            computed: self.computed + other.computed,
        }
    }
}

/// A median under a mirror and the median that it is held against.
struct Beside<T> {
    mirrored: T,
    alone: T,
}

/// The median write of one slice.
async fn slice(backend: &Arc<Backend>) -> Result<Cost> {
    let before = processor_time();
    let writers = Writers::start(backend, 1);
    current::sleep(SLICE).await;
    let spans = writers.stop().await?;
    let computed = micros(processor_time().saturating_sub(before));
    let times = spans.iter().map(|span| micros(span.ended - span.began));
    let times: Vec<f64> = times.collect();
    let count = u32::try_from(times.len().max(1))?;
    Ok(Cost {
        time: median(&times),
        computed: computed / f64::from(count),
    })
}

async fn disk(graph: &Arc<Graph>, name: &str, images: &Images, file: &str) -> Result<Arc<Backend>> {
    let node = format!("{name}-{file}");
    add_node(graph, &node, &images.path(file)).await?;
    let node = graph.node(&node).context("no node")?;
    Ok(graph.add_backend(name, &node)?)
}

async fn cancel(job: &Job) -> Result<()> {
    job.cancel(true)?;
    job.concluded().await;
    Ok(())
}

/// A write to both sides by a mirror that is ready, and the sum of a write to each alone.
fn to_both(effort: Effort) -> Result<Beside<Cost>> {
    let size = effort.of(64 << 20, 1 << 20);
    let rounds = effort.of(20, 1);
    let mirrored = Images::new(size)?;
    let alone = Images::new(size)?;
    let mut event_loop = event_loop()?;
    event_loop.run_until(async move {
        let graph = graph();
        let under = disk(&graph, "under", &mirrored, "a").await?;
        add_node(&graph, "target", &mirrored.path("b")).await?;
        let source = disk(&graph, "source", &alone, "a").await?;
        let target = disk(&graph, "target-alone", &alone, "b").await?;
        let more = json!({"copy-mode": "write-blocking"});
        let job = mirror(&graph, "under", "target", more).await?;
        ready(&job).await?;
        let (mut both, mut sums) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            both.push(slice(&under).await?);
            sums.push(slice(&source).await?.and(slice(&target).await?));
        }
        cancel(&job).await?;
        Ok(Beside {
            mirrored: Cost::of(&both),
            alone: Cost::of(&sums),
        })
    })?
}

/// A write while a mirror copies at half of the speed that it has alone, and without a mirror: a write to the
/// source, and, of a mode that writes to both sides, one to the target.
fn while_it_copies(effort: Effort, mode: &'static str) -> Result<Beside<f64>> {
    let size = effort.of(512 << 20, 8 << 20);
    let rounds = effort.of(15, 1);
    let images = Images::new(size)?;
    let other = Images::new(effort.of(64 << 20, 1 << 20))?;
    let mut event_loop = event_loop()?;
    event_loop.run_until(async move {
        let graph = graph();
        let under = disk(&graph, "under", &images, "a").await?;
        add_node(&graph, "target", &images.path("b")).await?;
        let source = disk(&graph, "source", &other, "a").await?;
        let target = disk(&graph, "target-alone", &other, "b").await?;
        let (mut mirrored, mut free) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let began = Instant::now();
            let job = mirror(&graph, "under", "target", json!({})).await?;
            ready(&job).await?;
            let half = u128::from(size) * 500 / began.elapsed().as_millis().max(1);
            cancel(&job).await?;

            let more = json!({"speed": i64::try_from(half)?, "copy-mode": mode});
            let job = mirror(&graph, "under", "target", more).await?;
            mirrored.push(slice(&under).await?.time);
            let still = effort == Effort::Smoke || job.state() == JobState::Running;
            ensure!(still, "the mirror was over before the writes were");
            cancel(&job).await?;
            let mut alone = slice(&source).await?.time;
            if mode == "write-blocking" {
                alone += slice(&target).await?.time;
            }
            free.push(alone);
        }
        Ok(Beside {
            mirrored: median(&mirrored),
            alone: median(&free),
        })
    })?
}

/// The rows of the latency.
///
/// # Errors
/// An image can't be made, or a mirror fails.
pub(super) fn measure(effort: Effort) -> Result<Vec<Row>> {
    let _one_processor = confine(effort);
    let row = |what: &str, ours, reference, most| Row {
        benchmark: "live",
        what: what.to_owned(),
        unit: "us",
        ours,
        reference: Some(reference),
        target: Target::RatioAtMost(most),
    };
    let both = to_both(effort)?;
    let background = while_it_copies(effort, "background")?;
    let blocking = while_it_copies(effort, "write-blocking")?;
    Ok(vec![
        row(
            "write to both sides, beside source + target alone",
            both.mirrored.time,
            both.alone.time,
            1.1,
        ),
        row(
            "the same: processor time of a write, all included",
            both.mirrored.computed,
            both.alone.computed,
            1.1,
        ),
        row(
            "write to both sides during a copy at half speed",
            blocking.mirrored,
            blocking.alone,
            1.1,
        ),
        row(
            "write during a copy at half speed, beside none",
            background.mirrored,
            background.alone,
            1.05,
        ),
    ])
}
