//! `transaction`: several commands at one instant, or none.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_block::graph::{BitmapAction, BitmapAdd, SnapshotSync};
use sluice_block::options::BitmapRef;
use sluice_block::transaction::{self, Action, CompletionMode};

use super::backup::{self, BlockdevBackupArguments, DriveBackupArguments};
use super::bitmaps::BitmapMergeArguments;
use super::graph::BlockdevSnapshot;
use super::{CHAINS, Done, Monitor, NoArguments};
use crate::qmp::error::QmpError;
use crate::qmp::input::{self, Scalars};
use crate::qmp::schema::{self, Member, Shape};

/// Arguments of `transaction`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Transaction {
    actions: Vec<TransactionAction>,
    #[serde(default)]
    properties: Properties,
}

/// An action that is not understood yet.
#[derive(Deserialize)]
struct TransactionAction(Value);

/// Its members.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAction {
    #[serde(rename = "type")]
    kind: Kind,
    data: Value,
}

/// What it does (QEMU's `TransactionActionKind`).
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Abort,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapRemove,
    BlockDirtyBitmapClear,
    BlockDirtyBitmapEnable,
    BlockDirtyBitmapDisable,
    BlockDirtyBitmapMerge,
    BlockdevSnapshot,
    BlockdevSnapshotSync,
    BlockdevBackup,
    DriveBackup,
}

/// What this is read from, by its name.
pub(super) fn named_shape(name: &str) -> Option<Shape> {
    (name == "TransactionAction").then(action_shape)
}

/// What [`read`] takes, snapshots only where there can be any.
fn action_shape() -> Shape {
    let bitmap = schema::shape_of::<BitmapRef>;
    let mut kinds = vec![
        ("abort", schema::shape_of::<NoArguments>()),
        ("block-dirty-bitmap-add", schema::shape_of::<BitmapAdd>()),
        ("block-dirty-bitmap-remove", bitmap()),
        ("block-dirty-bitmap-clear", bitmap()),
        ("block-dirty-bitmap-enable", bitmap()),
        ("block-dirty-bitmap-disable", bitmap()),
        (
            "block-dirty-bitmap-merge",
            schema::shape_of::<BitmapMergeArguments>(),
        ),
        (
            "blockdev-backup",
            schema::shape_of::<BlockdevBackupArguments>(),
        ),
        ("drive-backup", schema::shape_of::<DriveBackupArguments>()),
    ];
    if CHAINS {
        kinds.extend([
            ("blockdev-snapshot", schema::shape_of::<BlockdevSnapshot>()),
            ("blockdev-snapshot-sync", schema::shape_of::<SnapshotSync>()),
        ]);
    }
    let member = |name: &str, shape| Member {
        name: name.to_owned(),
        shape,
        optional: false,
    };
    let names = kinds.iter().map(|(name, _)| (*name).to_owned());
    let tag = Shape::Enum(names.collect());
    let variants = kinds.into_iter().map(|(name, data)| {
        let data = Shape::Object(vec![member("data", data)]);
        (name.to_owned(), data)
    });
    Shape::Union {
        members: vec![member("type", tag)],
        tag: "type".to_owned(),
        variants: variants.collect(),
    }
}

/// QMP's `TransactionProperties`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Properties {
    #[serde(default)]
    completion_mode: CompletionMode,
}

pub(super) async fn transaction(
    monitor: Arc<Monitor>,
    arguments: Transaction,
) -> Result<Done, QmpError> {
    let actions = arguments.actions.into_iter().enumerate();
    let actions = actions
        .map(|(index, raw)| read(&monitor, &format!("actions[{index}]"), raw))
        .collect::<Result<Vec<_>, _>>()?;
    let mode = arguments.properties.completion_mode;
    transaction::transact(&monitor.graph, &actions, mode, &monitor.main).await?;
    Ok(Done {})
}

fn read(monitor: &Monitor, path: &str, raw: TransactionAction) -> Result<Action, QmpError> {
    let raw: RawAction = input::from_value_at(raw.0, path, Scalars::Typed)?;
    let data = Data {
        path: format!("{path}.data"),
        value: raw.data,
    };
    Ok(match raw.kind {
        Kind::Abort => {
            let NoArguments {} = data.read()?;
            Action::Abort
        }
        Kind::BlockDirtyBitmapAdd => Action::Bitmap(BitmapAction::Add(data.read()?)),
        Kind::BlockDirtyBitmapRemove => Action::Bitmap(BitmapAction::Remove(data.read()?)),
        Kind::BlockDirtyBitmapClear => Action::Bitmap(BitmapAction::Clear(data.read()?)),
        Kind::BlockDirtyBitmapEnable => Action::Bitmap(BitmapAction::Enable(data.read()?)),
        Kind::BlockDirtyBitmapDisable => Action::Bitmap(BitmapAction::Disable(data.read()?)),
        Kind::BlockDirtyBitmapMerge => Action::Bitmap(BitmapAction::Merge(data.read()?)),
        Kind::BlockdevSnapshot => {
            let BlockdevSnapshot { node, overlay } = data.read()?;
            Action::Snapshot { node, overlay }
        }
        Kind::BlockdevSnapshotSync => Action::SnapshotSync(Box::new(data.read()?)),
        Kind::BlockdevBackup => {
            let backup = backup::read_blockdev(monitor, data.read()?, &data.path)?;
            Action::BlockdevBackup(Box::new(backup))
        }
        Kind::DriveBackup => {
            let backup = backup::read_drive(monitor, data.read()?, &data.path)?;
            Action::DriveBackup(Box::new(backup))
        }
    })
}

/// The `data` of an action, and where it stands.
struct Data {
    path: String,
    value: Value,
}

impl Data {
    fn read<T: DeserializeOwned>(&self) -> Result<T, QmpError> {
        Ok(input::from_value_at(
            self.value.clone(),
            &self.path,
            Scalars::Typed,
        )?)
    }
}
