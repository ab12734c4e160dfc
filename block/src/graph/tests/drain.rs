//! What a section promises, whatever stands above the node (QEMU's `test-bdrv-drain`, as far as
//! this graph has the parts).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use serde_json::json;
use sluice_aio::{IoThread, LoopConfig, current};

use super::bench::{Bench, SIZE, Watch, run, settle, write};
use crate::backend::Backend;
use crate::drain::Section;
use crate::node::Node;

async fn drain(bench: &Bench, node: Option<&Arc<Node>>) -> Section {
    match node {
        Some(node) => bench.graph.drain(node, "one").await,
        None => bench.graph.drain_all("all").await,
    }
}

#[test]
fn a_section_waits_for_what_runs_and_parks_what_comes() {
    run(|bench| async move {
        let (disk, node, watch) = bench.disk("disk");
        watch.hold();
        let running = current::spawn_local({
            let disk = Arc::clone(&disk);
            async move { write(&disk, 1).await }
        });
        settle().await;
        assert!(watch.is_running());
        let graph = Arc::clone(&bench.graph);
        let draining = current::spawn_local({
            let (node, watch) = (Arc::clone(&node), Arc::clone(&watch));
            async move {
                let section = graph.drain(&node, "test").await;
                assert!(!watch.is_running());
                section
            }
        });
        settle().await;
        let late = current::spawn_local({
            let disk = Arc::clone(&disk);
            async move { write(&disk, 2).await }
        });
        settle().await;
        assert_eq!(*watch.log.lock(), [1]);
        watch.release();
        let section = draining.await.unwrap();
        running.await.unwrap().unwrap();
        settle().await;
        assert_eq!(
            *watch.log.lock(),
            [1],
            "a request started inside the section"
        );
        assert_eq!(section.held_back().requests, 1);
        assert_eq!(disk.gate().stats().holders[0].name, "test");
        drop(section);
        late.await.unwrap().unwrap();
        assert_eq!(*watch.log.lock(), [1, 2]);
    });
}

#[test]
fn sections_nest_in_every_order() {
    run(|bench| async move {
        let (disk, node, _watch) = bench.disk("disk");
        for outer in [Some(&node), None] {
            for inner in [Some(&node), None] {
                for outer_first in [true, false] {
                    let first = drain(&bench, outer).await;
                    let second = drain(&bench, inner).await;
                    assert_eq!(disk.gate().stats().holders.len(), 2);
                    let (first, second) = if outer_first {
                        (first, second)
                    } else {
                        (second, first)
                    };
                    drop(first);
                    assert!(disk.gate().is_closed());
                    assert!(disk.try_enter().is_none());
                    drop(second);
                    assert!(!disk.gate().is_closed());
                    assert!(disk.try_enter().is_some());
                }
            }
        }
    });
}

#[test]
fn a_drained_child_holds_all_its_parents_and_a_drained_parent_only_itself() {
    run(|bench| async move {
        let (below, _watch) = bench.probe("below", true);
        let mut disks = Vec::new();
        for name in ["left", "right"] {
            let node = bench
                .add(json!({"driver": "raw", "node-name": format!("{name}-raw"), "file": "below"}))
                .await
                .unwrap();
            disks.push((bench.graph.add_backend(name, &node).unwrap(), node));
        }
        let (alone, _, _) = bench.disk("alone");
        let closed = || {
            let is_closed = |name: &str| bench.graph.backend(name).unwrap().gate().is_closed();
            (is_closed("left"), is_closed("right"), is_closed("alone"))
        };
        let section = bench.graph.drain(&below, "test").await;
        assert_eq!(closed(), (true, true, false));
        drop(section);
        let section = bench.graph.drain(&disks[0].1, "test").await;
        assert_eq!(closed(), (true, false, false));
        drop(section);
        let section = bench.graph.drain_all("test").await;
        assert_eq!(closed(), (true, true, true));
        drop(section);
        assert_eq!(closed(), (false, false, false));
        drop(alone);
    });
}

/// A node that is reached on two ways closes its gate once per section, and opens it too.
#[test]
fn a_diamond_is_covered_once() {
    run(|bench| async move {
        let (below, _watch) = bench.probe("below", true);
        for options in [
            json!({"driver": "raw", "node-name": "middle", "file": "below"}),
            json!({"driver": "blkdebug", "node-name": "top", "image": "middle"}),
        ] {
            bench.add(options).await.unwrap();
        }
        let top = bench.graph.node("top").unwrap();
        let disk = bench.graph.add_backend("disk", &top).unwrap();
        // The second way up: as if the top had two children.
        let middle = bench.graph.node("middle").unwrap();
        let parents = middle.edges_above();
        below.state.lock().parents.extend(parents);
        let section = bench.graph.drain(&below, "test").await;
        assert_eq!(disk.gate().stats().holders.len(), 1);
        drop(section);
        assert!(!disk.gate().is_closed());
    });
}

#[test]
fn what_is_attached_inside_a_section_begins_closed() {
    run(|bench| async move {
        let (below, watch) = bench.probe("below", false);
        let section = bench.graph.drain(&below, "test").await;
        let raw = bench
            .add(json!({"driver": "raw", "node-name": "raw", "file": "below"}))
            .await
            .unwrap();
        let disk = bench.graph.add_backend("disk", &raw).unwrap();
        assert!(disk.try_enter().is_none());
        let parked = current::spawn_local(async move { write(&disk, 7).await });
        settle().await;
        assert!(watch.log.lock().is_empty());
        drop(section);
        parked.await.unwrap().unwrap();
        assert_eq!(*watch.log.lock(), [7]);
    });
}

#[test]
fn drain_all_covers_disks_that_come_and_go() {
    run(|bench| async move {
        let (old, _, _) = bench.disk("old");
        let section = bench.graph.drain_all("test").await;
        let (new, _, watch) = bench.disk("new");
        assert!(new.gate().is_closed());
        let parked = current::spawn_local({
            let old = Arc::clone(&old);
            async move { write(&old, 1).await }
        });
        settle().await;
        bench.graph.remove_backend(&old).await;
        assert!(
            parked.await.unwrap().is_err(),
            "a parked request survives its disk"
        );
        bench.graph.del_node("old-node").unwrap();
        assert!(watch.log.lock().is_empty());
        drop(section);
        assert!(!new.gate().is_closed());
        write(&new, 2).await.unwrap();
    });
}

#[test]
fn a_drain_that_is_given_up_lets_go() {
    run(|bench| async move {
        let (disk, node, watch) = bench.disk("disk");
        watch.hold();
        let running = current::spawn_local({
            let disk = Arc::clone(&disk);
            async move { write(&disk, 1).await }
        });
        settle().await;
        let graph = Arc::clone(&bench.graph);
        let draining = current::spawn_local(async move { graph.drain(&node, "test").await });
        settle().await;
        assert!(disk.gate().is_closed());
        draining.cancel();
        settle().await;
        assert!(!disk.gate().is_closed());
        watch.release();
        running.await.unwrap().unwrap();
    });
}

/// The section's wait is over when its backend's last request is, even if that takes away the disk.
#[test]
fn a_disk_may_go_while_it_is_being_drained() {
    run(|bench| async move {
        let (disk, node, watch) = bench.disk("disk");
        watch.hold();
        let graph = Arc::clone(&bench.graph);
        let last = current::spawn_local({
            let graph = Arc::clone(&graph);
            async move {
                write(&disk, 1).await.unwrap();
                graph.remove_backend(&disk).await;
                drop(disk);
                graph.del_node("disk-node").unwrap();
            }
        });
        settle().await;
        let weak = Arc::downgrade(&node);
        let draining = current::spawn_local(async move { graph.drain(&node, "test").await });
        settle().await;
        watch.release();
        drop(draining.await.unwrap());
        last.await.unwrap();
        assert_eq!(weak.strong_count(), 0, "the node is leaked");
        assert!(bench.graph.nodes().is_empty());
    });
}

#[test]
fn a_disk_served_by_a_thread_is_drained_from_outside_and_from_inside() {
    run(|bench| async move {
        let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
        let (disk, node, watch) = bench.disk("disk");
        for inside in [false, true] {
            watch.hold();
            let guest = Arc::clone(&disk);
            let running = thread
                .context()
                .call(move || async move { write(&guest, 1).await });
            while !watch.is_running() {
                current::yield_now().await;
            }
            let (graph, drained) = (Arc::clone(&bench.graph), Arc::clone(&node));
            let begin = move || async move { graph.drain(&drained, "test").await };
            let draining = if inside {
                futures_util::future::Either::Left(thread.context().call(begin))
            } else {
                let here = current::context();
                futures_util::future::Either::Right(here.call(begin))
            };
            while !disk.gate().is_closed() {
                current::yield_now().await;
            }
            watch.release();
            let section = draining.await.unwrap();
            assert!(!watch.is_running());
            running.await.unwrap().unwrap();
            // Ended in another thread than it was begun in.
            let ended = thread.context().call(move || async move { drop(section) });
            ended.await.unwrap();
            assert!(!disk.gate().is_closed());
        }
    });
}

#[test]
fn sections_leave_nothing_behind() {
    run(|bench| async move {
        let (_disk, node, _watch) = bench.disk("disk");
        for _ in 0..100 {
            drop(bench.graph.drain(&node, "test").await);
            drop(bench.graph.drain_all("test").await);
        }
        assert!(node.state.lock().sections.len() <= 1);
        assert!(bench.graph.topology().global.len() <= 1);
    });
}

#[test]
fn one_disks_section_leaves_its_neighbours_alone() {
    run(|bench| async move {
        let (_, node, _) = bench.disk("drained");
        let (free, _, watch) = bench.disk("free");
        let section = bench.graph.drain(&node, "test").await;
        write(&free, 3).await.unwrap();
        assert_eq!(*watch.log.lock(), [3]);
        drop(section);
    });
}

/// The control for the watch itself: a device that does not ask the gate is seen.
#[test]
fn a_request_that_ignores_the_section_is_noticed() {
    run(|bench| async move {
        let (disk, node, watch) = bench.disk("disk");
        let section = bench.graph.drain(&node, "test").await;
        watch.exclusive.fetch_add(1, Ordering::SeqCst);
        let token = disk.enter_ignoring_sections();
        disk.flush(&token).await.unwrap();
        assert!(watch.broken.load(Ordering::SeqCst));
        drop(section);
    });
}

/// Another's section is over only after all has come to rest, and its end lets nobody in; nor does a disk that comes then.
#[test]
fn what_is_parked_when_the_machine_stops_begins_when_it_goes_on() {
    run(|bench| async move {
        let (disk, node, watch) = bench.disk("disk");
        let begin = |disk: &Arc<Backend>, offset| {
            let disk = Arc::clone(disk);
            current::spawn_local(async move { write(&disk, offset).await })
        };
        // But for flushes.
        let written = |watch: &Arc<Watch>| {
            let mut log = watch.log.lock().clone();
            log.retain(|offset| *offset != SIZE);
            log
        };
        let section = bench.graph.drain(&node, "test").await;
        let parked = begin(&disk, 1);
        settle().await;
        assert!(bench.graph.come_to_rest("stop").await.is_empty());
        drop(section);
        let late = begin(&disk, 2);
        let (other, _, others) = bench.disk("other");
        let plugged = begin(&other, 3);
        settle().await;
        assert!(written(&watch).is_empty() && written(&others).is_empty());
        assert_eq!(disk.gate().stats().holders[0].name, "stopped machine");
        // Sections begin and end, and tools work meanwhile.
        drop(bench.graph.drain_all("test").await);
        let token = disk.enter_as_tool().await.unwrap();
        disk.flush(&token).await.unwrap();
        drop(token);
        settle().await;
        assert!(written(&watch).is_empty());
        bench.graph.resume();
        for request in [parked, late, plugged] {
            request.await.unwrap().unwrap();
        }
        assert_eq!(written(&watch), [1, 2]);
        assert_eq!(written(&others), [3]);
    });
}

/// A section waits for an operator's tool as for a device, and the tool for the section.
#[test]
fn tools_are_kept_out_too() {
    run(|bench| async move {
        let (disk, node, _watch) = bench.disk("disk");
        let token = disk.enter_as_tool().await.unwrap();
        let (graph, drained) = (Arc::clone(&bench.graph), Arc::clone(&node));
        let mut draining = current::spawn_local(async move { graph.drain(&drained, "test").await });
        settle().await;
        assert!((&mut draining).now_or_never().is_none());
        drop(token);
        let section = draining.await.unwrap();
        let tool = Arc::clone(&disk);
        let mut late = current::spawn_local(async move { tool.enter_as_tool().await });
        settle().await;
        assert!((&mut late).now_or_never().is_none());
        drop(section);
        drop(late.await.unwrap().unwrap());
    });
}
