//! The gate's races under the model checker: the real type, every interleaving (within a bound on
//! preemptions) of a handful of threads.
//!
//! What a section protects is a [`Disk`]: a cell whose accesses loom checks for data races. A
//! request inside a drained section is therefore found in two ways: as a race of the two accesses
//! and, since requests must happen before or after a section *as a whole*, by its contents.
//! A lost wake-up shows as a deadlock. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p sluice-aio --release --lib gate`.

#![expect(
    unsafe_code,
    reason = "the guarded cell is accessed as the gate's users do: without a lock"
)]

mod users;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};

use loom::cell::UnsafeCell;
use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;

use super::*;

/// Checks `model` with at most `preemptions` involuntary switches (blocking ones are not counted).
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// A gate and what it guards.
struct Disk {
    gate: Gate,
    requests: [UnsafeCell<usize>; 2],
}

impl Disk {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            gate: Gate::new("disk", Clock::manual()),
            requests: [UnsafeCell::new(0), UnsafeCell::new(0)],
        })
    }

    /// A request of `device`; requests of different devices may run at the same time.
    fn request(&self, device: usize, token: Token) {
        self.requests[device].with_mut(|count| {
            // SAFETY: each device uses its own cell, and sections exclude requests: the very thing
            // that the model checks.
            unsafe { *count += 1 };
        });
        drop(token);
    }

    /// What a drained section does: it looks at everything; returns the requests so far.
    fn examine(&self) -> usize {
        self.requests
            .iter()
            .map(|cell| {
                cell.with_mut(|count| {
                    // SAFETY: as above.
                    unsafe { *count }
                })
            })
            .sum()
    }

    fn section(&self) -> usize {
        let section = self.gate.close("section");
        block_on(self.gate.wait_idle());
        let before = self.examine();
        let after = self.examine();
        assert_eq!(before, after);
        drop(section);
        after
    }
}

fn poll_with<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_with(future, Waker::noop())
}

/// A request that stands in the queue of a closed gate.
fn parked(disk: &Disk) -> Enter {
    let mut request = disk.gate.enter();
    assert!(poll_once(&mut request).is_pending());
    request
}

/// Runs `request` in a thread of its own, to its end.
fn run(disk: &Arc<Disk>, device: usize, request: Enter) -> thread::JoinHandle<()> {
    let disk = Arc::clone(disk);
    thread::spawn(move || {
        let token = block_on(request).unwrap();
        disk.request(device, token);
    })
}

#[test]
fn entering_and_closing_cannot_miss_each_other() {
    check(9, || {
        let disk = Disk::new();
        let device = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                if let Some(token) = disk.gate.try_enter() {
                    disk.request(0, token);
                }
            })
        };
        disk.section();
        device.join().unwrap();
        assert_eq!(disk.gate.in_flight(), 0);
    });
}

#[test]
fn a_parked_request_runs_when_the_section_ends() {
    check(4, || {
        let disk = Disk::new();
        let device = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let token = block_on(disk.gate.enter()).unwrap();
                disk.request(0, token);
            })
        };
        disk.section();
        device.join().unwrap();
        assert_eq!(disk.section(), 1);
        assert_eq!((disk.gate.parked(), disk.gate.in_flight()), (0, 0));
    });
}

#[test]
fn the_last_to_leave_wakes_who_waits_for_idle() {
    check(3, || {
        let disk = Disk::new();
        let leavers: Vec<_> = (0..2)
            .map(|device| {
                let disk = Arc::clone(&disk);
                let token = disk.gate.try_enter().unwrap();
                thread::spawn(move || disk.request(device, token))
            })
            .collect();
        let section = disk.gate.close("section");
        block_on(disk.gate.wait_idle());
        assert_eq!(disk.examine(), 2);
        drop(section);
        for leaver in leavers {
            leaver.join().unwrap();
        }
    });
}

#[test]
fn a_new_section_cannot_slip_in_before_a_woken_request() {
    check(4, || {
        let disk = Disk::new();
        let section = disk.gate.close("first");
        let mut request = disk.gate.enter();
        assert!(poll_once(&mut request).is_pending());
        let device = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let token = block_on(request).unwrap();
                disk.request(0, token);
            })
        };
        // Open and close while the sleeper is on its way.
        drop(section);
        disk.section();
        device.join().unwrap();
        assert_eq!(disk.section(), 1);
    });
}

#[test]
fn two_sections_exclude_a_request_together() {
    check(3, || {
        let disk = Disk::new();
        let device = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let token = block_on(disk.gate.enter()).unwrap();
                disk.request(0, token);
            })
        };
        let other = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                // Sections do not exclude each other, so this one only holds the gate closed.
                let section = disk.gate.close("other");
                block_on(disk.gate.wait_idle());
                drop(section);
            })
        };
        disk.section();
        other.join().unwrap();
        device.join().unwrap();
        assert!(!disk.gate.is_closed());
        assert_eq!(disk.section(), 1);
    });
}

#[test]
fn a_cancelled_waiter_strands_nobody() {
    check(4, || {
        let disk = Disk::new();
        let section = disk.gate.close("section");
        let mut first = disk.gate.enter();
        let mut second = disk.gate.enter();
        assert!(poll_once(&mut first).is_pending());
        assert!(poll_once(&mut second).is_pending());
        let device = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let token = block_on(second).unwrap();
                disk.request(1, token);
            })
        };
        let canceller = thread::spawn(move || drop(first));
        drop(section);
        canceller.join().unwrap();
        device.join().unwrap();
        assert_eq!((disk.gate.parked(), disk.gate.in_flight()), (0, 0));
    });
}

#[test]
fn the_head_starting_lets_the_next_one_start() {
    check(3, || {
        let disk = Disk::new();
        let section = disk.gate.close("section");
        let mut requests = [disk.gate.enter(), disk.gate.enter()];
        for request in &mut requests {
            assert!(poll_once(request).is_pending());
        }
        let devices: Vec<_> = requests
            .into_iter()
            .enumerate()
            .map(|(device, request)| {
                let disk = Arc::clone(&disk);
                thread::spawn(move || {
                    let token = block_on(request).unwrap();
                    disk.request(device, token);
                })
            })
            .collect();
        drop(section);
        for device in devices {
            device.join().unwrap();
        }
        assert_eq!(disk.section(), 2);
    });
}

// Rule 1.

#[test]
fn a_newcomer_cannot_overtake_who_is_parked() {
    check(3, || {
        let disk = Disk::new();
        let section = disk.gate.close("section");
        let first = parked(&disk);
        let newcomer = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let token = block_on(disk.gate.enter()).unwrap();
                assert_eq!(disk.gate.parked(), 0, "the first still waits");
                disk.request(1, token);
            })
        };
        let first = run(&disk, 0, first);
        drop(section);
        newcomer.join().unwrap();
        first.join().unwrap();
        assert_eq!(disk.section(), 2);
    });
}

// Rule 3.

#[test]
fn an_action_that_closes_again_keeps_the_rest_parked() {
    check(4, || {
        let disk = Disk::new();
        let section = disk.gate.close("section");
        let action = parked(&disk);
        let rest = parked(&disk);
        let rest = run(&disk, 1, rest);
        drop(section);
        let token = block_on(action).unwrap();
        let again = disk.gate.close("action");
        let waiting = disk.gate.parked();
        disk.request(0, token);
        block_on(disk.gate.wait_idle());
        disk.examine();
        assert_eq!(disk.gate.parked(), waiting, "one of the rest has started");
        drop(again);
        rest.join().unwrap();
        assert_eq!(disk.section(), 2);
    });
}

/// Sections pass a parked request over once in a row, not more often.
#[test]
fn a_parked_request_runs_before_the_third_section() {
    check(4, || {
        let disk = Disk::new();
        let section = disk.gate.close("first");
        let request = parked(&disk);
        let device = run(&disk, 0, request);
        drop(section);
        disk.section();
        assert_eq!(disk.section(), 1, "passed over twice");
        device.join().unwrap();
        assert_eq!((disk.gate.parked(), disk.gate.in_flight()), (0, 0));
    });
}

/// A request that leaves `token` unfinished and comes back: it takes its place before it leaves, so
/// that no section and nobody who is parked fits between the two. Runs to its end in a thread.
fn come_back(disk: &Arc<Disk>, token: Token) -> thread::JoinHandle<()> {
    let disk = Arc::clone(disk);
    thread::spawn(move || {
        let mut again = disk.gate.enter_again();
        let place = poll_once(&mut again);
        disk.request(0, token);
        let token = match place {
            Poll::Ready(token) => token,
            Poll::Pending => block_on(again),
        };
        disk.request(0, token.unwrap());
    })
}

#[test]
fn who_comes_back_is_overtaken_by_nobody_and_breaks_into_no_section() {
    check(2, || {
        let disk = Disk::new();
        let token = disk.gate.try_enter().unwrap();
        let section = disk.gate.close("section");
        let waiting = parked(&disk);
        let back = come_back(&disk, token);
        let waiting = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let token = block_on(waiting).unwrap();
                assert_eq!(disk.gate.parked(), 0, "who came back still waits");
                disk.request(1, token);
            })
        };
        block_on(disk.gate.wait_idle());
        assert_eq!(disk.examine(), 1, "the first half, and nobody else");
        drop(section);
        back.join().unwrap();
        waiting.join().unwrap();
        assert_eq!(disk.section(), 3);
    });
}

/// The head was passed over, so the next section waits for it; but who comes back goes before it.
#[test]
fn who_comes_back_before_a_head_that_was_passed_over_strands_no_section() {
    check(2, || {
        let disk = Disk::new();
        let token = disk.gate.try_enter().unwrap();
        let section = disk.gate.close("first");
        let head = parked(&disk);
        drop(section);
        drop(disk.gate.close("second"));
        let section = disk.gate.close("third");
        let back = come_back(&disk, token);
        let head = run(&disk, 1, head);
        block_on(disk.gate.wait_idle());
        let before = disk.examine();
        assert!(before <= 2, "the first half, and the head if it was sooner");
        assert_eq!(disk.examine(), before);
        drop(section);
        back.join().unwrap();
        head.join().unwrap();
        assert_eq!(disk.section(), 3);
    });
}

// Rule 6.

#[test]
fn settling_waits_for_what_was_in_flight_and_turns_nobody_away() {
    check(3, || {
        let disk = Disk::new();
        let mine = disk.gate.try_enter().unwrap();
        let device = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || disk.request(0, mine))
        };
        let other = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let token = disk.gate.try_enter().expect("turned away");
                disk.request(1, token);
            })
        };
        block_on(disk.gate.wait_idle());
        disk.requests[0].with_mut(|count| {
            // SAFETY: the device's only request has ended, which is what the model checks.
            assert_eq!(unsafe { *count }, 1);
        });
        other.join().unwrap();
        device.join().unwrap();
    });
}

// Rule 7.

#[test]
fn a_section_sees_all_parts_of_a_request_or_none() {
    check(4, || {
        let disk = Disk::new();
        let device = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let token = block_on(disk.gate.enter()).unwrap();
                for _part in 0..2 {
                    disk.requests[0].with_mut(|count| {
                        // SAFETY: as in `Disk::request`.
                        unsafe { *count += 1 };
                    });
                    thread::yield_now();
                }
                drop(token);
            })
        };
        assert_eq!(disk.section() % 2, 0);
        device.join().unwrap();
        assert_eq!(disk.section(), 2);
    });
}

// Rule 9.

/// Uses the gate when it is woken.
struct Nosy(Gate);

impl Wake for Nosy {
    fn wake(self: std::sync::Arc<Self>) {
        drop(self.0.close("a waker"));
    }
}

#[test]
fn who_is_woken_may_use_the_gate() {
    check(3, || {
        let disk = Disk::new();
        let token = disk.gate.try_enter().unwrap();
        let section = disk.gate.close("section");
        let waker = Waker::from(std::sync::Arc::new(Nosy(disk.gate.clone())));
        let (mut request, mut opened) = (disk.gate.enter(), disk.gate.opened());
        let mut idle = disk.gate.wait_idle();
        assert!(poll_with(&mut request, &waker).is_pending());
        assert!(poll_with(&mut opened, &waker).is_pending());
        assert!(poll_with(&mut idle, &waker).is_pending());
        let device = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || disk.request(0, token))
        };
        drop(section);
        let token = block_on(request).unwrap();
        device.join().unwrap();
        disk.request(0, token);
        block_on(opened).unwrap();
        assert_eq!(disk.section(), 2);
    });
}

// Rule 12.

#[test]
fn what_is_seen_fits_together() {
    check(3, || {
        let disk = Disk::new();
        let device = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let token = block_on(disk.gate.enter()).unwrap();
                disk.request(0, token);
            })
        };
        let observer = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let stats = disk.gate.stats();
                let explained = !stats.holders.is_empty() || stats.in_flight > 0;
                assert!(stats.parked_now == 0 || explained, "{stats:?}");
                assert!(stats.sections < 1 || stats.holders.is_empty());
            })
        };
        disk.section();
        observer.join().unwrap();
        device.join().unwrap();
        let stats = disk.gate.stats();
        assert_eq!(
            (stats.sections, stats.in_flight, stats.parked_now),
            (1, 0, 0)
        );
        let waits: u64 = stats.wait_times.buckets().map(|(_, count)| count).sum();
        assert_eq!(waits, stats.parked);
    });
}

// Memory. At the end of each execution loom looks for what was not freed.

#[test]
fn the_last_token_or_the_last_handle_frees_the_gate() {
    check(4, || {
        let gate = Gate::new("disk", Clock::manual());
        let tokens = [gate.try_enter().unwrap(), gate.try_enter().unwrap()];
        let threads = tokens.map(|token| thread::spawn(move || drop(token)));
        drop(gate);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn the_last_token_may_meet_the_last_waiter_on_its_way_out() {
    check(5, || {
        let gate = Gate::new("disk", Clock::manual());
        let token = gate.try_enter().unwrap();
        let mut idle = gate.wait_idle();
        assert!(poll_once(&mut idle).is_pending());
        drop(gate);
        let device = thread::spawn(move || drop(token));
        drop(idle);
        device.join().unwrap();
    });
}

#[test]
fn a_ring_is_told_when_the_gate_opens() {
    check(4, || {
        let disk = Disk::new();
        let ring = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                let token = loop {
                    match disk.gate.try_enter() {
                        Some(token) => break token,
                        None => block_on(disk.gate.opened()).unwrap(),
                    }
                };
                disk.request(0, token);
            })
        };
        disk.section();
        ring.join().unwrap();
        assert_eq!(disk.section(), 1);
    });
}

#[test]
fn destruction_lets_nobody_sleep() {
    check(4, || {
        let disk = Disk::new();
        let section = disk.gate.close("section");
        let parked = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || block_on(disk.gate.enter()).is_err())
        };
        let ring = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || block_on(disk.gate.opened()).is_err())
        };
        disk.gate.destroy();
        drop(section);
        assert!(parked.join().unwrap());
        assert!(ring.join().unwrap());
        assert_eq!((disk.gate.parked(), disk.gate.in_flight()), (0, 0));
    });
}

#[test]
fn opening_and_destroying_agree_about_a_parked_request() {
    check(4, || {
        let disk = Disk::new();
        let section = disk.gate.close("section");
        let mut request = disk.gate.enter();
        assert!(poll_once(&mut request).is_pending());
        let device = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                if let Ok(token) = block_on(request) {
                    disk.request(0, token);
                }
            })
        };
        let owner = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || disk.gate.destroy())
        };
        drop(section);
        owner.join().unwrap();
        device.join().unwrap();
        assert_eq!((disk.gate.parked(), disk.gate.in_flight()), (0, 0));
    });
}
