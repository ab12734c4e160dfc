//! Guests that do whatever they like, sections that come and go, jobs that are paused, cancelled
//! and completed: after each mirror the disk holds what the guest wrote, and nothing else.
//!
//! The seeds are fixed; a failure names its own.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sluice_aio::{AioContext, Clock, IoBuffer, current};

use super::bench::{Bench, SIZE, Serving, common, copy_mode, pattern, run_with};
use crate::backend::Backend;
use crate::graph::Graph;
use crate::job::{Job, JobState};
use crate::mirror::CopyMode;

/// Bytes that a request's offset and length are multiples of.
const UNIT: u64 = 512;

/// A small generator of numbers (xorshift64*): the same for the same seed, on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// One guest's requests on a part of the disk of its own; within it they may overlap in time only
/// if they do not overlap in place, so what the disk must hold is known.
async fn guest(disk: Arc<Backend>, part: (u64, u64), seed: u64, stop: Stop) -> Vec<u8> {
    let mut dice = Dice(seed);
    let (start, len) = part;
    let model = pattern(SIZE);
    let from = usize::try_from(start).unwrap();
    let mut model = model[from..from + usize::try_from(len).unwrap()].to_vec();
    while !stop.is_set() {
        let units = dice.roll(24) + 1;
        let offset = dice.roll(len / UNIT - units) * UNIT;
        let length = units * UNIT;
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
        let token = disk.enter().await.unwrap();
        match dice.roll(10) {
            0 => {
                let done = disk.write_zeroes(&token, start + offset, length, dice.roll(2) == 0);
                done.await.unwrap();
                model[range].fill(0);
            }
            1 => disk.flush(&token).await.unwrap(),
            2 => {
                let buffer = IoBuffer::alloc(range.len());
                disk.read(&token, start + offset, buffer.clone())
                    .await
                    .unwrap();
                assert_eq!(buffer.to_vec(), model[range], "seed {seed:#x}");
            }
            _ => {
                let value = u8::try_from(dice.roll(255) + 1).unwrap();
                let buffer = IoBuffer::alloc(range.len());
                buffer.fill(0, buffer.len(), value);
                disk.write(&token, start + offset, buffer).await.unwrap();
                model[range].fill(value);
            }
        }
        drop(token);
        current::yield_now().await;
    }
    model
}

/// Tells guests in another loop to come to an end.
#[derive(Clone, Default)]
struct Stop(Arc<std::sync::atomic::AtomicBool>);

impl Stop {
    fn set(&self) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// Opens and ends sections of the disk's node, up to three at once, overlapping.
async fn sections(graph: Arc<Graph>, seed: u64, stop: Rc<RefCell<bool>>) {
    let mut dice = Dice(seed);
    let mut open = Vec::new();
    while !*stop.borrow() {
        if open.len() < 3 && dice.roll(2) == 0 {
            let section = if dice.roll(4) == 0 {
                graph.drain_all("random").await
            } else {
                let root = graph.backend("disk").and_then(|disk| disk.node()).unwrap();
                graph.drain(&root, "random").await
            };
            open.push(section);
        } else if !open.is_empty() {
            let index = usize::try_from(dice.roll(open.len() as u64)).unwrap();
            drop(open.swap_remove(index));
        }
        if open.is_empty() && dice.roll(2) == 0 {
            // A job in another loop gets on only while no section is open; nothing promises it that
            // there are such times.
            current::sleep(Duration::from_millis(1)).await;
        }
        for _ in 0..dice.roll(50) {
            current::yield_now().await;
        }
    }
}

const MODES: [CopyMode; 3] = [
    CopyMode::Background,
    CopyMode::WriteBlocking,
    CopyMode::Automatic,
];

/// Gives the job one of the verbs, or nothing; refusals are part of life.
fn meddle(job: &Job, dice: &mut Dice) {
    drop(match dice.roll(8) {
        5 | 6 => job.change(&copy_mode(MODES[usize::try_from(dice.roll(3)).unwrap()])),
        0 => job.pause(),
        1 => job.resume(),
        2 => job.set_speed(i64::try_from(dice.roll(1 << 30)).unwrap()),
        3 => job.set_speed(0),
        4 => job.complete(),
        _ => Ok(()),
    });
}

/// Mirrors the disk to `target`; on its way the job is disturbed. Returns whether it pivoted.
async fn one_mirror(bench: &Bench, target: &str, dice: &mut Dice) -> bool {
    let mut arguments = common("disk");
    arguments.granularity = Some(512 << dice.roll(8));
    arguments.auto_finalize = Some(dice.roll(2) == 0);
    arguments.copy_mode = MODES[usize::try_from(dice.roll(3)).unwrap()];
    let job = bench.mirror_with(target, arguments).await;
    for _ in 0..dice.roll(30) {
        meddle(&job, dice);
        current::yield_now().await;
    }
    let cancel = match dice.roll(4) {
        0 => Some(true),
        1 => Some(false),
        _ => None,
    };
    let mut patience = 5000;
    while !matches!(job.state(), JobState::Concluded | JobState::Null) {
        patience -= 1;
        assert!(
            patience > 0,
            "{job:?} {:?}",
            bench.graph.backend("disk").map(|disk| disk.gate().stats())
        );
        // Whatever the operator did before, the job is let go to its end.
        drop(job.resume());
        drop(job.set_speed(0));
        drop(match cancel {
            Some(force) => job.cancel(force),
            None => job.complete(),
        });
        drop(job.finalize());
        current::sleep(Duration::from_millis(1)).await;
    }
    let pivoted = bench.graph.backend("disk").unwrap().node().unwrap().name() == target;
    // One that was cancelled before it began has gone by itself.
    drop(job.dismiss());
    pivoted
}

fn story(serving: Serving, seed: u64) {
    run_with(serving, Clock::real(), |bench| async move {
        let disk = bench.disk("disk").await;
        let stop = Stop::default();
        let quarter = SIZE / 4;
        let guests: Vec<_> = (0..4u64)
            .map(|index| {
                let (disk, stop) = (Arc::clone(&disk), stop.clone());
                let part = (index * quarter, quarter);
                call(&bench.context, move || {
                    guest(disk, part, seed ^ (index + 1), stop)
                })
            })
            .collect();
        let enough = Rc::new(RefCell::new(false));
        let drains = current::spawn_local(sections(
            Arc::clone(&bench.graph),
            seed ^ 0x5ec7,
            Rc::clone(&enough),
        ));
        let mut dice = Dice(seed);
        let mut current_image = "disk".to_owned();
        for round in 0..4 {
            let target = format!("target{round}");
            if dice.roll(2) == 0 {
                bench.target(&target).await;
            } else {
                bench.empty_image(&target, SIZE);
                bench.plain_node(&target, json!({})).await;
            }
            if one_mirror(&bench, &target, &mut dice).await {
                current_image = target;
            }
        }
        *enough.borrow_mut() = true;
        drains.await.unwrap();
        stop.set();
        let mut model = Vec::new();
        for guest in guests {
            model.extend(guest.await);
        }
        assert!(
            bench.bytes(&current_image) == model,
            "seed {seed:#x}: {current_image}"
        );
        assert!(!bench.has_node_of("mirror_top"));
        assert_eq!(disk.gate().in_flight(), 0);
        assert!(!disk.gate().is_closed());
    });
}

/// Runs a task in a loop; its result is awaited here.
fn call<F: Future<Output = Vec<u8>> + 'static>(
    context: &AioContext,
    make: impl FnOnce() -> F + Send + 'static,
) -> impl Future<Output = Vec<u8>> {
    let result = context.call(make);
    async move { result.await.unwrap() }
}

#[test]
fn whatever_happens_the_disk_holds_what_was_written() {
    for seed in 1..=4 {
        story(Serving::Main, 0x9e37_79b9_7f4a_7c15 ^ seed);
    }
}

#[test]
fn whatever_happens_in_an_iothread_the_disk_holds_what_was_written() {
    for seed in 1..=4 {
        story(Serving::IoThread, 0xd1b5_4a32_d192_ed03 ^ seed);
    }
}
