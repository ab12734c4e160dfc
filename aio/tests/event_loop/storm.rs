//! Many threads wake one task and schedule one bottom half, all at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::Poll;
use std::thread;

use sluice_aio::{IoThread, LoopConfig, current};

const THREADS: usize = 8;
const ROUNDS: usize = 300;
/// A thread wakes and schedules at most so often before it waits.
const BURST: usize = 4;

/// A number for each thread.
type Numbers = [AtomicUsize; THREADS];

/// What the threads have done, and what of it was seen.
#[derive(Default)]
struct Storm {
    done: Numbers,
    by_task: Numbers,
    by_bottom_half: Numbers,
}

impl Storm {
    fn look(&self, seen: &Numbers) {
        for (done, seen) in self.done.iter().zip(seen) {
            seen.store(done.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        // What comes now, while it still runs, needs another run.
        thread::yield_now();
    }
}

/// A request that is lost keeps a thread, and so the test, from ending.
#[test]
fn each_wake_of_a_storm_is_followed_by_a_run_that_sees_what_was_done_before() {
    let storm = Arc::new(Storm::default());
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let (sender, receiver) = mpsc::channel();
    let inside = Arc::clone(&storm);
    thread.context().spawn(move || {
        let seen = Arc::clone(&inside);
        let half = current::bottom_half(move || seen.look(&seen.by_bottom_half));
        let mut sender = Some(sender);
        std::future::poll_fn(move |cx| {
            if let Some(sender) = sender.take() {
                sender.send((cx.waker().clone(), half.handle())).unwrap();
            }
            inside.look(&inside.by_task);
            Poll::<()>::Pending
        })
    });
    let (waker, half) = receiver.recv().unwrap();
    let barrier = Barrier::new(THREADS);
    let run = |number: usize| {
        for round in 0..ROUNDS {
            // All at once; and nobody asks on while anybody waits, which would hide a loss.
            barrier.wait();
            let burst = 1 + (round + number) % BURST;
            let last = round * BURST + burst;
            for step in round * BURST + 1..=last {
                storm.done[number].store(step, Ordering::Relaxed);
                if step % 2 == 0 {
                    waker.wake_by_ref();
                } else {
                    let own = waker.clone();
                    own.wake();
                }
                half.schedule();
            }
            for seen in [&storm.by_task[number], &storm.by_bottom_half[number]] {
                while seen.load(Ordering::Relaxed) < last {
                    thread::yield_now();
                }
            }
            barrier.wait();
        }
    };
    thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || run(number));
        }
    });
}
