//! [`Kept`]: what a backup that is being made keeps from others.

use std::sync::Arc;

use crate::dirty::NamedBitmap;
use crate::error::BlockError;
use crate::job::{JobId, JobKind};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Kept {
    id: JobId,
    filter_name: Option<String>,
    bitmap: Option<Arc<NamedBitmap>>,
}

impl Kept {
    pub(super) fn new(
        id: JobId,
        filter_name: Option<String>,
        bitmap: Option<Arc<NamedBitmap>>,
    ) -> Self {
        Self {
            id,
            filter_name,
            bitmap,
        }
    }

    /// Whether it is what `error` complains of. `bitmaps` are those that an error about a bitmap may mean.
    pub(crate) fn explains(&self, error: &BlockError, bitmaps: &[Arc<NamedBitmap>]) -> bool {
        match error {
            BlockError::Busy { job, .. } | BlockError::FileOfJob { job, .. } => {
                **job == *JobKind::Backup.named(self.id.as_str())
            }
            BlockError::JobIdInUse { id, .. } => id == self.id.as_str(),
            BlockError::DuplicateNode(name) => self.filter_name.as_ref() == Some(name),
            _ => {
                let mut kept = self.bitmap.iter();
                kept.any(|own| bitmaps.iter().any(|bitmap| Arc::ptr_eq(own, bitmap)))
            }
        }
    }
}
