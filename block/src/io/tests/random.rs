//! Requests of any alignment from many tasks at once, against a model. A failure names its seed;
//! `seed(…)` in a test of one's own plays it again.

use std::cell::RefCell;
use std::rc::Rc;

use sluice_aio::{IoBuffer, current};

use super::{Disk, Random, Recipe, run};
use crate::driver::{Limits, RequestFlags};
use crate::io::{DetectZeroes, IoPolicy};
use crate::options::Discard;

/// Bytes of a disk: small, so that requests meet; no whole number of large blocks.
const SIZE: u64 = 9 * 4096 + 512;
/// Seeds that the suite plays.
const SEEDS: u64 = 2000;

fn disk(random: &Random, seed: u64) -> Disk {
    let alignment = [1, 512, 4096, 4096][usize::try_from(random.below(4)).unwrap()];
    let maybe = |bytes| (random.below(2) == 0).then_some(bytes);
    let limits = Limits {
        request_alignment: alignment,
        max_transfer: maybe(6144),
        write_zeroes_alignment: if random.below(2) == 0 { 8192 } else { 0 },
        max_write_zeroes: maybe(10_240),
        discard_alignment: if random.below(2) == 0 { 4096 } else { 0 },
        max_discard: maybe(10_240),
    };
    let disk = Recipe {
        size: usize::try_from(SIZE).unwrap(),
        limits,
        zeroes: random.below(2) == 0,
        step: 1536,
        seed,
    }
    .make();
    let detect = [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap];
    let detect = detect[usize::try_from(random.below(3)).unwrap()];
    let policy = IoPolicy::new(Discard::Unmap, detect).unwrap();
    disk.node.set_policy(policy);
    disk
}

/// A range within `0..size`, anywhere or on sectors.
fn range(random: &Random, start: u64, size: u64) -> (u64, u64) {
    let unit = if random.below(2) == 0 { 1 } else { 512 };
    let offset = random.below(size / unit) * unit;
    let most = (size - offset).min(3 * 4096);
    let len = (1 + random.below(most))
        .next_multiple_of(unit)
        .min(size - offset);
    (start + offset, len)
}

/// Tasks that each have bytes of their own, which lie in blocks that they share: nobody may lose a
/// byte because somebody else writes beside it.
async fn neighbours(seed: u64) {
    let random = Rc::new(Random::new(seed));
    let disk = Rc::new(disk(&random, seed));
    // Where one task's bytes end and the next one's begin.
    let mut bounds: Vec<_> = (0..5).map(|_| random.below(SIZE)).collect();
    bounds.extend([0, SIZE]);
    bounds.sort_unstable();
    bounds.dedup();
    let mut tasks = Vec::new();
    for pair in bounds.windows(2) {
        let (start, size) = (pair[0], pair[1] - pair[0]);
        if size < 512 {
            continue;
        }
        let (disk, random) = (Rc::clone(&disk), Rc::clone(&random));
        tasks.push(current::spawn_local(async move {
            let whole = disk.bytes();
            let mut model = whole[index(start)..index(start + size)].to_vec();
            for _ in 0..8 {
                act(&disk, &random, &mut model, start, size).await;
            }
            (start, model)
        }));
    }
    for task in tasks {
        let (start, model) = task.await.unwrap();
        let bytes = disk.bytes();
        let found = &bytes[index(start)..index(start) + model.len()];
        assert!(found == model, "seed {seed}: lost bytes at {start}");
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

/// One request of a task, and the same on its model.
async fn act(disk: &Disk, random: &Random, model: &mut [u8], start: u64, size: u64) {
    let (offset, len) = range(random, start, size);
    let at = index(offset - start);
    let part = at..at + index(len);
    match random.below(8) {
        0 | 1 => {
            let found = disk.read(offset, index(len)).await.unwrap();
            assert!(found == model[part], "read {offset}+{len}");
        }
        2 => {
            let flags = RequestFlags::MAY_UNMAP;
            disk.node.write_zeroes(offset, len, flags).await.unwrap();
            model[part].fill(0);
        }
        3 => {
            disk.node.discard(offset, len).await.unwrap();
            // Whatever the bytes have become, it was not somebody else's business.
            let found = disk.read(offset, index(len)).await.unwrap();
            for (byte, found) in model[part].iter_mut().zip(found) {
                assert!(found == *byte || found == 0, "discard {offset}+{len}");
                *byte = found;
            }
        }
        kind => {
            let value = if kind == 4 {
                0
            } else {
                u8::try_from(random.below(255)).unwrap()
            };
            disk.write(offset, &vec![value; index(len)]).await.unwrap();
            model[part].fill(value);
        }
    }
}

#[test]
fn neighbours_in_one_block_keep_their_bytes() {
    run(|| async {
        for seed in 0..SEEDS {
            neighbours(seed).await;
        }
    });
}

/// One write of a sector, by the time of its beginning and its end.
#[derive(Clone, Copy, Debug)]
struct Written {
    began: u64,
    /// `u64::MAX` while it runs.
    ended: u64,
    value: u64,
}

/// What happened to each sector, for the question which values a read may see.
struct History {
    clock: u64,
    sectors: Vec<Vec<Written>>,
}

impl History {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Whether a read between `began` and now may see these bytes: there is a write of them that had
    /// begun, and no other write lies wholly between that one's end and the read's beginning.
    fn allows(&self, sector: usize, began: u64, bytes: &[u8]) -> bool {
        let writes = &self.sectors[sector];
        let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        // The driver changes whole sectors at a time.
        assert_eq!(bytes[8..], bytes[..bytes.len() - 8], "a torn sector");
        writes.iter().any(|write| {
            let hidden = writes
                .iter()
                .any(|later| later.began > write.ended && later.ended < began);
            write.value == value && !hidden
        })
    }
}

/// Tasks that write and read whatever they like in sectors, over one another: a read sees a value
/// that was written last before it, or is being written.
async fn crowd(seed: u64) {
    const SECTOR: u64 = 512;
    let random = Rc::new(Random::new(seed));
    let disk = Rc::new(disk(&random, seed));
    let sectors = SIZE / SECTOR;
    disk.set_bytes(|bytes| bytes.fill(0));
    let first = Written {
        began: 0,
        ended: 0,
        value: 0,
    };
    let history = Rc::new(RefCell::new(History {
        clock: 0,
        sectors: vec![vec![first]; index(sectors)],
    }));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (disk, random) = (Rc::clone(&disk), Rc::clone(&random));
            let history = Rc::clone(&history);
            current::spawn_local(async move {
                for _ in 0..10 {
                    let sector = random.below(sectors);
                    let count = 1 + random.below((sectors - sector).min(24));
                    let range = index(sector)..index(sector + count);
                    let (offset, len) = (sector * SECTOR, count * SECTOR);
                    let began = history.borrow_mut().tick();
                    let kind = random.below(5);
                    if kind < 2 {
                        let found = disk.read(offset, index(len)).await.unwrap();
                        for (sector, found) in range.zip(found.chunks(512)) {
                            let allowed = history.borrow().allows(sector, began, found);
                            assert!(allowed, "seed {seed}: sector {sector}");
                        }
                        continue;
                    }
                    let value = if kind == 2 { 0 } else { began };
                    for sector in range.clone() {
                        let write = Written {
                            began,
                            ended: u64::MAX,
                            value,
                        };
                        history.borrow_mut().sectors[sector].push(write);
                    }
                    if kind == 2 {
                        let flags = RequestFlags::empty();
                        disk.node.write_zeroes(offset, len, flags).await.unwrap();
                    } else {
                        let bytes = value.to_le_bytes().repeat(index(len) / 8);
                        let buffer = IoBuffer::copied_from(&bytes);
                        let flags = RequestFlags::empty();
                        disk.node.write(offset, buffer, flags).await.unwrap();
                    }
                    let ended = history.borrow_mut().tick();
                    for sector in range {
                        let mut history = history.borrow_mut();
                        let write = history.sectors[sector]
                            .iter_mut()
                            .find(|write| write.began == began);
                        write.unwrap().ended = ended;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let began = history.borrow_mut().tick();
    for (sector, bytes) in disk.bytes().chunks(512).enumerate() {
        let allowed = history.borrow().allows(sector, began, bytes);
        assert!(allowed, "seed {seed}: sector {sector} in the end");
    }
}

#[test]
fn a_read_sees_what_was_written_last_or_is_being_written() {
    run(|| async {
        for seed in 0..SEEDS {
            crowd(seed).await;
        }
    });
}
