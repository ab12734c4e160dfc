//! Changes of the graph that connect nodes of different homes.

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_aio::{IoThread, LoopConfig};

use super::bench::{Bench, run};
use super::jobs;
use crate::error::Result;
use crate::home::Home;
use crate::node::Node;

fn thread() -> Arc<IoThread> {
    Arc::new(IoThread::spawn("io0", LoopConfig::default()).unwrap())
}

async fn move_to(bench: &Bench, node: &Arc<Node>, thread: &Arc<IoThread>) {
    let home = Home::kept(thread.context().clone(), Arc::clone(thread) as Arc<_>);
    bench.graph.set_home(node, Some(home)).await.unwrap();
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
            let filter = bench.graph.insert_filter(None, below, driver).unwrap();
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
            "Cannot change iothread of active block backend"
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

/// A job works on in the loop that it was started in, though its nodes have gone elsewhere.
#[test]
fn a_job_keeps_the_thread_that_it_works_in() {
    run(async |bench| {
        let thread = thread();
        let Apart { node, low, .. } = apart(&bench, &thread).await;
        let home = node.home().unwrap();
        let (job, turns, _) = jobs::spawn(&bench, home, &low, jobs::Fails::Never, None);
        job.start();
        jobs::until_it_works(&turns).await;
        bench.graph.set_home(&low, None).await.unwrap();
        assert!(low.home().is_none() && node.home().is_none());
        assert_eq!(Arc::strong_count(&thread), 2, "the job and this test");
        jobs::until_it_works(&turns).await;
        job.complete().unwrap();
        job.concluded().await;
        assert_eq!(Arc::strong_count(&thread), 1);
    });
}
