//! Handlers of file descriptors, external and internal, and waiting for readiness.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use sluice_aio::{FdHandler, Source, current};

use crate::support::{canary, consume, event_fd, event_loop, settle, signal, within};

#[test]
fn a_handler_is_called_when_its_descriptor_is_ready() {
    let mut event_loop = event_loop();
    let fd = event_fd();
    let calls = Rc::new(Cell::new(0));
    let (handler_fd, counter) = (fd.clone(), Rc::clone(&calls));
    let handler = within(&mut event_loop, move || {
        let read = handler_fd.clone();
        current::add_fd(&handler_fd, Source::Internal, move || {
            consume(&read);
            counter.set(counter.get() + 1);
        })
        .unwrap()
    });
    settle(&mut event_loop);
    assert_eq!(calls.get(), 0);
    signal(&fd);
    settle(&mut event_loop);
    assert_eq!(calls.get(), 1);
    drop(handler);
    signal(&fd);
    settle(&mut event_loop);
    assert_eq!(calls.get(), 1);
}

#[test]
fn external_handlers_keep_silent_while_the_gate_is_closed() {
    let mut event_loop = event_loop();
    let gate = event_loop.context().gate().clone();
    let fds = [event_fd(), event_fd()];
    let calls = Rc::new(RefCell::new(Vec::new()));
    let _handlers = {
        let (fds, calls, gate) = (fds.clone(), Rc::clone(&calls), gate.clone());
        within(&mut event_loop, move || {
            let [external, internal] = fds;
            [(external, Source::External), (internal, Source::Internal)].map(|(fd, source)| {
                let (read, calls, gate) = (fd.clone(), Rc::clone(&calls), gate.clone());
                current::add_fd(&fd, source, move || {
                    calls
                        .borrow_mut()
                        .push((source, consume(&read), gate.in_flight()));
                })
                .unwrap()
            })
        })
    };
    let section = gate.close("outer");
    for fd in &fds {
        signal(fd);
    }
    settle(&mut event_loop);
    assert_eq!(*calls.borrow(), [(Source::Internal, 1, 0)]);
    // A second kick in the section, and a second section that overlaps with the first.
    let second = gate.close("inner");
    drop(section);
    signal(&fds[0]);
    settle(&mut event_loop);
    assert_eq!(calls.borrow().len(), 1);
    drop(second);
    settle(&mut event_loop);
    assert_eq!(calls.borrow()[1..], [(Source::External, 2, 1)]);
    assert_eq!(gate.in_flight(), 0);
    // And it goes on as before.
    signal(&fds[0]);
    settle(&mut event_loop);
    assert_eq!(calls.borrow()[2..], [(Source::External, 1, 1)]);
}

#[test]
fn a_held_back_handler_does_not_spin_the_loop() {
    let mut event_loop = event_loop();
    let gate = event_loop.context().gate().clone();
    let fd = event_fd();
    let handler_fd = fd.clone();
    let _handler = within(&mut event_loop, move || {
        current::add_fd(&handler_fd, Source::External, || ()).unwrap()
    });
    let section = gate.close("test");
    signal(&fd);
    settle(&mut event_loop);
    assert!(!crate::nested::is_readable(&event_loop));
    drop(section);
    assert!(crate::nested::is_readable(&event_loop));
}

#[test]
fn a_handler_can_be_removed_while_it_is_held_back() {
    let mut event_loop = event_loop();
    let gate = event_loop.context().gate().clone();
    let fd = event_fd();
    let calls = Rc::new(Cell::new(0));
    let (handler_fd, counter) = (fd.clone(), Rc::clone(&calls));
    let handler = within(&mut event_loop, move || {
        current::add_fd(&handler_fd, Source::External, move || {
            counter.set(counter.get() + 1);
        })
        .unwrap()
    });
    let section = gate.close("test");
    signal(&fd);
    settle(&mut event_loop);
    drop(handler);
    drop(section);
    settle(&mut event_loop);
    assert_eq!(calls.get(), 0);
}

#[test]
fn a_handler_can_remove_itself() {
    let mut event_loop = event_loop();
    let fd = event_fd();
    signal(&fd);
    let calls = Rc::new(Cell::new(0));
    let counter = Rc::clone(&calls);
    within(&mut event_loop, move || {
        let own: Rc<RefCell<Option<FdHandler>>> = Rc::default();
        let inside = Rc::clone(&own);
        let handler = current::add_fd(&fd, Source::Internal, move || {
            counter.set(counter.get() + 1);
            drop(inside.borrow_mut().take());
        });
        *own.borrow_mut() = Some(handler.unwrap());
    });
    settle(&mut event_loop);
    assert_eq!(calls.get(), 1);
}

#[test]
fn removing_a_handler_that_owns_another_removes_both() {
    let mut event_loop = event_loop();
    let fds = [event_fd(), event_fd()];
    let (inside, outside) = canary();
    let [first, second] = fds.clone();
    let handler = within(&mut event_loop, move || {
        let inner = current::add_fd(&first, Source::Internal, move || {
            let _inside = &inside;
            panic!("removed already");
        })
        .unwrap();
        current::add_fd(&second, Source::Internal, move || {
            let _inner = &inner;
        })
        .unwrap()
    });
    drop(handler);
    assert!(outside.upgrade().is_none());
    signal(&fds[0]);
    settle(&mut event_loop);
}

/// Two handlers whose descriptors are ready at once: whichever is called removes the other, of which the
/// loop has heard already, and puts one of a descriptor that is not ready in its place.
#[test]
fn an_event_of_a_handler_that_is_gone_is_not_its_successors() {
    let mut event_loop = event_loop();
    let fds = [event_fd(), event_fd()];
    let quiet = event_fd();
    let calls = Rc::new(Cell::new(0));
    let handlers: Rc<RefCell<Vec<Option<FdHandler>>>> = Rc::default();
    for (index, fd) in fds.iter().enumerate() {
        let (fd, quiet) = (fd.clone(), quiet.clone());
        let (calls, inside) = (Rc::clone(&calls), Rc::clone(&handlers));
        let handler = within(&mut event_loop, move || {
            let read = fd.clone();
            current::add_fd(&fd, Source::Internal, move || {
                consume(&read);
                calls.set(calls.get() + 1);
                let other = inside.borrow_mut()[1 - index].take();
                drop(other);
                let called = || panic!("called for its predecessor");
                let successor = current::add_fd(&quiet, Source::Internal, called);
                inside.borrow_mut()[1 - index] = Some(successor.unwrap());
            })
            .unwrap()
        });
        handlers.borrow_mut().push(Some(handler));
    }
    fds.iter().for_each(|fd| signal(fd));
    let served = event_loop.context().stats().fd_dispatches;
    settle(&mut event_loop);
    assert_eq!(calls.get(), 1);
    assert_eq!(event_loop.context().stats().fd_dispatches, served + 1);
    handlers.borrow_mut().clear();
}

#[test]
fn a_refused_handler_that_owns_another_removes_that() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    let fd = event_fd();
    within(&mut event_loop, move || {
        let inner = current::add_fd(&fd, Source::Internal, move || {
            let _inside = &inside;
        });
        let inner = inner.unwrap();
        // A regular file can't be watched.
        let file = std::os::fd::OwnedFd::from(tempfile::tempfile().unwrap());
        let refused = current::add_fd(&file, Source::Internal, move || {
            let _inner = &inner;
        });
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::PermissionDenied
        );
    });
    assert!(outside.upgrade().is_none());
}

#[test]
fn a_panicking_handler_does_not_end_the_loop() {
    let mut event_loop = event_loop();
    let fd = event_fd();
    signal(&fd);
    let handler_fd = fd.clone();
    let _handler = within(&mut event_loop, move || {
        let read = handler_fd.clone();
        current::add_fd(&handler_fd, Source::External, move || {
            consume(&read);
            panic!("on purpose");
        })
        .unwrap()
    });
    settle(&mut event_loop);
    assert_eq!(event_loop.context().gate().in_flight(), 0);
    assert_eq!(within(&mut event_loop, || 7), 7);
}

#[test]
fn a_handler_that_panics_before_it_consumes_is_called_once() {
    let mut event_loop = event_loop();
    let fd = event_fd();
    signal(&fd);
    let calls = Rc::new(Cell::new(0));
    let counted = Rc::clone(&calls);
    let handler = event_loop.run_until({
        let fd = fd.clone();
        async move {
            current::add_fd(&fd, Source::External, move || {
                counted.set(counted.get() + 1);
                panic!("on purpose");
            })
            .unwrap()
        }
    });
    for _ in 0..50 {
        within(&mut event_loop, || ());
    }
    assert_eq!(calls.get(), 1);
    // Its owner may remove it as ever, and the descriptor can be watched by another.
    drop(handler);
    let heard = Rc::new(Cell::new(false));
    let flag = Rc::clone(&heard);
    let again = event_loop.run_until(async move {
        let read = fd.clone();
        current::add_fd(&fd, Source::External, move || {
            consume(&read);
            flag.set(true);
        })
        .unwrap()
    });
    settle(&mut event_loop);
    assert!(heard.get());
    drop(again);
}

#[test]
fn two_tasks_can_wait_for_the_same_descriptor() {
    let mut event_loop = event_loop();
    let (mut near, far) = UnixStream::pair().unwrap();
    event_loop
        .run_until(async move {
            let far = Rc::new(far);
            let waiters = [(); 2].map(|()| {
                let far = Rc::clone(&far);
                current::spawn_local(async move { current::readable(&*far).await })
            });
            current::yield_now().await;
            near.write_all(b"x").unwrap();
            for waiter in waiters {
                waiter.await.unwrap().unwrap();
            }
            let mut byte = [0];
            (&*far).read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"x");
        })
        .unwrap();
}

#[test]
fn a_full_socket_becomes_writable_when_it_is_read() {
    let mut event_loop = event_loop();
    let (near, mut far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    event_loop
        .run_until(async move {
            current::writable(&near).await.unwrap();
            let mut sent = 0;
            while let Ok(count) = (&near).write(&[0; 4096]) {
                sent += count;
            }
            let woken = Rc::new(Cell::new(false));
            let flag = Rc::clone(&woken);
            let waiter = current::spawn_local(async move {
                current::writable(&near).await.unwrap();
                flag.set(true);
            });
            for _ in 0..4 {
                current::yield_now().await;
            }
            assert!(!woken.get());
            far.read_exact(&mut vec![0; sent]).unwrap();
            waiter.await.unwrap();
        })
        .unwrap();
}

#[test]
fn the_other_end_going_away_wakes_a_reader() {
    let mut event_loop = event_loop();
    let (near, far) = UnixStream::pair().unwrap();
    event_loop
        .run_until(async move {
            let waiter = current::spawn_local(async move {
                current::readable(&far).await.unwrap();
                (&far).read(&mut [0]).unwrap()
            });
            current::yield_now().await;
            drop(near);
            assert_eq!(waiter.await, Ok(0));
        })
        .unwrap();
}

#[test]
fn what_cannot_be_watched_is_an_error() {
    let mut event_loop = event_loop();
    event_loop
        .run_until(async {
            let file = tempfile::tempfile().unwrap();
            let error = current::readable(&file).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        })
        .unwrap();
}

/// The same file under a descriptor of this number, which must be free, or become so.
fn with_number(file: std::io::PipeReader, number: i32) -> std::io::PipeReader {
    if file.as_raw_fd() == number {
        return file;
    }
    loop {
        // The lowest free number from there on.
        let copy = rustix::io::fcntl_dupfd_cloexec(&file, number).unwrap();
        if copy.as_raw_fd() == number {
            return copy.into();
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_descriptor_closed_behind_the_loop_and_used_again_confuses_nobody() {
    let mut event_loop = event_loop();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let number = reader.as_raw_fd();
    let calls = Rc::new(Cell::new(0));
    let counter = Rc::clone(&calls);
    let (handler, reader) = within(&mut event_loop, move || {
        let handler = current::add_fd(&reader, Source::Internal, move || {
            counter.set(counter.get() + 1);
        });
        (handler.unwrap(), reader)
    });
    drop(reader);
    // If some other test's thread was faster, it will close what it has opened there.
    let (other, mut other_writer) = std::io::pipe().unwrap();
    let other = with_number(other, number);
    other_writer.write_all(b"x").unwrap();
    settle(&mut event_loop);
    assert_eq!(calls.get(), 0, "called for somebody else's file");
    // The new file can be watched as well, and losing the old handler does it no harm.
    let new_calls = Rc::new(Cell::new(0));
    let counter = Rc::clone(&new_calls);
    let _new = within(&mut event_loop, move || {
        let read = other.try_clone().unwrap();
        current::add_fd(&other, Source::Internal, move || {
            counter.set(counter.get() + 1);
            assert_eq!((&read).read(&mut [0]).unwrap(), 1);
        })
        .unwrap()
    });
    settle(&mut event_loop);
    assert_eq!(new_calls.get(), 1);
    writer.write_all(b"x").unwrap();
    event_loop.turn(Some(std::time::Duration::ZERO)).unwrap();
    assert!(calls.get() > 0, "its own file is what it is called for");
    drop(handler);
    assert!(writer.write_all(b"x").is_err(), "now the file is closed");
    other_writer.write_all(b"x").unwrap();
    settle(&mut event_loop);
    assert_eq!(new_calls.get(), 2);
}

#[test]
fn a_descriptor_watched_twice_survives_a_closed_gate() {
    let mut event_loop = event_loop();
    let gate = event_loop.context().gate().clone();
    let fd = event_fd();
    let calls = Rc::new(RefCell::new(Vec::new()));
    let add = |name: &'static str, event_loop: &mut sluice_aio::EventLoop| {
        let (fd, calls) = (fd.clone(), Rc::clone(&calls));
        within(event_loop, move || {
            current::add_fd(&fd, Source::External, move || calls.borrow_mut().push(name)).unwrap()
        })
    };
    let _first = add("first", &mut event_loop);
    let section = gate.close("test");
    signal(&fd);
    settle(&mut event_loop);
    // Registered while the first is held back.
    let _second = add("second", &mut event_loop);
    settle(&mut event_loop);
    assert!(calls.borrow().is_empty());
    drop(section);
    settle(&mut event_loop);
    for name in ["first", "second"] {
        assert!(calls.borrow().contains(&name), "{name} was lost");
    }
}

#[test]
fn a_held_back_handler_whose_other_end_hangs_up_does_not_spin_the_loop() {
    let mut event_loop = event_loop();
    let gate = event_loop.context().gate().clone();
    let (near, far) = UnixStream::pair().unwrap();
    let _handler = within(&mut event_loop, move || {
        current::add_fd(&far, Source::External, || ()).unwrap()
    });
    let _section = gate.close("test");
    drop(near);
    settle(&mut event_loop);
    assert!(!crate::nested::is_readable(&event_loop));
}
