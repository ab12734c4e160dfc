//! Guests that do whatever they like, sections that come and go, requests of either side that are held, let go in any
//! order and made to fail, jobs that are paused, switched, cancelled and completed. A model of the disk is kept all the
//! while, and the time of every change in it. Then:
//!
//! * the disk holds what its guests were told it holds, wherever it stands by now;
//! * an image that a job has left in good order, the old source or the target of a soft cancel, is the disk of one instant at which
//!   nothing was on its way, and nobody writes to it any more;
//! * both sides are the same whenever the job says so: inside its last section, and when it is in sync and the disk is held;
//! * no guest has seen an error of a target.
//!
//! The seeds are fixed; a failure names its own. One alone:
//! `SLUICE_MIRROR_SEED=42 cargo nextest run -p sluice-block mirror::tests::random`.

mod guest;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use sluice_aio::{Clock, current};

use self::guest::{History, OWNERS, RIVALS, SOURCE_ERROR};
use super::bench::{Bench, SIZE, Serving, common, copy_mode, debug, is_synced, pattern, run_with};
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::graph::Graph;
use crate::job::{Job, JobState, OnError};
use crate::mirror::CopyMode;
use crate::node::Node;

/// Stories in the suite, for each way of serving the guests.
const SEEDS: u64 = 6;
/// Mirrors in one story.
const ROUNDS: usize = 4;

/// A small generator of numbers (xorshift64*): the same for the same seed, on every machine.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.roll(from.len() as u64)).unwrap()]
    }

    /// A byte that is not zero.
    fn value(&mut self) -> u8 {
        u8::try_from(self.roll(255) + 1).unwrap()
    }
}

/// Tells tasks of a round to come to an end. Any thread.
#[derive(Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// One side of a mirror: which of its requests are held, and what they fail with then.
struct Side {
    node: Arc<Node>,
    events: &'static [DebugEvent],
    errors: &'static [i32],
}

const OF_SOURCE: &[DebugEvent] = &[
    DebugEvent::ReadAio,
    DebugEvent::WriteAio,
    DebugEvent::PwritevZero,
    DebugEvent::Pdiscard,
    DebugEvent::FlushToDisk,
];
const OF_TARGET: &[DebugEvent] = &[
    DebugEvent::WriteAio,
    DebugEvent::WriteAio,
    DebugEvent::PwritevDone,
    DebugEvent::PwritevZero,
    DebugEvent::FlushToDisk,
    DebugEvent::PivotAgreed,
    DebugEvent::PivotSwapped,
];
/// At these the job has no error to be judged.
const NEVER_FAILING: &[DebugEvent] = &[DebugEvent::PivotAgreed, DebugEvent::PivotSwapped];

/// Holds up to three requests at a time and lets them go in any order; some fail until there is `calm`.
async fn hold(sides: Vec<Side>, seed: u64, calm: Stop, stop: Stop) {
    let mut dice = Dice::new(seed);
    let mut held = [None; 3];
    loop {
        let stops = stop.is_set() || sides.is_empty();
        let free = dice.pick(&[0, 1, 2]);
        for (index, held) in held.iter_mut().enumerate() {
            let tag = ["a", "b", "c"][index];
            let Some((side, event)) = *held else {
                if index == free && !stops {
                    let side = usize::try_from(dice.roll(sides.len() as u64)).unwrap();
                    let event = dice.pick(sides[side].events);
                    debug(&sides[side].node).set_break(event, tag).unwrap();
                    *held = Some((side, event));
                }
                continue;
            };
            if !stops && dice.roll(3) != 0 {
                continue;
            }
            let side = &sides[side];
            let debug = debug(&side.node);
            // If nothing has come, it is taken away.
            if debug.is_suspended(tag) || debug.remove_break(tag).is_err() {
                let may_fail = !stops && !calm.is_set() && !NEVER_FAILING.contains(&event);
                if may_fail && dice.roll(4) == 0 {
                    debug.fail(tag, dice.pick(side.errors)).unwrap();
                } else {
                    debug.resume(tag).unwrap();
                }
            }
            *held = None;
        }
        if stops {
            return;
        }
        for _ in 0..dice.roll(60) {
            current::yield_now().await;
        }
        current::sleep(Duration::from_micros(dice.roll(300))).await;
    }
}

/// Looks at both sides in every pivot's section, when the job holds them for the same.
async fn watch_pivots(bench: Rc<Bench>, source: String, target: Arc<Node>) {
    const TAG: &str = "clean";
    let debug = debug(&target);
    while debug.set_break(DebugEvent::PivotClean, TAG).is_ok() {
        if debug.wait_break(TAG).await.is_err() {
            return;
        }
        let same = bench.bytes(&source) == bench.bytes(target.name());
        // One that was cancelled meanwhile has let its guests go on.
        if debug.is_suspended(TAG) {
            assert!(same, "{source} and {} differ in the pivot", target.name());
            debug.resume(TAG).unwrap();
        }
    }
}

/// Opens and ends sections of the disk's node, up to three at once, overlapping.
async fn sections(
    graph: Arc<Graph>,
    target: Rc<RefCell<String>>,
    seed: u64,
    stop: Rc<RefCell<bool>>,
) {
    let mut dice = Dice::new(seed ^ 0x5ec7);
    let mut open = Vec::new();
    while !*stop.borrow() {
        if open.len() < 3 && dice.roll(2) == 0 {
            let root = graph.backend("disk").and_then(|disk| disk.node()).unwrap();
            let target = graph.node(&target.borrow());
            let section = match (dice.roll(5), target) {
                (0, _) => graph.drain_all("random").await,
                (1, Ok(target)) => graph.drain(&target, "random").await,
                _ => graph.drain(&root, "random").await,
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

const POLICIES: [OnError; 4] = [
    OnError::Report,
    OnError::Ignore,
    OnError::Enospc,
    OnError::Stop,
];

/// Gives the job one of the verbs, or nothing; refusals are part of life.
fn meddle(job: &Arc<Job>, dice: &mut Dice) {
    drop(match dice.roll(8) {
        5 | 6 => job.change(&copy_mode(dice.pick(&MODES))),
        0 => job.pause(),
        1 => job.resume(),
        2 => job.set_speed(i64::try_from(dice.roll(1 << 30)).unwrap()),
        3 => job.set_speed(0),
        4 => job.complete(),
        _ => Ok(()),
    });
}

/// What has become of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The disk is on the target.
    Pivoted,
    /// The target is a copy of one instant.
    Copied,
    /// It was cancelled, or met an error.
    Failed,
}

/// Holds the disk; if the job says that it is in sync, looks whether it is.
async fn check_sync(bench: &Bench, job: &Job, source: &str, target: &str) {
    let root = bench.graph.backend("disk").and_then(|disk| disk.node());
    let section = bench.graph.drain(&root.unwrap(), "a look").await;
    let moved = || bench.graph.backend("disk").unwrap().node().unwrap().name() == target;
    if !moved() && is_synced(job) {
        let same = bench.bytes(source) == bench.bytes(target);
        assert!(same, "{source} and {target} differ in sync");
    }
    drop(section);
}

/// Mirrors the disk from the image `source` to `target`; on its way the job is disturbed. Sets `calm` when it has to end: one that
/// passes errors over may come across another in each of its attempts.
async fn one_mirror(
    bench: &Bench,
    source: &str,
    target: &str,
    dice: &mut Dice,
    calm: &Stop,
) -> End {
    let mut arguments = common("disk");
    arguments.granularity = Some(512 << dice.roll(8));
    arguments.auto_finalize = Some(dice.roll(2) == 0);
    arguments.copy_mode = dice.pick(&MODES);
    arguments.buf_size = dice.pick(&[None, Some(65536), Some(1 << 20)]);
    arguments.on_source_error = dice.pick(&POLICIES);
    arguments.on_target_error = dice.pick(&POLICIES);
    let job = bench.mirror_with(target, arguments).await;
    for _ in 0..dice.roll(60) {
        meddle(&job, dice);
        match dice.roll(4) {
            0 => check_sync(bench, &job, source, target).await,
            1 => current::sleep(Duration::from_micros(dice.roll(500))).await,
            _ => current::yield_now().await,
        }
    }
    let cancel = match dice.roll(4) {
        0 => Some(true),
        1 => Some(false),
        _ => None,
    };
    let mut patience = 5000;
    while !matches!(job.state(), JobState::Concluded | JobState::Null) {
        patience -= 1;
        if patience == 4000 {
            calm.set();
        }
        assert!(
            patience > 0,
            "{job:?} {:?}",
            bench.graph.backend("disk").map(|disk| disk.gate().stats())
        );
        // Whatever the operator did before, the job is let go to its end.
        drop(job.resume());
        drop(job.set_speed(0));
        drop(match cancel {
            Some(true) => job.cancel(true),
            // Before it is ready that would be by force.
            Some(false) if job.state() == JobState::Ready => job.cancel(false),
            Some(false) => Ok(()),
            None => job.complete(),
        });
        drop(job.finalize());
        current::sleep(Duration::from_millis(1)).await;
    }
    let pivoted = bench.graph.backend("disk").unwrap().node().unwrap().name() == target;
    let failed = job.info().error.is_some();
    // One that was cancelled before it began has gone by itself.
    let gone = job.state() == JobState::Null;
    drop(job.dismiss());
    match pivoted {
        true => End::Pivoted,
        false if failed || gone => End::Failed,
        false => End::Copied,
    }
}

/// Says how to play the story again, if it ends badly.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!("seed {seed}: SLUICE_MIRROR_SEED={seed} plays it alone");
        }
    }
}

/// The stories of the suite, or the one that was asked for.
fn stories(serving: Serving) {
    let seed = std::env::var("SLUICE_MIRROR_SEED").ok();
    let seeds = match seed.map(|seed| seed.parse().expect("SLUICE_MIRROR_SEED is a number")) {
        Some(seed) => seed..seed + 1,
        None => 0..SEEDS,
    };
    for seed in seeds {
        story(serving, seed);
    }
}

/// A target, with or without something that holds its requests.
async fn make_target(bench: &Bench, name: &str, dice: &mut Dice) -> Option<Arc<Node>> {
    bench.empty_image(name, SIZE);
    if dice.roll(4) == 0 {
        bench.plain_node(name, json!({})).await;
        return None;
    }
    Some(debug_node(bench, name, dice).await)
}

/// A node whose requests can be held, above an image that gives back what is discarded, or does not.
async fn debug_node(bench: &Bench, name: &str, dice: &mut Dice) -> Arc<Node> {
    let discard = dice.pick(&["ignore", "unmap"]);
    let file = json!({"driver": "file", "filename": bench.path(name), "discard": discard});
    let raw = json!({"driver": "raw", "file": file, "discard": discard});
    let options = json!({
        "driver": "blkdebug", "node-name": name, "image": raw, "discard": discard
    });
    bench.node(options).await
}

fn begin_guests(
    bench: &Bench,
    disk: &Arc<Backend>,
    seed: u64,
    history: &Arc<History>,
) -> Vec<impl Future<Output = ()> + use<>> {
    let guests = (0..OWNERS + RIVALS).map(|guest| {
        let (disk, history) = (Arc::clone(disk), Arc::clone(history));
        let seed = seed * 16 + guest as u64;
        let result = bench.context.call(move || async move {
            match guest < OWNERS {
                true => guest::owner(disk, guest, seed, history).await,
                false => guest::rival(disk, guest, seed, history).await,
            }
        });
        async move { result.await.unwrap() }
    });
    guests.collect()
}

fn story(serving: Serving, seed: u64) {
    let _named = Named(seed);
    run_with(serving, Clock::real(), |bench| async move {
        let bench = Rc::new(bench);
        let mut dice = Dice::new(seed);
        std::fs::write(bench.path("first"), pattern(SIZE)).unwrap();
        // What the disk stands on, if its requests can be held; else worker threads copy it.
        let (disk, mut source) = match dice.roll(4) {
            0 => {
                let node = bench.plain_node("first", json!({})).await;
                (bench.attach("disk", &node), None)
            }
            _ => {
                let node = debug_node(&bench, "first", &mut dice).await;
                (bench.attach("disk", &node), Some(node))
            }
        };
        let history = Arc::new(History::default());
        let guests = begin_guests(&bench, &disk, seed, &history);
        let enough = Rc::new(RefCell::new(false));
        let target_now = Rc::new(RefCell::new(String::new()));
        let drains = current::spawn_local(sections(
            Arc::clone(&bench.graph),
            Rc::clone(&target_now),
            seed,
            Rc::clone(&enough),
        ));
        let mut current_image = "first".to_owned();
        let mut left: Vec<(String, Vec<u8>)> = Vec::new();
        for round in 0..ROUNDS {
            let target = format!("target{round}");
            let debug_target = make_target(&bench, &target, &mut dice).await;
            (*target_now.borrow_mut()).clone_from(&target);
            let source_side = source.clone().map(|node| Side {
                node,
                events: OF_SOURCE,
                errors: &[SOURCE_ERROR],
            });
            let target_side = debug_target.clone().map(|node| Side {
                node,
                events: OF_TARGET,
                errors: &[libc::ENOSPC, libc::EREMOTEIO],
            });
            let sides = source_side.into_iter().chain(target_side).collect();
            let (calm, free) = (Stop::default(), Stop::default());
            let holding = hold(sides, dice.0 ^ 0x401d, calm.clone(), free.clone());
            let holding = current::spawn_local(holding);
            let watching = debug_target.clone().map(|node| {
                let watch = watch_pivots(Rc::clone(&bench), current_image.clone(), node);
                current::spawn_local(watch)
            });
            // What still fails is that of the round before.
            drop(bench.graph.drain_all("between rounds").await);
            let foreign = history.foreign_errors();
            let end = one_mirror(&bench, &current_image, &target, &mut dice, &calm).await;
            free.set();
            holding.await.unwrap();
            if let Some(node) = &debug_target {
                debug(node).remove_break("clean").unwrap();
                watching.unwrap().await.unwrap();
            }
            if end != End::Pivoted {
                let now = history.foreign_errors();
                assert_eq!(now, foreign, "a guest saw a target's error");
            }
            let in_order = match end {
                End::Pivoted => Some(std::mem::replace(&mut current_image, target)),
                End::Copied => Some(target),
                End::Failed => None,
            };
            if let Some(name) = in_order {
                let image = bench.bytes(&name);
                assert!(history.has_instant_of(&image), "{end:?}: {name}");
                left.push((name, image));
            }
            if end == End::Pivoted {
                source = debug_target;
            }
        }
        *enough.borrow_mut() = true;
        drains.await.unwrap();
        history.stop();
        for guest in guests {
            guest.await;
        }
        let model = history.model();
        assert!(
            bench.bytes(&current_image)[..model.len()] == model,
            "{current_image} is not what was written"
        );
        for (name, image) in left {
            assert!(bench.bytes(&name) == image, "{name} was written to");
        }
        assert!(!bench.has_node_of("mirror_top"));
        assert_eq!(disk.gate().in_flight(), 0);
        assert!(!disk.gate().is_closed());
    });
}

#[test]
fn whatever_happens_the_disk_holds_what_was_written() {
    stories(Serving::Main);
}

#[test]
fn whatever_happens_in_an_iothread_the_disk_holds_what_was_written() {
    stories(Serving::IoThread);
}
