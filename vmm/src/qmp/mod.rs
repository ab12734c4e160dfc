//! QMP: the machine protocol on a Unix socket, in QEMU's wire format.

pub mod blockdev;
pub mod input;
pub mod json;
