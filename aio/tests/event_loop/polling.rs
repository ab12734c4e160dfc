//! Adaptive polling, and the counters that show it. Nothing here asserts how long anything takes.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;

use sluice_aio::{
    Aside, Cause, Clock, EngineKind, EventLoop, IoBuffer, IoThread, LoopConfig, Polling, Source,
    current,
};

use crate::support::{
    ENDLESS, consume, event_fd, event_loop, has_ring, settle, signal, until_asleep, within,
};

fn polling_thread() -> IoThread {
    let config = LoopConfig {
        polling: ENDLESS,
        ..LoopConfig::default()
    };
    IoThread::spawn("io0", config).unwrap()
}

/// Gives the loop one thing to do, and waits until it is done.
fn prod(thread: &IoThread) {
    let (sender, receiver) = mpsc::channel();
    thread.context().schedule(move || sender.send(()).unwrap());
    receiver.recv().unwrap();
}

/// Gives the loop work until it polls rather than sleeps.
fn until_it_polls(thread: &IoThread) {
    while thread.context().stats().polls_hit < 3 {
        prod(thread);
    }
}

#[test]
fn a_loop_that_polls_finds_what_other_threads_send() {
    let thread = polling_thread();
    until_it_polls(&thread);
    let before = thread.context().stats();
    for _ in 0..100 {
        prod(&thread);
    }
    let after = thread.context().stats();
    assert!(after.poll_time > Duration::ZERO);
    assert_eq!(after.wakes, before.wakes, "nobody had to ring");
    assert_eq!(after.sleeps, before.sleeps, "and it did not sleep");
}

#[test]
fn a_loop_that_polls_finds_completions() {
    if !has_ring() {
        return;
    }
    let thread = polling_thread();
    until_it_polls(&thread);
    let mut main = event_loop();
    let context = thread.context().clone();
    let file: Arc<Aside<File>> = Arc::new(tempfile::tempfile().unwrap().into());
    let before = thread.context().stats();
    main.run_until(async move {
        let done = context.call(move || async move {
            for round in 0..100 {
                let data = IoBuffer::copied_from(&[7; 512]);
                current::write_at(EngineKind::IoUring, &file, round * 512, data)
                    .await
                    .unwrap();
            }
        });
        done.await.unwrap();
    })
    .unwrap();
    let after = thread.context().stats();
    assert_eq!(after.operations - before.operations, 100);
    assert_eq!(after.sleeps, before.sleeps);
}

#[test]
fn a_handler_with_a_look_is_called_without_its_descriptor() {
    let thread = polling_thread();
    let work = Arc::new(AtomicBool::new(false));
    let looks = Arc::new(AtomicUsize::new(0));
    let finds = Arc::new(AtomicUsize::new(0));
    let (sender, receiver) = mpsc::channel();
    let (there, counter) = (Arc::clone(&work), Arc::clone(&looks));
    let found = Arc::clone(&finds);
    let fd = event_fd();
    let watched = Arc::clone(&fd);
    thread.context().spawn(move || async move {
        let taken = Arc::clone(&there);
        let look = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            let there = there.load(Ordering::Acquire);
            found.fetch_add(usize::from(there), Ordering::Release);
            there
        };
        let handler = current::add_fd_with_look(&watched, Source::External, look, move |cause| {
            taken.store(false, Ordering::Release);
            sender.send(cause).unwrap();
        });
        let _handler = handler.unwrap();
        std::future::pending::<()>().await;
    });
    until_it_polls(&thread);
    work.store(true, Ordering::Release);
    assert_eq!(receiver.recv().unwrap(), Cause::Looked);
    assert!(looks.load(Ordering::Relaxed) > 0);
    assert!(!work.load(Ordering::Acquire));

    // Held back by the gate it is neither called nor asked any more, once it has been found to be.
    let section = thread.context().gate().close("test");
    let before = finds.load(Ordering::Acquire);
    work.store(true, Ordering::Release);
    while finds.load(Ordering::Acquire) == before {
        // No work until then: a loop that always has some need not look.
        std::thread::yield_now();
    }
    prod(&thread);
    let asked = looks.load(Ordering::Relaxed);
    for _ in 0..10 {
        prod(&thread);
    }
    assert_eq!(looks.load(Ordering::Relaxed), asked);
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    drop(section);
    assert_eq!(receiver.recv().unwrap(), Cause::Looked);

    // Without polling its descriptor is all it has.
    thread.context().set_polling(&Polling::OFF);
    assert_eq!(thread.context().polling(), Polling::OFF);
    prod(&thread);
    prod(&thread);
    signal(&fd);
    assert_eq!(receiver.recv().unwrap(), Cause::Readable);
}

/// What counts is how long work is in coming, and not how long it takes.
#[test]
fn handlers_that_take_long_do_not_shut_the_window() {
    const WINDOW: Duration = Duration::from_millis(200);
    let polling = Polling {
        max: WINDOW,
        grow: 1 << 40,
        shrink: 0,
    };
    let config = LoopConfig {
        polling,
        ..LoopConfig::default()
    };
    let thread = IoThread::spawn("io0", config).unwrap();
    let (sender, receiver) = mpsc::channel();
    let fd = event_fd();
    let watched = Arc::clone(&fd);
    thread.context().spawn(move || async move {
        let taken = Arc::clone(&watched);
        let handler = current::add_fd(&watched, Source::External, move || {
            consume(&taken);
            // Longer than the window.
            std::thread::sleep(WINDOW + WINDOW / 4);
            sender.send(()).unwrap();
        });
        let _handler = handler.unwrap();
        std::future::pending::<()>().await;
    });
    for _ in 0..6 {
        // At once when the loop has nothing to do.
        signal(&fd);
        receiver.recv().unwrap();
    }
    let stats = thread.context().stats();
    assert!(stats.polls_hit > 0, "{stats:?}");
}

#[test]
fn a_descriptor_that_nobody_can_look_at_is_served_within_an_endless_window() {
    let thread = polling_thread();
    let (sender, receiver) = mpsc::channel();
    let fd = event_fd();
    let watched = Arc::clone(&fd);
    thread.context().spawn(move || async move {
        let taken = Arc::clone(&watched);
        let handler = current::add_fd(&watched, Source::External, move || {
            sender.send(consume(&taken)).unwrap();
        });
        let _handler = handler.unwrap();
        std::future::pending::<()>().await;
    });
    until_it_polls(&thread);
    let before = thread.context().stats();
    for _ in 0..10 {
        signal(&fd);
        assert_eq!(receiver.recv().unwrap(), 1);
    }
    assert_eq!(thread.context().stats().sleeps, before.sleeps);
}

#[test]
fn a_look_that_panics_is_asked_once_and_hides_no_other() {
    let thread = polling_thread();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let work = Arc::new(AtomicBool::new(false));
    let there = Arc::clone(&work);
    let (sender, receiver) = mpsc::channel();
    let (refused, panicked) = mpsc::channel::<()>();
    thread.context().spawn(move || async move {
        let broken = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            panic!("on purpose")
        };
        let _broken = current::add_fd_with_look(&event_fd(), Source::Internal, broken, move |_| {
            // Owned by the handler: gone when that is.
            let _ = refused.send(());
        });
        let taken = Arc::clone(&there);
        let look = move || there.load(Ordering::Acquire);
        let healthy = move |cause| {
            taken.store(false, Ordering::Release);
            sender.send(cause).unwrap();
        };
        let _healthy = current::add_fd_with_look(&event_fd(), Source::Internal, look, healthy);
        std::future::pending::<()>().await;
    });
    until_it_polls(&thread);
    for _ in 0..10 {
        work.store(true, Ordering::Release);
        assert_eq!(receiver.recv().unwrap(), Cause::Looked);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert!(panicked.recv().is_err(), "the handler is dropped uncalled");
}

#[test]
fn a_loop_that_does_not_poll_never_looks() {
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let (sender, receiver) = mpsc::channel();
    thread.context().spawn(move || async move {
        let look = || -> bool { panic!("asked") };
        let fd = event_fd();
        signal(&fd);
        let handler = current::add_fd_with_look(&fd, Source::Internal, look, move |cause| {
            // More than once: nobody reads the descriptor.
            let _ = sender.send(cause);
        });
        let _handler = handler.unwrap();
        std::future::pending::<()>().await;
    });
    assert_eq!(receiver.recv().unwrap(), Cause::Readable);
    for _ in 0..10 {
        prod(&thread);
    }
    let stats = thread.context().stats();
    assert_eq!((stats.polls_hit, stats.polls_missed), (0, 0));
    assert_eq!(stats.poll_time, Duration::ZERO);
}

#[test]
fn a_loop_whose_clock_stands_still_does_not_poll() {
    let config = LoopConfig {
        clock: Clock::manual(),
        polling: ENDLESS,
        ..LoopConfig::default()
    };
    let thread = IoThread::spawn("io0", config).unwrap();
    for _ in 0..10 {
        prod(&thread);
    }
    assert_eq!(thread.context().stats().polls_hit, 0);
}

#[test]
fn a_timer_ends_a_window() {
    let thread = polling_thread();
    until_it_polls(&thread);
    let before = thread.context().stats();
    let (sender, receiver) = mpsc::channel();
    thread.context().spawn(move || async move {
        current::sleep(Duration::from_millis(1)).await;
        // Still in the step that the timer has woken.
        let stats = current::context().stats();
        sender.send(stats).unwrap();
    });
    // Nothing else would end a window that is open for ever.
    let after = receiver.recv().unwrap();
    assert_eq!(after.timers - before.timers, 1);
    assert_eq!(after.wakes, before.wakes, "nobody has rung");
}

#[test]
fn what_the_loop_does_is_counted() {
    let mut event_loop = event_loop();
    let context = event_loop.context();
    let before = context.stats();
    let fd = event_fd();
    let _handlers = within(&mut event_loop, move || {
        let half = current::bottom_half(|| ());
        half.schedule();
        let fds = [(); 3].map(|()| {
            signal(&fd);
            current::add_fd(&fd, Source::Internal, || ()).unwrap()
        });
        current::spawn_local(current::sleep(Duration::ZERO)).detach();
        (half, fds)
    });
    settle(&mut event_loop);
    let elsewhere = context.clone();
    std::thread::spawn(move || elsewhere.schedule(|| ()))
        .join()
        .unwrap();
    settle(&mut event_loop);
    let after = context.stats();
    assert!(after.turns > before.turns);
    assert!(after.tasks >= 2);
    assert_eq!(after.bottom_halves, 2);
    assert!(after.remote >= 2);
    assert!(after.fd_dispatches >= 3);
    assert_eq!(after.timers, 1);
    assert!(after.wakes > before.wakes);
}

#[test]
fn who_looks_at_the_figures_stops_no_loop_and_waits_for_none() {
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let context = thread.context();
    until_asleep(thread.thread_id());
    let asleep = context.stats();
    assert!(asleep.sleeps > 0);
    let look = || (context.stats(), context.gate().stats());
    look();
    let (began, begun) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    context.schedule(move || {
        began.send(()).unwrap();
        wait.recv().unwrap();
    });
    begun.recv().unwrap();
    // The loop is in the middle of a turn, which does not end before this.
    let (held, gate) = look();
    assert_eq!(held.wakes, asleep.wakes + 1, "somebody else has woken it");
    assert_eq!(held.bottom_halves, asleep.bottom_halves + 1);
    assert_eq!(gate.in_flight, 0);
    go.send(()).unwrap();
}

#[test]
fn a_bell_that_the_loop_rings_itself_wakes_nobody() {
    let mut event_loop = event_loop();
    let context = event_loop.context();
    let busy = within(&mut event_loop, || {
        current::spawn_local(async {
            loop {
                current::yield_now().await;
            }
        })
    });
    settle(&mut event_loop);
    assert_eq!(context.stats().wakes, 0);
    busy.cancel();
    settle(&mut event_loop);
    // Nobody drives it now: who has work for it must ring, the first time.
    context.notify();
    context.notify();
    assert_eq!(context.stats().wakes, 1);
}

/// The sizes of the batches in which five writes, prepared in one step, reach the kernel: of a loop
/// that is made with one limit and given another before it works.
fn batches(made_with: u64, max_batch: u64) -> (u64, u64, Vec<(u64, u64)>) {
    let config = LoopConfig {
        max_batch: made_with,
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("test", &config).unwrap();
    event_loop.context().set_max_batch(max_batch);
    let before = event_loop.context().stats();
    event_loop
        .run_until(async {
            let file: Arc<Aside<File>> = Arc::new(tempfile::tempfile().unwrap().into());
            let writes = [0, 1, 2, 3, 4].map(|number| {
                let data = IoBuffer::copied_from(&[7; 512]);
                let file = Arc::clone(&file);
                current::spawn_local(async move {
                    current::write_at(EngineKind::IoUring, &file, number * 512, data).await
                })
            });
            for write in writes {
                write.await.unwrap().unwrap();
            }
        })
        .unwrap();
    let after = event_loop.context().stats();
    let sizes = after.batch_sizes.buckets().collect();
    let batches = after.batches - before.batches;
    (batches, after.operations - before.operations, sizes)
}

#[test]
fn a_step_is_one_batch_unless_a_smaller_one_is_asked_for() {
    if !has_ring() {
        return;
    }
    assert_eq!(batches(0, 0), (1, 5, vec![(8, 1)]));
    assert_eq!(batches(2, 2), (3, 5, vec![(2, 1), (4, 2)]));
    assert_eq!(batches(1, 1), (5, 5, vec![(2, 5)]));
    assert_eq!(batches(100, 100), (1, 5, vec![(8, 1)]));
    assert_eq!(batches(0, 2), (3, 5, vec![(2, 1), (4, 2)]));
    assert_eq!(batches(1, 0), (1, 5, vec![(8, 1)]));
}

#[test]
fn a_task_that_holds_up_the_loop_is_noticed() {
    let mut event_loop = event_loop();
    let context = event_loop.context();
    event_loop
        .run_until(async {
            // The loop has asked for events once before.
            current::sleep(Duration::from_millis(1)).await;
            std::thread::sleep(Duration::from_millis(40));
        })
        .unwrap();
    let stats = context.stats();
    assert_eq!(stats.slow_turns, 1);
    assert!(stats.longest_turn >= Duration::from_millis(20));
}
