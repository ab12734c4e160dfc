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

/// First byte of the used permissions.
const PERM_BASE: i64 = 100;
/// First byte of the permissions that are not shared.
const UNSHARED_BASE: i64 = 200;
/// Bytes from the first to the last that can carry a lock, both bases included.
const LOCK_SPAN: i64 = 200;

/// A permission by its bit number, which is its offset in the lock ranges.
#[derive(Clone, Copy)]
enum Permission {
    ConsistentRead = 0,
    Write = 1,
    Resize = 3,
}

impl Permission {
    fn name(self) -> &'static str {
        match self {
            Self::ConsistentRead => "consistent read",
            Self::Write => "write",
            Self::Resize => "resize",
        }
    }
}

/// What a writing disk does.
const USED: [Permission; 2] = [Permission::ConsistentRead, Permission::Write];
/// What it lets nobody else do.
const UNSHARED: [Permission; 2] = [Permission::Write, Permission::Resize];

/// Takes the locks of an exclusive writer; on a conflict none is left.
///
/// # Errors
/// Another process (or another node of this one) uses the image. A file system without locks is
/// no error: then nobody can know.
pub fn lock_writer(file: &File, path: &Path) -> Result<()> {
    let taken = take(file);
    if matches!(&taken, Err(error) if is_unsupported(error)) {
        return Ok(());
    }
    let conflict = taken
        .is_err()
        .then_some(Permission::Write)
        .or_else(|| find_conflict(file));
    let Some(permission) = conflict else {
        return Ok(());
    };
    unlock(file);
    Err(unsuitable(
        path,
        format!(
            "Failed to get \"{}\" lock; is another process, or another node, using the image?",
            permission.name()
        ),
    ))
}

/// Gives all locks back.
pub fn unlock(file: &File) {
    // Without locks there is nothing to give back.
    drop(lock_range(file, libc::F_UNLCK, PERM_BASE, LOCK_SPAN));
}

fn take(file: &File) -> io::Result<()> {
    for permission in USED {
        lock_range(file, libc::F_RDLCK, PERM_BASE + permission as i64, 1)?;
    }
    for permission in UNSHARED {
        lock_range(file, libc::F_RDLCK, UNSHARED_BASE + permission as i64, 1)?;
    }
    Ok(())
}

fn find_conflict(file: &File) -> Option<Permission> {
    let held = |base, permission: Permission| is_locked(file, base + permission as i64);
    USED.into_iter()
        .find(|permission| held(UNSHARED_BASE, *permission))
        .or_else(|| {
            UNSHARED
                .into_iter()
                .find(|permission| held(PERM_BASE, *permission))
        })
}

fn flock(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn lock_range(file: &File, kind: i32, start: i64, len: i64) -> io::Result<()> {
    let request = flock(kind, start, len);
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
    let mut request = flock(libc::F_WRLCK, start, 1);
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
