//! The arguments of `blockdev-backup` and `drive-backup`, and what of them makes no sense. The checks,
//! their order and their texts are those of QEMU's commands.

use std::path::PathBuf;

use serde::Deserialize;

use super::bitmap::SyncBitmap;
use crate::driver::copy_before_write::granularity;
use crate::error::{BlockError, Result};
use crate::graph::bitmaps::below_implicit_filters;
use crate::job::OnError;
use crate::node::Node;
use crate::options::{NewImageMode, OnCbwError};
use crate::unsigned;

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupSync {
    /// Everything.
    Full,
    /// What the top image holds.
    Top,
    /// What is overwritten; the job lasts until it is cancelled.
    None,
    /// What a bitmap says; it then records what is written from the job's start on.
    Incremental,
    /// The same, and `bitmap-mode` says what becomes of the bitmap.
    Bitmap,
}

impl BackupSync {
    fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Top => "top",
            Self::None => "none",
            Self::Incremental => "incremental",
            Self::Bitmap => "bitmap",
        }
    }
}

/// When the bitmap records what was written since the job's start, and nothing older (QMP's
/// `BitmapSyncMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BitmapMode {
    /// If the job succeeds.
    OnSuccess,
    /// Never: it keeps all its marks.
    Never,
    /// Always; if the job fails it keeps the marks of what was not copied.
    Always,
}

impl BitmapMode {
    fn name(self) -> &'static str {
        match self {
            Self::OnSuccess => "on-success",
            Self::Never => "never",
            Self::Always => "always",
        }
    }
}

/// How the work is done (QMP's `BackupPerf`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BackupPerf {
    /// Copies at once.
    #[serde(default)]
    pub max_workers: Option<i64>,
    /// Bytes of one copy; 0: no limit.
    #[serde(default)]
    pub max_chunk: Option<i64>,
    /// The least bytes that are copied together; a power of two.
    #[serde(default, deserialize_with = "unsigned::uint64")]
    pub min_cluster_size: Option<u64>,
}

/// What both commands take.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BackupCommon {
    /// The job's name; the device's if not given.
    #[serde(default)]
    pub job_id: Option<String>,
    /// The source: a device or a node.
    pub device: String,
    /// What to copy.
    pub sync: BackupSync,
    /// Bytes per second; 0: no limit.
    #[serde(default)]
    pub speed: i64,
    /// A bitmap of the source.
    #[serde(default)]
    pub bitmap: Option<String>,
    /// What becomes of it.
    #[serde(default)]
    pub bitmap_mode: Option<BitmapMode>,
    /// What to do when the source can't be read.
    #[serde(default)]
    pub on_source_error: OnError,
    /// What to do when the target can't be written.
    #[serde(default)]
    pub on_target_error: OnError,
    /// Who suffers if old data can't be saved before it is overwritten.
    #[serde(default)]
    pub on_cbw_error: OnCbwError,
    /// Finish without `job-finalize`.
    #[serde(default)]
    pub auto_finalize: Option<bool>,
    /// Go away without `job-dismiss`.
    #[serde(default)]
    pub auto_dismiss: Option<bool>,
    /// A name for the filter; made up if not given.
    #[serde(default)]
    pub filter_node_name: Option<String>,
    /// How the work is done.
    #[serde(default, rename = "x-perf")]
    pub perf: BackupPerf,
}

/// Arguments of `blockdev-backup`.
#[derive(Clone, Debug)]
pub struct BlockdevBackup {
    /// What both commands take.
    pub common: BackupCommon,
    /// The target's node, or a device.
    pub target: String,
}

/// Arguments of `drive-backup`.
#[derive(Clone, Debug)]
pub struct DriveBackup {
    /// What both commands take.
    pub common: BackupCommon,
    /// The target's path.
    pub target: PathBuf,
    /// The target's format; only `raw`.
    pub format: Option<String>,
    /// Whether to create the target.
    pub mode: NewImageMode,
}

/// Copies at once if nothing is asked for, as QEMU.
const DEFAULT_WORKERS: i64 = 64;
/// The most copies at once that can be asked for: QEMU's int.
const MAX_WORKERS: i64 = 0x7fff_ffff;
/// Bytes of data that all copies together may have in memory, or one if a single cluster is larger.
const MEMORY: u64 = 16 << 20;
/// The most bytes of one copy.
const MAX_CHUNK: u64 = 1 << 20;

/// The numbers of a job, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) cluster: u64,
    /// Bytes of one copy of data, whole clusters.
    pub(super) chunk: u64,
    pub(super) workers: usize,
}

fn refused(text: impl Into<String>) -> BlockError {
    BlockError::Refused(text.into())
}

impl BackupCommon {
    pub(super) fn shape(&self) -> Result<Shape> {
        let perf = &self.perf;
        let cluster = granularity(perf.min_cluster_size)?.bytes();
        let workers = perf.max_workers.unwrap_or(DEFAULT_WORKERS);
        if !(1..=MAX_WORKERS).contains(&workers) {
            let text = format!("max-workers must be between 1 and {MAX_WORKERS}");
            return Err(refused(text));
        }
        let chunk = u64::try_from(perf.max_chunk.unwrap_or(0))
            .map_err(|_| refused("max-chunk must be zero (which means no limit) or positive"))?;
        if chunk != 0 && chunk < cluster {
            return Err(refused(format!(
                "Required max-chunk ({chunk}) is less than backup cluster size ({cluster})"
            )));
        }
        let workers = workers.unsigned_abs();
        let largest = if chunk == 0 {
            MAX_CHUNK
        } else {
            chunk.min(MAX_CHUNK)
        };
        let share = (MEMORY / workers).clamp(1, largest);
        let chunk = (share / cluster * cluster).max(cluster);
        let workers = workers.min((MEMORY / chunk).max(1));
        Ok(Shape {
            cluster,
            chunk,
            workers: usize::try_from(workers).unwrap_or(usize::MAX),
        })
    }

    /// The bitmap of the source that the job works from, or is to leave behind.
    ///
    /// # Errors
    /// It does not fit what is asked.
    pub(super) fn sync_bitmap(&self, source: &std::sync::Arc<Node>) -> Result<Option<SyncBitmap>> {
        let reads_bitmap = matches!(self.sync, BackupSync::Incremental | BackupSync::Bitmap);
        if reads_bitmap && self.bitmap.is_none() {
            return Err(refused(format!(
                "must provide a valid bitmap name for '{}' sync mode",
                self.sync.name()
            )));
        }
        let mode = match (self.sync, self.bitmap_mode) {
            (BackupSync::Incremental, None | Some(BitmapMode::OnSuccess)) => {
                Some(BitmapMode::OnSuccess)
            }
            (BackupSync::Incremental, Some(_)) => {
                return Err(refused(format!(
                    "Bitmap sync mode must be '{}' when using sync mode '{}'",
                    BitmapMode::OnSuccess.name(),
                    self.sync.name()
                )));
            }
            (_, mode) => mode,
        };
        let Some(name) = &self.bitmap else {
            return match mode {
                None => Ok(None),
                Some(_) => Err(refused("Cannot specify bitmap sync mode without a bitmap")),
            };
        };
        let node = below_implicit_filters(std::sync::Arc::clone(source));
        let bitmap = node.io.bitmaps.get(name);
        let bitmap =
            bitmap.ok_or_else(|| refused(format!("Bitmap '{name}' could not be found")))?;
        let mode =
            mode.ok_or_else(|| refused("Bitmap sync mode must be given when providing a bitmap"))?;
        bitmap.check_usable()?;
        if self.sync == BackupSync::None {
            return Err(refused(format!(
                "sync mode '{}' does not produce meaningful bitmap outputs",
                self.sync.name()
            )));
        }
        if mode == BitmapMode::Never && !reads_bitmap {
            return Err(refused(format!(
                "Bitmap sync mode '{}' has no meaningful effect when combined with sync mode '{}'",
                mode.name(),
                self.sync.name()
            )));
        }
        Ok(Some(SyncBitmap::new(bitmap, mode, reads_bitmap)))
    }
}
