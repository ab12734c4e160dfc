//! Guests that write what and where they like, requests that are held, sections, pauses and cancels:
//! the target of a job that succeeds is the disk of its start, and a chain of incremental backups
//! follows the disk.
//!
//! The seeds are fixed; a failure names its own. One alone:
//! `SLUICE_BACKUP_SEED=42 cargo nextest run -p sluice-block backup::tests::random`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use sluice_aio::{Clock, IoBuffer, current};

use super::bench::*;
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::job::{Job, JobState};
use crate::node::Node;

/// Histories in the suite, for each way of serving the guests.
const SEEDS: u64 = 12;

/// A small generator of numbers (xorshift64*): the same for the same seed, on every machine.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let roll = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides as u64;
        usize::try_from(roll).unwrap()
    }
}

/// Writes, zeroes and discards until it is told to stop. What the disk holds is read from its file.
async fn guest(disk: Arc<Backend>, seed: u64, stop: Arc<AtomicBool>) {
    let mut dice = Dice::new(seed);
    while !stop.load(Ordering::SeqCst) {
        let len = (dice.roll(200) + 1) * 512;
        let offset = dice.roll((SIZE - len) / 512) * 512;
        let token = disk.enter().await.unwrap();
        let (at, length) = (offset as u64, len as u64);
        match dice.roll(6) {
            0 => {
                disk.write_zeroes(&token, at, length, dice.roll(2) == 0)
                    .await
            }
            1 => disk.discard(&token, at, length).await,
            _ => {
                let buffer = IoBuffer::alloc(len);
                buffer.fill(0, len, u8::try_from(dice.roll(255) + 1).unwrap());
                disk.write(&token, at, buffer).await
            }
        }
        .unwrap();
        drop(token);
        for _ in 0..dice.roll(20) {
            current::yield_now().await;
        }
    }
}

/// Holds requests to the target and lets them go, for as long as the job lives.
async fn hold(target: Arc<Node>, seed: u64, stop: Arc<AtomicBool>) {
    let mut dice = Dice::new(seed);
    let debug = debug(&target);
    let events = [DebugEvent::WriteAio, DebugEvent::PwritevZero];
    while !stop.load(Ordering::SeqCst) {
        if debug.set_break(events[dice.roll(2)], "held").is_err() {
            break;
        }
        for _ in 0..dice.roll(100) {
            current::yield_now().await;
        }
        // If nothing has come, it is taken away.
        if debug.is_suspended("held") || debug.remove_break("held").is_err() {
            debug.resume("held").unwrap();
        }
        current::sleep(Duration::from_micros(200)).await;
    }
}

async fn meddle(bench: &Bench, job: &Job, dice: &mut Dice) {
    match dice.roll(7) {
        0 => drop(job.pause()),
        1 => drop(job.resume()),
        2 => drop(job.set_speed(i64::try_from(dice.roll(1 << 26)).unwrap())),
        3 => drop(job.set_speed(0)),
        4 => {
            let node = bench.graph.node(["disk", "target"][dice.roll(2)]).unwrap();
            let section = bench.graph.drain(&node, "random").await;
            for _ in 0..dice.roll(20) {
                current::yield_now().await;
            }
            drop(section);
        }
        _ => current::yield_now().await,
    }
}

async fn history(bench: Bench, seed: u64) {
    let mut dice = Dice::new(seed);
    let disk = bench.disk("disk").await;
    let node = bench.graph.node("disk").unwrap();
    let target = bench.target("target").await;
    bench.add_bitmap("b");
    let stop = Arc::new(AtomicBool::new(false));
    let guests: Vec<_> = (0..3)
        .map(|index| {
            let (disk, stop) = (Arc::clone(&disk), Arc::clone(&stop));
            let seed = seed * 16 + index;
            bench.context.call(move || guest(disk, seed, stop))
        })
        .collect();
    let held_stop = Arc::clone(&stop);
    let holding = current::spawn_local(hold(Arc::clone(&target), seed ^ 0x401d, held_stop));
    // The first is full, or the target would not follow the disk.
    let mut full = true;
    for round in 0..4 {
        let sync = if full { "full" } else { "incremental" };
        let mut more = json!({
            "bitmap": "b", "bitmap-mode": "on-success",
            "auto-finalize": dice.roll(2) == 0,
            "x-perf": {"max-workers": dice.roll(8) + 1, "max-chunk": CLUSTER << dice.roll(4)}
        });
        if dice.roll(4) == 0 {
            more["speed"] = json!(1 << 24);
        }
        // The instant is that of the inner section, which nothing gets between.
        let section = bench.graph.drain(&node, "an instant").await;
        let wanted = bench.bytes("disk");
        let job = bench.backup(sync, &more).await;
        drop(section);
        for _ in 0..dice.roll(30) {
            meddle(&bench, &job, &mut dice).await;
        }
        let cancels = dice.roll(4) == 0;
        if cancels {
            drop(job.cancel(true));
        }
        let mut patience = 10_000;
        while !matches!(job.state(), JobState::Concluded | JobState::Null) {
            patience -= 1;
            assert!(patience > 0, "seed {seed}, round {round}: {job:?}");
            drop(job.resume());
            drop(job.set_speed(0));
            drop(job.finalize());
            current::sleep(Duration::from_millis(1)).await;
        }
        let error = job.info().error;
        // One that was cancelled before it began has gone by itself.
        drop(job.dismiss());
        match error {
            None => {
                assert!(
                    bench.bytes("target") == wanted,
                    "seed {seed}, round {round}, {sync}"
                );
                full = false;
            }
            // Its marks are back, so the next one has all that this one should have copied; only a
            // full one has no marks for that.
            Some(error) => assert!(cancels, "seed {seed}: {error}"),
        }
    }
    stop.store(true, Ordering::SeqCst);
    for guest in guests {
        guest.await.unwrap();
    }
    holding.await.unwrap();
    bench.check_clean();
    assert_eq!(disk.gate().in_flight(), 0);
}

#[test]
fn whatever_happens_the_target_is_the_disk_of_the_start() {
    let seed = std::env::var("SLUICE_BACKUP_SEED").ok();
    let seeds = match seed.and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..SEEDS,
    };
    for seed in seeds {
        for in_thread in [false, true] {
            run_with(in_thread, Clock::real(), |bench| history(bench, seed + 1));
        }
    }
}
