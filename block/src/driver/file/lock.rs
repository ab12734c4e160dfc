//! Image locks: open-file-description locks on the byte ranges that QEMU's `file` driver uses, so
//! that `qemu-img` refuses an image in use here, and we refuse one in use there.
//!
//! A holder takes a shared lock on byte `100 + n` for each permission *n* that it uses, and on
//! `200 + n` for each that it does not share; a conflict is a lock of somebody else on the other
//! byte. Every lock is a shared one: they never exclude each other, they are only looked at.

#![expect(
    unsafe_code,
    reason = "fcntl with OFD locks is not in the safe wrappers"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::open::unsuitable;
use crate::error::Result;
use crate::options::Locking;
use crate::permission::{Access, Permissions};

/// First byte of the used permissions.
const PERM_BASE: i64 = 100;
/// First byte of the permissions that are not shared.
const UNSHARED_BASE: i64 = 200;

/// Takes the locks that `access` needs, in addition to those that are held.
///
/// # Errors
/// Another process (or another node of this one) uses the image; then call [`finish`] with the
/// access as it was before. A file system without locks is an error only with `locking=on`:
/// otherwise nobody can know.
pub fn prepare(file: &File, path: &Path, access: Access, locking: Locking) -> Result<()> {
    for byte in bytes(access) {
        match lock_byte(file, libc::F_RDLCK, byte) {
            Ok(()) => {}
            Err(error) if is_unsupported(&error) && locking == Locking::On => {
                return Err(unsuitable(
                    path,
                    "its file system can't lock files, as locking=on asks",
                ));
            }
            Err(error) if is_unsupported(&error) => return Ok(()),
            // Somebody holds a write lock, which none of this family does.
            Err(_) => return Err(conflict(path, access.used)),
        }
    }
    let taken = |base, permissions: Permissions| {
        let permissions = permissions.iter();
        let mut taken =
            permissions.filter(move |permission| is_locked(file, base + offset(*permission)));
        taken.next()
    };
    let conflicting =
        taken(UNSHARED_BASE, access.used).or_else(|| taken(PERM_BASE, access.unshared()));
    conflicting.map_or(Ok(()), |permission| Err(conflict(path, permission)))
}

/// Gives back all locks that `access` does not need.
pub fn finish(file: &File, access: Access) {
    let needed: Vec<_> = bytes(access).collect();
    let all = Access {
        used: Permissions::all(),
        shared: Permissions::empty(),
    };
    for byte in bytes(all).filter(|byte| !needed.contains(byte)) {
        // Without locks there is nothing to give back.
        drop(lock_byte(file, libc::F_UNLCK, byte));
    }
}

fn offset(permission: Permissions) -> i64 {
    i64::from(permission.bits().trailing_zeros())
}

fn bytes(access: Access) -> impl Iterator<Item = i64> {
    let used = access.used.iter().map(|used| PERM_BASE + offset(used));
    let unshared = access.unshared();
    used.chain(unshared.iter().map(|byte| UNSHARED_BASE + offset(byte)))
}

fn conflict(path: &Path, permission: Permissions) -> crate::BlockError {
    unsuitable(
        path,
        format!(
            "Failed to get \"{}\" lock. Is another process using the image, or another node?",
            permission.text()
        ),
    )
}

fn flock(kind: i32, start: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: start,
        l_len: 1,
        l_pid: 0,
    }
}

fn lock_byte(file: &File, kind: i32, start: i64) -> io::Result<()> {
    let request = flock(kind, start);
    // SAFETY: the descriptor is open and `request` is a valid flock for the call's duration.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether somebody else has a lock on this byte.
fn is_locked(file: &File, start: i64) -> bool {
    let mut request = flock(libc::F_WRLCK, start);
    // SAFETY: the descriptor is open and the kernel may write to `request` during the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut request) };
    result == 0 && i32::from(request.l_type) != libc::F_UNLCK
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP)
    )
}
