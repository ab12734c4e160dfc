//! Files that share blocks: whether a file system can do that, and which files do.
#![expect(unsafe_code, reason = "FIEMAP writes to memory that it is given")]

use std::fs::File;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::{env, io};

/// Set where temporary files share blocks for certain: a test about that fails then, where it would be skipped.
pub const VARIABLE: &str = "SLUICE_SHARES_BLOCKS";

/// `FS_IOC_FIEMAP`, and what it knows (`linux/fiemap.h`).
const FIEMAP: u32 = 0xc020_660b;
const SYNC: u32 = 1;
const LAST: u32 = 1;
const SHARED: u32 = 0x2000;

/// Whether files in `directory` can share blocks; if not, says on standard output that the test is skipped.
///
/// # Errors
/// Files can't be made there, or they can't share blocks although [`VARIABLE`] says so.
pub fn is_to_be_had(directory: &Path) -> io::Result<bool> {
    let (one, other) = (
        tempfile::tempfile_in(directory)?,
        tempfile::tempfile_in(directory)?,
    );
    one.set_len(1 << 16)?;
    match rustix::fs::ioctl_ficlone(&other, &one) {
        Ok(()) => Ok(true),
        Err(error) if env::var_os(VARIABLE).is_some() => Err(error.into()),
        Err(error) => {
            let place = directory.display();
            println!("SKIPPED: the file system of {place} shares no blocks: {error}");
            Ok(false)
        }
    }
}

/// A stretch of a file that lies in one piece.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Extent {
    /// First byte in the file.
    logical: u64,
    /// First byte on the file system's device.
    physical: u64,
    /// In bytes.
    len: u64,
    reserved: [u64; 2],
    flags: u32,
    more_reserved: [u32; 3],
}

impl Extent {
    fn end(&self) -> u64 {
        self.logical + self.len
    }

    fn is_shared(&self) -> bool {
        self.flags & SHARED != 0
    }

    /// Bytes that both have at the same place of their files, and that are the same on the device.
    fn common(&self, other: &Self) -> u64 {
        let shift = |extent: &Self| extent.physical.wrapping_sub(extent.logical);
        if !self.is_shared() || !other.is_shared() || shift(self) != shift(other) {
            return 0;
        }
        let end = self.end().min(other.end());
        end.saturating_sub(self.logical.max(other.logical))
    }
}

/// `struct fiemap` with some extents.
#[derive(Default)]
#[repr(C)]
struct Map {
    start: u64,
    len: u64,
    flags: u32,
    /// How many extents the kernel has written.
    mapped: u32,
    /// How many there is room for.
    count: u32,
    reserved: u32,
    extents: [Extent; 32],
}

fn extents(file: &File) -> io::Result<Vec<Extent>> {
    let mut all: Vec<Extent> = Vec::new();
    loop {
        let start = all.last().map_or(0, Extent::end);
        let mut map = Map {
            start,
            len: u64::MAX - start,
            flags: SYNC,
            ..Map::default()
        };
        map.count = u32::try_from(map.extents.len()).map_err(io::Error::other)?;
        // SAFETY: the request is for a `struct fiemap`, as `Map` is one, followed by room for `count` extents, which is
        // where `extents` begins; the kernel writes no further. Both live until the call is over.
        let called = unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP.into(), &raw mut map) };
        if called < 0 {
            return Err(io::Error::last_os_error());
        }
        let found = map.extents.iter().take(map.mapped as usize);
        all.extend(found);
        if map.mapped == 0 || all.last().is_some_and(|last| last.flags & LAST != 0) {
            return Ok(all);
        }
    }
}

const _: () = assert!(size_of::<Extent>() == 56 && offset_of!(Map, extents) == 32);

/// How many bytes of the files have blocks, and how many of these they share at the same places. Both are flushed
/// for it.
///
/// # Errors
/// The file system does not tell.
pub fn allocated_and_shared(one: &File, other: &File) -> io::Result<(u64, u64)> {
    let (one, other) = (extents(one)?, extents(other)?);
    let size = |extents: &[Extent]| extents.iter().map(|extent| extent.len).sum::<u64>();
    let (mut shared, mut next) = (0, &other[..]);
    for extent in &one {
        // Both are in order.
        let before = next.partition_point(|other| other.end() <= extent.logical);
        next = &next[before..];
        let beside = next.iter().take_while(|other| other.logical < extent.end());
        shared += beside.map(|other| extent.common(other)).sum::<u64>();
    }
    Ok((size(&one).max(size(&other)), shared))
}
