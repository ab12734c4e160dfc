//! Nodes with breakpoints, rules and limits, as options and as calls make them.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_aio::{Clock, EventLoop, IoBuffer, LoopConfig, current};

use super::*;
use crate::event::{BlockEvent, EventSink};
use crate::graph::Graph;
use crate::node::Node;

/// Nobody listens.
struct Silence;

impl EventSink for Silence {
    fn emit(&self, _event: BlockEvent) {}
}

/// A graph in a loop on a manual clock.
fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Arc<Graph>, Clock) -> F) {
    let clock = Clock::manual();
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("test", &config).unwrap();
    let graph = Graph::new(Arc::new(Silence), clock.clone());
    event_loop.run_until(test(graph, clock)).unwrap();
}

async fn add(graph: &Graph, more: Value) -> Result<Arc<Node>> {
    let mut options = json!({"driver": "blkdebug", "node-name": "debug",
                             "image": {"driver": "null-co", "read-zeroes": true}});
    let members = more.as_object().unwrap().clone();
    options.as_object_mut().unwrap().extend(members);
    graph
        .add_node(&serde_json::from_value(options).unwrap())
        .await
}

async fn settle() {
    for _ in 0..20 {
        current::yield_now().await;
    }
}

fn block() -> IoBuffer {
    IoBuffer::alloc(512)
}

/// The names of the requests that have ended.
type Log = Rc<RefCell<Vec<&'static str>>>;

fn write(node: &Arc<Node>, log: &Log, name: &'static str) -> sluice_aio::JoinHandle<Result<()>> {
    let (node, log) = (Arc::clone(node), Rc::clone(log));
    current::spawn_local(async move {
        let result = node.write(0, block(), RequestFlags::empty()).await;
        log.borrow_mut().push(name);
        result
    })
}

#[test]
fn requests_are_held_reordered_and_failed_one_by_one() {
    run(|graph, _| async move {
        let node = add(&graph, json!({})).await.unwrap();
        let debug = node.as_blkdebug().unwrap();
        let log = Log::default();
        for tag in ["first", "second", "third"] {
            debug.set_break(DebugEvent::WriteAio, tag).unwrap();
        }
        let again = debug.set_break(DebugEvent::ReadAio, "first").unwrap_err();
        assert_eq!(again.to_string(), "Breakpoint 'first' exists already");
        let early = debug.resume("third").unwrap_err().to_string();
        assert_eq!(early, "Breakpoint 'third' not found", "nobody is held");
        let tasks = ["1", "2", "3", "4"].map(|name| write(&node, &log, name));
        debug.wait_break("third").await.unwrap();
        settle().await;
        assert_eq!(*log.borrow(), ["4"], "every tag holds one");
        debug.resume("third").unwrap();
        settle().await;
        debug.fail("first", libc::ENOSPC).unwrap();
        settle().await;
        assert!(debug.is_suspended("second"));
        debug.remove_break("second").unwrap();
        assert!(!debug.is_suspended("second"));
        settle().await;
        assert_eq!(*log.borrow(), ["4", "3", "1", "2"]);
        let mut failed = Vec::new();
        for task in tasks {
            failed.push(task.await.unwrap().err().map(|error| error.errno()));
        }
        assert_eq!(failed, [Some(libc::ENOSPC), None, None, None]);
        for gone in ["first", "second", "third"] {
            assert!(debug.remove_break(gone).is_err());
            assert!(debug.wait_break(gone).await.is_err());
        }
    });
}

#[test]
fn a_breakpoint_can_be_taken_back_before_anybody_comes() {
    run(|graph, _| async move {
        let node = add(&graph, json!({})).await.unwrap();
        let debug = node.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::FlushToDisk, "never").unwrap();
        let waiter = Arc::clone(&node);
        let waiting =
            current::spawn_local(
                async move { waiter.as_blkdebug().unwrap().wait_break("never").await },
            );
        settle().await;
        debug.remove_break("never").unwrap();
        assert!(waiting.await.unwrap().is_err(), "told that it is gone");
        node.flush().await.unwrap();
        // A held request that is given up leaves nothing behind.
        debug.set_break(DebugEvent::WriteAio, "gone").unwrap();
        let task = write(&node, &Log::default(), "1");
        debug.wait_break("gone").await.unwrap();
        task.cancel();
        settle().await;
        assert!(!debug.is_suspended("gone"));
    });
}

#[test]
fn errors_come_from_options_and_from_a_file() {
    run(|graph, _| async move {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rules");
        let text = "[inject-error]\nevent = \"read_aio\"\nerrno = \"7\"\nonce = \"on\"\n\
                    [set-state]\nevent = \"flush_to_disk\"\nnew_state = \"2\"\n";
        std::fs::write(&path, text).unwrap();
        let options = json!({"config": path, "inject-error":
            [{"event": "write_aio", "state": 2, "errno": 28, "iotype": "write", "sector": 1,
              "immediately": true}]});
        let node = add(&graph, options).await.unwrap();
        let errno = |result: Result<()>| result.map_err(|error| error.errno());
        assert_eq!(errno(node.read(0, block()).await), Err(7));
        assert_eq!(errno(node.read(0, block()).await), Ok(()));
        let write = |offset| node.write(offset, block(), RequestFlags::empty());
        assert_eq!(errno(write(512).await), Ok(()), "not in this state");
        node.flush().await.unwrap();
        assert_eq!(errno(write(0).await), Ok(()), "not this sector");
        assert_eq!(errno(write(512).await), Err(28));
        node.discard(512, 512).await.unwrap();
        assert_eq!(
            node.info().filename,
            format!("blkdebug:{}:null-co://", path.display())
        );
    });
}

/// QEMU's events, in its order; one of a write that begins or ends with a block does not happen.
#[test]
fn a_write_within_a_block_stops_around_its_read() {
    run(|graph, _| async move {
        let node = add(&graph, json!({"align": 4096})).await.unwrap();
        let debug = node.as_blkdebug().unwrap();
        let events = [
            DebugEvent::PwritevRmwHead,
            DebugEvent::PwritevRmwTail,
            DebugEvent::ReadAio,
            DebugEvent::PwritevRmwAfterHead,
            DebugEvent::PwritevRmwAfterTail,
            DebugEvent::WriteAio,
        ];
        let tags = ["head", "tail", "read", "after_head", "after_tail", "write"];
        let (within, first, last, whole) = (512, 0, 4096 - 512, 4096);
        for (offset, len, expected) in [
            (within, 512, &tags[..]),
            (first, 512, &["tail", "read", "after_tail", "write"]),
            (last, 512, &["head", "read", "after_head", "write"]),
            (first, whole, &["write"]),
        ] {
            for (event, tag) in events.into_iter().zip(tags) {
                debug.set_break(event, tag).unwrap();
            }
            let writer = Arc::clone(&node);
            let task = current::spawn_local(async move {
                let buffer = IoBuffer::alloc(len);
                writer.write(offset, buffer, RequestFlags::empty()).await
            });
            for tag in expected {
                settle().await;
                let held: Vec<_> = tags.iter().filter(|tag| debug.is_suspended(tag)).collect();
                assert_eq!(held, [tag], "{len} bytes at {offset}");
                debug.resume(tag).unwrap();
            }
            task.await.unwrap().unwrap();
            for tag in tags.iter().filter(|tag| !expected.contains(tag)) {
                debug.remove_break(tag).unwrap();
            }
        }
        // What fails there is not written.
        debug.set_break(events[3], "after_head").unwrap();
        debug.set_break(DebugEvent::WriteAio, "write").unwrap();
        let writer = Arc::clone(&node);
        let task =
            current::spawn_local(
                async move { writer.write(512, block(), RequestFlags::empty()).await },
            );
        settle().await;
        debug.fail("after_head", libc::ENOMEM).unwrap();
        let failed = task.await.unwrap().unwrap_err();
        assert_eq!(failed.errno(), libc::ENOMEM);
        assert!(!debug.is_suspended("write"));
    });
}

/// Otherwise an error comes in a later turn of the loop, as from a medium.
#[test]
fn an_error_comes_at_once_only_if_that_is_asked_for() {
    run(|graph, _| async move {
        for immediately in [false, true] {
            let rule = json!({"event": "none", "iotype": "read", "immediately": immediately});
            let node = add(&graph, json!({"inject-error": [rule]})).await.unwrap();
            {
                let mut read = pin!(node.read(0, block()));
                assert_eq!(
                    futures_util::poll!(read.as_mut()).is_ready(),
                    immediately,
                    "immediately={immediately}"
                );
                if !immediately {
                    assert_eq!(read.await.unwrap_err().errno(), libc::EIO);
                }
            }
            graph.del_node("debug").unwrap();
        }
    });
}

#[test]
fn a_status_query_fails_only_by_a_rule_of_its_own() {
    run(|graph, _| async move {
        let options = json!({"inject-error": [{"event": "none"},
                             {"event": "none", "iotype": "block-status", "sector": 8}]});
        let node = add(&graph, options).await.unwrap();
        assert!(node.read(0, block()).await.is_err());
        assert!(node.block_status(0, 512).await.is_ok());
        assert!(node.block_status(0, 8192).await.is_err());
    });
}

#[test]
fn a_delay_is_counted_on_the_loops_clock() {
    run(|graph, clock| async move {
        let options = json!({"x-delay": [{"event": "write_aio", "ns": 1_000_000, "once": true}]});
        let node = add(&graph, options).await.unwrap();
        let log = Log::default();
        let tasks = ["slow", "quick"].map(|name| write(&node, &log, name));
        settle().await;
        assert_eq!(*log.borrow(), ["quick"]);
        clock.advance(Duration::from_nanos(999_999));
        settle().await;
        assert_eq!(log.borrow().len(), 1);
        clock.advance(Duration::from_nanos(1));
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(*log.borrow(), ["quick", "slow"]);
    });
}

#[test]
fn limits_are_checked_against_each_other_and_told() {
    run(|graph, _| async move {
        let cases = [
            (json!({"align": 3}), "align 3"),
            (json!({"align": 4_294_967_296_u64}), "align 4294967296"),
            (
                json!({"align": 512, "max-transfer": 1000}),
                "max-transfer 1000",
            ),
            (
                json!({"align": 512, "opt-write-zero": 100}),
                "opt-write-zero 100",
            ),
            (
                json!({"opt-write-zero": 4096, "max-write-zero": 5120}),
                "max-write-zero 5120",
            ),
            (json!({"align": 512, "opt-discard": 100}), "opt-discard 100"),
            (
                json!({"opt-discard": 4096, "max-discard": 5120}),
                "max-discard 5120",
            ),
        ];
        for (options, what) in cases {
            let refused = add(&graph, options).await.unwrap_err().to_string();
            assert_eq!(refused, format!("Cannot meet constraints with {what}"));
        }
        let node = add(
            &graph,
            json!({"align": 4096, "max-transfer": 65536, "opt-write-zero": 8192,
                   "max-write-zero": 16384, "opt-discard": 4096, "max-discard": 0}),
        )
        .await
        .unwrap();
        let expected = Limits {
            request_alignment: 4096,
            max_transfer: Some(65536),
            write_zeroes_alignment: 8192,
            max_write_zeroes: Some(16384),
            discard_alignment: 4096,
            max_discard: None,
        };
        assert_eq!(node.driver().limits(), expected);
    });
}

#[test]
fn permissions_of_the_child_can_be_claimed() {
    run(|graph, _| async move {
        let options = json!({"take-child-perms": ["write", "consistent-read"],
                             "unshare-child-perms": ["resize"]});
        let node = add(&graph, options).await.unwrap();
        let access = node.driver().child_access(Role::Filtered, Access::NONE);
        let taken = Permissions::WRITE | Permissions::CONSISTENT_READ;
        assert_eq!(access.used, taken);
        assert_eq!(access.unshared(), Permissions::RESIZE);
    });
}
