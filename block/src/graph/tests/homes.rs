//! Changes of the graph that connect nodes of different homes.

use std::sync::Arc;

use futures_util::FutureExt;
use serde_json::{Value, json};
use sluice_aio::{IoThread, LoopConfig, current};

use super::bench::{Bench, run};
use super::jobs::{self, Fails};
use crate::error::Result;
use crate::home::Home;
use crate::node::Node;

fn thread() -> Arc<IoThread> {
    Arc::new(IoThread::spawn("io0", LoopConfig::default()).unwrap())
}

fn home_in(thread: &Arc<IoThread>) -> Home {
    Home::kept(thread.context().clone(), Arc::clone(thread) as Arc<_>)
}

async fn move_to(bench: &Bench, node: &Arc<Node>, thread: &Arc<IoThread>) {
    let home = home_in(thread);
    bench
        .graph
        .set_home(node, Some(home), &current::context())
        .await
        .unwrap();
}

async fn reopen(bench: &Bench, options: Value) -> Result<()> {
    let options = serde_json::from_value(options).unwrap();
    bench.graph.reopen(&[options]).await
}

fn is_in(node: &Node, thread: &IoThread) -> bool {
    node.home().as_ref().map(Home::context) == Some(thread.context())
}

fn raw(name: &str, below: &str) -> Value {
    json!({"driver": "raw", "node-name": name, "file": below, "read-only": true})
}

/// A node over `low` that lives with it in `thread`, and `other` in the main loop, where it may go.
struct Apart {
    node: Arc<Node>,
    low: Arc<Node>,
    other: Arc<Node>,
}

async fn apart(bench: &Bench, thread: &Arc<IoThread>) -> Apart {
    let (low, _) = bench.probe("low", true);
    let (other, _) = bench.probe("other", true);
    let node = bench.add(raw("raw", "low")).await.unwrap();
    move_to(bench, &node, thread).await;
    Apart { node, low, other }
}

#[test]
fn a_new_parent_takes_its_childs_home() {
    run(async |bench| {
        let thread = thread();
        let (low, _) = bench.probe("low", true);
        let (source, _) = bench.probe("source", true);
        move_to(&bench, &low, &thread).await;
        let one = bench.add(raw("one", "low")).await.unwrap();
        assert!(is_in(&one, &thread));
        // A chain that is added at once, of which only the lowest edge leads to somebody.
        let nested = json!({"driver": "blkdebug", "node-name": "top",
                            "image": {"driver": "raw", "node-name": "middle", "file": "low"}});
        let top = bench.add(nested).await.unwrap();
        let middle = bench.graph.node("middle").unwrap();
        assert!(is_in(&middle, &thread) && is_in(&top, &thread));
        // Two children: the first is new, and goes along; so does one that had another home.
        let (both, _) = bench.filter("both", &source, Some(&low));
        assert_eq!(source.home(), both.home());
        assert_eq!(both.home(), low.home());
        drop((one, top, middle));
    });
}

#[test]
fn a_filter_takes_the_home_of_what_it_is_put_above() {
    run(async |bench| {
        let thread = thread();
        let (low, _) = bench.probe("low", true);
        let node = bench.add(raw("raw", "low")).await.unwrap();
        move_to(&bench, &low, &thread).await;
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        for below in [&low, &node] {
            let section = bench.graph.drain(below, "test").await;
            let (driver, _) = super::bench::pass(below, None);
            let filter = bench
                .graph
                .insert_filter("mirror 'j'", None, below, driver)
                .unwrap();
            assert!(is_in(&filter, &thread) && is_in(below, &thread));
            drop(section);
        }
        bench.graph.remove_backend(&disk).await;
    });
}

#[test]
fn a_child_moves_to_its_parents_home_with_what_is_connected() {
    run(async |bench| {
        let thread = thread();
        let Apart { node, low, other } = apart(&bench, &thread).await;
        let beside = bench.add(raw("beside", "other")).await.unwrap();
        reopen(&bench, raw("raw", "other")).await.unwrap();
        assert!(is_in(&node, &thread) && is_in(&other, &thread) && is_in(&beside, &thread));
        assert!(is_in(&low, &thread), "what was left stays where it is");
    });
}

#[test]
fn a_child_that_a_device_uses_stays_and_its_parent_moves() {
    run(async |bench| {
        let thread = thread();
        let Apart { node, low, other } = apart(&bench, &thread).await;
        let beside = bench.add(raw("beside", "other")).await.unwrap();
        let disk = bench.graph.add_backend("disk", &beside).unwrap();
        reopen(&bench, raw("raw", "other")).await.unwrap();
        assert!(node.home().is_none() && other.home().is_none());
        assert!(is_in(&low, &thread));
        bench.graph.remove_backend(&disk).await;
    });
}

#[test]
fn devices_of_two_homes_can_not_be_connected() {
    run(async |bench| {
        let thread = thread();
        let Apart { node, low, other } = apart(&bench, &thread).await;
        let disks = [
            bench.graph.add_backend("one", &node).unwrap(),
            bench.graph.add_backend("two", &other).unwrap(),
        ];
        let error = reopen(&bench, raw("raw", "other")).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Cannot change iothread of active block backend 'two' of node 'other'"
        );
        assert_eq!(node.children()[0].1.name(), "low");
        assert!(is_in(&node, &thread) && is_in(&low, &thread) && other.home().is_none());
        for disk in &disks {
            bench.graph.remove_backend(disk).await;
        }
    });
}

#[test]
fn a_change_that_is_refused_moves_nobody() {
    run(async |bench| {
        let thread = thread();
        let (low, _) = bench.probe("low", false);
        let (other, _) = bench.probe("other", true);
        let mut options = json!({"driver": "raw", "node-name": "raw", "file": "low"});
        let node = bench.add(options.clone()).await.unwrap();
        move_to(&bench, &node, &thread).await;
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let keepers = Arc::strong_count(&thread);
        options["file"] = json!("other");
        let error = reopen(&bench, options).await.unwrap_err().to_string();
        assert!(error.contains("cannot support read-write users"), "{error}");
        assert!(other.home().is_none());
        assert!(is_in(&node, &thread) && is_in(&low, &thread));
        assert_eq!(Arc::strong_count(&thread), keepers);
        bench.graph.remove_backend(&disk).await;
    });
}

#[test]
fn a_disk_keeps_its_devices_thread_until_the_device_goes() {
    run(async |bench| {
        let thread = thread();
        let (node, _) = bench.probe("node", false);
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let home = || Home::kept(thread.context().clone(), Arc::clone(&thread) as Arc<_>);
        disk.set_home(home());
        // Whoever works there longer has a share of his own.
        let worker = disk.home();
        assert_eq!(Arc::strong_count(&thread), 3);
        bench.graph.remove_backend(&disk).await;
        assert!(disk.home().is_none());
        assert_eq!(Arc::strong_count(&thread), 2);
        drop(worker);
    });
}

/// A job that stands on no node works on in the loop that it was started in.
#[test]
fn a_job_keeps_the_thread_that_it_works_in() {
    run(async |bench| {
        let thread = thread();
        let Apart { node, low, .. } = apart(&bench, &thread).await;
        let home = node.home().unwrap();
        let (job, turns, _) = jobs::spawn(&bench, home, &low, Fails::Never, None);
        job.start();
        jobs::until_it_works(&turns).await;
        bench
            .graph
            .set_home(&low, None, &current::context())
            .await
            .unwrap();
        assert!(low.home().is_none() && node.home().is_none());
        assert_eq!(Arc::strong_count(&thread), 2, "the job and this test");
        jobs::until_it_works(&turns).await;
        job.complete().unwrap();
        job.concluded().await;
        assert_eq!(Arc::strong_count(&thread), 1);
    });
}

#[test]
fn a_job_follows_its_nodes() {
    run(async |bench| {
        let main = current::context();
        let running = jobs::start(&bench, &main, Fails::Never).await;
        let (job, threads) = (&running.job, [thread(), thread()]);
        let before = job.state();
        // By its source, by what is below that, and by its target.
        let by = [&running.source, &running.backing, &running.target];
        let homes = [Some(&threads[0]), Some(&threads[1]), None];
        for (node, thread) in by.into_iter().zip(homes).chain([(by[2], homes[0])]) {
            let home = thread.map(home_in);
            let changed = bench.graph.set_home(node, home.clone(), &main);
            changed.await.unwrap();
            let expected = thread.map_or(&main, |thread| thread.context());
            assert_eq!(job.home(), *expected);
            // It has arrived, and nothing of it keeps the loop that it was in.
            assert!(job.arrived().now_or_never().is_some());
            for other in &threads {
                let is_it = thread.is_some_and(|thread| Arc::ptr_eq(thread, other));
                assert!(is_it || Arc::strong_count(other) == 1);
            }
            for node in by {
                assert_eq!(node.home(), home);
            }
            jobs::until_it_works(&running.turns).await;
            assert_eq!(job.state(), before);
        }
        job.complete().unwrap();
        job.concluded().await;
        assert_eq!(job.info().error, None);
    });
}

#[test]
fn a_device_above_a_jobs_other_node_stands_against_it() {
    run(async |bench| {
        let (main, threads) = (current::context(), [thread(), thread()]);
        let running = jobs::start(&bench, &main, Fails::Never).await;
        let other = bench.graph.add_backend("other", &running.target).unwrap();
        other.set_home(home_in(&threads[0]));
        let disk = bench.graph.add_backend("disk", &running.source).unwrap();
        let text = "Cannot change iothread of active block backend 'other' of node 'target'";
        let home = home_in(&threads[1]);
        let error = bench.graph.set_device_home(&disk, home.clone()).await;
        assert_eq!(error.unwrap_err().to_string(), text);
        assert!(disk.home().is_none() && running.job.home() == main);
        bench.graph.remove_backend(&disk).await;
        let error = bench
            .graph
            .set_home(&running.source, Some(home), &main)
            .await;
        assert_eq!(error.unwrap_err().to_string(), text);
        assert!(running.source.home().is_none() && running.job.home() == main);
        jobs::until_it_works(&running.turns).await;
        bench.graph.remove_backend(&other).await;
        running.job.complete().unwrap();
        running.job.concluded().await;
    });
}

#[test]
fn what_is_kept_by_somebody_else_than_a_job_that_follows_moves_nobody() {
    run(async |bench| {
        let (main, thread) = (current::context(), thread());
        let running = jobs::start(&bench, &main, Fails::Never).await;
        running
            .target
            .block("mirror 'gone', whose last requests have not returned")
            .unwrap();
        let home = Some(home_in(&thread));
        let error = bench.graph.set_home(&running.source, home, &main).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("mirror 'gone'"), "{error}");
        assert!(running.source.home().is_none() && running.job.home() == main);
        running.target.unblock();
        running.job.complete().unwrap();
        running.job.concluded().await;
    });
}

#[test]
fn a_job_keeps_the_thread_that_it_has_to_leave_until_it_has() {
    run(async |bench| {
        let (main, thread) = (current::context(), thread());
        let (node, _) = bench.probe("node", false);
        let home = home_in(&thread);
        let (job, turns, _) = jobs::spawn(&bench, home, &node, Fails::Never, None);
        job.start();
        jobs::until_it_works(&turns).await;
        let rest = job.quiesce();
        job.wait_idle().await;
        // Its loop is at something else.
        let (held, go) = std::sync::mpsc::channel::<()>();
        let busy = thread
            .context()
            .call(move || async move { go.recv().is_ok() });
        job.move_to(Home::from(&main));
        drop(rest);
        assert_eq!(Arc::strong_count(&thread), 2, "the job and this test");
        held.send(()).unwrap();
        assert_eq!(busy.await, Ok(true));
        job.arrived().await;
        assert_eq!(Arc::strong_count(&thread), 1);
        jobs::until_it_works(&turns).await;
        job.complete().unwrap();
        job.concluded().await;
    });
}
