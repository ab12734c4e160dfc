//! [`Route`]: by which engine a file's bytes move, and what that engine should know of the file.

use std::fs::File;
use std::io::IoSliceMut;

use rustix::io::{Errno, ReadWriteFlags};

use super::EngineKind;

/// How the transfers of one file are to be made; an [`EngineKind`] is one that knows nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub(super) engine: EngineKind,
    /// Each transfer may block in the kernel, which can't tell beforehand.
    pub(super) waits: bool,
    /// What a read finds beyond the end of the file are zeroes.
    pub(super) pads: bool,
}

impl Route {
    /// The best way to `file` by `engine`.
    ///
    /// The ring's kernel tries a transfer first in the submitter's call, and leaves it to a thread
    /// of its own only if it would block. Of a file whose file system can't say so (tmpfs; others on
    /// older kernels) that attempt always fails. One read that must not wait (`RWF_NOWAIT` of
    /// preadv2(2)) tells such files: their transfers go to the kernel's threads at once
    /// (`IOSQE_ASYNC`). That is a matter of cost alone.
    ///
    /// Does not block; may be called in any thread.
    #[must_use]
    pub fn to(file: &File, engine: EngineKind) -> Self {
        let mut byte = [0];
        let mut room = [IoSliceMut::new(&mut byte)];
        let tried = rustix::io::preadv2(file, &mut room, 0, ReadWriteFlags::NOWAIT);
        Self {
            engine,
            waits: tried == Err(Errno::OPNOTSUPP),
            pads: false,
        }
    }

    /// The same way, on which a read is as long as its buffer: beyond the end of the file it finds zeroes.
    #[must_use]
    pub fn padded(self) -> Self {
        Self { pads: true, ..self }
    }

    /// The engine.
    #[must_use]
    pub fn engine(self) -> EngineKind {
        self.engine
    }
}

impl From<EngineKind> for Route {
    fn from(engine: EngineKind) -> Self {
        Self {
            engine,
            waits: false,
            pads: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_file_whose_reads_can_tell_that_they_would_block_is_not_said_to_wait() {
        // Of the kinds of files that there are everywhere, a pipe can always tell.
        let (reader, _writer) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        let route = Route::to(&pipe, EngineKind::IoUring);
        assert_eq!(route, EngineKind::IoUring.into());
    }

    #[test]
    fn a_file_in_memory_is_said_to_wait_where_the_kernel_refuses_to_try() {
        let name = c"route";
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create(name, flags).unwrap());
        let mut byte = [0];
        let mut room = [IoSliceMut::new(&mut byte)];
        // Newer kernels may learn it.
        let refused = rustix::io::preadv2(&file, &mut room, 0, ReadWriteFlags::NOWAIT)
            .is_err_and(|errno| errno == Errno::OPNOTSUPP);
        assert_eq!(Route::to(&file, EngineKind::IoUring).waits, refused);
    }
}
