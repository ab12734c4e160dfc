//! Commands that change or show the block graph as a whole.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sluice_block::graph::SnapshotSync;
use sluice_block::graph::query::VertexKind;
use sluice_block::options::BlockPermission;
use sluice_block::{BlockError, Home, Node};

use super::block::refuse_disk_name;
use super::{Done, Monitor, NoArguments};
use crate::qmp::blockdev::{self, NodeOptions};
use crate::qmp::error::QmpError;
use crate::qmp::input::Scalars;
use crate::qmp::schema::{Builtin, Shape};

/// Arguments of `blockdev-reopen`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlockdevReopen {
    options: Vec<NodeOptions>,
}

pub(super) async fn blockdev_reopen(
    monitor: Arc<Monitor>,
    arguments: BlockdevReopen,
) -> Result<Done, QmpError> {
    let options = arguments
        .options
        .into_iter()
        .enumerate()
        .map(|(i, options)| blockdev::read_as(options.0, &format!("options[{i}]"), Scalars::Typed))
        .collect::<Result<Vec<_>, _>>()?;
    monitor.graph.reopen(&options).await?;
    monitor.graph.bring_jobs_home(&monitor.main).await;
    Ok(Done {})
}

/// Arguments of `block_resize`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct BlockResize {
    device: Option<String>,
    node_name: Option<String>,
    size: i64,
}

pub(super) async fn block_resize(
    monitor: Arc<Monitor>,
    arguments: BlockResize,
) -> Result<Done, QmpError> {
    let node = find(
        &monitor,
        arguments.device.as_deref(),
        arguments.node_name.as_deref(),
    )?;
    let size = u64::try_from(arguments.size)
        .map_err(|_| QmpError::generic("Parameter 'size' expects a >0 size"))?;
    let resized = monitor.graph.resize(&node, size).await;
    let is_disk = |name: &String| monitor.graph.backend(name).is_some();
    let disk = arguments.device.filter(is_disk);
    resized.map_err(|error| match disk {
        Some(name) => error.naming(&name),
        None => error,
    })?;
    Ok(Done {})
}

/// The root of a disk, or else a node, as commands with both members mean it.
fn find(
    monitor: &Monitor,
    device: Option<&str>,
    node_name: Option<&str>,
) -> Result<Arc<Node>, QmpError> {
    let backend = device.and_then(|device| monitor.graph.backend(device));
    if let Some(backend) = backend {
        let name = backend.name().to_owned();
        return Ok(backend.node().ok_or(BlockError::NoMedium(name))?);
    }
    let node = node_name.and_then(|name| monitor.graph.node(name).ok());
    node.ok_or_else(|| {
        let (device, node) = (device.unwrap_or_default(), node_name.unwrap_or_default());
        QmpError::generic(format!(
            "Cannot find device='{device}' nor node-name='{node}'"
        ))
    })
}

/// Arguments of `blockdev-snapshot`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlockdevSnapshot {
    pub(super) node: String,
    pub(super) overlay: String,
}

pub(super) async fn blockdev_snapshot(
    monitor: Arc<Monitor>,
    arguments: BlockdevSnapshot,
) -> Result<Done, QmpError> {
    let node = monitor.graph.device_or_node(&arguments.node)?;
    let overlay = monitor.graph.device_or_node(&arguments.overlay)?;
    monitor.graph.snapshot(&node, &overlay).await?;
    Ok(Done {})
}

pub(super) async fn blockdev_snapshot_sync(
    monitor: Arc<Monitor>,
    arguments: SnapshotSync,
) -> Result<Done, QmpError> {
    if let Some(name) = &arguments.snapshot_node_name {
        refuse_disk_name(&monitor, name)?;
    }
    monitor.graph.snapshot_sync(&arguments).await?;
    Ok(Done {})
}

/// QEMU's `XDbgBlockGraphNodeType`.
#[derive(JsonSchema, Serialize)]
enum GraphNodeKind {
    #[serde(rename = "block-driver")]
    Driver,
    #[serde(rename = "block-backend")]
    Backend,
    #[serde(rename = "block-job")]
    Job,
}

/// An element of `nodes` in the answer to `x-debug-query-block-graph`.
#[derive(JsonSchema, Serialize)]
struct GraphNode {
    id: usize,
    #[serde(rename = "type")]
    kind: GraphNodeKind,
    name: String,
}

/// An element of `edges`.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
struct GraphEdge {
    parent: usize,
    child: usize,
    name: &'static str,
    #[schemars(with = "Vec<BlockPermission>")]
    perm: Vec<&'static str>,
    #[schemars(with = "Vec<BlockPermission>")]
    shared_perm: Vec<&'static str>,
}

/// The answer: QEMU's `XDbgBlockGraph`.
#[derive(JsonSchema, Serialize)]
pub(super) struct BlockGraph {
    nodes: Vec<GraphNode>,
    edges: Vec<GraphEdge>,
}

/// Places are counted from 1.
const FIRST_ID: usize = 1;

pub(super) async fn query_block_graph(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<BlockGraph, QmpError> {
    let picture = monitor.graph.picture();
    let vertices = picture.vertices.into_iter().enumerate();
    let nodes = vertices.map(|(index, vertex)| GraphNode {
        id: index + FIRST_ID,
        kind: match vertex.kind {
            VertexKind::Driver => GraphNodeKind::Driver,
            VertexKind::Backend => GraphNodeKind::Backend,
            VertexKind::Job => GraphNodeKind::Job,
        },
        name: vertex.name,
    });
    let edges = picture.edges.into_iter().map(|edge| GraphEdge {
        parent: edge.parent + FIRST_ID,
        child: edge.child + FIRST_ID,
        name: edge.name,
        perm: edge.access.used.names().collect(),
        shared_perm: edge.access.shared.names().collect(),
    });
    Ok(BlockGraph {
        nodes: nodes.collect(),
        edges: edges.collect(),
    })
}

/// A thread's name, or null.
#[derive(Deserialize)]
struct IoThreadName(StrOrNull);

/// A name, or null; called so in errors, too.
struct StrOrNull(Option<String>);

/// Not derived: an option would be what may be absent.
impl<'de> Deserialize<'de> for StrOrNull {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self(None)),
            Value::String(name) => Ok(Self(Some(name))),
            _ => Err(D::Error::invalid_type(
                Unexpected::Other("neither"),
                &"StrOrNull",
            )),
        }
    }
}

/// What this is read from, by its name.
pub(super) fn named_shape(name: &str) -> Option<Shape> {
    let shapes = || Shape::Alternate(vec![Shape::STR, Shape::Builtin(Builtin::Null)]);
    (name == "IoThreadName").then(shapes)
}

/// Arguments of `x-blockdev-set-iothread`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SetIoThread {
    node_name: String,
    /// The thread, or null for the main loop.
    iothread: IoThreadName,
    force: Option<bool>,
}

/// Says in which loop work on a node that has no device is done. A device's requests run in the
/// device's own loop, which does not change.
pub(super) async fn set_iothread(
    monitor: Arc<Monitor>,
    arguments: SetIoThread,
) -> Result<Done, QmpError> {
    let graph = &monitor.graph;
    let node = graph.node(&arguments.node_name).map_err(|_: BlockError| {
        QmpError::generic(format!(
            "Failed to find node with node-name='{}'",
            arguments.node_name
        ))
    })?;
    if !node.backends().is_empty() && arguments.force != Some(true) {
        let name = node.name();
        return Err(QmpError::generic(format!(
            "Node {name} is associated with a BlockBackend and could be in use (use force=true \
             to override this check)"
        )));
    }
    let home = match arguments.iothread.0.0 {
        None => None,
        Some(id) => {
            let thread = monitor.iothreads.get(&id);
            Some(thread.ok_or_else(|| QmpError::generic(format!("Cannot find iothread {id}")))?)
        }
    };
    let home = home.map(|thread| Home::kept(thread.context().clone(), thread as Arc<_>));
    graph.set_home(&node, home, &monitor.main).await?;
    Ok(Done {})
}
