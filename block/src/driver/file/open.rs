//! Opening a file as a disk, with an error for everything that can't be one.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use sluice_aio::EngineKind;

use super::{DIRECT_ALIGNMENT, FileDriver, SECTOR};
use crate::driver::FileIdentity;
use crate::error::{BlockError, Result};

/// How to open a file node.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The file.
    pub path: PathBuf,
    /// Open without write access.
    pub read_only: bool,
    /// If write access is refused, open without.
    pub auto_read_only: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// Ignore flushes.
    pub no_flush: bool,
    /// Let discards reach the file system.
    pub unmap: bool,
    /// Which engine moves the data.
    pub engine: EngineKind,
}

impl FileOptions {
    /// The defaults for `path`: writable, cached, io_uring.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            auto_read_only: false,
            direct: false,
            no_flush: false,
            unmap: false,
            engine: EngineKind::IoUring,
        }
    }
}

pub(super) fn open(options: FileOptions) -> Result<FileDriver> {
    let (file, writable) = open_file(&options)?;
    let path = options.path;
    let failed = |source| open_error(&path, source, "");
    let metadata = file.metadata().map_err(failed)?;
    let size = size_of(&file, &metadata, &path)?;
    if options.direct {
        probe_direct(&file, &path)?;
    }
    let identity = FileIdentity {
        device: metadata.dev(),
        inode: metadata.ino(),
    };
    Ok(FileDriver {
        file: Arc::new(file),
        path,
        size: AtomicU64::new(size),
        identity,
        writable,
        engine: options.engine,
        direct: options.direct,
        no_flush: options.no_flush,
        unmap: options.unmap,
    })
}

fn open_file(options: &FileOptions) -> Result<(File, bool)> {
    let path = &options.path;
    // Before opening: that of a pipe without a writer would never end. What can't be looked at is
    // left to the opening, whose error says more.
    if let Ok(metadata) = path.metadata() {
        check_kind(&metadata, path)?;
    }
    let attempt = |write: bool| {
        let flags = if options.direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags)
            .open(path)
    };
    let error = match attempt(!options.read_only) {
        Ok(file) => return Ok((file, !options.read_only)),
        Err(error) => error,
    };
    let refused = matches!(
        error.raw_os_error(),
        Some(libc::EACCES | libc::EROFS | libc::EPERM)
    );
    if refused && options.auto_read_only && !options.read_only {
        let file = attempt(false).map_err(|error| open_error(path, error, ""))?;
        return Ok((file, false));
    }
    let hint = match error.raw_os_error() {
        Some(libc::EACCES | libc::EROFS | libc::EPERM) if !options.read_only => {
            "; open it with read-only=on, or make it writable"
        }
        Some(libc::EINVAL) if options.direct => {
            "; its file system can't do O_DIRECT: use cache.direct=off"
        }
        Some(libc::ENOENT) => "; create it with 'truncate -s SIZE FILE', or correct the path",
        _ => "",
    };
    Err(open_error(path, error, hint))
}

pub(super) fn open_error(path: &Path, source: io::Error, hint: &'static str) -> BlockError {
    BlockError::Open {
        path: path.to_string_lossy().into_owned(),
        source,
        hint,
    }
}

pub(super) fn unsuitable(path: &Path, reason: impl Into<String>) -> BlockError {
    BlockError::Unsuitable {
        path: path.to_string_lossy().into_owned(),
        reason: reason.into(),
    }
}

/// A disk is a regular file or a block device.
pub(super) fn check_kind(metadata: &Metadata, path: &Path) -> Result<()> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let what = if kind.is_dir() {
        "a directory"
    } else {
        "not a regular file"
    };
    Err(unsuitable(
        path,
        format!("it is {what}; a disk image is a file"),
    ))
}

fn size_of(mut file: &File, metadata: &Metadata, path: &Path) -> Result<u64> {
    check_kind(metadata, path)?;
    let size = if metadata.is_file() {
        metadata.len()
    } else {
        file.seek(SeekFrom::End(0))
            .map_err(|error| open_error(path, error, ""))?
    };
    if size < SECTOR {
        let reason = format!(
            "its size of {size} bytes is less than one sector ({SECTOR} bytes); make it larger \
             with 'truncate -s SIZE'"
        );
        return Err(unsuitable(path, reason));
    }
    if size % SECTOR != 0 {
        let reason = format!(
            "its size of {size} bytes is not a multiple of {SECTOR}; round it up with \
             'truncate -s %{SECTOR}'"
        );
        return Err(unsuitable(path, reason));
    }
    Ok(size)
}

/// Reads one smallest piece as every later request may.
fn probe_direct(file: &File, path: &Path) -> Result<()> {
    const ROOM: usize = 8192;
    let mut room = [0u8; ROOM];
    let misalignment = room.as_ptr() as usize % DIRECT_ALIGNMENT;
    let start = (DIRECT_ALIGNMENT - misalignment) % DIRECT_ALIGNMENT;
    match file.read_at(&mut room[start..start + DIRECT_ALIGNMENT], 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(unsuitable(
            path,
            format!(
                "cache.direct=on needs a device with {DIRECT_ALIGNMENT}-byte blocks, this one \
                 asks for larger ones; use cache.direct=off"
            ),
        )),
        Err(error) => Err(open_error(path, error, "")),
        Ok(_) => Ok(()),
    }
}
