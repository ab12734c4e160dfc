//! Dirty bitmaps against a plain set, at their edges, and under threads.

use std::collections::BTreeSet;
use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

const KIB: u64 = 1024;

fn bitmap(size: u64, granularity: u64) -> DirtyBitmap {
    DirtyBitmap::new(size, Granularity::new(granularity).unwrap()).unwrap()
}

fn runs(bitmap: &DirtyBitmap, max_len: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(run) = bitmap.next_dirty(from, max_len) {
        from = run.end;
        found.push((run.start, run.end));
    }
    found
}

#[test]
fn granularity_limits() {
    assert_eq!(Granularity::new(256), Err(BitmapError::GranularityRange));
    assert_eq!(
        Granularity::new(128 << 20),
        Err(BitmapError::GranularityRange)
    );
    assert_eq!(Granularity::new(513), Err(BitmapError::GranularityPower));
    assert_eq!(Granularity::new(512).map(Granularity::bytes), Ok(512));
    assert_eq!(
        Granularity::new(64 << 20).map(Granularity::bytes),
        Ok(64 << 20)
    );
}

#[test]
fn impossible_sizes_are_an_error_not_an_abort() {
    let granularity = Granularity::new(512).unwrap();
    assert!(matches!(
        DirtyBitmap::new(u64::MAX, granularity),
        Err(BitmapError::OutOfMemory { chunks }) if chunks == 1 << 55
    ));
}

#[test]
fn marks_round_outward_and_clears_round_inward() {
    let bitmap = bitmap(64 * KIB, 4 * KIB);
    bitmap.set_dirty(4 * KIB + 1, 4 * KIB);
    assert_eq!(runs(&bitmap, u64::MAX), [(4 * KIB, 12 * KIB)]);
    assert_eq!(bitmap.clear(4 * KIB + 1, 8 * KIB - 1), 1);
    assert_eq!(runs(&bitmap, u64::MAX), [(4 * KIB, 8 * KIB)]);
    assert_eq!(bitmap.clear(4 * KIB, 4 * KIB - 1), 0);
    assert_eq!(bitmap.count(), 4 * KIB);
    assert_eq!(bitmap.clear(4 * KIB, 4 * KIB), 1);
    assert!(bitmap.is_clean());
}

#[test]
fn short_last_chunk_counts_with_its_length_and_is_cleared_by_reaching_the_end() {
    let bitmap = bitmap(9 * KIB, 4 * KIB);
    bitmap.set_all();
    assert_eq!(bitmap.count(), 9 * KIB);
    assert_eq!(runs(&bitmap, u64::MAX), [(0, 9 * KIB)]);
    assert_eq!(bitmap.clear(8 * KIB, KIB), 1);
    assert_eq!(bitmap.count(), 8 * KIB);
    bitmap.clear_all();
    assert_eq!(bitmap.count(), 0);
}

#[test]
fn out_of_range_and_empty_ranges_do_nothing() {
    let empty = bitmap(0, 512);
    empty.set_all();
    empty.set_dirty(0, u64::MAX);
    assert!(empty.is_clean() && empty.next_dirty(0, 1).is_none());

    let bitmap = bitmap(8 * KIB, 512);
    bitmap.set_dirty(8 * KIB, 512);
    bitmap.set_dirty(u64::MAX, u64::MAX);
    bitmap.set_dirty(512, 0);
    assert!(bitmap.is_clean());
    bitmap.set_dirty(8 * KIB - 1, u64::MAX);
    assert_eq!(runs(&bitmap, u64::MAX), [(8 * KIB - 512, 8 * KIB)]);
    assert!(!bitmap.is_dirty(8 * KIB));
    assert_eq!(bitmap.clear(u64::MAX, u64::MAX), 0);
}

#[test]
fn a_run_is_cut_at_the_given_length_but_never_empty() {
    let bitmap = bitmap(1024 * KIB, KIB);
    bitmap.set_dirty(100 * KIB, 300 * KIB);
    assert_eq!(bitmap.next_dirty(0, 0), Some(100 * KIB..101 * KIB));
    assert_eq!(
        bitmap.next_dirty(0, 64 * KIB + 5),
        Some(100 * KIB..164 * KIB)
    );
    assert_eq!(
        bitmap.next_dirty(399 * KIB + 7, u64::MAX),
        Some(399 * KIB..400 * KIB)
    );
    assert_eq!(bitmap.next_dirty(400 * KIB, u64::MAX), None);
}

#[test]
fn sparse_marks_far_apart_are_found() {
    let bitmap = bitmap(1 << 40, 64 * KIB);
    let places = [0, 1 << 30, (1 << 35) + 64 * KIB, (1 << 40) - 64 * KIB];
    for place in places {
        bitmap.set_dirty(place, 1);
    }
    assert_eq!(
        runs(&bitmap, u64::MAX),
        places.map(|at| (at, at + 64 * KIB))
    );
    assert_eq!(bitmap.count(), 4 * 64 * KIB);
}

#[test]
fn recording_can_be_switched_off_but_explicit_marks_stay_possible() {
    let bitmap = bitmap(8 * KIB, 512);
    bitmap.set_recording(false);
    bitmap.record(0, 512);
    assert!(bitmap.is_clean());
    bitmap.set_dirty(0, 512);
    assert_eq!(bitmap.count(), 512);
    bitmap.set_recording(true);
    bitmap.record(1024, 512);
    assert_eq!(bitmap.count(), 1024);
}

#[test]
fn a_resized_copy_keeps_what_still_exists() {
    let bitmap = bitmap(9 * KIB, KIB);
    bitmap.set_recording(false);
    bitmap.set_dirty(KIB, 1);
    bitmap.set_dirty(8 * KIB, 1);
    let larger = bitmap.resized(100 * KIB).unwrap();
    assert_eq!(
        runs(&larger, u64::MAX),
        [(KIB, 2 * KIB), (8 * KIB, 9 * KIB)]
    );
    assert!(!larger.is_recording());
    let smaller = bitmap.resized(3 * KIB).unwrap();
    assert_eq!(runs(&smaller, u64::MAX), [(KIB, 2 * KIB)]);
    assert_eq!(smaller.size(), 3 * KIB);
}

/// Chunks of a leaf.
const LEAF: u64 = 4096;

#[test]
fn only_mixed_leaves_take_memory() {
    let size = (1 << 44) + 5 * 512;
    let bitmap = bitmap(size, 64 * KIB);
    let clear = bitmap.memory();
    assert!(clear < bitmap.memory_at_most() / 10);
    for _again in 0..2 {
        bitmap.set_all();
        assert_eq!(bitmap.count(), size);
    }
    assert_eq!(runs(&bitmap, u64::MAX), [(0, size)]);
    assert_eq!(bitmap.memory(), clear);
    // A whole leaf stays whole, and a part of one makes it mixed.
    let leaf = LEAF * 64 * KIB;
    assert_eq!(bitmap.clear(leaf, leaf), LEAF);
    assert_eq!(runs(&bitmap, u64::MAX), [(0, leaf), (2 * leaf, size)]);
    assert_eq!(bitmap.memory(), clear);
    assert_eq!(bitmap.clear(4 * leaf, 64 * KIB), 1);
    bitmap.set_dirty(leaf, 64 * KIB);
    let mixed = bitmap.memory() - clear;
    assert!(mixed > 0 && mixed < 2 * KIB, "{mixed}");
    // It does not become more by what comes after that.
    bitmap.set_dirty(4 * leaf, leaf);
    bitmap.clear(leaf, leaf / 2);
    assert_eq!(bitmap.memory() - clear, mixed);
    bitmap.clear_all();
    assert!(bitmap.is_clean());
    assert_eq!(bitmap.next_dirty(0, u64::MAX), None);
}

#[test]
fn it_takes_no_more_memory_than_it_says() {
    let bitmap = bitmap((2 * LEAF + 7) * 512, 512);
    for chunk in (0..2 * LEAF + 7).step_by(2) {
        bitmap.set_dirty(chunk * 512, 1);
    }
    assert_eq!(bitmap.memory(), bitmap.memory_at_most());
}

/// Two threads do these to one leaf at the same time, very often.
fn race(
    before: impl Fn(&DirtyBitmap),
    one: impl Fn(&DirtyBitmap) + Sync,
    other: impl Fn(&DirtyBitmap) + Sync,
    after: impl Fn(&DirtyBitmap),
) {
    const ROUNDS: usize = 20_000;
    // Two threads often run one after the other on a machine that is busy.
    const REPEATS: usize = 12;
    // How often one looks for the other before it goes on alone, as it must where both have to share a processor with
    // others. Who is behind does not look, and so catches up.
    const LOOKS: usize = 100;
    for _ in 0..REPEATS {
        let bitmaps: Vec<_> = (0..ROUNDS).map(|_| bitmap(LEAF * 512, 512)).collect();
        bitmaps.iter().for_each(&before);
        let rounds = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let play = |own: usize, part: &(dyn Fn(&DirtyBitmap) + Sync)| {
            for (round, bitmap) in bitmaps.iter().enumerate() {
                rounds[own].store(round + 1, Ordering::SeqCst);
                for _ in 0..LOOKS {
                    if rounds[1 - own].load(Ordering::SeqCst) > round {
                        break;
                    }
                    hint::spin_loop();
                }
                part(bitmap);
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| play(0, &one));
            play(1, &other);
        });
        for bitmap in &bitmaps {
            let marked: u64 = runs(bitmap, u64::MAX)
                .iter()
                .map(|(start, end)| end - start)
                .sum();
            assert_eq!(bitmap.count(), marked);
            after(bitmap);
        }
    }
}

#[test]
fn a_leaf_that_becomes_marked_and_mixed_at_once_is_marked() {
    let all = |bitmap: &DirtyBitmap| assert_eq!(bitmap.count(), LEAF * 512);
    race(
        |_| {},
        DirtyBitmap::set_all,
        |bitmap| bitmap.set_dirty(9 * 512, 1),
        all,
    );
}

#[test]
fn a_leaf_that_becomes_clear_and_mixed_at_once_is_clear() {
    let clear = |bitmap: &DirtyBitmap| {
        bitmap.clear(9 * 512, 512);
    };
    let none = |bitmap: &DirtyBitmap| assert!(bitmap.is_clean());
    race(DirtyBitmap::set_all, DirtyBitmap::clear_all, clear, none);
}

#[test]
fn two_that_make_a_leaf_mixed_at_once_lose_nothing() {
    let both = |bitmap: &DirtyBitmap| assert_eq!(bitmap.count(), 2 * 512);
    race(
        |_| {},
        |bitmap| bitmap.set_dirty(0, 1),
        |bitmap| bitmap.set_dirty(9 * 512, 1),
        both,
    );
}

#[derive(Debug, Clone)]
enum Step {
    Set(u64, u64),
    Clear(u64, u64),
    SetAll,
    ClearAll,
}

fn steps(size: u64) -> impl Strategy<Value = Vec<Step>> {
    let at = 0..size + 1000;
    let len = prop_oneof![0..2000_u64, 0..size + 1000];
    let step = prop_oneof![
        8 => (at.clone(), len.clone()).prop_map(|(at, len)| Step::Set(at, len)),
        8 => (at, len).prop_map(|(at, len)| Step::Clear(at, len)),
        1 => Just(Step::SetAll),
        1 => Just(Step::ClearAll),
    ];
    prop::collection::vec(step, 0..40)
}

fn cases() -> impl Strategy<Value = (u64, u64, u64, Vec<Step>)> {
    // Up to three leaves and a bit: more than one word of the summary.
    (0..12_500_u64 * 512, prop_oneof![Just(512_u64), Just(4096)]).prop_flat_map(
        |(size, granularity)| (Just(size), Just(granularity), 0..size + 2, steps(size)),
    )
}

proptest! {
    #[test]
    fn behaves_like_a_set_of_chunks((size, granularity, from, steps) in cases()) {
        let bitmap = bitmap(size, granularity);
        let mut model = BTreeSet::new();
        let chunks = size.div_ceil(granularity);
        let chunk_end = |chunk: u64| ((chunk + 1) * granularity).min(size);
        for step in steps {
            match step {
                Step::Set(at, len) => {
                    bitmap.set_dirty(at, len);
                    let end = (at + len).min(size);
                    model.extend((0..chunks).filter(|&chunk| {
                        at < end && chunk * granularity < end && chunk_end(chunk) > at
                    }));
                }
                Step::Clear(at, len) => {
                    let before = model.len();
                    model.retain(|&chunk| {
                        !(chunk * granularity >= at && chunk_end(chunk) <= at + len)
                    });
                    prop_assert_eq!(bitmap.clear(at, len), (before - model.len()) as u64);
                }
                Step::SetAll => {
                    bitmap.set_all();
                    model.extend(0..chunks);
                }
                Step::ClearAll => {
                    bitmap.clear_all();
                    model.clear();
                }
            }
            let bytes: u64 =
                model.iter().map(|&chunk| chunk_end(chunk) - chunk * granularity).sum();
            prop_assert_eq!(bitmap.count(), bytes);
            prop_assert_eq!(bitmap.is_clean(), model.is_empty());
        }
        let found: Vec<u64> = runs(&bitmap, u64::MAX)
            .into_iter()
            .flat_map(|(start, end)| start / granularity..end.div_ceil(granularity))
            .collect();
        prop_assert!(found.iter().eq(model.iter()));
        let mut words = vec![0_u64; usize::try_from(chunks.div_ceil(64).max(1)).unwrap()];
        for chunk in &model {
            words[usize::try_from(chunk / 64).unwrap()] |= 1 << (chunk % 64);
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let hash: String =
            Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        prop_assert_eq!(bitmap.sha256(), hash);
        prop_assert!(bitmap.memory() <= bitmap.memory_at_most());
        let copy = bitmap.emptied().unwrap();
        copy.merge(&bitmap);
        prop_assert_eq!(copy.sha256(), bitmap.sha256());
        prop_assert_eq!(copy.count(), bitmap.count());
        let next = model.range(from / granularity..).next().filter(|_| from < size);
        prop_assert_eq!(
            bitmap.next_dirty(from, 1).map(|run| run.start),
            next.map(|&chunk| chunk * granularity)
        );
        for chunk in 0..chunks {
            prop_assert_eq!(bitmap.is_dirty(chunk_end(chunk) - 1), model.contains(&chunk));
        }
    }
}

/// Writers store a new version of a chunk and mark it; a copier clears, then copies. At the end of
/// it, with the last marks copied, the copy must equal the source: no write was forgotten.
#[test]
fn no_write_is_forgotten_between_marking_and_clearing() {
    const CHUNKS: u64 = 200;
    const WRITERS: u64 = 3;
    const WRITES: u64 = 20_000;
    let bitmap = bitmap(CHUNKS * 512, 512);
    let source: Vec<_> = (0..CHUNKS).map(|_| AtomicU64::new(0)).collect();
    let target: Vec<_> = (0..CHUNKS).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    let copy_one_lap = || {
        let mut from = 0;
        while let Some(run) = bitmap.next_dirty(from, 16 * 512) {
            bitmap.clear(run.start, run.end - run.start);
            for chunk in run.start / 512..run.end / 512 {
                let index = usize::try_from(chunk).unwrap();
                // Relaxed: only the bitmap orders the data.
                target[index].store(source[index].load(Ordering::Relaxed), Ordering::Relaxed);
            }
            from = run.end;
        }
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (bitmap, source) = (&bitmap, &source);
                scope.spawn(move || {
                    for write in 0..WRITES {
                        let chunk = (write * (writer * 2 + 7)) % CHUNKS;
                        source[usize::try_from(chunk).unwrap()].fetch_add(1, Ordering::Relaxed);
                        bitmap.record(chunk * 512, 512);
                    }
                })
            })
            .collect();
        let copier = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                copy_one_lap();
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Release);
        copier.join().unwrap();
    });
    copy_one_lap();
    assert!(bitmap.is_clean());
    assert_eq!(bitmap.count(), 0);
    assert_eq!(bitmap.next_dirty(0, 1), None);
    for (chunk, (source, target)) in source.iter().zip(&target).enumerate() {
        assert_eq!(
            source.load(Ordering::Relaxed),
            target.load(Ordering::Relaxed),
            "chunk {chunk}"
        );
    }
}

/// One thread has emptied a word, another marks in it again, and only then does the first see to the summary.
#[test]
fn a_mark_that_comes_before_the_scrub_is_found() {
    let bitmap = bitmap(64 * 64 * 512, 512);
    bitmap.set_dirty(64 * 512, 512);
    bitmap.scrub(0, 1 << 1);
    let found = bitmap.next_dirty(0, 512);
    assert_eq!(found.map(|range| range.start), Some(64 * 512));
}

/// All threads mark and clear in one word, far from the first, which so becomes empty all the time:
/// what a thread has marked it must find at once, whatever the others clear beside it.
#[test]
fn a_completed_mark_is_always_found() {
    const WORD: u64 = 64 * 70;
    let bitmap = bitmap((WORD + 64) * 512, 512);
    thread::scope(|scope| {
        for own in 0..3 {
            let bitmap = &bitmap;
            scope.spawn(move || {
                let mark = (WORD + own) * 512;
                for _ in 0..200_000 {
                    bitmap.set_dirty(mark, 512);
                    assert!(!bitmap.is_clean());
                    let found = bitmap.next_dirty(0, 512).expect("own mark stands");
                    assert!(found.start <= mark);
                    assert_eq!(bitmap.clear(mark, 512), 1);
                }
            });
        }
    });
    assert_eq!(bitmap.count(), 0);
    assert_eq!(bitmap.next_dirty(0, 1), None);
}

/// One thread marks what another clears at once, while a mark of old stands: it never looks clean.
#[test]
fn the_count_never_falls_short_of_the_marks() {
    let bitmap = bitmap(64 * 512, 512);
    bitmap.set_dirty(0, 512);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                bitmap.set_dirty(512, 512);
            }
        });
        for _ in 0..200_000 {
            bitmap.clear(512, 512);
            if bitmap.is_clean() {
                done.store(true, Ordering::Release);
                panic!("the old mark was not counted");
            }
        }
        done.store(true, Ordering::Release);
    });
    bitmap.clear(512, 512);
    assert_eq!(bitmap.count(), 512);
}
