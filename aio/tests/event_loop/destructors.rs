//! The end of a loop whose work panics while it is dropped, and of an iothread that its own task drops.

use std::sync::mpsc;

use sluice_aio::{IoThread, LoopConfig, Source, current};

use crate::support::{event_fd, event_loop};

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
