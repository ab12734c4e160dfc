//! What queries tell about nodes and disks: the records of `query-block`,
//! `query-named-block-nodes` and `query-blockstats` (QEMU's `qapi/block-core.json`).
//!
//! Members that are always the same here stand for features that Sluice does not have yet, with the
//! value that means so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use sluice_block::backend::{Account, Counters};
use sluice_block::job::IoStatus;
use sluice_block::{Backend, Node};

/// QEMU's `BlockDeviceInfo`: a node.
#[derive(Debug, Serialize)]
pub(super) struct NodeRecord {
    pub(super) file: String,
    #[serde(rename = "node-name")]
    pub(super) node_name: String,
    pub(super) ro: bool,
    pub(super) drv: &'static str,
    backing_file_depth: u32,
    active: bool,
    encrypted: bool,
    pub(super) detect_zeroes: &'static str,
    bps: u64,
    bps_rd: u64,
    bps_wr: u64,
    iops: u64,
    iops_rd: u64,
    iops_wr: u64,
    image: ImageRecord,
    pub(super) cache: CacheRecord,
    write_threshold: u64,
}

/// QEMU's `ImageInfo`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ImageRecord {
    filename: String,
    format: &'static str,
    virtual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    actual_size: Option<u64>,
}

/// QEMU's `BlockdevCacheInfo`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct CacheRecord {
    pub(super) writeback: bool,
    pub(super) direct: bool,
    pub(super) no_flush: bool,
}

impl NodeRecord {
    /// Asks the medium, which may block.
    pub(super) fn of(node: &Node) -> Self {
        let info = node.info();
        Self {
            node_name: node.name().to_owned(),
            ro: node.is_read_only(),
            drv: node.driver_name(),
            backing_file_depth: 0,
            active: true,
            encrypted: false,
            detect_zeroes: node.policy().detect_zeroes().name(),
            bps: 0,
            bps_rd: 0,
            bps_wr: 0,
            iops: 0,
            iops_rd: 0,
            iops_wr: 0,
            image: ImageRecord {
                filename: info.filename.clone(),
                format: node.driver_name(),
                virtual_size: node.len(),
                actual_size: info.actual_size,
            },
            cache: CacheRecord {
                writeback: true,
                direct: info.direct,
                no_flush: info.no_flush,
            },
            write_threshold: 0,
            file: info.filename,
        }
    }
}

/// QEMU's `BlockInfo`: a disk.
#[derive(Debug, Serialize)]
pub(super) struct DiskRecord {
    pub(super) device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) qdev: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    pub(super) removable: bool,
    pub(super) locked: bool,
    /// None without a tray.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tray_open: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inserted: Option<NodeRecord>,
    #[serde(rename = "io-status", skip_serializing_if = "Option::is_none")]
    pub(super) io_status: Option<IoStatus>,
}

impl DiskRecord {
    /// Asks the medium, which may block.
    pub(super) fn of(backend: &Backend) -> Self {
        let drive = backend.removable_device();
        Self {
            device: backend.name().to_owned(),
            qdev: backend.device(),
            kind: "unknown",
            removable: backend.is_removable(),
            locked: drive.as_ref().is_some_and(|drive| drive.is_locked()),
            tray_open: drive.map(|drive| drive.is_tray_open()),
            inserted: visible_root(backend).map(|node| {
                let mut record = NodeRecord::of(&node);
                record.cache.writeback = backend.write_cache();
                record
            }),
            io_status: backend.io_status(),
        }
    }
}

/// The root node that a client knows: a filter that a job has put in without being given a name for
/// it is passed over.
fn visible_root(backend: &Backend) -> Option<Arc<Node>> {
    let mut node = backend.node()?;
    while node.is_implicit_filter() {
        let Some((_, below)) = node.children().into_iter().next() else {
            break;
        };
        node = below;
    }
    Some(node)
}

/// QEMU's `BlockStats`: a disk's counters.
#[derive(Debug, Serialize)]
pub(super) struct StatsRecord {
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    qdev: Option<String>,
    #[serde(rename = "node-name", skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    stats: DeviceStats,
}

/// QEMU's `BlockDeviceStats`, as far as it is counted.
#[derive(Debug, Serialize)]
struct DeviceStats {
    rd_bytes: u64,
    wr_bytes: u64,
    unmap_bytes: u64,
    rd_operations: u64,
    wr_operations: u64,
    flush_operations: u64,
    unmap_operations: u64,
    rd_total_time_ns: u64,
    wr_total_time_ns: u64,
    flush_total_time_ns: u64,
    unmap_total_time_ns: u64,
    wr_highest_offset: u64,
    rd_merged: u64,
    wr_merged: u64,
    unmap_merged: u64,
    failed_rd_operations: u64,
    failed_wr_operations: u64,
    failed_flush_operations: u64,
    failed_unmap_operations: u64,
    invalid_rd_operations: u64,
    invalid_wr_operations: u64,
    invalid_flush_operations: u64,
    invalid_unmap_operations: u64,
    account_invalid: bool,
    account_failed: bool,
    timed_stats: [(); 0],
    #[serde(skip_serializing_if = "Option::is_none")]
    rd_latency_histogram: Option<LatencyRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wr_latency_histogram: Option<LatencyRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flush_latency_histogram: Option<LatencyRecord>,
}

/// QEMU's `BlockLatencyHistogramInfo`.
#[derive(Debug, Serialize)]
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

impl StatsRecord {
    pub(super) fn of(backend: &Backend) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let kind = |kind| -> &Counters { backend.stats().of(kind) };
        let (rd, wr) = (kind(Account::Read), kind(Account::Write));
        let (flush, unmap) = (kind(Account::Flush), kind(Account::Unmap));
        Self {
            device: backend.name().to_owned(),
            qdev: backend.device(),
            node_name: visible_root(backend).map(|node| node.name().to_owned()),
            stats: DeviceStats {
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
                wr_highest_offset: 0,
                rd_merged: 0,
                wr_merged: 0,
                unmap_merged: 0,
                failed_rd_operations: read(&rd.failed),
                failed_wr_operations: read(&wr.failed),
                failed_flush_operations: read(&flush.failed),
                failed_unmap_operations: read(&unmap.failed),
                invalid_rd_operations: 0,
                invalid_wr_operations: 0,
                invalid_flush_operations: 0,
                invalid_unmap_operations: 0,
                account_invalid: false,
                account_failed: true,
                timed_stats: [],
                rd_latency_histogram: LatencyRecord::of(rd),
                wr_latency_histogram: LatencyRecord::of(wr),
                flush_latency_histogram: LatencyRecord::of(flush),
            },
        }
    }
}
