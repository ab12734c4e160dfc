//! Tasks, bottom halves and wake-ups from other threads.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use sluice_aio::{Cancelled, EventLoop, IoThread, LoopConfig, current};

use crate::support::{canary, event_loop, settle, thread_id, turn_until, until_asleep, within};

#[test]
fn a_loop_that_sleeps_is_woken_by_another_thread() {
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    for round in 0..100 {
        until_asleep(thread.thread_id());
        let (sender, receiver) = mpsc::channel();
        thread.context().schedule(move || {
            sender.send((round, thread_id())).unwrap();
        });
        assert_eq!(receiver.recv().unwrap(), (round, thread.thread_id()));
    }
}

#[test]
fn a_task_that_another_thread_wakes_runs_in_its_own_loop() {
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let mut event_loop = event_loop();
    let context = thread.context().clone();
    let home = thread_id();
    event_loop
        .run_until(async move {
            for round in 0..100 {
                let answer = context.call(move || async move {
                    current::yield_now().await;
                    round
                });
                assert_eq!(answer.await, Ok(round));
                assert_eq!(thread_id(), home);
            }
        })
        .unwrap();
}

#[test]
fn bottom_halves_run_in_order_of_scheduling() {
    let mut event_loop = event_loop();
    let context = event_loop.context();
    let log = Arc::new(Mutex::new(Vec::new()));
    for number in 0..5 {
        let log = Arc::clone(&log);
        let again = context.clone();
        context.schedule(move || {
            log.lock().unwrap().push(number);
            let log = Arc::clone(&log);
            // From within itself: it comes behind those that were there.
            again.schedule(move || log.lock().unwrap().push(number + 10));
        });
    }
    settle(&mut event_loop);
    let expected = [0, 1, 2, 3, 4, 10, 11, 12, 13, 14];
    assert_eq!(*log.lock().unwrap(), expected);
}

#[test]
fn a_storm_of_wakes_loses_none() {
    const THREADS: usize = 8;
    const CALLS: usize = 5000;
    let iothread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let (sender, receiver) = mpsc::channel();
                for number in 0..CALLS {
                    let (ran, sender) = (Arc::clone(&ran), sender.clone());
                    iothread.context().spawn(move || async move {
                        ran.fetch_add(1, Ordering::Relaxed);
                        sender.send(number).unwrap();
                    });
                }
                drop(sender);
                let order: Vec<_> = receiver.iter().collect();
                assert!(order.is_sorted(), "one thread's tasks start in order");
                assert_eq!(order.len(), CALLS);
            });
        }
    });
    assert_eq!(ran.load(Ordering::Relaxed), THREADS * CALLS);
}

#[test]
fn a_busy_task_does_not_starve_the_others() {
    let mut event_loop = event_loop();
    event_loop
        .run_until(async {
            let stop = Rc::new(Cell::new(false));
            let seen = Rc::clone(&stop);
            current::spawn_local(async move {
                while !seen.get() {
                    current::yield_now().await;
                }
            })
            .detach();
            let answer = current::blocking(|| 7).await;
            current::sleep(std::time::Duration::from_millis(1)).await;
            stop.set(true);
            assert_eq!(answer, Ok(7));
        })
        .unwrap();
}

#[test]
fn a_panicking_task_ends_alone_and_its_owner_is_told() {
    let mut event_loop = event_loop();
    let told = event_loop
        .run_until(async {
            let broken = current::spawn_local(async { panic!("on purpose") });
            let healthy = current::spawn_local(async {
                current::yield_now().await;
                7
            });
            (broken.await, healthy.await)
        })
        .unwrap();
    assert_eq!(told, (Err(Cancelled), Ok(7)));
}

#[test]
fn a_panic_in_a_call_from_another_loop_cancels_it() {
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let context = thread.context().clone();
    let mut event_loop = event_loop();
    event_loop
        .run_until(async move {
            let early = context.call(|| {
                if true {
                    panic!("while it is made");
                }
                async {}
            });
            assert_eq!(early.await, Err(Cancelled));
            let late = context.call(|| async { panic!("while it runs") });
            assert_eq!(late.await, Err::<(), _>(Cancelled));
            assert_eq!(context.call(|| async { 7 }).await, Ok(7));
        })
        .unwrap();
}

#[test]
fn a_panicking_bottom_half_does_not_take_the_others_along() {
    let mut event_loop = event_loop();
    let context = event_loop.context();
    let (sender, receiver) = mpsc::channel();
    context.schedule(|| panic!("on purpose"));
    context.schedule(move || sender.send(7).unwrap());
    settle(&mut event_loop);
    assert_eq!(receiver.recv(), Ok(7));
}

#[test]
#[should_panic(expected = "this very assertion")]
fn a_panic_of_the_main_future_reaches_the_caller() {
    let mut event_loop = event_loop();
    drop(event_loop.run_until(async {
        current::yield_now().await;
        panic!("this very assertion");
    }));
}

#[test]
fn a_panicking_blocking_call_is_told_and_its_worker_survives() {
    let config = LoopConfig {
        thread_pool_max: 1,
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("test", &config).unwrap();
    let told = event_loop
        .run_until(async {
            let broken = current::blocking(|| panic!("on purpose")).await;
            (broken, current::blocking(|| 7).await)
        })
        .unwrap();
    assert_eq!(told, (Err::<(), _>(Cancelled), Ok(7)));
}

#[test]
fn dropping_a_join_handle_lets_the_task_go_on() {
    let mut event_loop = event_loop();
    let done = Rc::new(Cell::new(false));
    let seen = Rc::clone(&done);
    event_loop
        .run_until(async move {
            drop(current::spawn_local(async move {
                current::yield_now().await;
                seen.set(true);
            }));
        })
        .unwrap();
    turn_until(&mut event_loop, || done.get());
}

#[test]
fn cancelling_a_task_drops_its_future() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    let order = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&order);
    let task = within(&mut event_loop, move || {
        current::spawn_local(async move {
            let _inside = inside;
            log.borrow_mut().push("started");
            std::future::pending::<()>().await;
            log.borrow_mut().push("went on");
        })
    });
    settle(&mut event_loop);
    assert!(outside.upgrade().is_some());
    task.cancel();
    settle(&mut event_loop);
    assert!(outside.upgrade().is_none());
    assert_eq!(*order.borrow(), ["started"]);
}

#[test]
fn threads_tell_the_system_whose_they_are() {
    let thread = IoThread::spawn("io7", LoopConfig::default()).unwrap();
    let context = thread.context().clone();
    let own_name = || std::fs::read_to_string("/proc/thread-self/comm").unwrap();
    let mut event_loop = event_loop();
    let names = event_loop
        .run_until(async move {
            let names = context.call(move || async move {
                (own_name(), current::blocking(own_name).await.unwrap())
            });
            names.await.unwrap()
        })
        .unwrap();
    assert_eq!(names, ("io7\n".to_owned(), "wrk:io7\n".to_owned()));
}

#[test]
fn names_with_a_nul_are_no_panic() {
    let thread = IoThread::spawn("io\0zero", LoopConfig::default()).unwrap();
    assert_eq!(thread.context().name(), "io\0zero");
    let context = thread.context().clone();
    let mut event_loop = event_loop();
    let answer = event_loop
        .run_until(async move { context.call(|| current::blocking(|| 7)).await })
        .unwrap();
    assert_eq!(answer, Ok(Ok(7)));
}

#[test]
#[should_panic(expected = "outside of an event loop")]
fn asking_for_the_current_loop_outside_of_one_is_a_mistake() {
    drop(current::context());
}
