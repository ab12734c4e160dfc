//! What block devices are asked by ioctl (`linux/fs.h`).

#![expect(
    unsafe_code,
    reason = "ioctls whose argument types only this file knows"
)]

use std::fs::File;
use std::io;

use rustix::ioctl::{Getter, Setter, ioctl, opcode};

/// `BLKGETSIZE64`: the size in bytes. The header declares it with `size_t`.
const GET_SIZE: u32 = opcode::read::<usize>(0x12, 114);
/// `BLKDISCARD`: a range of offset and length.
const DISCARD: u32 = opcode::none(0x12, 119);

/// The device's size in bytes.
///
/// # Errors
/// The kernel's.
pub(super) fn size(file: &File) -> io::Result<u64> {
    // SAFETY: the operation stores one `u64` where its argument points to.
    let size = unsafe { ioctl(file, Getter::<{ GET_SIZE }, u64>::new()) }?;
    Ok(size)
}

/// Gives up the contents of a range of whole blocks; blocks until the device has.
///
/// # Errors
/// The kernel's; `EOPNOTSUPP` if the device can't.
pub(super) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the operation reads two `u64` from where its argument points to.
    unsafe { ioctl(file, Setter::<{ DISCARD }, [u64; 2]>::new([offset, len])) }?;
    Ok(())
}
