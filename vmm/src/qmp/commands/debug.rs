//! Commands for tests and for the question "why is my disk stuck": breakpoints of `blkdebug` nodes,
//! and who holds which disk's requests. All have the prefix `x-`: Sluice's own, not QEMU's.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_block::Node;
use sluice_block::driver::{Blkdebug, DebugEvent};

use super::{Done, Monitor, NoArguments};
use crate::qmp::error::QmpError;

/// Arguments of `x-debug-break`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Break {
    node_name: String,
    event: DebugEvent,
    tag: String,
}

/// Arguments of `x-debug-resume`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Resume {
    node_name: String,
    tag: String,
    /// Let it fail with this error.
    errno: Option<i32>,
}

/// Arguments of `x-debug-wait-break`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Tag {
    node_name: String,
    tag: String,
}

fn blkdebug(node: &Node) -> Result<&Blkdebug, QmpError> {
    node.as_blkdebug().ok_or_else(|| {
        let name = node.name();
        QmpError::generic(format!(
            "Node '{name}' has no breakpoints: its driver is not blkdebug"
        ))
    })
}

/// The next request or event of the given kind is held under a tag.
pub(super) async fn set_break(monitor: Arc<Monitor>, arguments: Break) -> Result<Done, QmpError> {
    let node = monitor.graph.node(&arguments.node_name)?;
    blkdebug(&node)?.set_break(arguments.event, &arguments.tag)?;
    Ok(Done {})
}

/// Replies when somebody is held under the tag. Until then the session takes no other command.
pub(super) async fn wait_break(monitor: Arc<Monitor>, arguments: Tag) -> Result<Done, QmpError> {
    let node = monitor.graph.node(&arguments.node_name)?;
    blkdebug(&node)?.wait_break(&arguments.tag).await?;
    Ok(Done {})
}

/// Lets go whoever is held under the tag, and removes it.
pub(super) async fn resume(monitor: Arc<Monitor>, arguments: Resume) -> Result<Done, QmpError> {
    let node = monitor.graph.node(&arguments.node_name)?;
    let debug = blkdebug(&node)?;
    match arguments.errno {
        Some(errno) if errno > 0 => debug.fail(&arguments.tag, errno)?,
        Some(_) => {
            return Err(QmpError::generic(
                "Parameter 'errno' expects a positive value",
            ));
        }
        None => debug.remove_break(&arguments.tag)?,
    }
    Ok(Done {})
}

/// An element of the answer to `x-query-block-drains`: one disk's gate.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Drains {
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    /// Whether a drained section holds the disk now.
    drained: bool,
    /// Who holds sections open now.
    holders: Vec<Holder>,
    /// Requests that run now.
    in_flight: usize,
    /// Requests that wait now for the sections to end.
    parked: usize,
    /// Requests that ever waited.
    parked_total: u64,
    /// Requests that gave up waiting: cancelled or reset.
    abandoned_total: u64,
    /// The longest wait of a request so far, in nanoseconds.
    longest_wait_ns: u128,
    /// Sections that have ended.
    sections_total: u64,
    /// The longest of them, in nanoseconds.
    longest_section_ns: u128,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Holder {
    name: String,
    /// For how long, in nanoseconds.
    held_ns: u128,
}

pub(super) async fn query_block_drains(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<Drains>, QmpError> {
    let now = monitor.graph.clock().now();
    let drains = monitor.graph.backends().into_iter().map(|backend| {
        let stats = backend.gate().stats();
        let holders = stats.holders.into_iter().map(|holder| Holder {
            held_ns: now.saturating_sub(holder.since).as_nanos(),
            name: holder.name,
        });
        Drains {
            device: backend.name().to_owned(),
            node_name: backend.node().map(|node| node.name().to_owned()),
            drained: backend.gate().is_closed(),
            holders: holders.collect(),
            in_flight: stats.in_flight,
            parked: stats.parked_now,
            parked_total: stats.parked,
            abandoned_total: stats.abandoned,
            longest_wait_ns: stats.longest_wait.as_nanos(),
            sections_total: stats.sections,
            longest_section_ns: stats.longest_section.as_nanos(),
        }
    });
    Ok(drains.collect())
}
