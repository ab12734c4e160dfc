//! What a loop promises about bottom halves, descriptors, timers and tasks: each case once on a loop
//! alone in its thread and once on one that sits inside another.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use sluice_aio::{BottomHalf, EventLoop, Source, current};

use crate::nested::is_readable;
use crate::support::{canary, consume, event_fd, event_loop, manual_loop, signal, within};

/// Who drives the loop.
#[derive(Clone, Copy)]
enum Driver {
    Alone,
    Nested,
}

/// More yields than there are turns between two looks at the descriptors.
const ENOUGH_YIELDS: usize = 64;
/// More turns than anything here needs.
const ENOUGH_TURNS: usize = 1000;

impl Driver {
    /// Drives the loop until all that is ready has been seen to.
    fn settle(self, event_loop: &mut EventLoop) {
        match self {
            Self::Alone => event_loop
                .run_until(async {
                    for _ in 0..ENOUGH_YIELDS {
                        current::yield_now().await;
                    }
                })
                .unwrap(),
            Self::Nested => {
                let mut turns = 0;
                while is_readable(event_loop) {
                    event_loop.dispatch().unwrap();
                    turns += 1;
                    assert!(turns < ENOUGH_TURNS, "it never rests");
                }
            }
        }
    }
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod alone {
            $(#[test] fn $name() { super::$name(super::Driver::Alone); })*
        }
        mod nested {
            $(#[test] fn $name() { super::$name(super::Driver::Nested); })*
        }
    };
}

cases! {
    a_bottom_half_runs_once_each_time_it_is_scheduled,
    a_bottom_half_schedules_itself_ten_times,
    a_cancelled_bottom_half_does_not_run,
    a_cancelled_bottom_half_that_is_scheduled_again_keeps_its_place,
    a_deleted_bottom_half_does_not_run,
    a_bottom_half_deletes_itself,
    a_bottom_half_deletes_many_others,
    bottom_halves_of_all_kinds_run_in_one_order,
    a_handle_that_outlives_its_bottom_half_does_nothing,
    a_handler_comes_and_goes_without_an_event,
    a_handler_sees_every_event,
    an_event_before_the_handler_is_not_lost,
    timers_fire_on_a_clock_that_is_stepped,
    timers_fire_on_the_real_clock,
    a_thousandfold_chain_of_wakes_needs_no_stack,
    a_worker_thread_sends_a_task_on_in_its_own_loop,
}

/// A log that bottom halves of one loop write to.
type Log = Rc<RefCell<Vec<usize>>>;

/// A bottom half that logs `number`.
fn logging(event_loop: &mut EventLoop, log: &Log, number: usize) -> BottomHalf {
    let log = Rc::clone(log);
    within(event_loop, move || {
        current::bottom_half(move || log.borrow_mut().push(number))
    })
}

fn a_bottom_half_runs_once_each_time_it_is_scheduled(driver: Driver) {
    let mut event_loop = event_loop();
    let log = Log::default();
    let half = logging(&mut event_loop, &log, 1);
    driver.settle(&mut event_loop);
    assert!(log.borrow().is_empty(), "nobody has scheduled it");
    half.schedule();
    half.schedule();
    driver.settle(&mut event_loop);
    driver.settle(&mut event_loop);
    assert_eq!(*log.borrow(), [1]);
    half.schedule();
    driver.settle(&mut event_loop);
    assert_eq!(*log.borrow(), [1, 1]);
}

fn a_bottom_half_schedules_itself_ten_times(driver: Driver) {
    let mut event_loop = event_loop();
    let runs = Rc::new(Cell::new(0));
    let seen = Rc::clone(&runs);
    let _half = within(&mut event_loop, move || {
        let own: Rc<RefCell<Option<sluice_aio::BottomHalfHandle>>> = Rc::default();
        let inside = Rc::clone(&own);
        let half = current::bottom_half(move || {
            seen.set(seen.get() + 1);
            if seen.get() < 10 {
                inside.borrow().as_ref().unwrap().schedule();
            }
        });
        *own.borrow_mut() = Some(half.handle());
        half.schedule();
        half
    });
    driver.settle(&mut event_loop);
    assert_eq!(runs.get(), 10);
}

fn a_cancelled_bottom_half_does_not_run(driver: Driver) {
    let mut event_loop = event_loop();
    let log = Log::default();
    let half = logging(&mut event_loop, &log, 1);
    half.cancel();
    half.schedule();
    half.cancel();
    driver.settle(&mut event_loop);
    assert!(log.borrow().is_empty());
    half.schedule();
    driver.settle(&mut event_loop);
    assert_eq!(*log.borrow(), [1]);
}

fn a_cancelled_bottom_half_that_is_scheduled_again_keeps_its_place(driver: Driver) {
    let mut event_loop = event_loop();
    let log = Log::default();
    let [first, second] = [1, 2].map(|number| logging(&mut event_loop, &log, number));
    first.schedule();
    second.schedule();
    first.cancel();
    first.schedule();
    driver.settle(&mut event_loop);
    assert_eq!(*log.borrow(), [1, 2]);
}

fn a_deleted_bottom_half_does_not_run(driver: Driver) {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    let half = within(&mut event_loop, move || {
        current::bottom_half(move || panic!("ran with {inside:?}"))
    });
    half.schedule();
    drop(half);
    assert!(outside.upgrade().is_none(), "the callback went at once");
    driver.settle(&mut event_loop);
    assert_eq!(event_loop.context().stats().bottom_halves, 0);
}

fn a_bottom_half_deletes_itself(driver: Driver) {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    let weak = outside.clone();
    within(&mut event_loop, move || {
        let own: Rc<RefCell<Option<BottomHalf>>> = Rc::default();
        let slot = Rc::clone(&own);
        let half = current::bottom_half(move || {
            let half = slot.take().expect("it runs once");
            // Scheduled before it is deleted: that is not worth a run either.
            half.schedule();
            drop(half);
            assert_eq!(weak.strong_count(), 1, "it is still running");
            let _inside = &inside;
        });
        half.schedule();
        *own.borrow_mut() = Some(half);
    });
    driver.settle(&mut event_loop);
    assert_eq!(event_loop.context().stats().bottom_halves, 1);
    assert!(outside.upgrade().is_none());
}

fn a_bottom_half_deletes_many_others(driver: Driver) {
    const OTHERS: usize = 10;
    let mut event_loop = event_loop();
    let log = Log::default();
    let others: Rc<RefCell<Vec<BottomHalf>>> = Rc::default();
    let killer = {
        let (others, log) = (Rc::clone(&others), Rc::clone(&log));
        within(&mut event_loop, move || {
            current::bottom_half(move || {
                log.borrow_mut().push(100);
                others.borrow_mut().clear();
            })
        })
    };
    for number in 0..OTHERS {
        let half = logging(&mut event_loop, &log, number);
        others.borrow_mut().push(half);
    }
    // One before it, the others behind it.
    others.borrow()[0].schedule();
    killer.schedule();
    for other in others.borrow().iter() {
        other.schedule();
    }
    driver.settle(&mut event_loop);
    assert_eq!(*log.borrow(), [0, 100]);
    // Their places are used again, and nobody is mistaken for them.
    let fresh = logging(&mut event_loop, &log, 200);
    fresh.schedule();
    driver.settle(&mut event_loop);
    assert_eq!(*log.borrow(), [0, 100, 200]);
}

fn bottom_halves_of_all_kinds_run_in_one_order(driver: Driver) {
    let mut event_loop = event_loop();
    let log = Arc::new(Mutex::new(Vec::new()));
    let context = event_loop.context();
    let halves: Vec<_> = [0, 2, 4]
        .map(|number| {
            let log = Arc::clone(&log);
            within(&mut event_loop, move || {
                current::bottom_half(move || log.lock().unwrap().push(number))
            })
        })
        .into();
    let handles: Vec<_> = halves.iter().map(BottomHalf::handle).collect();
    let elsewhere = Arc::clone(&log);
    std::thread::spawn(move || {
        for (index, handle) in handles.into_iter().enumerate() {
            handle.schedule();
            let log = Arc::clone(&elsewhere);
            context.schedule(move || log.lock().unwrap().push(2 * index + 1));
        }
    })
    .join()
    .unwrap();
    driver.settle(&mut event_loop);
    assert_eq!(*log.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
}

fn a_handle_that_outlives_its_bottom_half_does_nothing(driver: Driver) {
    let mut event_loop = event_loop();
    let log = Log::default();
    let half = logging(&mut event_loop, &log, 1);
    let handle = half.handle();
    drop(half);
    // This one gets the place of the first.
    let _other = logging(&mut event_loop, &log, 2);
    handle.schedule();
    driver.settle(&mut event_loop);
    assert!(log.borrow().is_empty());
    drop(event_loop);
    handle.schedule();
    handle.cancel();
}

/// A handler that counts the events it consumes.
fn counting(
    event_loop: &mut EventLoop,
    fd: &Arc<std::os::fd::OwnedFd>,
) -> (sluice_aio::FdHandler, Rc<Cell<u64>>) {
    let events = Rc::new(Cell::new(0));
    let (fd, counter) = (Arc::clone(fd), Rc::clone(&events));
    let handler = within(event_loop, move || {
        let read = Arc::clone(&fd);
        current::add_fd(&fd, Source::Internal, move || {
            counter.set(counter.get() + consume(&read));
        })
        .unwrap()
    });
    (handler, events)
}

fn a_handler_comes_and_goes_without_an_event(driver: Driver) {
    let mut event_loop = event_loop();
    let fd = event_fd();
    let (handler, events) = counting(&mut event_loop, &fd);
    driver.settle(&mut event_loop);
    drop(handler);
    driver.settle(&mut event_loop);
    signal(&fd);
    driver.settle(&mut event_loop);
    assert_eq!(events.get(), 0);
    assert_eq!(consume(&fd), 1, "nobody has touched it");
}

fn a_handler_sees_every_event(driver: Driver) {
    let mut event_loop = event_loop();
    let fd = event_fd();
    let (_handler, events) = counting(&mut event_loop, &fd);
    for round in 1..=10 {
        signal(&fd);
        driver.settle(&mut event_loop);
        assert_eq!(events.get(), round);
    }
}

fn an_event_before_the_handler_is_not_lost(driver: Driver) {
    let mut event_loop = event_loop();
    let fd = event_fd();
    signal(&fd);
    let (_handler, events) = counting(&mut event_loop, &fd);
    driver.settle(&mut event_loop);
    assert_eq!(events.get(), 1);
}

fn timers_fire_on_a_clock_that_is_stepped(driver: Driver) {
    let (mut event_loop, clock) = manual_loop();
    let log = Log::default();
    let inside = Rc::clone(&log);
    within(&mut event_loop, move || {
        for number in [3, 1, 2] {
            let log = Rc::clone(&inside);
            current::spawn_local(async move {
                for round in 1..=2 {
                    current::sleep(number * Duration::from_secs(1)).await;
                    log.borrow_mut().push(number as usize * 10 + round);
                }
            })
            .detach();
        }
    });
    driver.settle(&mut event_loop);
    for _ in 0..6 {
        clock.advance(Duration::from_secs(1));
        event_loop.context().notify();
        driver.settle(&mut event_loop);
    }
    assert_eq!(*log.borrow(), [11, 21, 12, 31, 22, 32]);
    assert_eq!(event_loop.context().stats().timers, 6);
}

fn timers_fire_on_the_real_clock(driver: Driver) {
    let mut event_loop = event_loop();
    let fired = Rc::new(Cell::new(0));
    let counter = Rc::clone(&fired);
    within(&mut event_loop, move || {
        current::spawn_local(async move {
            for micros in [0, 1, 500, 1000] {
                current::sleep(Duration::from_micros(micros)).await;
                counter.set(counter.get() + 1);
            }
        })
        .detach();
    });
    while fired.get() < 4 {
        driver.settle(&mut event_loop);
    }
}

fn a_thousandfold_chain_of_wakes_needs_no_stack(driver: Driver) {
    const LINKS: usize = 25_000;
    let chain = move || {
        let mut event_loop = event_loop();
        let wakers: Rc<RefCell<Vec<Option<Waker>>>> = Rc::new(RefCell::new(vec![None; LINKS]));
        let ended = Rc::new(Cell::new(0));
        let (inside, counter) = (Rc::clone(&wakers), Rc::clone(&ended));
        within(&mut event_loop, move || {
            for link in 0..LINKS {
                let (wakers, ended) = (Rc::clone(&inside), Rc::clone(&counter));
                let mut asleep = false;
                current::spawn_local(async move {
                    std::future::poll_fn(|cx| {
                        if std::mem::replace(&mut asleep, true) {
                            return Poll::Ready(());
                        }
                        wakers.borrow_mut()[link] = Some(cx.waker().clone());
                        Poll::Pending
                    })
                    .await;
                    let next = wakers.borrow_mut().get_mut(link + 1).and_then(Option::take);
                    if let Some(next) = next {
                        next.wake();
                    }
                    ended.set(ended.get() + 1);
                })
                .detach();
            }
        });
        driver.settle(&mut event_loop);
        assert_eq!(ended.get(), 0, "all of them wait");
        wakers.borrow_mut()[0].take().unwrap().wake();
        while ended.get() < LINKS {
            event_loop.dispatch().unwrap();
        }
    };
    // A frame per link would need megabytes.
    std::thread::Builder::new()
        .stack_size(256 * 1024)
        .spawn(chain)
        .unwrap()
        .join()
        .unwrap();
}

fn a_worker_thread_sends_a_task_on_in_its_own_loop(driver: Driver) {
    let mut event_loop = event_loop();
    let home = std::thread::current().id();
    let done = Rc::new(Cell::new(false));
    let flag = Rc::clone(&done);
    within(&mut event_loop, move || {
        current::spawn_local(async move {
            for _ in 0..10 {
                let worker = current::blocking(|| std::thread::current().id()).await;
                assert_ne!(worker.unwrap(), home);
                assert_eq!(std::thread::current().id(), home);
            }
            flag.set(true);
        })
        .detach();
    });
    while !done.get() {
        driver.settle(&mut event_loop);
    }
}
