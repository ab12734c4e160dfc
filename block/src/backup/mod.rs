//! Backup: a copy of a disk as it was when the job began, while the guest writes on.
//!
//! A copy-before-write filter stands above the disk from a drained section on: what a guest is about to
//! overwrite is saved first. The job works its way through the rest by the same
//! [`Copier`](crate::driver::copy_before_write), many copies at once. A cluster is copied once, by
//! whoever is first; the others wait for it.

mod arguments;
mod bitmap;
mod job;
mod kept;
mod start;
mod target;
#[cfg(test)]
mod tests;

pub use arguments::{
    BackupCommon, BackupPerf, BackupSync, BitmapMode, BlockdevBackup, DriveBackup,
};
pub(crate) use start::{Prepared, check_file, prepare};
pub use start::{blockdev_backup, drive_backup};
pub(crate) use target::Target;
