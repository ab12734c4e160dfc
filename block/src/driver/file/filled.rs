//! Pages of a file in memory that come to be with their bytes, by userfaultfd(2).
//!
//! A page that is touched in a mapping is made zeroes first, which takes about as long as to copy to it. Whoever
//! handles the faults of a mapping hands the kernel the bytes instead (`UFFDIO_COPY`), and the page appears
//! with them. Nobody waits for a fault here: we hand in pages that nobody has touched. A page that is in
//! the file already stays as it is, and ends the call.

#![expect(unsafe_code, reason = "calls of userfaultfd(2)")]

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use linux_raw_sys::general::{
    UFFD_API, UFFD_USER_MODE_ONLY, UFFDIO_REGISTER_MODE_MISSING, uffdio_api, uffdio_copy,
    uffdio_range, uffdio_register,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_UNREGISTER};
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

/// Hands pages to mappings of this process; opened once.
///
/// None if the kernel can't (before 5.11), or does not let us (seccomp).
fn handler() -> Option<&'static OwnedFd> {
    static HANDLER: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let open = || {
        // The kernel's own faults are not ours to handle: that takes no privilege.
        let flags =
            UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        // SAFETY: what it can do to memory is done by the calls of this module.
        let handler = unsafe { userfaultfd(flags) }.ok()?;
        let mut version = uffdio_api {
            api: UFFD_API.into(),
            features: 0,
            ioctls: 0,
        };
        // SAFETY: it takes this structure, and touches nothing else.
        unsafe { call::<UFFDIO_API, _>(&handler, &mut version) }.ok()?;
        Some(handler)
    };
    HANDLER.get_or_init(open).as_ref()
}

/// # Safety
/// `CALL` takes a `T`, and what it is told to do harms nothing.
unsafe fn call<const CALL: Opcode, T>(
    handler: &OwnedFd,
    argument: &mut T,
) -> rustix::io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { ioctl(handler, Updater::<CALL, T>::new(argument)) }
}

/// A mapping, or a part of it, whose missing pages are handed in.
#[derive(Debug)]
pub(super) struct Missing {
    handler: &'static OwnedFd,
    range: uffdio_range,
}

impl Missing {
    /// Takes over the faults of memory from `start` on, `len` bytes of whole pages. None where that can't be done.
    ///
    /// # Safety
    /// The memory is a mapping of a file in memory which lives longer than what is returned, and which nobody
    /// touches as long.
    pub(super) unsafe fn of(start: *mut u8, len: usize) -> Option<Self> {
        let handler = handler()?;
        let range = uffdio_range {
            start: start.expose_provenance() as u64,
            len: len as u64,
        };
        let mut registration = uffdio_register {
            range,
            mode: UFFDIO_REGISTER_MODE_MISSING.into(),
            ioctls: 0,
        };
        // SAFETY: it takes this structure; who touched the memory now would wait, and nobody does.
        unsafe { call::<UFFDIO_REGISTER, _>(handler, &mut registration) }.ok()?;
        Some(Self { handler, range })
    }

    /// Makes the pages that begin `at` bytes after the start, of these bytes (whole pages of them). Returns how many
    /// bytes that were: fewer than all if the next page is there already, or can't be made.
    pub(super) fn fill(&self, at: usize, bytes: &[u8]) -> usize {
        let mut order = uffdio_copy {
            dst: self.range.start + at as u64,
            src: bytes.as_ptr().expose_provenance() as u64,
            len: bytes.len() as u64,
            mode: 0,
            copy: 0,
        };
        // SAFETY: it takes this structure. The kernel reads `bytes`, and writes to pages of the mapping only
        // that it makes itself: EINVAL or ENOENT where the range is not all in it.
        let done = unsafe { call::<UFFDIO_COPY, _>(self.handler, &mut order) };
        match done {
            Ok(()) => bytes.len(),
            // What was made before the error; otherwise the error, below zero.
            Err(_) => usize::try_from(order.copy).unwrap_or(0),
        }
    }
}

impl Drop for Missing {
    fn drop(&mut self) {
        // SAFETY: it takes this structure; faults are the kernel's again.
        let given_back = unsafe { call::<UFFDIO_UNREGISTER, _>(self.handler, &mut self.range) };
        debug_assert!(given_back.is_ok(), "what was registered can be taken back");
    }
}
