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
use crate::report::{Row, Sink, Target};
use crate::timing::{Effort, median, percentile};

/// Bytes of the disk.
const SIZE: u64 = 16 << 20;
/// Writes at once.
const DEPTH: usize = 32;
/// The longest pause wanted, in microseconds; the flush of a target in memory takes nothing.
const PAUSE: f64 = 1000.0;
/// The unit of what should not be there at all.
const LATE: &str = "late";
/// How long the writers write before the pivot.
const BEFORE: Duration = Duration::from_millis(5);
/// How long the writers go on after the pivot.
const AFTER: Duration = Duration::from_millis(5);
/// How long the writers write on when the pivot does not come: one that waits for the guest to be quiet never does.
const LONGEST: Duration = Duration::from_secs(1);

/// One pivot as the guest sees it: when its writes ended, and between which instants the operator
/// waited for it.
struct Pivot {
    spans: Vec<Span>,
    asked: Instant,
    done: Instant,
    /// When the guest would have ended to write if no pivot had come.
    last: Instant,
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

    /// Whether it came only when the guest no longer wrote.
    fn is_late(&self) -> bool {
        self.done >= self.last
    }
}

/// What the guest saw of one side's pivots.
#[derive(Default)]
struct Seen {
    /// The stall of each that came while the guest wrote; in microseconds.
    stalls: Vec<f64>,
    /// How many came only when it no longer wrote.
    late: u32,
}

impl Seen {
    fn add(&mut self, pivot: &Pivot) {
        match pivot.is_late() {
            true => self.late += 1,
            false => self.stalls.push(pivot.stall()),
        }
    }
}

/// When the guest ends that begins to write now, if no pivot comes.
fn last() -> Instant {
    Instant::now() + BEFORE + LONGEST
}

/// Pivots our disk `count` times, to and fro, by mirrors of the copy mode `mode`; also returns what the
/// jobs said of their pauses.
fn ours(images: Images, count: usize, mode: &'static str) -> Result<(Vec<Pivot>, Vec<f64>)> {
    let mut event_loop = event_loop()?;
    event_loop.run_until(async move {
        let graph = graph();
        add_node(&graph, "a", &images.path("a")).await?;
        add_node(&graph, "b", &images.path("b")).await?;
        let node = graph.node("a").context("no node")?;
        let backend = graph.add_backend("disk", &node)?;
        let (mut pivots, mut pauses) = (Vec::new(), Vec::new());
        for round in 0..count {
            let target = if round % 2 == 0 { "b" } else { "a" };
            let more = json!({"copy-mode": mode, "auto-dismiss": false});
            let job = mirror(&graph, "disk", target, more).await?;
            ready(&job).await?;
            let last = last();
            let writers = Writers::start(&backend, DEPTH, Some(last));
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
            pivots.push(Pivot {
                spans,
                asked,
                done,
                last,
            });
        }
        Ok((pivots, pauses))
    })?
}

/// Pivots the daemon's disk `count` times, to and fro, by mirrors of the copy mode `mode`.
fn daemons(images: &Images, count: usize, mode: &str) -> Result<Vec<Pivot>> {
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
    let mut pivots = Vec::new();
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
        let last = last();
        let client = Client::start(&socket, "disk", DEPTH, last)?;
        std::thread::sleep(BEFORE);
        let asked = Instant::now();
        daemon.say("block-job-complete", &json!({"device": "job"}))?;
        daemon.wait_for("BLOCK_JOB_COMPLETED")?;
        let done = Instant::now();
        std::thread::sleep(AFTER);
        let spans = client.stop()?;
        pivots.push(Pivot {
            spans,
            asked,
            done,
            last,
        });
    }
    daemon.quit()?;
    Ok(pivots)
}

/// The rows of the pivots of mirrors of the copy mode `mode`.
fn of_mode(effort: Effort, mode: &'static str) -> Result<Vec<Row>> {
    // In turns, each time with a disk that was opened anew.
    let (rounds, pivots) = (effort.of(10, 1), effort.of(20, 2));
    let (mut guest, mut pauses) = (Seen::default(), Vec::new());
    let mut theirs = is_installed().then(Seen::default);
    for _ in 0..rounds {
        let (seen, pause) = ours(Images::new(SIZE)?, pivots, mode)?;
        seen.iter().for_each(|pivot| guest.add(pivot));
        pauses.extend(pause);
        if let Some(theirs) = &mut theirs {
            let seen = daemons(&Images::new(SIZE)?, pivots, mode)?;
            seen.iter().for_each(|pivot| theirs.add(pivot));
        }
    }
    let late = theirs.as_ref().map(|theirs| f64::from(theirs.late));
    // Where no pivot of the daemon came while the guest wrote, there is nothing to hold ours against.
    let theirs = theirs.map(|theirs| theirs.stalls);
    let theirs = theirs.filter(|stalls| !stalls.is_empty());
    let target = match theirs.is_some() || effort == Effort::Smoke {
        true => Target::RatioAtMost(1.0),
        false => Target::None,
    };
    let stalls = guest.stalls;
    let p99 = |stalls: &[f64]| percentile(stalls, 99);
    Ok(vec![
        row(
            format!("pivot ({mode}): stall of 32 writers, median"),
            median(&stalls),
            theirs.as_deref().map(median),
            target,
        ),
        row(
            "the same: 99th percentile".to_owned(),
            p99(&stalls),
            theirs.as_deref().map(p99),
            target,
        ),
        Row {
            unit: LATE,
            ..row(
                "the same: that came only when nobody wrote".to_owned(),
                f64::from(guest.late),
                late,
                Target::AtMost(0.0),
            )
        },
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

/// The rows of the pivot, each given to `report` when it is there.
///
/// # Errors
/// An image can't be made, or a side fails.
pub(super) fn measure(effort: Effort, report: Sink<'_>) -> Result<()> {
    for mode in ["write-blocking", "background"] {
        of_mode(effort, mode)?.into_iter().for_each(&mut *report);
    }
    Ok(())
}
