//! A task and its owner, in every order of ending.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use sluice_aio::{Cancelled, JoinHandle, current};

use crate::support::{canary, event_loop, settle, within};

#[test]
fn a_result_that_nobody_wants_any_more_is_dropped_with_the_handle() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    let task = within(&mut event_loop, move || {
        current::spawn_local(async move { inside })
    });
    settle(&mut event_loop);
    assert_eq!(outside.strong_count(), 1, "kept for the owner");
    drop(task);
    assert_eq!(outside.strong_count(), 0);
}

#[test]
fn a_detached_task_keeps_no_result() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    within(&mut event_loop, move || {
        current::spawn_local(async move { inside }).detach();
    });
    settle(&mut event_loop);
    assert_eq!(outside.strong_count(), 0);
}

#[test]
fn a_task_that_waits_for_another_is_woken_by_its_result() {
    let mut event_loop = event_loop();
    let answer = event_loop
        .run_until(async {
            let slow = current::spawn_local(async {
                for _ in 0..5 {
                    current::yield_now().await;
                }
                6
            });
            let waits = current::spawn_local(async move { slow.await.map(|six| six * 7) });
            waits.await
        })
        .unwrap();
    assert_eq!(answer, Ok(Ok(42)));
}

#[test]
fn a_task_may_cancel_itself_while_it_runs() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    let steps = Rc::new(Cell::new(0));
    let seen = Rc::clone(&steps);
    within(&mut event_loop, move || {
        let own: Rc<RefCell<Option<JoinHandle<()>>>> = Rc::default();
        let handle = Rc::clone(&own);
        *own.borrow_mut() = Some(current::spawn_local(async move {
            let _inside = inside;
            let itself = handle.take();
            itself.unwrap().cancel();
            seen.set(1);
            current::yield_now().await;
            seen.set(2);
        }));
    });
    settle(&mut event_loop);
    assert_eq!((steps.get(), outside.strong_count()), (1, 0));
}

#[test]
fn cancelling_a_task_that_has_ended_drops_its_result() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    let task = within(&mut event_loop, move || {
        current::spawn_local(async move { inside })
    });
    settle(&mut event_loop);
    task.cancel();
    settle(&mut event_loop);
    assert_eq!(outside.strong_count(), 0);
}

#[test]
fn the_waker_of_an_ended_task_does_not_poll_its_successor() {
    let mut event_loop = event_loop();
    let polls = Rc::new(Cell::new(0));
    let seen = Rc::clone(&polls);
    let waker: Waker = event_loop
        .run_until(poll_fn(|cx| Poll::Ready(cx.waker().clone())))
        .unwrap();
    within(&mut event_loop, move || {
        // These take the places that have become free.
        for _ in 0..4 {
            let seen = Rc::clone(&seen);
            current::spawn_local(poll_fn(move |_| {
                seen.set(seen.get() + 1);
                Poll::<()>::Pending
            }))
            .detach();
        }
    });
    settle(&mut event_loop);
    assert_eq!(polls.get(), 4);
    waker.wake_by_ref();
    std::thread::spawn(move || waker.wake()).join().unwrap();
    settle(&mut event_loop);
    assert_eq!(polls.get(), 4);
}

#[test]
fn a_panic_drops_what_the_task_holds_before_the_owner_is_told() {
    let mut event_loop = event_loop();
    let (inside, outside) = canary();
    event_loop
        .run_until(async move {
            let broken = current::spawn_local(async move {
                let _inside = inside;
                current::yield_now().await;
                panic!("on purpose");
            });
            let told: Result<(), Cancelled> = broken.await;
            assert_eq!((told, outside.strong_count()), (Err(Cancelled), 0));
        })
        .unwrap();
}

#[test]
fn a_handle_that_outlives_its_loop_is_told_at_once() {
    let mut first = event_loop();
    let task = within(&mut first, || {
        current::spawn_local(std::future::pending::<()>())
    });
    drop(first);
    let mut second = event_loop();
    let told = second.run_until(task).unwrap();
    assert_eq!(told, Err(Cancelled));
}

#[test]
fn a_task_that_wakes_itself_runs_once_a_step() {
    let mut event_loop = event_loop();
    let polls = Rc::new(Cell::new(0));
    let seen = Rc::clone(&polls);
    event_loop
        .run_until(async move {
            let counted = Rc::clone(&seen);
            let task = current::spawn_local(poll_fn(move |cx| {
                counted.set(counted.get() + 1);
                // Twice: it is queued once all the same.
                cx.waker().wake_by_ref();
                cx.waker().wake_by_ref();
                if counted.get() < 3 {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            }));
            for step in 0..3 {
                assert_eq!(seen.get(), step);
                current::yield_now().await;
            }
            assert_eq!(task.await, Ok(()));
        })
        .unwrap();
    assert_eq!(polls.get(), 3);
}
