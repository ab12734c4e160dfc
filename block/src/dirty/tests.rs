//! Dirty bitmaps against a plain set, at their edges, and under threads.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;

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
    // Up to 8192 chunks: more than one word of the summary.
    (0..8192_u64 * 512, prop_oneof![Just(512_u64), Just(4096)]).prop_flat_map(
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
