//! `blockdev-backup` and `drive-backup`, as commands and as actions of a transaction.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_block::backup::{self, BackupCommon, BlockdevBackup, DriveBackup};
use sluice_block::options::NewImageMode;

use super::block::refuse_disk_name;
use super::mirror::split;
use super::{Done, Monitor};
use crate::qmp::error::QmpError;
use crate::qmp::input::{self, Scalars};
use crate::qmp::schema::{self, Shape};

/// Arguments that only `blockdev-backup` has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockdevBackupOnly {
    target: String,
}

/// Arguments that only `drive-backup` has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DriveBackupOnly {
    target: PathBuf,
    format: Option<String>,
    mode: Option<NewImageMode>,
}

/// Reads the arguments of `blockdev-backup`, which stand at `path`.
pub(super) fn read_blockdev(
    monitor: &Monitor,
    arguments: Map<String, Value>,
    path: &str,
) -> Result<BlockdevBackup, QmpError> {
    let (own, common) = split(arguments, &["target"]);
    let common = read_common(monitor, common, path)?;
    let own: BlockdevBackupOnly = input::from_value_at(own, path, Scalars::Typed)?;
    Ok(BlockdevBackup {
        common,
        target: own.target,
    })
}

/// Reads the arguments of `drive-backup`, which stand at `path`.
pub(super) fn read_drive(
    monitor: &Monitor,
    arguments: Map<String, Value>,
    path: &str,
) -> Result<DriveBackup, QmpError> {
    let (own, common) = split(arguments, &["target", "format", "mode"]);
    let common = read_common(monitor, common, path)?;
    let own: DriveBackupOnly = input::from_value_at(own, path, Scalars::Typed)?;
    Ok(DriveBackup {
        common,
        target: own.target,
        format: own.format,
        mode: own.mode.unwrap_or_default(),
    })
}

fn read_common(monitor: &Monitor, common: Value, path: &str) -> Result<BackupCommon, QmpError> {
    let common: BackupCommon = input::from_value_at(common, path, Scalars::Typed)?;
    if let Some(name) = &common.filter_node_name {
        refuse_disk_name(monitor, name)?;
    }
    Ok(common)
}

/// All arguments of `blockdev-backup`, to be split.
#[derive(Deserialize)]
pub(super) struct BlockdevBackupArguments(Map<String, Value>);

/// All arguments of `drive-backup`, to be split.
#[derive(Deserialize)]
pub(super) struct DriveBackupArguments(Map<String, Value>);

/// What these are read from, by their names.
pub(super) fn named_shape(name: &str) -> Option<Shape> {
    let common = schema::shape_of::<BackupCommon>;
    let own = match name {
        "BlockdevBackupArguments" => schema::shape_of::<BlockdevBackupOnly>,
        "DriveBackupArguments" => schema::shape_of::<DriveBackupOnly>,
        _ => return None,
    };
    Some(Shape::Object(schema::members_of([common(), own()])))
}

pub(super) async fn blockdev_backup(
    monitor: Arc<Monitor>,
    arguments: BlockdevBackupArguments,
) -> Result<Done, QmpError> {
    let arguments = read_blockdev(&monitor, arguments.0, "")?;
    backup::blockdev_backup(&monitor.graph, &arguments, &monitor.main).await?;
    Ok(Done {})
}

pub(super) async fn drive_backup(
    monitor: Arc<Monitor>,
    arguments: DriveBackupArguments,
) -> Result<Done, QmpError> {
    let arguments = read_drive(&monitor, arguments.0, "")?;
    backup::drive_backup(&monitor.graph, &arguments, &monitor.main).await?;
    Ok(Done {})
}
