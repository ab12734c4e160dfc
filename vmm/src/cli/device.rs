//! What the devices with a disk behind them have in common.

use sluice_block::job::OnError;

use super::error::CliError;
use super::ide::{IdeCdOptions, IdeDiskOptions};
use super::virtio::VirtioBlkOptions;
use crate::storage::IdeProperties;

/// What every kind of disk device says about itself and its drive.
pub(super) struct DeviceDrive {
    /// None for an empty CD-ROM drive without a `--drive`.
    pub(super) drive: Option<String>,
    pub(super) share_rw: bool,
    pub(super) id: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) write_cache: Option<bool>,
    pub(super) rerror: OnError,
    pub(super) werror: OnError,
    /// Of IDE drives; elsewhere the defaults.
    pub(super) ide: IdeProperties,
    #[cfg(feature = "test-hooks")]
    pub(super) postpone: bool,
}

impl DeviceDrive {
    /// Its policies, where it has any, or else those of the drive.
    pub(super) fn errors_over(&self, rerror: OnError, werror: OnError) -> (OnError, OnError) {
        let over = |own, drive| if own == OnError::Auto { drive } else { own };
        (over(self.rerror, rerror), over(self.werror, werror))
    }
}

impl DeviceDrive {
    /// That of an IDE disk.
    pub(super) fn ide_disk(options: IdeDiskOptions, text: &str) -> Result<Self, CliError> {
        Ok(Self {
            ide: options.properties(text)?,
            drive: options.drive,
            share_rw: options.share_rw,
            id: options.id,
            serial: options.serial,
            write_cache: options.write_cache,
            rerror: options.rerror.unwrap_or(OnError::Auto),
            werror: options.werror.unwrap_or(OnError::Auto),
            #[cfg(feature = "test-hooks")]
            postpone: options.x_postpone.unwrap_or(true),
        })
    }
}

impl From<VirtioBlkOptions> for DeviceDrive {
    fn from(options: VirtioBlkOptions) -> Self {
        Self {
            drive: options.drive,
            share_rw: options.share_rw,
            id: options.id,
            serial: options.serial,
            write_cache: options.write_cache,
            rerror: options.rerror.unwrap_or(OnError::Auto),
            werror: options.werror.unwrap_or(OnError::Auto),
            ide: IdeProperties::default(),
            #[cfg(feature = "test-hooks")]
            postpone: true,
        }
    }
}

impl From<IdeCdOptions> for DeviceDrive {
    fn from(options: IdeCdOptions) -> Self {
        Self {
            ide: options.properties(),
            drive: options.drive,
            share_rw: options.share_rw,
            id: options.id,
            serial: options.serial,
            write_cache: None,
            rerror: options.rerror.unwrap_or(OnError::Auto),
            werror: options.werror.unwrap_or(OnError::Auto),
            #[cfg(feature = "test-hooks")]
            postpone: true,
        }
    }
}
