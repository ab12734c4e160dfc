//! Commands about block nodes and disks.

use std::sync::Arc;

use serde::Deserialize;
use sluice_block::Backend;
use sluice_block::look::look_at;

use super::records::{DiskRecord, NodeRecord, visible_root};
use super::{Done, Monitor, NoArguments};
use crate::qmp::blockdev::{self, NodeOptions};
use crate::qmp::error::QmpError;
use crate::qmp::input::Scalars;

pub(super) async fn blockdev_add(
    monitor: Arc<Monitor>,
    arguments: NodeOptions,
) -> Result<Done, QmpError> {
    let options = blockdev::read(arguments.0, Scalars::Typed)?;
    if let Some(name) = options.node_name() {
        refuse_disk_name(&monitor, name)?;
    }
    monitor.graph.add_node(&options).await?;
    monitor.graph.bring_jobs_home(&monitor.main).await;
    Ok(Done {})
}

/// Refuses a new node with the name of a disk: commands that take either name would reach the wrong
/// one.
pub(super) fn refuse_disk_name(monitor: &Monitor, name: &str) -> Result<(), QmpError> {
    match monitor.graph.backend(name) {
        None => Ok(()),
        Some(_) => Err(QmpError::generic(format!(
            "node-name={name} is conflicting with a device id"
        ))),
    }
}

/// Arguments of `blockdev-del`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct BlockdevDel {
    node_name: String,
}

pub(super) async fn blockdev_del(
    monitor: Arc<Monitor>,
    arguments: BlockdevDel,
) -> Result<Done, QmpError> {
    monitor.graph.del_node(&arguments.node_name)?;
    Ok(Done {})
}

/// Whether nobody but a command has given the backend its name: no device stands behind it.
pub(super) fn is_tool(backend: &Backend) -> bool {
    backend.name().starts_with('#')
}

pub(super) async fn query_block(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<DiskRecord>, QmpError> {
    let mut disks = monitor.graph.backends();
    disks.retain(|backend| !is_tool(backend));
    look_at(disks.iter().filter_map(|backend| visible_root(backend))).await;
    let records = disks.iter().map(|backend| DiskRecord::of(backend));
    Ok(records.collect())
}

/// Arguments of `query-named-block-nodes`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueryNodes {
    /// Without backing images in the records.
    flat: Option<bool>,
}

pub(super) async fn query_named_block_nodes(
    monitor: Arc<Monitor>,
    arguments: QueryNodes,
) -> Result<Vec<NodeRecord>, QmpError> {
    let nodes = monitor.graph.nodes();
    let flat = arguments.flat == Some(true);
    look_at(nodes.iter().map(Arc::clone)).await;
    let records = nodes.iter().map(|node| match flat {
        true => NodeRecord::flat(node),
        false => NodeRecord::of(node),
    });
    Ok(records.collect())
}
