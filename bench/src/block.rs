//! What the block layer costs: a filter, a format, a drained section.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::json;
use sluice_aio::{EventLoop, IoBuffer, IoThread, LoopConfig, current};

use crate::disk::{BLOCK, Disk, Medium, SIZE, Until, add_disk};
use crate::random_read::{confine, test_file};
use crate::report::{Row, Target};
use crate::timing::{Effort, difference, in_turns, median};

/// Processor time that a node which only passes requests on adds to each.
///
/// # Errors
/// A disk's.
pub fn filter(effort: Effort) -> Result<Vec<Row>> {
    // A difference needs some rounds even to have the right sign.
    let (rounds, requests) = (effort.of(41, 21), effort.of(20_000, 500));
    let mut bare = Disk::open(&Medium::Null)?;
    let mut rows = Vec::new();
    for (name, medium) in [
        ("blkdebug", Medium::FilteredNull),
        ("raw", Medium::RawNull),
        ("throttle without limits", Medium::ThrottledNull),
        ("copy-on-read", Medium::CopyOnReadNull),
        ("a mirror's filter", Medium::Null),
    ] {
        let mut filtered = Disk::open(&medium)?;
        if matches!(medium, Medium::Null) {
            filtered.mirror()?;
        }
        let time = |disk: &mut Disk| {
            let run = disk.read(1, Until::Requests(requests))?;
            Ok::<f64, anyhow::Error>(run.computed_each())
        };
        let added = difference(rounds, || time(&mut filtered), || time(&mut bare))?;
        rows.push(Row {
            benchmark: "filter",
            what: format!("{name} over null: what it adds to a read"),
            unit: "ns",
            ours: added,
            reference: None,
            target: Target::AtMost(300.0),
        });
    }
    Ok(rows)
}

/// Reads of a file through `raw` and `file`, beside reads by the loop's engine alone.
///
/// # Errors
/// A disk's.
pub fn format(effort: Effort) -> Result<Vec<Row>> {
    let file = test_file()?;
    let _confined = confine(effort);
    // The kernel's workers for a thread's rings go where that thread could go when it made its first ring:
    // this one has had rings before it was confined.
    std::thread::scope(|scope| scope.spawn(|| compare_format(effort, file.path())).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn compare_format(effort: Effort, file: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for depth in [1, 32] {
        let (rounds, requests) = (effort.of(41, 1), effort.of(4000, 200));
        let rate = |medium: Medium<'_>| {
            let mut disk = Disk::open(&medium)?;
            disk.read(depth, Until::Requests(500))?;
            let run = disk.read(depth, Until::Requests(requests))?;
            Ok::<f64, anyhow::Error>(run.rate())
        };
        let (ours, bare) = in_turns(
            rounds,
            || rate(Medium::RawFile(file)),
            || rate(Medium::Engine(file)),
        )?;
        rows.push(Row {
            benchmark: "format",
            what: format!("raw over file, depth {depth}: reads per second"),
            unit: "1/s",
            ours,
            reference: Some(bare),
            target: Target::RatioAtLeast(0.95),
        });
    }
    Ok(rows)
}

/// Requests in flight when a busy disk is drained.
const IN_FLIGHT: u64 = 64;

/// Sections of a quiet disk and of a busy one.
///
/// # Errors
/// A disk's.
pub fn drain(effort: Effort) -> Result<Vec<Row>> {
    let mut event_loop = EventLoop::new("bench", &LoopConfig::default())?;
    let thread = IoThread::spawn("device", LoopConfig::default())?;
    let row = |what: &str, nanoseconds, bound| Row {
        benchmark: "drain",
        what: what.to_owned(),
        unit: "us",
        ours: nanoseconds / 1000.0,
        reference: None,
        target: Target::AtMost(bound),
    };
    let here = event_loop.context();
    let there = thread.context().clone();
    let mut rows = Vec::new();
    for (what, context, bound) in [
        ("a section of a quiet disk, in its own loop", here, 5.0),
        ("a section of a quiet disk, from another loop", there, 50.0),
    ] {
        let (rounds, count) = (effort.of(41, 1), effort.of(200, 5));
        let each = event_loop.run_until(async move {
            let (graph, backend) = add_disk(json!({"driver": "null-co", "size": SIZE})).await?;
            backend.set_context(&context);
            let node = backend.node().context("the disk has no root")?;
            let mut samples = Vec::new();
            for _ in 0..rounds {
                let began = Instant::now();
                for _ in 0..count {
                    drop(graph.drain(&node, "bench").await);
                }
                samples.push(began.elapsed().as_secs_f64() * 1e9 / f64::from(count));
            }
            Ok::<f64, anyhow::Error>(median(&samples))
        })??;
        rows.push(row(what, each, bound));
    }
    let rounds = effort.of(101, 1);
    let late = event_loop.run_until(busy(rounds))??;
    let what = "from the last of 64 requests to the section";
    rows.push(row(what, late, 100.0));
    Ok(rows)
}

/// Nanoseconds from the end of the last request to the section that waited for it.
async fn busy(rounds: usize) -> Result<f64> {
    let options = json!({"driver": "null-co", "size": SIZE, "latency-ns": 200_000});
    let (graph, backend) = add_disk(options).await?;
    let node = backend.node().context("the disk has no root")?;
    let len = usize::try_from(BLOCK)?;
    let mut samples = Vec::new();
    for _ in 0..rounds {
        let last = Rc::new(Cell::new(Instant::now()));
        let mut requests = Vec::new();
        for number in 0..IN_FLIGHT {
            let (backend, last) = (Arc::clone(&backend), Rc::clone(&last));
            requests.push(current::spawn_local(async move {
                let token = backend.enter().await?;
                let buffer = IoBuffer::alloc(len);
                backend.read(&token, number * BLOCK, buffer).await?;
                last.set(Instant::now());
                drop(token);
                Ok::<(), anyhow::Error>(())
            }));
        }
        // All of them have entered when this goes on.
        current::yield_now().await;
        let section = graph.drain(&node, "bench").await;
        samples.push(last.get().elapsed().as_secs_f64() * 1e9);
        drop(section);
        for request in requests {
            request.await??;
        }
    }
    Ok(median(&samples))
}
