//! Old data is saved once, before new data, whoever writes at the same time; errors go where the
//! options say.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use sluice_aio::{Clock, EventLoop, JoinHandle, LoopConfig, current};

use super::*;
use crate::driver::DebugEvent;
use crate::driver::blkdebug::InjectError;
use crate::event::{BlockEvent, EventSink};
use crate::graph::Graph;

const SIZE: usize = 1 << 20;
const CLUSTER_LEN: usize = 64 << 10;

/// Nobody listens.
struct Silence;

impl EventSink for Silence {
    fn emit(&self, _event: BlockEvent) {}
}

/// A disk full of a pattern under a filter, with an empty target behind a fault injector.
struct Bench {
    graph: Arc<Graph>,
    node: Arc<Node>,
    target: Arc<Node>,
    disk: PathBuf,
    copy: PathBuf,
    _directory: tempfile::TempDir,
}

fn pattern() -> Vec<u8> {
    let byte = |at: usize| u8::try_from(at / 512 % 251 + 1).unwrap();
    let mut bytes: Vec<_> = (0..SIZE).map(byte).collect();
    bytes[3 * CLUSTER_LEN..4 * CLUSTER_LEN].fill(0);
    bytes
}

fn run<F: Future<Output = ()> + 'static>(more: &Value, test: impl FnOnce(Bench) -> F + 'static) {
    run_on(&Clock::real(), more, test);
}

fn run_on<F: Future<Output = ()> + 'static>(
    clock: &Clock,
    more: &Value,
    test: impl FnOnce(Bench) -> F + 'static,
) {
    let directory = tempfile::tempdir().unwrap();
    let (disk, copy) = (directory.path().join("disk"), directory.path().join("copy"));
    std::fs::write(&disk, pattern()).unwrap();
    std::fs::write(&copy, vec![0xee; SIZE]).unwrap();
    let mut options = json!({
        "driver": "copy-before-write", "node-name": "cbw", "discard": "unmap",
        "file": {"driver": "file", "filename": disk, "node-name": "file"},
        "target": {"driver": "blkdebug", "node-name": "target",
                   "image": {"driver": "file", "filename": copy}},
    });
    options
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("main", &config).unwrap();
    let clock = clock.clone();
    let body = async move {
        let graph = Graph::new(Arc::new(Silence), clock);
        let options = serde_json::from_value(options).unwrap();
        let node = graph.add_node(&options).await.unwrap();
        let target = graph.node("target").unwrap();
        test(Bench {
            graph,
            node,
            target,
            disk,
            copy,
            _directory: directory,
        })
        .await;
    };
    event_loop.run_until(body).unwrap();
}

impl Bench {
    fn debug(&self) -> &crate::driver::Blkdebug {
        self.target.as_blkdebug().unwrap()
    }

    fn write(&self, offset: usize, len: usize, value: u8) -> JoinHandle<Result<()>> {
        let node = Arc::clone(&self.node);
        current::spawn_local(async move {
            let buffer = IoBuffer::alloc(len);
            buffer.fill(0, len, value);
            node.write(offset as u64, buffer, RequestFlags::empty())
                .await
        })
    }

    fn disk_byte(&self, at: usize) -> u8 {
        std::fs::read(&self.disk).unwrap()[at]
    }

    /// The bytes of the clusters that were copied.
    fn saved(&self, cluster: usize) -> Vec<u8> {
        let copy = std::fs::read(&self.copy).unwrap();
        copy[cluster * CLUSTER_LEN..][..CLUSTER_LEN].to_vec()
    }

    fn is_untouched(&self, cluster: usize) -> bool {
        self.saved(cluster).iter().all(|byte| *byte == 0xee)
    }
}

fn original(cluster: usize) -> Vec<u8> {
    pattern()[cluster * CLUSTER_LEN..][..CLUSTER_LEN].to_vec()
}

async fn settle() {
    for _ in 0..50 {
        current::yield_now().await;
    }
}

#[test]
fn old_data_is_saved_once_and_before_the_new() {
    run(&json!({}), |bench| async move {
        let first = 2 * CLUSTER_LEN - 512;
        bench.write(first, 1024, 0xaa).await.unwrap().unwrap();
        assert_eq!(bench.saved(1), original(1));
        assert_eq!(bench.saved(2), original(2), "both clusters that it touched");
        assert!(bench.is_untouched(0) && bench.is_untouched(3));
        assert_eq!(bench.disk_byte(first), 0xaa);
        // Zeroes are saved too, and what only looks like a change of nothing.
        let node = &bench.node;
        node.write_zeroes(3 << 16, 512, RequestFlags::empty())
            .await
            .unwrap();
        assert_eq!(bench.saved(3), original(3));
        node.discard(4 << 16, 1 << 16).await.unwrap();
        assert_eq!(bench.saved(4), original(4));
        // Again: the copy stays as it is.
        bench.write(first, 1024, 0xbb).await.unwrap().unwrap();
        assert_eq!(bench.saved(1), original(1));
        assert_eq!(node.len(), SIZE as u64);
        let read = IoBuffer::alloc(512);
        node.read(first as u64, read.clone()).await.unwrap();
        assert_eq!(read.to_vec(), [0xbb; 512]);
    });
}

#[test]
fn what_is_cut_off_is_saved() {
    run(&json!({}), |bench| async move {
        let last = SIZE / CLUSTER_LEN - 1;
        let keep = (SIZE - CLUSTER_LEN - 512) as u64;
        bench.node.driver().truncate(keep).await.unwrap();
        assert_eq!(bench.saved(last), original(last));
        assert_eq!(bench.saved(last - 1), original(last - 1));
        assert!(bench.is_untouched(last - 2));
    });
}

#[test]
fn writes_to_a_cluster_wait_for_its_one_copy() {
    run(&json!({}), |bench| async move {
        let debug = bench.debug();
        debug.set_break(DebugEvent::WriteAio, "copy").unwrap();
        let one = bench.write(0, 512, 0xaa);
        debug.wait_break("copy").await.unwrap();
        debug
            .set_break(DebugEvent::WriteAio, "second copy")
            .unwrap();
        let two = bench.write(4096, 512, 0xbb);
        settle().await;
        assert_eq!(bench.disk_byte(0), original(0)[0], "not before it is saved");
        assert_eq!(bench.disk_byte(4096), original(0)[4096]);
        debug.resume("copy").unwrap();
        one.await.unwrap().unwrap();
        two.await.unwrap().unwrap();
        assert!(!debug.is_suspended("second copy"));
        assert_eq!((bench.disk_byte(0), bench.disk_byte(4096)), (0xaa, 0xbb));
        assert_eq!(bench.saved(0), original(0));
        debug.remove_break("second copy").unwrap();
    });
}

#[test]
fn other_clusters_do_not_wait() {
    run(&json!({}), |bench| async move {
        let debug = bench.debug();
        debug.set_break(DebugEvent::WriteAio, "copy").unwrap();
        let held = bench.write(0, 512, 0xaa);
        debug.wait_break("copy").await.unwrap();
        bench.write(CLUSTER_LEN, 512, 0xbb).await.unwrap().unwrap();
        assert_eq!(bench.disk_byte(CLUSTER_LEN), 0xbb);
        debug.resume("copy").unwrap();
        held.await.unwrap().unwrap();
    });
}

#[test]
fn a_failed_copy_fails_the_write_and_is_tried_again() {
    run(&json!({}), |bench| async move {
        let debug = bench.debug();
        debug.inject(InjectError::new(DebugEvent::WriteAio, libc::ENOSPC));
        let error = bench.write(0, 512, 0xaa).await.unwrap().unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC);
        assert_eq!(bench.disk_byte(0), original(0)[0], "the disk is as it was");
        debug.clear_errors();
        bench.write(0, 512, 0xaa).await.unwrap().unwrap();
        assert_eq!(bench.disk_byte(0), 0xaa);
        assert_eq!(bench.saved(0), original(0));
    });
}

#[test]
fn or_it_gives_the_old_data_up() {
    run(
        &json!({"on-cbw-error": "break-snapshot"}),
        |bench| async move {
            let debug = bench.debug();
            debug.inject(InjectError::new(DebugEvent::WriteAio, libc::EIO));
            bench.write(0, 512, 0xaa).await.unwrap().unwrap();
            assert_eq!(bench.disk_byte(0), 0xaa);
            debug.clear_errors();
            bench.write(CLUSTER_LEN, 512, 0xbb).await.unwrap().unwrap();
            assert!(bench.is_untouched(1), "nothing is saved any more");
        },
    );
}

/// Two seconds, and a copy that is held for as long as the test wants.
fn run_slow<F: Future<Output = ()> + 'static>(
    on_error: &str,
    test: impl FnOnce(Bench, Clock, JoinHandle<Result<()>>) -> F + 'static,
) {
    let clock = Clock::manual();
    let options = json!({"cbw-timeout": 2, "on-cbw-error": on_error});
    run_on(&clock.clone(), &options, |bench| async move {
        let debug = bench.debug();
        debug.set_break(DebugEvent::WriteAio, "copy").unwrap();
        let write = bench.write(0, 512, 0xaa);
        debug.wait_break("copy").await.unwrap();
        pass(&clock, 1999).await;
        assert_eq!(bench.disk_byte(0), original(0)[0], "not before it is saved");
        test(bench, clock, write).await;
    });
}

async fn pass(clock: &Clock, millis: u64) {
    clock.advance(Duration::from_millis(millis));
    settle().await;
}

#[test]
fn a_copy_that_takes_too_long_fails_the_write_and_goes_on() {
    run_slow("break-guest-write", |bench, clock, write| async move {
        pass(&clock, 1).await;
        let error = write.await.unwrap().unwrap_err();
        assert_eq!(error.errno(), libc::ETIMEDOUT);
        assert_eq!(bench.disk_byte(0), original(0)[0], "the disk is as it was");
        // Another write to the cluster waits for the same copy, but no longer than it would.
        let again = bench.write(512, 512, 0xbb);
        settle().await;
        pass(&clock, 2000).await;
        assert_eq!(again.await.unwrap().unwrap_err().errno(), libc::ETIMEDOUT);
        // Once it has ended there is nothing to wait for.
        let last = bench.write(0, 512, 0xcc);
        settle().await;
        bench.debug().resume("copy").unwrap();
        last.await.unwrap().unwrap();
        assert_eq!(bench.disk_byte(0), 0xcc);
        assert_eq!(bench.saved(0), original(0));
    });
}

#[test]
fn or_it_gives_the_old_data_up_at_once() {
    run_slow("break-snapshot", |bench, clock, write| async move {
        pass(&clock, 1).await;
        write.await.unwrap().unwrap();
        assert_eq!(bench.disk_byte(0), 0xaa);
        // Neither that cluster nor another waits any more.
        bench.write(512, 512, 0xbb).await.unwrap().unwrap();
        bench.write(CLUSTER_LEN, 512, 0xbb).await.unwrap().unwrap();
        assert!(bench.is_untouched(1));
        bench.debug().resume("copy").unwrap();
        settle().await;
    });
}

#[test]
fn a_section_waits_for_a_copy_that_nobody_waits_for() {
    run_slow("break-guest-write", |bench, clock, write| async move {
        pass(&clock, 1).await;
        write.await.unwrap().unwrap_err();
        let error = bench.graph.del_node("cbw").unwrap_err();
        assert_eq!(error.to_string(), "Block device cbw is in use");
        let over = std::rc::Rc::new(std::cell::Cell::new(false));
        let draining = {
            let (graph, target) = (Arc::clone(&bench.graph), Arc::clone(&bench.target));
            let over = std::rc::Rc::clone(&over);
            current::spawn_local(async move {
                let section = graph.drain(&target, "test").await;
                over.set(true);
                section
            })
        };
        settle().await;
        assert!(!over.get(), "the target is being written to");
        bench.debug().resume("copy").unwrap();
        drop(draining.await.unwrap());
        assert_eq!(bench.saved(0), original(0));
        bench.graph.del_node("cbw").unwrap();
    });
}

#[test]
fn options_that_make_no_sense_are_refused() {
    run(&json!({}), |bench| async move {
        let small = json!({"driver": "null-co", "size": 512});
        let disk = json!({"driver": "null-co", "size": 1 << 20});
        let cases = [
            (json!({"target": small}), "is smaller than"),
            (
                json!({"bitmap": {"node": "cbw", "name": "b0"}}),
                "Dirty bitmap 'b0' not found",
            ),
            (
                json!({"bitmap": {"node": "nobody", "name": "b0"}}),
                "Node 'nobody' not found",
            ),
            (
                json!({"min-cluster-size": 3}),
                "min-cluster-size needs to be a power of 2",
            ),
            (
                json!({"min-cluster-size": 1_u64 << 62}),
                "Cannot create block-copy-state: min-cluster-size too large: 4611686018427387904 > 2147483648; choose 2 \
                 GiB or less",
            ),
        ];
        for (more, word) in cases {
            let mut options = json!({"driver": "copy-before-write", "node-name": "other",
                                     "file": disk, "target": disk});
            options
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let options = serde_json::from_value(options).unwrap();
            let said = bench
                .graph
                .add_node(&options)
                .await
                .unwrap_err()
                .to_string();
            assert!(said.contains(word), "{said}");
        }
    });
}

#[test]
fn nobody_writes_past_the_filter() {
    run(&json!({}), |bench| async move {
        let file = bench.graph.node("file").unwrap();
        bench.graph.add_backend("disk", &bench.node).unwrap();
        let refused = bench.graph.add_backend("other", &file).unwrap_err();
        assert!(refused.to_string().contains("write"), "{refused}");
    });
}

/// One request of a guest: where, how long, what.
#[derive(Clone, Debug)]
struct Change {
    offset: usize,
    len: usize,
    kind: u8,
}

fn change() -> impl Strategy<Value = Change> {
    let sectors = SIZE / 512;
    (0..sectors, 1..400_usize, 0..3_u8).prop_map(move |(sector, len, kind)| Change {
        offset: sector * 512,
        len: len.min(sectors - sector) * 512,
        kind,
    })
}

/// Whatever is written in whatever order: the copied clusters and the disk's own give the old disk.
#[test]
fn the_old_disk_can_always_be_put_together() {
    let config = Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    };
    let changes = prop::collection::vec(change(), 1..24);
    let checked = TestRunner::new(config).run(&changes, |changes| {
        run(&json!({}), move |bench| async move {
            // The whole of it: its directory goes last.
            let bench = bench;
            let tasks: Vec<_> = changes
                .into_iter()
                .map(|change| {
                    let node = Arc::clone(&bench.node);
                    current::spawn_local(async move {
                        let (offset, len) = (change.offset as u64, change.len as u64);
                        let flags = RequestFlags::empty();
                        match change.kind {
                            0 => {
                                let buffer = IoBuffer::alloc(change.len);
                                buffer.fill(0, change.len, 0xcc);
                                node.write(offset, buffer, flags).await
                            }
                            1 => node.write_zeroes(offset, len, flags).await,
                            _ => node.discard(offset, len).await,
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap().unwrap();
            }
            let (disk, copy) = (
                std::fs::read(&bench.disk).unwrap(),
                std::fs::read(&bench.copy).unwrap(),
            );
            let old = pattern();
            for cluster in 0..SIZE / CLUSTER_LEN {
                let range = cluster * CLUSTER_LEN..(cluster + 1) * CLUSTER_LEN;
                let untouched = copy[range.clone()].iter().all(|byte| *byte == 0xee);
                let seen = if untouched { &disk } else { &copy };
                assert!(seen[range.clone()] == old[range], "cluster {cluster}");
            }
        });
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn flushing_everything_reaches_the_target() {
    let target = json!({"target": {
        "driver": "blkdebug", "node-name": "target",
        "inject-error": [{"event": "flush_to_disk", "errno": 5, "once": true}],
        "image": {"driver": "null-co", "size": SIZE, "read-zeroes": true}}});
    run(&target, async |bench| {
        assert!(bench.graph.flush_all().await.is_err());
        bench.graph.flush_all().await.unwrap();
    });
}
