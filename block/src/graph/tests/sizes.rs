//! What devices are told of their disks' sizes, and when.

use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_aio::current;

use super::bench::{Bench, run, settle, write};
use crate::backend::{Backend, SizeWatcher};
use crate::node::Node;

/// A device that notes every size it is told of, and whether its disk was at rest then.
struct Screen {
    backend: Arc<Backend>,
    shown: Mutex<Vec<u64>>,
}

impl SizeWatcher for Screen {
    fn size_changed(&self) {
        let gate = self.backend.gate();
        assert!(
            gate.is_closed(),
            "requests get in before their device knows the size"
        );
        assert_eq!(gate.in_flight(), 0);
        self.shown.lock().push(self.backend.len());
    }
}

impl Screen {
    fn new(backend: Arc<Backend>) -> Arc<Self> {
        let screen = Arc::new(Self {
            backend,
            shown: Mutex::default(),
        });
        let watcher: Weak<Self> = Arc::downgrade(&screen);
        screen.backend.watch_size(watcher);
        screen
    }

    fn shown(&self) -> Vec<u64> {
        std::mem::take(&mut *self.shown.lock())
    }
}

fn file(directory: &Path, name: &str, len: usize) -> Value {
    let path = directory.join(name);
    std::fs::write(&path, vec![1; len]).unwrap();
    json!({"driver": "file", "node-name": name, "filename": path})
}

/// The device is told at the end of the section, before what was parked in it gets in.
#[test]
fn a_device_knows_the_size_before_requests_come_in() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let node = bench.add(file(directory.path(), "f", 4096)).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let screen = Screen::new(Arc::clone(&disk));
        let section = bench.graph.drain(&node, "test").await;
        let parked = {
            let (disk, screen) = (Arc::clone(&disk), Arc::clone(&screen));
            current::spawn_local(async move {
                let token = disk.enter().await.unwrap();
                let shown = screen.shown();
                drop(token);
                shown
            })
        };
        settle().await;
        bench.graph.resize(&node, 8192).await.unwrap();
        assert!(disk.gate().is_closed());
        drop(section);
        assert_eq!(parked.await.unwrap(), [8192]);
        write(&disk, 4096).await.unwrap();
        bench.graph.resize(&node, 512).await.unwrap();
        assert_eq!(screen.shown(), [512]);
        assert!(write(&disk, 4096).await.is_err(), "beyond the new end");
    });
}

/// Filters and formats show the size of what is below them.
#[test]
fn devices_above_filters_are_told_and_neighbours_are_not() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let image = json!({"driver": "raw", "node-name": "raw",
                           "file": file(directory.path(), "f", 4096)});
        let filter = json!({"driver": "blkdebug", "node-name": "top", "image": image});
        let top: Arc<Node> = bench.add(filter).await.unwrap();
        let raw = bench.graph.node("raw").unwrap();
        let below = bench.graph.node("f").unwrap();
        let other = bench.add(file(directory.path(), "g", 4096)).await.unwrap();
        let screen = Screen::new(bench.graph.add_backend("disk", &top).unwrap());
        let neighbour = Screen::new(bench.graph.add_backend("other", &other).unwrap());
        for (node, size) in [(&top, 8192), (&raw, 1024), (&below, 2048)] {
            bench.graph.resize(node, size).await.unwrap();
            assert_eq!(screen.shown(), [size], "'{}'", node.name());
        }
        bench.graph.resize(&top, 2048).await.unwrap();
        assert!(bench.graph.resize(&top, 1 << 63).await.is_err());
        drop(bench.graph.drain_all("test").await);
        assert!(screen.shown().is_empty(), "the size is the same");
        assert!(neighbour.shown().is_empty());
    });
}

/// Not only a resize changes a size: so does a window that is moved under its disk.
#[test]
fn a_device_is_told_whatever_changes_its_size() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        bench.add(file(directory.path(), "f", 8192)).await.unwrap();
        let window =
            |size: u64| json!({"driver": "raw", "node-name": "raw", "file": "f", "size": size});
        let raw = bench.add(window(4096)).await.unwrap();
        let screen = Screen::new(bench.graph.add_backend("disk", &raw).unwrap());
        reopen(&bench, window(2048)).await;
        assert_eq!(screen.shown(), [2048]);
        reopen(&bench, window(2048)).await;
        assert!(screen.shown().is_empty());
    });
}

async fn reopen(bench: &Bench, options: Value) {
    let options = serde_json::from_value(options).unwrap();
    bench.graph.reopen(&[options]).await.unwrap();
}

/// A device that has gone is not looked for.
#[test]
fn a_disk_without_its_device_changes_its_size_too() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let node = bench.add(file(directory.path(), "f", 4096)).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        drop(Screen::new(Arc::clone(&disk)));
        bench.graph.resize(&node, 8192).await.unwrap();
        assert_eq!(disk.len(), 8192);
    });
}

/// Sections may end anywhere, two at the same time: the device is told once, and before either lets anybody in.
#[test]
fn sections_that_end_in_two_threads_tell_once() {
    const ROUNDS: u64 = 200;
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let node = bench.add(file(directory.path(), "f", 4096)).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let screen = Screen::new(Arc::clone(&disk));
        for round in 0..ROUNDS {
            let sections = [
                bench.graph.drain(&node, "one").await,
                bench.graph.drain(&node, "other").await,
            ];
            let size = 4096 + 512 * (1 + round);
            bench.graph.resize(&node, size).await.unwrap();
            assert_eq!(
                screen.shown(),
                [size],
                "its own section ends inside the others"
            );
            // Something else than a resize, of which nobody has told yet.
            let grown = size + (1 << 20);
            node.driver().truncate(grown).await.unwrap();
            let start = Arc::new(std::sync::Barrier::new(2));
            let ends = sections.map(|section| {
                let start = Arc::clone(&start);
                std::thread::spawn(move || {
                    start.wait();
                    drop(section);
                })
            });
            for end in ends {
                // The screen's own assertions are made in there.
                end.join().unwrap();
            }
            assert_eq!(screen.shown(), [grown]);
            assert!(!disk.gate().is_closed());
        }
        bench.graph.remove_backend(&disk).await;
    });
}
