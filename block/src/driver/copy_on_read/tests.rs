//! What is read from below is copied up once, whole clusters of it, and never over a newer write.

use std::future::Future;
use std::sync::Arc;

use serde_json::{Value, json};
use sluice_aio::{Clock, EventLoop, JoinHandle, LoopConfig, current};

use super::*;
use crate::driver::overlay::CLUSTER;
use crate::event::{BlockEvent, EventSink};
use crate::graph::Graph;

/// Clusters of each image.
const COUNT: usize = 16;
const SIZE: usize = COUNT * CLUSTER;

/// Nobody listens.
struct Silence;

impl EventSink for Silence {
    fn emit(&self, _event: BlockEvent) {}
}

/// `cor` over `debug` (a fault injector) over `top`, over `mid`, over `base`. The base holds ones,
/// but zeroes in cluster 3; `mid` holds twos in cluster 2.
struct Bench {
    graph: Arc<Graph>,
    node: Arc<Node>,
    top: Arc<Node>,
}

async fn write(node: &Node, offset: usize, len: usize, value: u8) -> Result<()> {
    let buffer = IoBuffer::alloc(len);
    buffer.fill(0, len, value);
    node.write(offset as u64, buffer, RequestFlags::empty())
        .await
}

async fn read(node: &Node, offset: usize, len: usize) -> Result<Vec<u8>> {
    let buffer = IoBuffer::alloc(len);
    buffer.fill(0, len, 0xee);
    node.read(offset as u64, buffer.clone()).await?;
    Ok(buffer.to_vec())
}

fn run<F: Future<Output = ()> + 'static>(more: Value, test: impl FnOnce(Bench) -> F + 'static) {
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let body = async move {
        let graph = Graph::new(Arc::new(Silence), Clock::real());
        let base = graph.add_overlay("base", SIZE, None).unwrap();
        write(&base, 0, SIZE, 1).await.unwrap();
        base.write_zeroes((3 * CLUSTER) as u64, CLUSTER as u64, RequestFlags::empty())
            .await
            .unwrap();
        let mid = graph.add_overlay("mid", SIZE, Some(&base)).unwrap();
        write(&mid, 2 * CLUSTER, CLUSTER, 2).await.unwrap();
        let top = graph.add_overlay("top", SIZE, Some(&mid)).unwrap();
        let mut options = json!({
            "driver": "copy-on-read", "node-name": "cor",
            "file": {"driver": "blkdebug", "node-name": "debug", "image": "top"},
        });
        let members = options.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
        let options = serde_json::from_value(options).unwrap();
        let node = graph.add_node(&options).await.unwrap();
        test(Bench { graph, node, top }).await;
    };
    event_loop.run_until(body).unwrap();
}

impl Bench {
    /// What the top layer holds, cluster by cluster: data, zeroes, or nothing.
    async fn held(&self) -> String {
        let mut held = String::new();
        for number in 0..COUNT {
            let (offset, len) = ((number * CLUSTER) as u64, CLUSTER as u64);
            let status = self.top.layer_status(offset, len).await.unwrap();
            held.push(match status.allocation {
                Allocation::Data => 'd',
                Allocation::Zero => 'z',
                Allocation::Below => '.',
            });
        }
        held
    }

    fn debug(&self) -> Arc<Node> {
        self.graph.node("debug").unwrap()
    }

    fn spawn_read(&self, offset: usize, len: usize) -> JoinHandle<Result<Vec<u8>>> {
        let node = Arc::clone(&self.node);
        current::spawn_local(async move { read(&node, offset, len).await })
    }

    fn spawn_write(&self, offset: usize, len: usize, value: u8) -> JoinHandle<Result<()>> {
        let node = Arc::clone(&self.node);
        current::spawn_local(async move { write(&node, offset, len, value).await })
    }

    async fn refused(&self, options: Value) -> String {
        let options = serde_json::from_value(options).unwrap();
        let refused = self.graph.add_node(&options).await;
        refused.unwrap_err().to_string()
    }
}

async fn settle() {
    for _ in 0..50 {
        current::yield_now().await;
    }
}

#[test]
fn whole_clusters_are_copied_once() {
    run(json!({}), |bench| async move {
        // Parts of three clusters: of ones, twos and zeroes.
        let seen = read(&bench.node, 2 * CLUSTER - 512, CLUSTER + 1024).await;
        let mut expected = vec![1; 512];
        expected.extend([vec![2; CLUSTER], vec![0; 512]].concat());
        assert_eq!(seen.unwrap(), expected);
        assert_eq!(bench.held().await, ".ddz............");
        // What is there is not copied again, and what is new is not copied over.
        write(&bench.node, CLUSTER, 512, 9).await.unwrap();
        let seen = read(&bench.node, 0, 3 * CLUSTER).await.unwrap();
        let nines = [vec![9; 512], vec![1; CLUSTER - 512]].concat();
        assert_eq!(seen, [vec![1; CLUSTER], nines, vec![2; CLUSTER]].concat());
        assert_eq!(bench.held().await, "dddz............");
        let all = read(&bench.node, 0, SIZE).await.unwrap();
        assert_eq!(all[4 * CLUSTER..], vec![1; 12 * CLUSTER]);
        assert_eq!(bench.held().await, "dddzdddddddddddd");
    });
}

#[test]
fn only_what_is_above_the_bottom_is_copied() {
    run(json!({"bottom": "mid"}), |bench| async move {
        let seen = read(&bench.node, 0, 4 * CLUSTER).await.unwrap();
        let ones = vec![1; 2 * CLUSTER];
        assert_eq!(seen, [ones, vec![2; CLUSTER], vec![0; CLUSTER]].concat());
        assert_eq!(bench.held().await, "..d.............");
    });
    run(json!({"bottom": "top"}), |bench| async move {
        read(&bench.node, 0, SIZE).await.unwrap();
        assert_eq!(bench.held().await, "................");
    });
}

#[test]
fn a_copy_does_not_undo_a_write() {
    run(json!({}), |bench| async move {
        let node = bench.debug();
        let debug = node.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::CorWrite, "copy").unwrap();
        let reader = bench.spawn_read(0, 512);
        debug.wait_break("copy").await.unwrap();
        let writers = [
            bench.spawn_write(CLUSTER - 1024, 512, 9),
            bench.spawn_write(0, 512, 8),
        ];
        // Another cluster does not wait.
        bench.spawn_write(CLUSTER, 512, 7).await.unwrap().unwrap();
        settle().await;
        debug.resume("copy").unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), [1; 512]);
        for writer in writers {
            writer.await.unwrap().unwrap();
        }
        let seen = read(&bench.node, 0, CLUSTER).await.unwrap();
        assert_eq!(seen[..512], [8; 512], "the write is there");
        assert_eq!(seen[512..CLUSTER - 1024], vec![1; CLUSTER - 1536]);
        assert_eq!(seen[CLUSTER - 1024..CLUSTER - 512], [9; 512]);
        assert_eq!(bench.held().await, "dd..............");
    });
}

#[test]
fn two_readers_copy_a_cluster_once() {
    run(json!({}), |bench| async move {
        let node = bench.debug();
        let debug = node.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::CorWrite, "one").unwrap();
        let one = bench.spawn_read(0, 512);
        debug.wait_break("one").await.unwrap();
        debug.set_break(DebugEvent::CorWrite, "two").unwrap();
        let two = bench.spawn_read(1024, 512);
        settle().await;
        debug.resume("one").unwrap();
        assert_eq!(one.await.unwrap().unwrap(), [1; 512]);
        assert_eq!(two.await.unwrap().unwrap(), [1; 512]);
        assert!(!debug.is_suspended("two"));
        debug.remove_break("two").unwrap();
    });
}

#[test]
fn a_section_waits_for_a_copy_and_keeps_others_out() {
    run(json!({}), |bench| async move {
        let disk = bench.graph.add_backend("disk", &bench.node).unwrap();
        let node = bench.debug();
        let debug = node.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::CorWrite, "copy").unwrap();
        let request = |offset: usize| {
            let disk = Arc::clone(&disk);
            current::spawn_local(async move {
                let token = disk.enter().await.unwrap();
                let buffer = IoBuffer::alloc(512);
                disk.read(&token, offset as u64, buffer).await.unwrap();
            })
        };
        let reader = request(0);
        debug.wait_break("copy").await.unwrap();
        // Of the lowest image: everything stands above it.
        let draining = {
            let (graph, base) = (Arc::clone(&bench.graph), bench.graph.node("base").unwrap());
            current::spawn_local(async move { graph.drain(&base, "test").await })
        };
        settle().await;
        let late = request(CLUSTER);
        settle().await;
        assert_eq!(bench.held().await, "................");
        debug.resume("copy").unwrap();
        let section = draining.await.unwrap();
        reader.await.unwrap();
        settle().await;
        assert_eq!(bench.held().await, "d...............", "inside the section");
        drop(section);
        late.await.unwrap();
        assert_eq!(bench.held().await, "dd..............");
    });
}

#[test]
fn a_copy_that_fails_fails_the_read() {
    run(json!({}), |bench| async move {
        let node = bench.debug();
        let debug = node.as_blkdebug().unwrap();
        let rule = crate::driver::blkdebug::InjectError::new(DebugEvent::WriteAio, libc::ENOSPC);
        debug.inject(rule);
        let error = read(&bench.node, 0, 512).await.unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC);
        debug.clear_errors();
        assert_eq!(read(&bench.node, 0, 512).await.unwrap(), [1; 512]);
    });
}

#[test]
fn the_chain_down_to_the_bottom_stays() {
    run(json!({"bottom": "base"}), |bench| async move {
        let mid = bench.graph.node("mid").unwrap();
        let other = bench.graph.add_overlay("other", SIZE, None).unwrap();
        for (node, text) in [
            (&mid, "Cannot change 'backing' link to 'mid'"),
            (&bench.debug(), "Cannot change 'file' link to 'debug'"),
        ] {
            let refused = bench.graph.snapshot(node, &other).await.unwrap_err();
            assert_eq!(refused.to_string(), text);
            assert!(other.backing().is_none());
        }
        bench.graph.del_node("cor").unwrap();
        let Bench { graph, node, top } = bench;
        drop(node);
        graph.snapshot(&mid, &other).await.unwrap();
        let chain = top.backing_chain();
        let names: Vec<_> = chain.iter().map(|node| node.name()).collect();
        assert_eq!(names, ["other", "mid", "base"]);
    });
}

#[test]
fn bottoms_that_make_no_sense_are_refused() {
    run(json!({}), |bench| async move {
        let mid = bench.graph.node("mid").unwrap();
        bench.graph.add_overlay("beside", SIZE, Some(&mid)).unwrap();
        for (bottom, text) in [
            ("nobody", "Bottom node 'nobody' not found"),
            ("debug", "Bottom node 'debug' is a filter"),
            (
                "beside",
                "Bottom node 'beside' is not in the backing chain of 'top'",
            ),
        ] {
            let options = json!({"driver": "copy-on-read", "node-name": "other",
                                 "file": "top", "bottom": bottom});
            assert_eq!(bench.refused(options).await, text);
        }
    });
}

#[test]
fn nobody_writes_past_the_filter_and_what_can_not_be_written_is_refused() {
    run(json!({}), |bench| async move {
        let access = bench.top.access();
        assert_eq!(access.used, Permissions::WRITE_UNCHANGED);
        assert_eq!(access.shared, Permissions::all());
        bench.graph.add_backend("disk", &bench.node).unwrap();
        let refused = bench.graph.add_backend("other", &bench.top).unwrap_err();
        assert!(refused.to_string().contains("write"), "{refused}");
        let options = json!({"driver": "copy-on-read", "node-name": "other",
                             "file": {"driver": "null-co", "node-name": "null",
                                      "read-only": true}});
        assert_eq!(bench.refused(options).await, "node 'null' is read-only");
    });
}
