//! The order in which overlapping claims go on.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt;
use sluice_aio::current;

use super::{Random, run};
use crate::io::serialise::ClaimKind::{Exclusive, Shared};
use crate::io::serialise::{ClaimKind, Serialiser};

#[test]
fn shared_claims_run_side_by_side_and_exclusive_ones_alone() {
    run(|| async {
        let serialiser = Serialiser::default();
        let first = serialiser.claim(0..10, Shared).await;
        let second = serialiser.claim(5..15, Shared).await;
        assert!(serialiser.claim(9..10, Exclusive).now_or_never().is_none());
        let elsewhere = serialiser.claim(15..20, Exclusive).await;
        assert!(serialiser.claim(19..30, Shared).now_or_never().is_none());
        assert!(serialiser.claim(20..30, Shared).now_or_never().is_some());
        drop((first, second, elsewhere));
        assert!(
            serialiser
                .claim(0..u64::MAX, Exclusive)
                .now_or_never()
                .is_some()
        );
    });
}

#[test]
fn a_newcomer_waits_for_those_who_wait() {
    run(|| async {
        let serialiser = Serialiser::default();
        let running = serialiser.claim(0..10, Shared).await;
        let mut waiting = Box::pin(serialiser.claim(0..10, Exclusive));
        assert!(waiting.as_mut().now_or_never().is_none());
        let mut newcomer = Box::pin(serialiser.claim(0..10, Shared));
        assert!(newcomer.as_mut().now_or_never().is_none(), "it overtook");
        drop(running);
        assert!(newcomer.as_mut().now_or_never().is_none());
        drop(waiting.as_mut().now_or_never().expect("its turn has come"));
        assert!(newcomer.now_or_never().is_some());
    });
}

#[test]
fn who_gives_up_lets_the_next_one_go_on() {
    run(|| async {
        let serialiser = Arc::new(Serialiser::default());
        let running = serialiser.claim(0..10, Shared).await;
        let mut gives_up = Box::pin(serialiser.claim(0..10, Exclusive));
        assert!(gives_up.as_mut().now_or_never().is_none());
        let next = {
            let serialiser = Arc::clone(&serialiser);
            current::spawn_local(async move { drop(serialiser.claim(0..10, Shared).await) })
        };
        current::yield_now().await;
        drop(gives_up);
        // Woken, although `running` has not ended: it is not in its way.
        next.await.unwrap();
        drop(running);
    });
}

#[test]
fn claims_at_random_never_conflict_and_all_get_their_turn() {
    run(|| async {
        for seed in 0..500 {
            crowd(seed).await;
        }
    });
}

/// What holds a claim now.
type Holders = Rc<RefCell<BTreeSet<(u64, u64, bool, u64)>>>;

async fn crowd(seed: u64) {
    let random = Rc::new(Random::new(seed));
    let serialiser = Rc::new(Serialiser::default());
    let holders = Holders::default();
    let tasks: Vec<_> = (0..12)
        .map(|id| {
            let (random, serialiser) = (Rc::clone(&random), Rc::clone(&serialiser));
            let holders = Rc::clone(&holders);
            current::spawn_local(async move {
                for _ in 0..6 {
                    let start = random.below(20);
                    let range = start..start + 1 + random.below(8);
                    let kind = if random.below(3) == 0 {
                        Exclusive
                    } else {
                        Shared
                    };
                    if random.below(4) == 0 {
                        // Gives up if it is not its turn at once.
                        let _ = serialiser.claim(range, kind).now_or_never();
                        continue;
                    }
                    let claim = serialiser.claim(range.clone(), kind).await;
                    hold(&holders, &range, kind, id, seed);
                    for _ in 0..random.below(3) {
                        current::yield_now().await;
                    }
                    let held = (range.start, range.end, kind == Exclusive, id);
                    holders.borrow_mut().remove(&held);
                    drop(claim);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

fn hold(holders: &Holders, range: &Range<u64>, kind: ClaimKind, id: u64, seed: u64) {
    let mut holders = holders.borrow_mut();
    let exclusive = kind == Exclusive;
    for (start, end, other, _) in holders.iter() {
        let overlap = *start < range.end && range.start < *end;
        assert!(!overlap || !(exclusive || *other), "seed {seed}: {range:?}");
    }
    holders.insert((range.start, range.end, exclusive, id));
}
