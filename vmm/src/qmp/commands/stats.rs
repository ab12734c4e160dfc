//! `query-blockstats`: what disks and nodes have counted (QEMU's `qapi/block-core.json`).
//!
//! A disk counts its guest's requests; a node tells how far it has been written, and nothing else,
//! as in QEMU. Members that are always zero or empty here stand for what Sluice does not do:
//! requests are not merged, there are no zones, and no intervals to average over can be set.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_block::backend::{Account, Counters};
use sluice_block::{Backend, Node};

use super::Monitor;
use super::block::is_tool;
use super::records::{visible, visible_root};
use crate::qmp::error::QmpError;
use crate::qmp::schema::{self, Shape};

/// The shape of records that are part of themselves, by the names of their types.
pub(super) fn named_shape(name: &str) -> Option<Shape> {
    (name == "StatsRecord").then(schema::shape_of_reply::<StatsRecord>)
}

/// Arguments of `query-blockstats`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct QueryStats {
    query_nodes: Option<bool>,
}

pub(super) async fn query_blockstats(
    monitor: Arc<Monitor>,
    arguments: QueryStats,
) -> Result<Vec<StatsRecord>, QmpError> {
    if arguments.query_nodes == Some(true) {
        let nodes = monitor.graph.nodes();
        let records = nodes.iter().map(StatsRecord::of_node);
        return Ok(records.collect());
    }
    let backends = monitor.graph.backends();
    let disks = backends.iter().filter(|backend| !is_tool(backend));
    Ok(disks.map(|disk| StatsRecord::of_disk(disk)).collect())
}

/// QEMU's `BlockStats`: a disk or a node, with what is below it.
#[derive(Debug, Default, JsonSchema, Serialize)]
pub(super) struct StatsRecord {
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qdev: Option<String>,
    #[serde(rename = "node-name", skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    stats: DeviceStats,
    /// The child that holds the node's bytes; the name is QEMU's.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Box<Self>>,
    /// Of a disk's nodes: what a filter filters, or the backing image.
    #[serde(skip_serializing_if = "Option::is_none")]
    backing: Option<Box<Self>>,
}

/// QEMU's `BlockDeviceStats`.
#[derive(Debug, Default, JsonSchema, Serialize)]
struct DeviceStats {
    rd_bytes: u64,
    wr_bytes: u64,
    unmap_bytes: u64,
    zone_append_bytes: u64,
    rd_operations: u64,
    wr_operations: u64,
    flush_operations: u64,
    unmap_operations: u64,
    zone_append_operations: u64,
    rd_total_time_ns: u64,
    wr_total_time_ns: u64,
    flush_total_time_ns: u64,
    unmap_total_time_ns: u64,
    zone_append_total_time_ns: u64,
    wr_highest_offset: u64,
    rd_merged: u64,
    wr_merged: u64,
    unmap_merged: u64,
    zone_append_merged: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_time_ns: Option<u64>,
    failed_rd_operations: u64,
    failed_wr_operations: u64,
    failed_flush_operations: u64,
    failed_unmap_operations: u64,
    failed_zone_append_operations: u64,
    invalid_rd_operations: u64,
    invalid_wr_operations: u64,
    invalid_flush_operations: u64,
    invalid_unmap_operations: u64,
    invalid_zone_append_operations: u64,
    /// Whether invalid requests end an idle time; failed ones do so with the other.
    account_invalid: bool,
    account_failed: bool,
    timed_stats: Vec<TimedStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rd_latency_histogram: Option<LatencyRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wr_latency_histogram: Option<LatencyRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flush_latency_histogram: Option<LatencyRecord>,
}

/// QEMU's `BlockDeviceTimedStats`, of which there are none.
#[derive(Debug, JsonSchema, Serialize)]
struct TimedStats {}

/// QEMU's `BlockLatencyHistogramInfo`.
#[derive(Debug, JsonSchema, Serialize)]
struct LatencyRecord {
    boundaries: Vec<u64>,
    bins: Vec<u64>,
}

impl LatencyRecord {
    fn of(counters: &Counters) -> Option<Self> {
        let latencies = counters.latencies()?;
        Some(Self {
            boundaries: latencies.boundaries().to_vec(),
            bins: latencies.bins(),
        })
    }
}

/// Whose nodes are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// A disk's: filters without a name are passed over, and backing images are told.
    Disk,
    /// All, each by itself.
    Node,
}

impl StatsRecord {
    fn of_disk(disk: &Backend) -> Self {
        let root = visible_root(disk);
        let mut record = root.map_or_else(Self::default, |root| Self::below(&root, Level::Disk));
        record.stats = DeviceStats {
            wr_highest_offset: record.stats.wr_highest_offset,
            ..DeviceStats::of(disk)
        };
        record.device = Some(disk.name().to_owned());
        record.qdev = disk.device().map(|device| device.shown());
        record
    }

    fn of_node(node: &Arc<Node>) -> Self {
        Self::below(node, Level::Node)
    }

    fn below(node: &Arc<Node>, level: Level) -> Self {
        let tell = |child: Arc<Node>| {
            let child = match level {
                Level::Disk => visible(child),
                Level::Node => child,
            };
            Box::new(Self::below(&child, level))
        };
        let backing = match level {
            Level::Disk => node.filtered_or_backing().map(tell),
            Level::Node => None,
        };
        Self {
            device: None,
            qdev: None,
            node_name: Some(node.name().to_owned()),
            stats: DeviceStats {
                wr_highest_offset: node.highest_write(),
                ..DeviceStats::default()
            },
            parent: node.primary_child().map(tell),
            backing,
        }
    }
}

impl DeviceStats {
    fn of(disk: &Backend) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let kind = |kind| -> &Counters { disk.stats().of(kind) };
        let (rd, wr) = (kind(Account::Read), kind(Account::Write));
        let (flush, unmap) = (kind(Account::Flush), kind(Account::Unmap));
        let idle = disk.idle_time();
        Self {
            rd_bytes: read(&rd.bytes),
            wr_bytes: read(&wr.bytes),
            unmap_bytes: read(&unmap.bytes),
            rd_operations: read(&rd.operations),
            wr_operations: read(&wr.operations),
            flush_operations: read(&flush.operations),
            unmap_operations: read(&unmap.operations),
            rd_total_time_ns: read(&rd.total_time_ns),
            wr_total_time_ns: read(&wr.total_time_ns),
            flush_total_time_ns: read(&flush.total_time_ns),
            unmap_total_time_ns: read(&unmap.total_time_ns),
            idle_time_ns: idle.map(|idle| u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX)),
            failed_rd_operations: read(&rd.failed),
            failed_wr_operations: read(&wr.failed),
            failed_flush_operations: read(&flush.failed),
            failed_unmap_operations: read(&unmap.failed),
            invalid_rd_operations: read(&rd.invalid),
            invalid_wr_operations: read(&wr.invalid),
            invalid_flush_operations: read(&flush.invalid),
            invalid_unmap_operations: read(&unmap.invalid),
            account_invalid: true,
            account_failed: true,
            rd_latency_histogram: LatencyRecord::of(rd),
            wr_latency_histogram: LatencyRecord::of(wr),
            flush_latency_histogram: LatencyRecord::of(flush),
            ..Self::default()
        }
    }
}
