//! What survives a crash: disks with a volatile cache below stacks of drivers lose power at a random
//! moment, with random requests under way, and keep of every sector what is on the medium or any
//! version that the cache still had.
//!
//! Afterwards every byte must be one that the promises allow: of all writes to it, none that had ended before
//! another began which was durable by then. A write is durable when it has ended on a disk without a write
//! cache, or when a flush has ended that began after its end. Each seed is a history, the same every
//! time: `SLUICE_CRASH_SEED=42 cargo nextest run -p sluice-block crash`.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use sluice_aio::{IoBuffer, current};

use super::bench::{Bench, run};
use crate::backend::Backend;
use crate::driver::{Allocation, BlockFuture, BlockStatus, Driver, Limits, RequestFlags};
use crate::node::{Node, Owner};

const SEEDS: u64 = 600;
const SECTOR: usize = 512;
const SIZE: usize = 64 * SECTOR;
/// What the medium holds at first.
const INITIAL: u8 = 0xff;
/// Guests of the disk, and the requests that each makes.
const GUESTS: usize = 4;
const REQUESTS: usize = 12;

/// The numbers of a seed.
#[derive(Debug)]
struct Random(Mutex<u64>);

impl Random {
    fn below(&self, bound: usize) -> usize {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }

    fn one_in(&self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// A disk with a volatile cache.
#[derive(Debug)]
struct Disk {
    random: Random,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What reads give.
    cache: Vec<u8>,
    medium: Vec<u8>,
    /// Versions of sectors that are only in the cache, oldest first, numbered.
    pending: Vec<(u64, usize, Vec<u8>)>,
    next: u64,
}

impl Disk {
    async fn pause(&self) {
        for _ in 0..self.random.below(3) {
            current::yield_now().await;
        }
    }

    async fn change(&self, offset: u64, bytes: &[u8]) {
        let first = usize::try_from(offset).unwrap() / SECTOR;
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            self.pause().await;
            let (mut state, at) = (self.state.lock(), first + index);
            state.cache[at * SECTOR..][..SECTOR].copy_from_slice(sector);
            let number = state.next;
            state.next += 1;
            state.pending.push((number, at, sector.to_vec()));
        }
        self.pause().await;
    }

    /// What is found after the power has failed: the disk has got to any of its versions of a sector.
    fn crash(&self) -> Vec<u8> {
        let state = self.state.lock();
        let mut found = state.medium.clone();
        for at in 0..SIZE / SECTOR {
            let versions = state.pending.iter().filter(|(_, sector, _)| *sector == at);
            let versions: Vec<_> = versions.map(|(_, _, bytes)| bytes).collect();
            let chosen = self.random.below(versions.len() + 1);
            if let Some(bytes) = versions.get(chosen) {
                found[at * SECTOR..][..SECTOR].copy_from_slice(bytes);
            }
        }
        found
    }
}

/// Its driver.
#[derive(Debug)]
struct Volatile(Arc<Disk>);

impl Driver for Volatile {
    fn format_name(&self) -> &'static str {
        "volatile"
    }

    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 512,
            ..Limits::default()
        }
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let start = usize::try_from(offset).unwrap();
            for at in (0..buffer.len()).step_by(SECTOR) {
                self.0.pause().await;
                let sector = self.0.state.lock().cache[start + at..][..SECTOR].to_vec();
                buffer.copy_from_slice(at, &sector);
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, buffer: IoBuffer, _: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.0.change(offset, &buffer.to_vec()).await;
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            if self.0.random.one_in(2) {
                return Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP).into());
            }
            let zeroes = vec![0; usize::try_from(len).unwrap()];
            self.0.change(offset, &zeroes).await;
            Ok(())
        })
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let end = self.0.state.lock().next;
            self.0.pause().await;
            let mut state = self.0.state.lock();
            let pending = std::mem::take(&mut state.pending);
            let (flushed, rest): (Vec<_>, Vec<_>) = pending
                .into_iter()
                .partition(|(number, _, _)| *number < end);
            state.pending = rest;
            for (_, at, bytes) in flushed {
                state.medium[at * SECTOR..][..SECTOR].copy_from_slice(&bytes);
            }
            Ok(())
        })
    }

    fn block_status(&self, _: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        let allocation = Allocation::Data;
        BlockFuture::new(async move { Ok(BlockStatus { allocation, len }) })
    }
}

/// A guest's write, or writing of zeroes.
#[derive(Debug)]
struct Write {
    range: Range<usize>,
    value: u8,
    began: u64,
    ended: Option<u64>,
    durable: bool,
}

/// What the guests have been told.
#[derive(Debug, Default)]
struct Told {
    writes: RefCell<Vec<Write>>,
    moment: Cell<u64>,
}

impl Told {
    fn now(&self) -> u64 {
        self.moment.set(self.moment.get() + 1);
        self.moment.get()
    }

    fn begins(&self, range: Range<usize>, zeroes: bool) -> usize {
        let began = self.now();
        let mut writes = self.writes.borrow_mut();
        let number = writes.len();
        writes.push(Write {
            range,
            // Every write has a value of its own.
            value: if zeroes {
                0
            } else {
                1 + u8::try_from(number).unwrap()
            },
            began,
            ended: None,
            durable: false,
        });
        number
    }

    fn ends(&self, number: usize, durable: bool) {
        let now = self.now();
        let write = &mut self.writes.borrow_mut()[number];
        write.ended = Some(now);
        write.durable |= durable;
    }

    /// A flush that began at `began` has ended.
    fn flushed(&self, began: u64) {
        for write in self.writes.borrow_mut().iter_mut() {
            write.durable |= write.ended.is_some_and(|ended| ended < began);
        }
    }

    /// What may be found at byte `at`.
    fn allowed(&self, at: usize) -> Vec<u8> {
        let writes = self.writes.borrow();
        let here = writes.iter().filter(|write| write.range.contains(&at));
        let here: Vec<_> = here.collect();
        // The last moment at which a durable one began: what had ended by then is gone.
        let durable = here.iter().filter(|write| write.durable);
        let Some(last) = durable.map(|write| write.began).max() else {
            let values = here.iter().map(|write| write.value);
            return values.chain([INITIAL]).collect();
        };
        let lives = |write: &&&Write| write.ended.is_none_or(|end| end > last);
        let values = here.iter().filter(lives).map(|write| write.value);
        values.collect()
    }

    /// Looks at every byte that was found after a crash.
    fn check(&self, found: &[u8]) {
        // Between two ends of writes the same is allowed everywhere.
        let writes = self.writes.borrow();
        let ends = writes
            .iter()
            .flat_map(|write| [write.range.start, write.range.end]);
        let mut ends: Vec<_> = ends.chain([0, SIZE]).collect();
        ends.sort_unstable();
        for pair in ends.windows(2).filter(|pair| pair[0] < pair[1]) {
            let allowed = self.allowed(pair[0]);
            let part = &found[pair[0]..pair[1]];
            let wrong = part.iter().position(|value| !allowed.contains(value));
            assert_eq!(wrong, None, "from byte {}: {:#?}", pair[0], writes);
        }
    }
}

async fn guest(backend: Arc<Backend>, told: Rc<Told>, disk: Arc<Disk>) {
    let random = &disk.random;
    for _ in 0..REQUESTS {
        let token = backend.enter().await.unwrap();
        // Sectors, or any bytes.
        let unit = if random.one_in(2) { SECTOR } else { 1 };
        let start = random.below(SIZE / unit) * unit;
        let most = (SIZE - start).min(6 * SECTOR) / unit;
        let range = start..start + (1 + random.below(most)) * unit;
        let (offset, len) = (start as u64, range.len());
        let durable = !backend.write_cache();
        match random.below(8) {
            0 | 1 => {
                let began = told.now();
                backend.flush(&token).await.unwrap();
                told.flushed(began);
            }
            2 => {
                let number = told.begins(range, true);
                let zeroed = backend.write_zeroes(&token, offset, len as u64, random.one_in(2));
                zeroed.await.unwrap();
                told.ends(number, durable);
            }
            _ => {
                let number = told.begins(range, false);
                let buffer = IoBuffer::alloc(len);
                buffer.fill(0, len, told.writes.borrow()[number].value);
                backend.write(&token, offset, buffer).await.unwrap();
                told.ends(number, durable);
            }
        }
        drop(token);
        for _ in 0..random.below(4) {
            current::yield_now().await;
        }
    }
}

/// A node over the disk, through what may stand between them.
async fn stack(bench: &Bench, disk: &Arc<Disk>) -> Arc<Node> {
    let random = &disk.random;
    let driver = Box::new(Volatile(Arc::clone(disk)));
    let mut node = Node::new("disk".to_owned(), driver, false, Owner::Monitor);
    let mut change = bench.graph.transaction();
    change.add_node(&node);
    change.commit().unwrap();
    for level in 0..random.below(4) {
        let (name, below) = (format!("level{level}"), node.name());
        let detect = if random.one_in(2) { "on" } else { "off" };
        let mut options = match random.below(4) {
            0 => json!({"driver": "raw", "file": below}),
            1 => {
                let target = json!({"driver": "null-co", "size": SIZE});
                json!({"driver": "copy-before-write", "file": below, "target": target})
            }
            2 => json!({"driver": "copy-on-read", "file": below}),
            _ => json!({"driver": "blkdebug", "image": below, "align": 4096, "max-transfer": 8192}),
        };
        options["node-name"] = name.into();
        options["detect-zeroes"] = detect.into();
        node = bench.add(options).await.unwrap();
    }
    node
}

async fn play(bench: Bench, seed: u64) {
    let disk = Arc::new(Disk {
        random: Random(Mutex::new(seed)),
        state: Mutex::new(State {
            cache: vec![INITIAL; SIZE],
            medium: vec![INITIAL; SIZE],
            pending: Vec::new(),
            next: 0,
        }),
    });
    let node = stack(&bench, &disk).await;
    let backend = bench.graph.add_backend("guest", &node).unwrap();
    backend.set_write_cache(disk.random.one_in(2));
    let told = Rc::new(Told::default());
    let guests: Vec<_> = (0..GUESTS)
        .map(|_| {
            let guest = guest(Arc::clone(&backend), Rc::clone(&told), Arc::clone(&disk));
            current::spawn_local(guest)
        })
        .collect();
    for _ in 0..disk.random.below(400) {
        current::yield_now().await;
    }
    told.check(&disk.crash());
    for guest in guests {
        guest.await.unwrap();
    }
    let token = backend.enter().await.unwrap();
    backend.flush(&token).await.unwrap();
    told.flushed(told.now());
    told.check(&disk.crash());
}

#[test]
fn what_was_promised_to_be_durable_survives_a_crash() {
    let only = std::env::var("SLUICE_CRASH_SEED").ok();
    let only = only.map(|seed| seed.parse().expect("SLUICE_CRASH_SEED is a number"));
    for seed in only.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let played = std::panic::catch_unwind(|| {
            run(|bench| play(bench, seed));
        });
        assert!(
            played.is_ok(),
            "seed {seed}: SLUICE_CRASH_SEED={seed} plays it alone"
        );
    }
}
