//! Creating a raw image, as `drive-mirror` with `mode=absolute-paths` does.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;

use super::fdset::SetName;
use super::lock;
use super::open::{check_kind, identity_of, open_error, unsuitable};
use crate::driver::FileIdentity;
use crate::error::Result;
use crate::options::Locking;
use crate::permission::Access;

/// Makes `path` an empty (all zeroes, sparse) image of `size` bytes; blocks.
///
/// An existing file loses its contents, but only after it was locked and only if it is none of
/// `in_use`: a mistyped path must not cost anybody a disk.
///
/// # Errors
/// The file is in use here or elsewhere, is no regular file, or can't be made that large.
pub fn create_image(path: &Path, size: u64, in_use: &[FileIdentity]) -> Result<()> {
    let failed = |error| open_error(path, error, "");
    if SetName::of(path).is_some() {
        return Err(unsuitable(
            path,
            "a file that is passed exists already; use it with mode=existing",
        ));
    }
    // A better word than that of the opening, which changes nothing but may fail.
    if let Ok(metadata) = path.metadata() {
        check_kind(&metadata, path)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::NotFound => "; create the directory, or correct the path",
                _ => "",
            };
            open_error(path, error, hint)
        })?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(unsuitable(
            path,
            "it is not a regular file, so no image can be created there",
        ));
    }
    if in_use.contains(&identity_of(&metadata)) {
        return Err(unsuitable(
            path,
            "it is the file of another block node; choose another target",
        ));
    }
    lock::prepare(&file, path, Access::of_device(false), Locking::Auto)?;
    file.set_len(0).map_err(failed)?;
    file.set_len(size).map_err(failed)?;
    Ok(())
}
