//! What queries tell about nodes and disks: the records of `query-block` and
//! `query-named-block-nodes` (QEMU's `qapi/block-core.json`).
//!
//! Members that are always the same here stand for features that Sluice does not have yet, with the
//! value that means so.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use sluice_block::dirty::BitmapInfo;
use sluice_block::driver::ImageInfo;
use sluice_block::io::DetectZeroes;
use sluice_block::job::IoStatus;
use sluice_block::{Backend, Node};

use super::throttle::LimitsRecord;
use crate::qmp::schema::{self, Shape};

/// The shape of records that are part of themselves, by the names of their types.
pub(super) fn named_shape(name: &str) -> Option<Shape> {
    (name == "ImageRecord").then(schema::shape_of_reply::<ImageRecord>)
}

/// QEMU's `BlockDeviceInfo`: a node.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct NodeRecord {
    pub(super) file: String,
    #[serde(rename = "node-name")]
    pub(super) node_name: String,
    pub(super) ro: bool,
    pub(super) drv: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backing_file: Option<String>,
    pub(super) backing_file_depth: usize,
    active: bool,
    encrypted: bool,
    pub(super) detect_zeroes: DetectZeroes,
    /// Those of a disk; nodes have none.
    #[serde(flatten)]
    pub(super) limits: LimitsRecord,
    pub(super) image: ImageRecord,
    pub(super) cache: CacheRecord,
    write_threshold: u64,
    #[serde(rename = "dirty-bitmaps", skip_serializing_if = "Vec::is_empty")]
    dirty_bitmaps: Vec<BitmapRecord>,
}

/// QEMU's `BlockDirtyInfo`.
#[derive(Debug, JsonSchema, Serialize)]
struct BitmapRecord {
    name: String,
    count: u64,
    granularity: u64,
    recording: bool,
    busy: bool,
    /// No driver here stores one.
    persistent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    inconsistent: Option<bool>,
}

impl From<BitmapInfo> for BitmapRecord {
    fn from(info: BitmapInfo) -> Self {
        Self {
            name: info.name,
            count: info.count,
            granularity: info.granularity,
            recording: info.recording,
            busy: info.busy,
            persistent: false,
            inconsistent: info.inconsistent.then_some(true),
        }
    }
}

/// QEMU's `ImageInfo`.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ImageRecord {
    pub(super) filename: String,
    pub(super) format: &'static str,
    pub(super) virtual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) actual_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backing_image: Option<Box<ImageRecord>>,
}

impl ImageRecord {
    /// A node without what is below it.
    fn of(node: &Node, info: &ImageInfo) -> Self {
        Self {
            filename: info.filename.clone(),
            format: node.driver_name(),
            virtual_size: node.len(),
            actual_size: node.actual_size(),
            backing_filename: node.backing().map(|below| below.info().filename),
            backing_image: None,
        }
    }
}

/// QEMU's `BlockdevCacheInfo`.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct CacheRecord {
    pub(super) writeback: bool,
    pub(super) direct: bool,
    pub(super) no_flush: bool,
}

impl NodeRecord {
    /// With the images below it. What they take is what the last look has found.
    pub(super) fn of(node: &Node) -> Self {
        let mut below = None;
        for image in node.backing_chain().iter().rev() {
            let mut record = ImageRecord::of(image, &image.info());
            record.backing_image = below.map(Box::new);
            below = Some(record);
        }
        let mut record = Self::flat(node);
        record.image.backing_image = below.map(Box::new);
        record
    }

    /// The same without the images below it.
    pub(super) fn flat(node: &Node) -> Self {
        let info = node.info();
        let image = ImageRecord::of(node, &info);
        Self {
            node_name: node.name().to_owned(),
            ro: node.is_read_only(),
            drv: node.driver_name(),
            backing_file: image.backing_filename.clone(),
            backing_file_depth: node.backing_chain().len(),
            active: true,
            encrypted: false,
            detect_zeroes: node.policy().detect_zeroes(),
            limits: LimitsRecord::default(),
            image,
            cache: CacheRecord {
                writeback: true,
                direct: info.direct,
                no_flush: info.no_flush,
            },
            write_threshold: 0,
            dirty_bitmaps: node.dirty_bitmaps().into_iter().map(Into::into).collect(),
            file: info.filename,
        }
    }
}

/// QEMU's `BlockInfo`: a disk.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct DiskRecord {
    pub(super) device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) qdev: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    pub(super) removable: bool,
    pub(super) locked: bool,
    /// None without a tray.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tray_open: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inserted: Option<NodeRecord>,
    #[serde(rename = "io-status", skip_serializing_if = "Option::is_none")]
    pub(super) io_status: Option<IoStatus>,
}

impl DiskRecord {
    /// As [`NodeRecord::of`].
    pub(super) fn of(backend: &Backend) -> Self {
        let drive = backend.removable_device();
        Self {
            device: backend.name().to_owned(),
            qdev: backend.device().map(|device| device.shown()),
            kind: "unknown",
            removable: backend.is_removable(),
            locked: drive.as_ref().is_some_and(|drive| drive.is_locked()),
            tray_open: drive.map(|drive| drive.is_tray_open()),
            inserted: visible_root(backend).map(|node| {
                let mut record = NodeRecord::of(&node);
                record.cache.writeback = backend.write_cache();
                record.limits = LimitsRecord::of(backend);
                record
            }),
            io_status: backend.io_status(),
        }
    }
}

/// The root node that a client knows: a filter that a job has put in without being given a name for
/// it is passed over.
pub(super) fn visible_root(backend: &Backend) -> Option<Arc<Node>> {
    backend.node().map(visible)
}

/// The same from any node on.
pub(super) fn visible(mut node: Arc<Node>) -> Arc<Node> {
    while node.is_implicit_filter() {
        let Some((_, below)) = node.children().into_iter().next() else {
            break;
        };
        node = below;
    }
    node
}
