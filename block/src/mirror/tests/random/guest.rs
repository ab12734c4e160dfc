//! Guests of the random stories, and what they know of the disk.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use sluice_aio::{IoBuffer, Token, current};

use super::super::bench::{SIZE, pattern};
use super::Dice;
use crate::backend::Backend;
use crate::error::BlockError;

/// Bytes that a request's offset and length are multiples of.
const UNIT: u64 = 512;
/// The most units of one request.
const MOST_UNITS: u64 = 24;
/// The last part of the disk, in which guests write at the same time to the same places.
const CONTESTED: u64 = 32 << 10;
/// Guests that have a part of the disk each.
pub(super) const OWNERS: usize = 4;
/// And those in the contested part.
pub(super) const RIVALS: usize = 2;
/// What a source fails with; whatever else a guest sees comes from a target.
pub(super) const SOURCE_ERROR: i32 = libc::EIO;

/// Where a guest works.
fn part(guest: usize) -> Range<u64> {
    let owned = (SIZE - CONTESTED) / OWNERS as u64;
    if guest < OWNERS {
        let start = guest as u64 * owned;
        start..start + owned
    } else {
        SIZE - CONTESTED..SIZE
    }
}

fn bytes(range: Range<u64>) -> Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

/// One change that a guest was told had been made.
struct Change {
    /// When it had its place on the disk, and when it gave it back; of one count for all guests.
    begun: u64,
    ended: u64,
    /// In the guest's part.
    at: usize,
    /// What is there since.
    bytes: Vec<u8>,
}

/// All that the guests have done, and how they are told to come to an end. Any thread.
#[derive(Default)]
pub(super) struct History {
    stop: AtomicBool,
    clock: AtomicU64,
    /// Errors that were a target's.
    foreign: AtomicU64,
    changes: [Mutex<Vec<Change>>; OWNERS],
}

impl History {
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// How many errors the guests have seen that were not the source's.
    pub(super) fn foreign_errors(&self) -> u64 {
        self.foreign.load(Ordering::SeqCst)
    }

    fn note(&self, error: &BlockError) {
        if error.errno() != SOURCE_ERROR {
            self.foreign.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Whether the image is the disk of one instant at which no guest had a request on its way.
    pub(super) fn has_instant_of(&self, image: &[u8]) -> bool {
        let spans: Vec<_> = (0..OWNERS).map(|guest| self.spans(guest, image)).collect();
        let starts = spans.iter().flatten().map(|span| span.start);
        let mut starts = starts.collect::<Vec<_>>();
        starts.sort_unstable();
        let is_common = |instant: &u64| {
            let has = |spans: &Vec<Range<u64>>| spans.iter().any(|span| span.contains(instant));
            spans.iter().all(has)
        };
        starts.iter().any(is_common)
    }

    /// The times at which a guest's part was what the image has there.
    fn spans(&self, guest: usize, image: &[u8]) -> Vec<Range<u64>> {
        let part = bytes(part(guest));
        let wanted = &image[part.clone()];
        let mut model = pattern(SIZE)[part].to_vec();
        let differing = |one: &[u8], other: &[u8]| {
            let pairs = one.iter().zip(other);
            pairs.filter(|(one, other)| one != other).count()
        };
        let mut wrong = differing(&model, wanted);
        let (mut since, mut spans) = (0, Vec::new());
        for change in self.changes[guest].lock().iter() {
            if wrong == 0 {
                spans.push(since..change.begun);
            }
            let range = change.at..change.at + change.bytes.len();
            wrong -= differing(&model[range.clone()], &wanted[range.clone()]);
            model[range.clone()].copy_from_slice(&change.bytes);
            wrong += differing(&model[range.clone()], &wanted[range]);
            since = change.ended;
        }
        if wrong == 0 {
            spans.push(since..u64::MAX);
        }
        spans
    }

    /// What the disk must hold, without its contested part.
    pub(super) fn model(&self) -> Vec<u8> {
        let mut model = pattern(SIZE - CONTESTED);
        for guest in 0..OWNERS {
            let part = bytes(part(guest));
            for change in self.changes[guest].lock().iter() {
                let at = part.start + change.at;
                model[at..at + change.bytes.len()].copy_from_slice(&change.bytes);
            }
        }
        model
    }
}

/// A guest of one part of the disk: one request after the other, until it is told to stop.
///
/// What fails is counted and tried again: the history holds what came of it in the end.
pub(super) async fn owner(disk: Arc<Backend>, guest: usize, seed: u64, history: Arc<History>) {
    let mut dice = Dice::new(seed);
    let part = part(guest);
    let mut model = pattern(SIZE)[bytes(part.clone())].to_vec();
    while !history.stop.load(Ordering::SeqCst) {
        let range = some_range(&part, &mut dice);
        let at = bytes(range.start - part.start..range.end - part.start);
        let token = disk.enter().await.unwrap();
        let begun = history.now();
        let request = Request {
            disk: &disk,
            token: &token,
            range,
            history: &history,
        };
        let found = request.some(&mut dice, &model[at.clone()]).await;
        if let Some(found) = found {
            model[at.clone()].copy_from_slice(&found);
            let ended = history.now();
            let changes = &history.changes[guest];
            changes.lock().push(Change {
                begun,
                ended,
                at: at.start,
                bytes: found,
            });
        }
        drop(token);
        current::yield_now().await;
    }
}

/// A guest that has several writes on their way to the places of others: which of them the disk keeps is its
/// business.
pub(super) async fn rival(disk: Arc<Backend>, guest: usize, seed: u64, history: Arc<History>) {
    const DEPTH: usize = 3;
    let mut dice = Dice::new(seed);
    let mut running = VecDeque::new();
    while !history.stop.load(Ordering::SeqCst) {
        let range = some_range(&part(guest), &mut dice);
        let value = dice.value();
        let (disk, history) = (Arc::clone(&disk), Arc::clone(&history));
        running.push_back(current::spawn_local(async move {
            let token = disk.enter().await.unwrap();
            let request = Request {
                disk: &disk,
                token: &token,
                range,
                history: &history,
            };
            request.write(value).await;
        }));
        if running.len() == DEPTH {
            running.pop_front().unwrap().await.unwrap();
        }
        for _ in 0..dice.roll(10) {
            current::yield_now().await;
        }
    }
    for write in running {
        write.await.unwrap();
    }
}

fn some_range(part: &Range<u64>, dice: &mut Dice) -> Range<u64> {
    let units = dice.roll(MOST_UNITS) + 1;
    let start = part.start + dice.roll((part.end - part.start) / UNIT - units) * UNIT;
    start..start + units * UNIT
}

/// A request that has its place on the disk.
struct Request<'a> {
    disk: &'a Backend,
    token: &'a Token,
    range: Range<u64>,
    history: &'a History,
}

impl Request<'_> {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// One of any kind; what its range holds afterwards, if it is to change something. `before` is what it holds now.
    async fn some(&self, dice: &mut Dice, before: &[u8]) -> Option<Vec<u8>> {
        match dice.roll(12) {
            0 => {
                let unmap = dice.roll(2) == 0;
                self.insist(|| {
                    self.disk
                        .write_zeroes(self.token, self.range.start, self.len(), unmap)
                })
                .await;
                Some(vec![0; before.len()])
            }
            1 => {
                self.insist(|| self.disk.discard(self.token, self.range.start, self.len()))
                    .await;
                // Which it is each byte may decide for itself, once.
                let now = self.read().await;
                let fits = now
                    .iter()
                    .zip(before)
                    .all(|(now, before)| *now == 0 || now == before);
                assert!(fits, "a discard has made up data");
                Some(now)
            }
            2 => {
                self.insist(|| self.disk.flush(self.token)).await;
                None
            }
            3 | 4 => {
                assert!(self.read().await == before, "a guest reads something else");
                None
            }
            _ => {
                let value = dice.value();
                self.write(value).await;
                Some(vec![value; before.len()])
            }
        }
    }

    async fn write(&self, value: u8) {
        let buffer = IoBuffer::alloc(usize::try_from(self.len()).unwrap());
        buffer.fill(0, buffer.len(), value);
        self.insist(|| {
            self.disk
                .write(self.token, self.range.start, buffer.clone())
        })
        .await;
    }

    async fn read(&self) -> Vec<u8> {
        let buffer = IoBuffer::alloc(usize::try_from(self.len()).unwrap());
        self.insist(|| self.disk.read(self.token, self.range.start, buffer.clone()))
            .await;
        buffer.to_vec()
    }

    /// Asks until it is done.
    async fn insist<F>(&self, mut ask: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), BlockError>>,
    {
        while let Err(error) = ask().await {
            self.history.note(&error);
        }
    }
}
