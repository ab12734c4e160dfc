//! Copying to a file in memory by a mapping of it.
//!
//! The kernel takes a file's lock for each write, so one thread writes at a time. A mapping needs none: the
//! kernel reads the source right into the target's pages, which it makes as it comes to them. It is the
//! kernel only that touches the mapping: what would be a SIGBUS (no memory, a target that was cut off) is
//! an error of the read. Pages that the target does not have yet are [made of the bytes](super::filled) if
//! the kernel lets us.

#![expect(unsafe_code, reason = "a mapping, and a read into it")]

use std::ffi::c_void;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::param::page_size;

use super::copying::with_buffer;
use super::filled::Missing;
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
        let new = window.make(from, done).unwrap_or(0);
        window.fill(from, done, new)?;
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
        Ok(Self { start, len })
    }

    /// Makes the pages at the beginning of the window of what the source has from the byte that is `at` after its
    /// place, up to the first page that is there already. Returns their length in bytes.
    fn make(&self, place: &Place, at: u64) -> io::Result<usize> {
        let whole = self.len / page_size() * page_size();
        // SAFETY: whole pages of the mapping, which lives as long as `self`; nobody else knows of it.
        let missing = unsafe { Missing::of(self.start.cast(), whole) };
        let Some(missing) = missing else {
            return Ok(0);
        };
        with_buffer(|buffer| {
            let mut done = 0;
            while done < whole {
                let bytes = buffer.len().min(whole - done);
                let piece = &mut buffer[..bytes];
                place
                    .file
                    .read_exact_at(piece, place.offset + at + done as u64)?;
                let made = missing.fill(done, piece);
                done += made;
                if made < bytes {
                    break;
                }
            }
            Ok(done)
        })
    }

    /// Has the kernel read the window but for its first `done` bytes from the source, whose byte `at` after its
    /// place is the window's first.
    fn fill(&self, place: &Place, at: u64, done: usize) -> io::Result<()> {
        if done == self.len {
            return Ok(());
        }
        let at_page = done / page_size() * page_size();
        // SAFETY: the range is the mapping's. All pages at once take less time than a fault for each.
        unsafe {
            let start = self.start.byte_add(at_page);
            madvise(start, self.len - at_page, Advice::LinuxPopulateWrite)
        }?;
        let mut done = done;
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
    use std::sync::Arc;

    use super::super::copying::Lanes;
    use super::*;

    fn file(contents: &[u8]) -> Place {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all_at(contents, 0).unwrap();
        Place {
            lanes: Arc::new(Lanes::of(&file)),
            file: Arc::new(file.into()),
            offset: 0,
            image: None,
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

    /// Pages that are there and such that are not, in every order; the last is there in part.
    #[test]
    fn a_target_with_holes_is_filled() {
        let len = 2 * WINDOW + 512;
        let contents: Vec<u8> = (0..len)
            .map(|at| u8::try_from(at / 512 % 251).unwrap())
            .collect();
        let from = file(&contents);
        for holes in 0..8 {
            let to = file(&[]);
            to.file.set_len(len as u64 + 512).unwrap();
            for piece in (0..3).filter(|piece| holes >> piece & 1 == 0) {
                let there = vec![0xff; WINDOW / 4];
                to.file
                    .write_all_at(&there, piece * (WINDOW as u64 * 3 / 4))
                    .unwrap();
            }
            copy(&from, &to, len as u64).unwrap();
            let after = bytes(&to.file, len + 512);
            assert!(after[..len] == contents, "holes {holes:b}");
            assert_eq!(after[len..], [0; 512]);
        }
    }

    /// Otherwise each page is made zeroes for nothing.
    #[test]
    fn pages_that_are_not_there_are_made_of_the_bytes() {
        let from = file(&[1; 1 << 16]);
        let to = file(&[]);
        to.file.set_len(1 << 16).unwrap();
        let window = Window::new(&to, 0, 1 << 16).unwrap();
        match window.make(&from, 0).unwrap() {
            0 => println!("SKIPPED: userfaultfd(2) is not to be had here"),
            made => assert_eq!(made, 1 << 16),
        }
        // Now they are there.
        assert_eq!(window.make(&from, 0).unwrap(), 0);
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
