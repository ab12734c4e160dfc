//! The end of a loop whose work panics while it is dropped, and of an iothread that its own task drops.

use std::cell::RefCell;
use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};

use sluice_aio::{Cancelled, EngineKind, IoBuffer, IoThread, LoopConfig, Source, current};

use crate::support::{ENGINES, event_fd, event_loop, has_ring, signal};

/// Tells of its drop, and panics.
struct Bomb(mpsc::Sender<&'static str>, &'static str);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.send(self.1).unwrap();
        panic!("on purpose");
    }
}

#[test]
fn destructors_that_panic_keep_nobody_else_from_ending() {
    let mut event_loop = event_loop();
    let (sender, dropped) = mpsc::channel();
    let (result, told) = mpsc::channel();
    let bomb = |name| Bomb(sender.clone(), name);
    let work = [(); 2].map(|()| (bomb("handler"), bomb("bottom half"), bomb("task")));
    let calls = [(); 2].map(|()| bomb("call"));
    let kept = event_loop
        .run_until(async move {
            // Made to its end while the engines come to rest, and that is when all else is gone.
            drop(current::blocking(move || {
                let mut names: Vec<_> = dropped.iter().collect();
                names.sort_unstable();
                result.send(names).unwrap();
            }));
            work.map(|(handler, half, task)| {
                current::spawn_local(async move {
                    let _task = task;
                    std::future::pending::<()>().await;
                })
                .detach();
                let handler = current::add_fd(&event_fd(), Source::Internal, move || {
                    let _handler = &handler;
                });
                let half = current::bottom_half(move || {
                    let _half = &half;
                });
                (handler.unwrap(), half)
            })
        })
        .unwrap();
    for call in calls {
        event_loop.context().schedule(move || drop(call));
    }
    drop(sender);
    drop(event_loop);
    let names = told.try_recv().unwrap();
    let expected = ["bottom half", "call", "handler", "task"];
    assert_eq!(names, expected.map(|name| [name; 2]).concat());
    drop(kept);
}

/// Holds a bomb for as long as somebody might be woken by it.
struct Fuse {
    _bomb: Mutex<Bomb>,
}

impl Wake for Fuse {
    fn wake(self: Arc<Self>) {}
}

/// Who waits for operations that the end cancels is forgotten then, one by one.
#[test]
fn wakers_that_panic_keep_no_engine_from_coming_to_rest() {
    let (sender, dropped) = mpsc::channel();
    for engine in ENGINES {
        let mut event_loop = event_loop();
        // Never readable: the reads end with the loop.
        let (reader, writer) = std::io::pipe().unwrap();
        let file = Arc::new(File::from(OwnedFd::from(reader)).into());
        let bombs = ["first", "second"].map(|name| Bomb(sender.clone(), name));
        let kept = event_loop
            .run_until(async move {
                bombs.map(|bomb| {
                    let _bomb = Mutex::new(bomb);
                    let waker = Waker::from(Arc::new(Fuse { _bomb }));
                    let file = Arc::clone(&file);
                    let mut read = Box::pin(async move {
                        current::read_at(engine, &file, 0, IoBuffer::alloc(1)).await
                    });
                    let polled = read.as_mut().poll(&mut Context::from_waker(&waker));
                    assert!(polled.is_pending());
                    read
                })
            })
            .unwrap();
        if engine == EngineKind::Threads {
            // A plain read of a pipe can't be cancelled; its end comes with the other end's.
            drop(writer);
            drop(event_loop);
        } else {
            drop(event_loop);
            drop(writer);
        }
        let mut names: Vec<_> = dropped.try_iter().collect();
        names.sort_unstable();
        assert_eq!(names, ["first", "second"], "{engine:?}");
        drop(kept);
    }
}

/// What a callback holds is dropped with it, when it removes itself as well.
#[test]
fn what_is_dropped_with_a_callback_that_removes_itself_may_panic() {
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let (sender, dropped) = mpsc::channel();
    let half = Bomb(sender.clone(), "bottom half");
    let handler = Bomb(sender.clone(), "handler");
    let broken = Bomb(sender, "broken handler");
    thread.context().spawn(move || async move {
        let slot = Rc::new(RefCell::new(None));
        let own = Rc::clone(&slot);
        let made = current::bottom_half(move || {
            let _half = &half;
            own.take();
        });
        made.schedule();
        *slot.borrow_mut() = Some(made);
        let slot = Rc::new(RefCell::new(None));
        let own = Rc::clone(&slot);
        let fd = event_fd();
        signal(&fd);
        let made = current::add_fd(&fd, Source::Internal, move || {
            let _handler = &handler;
            own.take();
        });
        *slot.borrow_mut() = Some(made.unwrap());
        let made = current::add_fd(&fd, Source::Internal, move || {
            let _broken = &broken;
            panic!("on purpose");
        });
        std::mem::forget(made.unwrap());
    });
    let mut names: Vec<_> = (0..3).map(|_| dropped.recv().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["bottom half", "broken handler", "handler"]);
    // The loop is none the worse.
    let (sender, receiver) = mpsc::channel();
    thread.context().schedule(move || sender.send(7).unwrap());
    assert_eq!(receiver.recv(), Ok(7));
}

/// Who waits in another loop for what this one does, and whoever waits at its gate or for its tasks, may
/// panic when told of the end: the end goes on, and nobody else is forgotten.
#[test]
fn the_end_of_a_loop_tells_everybody_though_one_panics() {
    for trapped in ["task", "gate", "nobody"] {
        let mut event_loop = event_loop();
        let context = event_loop.context();
        let gate = context.gate().clone();
        let section = gate.close("test");
        let told = Arc::new(Told::default());
        let waker = Waker::from(Arc::clone(&told));
        let trap = Waker::from(Arc::new(Trap));
        let (sender, dropped) = mpsc::channel();
        let (reader, _writer) = std::io::pipe().unwrap();
        let ring = has_ring();
        let kept = event_loop
            .run_until(async move {
                let mut waits: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
                let task = current::spawn_local(std::future::pending::<()>());
                waits.push(Box::pin(
                    async move { assert_eq!(task.await, Err(Cancelled)) },
                ));
                waits.push(Box::pin(async move { drop(gate.enter().await) }));
                let watched = current::readable(&reader);
                waits.push(Box::pin(async move { drop(watched.await) }));
                let file = Arc::new(File::from(OwnedFd::from(reader)).into());
                waits.push(Box::pin(async move {
                    if ring {
                        let engine = EngineKind::IoUring;
                        drop(current::read_at(engine, &file, 0, IoBuffer::alloc(1)).await);
                    } else {
                        std::future::pending::<()>().await;
                    }
                }));
                for (at, wait) in waits.iter_mut().enumerate() {
                    let traps = ["task", "gate"].get(at) == Some(&trapped);
                    let waker = if traps { &trap } else { &waker };
                    assert!(
                        wait.as_mut()
                            .poll(&mut Context::from_waker(waker))
                            .is_pending()
                    );
                }
                current::spawn_local(async move {
                    let _task = Canary(sender);
                    std::future::pending::<()>().await;
                })
                .detach();
                waits
            })
            .unwrap();
        drop(event_loop);
        let expected = usize::from(ring) + 3 - usize::from(trapped != "nobody");
        assert_eq!(told.0.load(Ordering::SeqCst), expected, "{trapped}");
        assert!(dropped.recv().is_ok(), "{trapped}: the tasks went with it");
        // Nothing is taken any more.
        let (sender, refused) = mpsc::channel::<()>();
        context.schedule(move || drop(sender));
        assert!(refused.recv().is_err());
        drop((kept, section));
    }
}

/// Tells of its drop.
struct Canary(mpsc::Sender<()>);

impl Drop for Canary {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Told(AtomicUsize);

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Panics when it is woken.
struct Trap;

impl Wake for Trap {
    fn wake(self: Arc<Self>) {
        panic!("on purpose");
    }
}

/// Who waits for operations may be anything: one that panics keeps no other from its result.
#[test]
fn a_waker_that_panics_keeps_no_other_from_being_woken() {
    for engine in ENGINES {
        let mut event_loop = event_loop();
        let file = Arc::new(tempfile::tempfile().unwrap().into());
        let results = event_loop
            .run_until(async move {
                let read = || {
                    let file = Arc::clone(&file);
                    Box::pin(
                        async move { current::read_at(engine, &file, 0, IoBuffer::alloc(1)).await },
                    )
                };
                let trap = Waker::from(Arc::new(Trap));
                let mut trapped = [(); 3].map(|()| read());
                for trapped in &mut trapped {
                    let polled = trapped.as_mut().poll(&mut Context::from_waker(&trap));
                    assert!(polled.is_pending());
                }
                let healthy = read().await;
                // Later than those before it, which have ended as well.
                let again = read().await;
                (healthy, again, trapped)
            })
            .unwrap();
        assert_eq!(results.0.unwrap(), 0, "{engine:?}");
        assert_eq!(results.1.unwrap(), 0, "{engine:?}");
    }
}

#[test]
fn an_iothread_that_its_own_task_drops_ends_alone() {
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let context = thread.context().clone();
    let (sender, receiver) = mpsc::channel();
    let (closing, ended) = mpsc::channel::<()>();
    context.spawn(move || async move {
        let _closing = closing;
        std::future::pending::<()>().await;
    });
    context.schedule(move || {
        drop(thread);
        // Not if the drop panics.
        sender.send(()).unwrap();
    });
    assert_eq!(receiver.recv(), Ok(()));
    assert!(ended.recv().is_err(), "the task went with its loop");
}
