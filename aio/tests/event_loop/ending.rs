//! What becomes of a loop's work when the loop ends: nothing is lost silently, nothing leaks.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use futures_util::FutureExt as _;
use sluice_aio::{
    AioContext, Aside, Cancelled, EventLoop, FdHandler, IoBuffer, IoThread, LoopConfig, Source,
    current,
};

use crate::support::{ENGINES, canary, event_fd, event_loop, settle, thread_id, within};

/// Notes in which thread it is dropped.
struct Tomb(Arc<Mutex<Vec<u32>>>);

impl Drop for Tomb {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(thread_id());
    }
}

#[test]
fn sleeping_tasks_are_dropped_in_their_own_thread() {
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let tombs = Arc::new(Mutex::new(Vec::new()));
    let (sender, started) = mpsc::channel();
    for number in 0..4 {
        let (tomb, sender) = (Tomb(Arc::clone(&tombs)), sender.clone());
        thread.context().spawn(move || async move {
            let _tomb = tomb;
            sender.send(()).unwrap();
            match number {
                0 => std::future::pending().await,
                1 => current::sleep(std::time::Duration::MAX).await,
                2 => current::readable(&*event_fd()).await.unwrap(),
                _ => loop {
                    current::yield_now().await;
                },
            }
        });
        started.recv().unwrap();
    }
    let id = thread.thread_id();
    drop(thread);
    assert_eq!(*tombs.lock().unwrap(), [id; 4]);
}

#[test]
fn who_waits_for_a_task_of_an_ended_loop_is_told() {
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let context = thread.context().clone();
    let mut event_loop = event_loop();
    event_loop
        .run_until(async move {
            let (sender, started) = mpsc::channel();
            let running = context.call(move || async move {
                sender.send(()).unwrap();
                std::future::pending::<()>().await;
            });
            started.recv().unwrap();
            let gate = context.gate().clone();
            let section = gate.close("test");
            drop(thread);
            assert_eq!(running.await, Err(Cancelled));
            assert_eq!(context.call(|| async {}).await, Err(Cancelled));
            assert!(gate.enter().await.is_err());
            drop(section);
        })
        .unwrap();
}

#[test]
fn what_is_parked_at_the_gate_of_a_loop_that_ends_is_cancelled() {
    let event_loop = event_loop();
    let gate = event_loop.context().gate().clone();
    let section = gate.close("test");
    let mut parked = gate.enter();
    assert!((&mut parked).now_or_never().is_none());
    drop(event_loop);
    assert!(matches!(parked.now_or_never(), Some(Err(Cancelled))));
    drop(section);
    assert!(gate.try_enter().is_none());
}

#[test]
fn bottom_halves_of_an_ended_loop_are_dropped_unrun() {
    let event_loop = event_loop();
    let context = event_loop.context();
    let tombs = Arc::new(Mutex::new(Vec::new()));
    let queued = Tomb(Arc::clone(&tombs));
    context.schedule(move || panic!("ran with {}", queued.0.lock().unwrap().len()));
    drop(event_loop);
    assert_eq!(tombs.lock().unwrap().len(), 1);
    let late = Tomb(Arc::clone(&tombs));
    context.schedule(move || panic!("ran with {}", late.0.lock().unwrap().len()));
    assert_eq!(tombs.lock().unwrap().len(), 2);
    context.notify();
}

#[test]
fn a_waker_that_outlives_its_loop_is_harmless() {
    let mut event_loop = event_loop();
    let waker = event_loop
        .run_until(async {
            let slot = Rc::new(RefCell::new(None));
            let inside = Rc::clone(&slot);
            current::spawn_local(std::future::poll_fn(move |cx| {
                *inside.borrow_mut() = Some(cx.waker().clone());
                std::task::Poll::<()>::Pending
            }))
            .detach();
            current::yield_now().await;
            slot.take().unwrap()
        })
        .unwrap();
    drop(event_loop);
    let elsewhere = waker.clone();
    std::thread::spawn(move || elsewhere.wake()).join().unwrap();
    waker.wake();
}

/// Starts another task when it is dropped, a few times over.
struct Hydra(u32, Rc<()>);

impl Drop for Hydra {
    fn drop(&mut self) {
        if self.0 > 0 {
            let next = Hydra(self.0 - 1, Rc::clone(&self.1));
            current::spawn_local(async move {
                let _next = next;
                std::future::pending::<()>().await;
            })
            .detach();
        }
    }
}

#[test]
fn tasks_that_tasks_start_while_they_are_dropped_are_dropped_too() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    event_loop
        .run_until(async move {
            let hydra = Hydra(5, inside);
            current::spawn_local(async move {
                let _hydra = hydra;
                std::future::pending::<()>().await;
            })
            .detach();
        })
        .unwrap();
    settle(&mut event_loop);
    assert_eq!(outside.strong_count(), 1);
    drop(event_loop);
    assert_eq!(outside.strong_count(), 0);
}

#[test]
fn handlers_are_dropped_inside_their_loop() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    let handler = within(&mut event_loop, move || {
        let hydra = Hydra(3, inside);
        current::add_fd(&event_fd(), Source::External, move || {
            let _hydra = &hydra;
        })
    });
    drop(event_loop);
    assert_eq!(outside.strong_count(), 0);
    drop(handler);
}

#[test]
fn a_handler_that_owns_its_own_registration_is_dropped() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    event_loop
        .run_until(async move {
            let own: Rc<RefCell<Option<FdHandler>>> = Rc::default();
            let cycle = Rc::clone(&own);
            let handler = current::add_fd(&event_fd(), Source::External, move || {
                let _ = (&cycle, &inside);
            });
            *own.borrow_mut() = Some(handler.unwrap());
        })
        .unwrap();
    assert_eq!(outside.strong_count(), 1);
    drop(event_loop);
    assert_eq!(outside.strong_count(), 0);
}

#[test]
fn blocking_calls_that_wait_for_a_worker_are_made_before_the_loop_ends() {
    let config = LoopConfig {
        thread_pool_max: 1,
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("test", &config).unwrap();
    let made = Arc::new(AtomicUsize::new(0));
    let (go, wait) = mpsc::channel();
    let counter = Arc::clone(&made);
    event_loop
        .run_until(async move {
            drop(current::blocking(move || wait.recv().unwrap()));
            for _ in 0..10 {
                let counter = Arc::clone(&counter);
                drop(current::blocking(move || {
                    counter.fetch_add(1, Ordering::SeqCst);
                }));
            }
        })
        .unwrap();
    assert_eq!(
        made.load(Ordering::SeqCst),
        0,
        "there is one worker, and it waits"
    );
    go.send(()).unwrap();
    drop(event_loop);
    assert_eq!(made.load(Ordering::SeqCst), 10);
}

#[test]
fn a_blocking_call_that_waits_for_its_ended_loop_is_told() {
    let mut event_loop = event_loop();
    let context = event_loop.context();
    let (sender, told) = mpsc::channel();
    let (closing, ended) = mpsc::channel();
    event_loop
        .run_until(async move {
            drop(current::blocking(move || {
                // Sent when the loop drops its tasks.
                assert!(ended.recv().is_err());
                let mut answer = Box::pin(context.call(|| async {}));
                // The queue may still be open for a moment; an answer never comes either way.
                loop {
                    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                    match answer.as_mut().poll(&mut cx) {
                        std::task::Poll::Ready(result) => break sender.send(result).unwrap(),
                        std::task::Poll::Pending => std::thread::yield_now(),
                    }
                }
            }));
            current::spawn_local(async move {
                let _closing: mpsc::Sender<()> = closing;
                std::future::pending::<()>().await;
            })
            .detach();
        })
        .unwrap();
    drop(event_loop);
    assert_eq!(told.recv().unwrap(), Err(Cancelled));
}

#[test]
fn an_iothread_ends_in_the_middle_of_heavy_io() {
    const BLOCK: usize = 4096;
    const WRITERS: usize = 64;
    for engine in ENGINES {
        let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
        let file: Arc<Aside<File>> = Arc::new(tempfile::tempfile().unwrap().into());
        let (sender, receiver) = mpsc::channel();
        for number in 0..WRITERS {
            let (file, sender) = (Arc::clone(&file), sender.clone());
            thread.context().spawn(move || async move {
                let byte = u8::try_from(number).unwrap();
                let data = IoBuffer::copied_from(&[byte; BLOCK]);
                loop {
                    let offset = (number * BLOCK) as u64;
                    let write = current::write_at(engine, &file, offset, data.clone());
                    write.await.unwrap();
                    sender.send(number).unwrap();
                }
            });
        }
        for _ in 0..1000 {
            receiver.recv().unwrap();
        }
        drop(thread);
        // Whatever was acknowledged is there, whole.
        drop(sender);
        let mut block = vec![0; BLOCK];
        for number in receiver.iter() {
            file.read_exact_at(&mut block, (number * BLOCK) as u64)
                .unwrap();
            assert!(block.iter().all(|byte| usize::from(*byte) == number));
        }
        assert_eq!(Arc::strong_count(&file), 1, "an operation was leaked");
    }
}

/// Has something to ask of a loop when it is dropped.
struct Asking(AioContext, mpsc::Sender<()>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.schedule(|| panic!("the loop has ended"));
        self.1.send(()).unwrap();
    }
}

#[test]
fn what_an_ended_loop_refuses_may_ask_something_of_it() {
    let event_loop = event_loop();
    let context = event_loop.context();
    drop(event_loop);
    let (sender, dropped) = mpsc::channel();
    let asking = Asking(context.clone(), sender);
    context.schedule(move || drop(asking));
    dropped.try_recv().expect("dropped at once");
}

#[test]
fn bottom_halves_are_dropped_inside_their_loop() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    let half = within(&mut event_loop, move || {
        let hydra = Hydra(3, inside);
        let half = current::bottom_half(move || {
            let _hydra = &hydra;
        });
        half.schedule();
        half
    });
    drop(event_loop);
    assert_eq!(outside.strong_count(), 0);
    half.schedule();
    drop(half);
}

#[test]
fn what_dropped_work_registers_is_dropped_too() {
    let event_loop = event_loop();
    let (sender, dropped) = mpsc::channel();
    /// Makes a handler and a bottom half of itself when it is dropped.
    struct Phoenix(u32, mpsc::Sender<u32>);
    impl Drop for Phoenix {
        fn drop(&mut self) {
            self.1.send(self.0).unwrap();
            if self.0 > 0 {
                let next = Phoenix(self.0 - 1, self.1.clone());
                let handler = current::add_fd(&event_fd(), Source::Internal, move || {
                    let _next = &next;
                });
                std::mem::forget(handler);
            }
        }
    }
    let phoenix = Phoenix(3, sender);
    event_loop.context().schedule(move || drop(phoenix));
    drop(event_loop);
    assert_eq!(dropped.iter().collect::<Vec<_>>(), [3, 2, 1, 0]);
}

/// Ends only when it is let, as a thread does whose calls hang in the kernel.
struct Lasting(mpsc::Receiver<()>);

impl Drop for Lasting {
    fn drop(&mut self) {
        let _ = self.0.recv();
    }
}

thread_local! {
    static LASTING: RefCell<Option<Lasting>> = const { RefCell::new(None) };
}

#[test]
fn a_thread_whose_call_hangs_is_left_behind_with_it() {
    let config = LoopConfig::default();
    config.end_patience.shorten(std::time::Duration::ZERO);
    let thread = IoThread::spawn("io0", config).unwrap();
    let (lets_thread, thread_lasts) = mpsc::channel();
    let (lets_call, call_lasts) = mpsc::channel::<()>();
    let (began, begun) = mpsc::channel();
    thread.context().spawn(move || async move {
        LASTING.set(Some(Lasting(thread_lasts)));
        current::blocking(move || {
            began.send(()).unwrap();
            let _ = call_lasts.recv();
        })
        .await
        .unwrap();
    });
    begun.recv().unwrap();
    // Neither the call nor the thread has ended.
    drop(thread);
    drop((lets_call, lets_thread));
}
