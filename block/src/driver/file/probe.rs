//! What O_DIRECT asks of requests to a file: found out, since it differs by device, file system and
//! kernel.
//!
//! The kernel's own word is taken where it gives one (`statx(2)` with `STATX_DIOALIGN`, since Linux
//! 6.1; `BLKSSZGET` of a device); otherwise small reads are tried until one is not refused.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags};
use sluice_aio::buffer::BUFFER_ALIGNMENT;

use super::open::{open_error, unsuitable};
use crate::error::Result;

/// What must be a multiple of what; powers of two, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Offsets and lengths, of requests and of the pieces of their memory.
    pub(super) request: u32,
    /// Addresses of the pieces of memory.
    pub(super) memory: u32,
}

impl Alignment {
    /// With the page cache in between nothing matters.
    pub(super) const CACHED: Self = Self {
        request: 1,
        memory: 1,
    };
}

/// What is tried, smallest first: a guest asks for sectors of 512 bytes, and disks have blocks of
/// up to 4096.
const CANDIDATES: [u32; 4] = [512, 1024, 2048, 4096];

/// Memory for the trials: a block that begins at any candidate within a well-aligned one.
const ROOM: usize = 3 * 4096;

/// Finds out what O_DIRECT asks of `file`; blocks.
///
/// # Errors
/// O_DIRECT is refused, or asks for more than the memory of this program has.
pub(super) fn direct(file: &File, path: &Path) -> Result<Alignment> {
    let found = match by_statx(file).or_else(|| by_device(file)) {
        Some(found) => Some(found),
        None => {
            by_reading(|room| file.read_at(room, 0)).map_err(|error| open_error(path, error, ""))?
        }
    };
    let usable = |found: &Alignment| {
        found.request.is_power_of_two()
            && found.memory.is_power_of_two()
            && usize::try_from(found.memory).is_ok_and(|memory| memory <= BUFFER_ALIGNMENT)
    };
    found.filter(usable).ok_or_else(|| {
        unsuitable(
            path,
            "its file system refuses cache.direct=on for it, or asks for too large an alignment; \
             use cache.direct=off",
        )
    })
}

/// The file system's word. One that says 0 can't do O_DIRECT on this file.
fn by_statx(file: &File) -> Option<Alignment> {
    let known = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let answered = known.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    answered.then(|| Alignment {
        request: match known.stx_dio_offset_align {
            0 => 0,
            offset => offset.max(CANDIDATES[0]),
        },
        memory: known.stx_dio_mem_align,
    })
}

/// The device's word.
fn by_device(file: &File) -> Option<Alignment> {
    let is_device = file.metadata().ok()?.file_type().is_block_device();
    let block = is_device.then(|| rustix::fs::ioctl_blksszget(file).ok())??;
    Some(Alignment {
        request: block.max(CANDIDATES[0]),
        memory: block.max(CANDIDATES[0]),
    })
}

/// Tries reads at offset 0 until one is not refused for its alignment; none if all are.
///
/// # Errors
/// A read failed for another reason.
fn by_reading(
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<Option<Alignment>> {
    let mut room = vec![0; ROOM];
    let base = room.as_ptr().align_offset(BUFFER_ALIGNMENT);
    let mut accepts = |at: u32, len: u32| -> io::Result<bool> {
        let (at, len) = (size(at), size(len));
        match read(&mut room[base + at..base + at + len]) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    };
    for request in CANDIDATES {
        if !accepts(0, request)? {
            continue;
        }
        for memory in CANDIDATES {
            if accepts(memory, request)? {
                return Ok(Some(Alignment { request, memory }));
            }
        }
    }
    Ok(None)
}

fn size(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(ROOM)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that refuses what is not aligned as it wants.
    fn device(request: usize, memory: usize) -> impl FnMut(&mut [u8]) -> io::Result<usize> {
        move |room| {
            let aligned = room.len() % request == 0 && room.as_ptr().addr() % memory == 0;
            if aligned {
                Ok(room.len())
            } else {
                Err(io::Error::from_raw_os_error(libc::EINVAL))
            }
        }
    }

    #[test]
    fn reads_find_out_what_a_device_wants() {
        for request in CANDIDATES {
            for memory in CANDIDATES {
                let found = by_reading(device(size(request), size(memory))).unwrap();
                assert_eq!(found, Some(Alignment { request, memory }));
            }
        }
        let byte_wise = by_reading(device(1, 1)).unwrap().unwrap();
        assert_eq!((byte_wise.request, byte_wise.memory), (512, 512));
        assert_eq!(by_reading(device(8192, 512)).unwrap(), None);
    }

    #[test]
    fn another_error_is_no_answer() {
        let error = by_reading(|_| Err(io::Error::from_raw_os_error(libc::EIO))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
}
