//! What a character device is once it is open.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, accept_with, sockopt};
use sluice_aio::current;
use thiserror::Error;

use super::inherit::Inherited;
use super::socket::{self, SocketError, SocketFile};
use super::{Backend, ChardevConfig, SocketAddress, SocketConfig, SocketEnd, Stream};

/// Why a character device cannot be had.
#[derive(Debug, Error)]
#[error("{option}: {source}")]
pub struct OpenError {
    /// The option that asked for it.
    option: &'static str,
    /// Why.
    source: SocketError,
}

/// An open character device.
#[derive(Debug)]
pub enum Endpoint {
    /// It leads nowhere.
    Null,
    /// Somebody is at the other end.
    Connected(Stream),
    /// Clients come and go.
    Listening(Listener),
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    descriptor: OwnedFd,
    file: Option<SocketFile>,
}

impl Listener {
    /// Gives the socket's file to whoever knows better than the listener's end when it is to be removed.
    pub fn take_file(&mut self) -> Option<SocketFile> {
        self.file.take()
    }

    /// Takes a client that waits; none while none does.
    ///
    /// # Errors
    /// The host's answer.
    pub fn accept(&self) -> io::Result<Option<Stream>> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            match accept_with(&self.descriptor, flags) {
                Ok(client) => {
                    if sockopt::socket_domain(&client) != Ok(AddressFamily::UNIX) {
                        // Answers are small, and somebody waits for each.
                        sockopt::set_tcp_nodelay(&client, true)?;
                    }
                    return Stream::socket(client).map(Some);
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Endpoint {
    /// Decides a socket's end that was left open.
    fn open(backend: &mut Backend, inherited: &mut Inherited) -> Result<Self, SocketError> {
        if let Backend::Socket(socket) = backend
            && socket.end == SocketEnd::Found
        {
            socket.end = SocketEnd::Server;
            if let SocketAddress::Unix(path) = &socket.address
                && let Some(stream) = socket::connect_if_alive(path)
            {
                let path = path.display();
                tracing::info!(%path, "somebody listens there already: connected to it");
                socket.end = SocketEnd::Client;
                return Self::connected(stream, backend);
            }
        }
        let backend = &*backend;
        let failed = |action| {
            move |source| SocketError::Other {
                action,
                name: backend.filename(true),
                source,
            }
        };
        Ok(match backend {
            Backend::Null => Self::Null,
            Backend::Stdio => Self::Connected(Stream::stdio().map_err(failed("use"))?),
            Backend::Socket(SocketConfig { address, end, .. }) => match address {
                SocketAddress::Unix(path) if *end == SocketEnd::Server => {
                    let (listener, file) = socket::listen(path)?;
                    Self::listening(listener, Some(file))
                }
                SocketAddress::Inet { host, port } if *end == SocketEnd::Server => {
                    Self::listening(socket::listen_inet(host, *port)?, None)
                }
                SocketAddress::Unix(path) => Self::connected(socket::connect(path)?, backend)?,
                SocketAddress::Inet { host, port } => {
                    Self::connected(socket::connect_inet(host, *port)?, backend)?
                }
                SocketAddress::Descriptor(number) => {
                    let used = inherited.remove(*number).and_then(Self::inherited);
                    used.map_err(failed("use"))?
                }
            },
        })
    }

    fn listening(listener: impl Into<OwnedFd>, file: Option<SocketFile>) -> Self {
        Self::Listening(Listener {
            descriptor: listener.into(),
            file,
        })
    }

    fn connected(socket: impl Into<OwnedFd>, backend: &Backend) -> Result<Self, SocketError> {
        let stream = Stream::socket(socket);
        let stream = stream.map_err(|source| SocketError::Other {
            action: "use",
            name: backend.filename(true),
            source,
        });
        stream.map(Self::Connected)
    }

    /// The socket itself tells whether it listens.
    fn inherited(descriptor: OwnedFd) -> io::Result<Self> {
        rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
        if sockopt::socket_acceptconn(&descriptor)? {
            rustix::io::ioctl_fionbio(&descriptor, true)?;
            return Ok(Self::listening(descriptor, None));
        }
        Stream::socket(descriptor).map(Self::Connected)
    }

    /// Waits until a client has come, where clients come at all. It is still to be accepted then.
    async fn first_client(&self) -> io::Result<()> {
        match self {
            Self::Listening(listener) => current::readable(listener).await,
            Self::Null | Self::Connected(_) => Ok(()),
        }
    }
}

/// All character devices of a process, until their users take them.
#[derive(Debug)]
pub struct Endpoints {
    open: BTreeMap<String, Endpoint>,
    opened: Vec<ChardevConfig>,
    /// Those that somebody has to connect to before the machine is built.
    awaited: Vec<String>,
}

impl Endpoints {
    /// Opens those of `chardevs`, in their order.
    ///
    /// # Errors
    /// [`OpenError`], which names the option and the address.
    pub fn open(chardevs: &[ChardevConfig], mut inherited: Inherited) -> Result<Self, OpenError> {
        let (mut open, mut awaited) = (BTreeMap::new(), Vec::new());
        let mut opened = chardevs.to_vec();
        for chardev in &mut opened {
            let option = chardev.option;
            let failed = |source| OpenError { option, source };
            let endpoint = Endpoint::open(&mut chardev.backend, &mut inherited).map_err(failed)?;
            if matches!(&chardev.backend, Backend::Socket(socket) if socket.end == SocketEnd::Server && socket.wait)
            {
                tracing::info!(chardev = %chardev.id, "waiting for a connection");
                awaited.push(chardev.id.clone());
            }
            open.insert(chardev.id.clone(), endpoint);
        }
        Ok(Self {
            open,
            opened,
            awaited,
        })
    }

    /// What was opened, in the order of the command line, each socket as the end that this process is.
    #[must_use]
    pub fn opened(&self) -> &[ChardevConfig] {
        &self.opened
    }

    /// Waits for the clients without whom the machine is not to be built, one after the other. In a task of
    /// the main context.
    pub async fn clients(&self) {
        for id in &self.awaited {
            if let Some(endpoint) = self.open.get(id)
                && let Err(error) = endpoint.first_client().await
            {
                tracing::warn!(%error, chardev = %id, "not waiting for a connection");
            }
        }
    }

    /// Gives the one of that name to its user.
    pub fn take(&mut self, id: &str) -> Option<Endpoint> {
        self.open.remove(id)
    }
}
