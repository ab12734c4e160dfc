//! Requests and sections at random, against what a section promises: no request runs inside one,
//! none is lost, none comes twice, and each disk's come in the order in which they were made.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use sluice_aio::{JoinHandle, current};

use super::bench::{run, settle, write};
use crate::drain::Section;

/// Disks in the graph.
const DISKS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// A guest makes a request to a disk.
    Request(usize),
    /// A section of one disk is begun, or (beyond the last) of all.
    Drain(usize),
    /// One of the open sections ends.
    End(usize),
    /// Requests stay inside the disk's driver until further notice.
    Hold(usize),
    /// And go on.
    Release(usize),
    /// Time passes.
    Wait(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..DISKS).prop_map(Step::Request),
        3 => (0..=DISKS).prop_map(Step::Drain),
        3 => any::<usize>().prop_map(Step::End),
        1 => (0..DISKS).prop_map(Step::Hold),
        2 => (0..DISKS).prop_map(Step::Release),
        2 => (0..4usize).prop_map(Step::Wait),
    ]
}

/// A section that tells the watch of its disks while it lasts.
struct Claimed {
    _section: Section,
    watches: Vec<Arc<super::bench::Watch>>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // Before the section itself ends.
        for watch in &self.watches {
            watch.exclusive.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn play(steps: Vec<Step>) {
    run(|bench| async move {
        let disks: Vec<_> = (0..DISKS)
            .map(|index| bench.disk(&format!("disk{index}")))
            .collect();
        let mut made = [0u64; DISKS];
        let mut requests = Vec::new();
        let mut sections: Vec<JoinHandle<Claimed>> = Vec::new();
        for step in steps {
            match step {
                Step::Request(index) => {
                    let disk = Arc::clone(&disks[index].0);
                    let offset = made[index];
                    made[index] += 1;
                    requests.push(current::spawn_local(
                        async move { write(&disk, offset).await },
                    ));
                }
                Step::Drain(index) => {
                    let graph = Arc::clone(&bench.graph);
                    let node = disks.get(index).map(|(_, node, _)| Arc::clone(node));
                    let watches: Vec<_> = disks
                        .iter()
                        .enumerate()
                        .filter(|(other, _)| *other == index || node.is_none())
                        .map(|(_, (_, _, watch))| Arc::clone(watch))
                        .collect();
                    sections.push(current::spawn_local(async move {
                        let _section = match node {
                            Some(node) => graph.drain(&node, "one").await,
                            None => graph.drain_all("all").await,
                        };
                        for watch in &watches {
                            assert!(!watch.is_running(), "the disk is not idle");
                            watch.exclusive.fetch_add(1, Ordering::SeqCst);
                        }
                        Claimed { _section, watches }
                    }));
                }
                Step::End(index) => {
                    if !sections.is_empty() {
                        let index = index % sections.len();
                        // Also one whose wait is not over.
                        sections.remove(index).cancel();
                    }
                }
                Step::Hold(index) => disks[index].2.hold(),
                Step::Release(index) => disks[index].2.release(),
                Step::Wait(turns) => {
                    for _ in 0..turns {
                        current::yield_now().await;
                    }
                }
            }
        }
        for (_, _, watch) in &disks {
            watch.release();
        }
        settle().await;
        for section in sections {
            drop(section.await.unwrap());
        }
        for request in requests {
            request.await.unwrap().unwrap();
        }
        for (index, (disk, _, watch)) in disks.iter().enumerate() {
            assert!(
                !watch.broken.load(Ordering::SeqCst),
                "a request inside a section"
            );
            let expected: Vec<_> = (0..made[index]).collect();
            assert_eq!(*watch.log.lock(), expected, "lost, doubled or out of order");
            assert!(!disk.gate().is_closed());
            assert_eq!((disk.gate().in_flight(), disk.gate().parked()), (0, 0));
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn sections_keep_their_promise(steps in prop::collection::vec(step(), 1..80)) {
        play(steps);
    }
}
