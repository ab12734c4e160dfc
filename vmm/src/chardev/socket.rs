//! Sockets: connecting and listening. Files of listening Unix sockets are taken over if stale, never if
//! alive, and removed at the end.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process (or another socket of this one) listens there.
    #[error("socket '{}' is taken: somebody listens on it; use another path", path.display())]
    Taken {
        /// The socket's file.
        path: PathBuf,
    },
    /// The path belongs to something that is no socket.
    #[error("'{}' exists and is not a socket; remove it or use another path", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("can't {action} socket '{}': {source}{}", path.display(), hint(source))]
    System {
        /// What was tried.
        action: &'static str,
        /// The socket's file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// An address that other hosts reach.
    #[error(
        "can't listen on '{name}': whoever reaches it could do all that a monitor can; listen on 127.0.0.1 or \
         localhost, and come from elsewhere by a tunnel (ssh -L)"
    )]
    NotLoopback {
        /// The address, in QEMU's notation.
        name: String,
    },
    /// The system refused a TCP socket, or standard input or output.
    #[error("can't {action} '{name}': {source}")]
    Other {
        /// What was tried.
        action: &'static str,
        /// The address, in QEMU's notation.
        name: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// What would help, with its separator.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; create its directory first, or use another path",
        io::ErrorKind::PermissionDenied => "; use a directory that you may write to",
        _ => "",
    }
}

impl SocketError {
    fn system(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::System {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

/// The file of a listening socket; dropping it removes the file, unless somebody else has put
/// another one in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|now| (now.dev(), now.ino()) == (self.device, self.inode));
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "can't remove the socket");
        }
    }
}

/// Listens on `path` without blocking. A socket file that nobody listens on any more is replaced.
///
/// # Errors
/// [`SocketError`].
pub(super) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    remove_stale(path)?;
    let failed = |error: io::Error| match error.kind() {
        // Somebody was faster.
        io::ErrorKind::AddrInUse => SocketError::Taken {
            path: path.to_owned(),
        },
        _ => SocketError::system("listen on", path, error),
    };
    let listener = UnixListener::bind(path).map_err(failed)?;
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    let file = SocketFile {
        path: path.to_owned(),
        device: metadata.dev(),
        inode: metadata.ino(),
    };
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((listener, file))
}

/// Connects to whoever listens on `path`; the stream does not block.
///
/// # Errors
/// [`SocketError::System`].
pub(super) fn connect(path: &Path) -> Result<UnixStream, SocketError> {
    connect_at_once(path).map_err(|error| SocketError::system("connect to", path, error))
}

/// Connects to whoever listens on `path`; none if that is nobody, or can't be known.
pub(super) fn connect_if_alive(path: &Path) -> Option<UnixStream> {
    connect_at_once(path).ok()
}

/// Connects to a TCP port. This waits for the network, at the process's start only.
pub(super) fn connect_inet(host: &str, port: u16) -> Result<OwnedFd, SocketError> {
    let connected = TcpStream::connect((host, port)).and_then(|stream| {
        stream.set_nodelay(true)?;
        Ok(stream.into())
    });
    connected.map_err(|source| inet("connect to", host, port, source))
}

/// Listens on a TCP port of this host that no other reaches: nothing here asks a client who it is.
pub(super) fn listen_inet(host: &str, port: u16) -> Result<TcpListener, SocketError> {
    let failed = |source| inet("listen on", host, port, source);
    let found = (host, port).to_socket_addrs().map_err(failed)?;
    let (own, others): (Vec<_>, Vec<_>) = found.partition(|found| found.ip().is_loopback());
    if own.is_empty() && !others.is_empty() {
        let name = format!("tcp:{host}:{port}");
        return Err(SocketError::NotLoopback { name });
    }
    let bound = TcpListener::bind(own.as_slice()).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(failed)
}

fn inet(action: &'static str, host: &str, port: u16, source: io::Error) -> SocketError {
    SocketError::Other {
        action,
        name: format!("tcp:{host}:{port}"),
        source,
    }
}

/// A full backlog makes a blocking connect wait, hence the detour around the standard library.
fn connect_at_once(path: &Path) -> rustix::io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Removes the file at `path` if it is a socket that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::system("look at", path, error)),
    };
    let path_buf = path.to_owned();
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path_buf });
    }
    match connect_at_once(path) {
        // EAGAIN: the listener's backlog is full, so there is one.
        Ok(_) | Err(Errno::AGAIN) => Err(SocketError::Taken { path: path_buf }),
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "removing the socket of a process that is gone");
            fs::remove_file(path).map_err(|error| SocketError::system("replace", path, error))
        }
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(SocketError::system("probe", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_socket_is_left_alone_and_a_stale_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (listener, file) = listen(&path).unwrap();
        let taken = listen(&path).unwrap_err();
        assert!(matches!(taken, SocketError::Taken { .. }), "{taken}");
        assert!(taken.to_string().contains(path.to_str().unwrap()));
        connect(&path).unwrap();

        // A process that was killed leaves its file.
        std::mem::forget(file);
        drop(listener);
        assert!(path.exists());
        let (_listener, file) = listen(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn other_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        fs::write(&path, "precious").unwrap();
        let error = listen(&path).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let error = listen(&directory.path().join("no/s")).unwrap_err();
        assert!(error.to_string().contains("no/s"), "{error}");
    }

    #[test]
    fn a_file_that_was_replaced_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (_listener, file) = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let (_other_listener, _other_file) = listen(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }
}
