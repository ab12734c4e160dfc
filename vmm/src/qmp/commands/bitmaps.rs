//! Named dirty bitmaps.

use std::sync::Arc;

use serde::Serialize;
use sluice_block::graph::{BitmapAction, BitmapAdd, BitmapMerge};
use sluice_block::options::BitmapRef;

use super::{Done, Monitor};
use crate::qmp::error::QmpError;

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

pub(super) async fn merge(m: Arc<Monitor>, a: BitmapMerge) -> Result<Done, QmpError> {
    change(&m, &BitmapAction::Merge(a))
}

/// The answer to `x-debug-block-dirty-bitmap-sha256`.
#[derive(Serialize)]
pub(super) struct Hash {
    sha256: String,
}

pub(super) async fn sha256(monitor: Arc<Monitor>, arguments: BitmapRef) -> Result<Hash, QmpError> {
    let (_, bitmap) = monitor.graph.find_bitmap(&arguments)?;
    let sha256 = bitmap.sha256();
    Ok(Hash { sha256 })
}
