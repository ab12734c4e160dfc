//! `blockdev-snapshot-sync`: the overlay of a snapshot is a file that the command makes or opens. The checks,
//! their order and their texts are those of QEMU's command.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use sluice_aio::current;

use super::Graph;
use crate::driver::file::{FileKind, path_of};
use crate::error::{BlockError, Result};
use crate::node::Node;
use crate::options::{BlockdevOptions, NewImageMode};

/// The format that has no name here: QEMU's default.
const DEFAULT_FORMAT: &str = "qcow2";

/// What can be done instead.
const WAY_OUT: &str = "no format here has a backing image yet, but 'blockdev-backup' keeps a disk as it is now and \
     'blockdev-mirror' moves it";

/// Arguments of `blockdev-snapshot-sync`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SnapshotSync {
    /// The disk; or else `node_name`.
    #[serde(default)]
    pub device: Option<String>,
    /// The node of which a snapshot is made.
    #[serde(default)]
    pub node_name: Option<String>,
    /// The overlay's file.
    pub snapshot_file: PathBuf,
    /// A name for the overlay's node.
    #[serde(default)]
    pub snapshot_node_name: Option<String>,
    /// The overlay's format.
    #[serde(default)]
    pub format: Option<String>,
    /// Whether the file is made.
    #[serde(default)]
    pub mode: NewImageMode,
}

fn refused(text: impl Into<String>) -> BlockError {
    BlockError::Refused(text.into())
}

impl SnapshotSync {
    /// The name of the node or the disk of which a snapshot is made.
    #[must_use]
    pub fn node(&self) -> &str {
        let name = self.device.as_ref().or(self.node_name.as_ref());
        name.map_or("", String::as_str)
    }

    fn find(&self, graph: &Graph) -> Result<Arc<Node>> {
        if let Some(device) = &self.device
            && let Some(backend) = graph.backend(device)
        {
            return backend
                .node()
                .ok_or_else(|| BlockError::NoMedium(device.clone()));
        }
        let found = self.node_name.as_ref().map(|name| graph.node(name));
        found.and_then(Result::ok).ok_or_else(|| {
            let text = |name: &Option<String>| name.clone().unwrap_or_default();
            refused(format!(
                "Cannot find device='{}' nor node-name='{}'",
                text(&self.device),
                text(&self.node_name)
            ))
        })
    }
}

impl Graph {
    /// Makes a snapshot of a node or disk: what is above it goes above the overlay, whose file is made or opened.
    ///
    /// Call it from a task that holds no token of the disk. On an error nothing has changed.
    ///
    /// # Errors
    /// What QEMU refuses, with its texts and what can be done instead; those of [`snapshot`](Self::snapshot).
    pub async fn snapshot_sync(&self, arguments: &SnapshotSync) -> Result<()> {
        let (node, overlay) = self.open_overlay(arguments).await?;
        let made = self.snapshot(&node, &overlay).await;
        if made.is_err() {
            self.remove_if_unused(&overlay);
        }
        made.map(drop)
    }

    /// The node of which a snapshot is to be made, and the overlay, which goes with its last user.
    ///
    /// # Errors
    /// What QEMU refuses, with its texts and what can be done instead; what the file system says.
    pub(crate) async fn open_overlay(
        &self,
        arguments: &SnapshotSync,
    ) -> Result<(Arc<Node>, Arc<Node>)> {
        let node = arguments.find(self)?;
        node.check_not_blocked()?;
        let name = &arguments.snapshot_node_name;
        if arguments.node_name.is_some() && name.is_none() {
            return Err(refused("New overlay node-name missing"));
        }
        if name.as_ref().is_some_and(|name| self.is_name_taken(name)) {
            return Err(refused("New overlay node-name already in use"));
        }
        let format = arguments.format.as_deref().unwrap_or(DEFAULT_FORMAT);
        match (arguments.mode, format) {
            // An existing file can be opened, and what is known of it then is asked as ever.
            (NewImageMode::Existing, "raw") => {}
            (NewImageMode::Existing, _) => {
                return Err(refused(format!("Unknown driver '{format}': {WAY_OUT}")));
            }
            (NewImageMode::AbsolutePaths, "raw") => {
                return Err(refused(format!(
                    "Backing file not supported for file format 'raw': {WAY_OUT}"
                )));
            }
            (NewImageMode::AbsolutePaths, _) => {
                return Err(refused(format!(
                    "Unknown file format '{format}': {WAY_OUT}"
                )));
            }
        }
        let path = path_of(&arguments.snapshot_file)?;
        let looked_at = path.clone();
        let kind = current::blocking(move || FileKind::of(&looked_at)).await?;
        let options = BlockdevOptions::raw_file(name.clone(), path, kind);
        let overlay = self.add_implicit_node(&options).await?;
        Ok((node, overlay))
    }

    /// Whether a node or a disk is called so.
    fn is_name_taken(&self, name: &str) -> bool {
        self.backend(name).is_some() || self.node(name).is_ok()
    }
}
