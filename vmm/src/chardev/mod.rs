//! Character devices: the byte streams of monitors and of the qtest protocol, as `--chardev` and its short
//! forms describe them.
//!
//! ```text
//!  ChardevConfig ──► Endpoint ──► Stream: Input, Output ──► monitor, qtest
//!                    connected, or listening for clients
//! ```
//!
//! [`Endpoints::open`] makes all of them before anything else of the machine exists, so that whoever
//! waits at the other end sees a connection also when the machine can't be built. Streams are used in
//! tasks of the main context.

mod endpoint;
mod inherit;
mod registry;
mod socket;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

pub use endpoint::{Endpoint, Endpoints, Listener, OpenError};
pub use inherit::{InheritError, Inherited};
pub use registry::{Attachment, ChardevInfo, Chardevs};
pub use socket::{SocketError, SocketFile};
pub use stream::{Input, Output, Stream};

/// A character device as the user asked for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ChardevConfig {
    /// The option that asks for it, for what is said of it.
    pub option: &'static str,
    /// Its name, by which monitors refer to it.
    pub id: String,
    /// Where it leads.
    pub backend: Backend,
}

/// Where a character device leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Backend {
    /// Nowhere: nothing ever comes, and what is sent is lost.
    Null,
    /// Standard input and output.
    Stdio,
    /// A stream socket.
    Socket(SocketConfig),
}

/// `--chardev socket,…`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SocketConfig {
    /// Its address.
    pub address: SocketAddress,
    /// Which end of it this process is.
    pub end: SocketEnd,
    /// A machine whose socket listens is not built before somebody has connected.
    pub wait: bool,
}

/// Which end of a socket's connections a process is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SocketEnd {
    /// It listens.
    Server,
    /// It connects to whoever listens, once.
    Client,
    /// What the user has left open: a client if somebody listens on the Unix socket already, as a program may
    /// that was told to start a machine; otherwise a server. [`Endpoints::open`] decides.
    Found,
}

/// Where a socket is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SocketAddress {
    /// A Unix socket's file.
    Unix(PathBuf),
    /// TCP.
    Inet {
        /// An address of this host, or its name.
        host: String,
        /// The port; 0, if it listens, is any that is free.
        port: u16,
    },
    /// A descriptor that this process was started with.
    Descriptor(RawFd),
}

impl fmt::Display for SocketAddress {
    /// QEMU's notation.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inet { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Descriptor(number) => write!(f, "fd:{number}"),
        }
    }
}

impl Backend {
    /// What `query-chardev` calls it; `connected`: somebody is at the other end.
    #[must_use]
    pub fn filename(&self, connected: bool) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Stdio => "stdio".to_owned(),
            Self::Socket(socket) => {
                let state = if connected { "" } else { "disconnected:" };
                let server = match socket.end {
                    SocketEnd::Server => ",server=on",
                    SocketEnd::Client | SocketEnd::Found => "",
                };
                format!("{state}{}{server}", socket.address)
            }
        }
    }
}
