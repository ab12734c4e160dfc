//! Streams and listeners over real sockets, in an event loop.

use std::io::{IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use sluice_aio::{EventLoop, LoopConfig};

use super::*;

fn run(test: impl Future<Output = ()> + 'static) {
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    event_loop.run_until(test).unwrap();
}

fn socket(address: SocketAddress, server: bool) -> ChardevConfig {
    let end = match server {
        true => SocketEnd::Server,
        false => SocketEnd::Client,
    };
    socket_end(address, end)
}

fn socket_end(address: SocketAddress, end: SocketEnd) -> ChardevConfig {
    ChardevConfig {
        option: "--chardev",
        id: "c".to_owned(),
        backend: Backend::Socket(SocketConfig {
            address,
            end,
            wait: end == SocketEnd::Server,
        }),
    }
}

fn open(config: ChardevConfig) -> Endpoint {
    let mut endpoints = Endpoints::open(&[config], Inherited::default()).unwrap();
    endpoints.take("c").unwrap()
}

#[test]
fn descriptors_come_with_the_bytes_that_they_were_sent_with() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let sent = tempfile::tempfile().unwrap();
    (&sent).write_all(b"inside").unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let descriptors = [sent.as_fd()];
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
    let flags = rustix::net::SendFlags::empty();
    rustix::net::sendmsg(&theirs, &[IoSlice::new(b"x")], &mut control, flags).unwrap();
    drop(sent);
    run(async move {
        let stream = Stream::socket(ours).unwrap();
        let (mut buffer, mut descriptors) = ([0; 8], Vec::new());
        let count = stream.input.read(&mut buffer, &mut descriptors).await;
        assert_eq!((count.unwrap(), descriptors.len()), (1, 1));
        let mut file = std::fs::File::from(descriptors.remove(0).try_clone().unwrap());
        std::io::Seek::rewind(&mut file).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        drop(theirs);
        let count = stream.input.read(&mut buffer, &mut descriptors).await;
        assert_eq!((count.unwrap(), descriptors.len()), (0, 0));
    });
}

#[test]
fn what_is_larger_than_the_sockets_buffer_is_written_as_it_is_read() {
    const LENGTH: usize = 4 << 20;
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).unwrap();
        bytes
    });
    run(async move {
        let stream = Stream::socket(ours).unwrap();
        stream.output.write_all(&vec![0x5a; LENGTH]).await.unwrap();
        stream.output.close();
    });
    assert_eq!(reader.join().unwrap(), vec![0x5a; LENGTH]);
}

#[test]
fn clients_without_whom_nothing_is_built_are_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let config = socket(SocketAddress::Unix(path.clone()), true);
    run(async move {
        let mut endpoints = Endpoints::open(&[config], Inherited::default()).unwrap();
        {
            let mut clients = std::pin::pin!(endpoints.clients());
            for _ in 0..10 {
                assert!(futures_util::poll!(clients.as_mut()).is_pending());
                sluice_aio::current::yield_now().await;
            }
            let _client = UnixStream::connect(&path).unwrap();
            clients.await;
        }
        let Endpoint::Listening(listener) = endpoints.take("c").unwrap() else {
            panic!("it listens");
        };
        assert!(listener.accept().unwrap().is_some());
        assert!(listener.accept().unwrap().is_none());
        drop(listener);
        assert!(!path.exists(), "its file goes with it");
    });
}

#[test]
fn tcp_is_served_on_this_host() {
    let host = "127.0.0.1".to_owned();
    let free = std::net::TcpListener::bind((host.as_str(), 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let address = SocketAddress::Inet { host, port };
    run(async move {
        let Endpoint::Listening(listener) = open(socket(address.clone(), true)) else {
            panic!("it listens");
        };
        let Endpoint::Connected(client) = open(socket(address, false)) else {
            panic!("it is connected");
        };
        sluice_aio::current::readable(&listener).await.unwrap();
        let server = listener.accept().unwrap().unwrap();
        server.output.write_all(b"hello").await.unwrap();
        let (mut buffer, mut descriptors) = ([0; 8], Vec::new());
        let count = client.input.read(&mut buffer, &mut descriptors).await;
        assert_eq!(&buffer[..count.unwrap()], b"hello");
    });
}

#[test]
fn no_other_host_reaches_a_monitor() {
    for host in ["0.0.0.0", "::", "192.0.2.1"] {
        let host = host.to_owned();
        let outside = socket(SocketAddress::Inet { host, port: 0 }, true);
        let error = Endpoints::open(&[outside], Inherited::default()).unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("tcp:") && said.contains("127.0.0.1"),
            "{said}"
        );
    }
}

#[test]
fn an_end_that_was_left_open_is_a_client_of_who_listens_and_else_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let config = || socket_end(SocketAddress::Unix(path.clone()), SocketEnd::Found);
    let open = || {
        let mut endpoints = Endpoints::open(&[config()], Inherited::default()).unwrap();
        let user = Chardevs::new(endpoints.opened());
        let _client = user.attach("c").client();
        let filename = user.list().remove(0).filename;
        (endpoints.take("c").unwrap(), filename)
    };
    let name = format!("unix:{}", path.display());
    let as_server = format!("{name},server=on");

    // Nobody is there, and then somebody is, whose file stays when the client goes.
    let (first, filename) = open();
    assert!(matches!(first, Endpoint::Listening(_)), "{first:?}");
    assert_eq!(filename, as_server);
    let (second, filename) = open();
    assert!(matches!(second, Endpoint::Connected(_)), "{second:?}");
    assert_eq!(filename, name);
    drop(second);
    assert!(path.exists());
    let Endpoint::Listening(mut first) = first else {
        panic!("it listens");
    };
    assert!(first.accept().unwrap().is_some());

    // A process that was killed leaves its file.
    std::mem::forget(first.take_file());
    drop(first);
    assert!(path.exists());
    let (third, filename) = open();
    assert!(matches!(third, Endpoint::Listening(_)), "{third:?}");
    assert_eq!(filename, as_server);
    drop(third);

    std::fs::write(&path, "precious").unwrap();
    let error = Endpoints::open(&[config()], Inherited::default()).unwrap_err();
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn what_can_not_be_had_is_named() {
    let nobody = socket(SocketAddress::Unix("/nonexistent/s".into()), false);
    let error = Endpoints::open(&[nobody], Inherited::default()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/s"), "{error}");
    let host = "127.0.0.1".to_owned();
    let closed = socket(SocketAddress::Inet { host, port: 1 }, false);
    let error = Endpoints::open(&[closed], Inherited::default()).unwrap_err();
    assert!(error.to_string().contains("tcp:127.0.0.1:1"), "{error}");
    for number in [2, 1_000_000] {
        let inherited = socket(SocketAddress::Descriptor(number), false);
        let error = Inherited::take(&[inherited]).unwrap_err();
        assert!(error.to_string().contains(&number.to_string()), "{error}");
    }
}

#[test]
fn the_registry_counts_users_and_clients() {
    let chardevs = Chardevs::new(&[socket(SocketAddress::Unix("/s".into()), true)]);
    let seen = || {
        let info = chardevs.list().remove(0);
        (info.frontend_open, info.filename)
    };
    assert_eq!(seen(), (false, "disconnected:unix:/s,server=on".to_owned()));
    let user = chardevs.attach("c");
    let client = user.client();
    assert_eq!(seen(), (true, "unix:/s,server=on".to_owned()));
    drop(client);
    assert_eq!(seen(), (true, "disconnected:unix:/s,server=on".to_owned()));
    drop(user);
    assert!(!seen().0);
}
