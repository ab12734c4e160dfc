//! What a write takes under a mirror, beside what it takes without.
//!
//! One writer, or 32. Slices of the disk under the mirror and of disks without one come in turns. Of each slice the median
//! and the 99th percentile are taken, and of all slices the mean of the middle half: a slice is in one of two states of the
//! machine, a third apart, and the median of all would be the one or the other by chance. No processor sleeps meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sluice_aio::current;
use sluice_block::job::{Job, JobState};
use sluice_block::{Backend, Graph};

use super::ours::{Writers, add_node, event_loop, graph};
use super::{Images, micros, row};
use crate::awake::Awake;
use crate::job::{mirror, ready};
use crate::random_read::confine;
use crate::report::{Row, Sink, Target};
use crate::timing::{Effort, median, middle, percentile, processor_time};

/// How long one disk is written to at a time.
const SLICE: Duration = Duration::from_millis(50);
/// Slices of each disk beside one copy that is limited, and as many without it.
const SLICES: u64 = 5;
/// Writes at once of a guest that does not wait for each.
const DEPTH: usize = 32;
/// The most that a write to both sides may take, of what one to each takes.
const TO_BOTH: f64 = 1.1;
/// The most that a write beside a copy in the background may take, of what it takes without.
const BESIDE: f64 = 1.05;

/// What a write cost, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// From its beginning to its end, the median.
    time: f64,
    /// The same, the 99th percentile.
    slow: f64,
    /// What all threads computed for it, the ring's workers and the writer itself included.
    computed: f64,
}

impl Cost {
    fn of(costs: &[Self]) -> Self {
        let middle = |part: fn(&Self) -> f64| middle(&costs.iter().map(part).collect::<Vec<_>>());
        Self {
            time: middle(|cost| cost.time),
            slow: middle(|cost| cost.slow),
            computed: middle(|cost| cost.computed),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            time: self.time + other.time,
            slow: self.slow + other.slow,
            computed: self.computed + other.computed,
        }
    }
}

/// A cost under a mirror and the one that it is held against.
struct Beside {
    mirrored: Cost,
    alone: Cost,
}

/// The writes of one slice, `depth` at once.
async fn slice(backend: &Arc<Backend>, depth: usize) -> Result<Cost> {
    let before = processor_time();
    let writers = Writers::start(backend, depth, None);
    current::sleep(SLICE).await;
    let spans = writers.stop().await?;
    let computed = micros(processor_time().saturating_sub(before));
    let times = spans.iter().map(|span| micros(span.ended - span.began));
    let times: Vec<f64> = times.collect();
    let count = u32::try_from(times.len().max(1))?;
    Ok(Cost {
        time: median(&times),
        slow: percentile(&times, 99),
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
fn to_both(effort: Effort, depth: usize) -> Result<Beside> {
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
            both.push(slice(&under, depth).await?);
            sums.push(
                slice(&source, depth)
                    .await?
                    .and(slice(&target, depth).await?),
            );
        }
        cancel(&job).await?;
        Ok(Beside {
            mirrored: Cost::of(&both),
            alone: Cost::of(&sums),
        })
    })?
}

/// A write while a mirror copies at half of the speed that it has alone, and without a mirror: a write to the
/// same disk, and, of a mode that writes to both sides, one to a target. Also a write to a disk without a mirror, beside the
/// same copy.
fn while_it_copies(effort: Effort, depth: usize, mode: &'static str) -> Result<(Beside, Cost)> {
    let size = effort.of(512 << 20, 8 << 20);
    let (rounds, slices) = (effort.of(8, 1), effort.of(SLICES, 1));
    let images = Images::new(size)?;
    // As large and as full: what a write costs depends on how much memory it goes to.
    let other = Images::new(size)?;
    let mut event_loop = event_loop()?;
    event_loop.run_until(async move {
        let graph = graph();
        let under = disk(&graph, "under", &images, "a").await?;
        add_node(&graph, "target", &images.path("b")).await?;
        let another = disk(&graph, "another", &other, "a").await?;
        let (mut mirrored, mut free, mut near) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let began = Instant::now();
            let job = mirror(&graph, "under", "target", json!({})).await?;
            ready(&job).await?;
            let half = u128::from(size) * 500 / began.elapsed().as_millis().max(1);
            cancel(&job).await?;

            let more = json!({"speed": i64::try_from(half)?, "copy-mode": mode});
            let job = mirror(&graph, "under", "target", more).await?;
            let mut counted = 0;
            for _ in 0..slices {
                let own = slice(&under, depth).await?;
                let neighbour = slice(&another, depth).await?;
                if effort == Effort::Full && job.state() != JobState::Running {
                    break;
                }
                mirrored.push(own);
                near.push(neighbour);
                counted += 1;
            }
            ensure!(counted > 0, "the mirror was over before the writes were");
            cancel(&job).await?;
            for _ in 0..counted {
                let mut alone = slice(&under, depth).await?;
                if mode == "write-blocking" {
                    alone = alone.and(slice(&another, depth).await?);
                }
                free.push(alone);
            }
        }
        let beside = Beside {
            mirrored: Cost::of(&mirrored),
            alone: Cost::of(&free),
        };
        Ok((beside, Cost::of(&near)))
    })?
}

/// A row of what `part` of a cost was.
fn cost_row(what: String, beside: &Beside, part: fn(&Cost) -> f64, target: Target) -> Row {
    row(
        what,
        part(&beside.mirrored),
        Some(part(&beside.alone)),
        target,
    )
}

/// The rows of a write's time, the first of which is judged.
fn add(report: Sink<'_>, what: String, beside: &Beside, target: Target) {
    report(cost_row(what, beside, |cost| cost.time, target));
    let what = "the same: 99th percentile".to_owned();
    report(cost_row(what, beside, |cost| cost.slow, Target::None));
}

/// The rows of a mirror that is ready.
fn when_ready(effort: Effort, depth: usize, report: Sink<'_>) -> Result<()> {
    let both = to_both(effort, depth)?;
    let what = format!("write to both sides, ready, depth {depth}");
    let most = Target::RatioAtMost(TO_BOTH);
    add(report, what, &both, most);
    let what = format!("processor time of a write to both, depth {depth}");
    report(cost_row(what, &both, |cost| cost.computed, most));
    Ok(())
}

/// The rows of a mirror that copies. They are judged where the copy need not share the writer's processor.
fn beside_copies(effort: Effort, depth: usize, is_shared: bool, report: Sink<'_>) -> Result<()> {
    let (shared, judged): (_, fn(f64) -> Target) = match is_shared {
        true => (", one processor", |_| Target::None),
        false => ("", Target::RatioAtMost),
    };
    let (blocking, _) = while_it_copies(effort, depth, "write-blocking")?;
    let what = format!("write to both sides, copy at half speed, depth {depth}{shared}");
    add(report, what, &blocking, judged(TO_BOTH));
    let (background, alone) = while_it_copies(effort, depth, "background")?;
    let what = format!("write beside a copy at half speed, depth {depth}{shared}");
    add(report, what, &background, judged(BESIDE));
    // What no mirror could spare the guest: the copy has the processors and the memory's bandwidth.
    let what = "the same, against a disk without a mirror beside that copy".to_owned();
    let beside = Beside {
        alone,
        ..background
    };
    report(cost_row(what, &beside, |cost| cost.time, Target::None));
    Ok(())
}

/// The rows of the latency, each given to `report` when it is there.
///
/// # Errors
/// An image can't be made, or a mirror fails.
pub(super) fn measure(effort: Effort, report: Sink<'_>) -> Result<()> {
    // One write at a time goes from processor to processor or does not, as the scheduler likes. Many, and a copy
    // beside them, need both.
    {
        let _one_processor = confine(effort);
        let _awake = Awake::keep(effort);
        when_ready(effort, 1, report)?;
        beside_copies(effort, 1, true, report)?;
    }
    let _awake = Awake::keep(effort);
    beside_copies(effort, 1, false, report)?;
    when_ready(effort, DEPTH, report)?;
    beside_copies(effort, DEPTH, false, report)
}
