//! Timers on both kinds of clock.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use sluice_aio::{Clock, IoThread, LoopConfig, current};

use crate::support::{event_loop, manual_loop, settle, until_asleep, within};

const MS: Duration = Duration::from_millis(1);

#[test]
fn timers_fire_by_deadline_then_by_age() {
    let (mut event_loop, clock) = manual_loop();
    let log = Rc::new(RefCell::new(Vec::new()));
    let shared = Rc::clone(&log);
    event_loop
        .run_until(async move {
            for (name, delay) in [("c", 30), ("a", 10), ("b", 20), ("a2", 10)] {
                let log = Rc::clone(&shared);
                current::spawn_local(async move {
                    current::sleep(delay * MS).await;
                    log.borrow_mut().push(name);
                })
                .detach();
            }
        })
        .unwrap();
    settle(&mut event_loop);
    clock.advance(10 * MS - Duration::from_nanos(1));
    settle(&mut event_loop);
    assert!(log.borrow().is_empty(), "a nanosecond early");
    clock.advance(Duration::from_nanos(1));
    settle(&mut event_loop);
    assert_eq!(*log.borrow(), ["a", "a2"]);
    clock.advance(20 * MS);
    settle(&mut event_loop);
    assert_eq!(*log.borrow(), ["a", "a2", "b", "c"]);
}

#[test]
fn ten_thousand_timers_all_fire_in_order() {
    let (mut event_loop, clock) = manual_loop();
    let log = Rc::new(RefCell::new(Vec::new()));
    let shared = Rc::clone(&log);
    event_loop
        .run_until(async move {
            for number in 0..10_000u32 {
                // A permutation of the delays: 7919 is prime to 10 000.
                let delay = number * 7919 % 10_000;
                let log = Rc::clone(&shared);
                current::spawn_local(async move {
                    current::sleep(delay * MS).await;
                    log.borrow_mut().push(delay);
                })
                .detach();
            }
        })
        .unwrap();
    for _ in 0..10 {
        settle(&mut event_loop);
        clock.advance(1000 * MS);
    }
    settle(&mut event_loop);
    assert_eq!(log.borrow().len(), 10_000);
    assert!(log.borrow().is_sorted());
}

#[test]
fn ten_thousand_real_timers_all_fire() {
    let mut event_loop = event_loop();
    let fired = event_loop
        .run_until(async {
            let tasks: Vec<_> = (0..10_000u64)
                .map(|number| {
                    current::spawn_local(async move {
                        let before = current::context().clock().now();
                        let delay = Duration::from_micros(number % 1000);
                        current::sleep(delay).await;
                        current::context().clock().now() - before >= delay
                    })
                })
                .collect();
            let mut fired = 0;
            for task in tasks {
                assert_eq!(task.await, Ok(true), "early");
                fired += 1;
            }
            fired
        })
        .unwrap();
    assert_eq!(fired, 10_000);
}

#[test]
fn a_dropped_timer_leaves_the_others_alone() {
    let (mut event_loop, clock) = manual_loop();
    let [dropped, kept] = within(&mut event_loop, || {
        [5, 5].map(|delay| current::spawn_local(current::sleep(delay * MS)))
    });
    settle(&mut event_loop);
    dropped.cancel();
    settle(&mut event_loop);
    clock.advance(5 * MS);
    assert_eq!(event_loop.run_until(kept).unwrap(), Ok(()));
}

#[test]
fn for_ever_is_a_time_too() {
    let mut event_loop = event_loop();
    event_loop
        .run_until(async {
            let forever = current::spawn_local(current::sleep(Duration::MAX));
            current::sleep(MS).await;
            forever.cancel();
        })
        .unwrap();
    let (mut event_loop, clock) = manual_loop();
    let forever = within(&mut event_loop, || {
        current::spawn_local(current::sleep(Duration::MAX))
    });
    settle(&mut event_loop);
    // Time does not begin anew, which would be the end of all timers.
    clock.advance(Duration::MAX);
    clock.advance(Duration::MAX);
    assert_eq!(clock.now(), Duration::from_nanos(u64::MAX));
    forever.cancel();
}

#[test]
fn advancing_a_manual_clock_and_notifying_wakes_the_loop() {
    let clock = Clock::manual();
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let thread = IoThread::spawn("io0", config).unwrap();
    for _ in 0..100 {
        let (sender, fired) = mpsc::channel();
        let ready = sender.clone();
        thread.context().spawn(move || async move {
            let timer = current::sleep(MS);
            ready.send(()).unwrap();
            timer.await;
            sender.send(()).unwrap();
        });
        fired.recv().unwrap();
        until_asleep(thread.thread_id());
        clock.advance(MS);
        thread.context().notify();
        fired.recv().unwrap();
    }
}

#[test]
fn all_of_a_step_has_one_time() {
    /// Longer than the clock's resolution.
    fn let_time_pass(clock: &Clock) {
        let until = clock.now() + Duration::from_micros(100);
        while clock.now() < until {}
    }
    let clock = Clock::real();
    let inside = clock.clone();
    let mut event_loop = event_loop();
    event_loop
        .run_until(async move {
            let first = inside.now_in_step();
            assert!(first <= inside.now());
            let_time_pass(&inside);
            assert_eq!(inside.now_in_step(), first);
            // The next step has its own, also one that polling or a sleep came before.
            for _ in 0..3 {
                let before = inside.now();
                current::yield_now().await;
                assert!(inside.now_in_step() >= before);
                let before = inside.now();
                current::sleep(Duration::from_micros(50)).await;
                assert!(inside.now_in_step() >= before);
            }
        })
        .unwrap();
    // Nobody's step: time goes on.
    let outside = clock.now_in_step();
    let_time_pass(&clock);
    assert!(clock.now_in_step() > outside);
    // One that is moved by hand is what it was moved to.
    let manual = Clock::manual();
    let moved = manual.clone();
    event_loop
        .run_until(async move {
            assert_eq!(moved.now_in_step(), Duration::ZERO);
            moved.advance(Duration::from_secs(1));
            assert_eq!(moved.now_in_step(), Duration::from_secs(1));
        })
        .unwrap();
}

#[test]
fn a_real_clock_cannot_be_advanced() {
    assert!(!Clock::real().advance(MS));
}
