//! A future that is passed on wakes who polled it last, whatever it waits for: the one before may have
//! been a `select` that is over, or a task that has ended.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use sluice_aio::{Clock, EventLoop, Gate, IoBuffer, current};

use crate::support::{
    ENGINES, PAGE, event_fd, event_loop, manual_loop, signal, turn_until, within,
};

/// Whether a waker was used.
#[derive(Default)]
struct Alarm(AtomicBool);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Polls the future that `make` returns in the loop, with one waker and then with another; makes it
/// ready by `trigger`.
fn last_is_woken<F: Future + 'static>(
    mut event_loop: EventLoop,
    make: impl FnOnce() -> F + 'static,
    trigger: impl FnOnce(&EventLoop),
) {
    let alarms = [Arc::new(Alarm::default()), Arc::new(Alarm::default())];
    let wakers = alarms.clone().map(Waker::from);
    let future = within(&mut event_loop, move || {
        let mut future = Box::pin(make());
        for waker in &wakers {
            let polled = future.as_mut().poll(&mut Context::from_waker(waker));
            assert!(polled.is_pending());
        }
        future
    });
    trigger(&event_loop);
    let rung = || [0, 1].map(|at: usize| alarms[at].0.load(Ordering::SeqCst));
    turn_until(&mut event_loop, || rung() != [false; 2]);
    assert_eq!(rung(), [false, true]);
    drop(future);
}

#[test]
fn of_a_descriptor() {
    let fd = event_fd();
    let watched = Arc::clone(&fd);
    last_is_woken(
        event_loop(),
        move || current::readable(&*watched),
        |_| signal(&fd),
    );
}

#[test]
fn of_a_timer() {
    const DELAY: Duration = Duration::from_secs(1);
    let (event_loop, clock) = manual_loop();
    last_is_woken(
        event_loop,
        || current::sleep(DELAY),
        |event_loop| {
            clock.advance(DELAY);
            event_loop.context().notify();
        },
    );
}

#[test]
fn of_an_operation() {
    for engine in ENGINES {
        let read = move || {
            let file = Arc::new(tempfile::tempfile().unwrap().into());
            current::read_at(engine, &file, 0, IoBuffer::alloc(PAGE))
        };
        last_is_woken(event_loop(), read, |_| {});
    }
}

#[test]
fn of_a_task() {
    last_is_woken(
        event_loop(),
        || current::spawn_local(current::yield_now()),
        |_| {},
    );
}

#[test]
fn of_a_gate() {
    let gate = Rc::new(Gate::new("disk0", Clock::manual()));
    let closed = || (Rc::clone(&gate), gate.close("section"));
    let (entered, section) = closed();
    last_is_woken(event_loop(), move || entered.enter(), |_| drop(section));
    let (opened, section) = closed();
    last_is_woken(event_loop(), move || opened.opened(), |_| drop(section));
    let token = gate.try_enter().unwrap();
    last_is_woken(event_loop(), move || gate.wait_idle(), |_| drop(token));
}
