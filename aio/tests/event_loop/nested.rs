//! A loop inside another: its descriptor must be readable whenever there is something to do, and
//! only then.

use std::cell::Cell;
use std::future::Future;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_aio::{EventLoop, IoBuffer, current};

use crate::support::{ENGINES, event_loop, manual_loop};

/// Asks as an outer loop would; waits at most that many seconds.
fn poll_outside(event_loop: &EventLoop, seconds: i64) -> bool {
    let timeout = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    loop {
        let mut fds = [PollFd::from_borrowed_fd(event_loop.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(count) => return count == 1,
            // A completion may interrupt the wait.
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) fn is_readable(event_loop: &EventLoop) -> bool {
    poll_outside(event_loop, 0)
}

/// A test that waits longer than this waits for ever.
const FOR_EVER: i64 = 60;

/// What the outer loop does: dispatch whenever the descriptor is readable, else sleep.
fn serve(event_loop: &mut EventLoop, mut done: impl FnMut() -> bool) {
    while !done() {
        assert!(poll_outside(event_loop, FOR_EVER), "work, and not readable");
        event_loop.dispatch().unwrap();
    }
}

/// The loop comes to rest: its descriptor does not stay readable without a reason.
fn assert_rests(event_loop: &mut EventLoop) {
    for _ in 0..4 {
        if !is_readable(event_loop) {
            return;
        }
        event_loop.dispatch().unwrap();
    }
    panic!("readable, and nothing to do");
}

/// Starts a task; the flag tells that it is done.
fn start<F, Fut>(event_loop: &EventLoop, make: F) -> Arc<AtomicBool>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let done = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&done);
    event_loop.context().spawn(move || async move {
        make().await;
        flag.store(true, Ordering::SeqCst);
    });
    done
}

fn serve_to_end<F, Fut>(make: F)
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let mut event_loop = event_loop();
    assert_rests(&mut event_loop);
    let done = start(&event_loop, make);
    serve(&mut event_loop, || done.load(Ordering::SeqCst));
    assert_rests(&mut event_loop);
}

#[test]
fn work_that_work_brings_about_keeps_it_readable() {
    serve_to_end(|| async {
        for _ in 0..20 {
            current::yield_now().await;
        }
    });
}

#[test]
fn timers_make_it_readable() {
    serve_to_end(|| async {
        for _ in 0..3 {
            current::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn io_makes_it_readable() {
    for engine in ENGINES {
        serve_to_end(move || async move {
            let file = Arc::new(tempfile::tempfile().unwrap().into());
            for round in 0..20 {
                let data = IoBuffer::copied_from(&[7; 5000]);
                current::write_at(engine, &file, round * 5000, data)
                    .await
                    .unwrap();
                current::fdatasync(engine, &file).await.unwrap();
            }
        });
    }
}

#[test]
fn blocking_calls_and_other_threads_make_it_readable() {
    serve_to_end(|| async {
        for round in 0..20 {
            assert_eq!(current::blocking(move || round).await, Ok(round));
        }
    });
}

#[test]
fn the_gates_opening_makes_it_readable() {
    let mut event_loop = event_loop();
    let section = event_loop.context().gate().close("test");
    let done = start(&event_loop, || async {
        drop(current::context().gate().enter().await.unwrap());
    });
    assert_rests(&mut event_loop);
    assert!(!done.load(Ordering::SeqCst));
    drop(section);
    serve(&mut event_loop, || done.load(Ordering::SeqCst));
    assert_rests(&mut event_loop);
}

#[test]
fn a_manual_clock_makes_it_readable_by_notifying() {
    let (mut event_loop, clock) = manual_loop();
    let done = start(&event_loop, || current::sleep(Duration::from_millis(1)));
    assert_rests(&mut event_loop);
    clock.advance(Duration::from_millis(1));
    event_loop.context().notify();
    serve(&mut event_loop, || done.load(Ordering::SeqCst));
    assert_rests(&mut event_loop);
}

#[test]
fn what_the_setup_has_started_makes_it_readable() {
    let mut event_loop = event_loop();
    let done = event_loop
        .run_until(async {
            let done = Rc::new(Cell::new(false));
            let flag = Rc::clone(&done);
            current::spawn_local(async move {
                for _ in 0..5 {
                    current::yield_now().await;
                }
                flag.set(true);
            })
            .detach();
            done
        })
        .unwrap();
    serve(&mut event_loop, || done.get());
    assert_rests(&mut event_loop);
}
