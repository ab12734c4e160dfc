//! `block-latency-histogram-set`: which latencies of a disk are counted together.

use std::sync::Arc;

use serde::Deserialize;
use sluice_block::Backend;
use sluice_block::backend::{Account, Latencies};
use sluice_block::unsigned::Unsigned;

use super::{Done, Monitor};
use crate::qmp::error::{ErrorClass, QmpError};

/// Arguments of `block-latency-histogram-set` (QEMU's `qapi/block-core.json`). Boundaries are in
/// nanoseconds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HistogramSet {
    /// The disk, by its own name or its device's.
    id: String,
    /// For every kind that is not named.
    boundaries: Option<Vec<Unsigned<u64>>>,
    boundaries_read: Option<Vec<Unsigned<u64>>>,
    boundaries_write: Option<Vec<Unsigned<u64>>>,
    boundaries_flush: Option<Vec<Unsigned<u64>>>,
}

pub(super) async fn block_latency_histogram_set(
    monitor: Arc<Monitor>,
    arguments: HistogramSet,
) -> Result<Done, QmpError> {
    let backend = disk(&monitor, &arguments.id)?;
    let kinds = [
        (Account::Read, "read", arguments.boundaries_read),
        (Account::Write, "write", arguments.boundaries_write),
        (Account::Flush, "flush", arguments.boundaries_flush),
    ];
    let nothing_named =
        arguments.boundaries.is_none() && kinds.iter().all(|(_, _, own)| own.is_none());
    // All are checked before any is changed.
    let mut histograms = Vec::new();
    for (kind, name, own) in kinds {
        match own.or_else(|| arguments.boundaries.clone()) {
            Some(boundaries) => {
                let boundaries = boundaries.iter().map(|bound| bound.0).collect();
                let histogram = Latencies::new(boundaries).ok_or_else(|| {
                    let id = &arguments.id;
                    QmpError::generic(format!("Device '{id}' set {name} boundaries fail"))
                })?;
                histograms.push((kind, Some(histogram)));
            }
            // An id alone ends all of them.
            None if nothing_named => histograms.push((kind, None)),
            None => {}
        }
    }
    for (kind, histogram) in histograms {
        backend.stats().of(kind).set_latencies(histogram);
    }
    Ok(Done {})
}

fn disk(monitor: &Monitor, id: &str) -> Result<Arc<Backend>, QmpError> {
    let backends = monitor.graph.backends();
    let is_meant = |disk: &&Arc<Backend>| disk.name() == id || disk.is_of_device(id);
    let found = backends.iter().find(is_meant).map(Arc::clone);
    found.ok_or_else(|| QmpError {
        class: ErrorClass::DeviceNotFound,
        desc: format!("Device '{id}' not found"),
    })
}
