//! Copying to a file in memory by a mapping of it.
//!
//! The kernel takes a file's lock for each write, so one thread writes at a time. A mapping needs none: the
//! kernel reads the source right into the target's pages, which it makes as it comes to them. It is the
//! kernel only that touches the mapping: what would be a SIGBUS (no memory, a target that was cut off) is
//! an error of the read.

#![expect(unsafe_code, reason = "a mapping, and a read into it")]

use std::ffi::c_void;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::io::Place;

/// Bytes mapped at once: what the kernel has just made zeroes is still in a processor's cache when it is read into.
const WINDOW: usize = 1 << 20;

/// Copies `len` bytes; blocks.
///
/// # Errors
/// The target can't be mapped, or not from there (its offset is not a page's); either file's, or `UnexpectedEof`
/// if the source is shorter. Some bytes may have been copied.
pub(super) fn copy(from: &Place, to: &Place, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let bytes = usize::try_from(len - done).map_or(WINDOW, |left| left.min(WINDOW));
        let window = Window::new(to, done, bytes)?;
        window.fill(from, done)?;
        done += bytes as u64;
    }
    Ok(())
}

/// A part of the target, mapped.
struct Window {
    start: *mut c_void,
    len: usize,
}

impl Window {
    fn new(place: &Place, at: u64, len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice; nobody else knows of it.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                len,
                access,
                MapFlags::SHARED,
                &place.file,
                place.offset + at,
            )
        }?;
        let window = Self { start, len };
        // SAFETY: the range is the mapping's. All pages at once take less time than a fault for each.
        unsafe { madvise(start, len, Advice::LinuxPopulateWrite) }?;
        Ok(window)
    }

    /// Has the kernel read all of the window from the source, from the byte that is `at` after its place.
    fn fill(&self, place: &Place, at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < self.len {
            let offset = libc::off_t::try_from(place.offset + at + done as u64)
                .map_err(|_| io::ErrorKind::InvalidInput)?;
            // SAFETY: the range is in the mapping, which lives as long as `self`, and of which there are no
            // references; the kernel answers EFAULT where it can't be written to.
            let count = unsafe {
                libc::pread(
                    place.file.as_raw_fd(),
                    self.start.byte_add(done),
                    self.len - done,
                    offset,
                )
            };
            match usize::try_from(count) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is this window's alone.
        let unmapped = unsafe { munmap(self.start, self.len) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can be taken away");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;
    use std::sync::Arc;

    use super::*;

    fn file(contents: &[u8]) -> Place {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all_at(contents, 0).unwrap();
        Place {
            file: Arc::new(file),
            lanes: Arc::default(),
            offset: 0,
        }
    }

    fn bytes(file: &File, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn windows_follow_each_other() {
        let len = 2 * WINDOW + 8192;
        let contents: Vec<u8> = (0..len)
            .map(|at| u8::try_from(at / 4096 % 251).unwrap())
            .collect();
        let mut from = file(&contents);
        from.offset = 512;
        let mut to = file(&vec![0xff; len]);
        to.offset = 4096;
        let count = len - 8192;
        copy(&from, &to, count as u64).unwrap();
        let after = bytes(&to.file, len);
        assert_eq!(after[4096..4096 + count], contents[512..512 + count]);
        let untouched = after[..4096].iter().chain(&after[4096 + count..]);
        assert!(untouched.copied().all(|byte| byte == 0xff));
    }

    /// In the program itself a touch of such a page would be a SIGBUS, as where memory has run out.
    #[test]
    fn pages_that_are_not_there_are_an_error() {
        let from = file(&[1; 3 << 16]);
        let to = file(&[0; 1 << 16]);
        let error = copy(&from, &to, 3 << 16).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        assert_eq!(to.file.metadata().unwrap().len(), 1 << 16);
    }

    #[test]
    fn a_source_that_ends_and_a_place_that_is_not_a_page_are_errors() {
        let from = file(&[1; 8192]);
        let mut to = file(&[0; 16384]);
        let beyond = copy(&from, &to, 12288).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
        to.offset = 512;
        let odd = copy(&from, &to, 4096).unwrap_err();
        assert_eq!(odd.kind(), io::ErrorKind::InvalidInput);
    }
}
