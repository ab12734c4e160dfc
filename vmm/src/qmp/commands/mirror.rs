//! `blockdev-mirror` and `drive-mirror`.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_block::mirror::{self, BlockdevMirror, DriveMirror, MirrorCommon};
use sluice_block::options::NewImageMode;

use super::block::refuse_disk_name;
use super::{Done, Monitor};
use crate::qmp::error::QmpError;
use crate::qmp::input::{self, Scalars};
use crate::qmp::schema::{self, Shape};

/// Arguments that only `blockdev-mirror` has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BlockdevMirrorOnly {
    target: String,
    filter_node_name: Option<String>,
    target_is_zero: Option<bool>,
}

impl BlockdevMirrorOnly {
    const NAMES: &[&str] = &["target", "filter-node-name", "target-is-zero"];
}

pub(super) async fn blockdev_mirror(
    monitor: Arc<Monitor>,
    arguments: BlockdevMirrorArguments,
) -> Result<Done, QmpError> {
    let (own, common) = split(arguments.0, BlockdevMirrorOnly::NAMES);
    let common: MirrorCommon = input::from_value(common, Scalars::Typed)?;
    let own: BlockdevMirrorOnly = input::from_value(own, Scalars::Typed)?;
    if let Some(name) = &own.filter_node_name {
        refuse_disk_name(&monitor, name)?;
    }
    let arguments = BlockdevMirror {
        common,
        target: own.target,
        filter_node_name: own.filter_node_name,
        target_is_zero: own.target_is_zero.unwrap_or(false),
    };
    mirror::blockdev_mirror(&monitor.graph, arguments, &monitor.main).await?;
    Ok(Done {})
}

/// Arguments that only `drive-mirror` has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct DriveMirrorOnly {
    target: PathBuf,
    format: Option<String>,
    node_name: Option<String>,
    mode: Option<NewImageMode>,
    unmap: Option<bool>,
}

impl DriveMirrorOnly {
    const NAMES: &[&str] = &["target", "format", "node-name", "mode", "unmap"];
}

pub(super) async fn drive_mirror(
    monitor: Arc<Monitor>,
    arguments: DriveMirrorArguments,
) -> Result<Done, QmpError> {
    let (own, common) = split(arguments.0, DriveMirrorOnly::NAMES);
    let common: MirrorCommon = input::from_value(common, Scalars::Typed)?;
    let own: DriveMirrorOnly = input::from_value(own, Scalars::Typed)?;
    if let Some(name) = &own.node_name {
        refuse_disk_name(&monitor, name)?;
    }
    let arguments = DriveMirror {
        common,
        target: own.target,
        format: own.format,
        node_name: own.node_name,
        mode: own.mode.unwrap_or_default(),
        unmap: own.unmap.unwrap_or(true),
    };
    mirror::drive_mirror(&monitor.graph, arguments, &monitor.main).await?;
    Ok(Done {})
}

/// All arguments of `blockdev-mirror`, to be split.
#[derive(Deserialize)]
pub(super) struct BlockdevMirrorArguments(Map<String, Value>);

/// All arguments of `drive-mirror`, to be split.
#[derive(Deserialize)]
pub(super) struct DriveMirrorArguments(Map<String, Value>);

/// What these are read from, by their names.
pub(super) fn named_shape(name: &str) -> Option<Shape> {
    let common = schema::shape_of::<MirrorCommon>;
    let own = match name {
        "BlockdevMirrorArguments" => schema::shape_of::<BlockdevMirrorOnly>,
        "DriveMirrorArguments" => schema::shape_of::<DriveMirrorOnly>,
        _ => return None,
    };
    Some(Shape::Object(schema::members_of([common(), own()])))
}

/// Splits arguments into those that are among `names` and the others. (A flattened struct would do
/// the same, but could not refuse unknown members by name.)
pub(super) fn split(mut arguments: Map<String, Value>, names: &[&str]) -> (Value, Value) {
    let own = names
        .iter()
        .filter_map(|name| arguments.remove_entry(*name));
    let own: Map<_, _> = own.collect();
    (Value::Object(own), Value::Object(arguments))
}
