//! Drained sections and drivers, threads and changes: the ideas of QEMU's `test-bdrv-drain`, each
//! under its name there (docs/block-layer.md has the table). What is about jobs is in `jobs`, what
//! is about moving an edge in `changes`.
//!
//! QEMU runs many of its cases twice, from outside and from inside of a coroutine. Here a drain is
//! always awaited by a task; the second run is made in an I/O thread.

use std::sync::Arc;

use sluice_aio::{AioContext, IoThread, LoopConfig, current};

use super::bench::{Bench, Watch, pass, run, settle, write};
use crate::backend::Backend;
use crate::drain::Section;
use crate::driver::Role;
use crate::node::Node;

/// Begins a section of `node`, or of all, by a task of `context`.
async fn drain_in(bench: &Bench, context: &AioContext, node: Option<&Arc<Node>>) -> Section {
    let (graph, node) = (Arc::clone(&bench.graph), node.cloned());
    let section = context.call(move || async move {
        match node {
            Some(node) => graph.drain(&node, "one").await,
            None => graph.drain_all("all").await,
        }
    });
    section.await.unwrap()
}

/// A disk over a filter over a probe: QEMU's node with its backing file.
struct Chain {
    disk: Arc<Backend>,
    top: Arc<Node>,
    top_watch: Arc<Watch>,
    backing: Arc<Node>,
    watch: Arc<Watch>,
}

impl Chain {
    fn new(bench: &Bench, name: &str) -> Self {
        let (backing, watch) = bench.probe(&format!("{name}-backing"), false);
        let (top, top_watch) = bench.filter(&format!("{name}-top"), &backing, None);
        let disk = bench.graph.add_backend(name, &top).unwrap();
        Self {
            disk,
            top,
            top_watch,
            backing,
            watch,
        }
    }

    /// Sections over the filter and over the probe.
    fn covers(&self) -> (usize, usize) {
        (self.top.drained_by().len(), self.backing.drained_by().len())
    }
}

/// Waits, without a clock, until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        current::yield_now().await;
    }
}

fn everywhere(test: impl AsyncFn(Bench, AioContext) + Copy + 'static) {
    run(async move |bench| test(bench, current::context()).await);
    run(async move |bench| {
        let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
        test(bench, thread.context().clone()).await;
    });
}

/// Every driver that the section covers is told once, of its begin and of its end; what was
/// under way has ended in between.
async fn driver_callbacks(bench: Bench, context: AioContext, all: bool) {
    let chain = Chain::new(&bench, "disk");
    chain.watch.hold();
    let disk = Arc::clone(&chain.disk);
    let request = current::spawn_local(async move { write(&disk, 1).await });
    settle().await;
    let (graph, node) = (Arc::clone(&bench.graph), Arc::clone(&chain.top));
    let draining = current::spawn_local(async move {
        let bench = Bench { graph };
        drain_in(&bench, &context, (!all).then_some(&node)).await
    });
    until(|| chain.disk.gate().is_closed()).await;
    settle().await;
    assert!(chain.watch.is_running());
    chain.watch.release();
    let section = draining.await.unwrap();
    assert!(!chain.watch.is_running());
    request.await.unwrap().unwrap();
    let backing = usize::from(all);
    assert_eq!(chain.top_watch.told(), (1, 0));
    assert_eq!(chain.watch.told(), (backing, 0));
    drop(section);
    assert_eq!(chain.top_watch.told(), (1, 1));
    assert_eq!(chain.watch.told(), (backing, backing));
}

#[test]
fn driver_cb_drain_all() {
    everywhere(async |bench, context| driver_callbacks(bench, context, true).await);
}

#[test]
fn driver_cb_drain() {
    everywhere(async |bench, context| driver_callbacks(bench, context, false).await);
}

/// QEMU counts edges, so that a node below another has 2 in `drain_all`; here a section counts once.
async fn quiesce(bench: Bench, context: AioContext, all: bool) {
    let chain = Chain::new(&bench, "disk");
    assert_eq!(chain.covers(), (0, 0));
    let section = drain_in(&bench, &context, (!all).then_some(&chain.top)).await;
    assert_eq!(chain.covers(), (1, usize::from(all)));
    let holder = &chain.top.drained_by()[0];
    assert_eq!(holder.name, if all { "all" } else { "one" });
    drop(section);
    assert_eq!(chain.covers(), (0, 0));
}

#[test]
fn quiesce_drain_all() {
    everywhere(async |bench, context| quiesce(bench, context, true).await);
}

#[test]
fn quiesce_drain() {
    everywhere(async |bench, context| quiesce(bench, context, false).await);
}

#[test]
fn nested() {
    everywhere(async |bench, context| {
        let chain = Chain::new(&bench, "disk");
        let mut tops = 0;
        let mut backings = 0;
        for outer in [false, true] {
            for inner in [false, true] {
                let first = drain_in(&bench, &context, (!outer).then_some(&chain.top)).await;
                let second = drain_in(&bench, &context, (!inner).then_some(&chain.top)).await;
                let all = usize::from(outer) + usize::from(inner);
                assert_eq!(chain.covers(), (2, all));
                tops += 1;
                backings += usize::from(all > 0);
                // Told when the first begins and when the last ends, not at every level.
                assert_eq!(chain.top_watch.told(), (tops, tops - 1));
                drop(second);
                assert_eq!(chain.covers(), (1, usize::from(outer)));
                assert_eq!(chain.top_watch.told(), (tops, tops - 1));
                drop(first);
                assert_eq!(chain.covers(), (0, 0));
                assert_eq!(chain.top_watch.told(), (tops, tops));
                assert_eq!(chain.watch.told(), (backings, backings));
            }
        }
    });
}

#[test]
fn graph_change_drain_all() {
    run(async |bench| {
        let old = Chain::new(&bench, "old");
        let section = bench.graph.drain_all("all").await;
        let new = Chain::new(&bench, "new");
        assert_eq!(new.covers(), (1, 1));
        assert_eq!(new.top_watch.told(), (1, 0));
        assert!(new.disk.gate().is_closed());
        bench.graph.remove_backend(&old.disk).await;
        bench.graph.del_node("old-top").unwrap();
        bench.graph.del_node("old-backing").unwrap();
        drop(section);
        assert_eq!((new.covers(), old.covers()), ((0, 0), (0, 0)));
        assert!(!new.disk.gate().is_closed());
        for watch in [&old.top_watch, &old.watch, &new.top_watch, &new.watch] {
            assert_eq!(watch.told(), (1, 1));
        }
    });
}

/// A request runs in one thread and can only end after a call in another; the section, awaited in a
/// third or in the first, waits for it. A flush that comes meanwhile waits for the section and does
/// not stand in its way.
fn iothread(all: bool) {
    run(async move |bench| {
        let config = LoopConfig::default;
        let a = IoThread::spawn("a", config()).unwrap();
        let b = IoThread::spawn("b", config()).unwrap();
        let chain = Chain::new(&bench, "disk");
        for context in [current::context(), a.context().clone()] {
            chain.watch.hold();
            let disk = Arc::clone(&chain.disk);
            let request = a
                .context()
                .call(move || async move { write(&disk, 1).await });
            until(|| chain.watch.is_running()).await;
            let (graph, node) = (Arc::clone(&bench.graph), Arc::clone(&chain.top));
            let draining = current::spawn_local(async move {
                drain_in(&Bench { graph }, &context, (!all).then_some(&node)).await
            });
            until(|| chain.disk.gate().is_closed()).await;
            let disk = Arc::clone(&chain.disk);
            let flush = a.context().call(move || async move {
                let token = disk.enter().await?;
                disk.flush(&token).await
            });
            until(|| chain.disk.gate().parked() == 1).await;
            assert!(chain.watch.is_running());
            let watch = Arc::clone(&chain.watch);
            b.context().schedule(move || watch.release());
            let section = draining.await.unwrap();
            assert!(!chain.watch.is_running());
            request.await.unwrap().unwrap();
            assert_eq!(chain.disk.gate().in_flight(), 0);
            drop(section);
            flush.await.unwrap().unwrap();
        }
    });
}

#[test]
fn iothread_drain_all() {
    iothread(true);
}

#[test]
fn iothread_drain() {
    iothread(false);
}

/// The last request of a node takes it away while the node is being drained.
#[test]
fn deletion_drain() {
    run(async |bench| {
        let chain = Chain::new(&bench, "disk");
        chain.watch.hold();
        let (graph, disk) = (Arc::clone(&bench.graph), Arc::clone(&chain.disk));
        let last = current::spawn_local(async move {
            write(&disk, 1).await.unwrap();
            graph.remove_backend(&disk).await;
            graph.del_node("disk-top").unwrap();
            graph.del_node("disk-backing").unwrap();
        });
        settle().await;
        let Chain {
            top,
            watch,
            backing,
            ..
        } = chain;
        let weak = [Arc::downgrade(&top), Arc::downgrade(&backing)];
        drop(backing);
        let graph = Arc::clone(&bench.graph);
        let draining = current::spawn_local(async move { graph.drain(&top, "test").await });
        settle().await;
        watch.release();
        let section = draining.await.unwrap();
        last.await.unwrap();
        drop(section);
        for node in weak {
            assert_eq!(node.strong_count(), 0, "the node is leaked");
        }
    });
}

/// The end of a request takes children off nodes, and nodes out of the graph, while a drain that
/// covers them waits.
fn detach(all: bool) {
    run(async move |bench| {
        let chain = Chain::new(&bench, "disk");
        let (other, other_watch) = bench.probe("other", false);
        let (beside, beside_watch) = bench.filter("beside", &chain.backing, None);
        chain.watch.hold();
        let disk = Arc::clone(&chain.disk);
        let request = current::spawn_local(async move { write(&disk, 1).await });
        settle().await;
        let detaching = {
            let (graph, top) = (Arc::clone(&bench.graph), Arc::clone(&chain.top));
            let other = Arc::clone(&other);
            current::spawn_local(async move {
                request.await.unwrap().unwrap();
                let mut change = graph.transaction();
                change.set_child(&top, Role::Filtered, &other).unwrap();
                change.commit().unwrap();
                graph.del_node("beside").unwrap();
                graph.del_node("disk-backing").unwrap();
            })
        };
        let section = {
            let (graph, node) = (Arc::clone(&bench.graph), Arc::clone(&chain.backing));
            let here = current::context();
            let draining = current::spawn_local(async move {
                drain_in(&Bench { graph }, &here, (!all).then_some(&node)).await
            });
            settle().await;
            chain.watch.release();
            draining.await.unwrap()
        };
        detaching.await.unwrap();
        assert!(chain.disk.gate().is_closed());
        drop((section, beside));
        assert!(!chain.disk.gate().is_closed());
        write(&chain.disk, 2).await.unwrap();
        assert_eq!(*other_watch.log.lock(), [2]);
        for watch in [&chain.top_watch, &chain.watch, &other_watch, &beside_watch] {
            let (begun, ended) = watch.told();
            assert_eq!(begun, ended);
        }
        assert_eq!(chain.covers(), (0, 0));
        assert!(chain.backing.parents().is_empty());
    });
}

#[test]
fn detach_drain_all() {
    detach(true);
}

#[test]
fn detach_drain() {
    detach(false);
}

/// A driver that is told of a section has a child of it swapped while the drain waits: the parent's
/// (above the drained node) or the drained node's own driver.
fn detach_by_callback(of_parent: bool) {
    run(async move |bench| {
        let chain = Chain::new(&bench, "disk");
        let (other, other_watch) = bench.probe("other", false);
        let drained = if of_parent {
            &chain.backing
        } else {
            &chain.top
        };
        chain.watch.hold();
        let disk = Arc::clone(&chain.disk);
        let request = current::spawn_local(async move { write(&disk, 1).await });
        settle().await;
        let here = current::context();
        let swapped = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let swap = {
            let (graph, top) = (Arc::clone(&bench.graph), Arc::clone(&chain.top));
            let (other, swapped) = (Arc::clone(&other), Arc::clone(&swapped));
            move || {
                let mut change = graph.transaction();
                change.set_child(&top, Role::Filtered, &other).unwrap();
                change.commit().unwrap();
                swapped.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        };
        // Not in the callback itself, which must not change the graph, but as soon as possible.
        chain.top_watch.on_begin.set(move || here.schedule(swap));
        let (graph, node) = (Arc::clone(&bench.graph), Arc::clone(drained));
        let draining = current::spawn_local(async move { graph.drain(&node, "test").await });
        until(|| swapped.load(std::sync::atomic::Ordering::SeqCst)).await;
        assert!(
            chain.watch.is_running(),
            "the drain waits, and the graph has changed"
        );
        chain.watch.release();
        let section = draining.await.unwrap();
        request.await.unwrap().unwrap();
        // The drained one, what stood above it, and nobody else; the new child stands below.
        assert_eq!(chain.covers(), (1, usize::from(of_parent)));
        assert!(other.drained_by().is_empty());
        drop(section);
        assert_eq!(chain.covers(), (0, 0));
        assert_eq!(chain.top_watch.told(), (1, 1));
        let backing = usize::from(of_parent);
        assert_eq!(chain.watch.told(), (backing, backing));
        assert_eq!(other_watch.told(), (0, 0));
        assert!(chain.backing.parents().is_empty());
        assert_eq!(other.parents().len(), 1);
        write(&chain.disk, 2).await.unwrap();
        assert_eq!(*other_watch.log.lock(), [2]);
    });
}

#[test]
fn detach_parent_cb() {
    detach_by_callback(true);
}

#[test]
fn detach_driver_cb() {
    detach_by_callback(false);
}

/// What is put above a drained node is drained: a filter, and one above that.
#[test]
fn attach_drain() {
    run(async |bench| {
        let chain = Chain::new(&bench, "disk");
        let section = bench.graph.drain(&chain.backing, "test").await;
        let (driver, watch) = pass(&chain.top, None);
        let overlay = bench
            .graph
            .insert_filter("mirror 'j'", Some("overlay"), &chain.top, driver)
            .unwrap();
        let (above, above_watch) = bench.filter("above", &chain.backing, None);
        assert_eq!(overlay.drained_by().len(), 1);
        assert_eq!(above.drained_by().len(), 1);
        assert_eq!((watch.told(), above_watch.told()), ((1, 0), (1, 0)));
        drop(section);
        assert_eq!((watch.told(), above_watch.told()), ((1, 1), (1, 1)));
        assert!(overlay.drained_by().is_empty());
        write(&chain.disk, 1).await.unwrap();
    });
}

/// The disk's loop changes from the main one to a thread, to another and back while it is drained.
/// Its section holds all the time, wherever its requests come from, and ends once.
#[test]
fn set_aio_context() {
    run(async |bench| {
        let config = LoopConfig::default;
        let a = IoThread::spawn("a", config()).unwrap();
        let b = IoThread::spawn("b", config()).unwrap();
        let chain = Chain::new(&bench, "disk");
        let section = bench.graph.drain(&chain.top, "test").await;
        let mut parked = Vec::new();
        let main = current::context();
        for context in [&main, a.context(), b.context(), &main] {
            chain.disk.set_context(context);
            let (disk, offset) = (Arc::clone(&chain.disk), parked.len() as u64);
            parked.push(context.call(move || async move { write(&disk, offset).await }));
            until(|| chain.disk.gate().parked() == parked.len()).await;
            assert_eq!(chain.covers(), (1, 0));
        }
        assert!(chain.watch.log.lock().is_empty());
        drop(section);
        for request in parked {
            request.await.unwrap().unwrap();
        }
        // Each started in its turn, but in threads of their own.
        chain.watch.log.lock().sort_unstable();
        assert_eq!(*chain.watch.log.lock(), [0, 1, 2, 3]);
        assert_eq!(chain.covers(), (0, 0));
        assert_eq!(chain.disk.gate().stats().sections, 1);
    });
}
