//! The two directions of a connected byte stream.
//!
//! Each direction has a descriptor of its own, since tasks that wait for different things of one
//! descriptor would be in each other's way. Sockets are non-blocking. Standard input and output
//! are not made so, because they may share their state with the terminal's other users: they are waited for
//! before each transfer, which then does not block as long as it is no longer than a pipe takes at once.

use std::future;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, recvmsg, shutdown,
};
use rustix::termios::isatty;
use sluice_aio::{Aside, current};

/// What needs a descriptor and finds none left is tried again after this long.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The most descriptors that are taken with one message (Linux: `SCM_MAX_FD` is more; a client sends one).
const DESCRIPTORS: usize = 16;
/// What a pipe takes at once if it takes anything (pipe(7), `PIPE_BUF`).
const AT_ONCE: usize = 4096;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// Does not block, and may bring descriptors.
    Socket,
    /// May block.
    Plain,
}

/// A connected byte stream.
#[derive(Debug)]
pub struct Stream {
    /// What comes.
    pub input: Input,
    /// What goes.
    pub output: Output,
}

/// What comes from the other end.
#[derive(Debug)]
pub struct Input {
    descriptor: OwnedFd,
    kind: Kind,
}

/// What goes to the other end.
#[derive(Debug)]
pub struct Output {
    descriptor: OwnedFd,
    kind: Kind,
}

impl Stream {
    /// A connected socket, which is made non-blocking.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn socket(descriptor: impl Into<OwnedFd>) -> io::Result<Self> {
        let descriptor = descriptor.into();
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        let kind = Kind::Socket;
        Ok(Self {
            output: Output {
                descriptor: descriptor.try_clone()?,
                kind,
            },
            input: Input { descriptor, kind },
        })
    }

    /// Standard input and output.
    ///
    /// # Errors
    /// One of them is closed, or no descriptor is left.
    pub fn stdio() -> io::Result<Self> {
        let kind = Kind::Plain;
        Ok(Self {
            input: Input {
                descriptor: io::stdin().as_fd().try_clone_to_owned()?,
                kind,
            },
            output: Output {
                descriptor: io::stdout().as_fd().try_clone_to_owned()?,
                kind,
            },
        })
    }
}

impl Input {
    /// Reads what is there, waiting until something is; 0 at the end. Descriptors that come with it are
    /// appended to `descriptors`. May be dropped while it waits; nothing is lost then.
    ///
    /// # Errors
    /// The other end is gone, or the host's answer.
    pub async fn read(
        &self,
        buffer: &mut [u8],
        descriptors: &mut Vec<Aside<OwnedFd>>,
    ) -> io::Result<usize> {
        if self.kind == Kind::Plain {
            self.ready().await;
        }
        loop {
            match self.try_read(buffer, descriptors) {
                Err(Errno::AGAIN) => self.ready().await,
                Err(Errno::INTR) => {}
                answer => return Ok(answer?),
            }
        }
    }

    fn try_read(
        &self,
        buffer: &mut [u8],
        descriptors: &mut Vec<Aside<OwnedFd>>,
    ) -> rustix::io::Result<usize> {
        if self.kind == Kind::Plain {
            return rustix::io::read(&self.descriptor, buffer);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.descriptor, &mut parts, &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                // Anything can be sent, such as a file that hangs.
                let name = "a descriptor that a client has sent";
                descriptors.extend(rights.map(|right| Aside::new(right, name)));
            }
        }
        Ok(received.bytes)
    }

    /// Whether whoever reads what goes does not see what comes: standard input that is no terminal. A socket's other end
    /// knows what it has sent.
    #[must_use]
    pub fn comes_unseen(&self) -> bool {
        self.kind == Kind::Plain && !isatty(&self.descriptor)
    }

    /// Waits until the other end of a socket is gone altogether: it neither sends nor reads any more. For ever
    /// where that can't be told from what comes alone.
    pub async fn hung_up(&self) {
        if self.kind == Kind::Plain || current::hung_up(self).await.is_err() {
            future::pending::<()>().await;
        }
    }

    async fn ready(&self) {
        settle(current::readable(self).await).await;
    }
}

impl Output {
    /// Writes all of `bytes`, waiting for room.
    ///
    /// # Errors
    /// The other end is gone, or the host's answer.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut part = bytes;
            if self.kind == Kind::Plain {
                self.ready().await;
                part = &bytes[..bytes.len().min(AT_ONCE)];
            }
            match rustix::io::write(&self.descriptor, part) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::AGAIN) => self.ready().await,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Has both ends of a socket see the end of the connection, whoever else holds it.
    pub fn close(&self) {
        if self.kind == Kind::Socket {
            // It is gone already if this fails.
            let _ = shutdown(&self.descriptor, Shutdown::Both);
        }
    }

    async fn ready(&self) {
        settle(current::writable(self).await).await;
    }
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What can't be waited for, such as a file, is ready; a host without descriptors has some again later.
async fn settle(waited: io::Result<()>) {
    match waited {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {}
        Err(_) => current::sleep(RETRY_PAUSE).await,
    }
}
