//! Named dirty bitmaps.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_block::graph::{BitmapAction, BitmapAdd, BitmapMerge};
use sluice_block::options::BitmapRef;

use super::{Done, Monitor};
use crate::qmp::error::QmpError;
use crate::qmp::input::{self, Scalars};
use crate::qmp::schema::{self, Shape};

fn change(monitor: &Monitor, action: &BitmapAction) -> Result<Done, QmpError> {
    monitor.graph.change_bitmap(action)?;
    Ok(Done {})
}

pub(super) async fn add(m: Arc<Monitor>, a: BitmapAdd) -> Result<Done, QmpError> {
    change(&m, &BitmapAction::Add(a))
}

pub(super) async fn remove(m: Arc<Monitor>, a: BitmapRef) -> Result<Done, QmpError> {
    change(&m, &BitmapAction::Remove(a))
}

pub(super) async fn clear(m: Arc<Monitor>, a: BitmapRef) -> Result<Done, QmpError> {
    change(&m, &BitmapAction::Clear(a))
}

pub(super) async fn enable(m: Arc<Monitor>, a: BitmapRef) -> Result<Done, QmpError> {
    change(&m, &BitmapAction::Enable(a))
}

pub(super) async fn disable(m: Arc<Monitor>, a: BitmapRef) -> Result<Done, QmpError> {
    change(&m, &BitmapAction::Disable(a))
}

/// Arguments of `block-dirty-bitmap-merge`.
#[derive(Deserialize)]
pub(super) struct BitmapMergeArguments(Value);

/// What these are read from, by their name: bitmaps are named alone, or with their node.
pub(super) fn named_shape(name: &str) -> Option<Shape> {
    if name != "BitmapMergeArguments" {
        return None;
    }
    let mut members = schema::members_of([schema::shape_of::<BitmapMerge>()]);
    for member in members.iter_mut().filter(|one| one.name == "bitmaps") {
        let either = Shape::Alternate(vec![Shape::STR, schema::shape_of::<BitmapRef>()]);
        member.shape = Shape::Array(Box::new(either));
    }
    Some(Shape::Object(members))
}

pub(super) async fn merge(m: Arc<Monitor>, a: BitmapMergeArguments) -> Result<Done, QmpError> {
    let merge: BitmapMerge = input::from_value(a.0, Scalars::Typed)?;
    change(&m, &BitmapAction::Merge(merge))
}

/// The answer to `x-debug-block-dirty-bitmap-sha256`.
#[derive(JsonSchema, Serialize)]
pub(super) struct Hash {
    sha256: String,
}

pub(super) async fn sha256(monitor: Arc<Monitor>, arguments: BitmapRef) -> Result<Hash, QmpError> {
    let (_, bitmap) = monitor.graph.find_bitmap(&arguments)?;
    let sha256 = bitmap.sha256();
    Ok(Hash { sha256 })
}
