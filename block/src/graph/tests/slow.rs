//! A drain that takes long says what it waits for.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use sluice_aio::{Clock, EventLoop, LoopConfig, current};

use super::bench::{Bench, Silence, settle, write};
use crate::graph::Graph;
use crate::job::PATIENCE;
use crate::job::tests::log::Log;

/// A graph on a clock that is moved by hand, and what is logged meanwhile.
fn run_logged<F: Future<Output = ()> + 'static>(test: impl FnOnce(Bench, Clock, Log) -> F) {
    let clock = Clock::manual();
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("main", &config).unwrap();
    let graph = Graph::new(Arc::new(Silence), clock.clone());
    let bench = Bench { graph };
    Log::keep(|log| {
        event_loop.run_until(test(bench, clock, log)).unwrap();
    });
}

#[test]
fn a_drain_that_waits_for_more_than_a_second_says_for_what() {
    run_logged(says_for_what);
}

async fn says_for_what(bench: Bench, clock: Clock, log: Log) {
    let (disk, node, watch) = bench.disk("disk");
    watch.hold();
    let running = current::spawn_local({
        let disk = Arc::clone(&disk);
        async move { write(&disk, 1).await }
    });
    settle().await;
    let graph = Arc::clone(&bench.graph);
    let draining = current::spawn_local(async move { graph.drain(&node, "patience").await });
    settle().await;
    for (millis, expected) in [(999, 0), (1, 1), (999, 1), (1, 2), (1999, 2), (1, 3)] {
        clock.advance(Duration::from_millis(millis));
        settle().await;
        assert_eq!(log.count(""), expected, "{}", log.last());
    }
    let first = log.first("");
    for part in [
        "a drain takes long",
        "holder=\"patience\"",
        "waited=1s",
        "disk 'disk' (1 requests in flight)",
    ] {
        assert!(first.contains(part), "{first}");
    }
    watch.release();
    drop(draining.await.unwrap());
    running.await.unwrap().unwrap();
    let past = disk.node().unwrap().past_sections();
    assert_eq!((past.count, past.longest), (1, Duration::from_secs(4)));
    assert_eq!(past.times.buckets().collect::<Vec<_>>(), [(1 << 22, 1)]);
}

#[test]
fn a_machine_that_waits_for_a_flush_says_of_which_node() {
    run_logged(says_what_is_flushed);
}

async fn says_what_is_flushed(bench: Bench, clock: Clock, log: Log) {
    let (disk, _, watch) = bench.disk("disk");
    write(&disk, 1).await.unwrap();
    watch.hold();
    let graph = Arc::clone(&bench.graph);
    let resting = current::spawn_local(async move { graph.come_to_rest("stop").await });
    settle().await;
    for (millis, expected) in [(999, 0), (1, 1), (1999, 1), (1, 2), (3999, 2), (1, 3)] {
        clock.advance(Duration::from_millis(millis));
        settle().await;
        assert_eq!(log.count("a flush takes long"), expected, "{}", log.last());
    }
    let node = disk.node().unwrap();
    let first = log.first("");
    assert!(first.contains(node.name()), "{first}");
    watch.release();
    assert!(resting.await.unwrap().is_empty());
}

/// However long a node hangs that is no disk's; a disk's is waited for.
#[test]
fn a_stop_gives_up_on_a_node_that_no_guest_writes_to() {
    run_logged(gives_up_on_what_is_no_disks);
}

async fn gives_up_on_what_is_no_disks(bench: Bench, clock: Clock, log: Log) {
    let (disk, _, watch) = bench.disk("disk");
    let (_other, hanging) = bench.probe("other", false);
    write(&disk, 1).await.unwrap();
    watch.hold();
    hanging.hold();
    let graph = Arc::clone(&bench.graph);
    let resting = current::spawn_local(async move { graph.come_to_rest("stop").await });
    let resting = async {
        let rested = resting.await;
        assert!(!watch.is_running(), "the disk was not waited for");
        assert!(rested.unwrap().is_empty());
    };
    let told = "is not waited for any longer";
    let time = async {
        for _ in 0..5 {
            clock.advance(PATIENCE);
            settle().await;
            assert_eq!(log.count(told), 0, "{}", log.last());
        }
        watch.release();
        settle().await;
        clock.advance(PATIENCE);
        settle().await;
        assert_eq!(log.count(told), 1, "{}", log.last());
    };
    future::join(resting, time).await;
    assert!(log.last().contains("other"), "{}", log.last());
    hanging.release();
}
