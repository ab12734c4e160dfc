//! The rule of fairness: beside whatever keeps a loop busy, everything that becomes ready is served
//! within the number of turns that the documentation of the loop promises. Turns are counted, not
//! time.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_aio::{
    AioContext, Aside, EngineKind, EventLoop, IoBuffer, LoopConfig, Polling, Source, current,
};

use crate::support::{ENDLESS, consume, event_fd, event_loop, has_ring, pipe, signal};

/// At most so many turns pass between being ready and being served.
const BOUND: u64 = 17;

fn turns(context: &AioContext) -> u64 {
    context.stats().turns
}

/// In which turns the victims were served.
#[derive(Clone)]
struct Served {
    context: AioContext,
    turns: [Arc<AtomicU64>; 5],
}

const NAMES: [&str; 5] = [
    "a task",
    "a timer",
    "a descriptor",
    "a bottom half",
    "a completion",
];

impl Served {
    fn note(&self, victim: usize) {
        self.turns[victim].store(turns(&self.context), Ordering::Relaxed);
    }

    fn all(&self) -> bool {
        self.turns
            .iter()
            .all(|turn| turn.load(Ordering::Relaxed) > 0)
    }
}

/// What the task does that waits for the victims.
#[derive(Clone, Copy)]
enum Pace {
    /// It yields: there is always work at hand.
    Yield,
    /// It writes, one request after the other: between them there is nothing to do but to wait.
    Write,
}

/// Makes one of everything ready beside what `busy` starts, `queued` items being before the bottom
/// half in the remote queue, and counts the turns until each is served. On a loop that polls and on
/// one that does not.
fn serve_beside(busy: fn() -> Box<dyn Any>, queued: u64) {
    for pace in [Pace::Yield, Pace::Write] {
        for polling in [Polling::OFF, ENDLESS] {
            serve(pace, polling, busy, queued);
        }
    }
}

fn serve(pace: Pace, polling: Polling, busy: fn() -> Box<dyn Any>, queued: u64) {
    let config = LoopConfig {
        polling,
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("test", &config).unwrap();
    event_loop
        .run_until(async move {
            let _busy = busy();
            let file: Arc<Aside<File>> = Arc::new(tempfile::tempfile().unwrap().into());
            let go_on = async || match pace {
                Pace::Yield => current::yield_now().await,
                Pace::Write => {
                    let data = IoBuffer::copied_from(&[7; 512]);
                    let write = current::write_at(EngineKind::IoUring, &file, 0, data);
                    write.await.unwrap();
                }
            };
            let context = current::context();
            // A read that the kernel has, and finishes in the very call that fills the pipe. A
            // worker thread would take a time that is not the loop's to answer for.
            let reads = has_ring();
            let (pipe, mut filler) = pipe();
            let piped = current::spawn_local(async move {
                let byte = IoBuffer::alloc(1);
                current::read_at(EngineKind::IoUring, &pipe, 0, byte).await
            });
            for _ in 0..100 {
                go_on().await;
            }
            let served = Served {
                context: context.clone(),
                turns: Default::default(),
            };
            let began = turns(&context);
            let task = served.clone();
            current::spawn_local(async move { task.note(0) }).detach();
            let timer = served.clone();
            current::spawn_local(async move {
                current::sleep(Duration::ZERO).await;
                timer.note(1);
            })
            .detach();
            let (fd, descriptor) = (event_fd(), served.clone());
            let read = Arc::clone(&fd);
            let _handler = current::add_fd(&fd, Source::External, move || {
                consume(&read);
                descriptor.note(2);
            });
            signal(&fd);
            let half = served.clone();
            let half = current::bottom_half(move || half.note(3));
            half.schedule();
            if reads {
                let completion = served.clone();
                current::spawn_local(async move {
                    assert_eq!(piped.await.unwrap().unwrap(), 1);
                    completion.note(4);
                })
                .detach();
                filler.write_all(&[1]).unwrap();
            } else {
                piped.cancel();
                served.note(4);
            }
            let bounds = [BOUND, BOUND, BOUND, BOUND + queued / 512, BOUND];
            let patience = began + bounds[3] + 100;
            while !served.all() && turns(&context) < patience {
                go_on().await;
            }
            for (victim, bound) in bounds.into_iter().enumerate() {
                let took = served.turns[victim]
                    .load(Ordering::Relaxed)
                    .checked_sub(began);
                let took = took.unwrap_or_else(|| panic!("{} never came", NAMES[victim]));
                assert!(took <= bound, "{} took {took} turns", NAMES[victim]);
            }
        })
        .unwrap();
}

#[test]
fn beside_nothing_but_what_waits_for_them() {
    serve_beside(|| Box::new(()), 0);
}

#[test]
fn beside_a_task_that_yields_for_ever() {
    serve_beside(
        || {
            for _ in 0..10 {
                current::spawn_local(async {
                    loop {
                        current::yield_now().await;
                    }
                })
                .detach();
            }
            Box::new(())
        },
        0,
    );
}

#[test]
fn beside_a_descriptor_that_is_always_readable() {
    serve_beside(
        || {
            let fd = event_fd();
            signal(&fd);
            Box::new(current::add_fd(&fd, Source::External, || ()))
        },
        0,
    );
}

#[test]
fn beside_a_look_that_always_finds() {
    serve_beside(
        || {
            // Nobody ever signals it: only a loop that polls finds work here.
            let never = event_fd();
            let look = || true;
            Box::new(current::add_fd_with_look(&never, Source::External, look, |_| ()).unwrap())
        },
        0,
    );
}

#[test]
fn beside_completions() {
    serve_beside(
        || {
            let file: Arc<Aside<File>> = Arc::new(tempfile::tempfile().unwrap().into());
            for number in 0..32 {
                let file = Arc::clone(&file);
                current::spawn_local(async move {
                    loop {
                        let data = IoBuffer::copied_from(&[7; 512]);
                        let offset = number * 512;
                        let write = current::write_at(EngineKind::IoUring, &file, offset, data);
                        write.await.unwrap();
                    }
                })
                .detach();
            }
            Box::new(())
        },
        0,
    );
}

#[test]
fn beside_a_bottom_half_that_schedules_itself() {
    serve_beside(
        || {
            let own: Rc<RefCell<Option<sluice_aio::BottomHalfHandle>>> = Rc::default();
            let inside = Rc::clone(&own);
            let half = current::bottom_half(move || {
                inside.borrow().as_ref().unwrap().schedule();
            });
            *own.borrow_mut() = Some(half.handle());
            half.schedule();
            Box::new(half)
        },
        0,
    );
}

#[test]
fn beside_timers_at_zero() {
    serve_beside(
        || {
            for _ in 0..10 {
                current::spawn_local(async {
                    loop {
                        current::sleep(Duration::ZERO).await;
                    }
                })
                .detach();
            }
            Box::new(())
        },
        0,
    );
}

#[test]
fn beside_a_flood_from_other_threads() {
    // More than is served before the victims are ready.
    const FLOOD: u64 = 200_000;
    serve_beside(
        || {
            let context = current::context();
            std::thread::spawn(move || {
                for _ in 0..FLOOD {
                    context.schedule(|| ());
                }
            })
            .join()
            .unwrap();
            Box::new(())
        },
        FLOOD,
    );
}

#[test]
fn more_ready_descriptors_than_fit_into_one_turn_take_turns() {
    const DESCRIPTORS: usize = 200;
    let mut event_loop = event_loop();
    event_loop
        .run_until(async {
            let fds = [(); DESCRIPTORS].map(|()| event_fd());
            let calls = Rc::new([(); DESCRIPTORS].map(|()| Cell::new(0_u32)));
            let mut handlers = Vec::new();
            for (index, fd) in fds.iter().enumerate() {
                // Never consumed: always readable.
                signal(fd);
                let calls = Rc::clone(&calls);
                let handler = current::add_fd(fd, Source::External, move || {
                    calls[index].set(calls[index].get() + 1);
                });
                handlers.push(handler.unwrap());
            }
            while calls.iter().all(|calls| calls.get() < 50) {
                current::sleep(Duration::ZERO).await;
            }
            let least = calls.iter().map(Cell::get).min().unwrap();
            assert!(least >= 48, "somebody was served {least} times of 50");
        })
        .unwrap();
}

#[test]
fn many_ready_descriptors_cost_a_turn_more_for_each_64() {
    const DESCRIPTORS: usize = 200;
    let mut event_loop = event_loop();
    event_loop
        .run_until(async {
            let context = current::context();
            let fds = [(); DESCRIPTORS].map(|()| event_fd());
            let served = Rc::new(Cell::new(0));
            let handlers = fds.each_ref().map(|fd| {
                let (read, served) = (Arc::clone(fd), Rc::clone(&served));
                current::add_fd(fd, Source::External, move || {
                    consume(&read);
                    served.set(served.get() + 1);
                })
                .unwrap()
            });
            fds.iter().for_each(|fd| signal(fd));
            let began = turns(&context);
            while served.get() < DESCRIPTORS {
                // There is always work at hand.
                current::yield_now().await;
            }
            let took = turns(&context) - began;
            assert!(took <= BOUND + DESCRIPTORS as u64 / 64, "{took} turns");
            drop(handlers);
        })
        .unwrap();
}

#[test]
fn a_sleep_of_no_time_lets_the_others_run() {
    let mut event_loop = event_loop();
    event_loop
        .run_until(async {
            let other = Rc::new(Cell::new(false));
            let flag = Rc::clone(&other);
            current::spawn_local(async move { flag.set(true) }).detach();
            current::sleep(Duration::ZERO).await;
            assert!(other.get());
        })
        .unwrap();
}
