//! Opening a file as a disk, with an error for everything that can't be one.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwap;
use rustix::fs::{FsWord, StatFs, fstatfs, statfs};
use sluice_aio::{Aside, EngineKind, Route};

use super::copying::Lanes;
use super::create::NewImage;
use super::fdset::{FdSetError, FdSets, SetName};
use super::file_locks::FileLocks;
use super::probe::{self, Alignment};
use super::{FileDriver, LockedFile, Opened, SECTOR, device};
use crate::driver::FileIdentity;
use crate::error::{BlockError, Result};
use crate::options::Locking;

/// What a node's driver takes as its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// `file`: a regular file.
    Regular,
    /// `host_device`: a block device.
    Device,
}

impl FileKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Regular, Self::Device];

    /// The driver's name.
    #[must_use]
    pub fn driver_name(self) -> &'static str {
        match self {
            Self::Regular => "file",
            Self::Device => "host_device",
        }
    }

    /// What a path that says nothing of its driver means; looks at the file, which may block.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        match path.metadata() {
            Ok(metadata) if metadata.file_type().is_block_device() => Self::Device,
            _ => Self::Regular,
        }
    }

    /// # Errors
    /// The file is of no kind that can be a disk, or of the other one.
    fn check(self, metadata: &Metadata, path: &Path) -> Result<()> {
        check_kind(metadata, path)?;
        let is_device = metadata.file_type().is_block_device();
        let refused = match self {
            Self::Regular if is_device => "to be a regular file",
            Self::Device if !is_device => "to be a block device",
            _ => return Ok(()),
        };
        let (driver, path) = (self.driver_name(), path.display());
        Err(BlockError::Refused(format!(
            "'{driver}' driver requires '{path}' {refused}"
        )))
    }
}

/// How to open a file node.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The file.
    pub path: PathBuf,
    /// Files that others have opened, for paths that mean one of them.
    pub fd_sets: Arc<FdSets>,
    /// What it must be.
    pub kind: FileKind,
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
    /// Whether other programs are kept from conflicting use.
    pub locking: Locking,
}

impl FileOptions {
    /// The defaults for `path`: writable, cached, io_uring.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            fd_sets: Arc::default(),
            kind: FileKind::Regular,
            read_only: false,
            auto_read_only: false,
            direct: false,
            no_flush: false,
            unmap: false,
            engine: EngineKind::IoUring,
            locking: Locking::Auto,
        }
    }
}

/// Opens the file, or takes that of `image`, which is open already and has its size when it is emptied.
///
/// # Errors
/// See [`FileDriver::open`].
pub(super) fn open(options: FileOptions, image: Option<Arc<NewImage>>) -> Result<FileDriver> {
    let (file, writable) = match &image {
        Some(image) => (image.file(), true),
        None => {
            let (file, writable) = open_file(&options)?;
            (Arc::new(file), writable)
        }
    };
    let path = options.path;
    let failed = |source| open_error(&path, source, "");
    let metadata = file.metadata().map_err(failed)?;
    options.kind.check(&metadata, &path)?;
    // Once more of what was opened: a passed file's path leads nowhere, and any other may lead elsewhere by now.
    let system = fstatfs(&*file);
    check_kept(system, &path)?;
    let size = match &image {
        Some(image) => image.size(),
        None => size_of(&file, &metadata, &path)?,
    };
    let alignment = alignment_of(&file, &path, options.direct, size)?;
    let route = Route::to(&file, options.engine);
    let lanes = Arc::new(Lanes::of(&file));
    let locked = LockedFile {
        file: Arc::clone(&file),
        path: path.clone(),
        locking: options.locking,
        locks_are_local: system.is_ok_and(|system| has_local_locks(&system)),
    };
    Ok(FileDriver {
        opened: ArcSwap::from_pointee(Opened {
            file: Arc::clone(&file),
            writable,
            route,
            direct: options.direct,
            alignment,
            no_flush: options.no_flush,
            unmap: options.unmap,
            lost: Arc::default(),
            lanes,
        }),
        first: file,
        locks: (options.locking != Locking::Off).then(|| FileLocks::new(locked)),
        image,
        path,
        fd_sets: options.fd_sets,
        size: AtomicU64::new(size),
        identity: identity_of(&metadata),
        kind: options.kind,
    })
}

/// What requests to the file must look like.
///
/// # Errors
/// O_DIRECT can't be had, or not for a file of this size.
fn alignment_of(file: &File, path: &Path, direct: bool, size: u64) -> Result<Alignment> {
    if !direct {
        return Ok(Alignment::CACHED);
    }
    let alignment = probe::direct(file, path)?;
    let unit = alignment.request;
    if !size.is_multiple_of(u64::from(unit)) {
        let reason = format!(
            "its size of {size} bytes is not a multiple of {unit}, as cache.direct=on \
             needs it; round it up with 'truncate -s %{unit}', or use cache.direct=off"
        );
        return Err(unsuitable(path, reason));
    }
    Ok(alignment)
}

/// Opens the file of a node of `size` bytes once more, and says whether it can be written now: with
/// `auto-read-only` that may be refused.
///
/// # Errors
/// As [`open`], and another file has the name by now.
pub(super) fn reopen(
    options: &FileOptions,
    identity: FileIdentity,
    size: u64,
) -> Result<(Aside<File>, bool, Alignment)> {
    let (file, writable) = open_file(options)?;
    let path = &options.path;
    let metadata = file
        .metadata()
        .map_err(|error| open_error(path, error, ""))?;
    if identity_of(&metadata) != identity {
        return Err(unsuitable(
            path,
            "another file has the node's path by now; add a new node for it",
        ));
    }
    let alignment = alignment_of(&file, path, options.direct, size)?;
    Ok((file, writable, alignment))
}

/// Takes a file that somebody else has opened.
///
/// # Errors
/// There is none, or none that was opened as the options want it.
fn open_from_set(options: &FileOptions, name: &SetName) -> Result<(Aside<File>, bool)> {
    let attempt = |write: bool| options.fd_sets.open(name, write, options.direct);
    let mut writable = !options.read_only;
    let mut opened = attempt(writable);
    if matches!(opened, Err(FdSetError::NoMatch(_))) && writable && options.auto_read_only {
        writable = false;
        opened = attempt(writable);
    }
    let file = opened.map_err(|error| BlockError::Refused(error.to_string()))?;
    Ok((aside(file, &options.path), writable))
}

/// The file at `path` as everybody has to own it who opens one, be it only to refuse it: closing it may block.
pub(super) fn aside(file: File, path: &Path) -> Aside<File> {
    Aside::new(file, path.to_string_lossy())
}

fn open_file(options: &FileOptions) -> Result<(Aside<File>, bool)> {
    let path = &options.path;
    if let Some(name) = SetName::of(path) {
        return open_from_set(options, &name);
    }
    // Before opening: that of a pipe without a writer would never end. What can't be looked at is
    // left to the opening, whose error says more.
    if let Ok(metadata) = path.metadata() {
        options.kind.check(&metadata, path)?;
    }
    let attempt = |write: bool| {
        let flags = if options.direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags)
            .open(path)
            .map(|file| aside(file, path))
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
    if kind.is_file() {
        return check_kept(statfs(path), path);
    }
    if kind.is_block_device() {
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

/// File systems whose regular files are the kernel's own words and ears (`linux/magic.h`).
const OF_THE_KERNEL: [(&str, FsWord); 13] = [
    ("proc", 0x9fa0),
    ("sysfs", 0x6265_6572),
    ("debugfs", 0x6462_6720),
    ("tracefs", 0x7472_6163),
    ("securityfs", 0x7363_6673),
    ("cgroup2", 0x6367_7270),
    ("cgroup", 0x0027_e0eb),
    ("configfs", 0x6265_6570),
    ("bpf", 0xcafe_4a11),
    ("pstore", 0x6165_676c),
    ("binfmt_misc", 0x4249_4e4d),
    ("selinuxfs", 0xf97c_ff8c),
    ("efivarfs", 0xde5e_81e4),
];

/// File systems that leave locks to the kernel, which asks nobody else (`linux/magic.h`). All others may ask somebody, as do NFS,
/// SMB, FUSE, 9P, Ceph, GFS2 and OCFS2.
const WITH_LOCAL_LOCKS: [(&str, FsWord); 7] = [
    ("ext2, ext3, ext4", 0xef53),
    ("xfs", 0x5846_5342),
    ("btrfs", 0x9123_683e),
    ("tmpfs, devtmpfs", 0x0102_1994),
    ("overlay", 0x794c_7630),
    ("f2fs", 0xf2f5_2010),
    ("bcachefs", 0xca45_1a4e),
];

/// Whether nobody outside of the kernel is asked for locks of files on that file system.
fn has_local_locks(system: &StatFs) -> bool {
    let mut known = WITH_LOCAL_LOCKS.iter();
    known.any(|(_, magic)| *magic == system.f_type)
}

/// # Errors
/// Nothing is kept in the file at `path`, which is on that file system.
fn check_kept(system: rustix::io::Result<StatFs>, path: &Path) -> Result<()> {
    // What can't be looked at is left to the opening, or opened already and looked at itself.
    let Ok(system) = system else {
        return Ok(());
    };
    let mut known = OF_THE_KERNEL.iter();
    match known.find(|(_, magic)| *magic == system.f_type) {
        None => Ok(()),
        Some((name, _)) => Err(unsuitable(
            path,
            format!(
                "it is one of the kernel's own files ({name}), which keep no data; a disk image needs a file system that keeps some"
            ),
        )),
    }
}

/// What tells whether two nodes are on one medium: of a device its number, by whatever name.
pub(super) fn identity_of(metadata: &Metadata) -> FileIdentity {
    if metadata.file_type().is_block_device() {
        return FileIdentity {
            device: metadata.rdev(),
            inode: 0,
        };
    }
    FileIdentity {
        device: metadata.dev(),
        inode: metadata.ino(),
    }
}

fn size_of(file: &File, metadata: &Metadata, path: &Path) -> Result<u64> {
    let size = if metadata.is_file() {
        metadata.len()
    } else {
        device::size(file).map_err(|error| open_error(path, error, ""))?
    };
    check_size(size, path)?;
    Ok(size)
}

/// An empty file is one that is yet to grow.
///
/// # Errors
/// No disk can have `size` bytes.
pub(super) fn check_size(size: u64, path: &Path) -> Result<()> {
    if (1..SECTOR).contains(&size) {
        let reason = format!(
            "its size of {size} bytes is less than one sector ({SECTOR} bytes); make it larger \
             with 'truncate -s SIZE'"
        );
        return Err(unsuitable(path, reason));
    }
    if !size.is_multiple_of(SECTOR) {
        let reason = format!(
            "its size of {size} bytes is not a multiple of {SECTOR}; round it up with \
             'truncate -s %{SECTOR}'"
        );
        return Err(unsuitable(path, reason));
    }
    Ok(())
}
