//! How long nothing of 32 writers ends when a disk is switched over to its mirror.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sluice_aio::current;

use super::nbd::Client;
use super::ours::{Writers, add_node, event_loop, graph};
use super::{Images, Span, micros, row};
use crate::daemon::{Daemon, is_installed};
use crate::job::{mirror, ready};
use crate::report::{Row, Target};
use crate::timing::{Effort, median, percentile};

/// Bytes of the disk.
const SIZE: u64 = 16 << 20;
/// Writes at once.
const DEPTH: usize = 32;
/// The longest pause wanted, in microseconds; the flush of a target in memory takes nothing.
const PAUSE: f64 = 1000.0;
/// How long the writers write before the pivot.
const BEFORE: Duration = Duration::from_millis(5);
/// How long the writers go on after the pivot.
const AFTER: Duration = Duration::from_millis(5);

/// One pivot as the guest sees it: when its writes ended, and between which instants the operator
/// waited for it.
struct Pivot {
    spans: Vec<Span>,
    asked: Instant,
    done: Instant,
}

impl Pivot {
    /// The longest time between two ends of writes, of those that touch the pivot; in microseconds.
    fn stall(&self) -> f64 {
        let ends = self.spans.iter().map(|span| span.ended);
        let pairs = ends.clone().zip(ends.skip(1));
        let touching = pairs.filter(|(last, next)| *next >= self.asked && *last <= self.done);
        let longest = touching.map(|(last, next)| next.saturating_duration_since(last));
        micros(longest.max().unwrap_or_default())
    }
}

/// Pivots our disk `count` times, to and fro, by mirrors of the copy mode `mode`; also returns what the jobs said of
/// their pauses.
fn ours(images: Images, count: usize, mode: &'static str) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut event_loop = event_loop()?;
    event_loop.run_until(async move {
        let graph = graph();
        add_node(&graph, "a", &images.path("a")).await?;
        add_node(&graph, "b", &images.path("b")).await?;
        let node = graph.node("a").context("no node")?;
        let backend = graph.add_backend("disk", &node)?;
        let (mut stalls, mut pauses) = (Vec::new(), Vec::new());
        for round in 0..count {
            let target = if round % 2 == 0 { "b" } else { "a" };
            let more = json!({"copy-mode": mode, "auto-dismiss": false});
            let job = mirror(&graph, "disk", target, more).await?;
            ready(&job).await?;
            let writers = Writers::start(&backend, DEPTH);
            current::sleep(BEFORE).await;
            let asked = Instant::now();
            job.complete()?;
            job.concluded().await;
            let done = Instant::now();
            let figures = job.block_job_info().details;
            let pause = figures.get("x-pivot-pause-us").and_then(Value::as_f64);
            pauses.push(pause.context("the job does not say how long it paused the guest")?);
            job.dismiss()?;
            current::sleep(AFTER).await;
            let spans = writers.stop().await?;
            stalls.push(Pivot { spans, asked, done }.stall());
        }
        Ok((stalls, pauses))
    })?
}

/// Pivots the daemon's disk `count` times, to and fro, by mirrors of the copy mode `mode`.
fn daemons(images: &Images, count: usize, mode: &str) -> Result<Vec<f64>> {
    let mut daemon = Daemon::start(|directory| {
        let mut arguments = Vec::new();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        for name in ["a", "b"] {
            let file = images.path(name);
            let file = format!("file.driver=file,file.filename={}", file.display());
            add("--blockdev", format!("driver=raw,node-name={name},{file}"));
        }
        let socket = directory.join("nbd");
        let server = format!("addr.type=unix,addr.path={}", socket.display());
        add("--nbd-server", server);
        let export = "type=nbd,id=export,node-name=a,name=disk,writable=on";
        add("--export", export.to_owned());
        arguments
    })?;
    let socket = daemon.file("nbd");
    let mut stalls = Vec::new();
    for round in 0..count {
        let (source, target) = if round % 2 == 0 {
            ("a", "b")
        } else {
            ("b", "a")
        };
        let arguments = json!({
            "device": source, "target": target, "job-id": "job", "sync": "full",
            "copy-mode": mode,
        });
        daemon.say("blockdev-mirror", &arguments)?;
        daemon.wait_for("BLOCK_JOB_READY")?;
        let client = Client::start(&socket, "disk", DEPTH)?;
        std::thread::sleep(BEFORE);
        let asked = Instant::now();
        daemon.say("block-job-complete", &json!({"device": "job"}))?;
        daemon.wait_for("BLOCK_JOB_COMPLETED")?;
        let done = Instant::now();
        std::thread::sleep(AFTER);
        let spans = client.stop()?;
        stalls.push(Pivot { spans, asked, done }.stall());
    }
    daemon.quit()?;
    Ok(stalls)
}

/// The rows of the pivots of mirrors of the copy mode `mode`.
fn of_mode(effort: Effort, mode: &'static str) -> Result<Vec<Row>> {
    // In turns, each time with a disk that was opened anew.
    let (rounds, pivots) = (effort.of(10, 1), effort.of(20, 2));
    let (mut stalls, mut pauses, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (stall, pause) = ours(Images::new(SIZE)?, pivots, mode)?;
        stalls.extend(stall);
        pauses.extend(pause);
        if is_installed() {
            theirs.extend(daemons(&Images::new(SIZE)?, pivots, mode)?);
        }
    }
    let theirs = Some(theirs).filter(|stalls| !stalls.is_empty());
    let p99 = |stalls: &[f64]| percentile(stalls, 99);
    Ok(vec![
        row(
            format!("pivot ({mode}): stall of 32 writers, median"),
            median(&stalls),
            theirs.as_deref().map(median),
            Target::RatioAtMost(1.0),
        ),
        row(
            "the same: 99th percentile".to_owned(),
            p99(&stalls),
            theirs.as_deref().map(p99),
            Target::RatioAtMost(1.0),
        ),
        row(
            "the same: pause that the job reports, median".to_owned(),
            median(&pauses),
            None,
            Target::None,
        ),
        row(
            "the same: 99th percentile".to_owned(),
            p99(&pauses),
            None,
            Target::AtMost(PAUSE),
        ),
    ])
}

/// The rows of the pivot.
///
/// # Errors
/// An image can't be made, or a side fails.
pub(super) fn measure(effort: Effort) -> Result<Vec<Row>> {
    let mut rows = of_mode(effort, "write-blocking")?;
    rows.extend(of_mode(effort, "background")?);
    Ok(rows)
}
