//! Commands that move trays and change media: `eject` and the `blockdev-…-tray` and
//! `blockdev-…-medium` commands (QEMU's `qapi/block.json`).

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use sluice_aio::current;
use sluice_block::{Backend, BlockdevOptions};

use super::{Done, Monitor};
use crate::qmp::error::{ErrorClass, QmpError};
use crate::qmp::input::Scalars;
use crate::qmp::{blockdev, image_name};

/// Arguments of `eject` and `blockdev-open-tray`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenTray {
    /// The disk by its own name, which QEMU has deprecated.
    device: Option<String>,
    /// The disk by its device's name.
    id: Option<String>,
    #[serde(default)]
    force: bool,
}

/// Opens the tray and takes the medium out. A guest that has locked the tray is asked to let go.
pub(super) async fn eject(monitor: Arc<Monitor>, arguments: OpenTray) -> Result<Done, QmpError> {
    let backend = disk(
        &monitor,
        arguments.device.as_deref(),
        arguments.id.as_deref(),
    )?;
    monitor.graph.eject(&backend, arguments.force).await?;
    Ok(Done {})
}

/// Opens the tray, or asks the guest to do so: then an event tells when it has.
pub(super) async fn blockdev_open_tray(
    monitor: Arc<Monitor>,
    arguments: OpenTray,
) -> Result<Done, QmpError> {
    let backend = disk(
        &monitor,
        arguments.device.as_deref(),
        arguments.id.as_deref(),
    )?;
    backend.open_tray(arguments.force)?;
    Ok(Done {})
}

/// Arguments of `blockdev-close-tray`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CloseTray {
    device: Option<String>,
    id: Option<String>,
}

pub(super) async fn blockdev_close_tray(
    monitor: Arc<Monitor>,
    arguments: CloseTray,
) -> Result<Done, QmpError> {
    let backend = disk(
        &monitor,
        arguments.device.as_deref(),
        arguments.id.as_deref(),
    )?;
    backend.close_tray()?;
    Ok(Done {})
}

/// Arguments of `blockdev-remove-medium`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveMedium {
    id: String,
}

pub(super) async fn blockdev_remove_medium(
    monitor: Arc<Monitor>,
    arguments: RemoveMedium,
) -> Result<Done, QmpError> {
    let backend = disk(&monitor, None, Some(&arguments.id))?;
    monitor.graph.remove_medium(&backend).await?;
    Ok(Done {})
}

/// Arguments of `blockdev-insert-medium`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct InsertMedium {
    id: String,
    node_name: String,
}

pub(super) async fn blockdev_insert_medium(
    monitor: Arc<Monitor>,
    arguments: InsertMedium,
) -> Result<Done, QmpError> {
    let backend = disk(&monitor, None, Some(&arguments.id))?;
    let name = &arguments.node_name;
    let node = monitor.graph.node(name);
    let node = node.map_err(|_| QmpError::generic(format!("Node '{name}' not found")))?;
    monitor.graph.insert_medium(&backend, &node).await?;
    Ok(Done {})
}

/// QEMU's `BlockdevChangeReadOnlyMode`.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ReadOnlyMode {
    /// As the medium before, or as the drive if it is empty.
    #[default]
    Retain,
    ReadOnly,
    ReadWrite,
}

/// Arguments of `blockdev-change-medium`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ChangeMedium {
    device: Option<String>,
    id: Option<String>,
    filename: String,
    format: Option<String>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    read_only_mode: ReadOnlyMode,
}

/// Opens an image, and exchanges it for what is in the drive.
pub(super) async fn blockdev_change_medium(
    monitor: Arc<Monitor>,
    arguments: ChangeMedium,
) -> Result<Done, QmpError> {
    let backend = disk(
        &monitor,
        arguments.device.as_deref(),
        arguments.id.as_deref(),
    )?;
    if let Some(format) = arguments
        .format
        .as_deref()
        .filter(|format| *format != "raw")
    {
        return Err(QmpError::generic(format!("Unknown driver '{format}'")));
    }
    let read_only = match arguments.read_only_mode {
        ReadOnlyMode::Retain => backend
            .node()
            .map_or_else(|| backend.is_read_only(), |medium| medium.is_read_only()),
        ReadOnlyMode::ReadOnly => true,
        ReadOnlyMode::ReadWrite => false,
    };
    let options = image(arguments.filename, read_only).await?;
    let graph = &monitor.graph;
    graph
        .change_medium(&backend, &options, arguments.force)
        .await?;
    Ok(Done {})
}

/// A `raw` node over the image of that name.
async fn image(name: String, read_only: bool) -> Result<BlockdevOptions, QmpError> {
    let file = current::blocking(move || image_name::read(&name)).await?;
    let file = file.map_err(QmpError::generic)?;
    let node = json!({"driver": "raw", "read-only": read_only, "file": file});
    Ok(blockdev::read(node, Scalars::Typed)?)
}

/// The disk that a command means by its own name or its device's. Whoever gives `id` for a disk
/// whose device has no name means the disk's.
pub(super) fn disk(
    monitor: &Monitor,
    device: Option<&str>,
    id: Option<&str>,
) -> Result<Arc<Backend>, QmpError> {
    let name = match (device, id) {
        (Some(name), None) | (None, Some(name)) => name,
        _ => {
            return Err(QmpError::generic("Need exactly one of 'device' and 'id'"));
        }
    };
    let found = match id {
        Some(id) => {
            let backends = monitor.graph.backends();
            let is_meant = |disk: &&Arc<Backend>| disk.is_of_device(id);
            let found = backends.iter().find(is_meant).map(Arc::clone);
            found.or_else(|| monitor.graph.backend(id))
        }
        None => monitor.graph.backend(name),
    };
    found.ok_or_else(|| QmpError {
        class: ErrorClass::DeviceNotFound,
        desc: format!("Device '{name}' not found"),
    })
}
