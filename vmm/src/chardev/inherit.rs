//! Descriptors that the process was started with (`--chardev socket,fd=N`).
#![expect(
    unsafe_code,
    reason = "only the command line says which descriptors were inherited to be used"
)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{FileType, fstat};
use thiserror::Error;

use super::{Backend, ChardevConfig, SocketAddress};

/// Standard input, output and error are nobody's to take.
const FIRST: RawFd = 3;

/// Why an inherited descriptor cannot be used.
#[derive(Debug, Error)]
pub enum InheritError {
    /// It is no socket, or not even open.
    #[error("--chardev {id}: descriptor {number} is not a socket that this process inherited")]
    NoSocket {
        /// The character device.
        id: String,
        /// The number on the command line.
        number: RawFd,
    },
    /// Two character devices name it, or it is a standard one.
    #[error("--chardev {id}: descriptor {number} is in use already")]
    Taken {
        /// The character device.
        id: String,
        /// The number on the command line.
        number: RawFd,
    },
}

/// The sockets that the process was started with and is to use.
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<RawFd, OwnedFd>);

impl Inherited {
    /// Takes the descriptors that `chardevs` name. To be called before this process has opened anything
    /// itself, and once: whatever is open then was inherited.
    ///
    /// # Errors
    /// [`InheritError`], which names the character device.
    pub fn take(chardevs: &[ChardevConfig]) -> Result<Self, InheritError> {
        let mut taken = BTreeMap::new();
        for chardev in chardevs {
            let Backend::Socket(socket) = &chardev.backend else {
                continue;
            };
            let SocketAddress::Descriptor(number) = socket.address else {
                continue;
            };
            let id = || chardev.id.clone();
            if number < FIRST || taken.contains_key(&number) {
                return Err(InheritError::Taken { id: id(), number });
            }
            if !is_socket(number) {
                return Err(InheritError::NoSocket { id: id(), number });
            }
            // SAFETY: it is open, and whoever started this process left it to us by naming it. Nobody
            // else here owns it: nothing was opened before, and it is taken once.
            taken.insert(number, unsafe { OwnedFd::from_raw_fd(number) });
        }
        Ok(Self(taken))
    }

    pub(super) fn remove(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        let taken = self.0.remove(&number);
        taken.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn is_socket(number: RawFd) -> bool {
    // SAFETY: it is not negative, and the borrow ends before anything else can happen to it; if it is not
    // open, the system call says so.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    fstat(descriptor)
        .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Socket)
}
