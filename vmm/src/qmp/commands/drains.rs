//! `x-query-block-drains`: who holds whose requests, since when, what waits for that, how long
//! such sections and waits have been, and which sections can't begin. Sluice's own, for the question "why is my disk stuck".

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use sluice_aio::{Gate, Histogram, gate};
use sluice_block::drain::HeldUpSection;
use sluice_block::{Backend, Graph, Node};

use super::block::is_tool;
use super::{Monitor, NoArguments};
use crate::qmp::error::QmpError;

/// An element of the answer: a disk (it has a `device`) or a node.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Drains {
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    /// Whether a drained section holds it now.
    drained: bool,
    /// Who holds sections open now.
    holders: Vec<Holder>,
    /// Sections that are to hold it and can't begin. They hold nobody until they can.
    held_up: Vec<HeldUp>,
    /// Requests that wait now for the sections to end; of a node: those of the disks above it.
    parked: usize,
    /// Sections that have ended.
    sections_total: u64,
    /// The longest of them, in nanoseconds.
    longest_section_ns: u128,
    /// How long they lasted.
    section_times: Vec<Bucket>,
    /// The longest wait of a section for requests to end, in nanoseconds.
    longest_drain_ns: u128,
    /// How long sections waited for requests to end.
    drain_times: Vec<Bucket>,
    #[serde(flatten)]
    disk: Option<DiskDrains>,
}

/// What only a disk has: its requests.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
struct DiskDrains {
    /// Requests that run now.
    in_flight: usize,
    /// What they are, as far as their device can say.
    requests: Vec<String>,
    /// For how long somebody has been waiting for them, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    awaited_ns: Option<u128>,
    /// Queues of the device that are left unserved now.
    unserved: usize,
    /// Requests that ever waited.
    parked_total: u64,
    /// Requests that gave up waiting: cancelled or reset.
    abandoned_total: u64,
    /// The longest wait of a request, or of a queue that was left unserved, so far, in nanoseconds.
    longest_wait_ns: u128,
    /// How long requests waited for sections to end.
    wait_times: Vec<Bucket>,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Holder {
    name: String,
    /// For how long, in nanoseconds.
    held_ns: u128,
}

/// A section that can't begin.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
struct HeldUp {
    /// Whose it is.
    name: String,
    /// For how long it has been waiting, in nanoseconds.
    waited_ns: u128,
    /// What it waits for, for people.
    waits_for: String,
    /// The job that does not come to rest, if it waits for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<String>,
    /// The node whose requests have not returned, if it waits for those of a job that has ended without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
}

/// How many took less than a time and not less than that of the bucket before.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Bucket {
    less_than_us: u64,
    count: u64,
}

fn buckets(histogram: &Histogram) -> Vec<Bucket> {
    let buckets = histogram.buckets();
    buckets
        .map(|(less_than_us, count)| Bucket {
            less_than_us,
            count,
        })
        .collect()
}

fn holders(holders: Vec<gate::Holder>, now: Duration) -> Vec<Holder> {
    let holders = holders.into_iter().map(|holder| Holder {
        held_ns: now.saturating_sub(holder.since).as_nanos(),
        name: holder.name,
    });
    holders.collect()
}

fn held_up(sections: Vec<HeldUpSection>, now: Duration) -> Vec<HeldUp> {
    let sections = sections.into_iter().map(|section| HeldUp {
        name: section.holder,
        waited_ns: now.saturating_sub(section.since).as_nanos(),
        waits_for: section.waits_for,
        job: section.job,
        node_name: section.node,
    });
    sections.collect()
}

fn of_disk(graph: &Graph, backend: &Backend, now: Duration) -> Drains {
    let stats = backend.gate().stats();
    let count = |of: fn(&Gate) -> usize| backend.gates().into_iter().map(of).sum();
    Drains {
        device: Some(backend.name().to_owned()),
        node_name: backend.node().map(|node| node.name().to_owned()),
        drained: backend.gate().is_closed(),
        holders: holders(stats.holders, now),
        held_up: held_up(graph.held_up_over_disk(backend), now),
        parked: count(Gate::parked),
        sections_total: stats.sections,
        longest_section_ns: stats.longest_section.as_nanos(),
        section_times: buckets(&stats.section_times),
        longest_drain_ns: stats.longest_drain.as_nanos(),
        drain_times: buckets(&stats.drain_times),
        disk: Some(DiskDrains {
            in_flight: count(Gate::in_flight),
            requests: backend.gate().describe_in_flight(),
            awaited_ns: stats
                .awaited_since
                .map(|since| now.saturating_sub(since).as_nanos()),
            unserved: stats.unserved_now,
            parked_total: stats.parked,
            abandoned_total: stats.abandoned,
            longest_wait_ns: stats.longest_wait.max(stats.longest_wait_now).as_nanos(),
            wait_times: buckets(&stats.wait_times),
        }),
    }
}

fn of_node(graph: &Graph, node: &Arc<Node>, now: Duration) -> Drains {
    let past = node.past_sections();
    let holding = holders(node.drained_by(), now);
    let above = graph.backends_above(node);
    Drains {
        device: None,
        node_name: Some(node.name().to_owned()),
        drained: !holding.is_empty(),
        holders: holding,
        held_up: held_up(graph.held_up_over_node(node), now),
        parked: (above.iter().flat_map(|backend| backend.gates()))
            .map(Gate::parked)
            .sum(),
        sections_total: past.count,
        longest_section_ns: past.longest.as_nanos(),
        section_times: buckets(&past.times),
        longest_drain_ns: past.longest_drain.as_nanos(),
        drain_times: buckets(&past.drain_times),
        disk: None,
    }
}

pub(super) async fn query_block_drains(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<Drains>, QmpError> {
    let graph = &monitor.graph;
    let now = graph.clock().now();
    let backends = graph.backends();
    // An operator's tool has no name that anybody could know, and no requests but its own.
    let disks = backends.iter().filter(|backend| !is_tool(backend));
    let mut drains: Vec<_> = disks.map(|backend| of_disk(graph, backend, now)).collect();
    let nodes = graph.nodes();
    drains.extend(nodes.iter().map(|node| of_node(graph, node, now)));
    Ok(drains)
}
