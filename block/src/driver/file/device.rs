//! What block devices are asked by ioctl (`linux/fs.h`).

#![expect(
    unsafe_code,
    reason = "an ioctl whose argument type only this file knows"
)]

use std::fs::File;
use std::io;

use rustix::ioctl::{Getter, ioctl, opcode};

/// `BLKGETSIZE64`: the size in bytes. The header declares it with `size_t`.
const GET_SIZE: u32 = opcode::read::<usize>(0x12, 114);

/// The device's size in bytes.
///
/// # Errors
/// The kernel's.
pub(super) fn size(file: &File) -> io::Result<u64> {
    // SAFETY: the operation stores one `u64` where its argument points to.
    let size = unsafe { ioctl(file, Getter::<{ GET_SIZE }, u64>::new()) }?;
    Ok(size)
}
