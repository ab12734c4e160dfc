//! Commands for tests: breakpoints of `blkdebug` nodes. All have the prefix `x-`: Sluice's own, not
//! QEMU's.

use std::sync::Arc;

use serde::Deserialize;
use sluice_block::Node;
use sluice_block::driver::{Blkdebug, DebugEvent};

use super::{Done, Monitor};
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
