//! `x-query-iothread-stats`: what the event loops count about themselves. Sluice's own command, not
//! QEMU's.
//!
//! Nothing is stopped for it: the figures of one loop may be apart by what it did meanwhile.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use sluice_aio::{AioContext, Histogram};

use super::{Monitor, NoArguments};
use crate::qmp::error::QmpError;

/// An element of the answer: one loop, the main one first. The counts are since its start;
/// [`sluice_aio::LoopStats`] says what each means.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct LoopRecord {
    id: String,
    turns: u64,
    sleeps: u64,
    wakes: u64,
    tasks: u64,
    bottom_halves: u64,
    remote: u64,
    fd_dispatches: u64,
    timers: u64,
    batches: u64,
    operations: u64,
    thread_operations: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    without_ring: Option<String>,
    batch_sizes: Vec<Bucket>,
    polls_hit: u64,
    polls_missed: u64,
    poll_ns: u128,
    poll_times_ns: Vec<Bucket>,
    slow_turns: u64,
    longest_turn_ns: u128,
}

/// So many values were less than `below`, and at least half of it.
#[derive(JsonSchema, Serialize)]
pub(super) struct Bucket {
    below: u64,
    count: u64,
}

pub(super) fn buckets(histogram: &Histogram) -> Vec<Bucket> {
    let buckets = histogram.buckets();
    buckets
        .map(|(below, count)| Bucket { below, count })
        .collect()
}

fn record(context: &AioContext) -> LoopRecord {
    let stats = context.stats();
    LoopRecord {
        id: context.name().to_owned(),
        turns: stats.turns,
        sleeps: stats.sleeps,
        wakes: stats.wakes,
        tasks: stats.tasks,
        bottom_halves: stats.bottom_halves,
        remote: stats.remote,
        fd_dispatches: stats.fd_dispatches,
        timers: stats.timers,
        batches: stats.batches,
        operations: stats.operations,
        thread_operations: stats.thread_operations,
        without_ring: stats.without_ring,
        batch_sizes: buckets(&stats.batch_sizes),
        polls_hit: stats.polls_hit,
        polls_missed: stats.polls_missed,
        poll_ns: stats.poll_time.as_nanos(),
        poll_times_ns: buckets(&stats.poll_times),
        slow_turns: stats.slow_turns,
        longest_turn_ns: stats.longest_turn.as_nanos(),
    }
}

pub(super) async fn query_iothread_stats(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<LoopRecord>, QmpError> {
    let threads = monitor.iothreads.contexts();
    let loops = std::iter::once(&monitor.main).chain(&threads);
    Ok(loops.map(record).collect())
}
