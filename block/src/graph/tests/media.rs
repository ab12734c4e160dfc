//! Removable media: empty drives, insertion and removal under requests and sections, trays and
//! locks, and what is refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::json;
use sluice_aio::{Clock, EventLoop, IoBuffer, JoinHandle, LoopConfig, current};

use super::bench::{Bench, Watch, settle, write};
use crate::backend::{Backend, RemovableDevice, Tray};
use crate::error::{BlockError, Result};
use crate::event::BlockEvent;
use crate::event::tests::EventLog;
use crate::graph::Graph;
use crate::node::Node;
use crate::permission::Access;

/// What a [`Drive`] was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    /// Asked to eject, by force or not.
    Eject(bool),
    /// The medium has changed: the size in bytes that was found then, if there is one.
    Medium(Option<u64>),
}

/// A device with a tray, which is open at first.
struct Drive {
    backend: OnceLock<Weak<Backend>>,
    open: AtomicBool,
    locked: AtomicBool,
    told: Mutex<Vec<Told>>,
}

impl Drive {
    /// A drive above a new backend named `cd0`, without a medium.
    fn new(bench: &Bench) -> (Arc<Self>, Arc<Backend>) {
        let backend = bench.graph.add_empty_backend("cd0", true).unwrap();
        let drive = Arc::new(Self {
            backend: OnceLock::from(Arc::downgrade(&backend)),
            open: AtomicBool::new(true),
            locked: AtomicBool::default(),
            told: Mutex::default(),
        });
        let device: Weak<Self> = Arc::downgrade(&drive);
        backend.set_removable(device);
        backend.set_device("drive");
        (drive, backend)
    }

    fn backend(&self) -> Arc<Backend> {
        self.backend.get().unwrap().upgrade().unwrap()
    }

    fn lock(&self, locked: bool) {
        self.locked.store(locked, Ordering::SeqCst);
    }

    fn take_told(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock())
    }
}

impl RemovableDevice for Drive {
    fn is_tray_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    fn is_locked(&self) -> bool {
        self.locked.load(Ordering::SeqCst)
    }

    fn request_eject(&self, force: bool) {
        self.told.lock().push(Told::Eject(force));
        if force {
            self.lock(false);
        }
    }

    fn move_tray(&self, open: bool) {
        if self.open.swap(open, Ordering::SeqCst) != open {
            self.backend().tray_moved(open);
        }
    }

    fn medium_changed(&self, present: bool) {
        let backend = self.backend();
        assert!(backend.gate().is_closed(), "told outside of the section");
        assert_eq!(backend.gate().in_flight(), 0, "told under a request");
        assert_eq!(backend.node().is_some(), present);
        let size = present.then(|| backend.len());
        self.told.lock().push(Told::Medium(size));
    }
}

/// Runs `test` with a log of the events.
fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Bench, Arc<EventLog>) -> F) {
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let events = Arc::new(EventLog::default());
    let graph = Graph::new(Arc::clone(&events) as _, Clock::real());
    let bench = Bench { graph };
    event_loop.run_until(test(bench, events)).unwrap();
}

async fn null(bench: &Bench, name: &str, size: u64) -> Arc<Node> {
    let options = json!({"driver": "null-co", "node-name": name, "size": size});
    bench.add(options).await.unwrap()
}

async fn read(disk: &Backend, offset: u64) -> Result<()> {
    let token = disk.enter().await?;
    disk.read(&token, offset, IoBuffer::alloc(512)).await
}

fn reading(disk: &Arc<Backend>, offset: u64) -> JoinHandle<Result<()>> {
    let disk = Arc::clone(disk);
    current::spawn_local(async move { read(&disk, offset).await })
}

fn removing(bench: &Bench, disk: &Arc<Backend>) -> JoinHandle<Result<()>> {
    let (graph, disk) = (Arc::clone(&bench.graph), Arc::clone(disk));
    current::spawn_local(async move { graph.remove_medium(&disk).await })
}

fn inserting(bench: &Bench, disk: &Arc<Backend>, node: &Arc<Node>) -> JoinHandle<Result<()>> {
    let (graph, disk, node) = (Arc::clone(&bench.graph), Arc::clone(disk), Arc::clone(node));
    current::spawn_local(async move { graph.insert_medium(&disk, &node).await })
}

/// Whether a task can't end without outside help.
async fn waits<T: 'static>(task: &mut JoinHandle<T>) -> bool {
    settle().await;
    futures_util::poll!(task).is_pending()
}

#[track_caller]
fn assert_no_medium(result: Result<()>) {
    assert_eq!(result.unwrap_err().errno(), libc::ENOMEDIUM);
}

#[track_caller]
fn assert_refused(result: Result<()>, text: &str) {
    assert_eq!(result.unwrap_err().to_string(), text);
}

#[test]
fn an_empty_drive_answers_and_goes_on() {
    run(async |bench, _| {
        let disk = bench.graph.add_empty_backend("cd0", true).unwrap();
        assert!(disk.is_empty() && disk.node().is_none() && disk.is_removable());
        for _ in 0..2 {
            assert_no_medium(read(&disk, 0).await);
            let token = disk.enter().await.unwrap();
            assert_no_medium(disk.flush(&token).await);
        }
        assert_eq!(disk.gate().in_flight(), 0);
        let again = bench.graph.add_empty_backend("cd0", true).unwrap_err();
        assert!(matches!(again, BlockError::DuplicateBackend(_)));
        let found = bench.graph.device_or_node("cd0").unwrap_err();
        assert_eq!(found.to_string(), "Device 'cd0' has no medium");
        bench.graph.remove_backend(&disk).await;
        let node = null(&bench, "n", 512).await;
        let gone = bench.graph.insert_medium(&disk, &node).await;
        assert_refused(gone, "Device 'cd0' not found");
    });
}

/// QEMU's `drain_all_aio_error`: what an empty drive has in flight ends, and what comes waits.
#[test]
fn a_section_over_everything_waits_for_an_empty_drive() {
    run(async |bench, _| {
        let disk = bench.graph.add_empty_backend("cd0", true).unwrap();
        let token = disk.enter().await.unwrap();
        let graph = Arc::clone(&bench.graph);
        let mut draining = current::spawn_local(async move { graph.drain_all("all").await });
        assert!(waits(&mut draining).await, "a request was passed over");
        assert_no_medium(disk.flush(&token).await);
        drop(token);
        let section = draining.await.unwrap();
        let mut parked = reading(&disk, 0);
        // One that comes meanwhile.
        let other = bench.graph.add_empty_backend("cd1", true).unwrap();
        assert!(other.try_enter().is_none(), "a newcomer is not covered");
        assert!(waits(&mut parked).await);
        drop(section);
        assert_no_medium(parked.await.unwrap());
        assert!(other.try_enter().is_some());
    });
}

#[test]
fn a_medium_goes_between_requests() {
    run(async |bench, _| {
        let (drive, disk) = Drive::new(&bench);
        let (node, watch) = bench.probe("n", true);
        bench.graph.insert_medium(&disk, &node).await.unwrap();
        watch.hold();
        let running = reading(&disk, 1);
        settle().await;
        let mut removing = removing(&bench, &disk);
        settle().await;
        let parked = reading(&disk, 2);
        assert!(waits(&mut removing).await && disk.node().is_some());
        assert_eq!(drive.take_told(), [Told::Medium(Some(super::bench::SIZE))]);
        watch.release();
        removing.await.unwrap().unwrap();
        running.await.unwrap().unwrap();
        assert_no_medium(parked.await.unwrap());
        assert_eq!(drive.take_told(), [Told::Medium(None)]);
        assert_eq!(*watch.log.lock(), [1]);
        assert_eq!(watch.told(), (1, 1));
        // Nothing is left to be taken out.
        bench.graph.remove_medium(&disk).await.unwrap();
        assert_eq!(drive.take_told(), []);
        bench.graph.del_node("n").unwrap();
    });
}

#[test]
fn what_was_parked_finds_the_medium_that_came() {
    run(async |bench, _| {
        let (drive, disk) = Drive::new(&bench);
        let (small, large) = (null(&bench, "a", 512).await, null(&bench, "b", 4096).await);
        let token = disk.enter().await.unwrap();
        let mut insertion = inserting(&bench, &disk, &small);
        settle().await;
        let parked = [reading(&disk, 0), reading(&disk, 512)];
        assert!(waits(&mut insertion).await, "inserted under a request");
        assert_no_medium(disk.flush(&token).await);
        drop(token);
        insertion.await.unwrap().unwrap();
        let [inside, beyond] = parked;
        inside.await.unwrap().unwrap();
        let beyond = beyond.await.unwrap().unwrap_err();
        assert!(matches!(beyond, BlockError::OutOfRange { .. }));
        bench.graph.remove_medium(&disk).await.unwrap();
        bench.graph.insert_medium(&disk, &large).await.unwrap();
        read(&disk, 512).await.unwrap();
        let sizes = [Some(512), None, Some(4096)];
        assert_eq!(drive.take_told(), sizes.map(Told::Medium));
    });
}

/// The section that covers a node covers a drive that gets it.
#[test]
fn insertion_under_a_section_waits_for_its_end() {
    run(async |bench, _| {
        let (_drive, disk) = Drive::new(&bench);
        let (node, watch) = bench.probe("n", true);
        let section = bench.graph.drain(&node, "test").await;
        bench.graph.insert_medium(&disk, &node).await.unwrap();
        let mut parked = reading(&disk, 1);
        assert!(waits(&mut parked).await && watch.log.lock().is_empty());
        // And one that goes again is held no longer than the section.
        bench.graph.remove_medium(&disk).await.unwrap();
        assert!(waits(&mut parked).await);
        drop(section);
        assert_no_medium(parked.await.unwrap());
        assert!(disk.try_enter().is_some());
    });
}

#[test]
fn a_medium_is_changed_in_an_open_drive_that_can_do_it() {
    run(async |bench, _| {
        let (drive, disk) = Drive::new(&bench);
        let (one, other) = (null(&bench, "a", 512).await, null(&bench, "b", 512).await);
        bench.graph.insert_medium(&disk, &one).await.unwrap();
        let insert = async |node: &Arc<Node>| bench.graph.insert_medium(&disk, node).await;
        let present = "There already is a medium in device 'cd0'";
        assert_refused(insert(&other).await, present);
        disk.close_tray().unwrap();
        let closed = "Tray of device 'cd0' is not open";
        assert_refused(insert(&other).await, closed);
        assert_refused(bench.graph.remove_medium(&disk).await, closed);
        disk.open_tray(false).unwrap();
        bench.graph.remove_medium(&disk).await.unwrap();
        drive.take_told();
        let fixed = bench.graph.add_backend("hd0", &other).unwrap();
        assert_refused(insert(&other).await, "Node 'b' is already in use");
        let not_removable = "Device 'hd0' is not removable";
        assert_refused(bench.graph.remove_medium(&fixed).await, not_removable);
        assert_refused(bench.graph.eject(&fixed, true).await, not_removable);
        assert_refused(fixed.close_tray(), not_removable);
        bench.graph.del_node("a").unwrap();
        let gone = insert(&one).await.unwrap_err();
        assert!(matches!(gone, BlockError::NodeNotFound(_)));
        assert!(disk.node().is_none() && fixed.node().is_some());
        assert_eq!(drive.take_told(), []);
        read(&fixed, 0).await.unwrap();
    });
}

#[test]
fn a_job_keeps_its_medium() {
    run(async |bench, _| {
        let (drive, disk) = Drive::new(&bench);
        let (below, _) = bench.probe("below", true);
        let (filter, _) = bench.filter("filter", &below, None);
        let busy = "Node 'below' is busy: block device is in use by block job: mirror";
        below.block("mirror").unwrap();
        assert_refused(bench.graph.insert_medium(&disk, &filter).await, busy);
        below.unblock();
        bench.graph.insert_medium(&disk, &filter).await.unwrap();
        drive.take_told();
        below.block("mirror").unwrap();
        assert_refused(bench.graph.remove_medium(&disk).await, busy);
        assert!(!disk.gate().is_closed() && disk.node().is_some());
        // Also one that begins while requests are awaited.
        below.unblock();
        let token = disk.enter().await.unwrap();
        let removing = removing(&bench, &disk);
        settle().await;
        below.block("mirror").unwrap();
        drop(token);
        assert_refused(removing.await.unwrap(), busy);
        assert_eq!(drive.take_told(), []);
        read(&disk, 0).await.unwrap();
        below.unblock();
        bench.graph.remove_medium(&disk).await.unwrap();
    });
}

#[test]
fn permissions_come_with_the_medium_and_go_with_it() {
    run(async |bench, _| {
        let stick = bench.graph.add_empty_backend("stick", false).unwrap();
        let (node, _) = bench.probe("n", false);
        bench.graph.insert_medium(&stick, &node).await.unwrap();
        assert_eq!(node.access(), Access::of_device(false));
        write(&stick, 0).await.unwrap();
        let second = bench.graph.add_backend("second", &node).unwrap_err();
        assert!(matches!(second, BlockError::Conflict(_)));
        bench.graph.remove_medium(&stick).await.unwrap();
        assert_eq!(node.access(), Access::NONE);
        assert!(node.backends().is_empty());
        let second = bench.graph.add_backend("second", &node).unwrap();
        write(&second, 0).await.unwrap();
        // A drive that writes takes nothing read-only, and stays as it was.
        let (fixed, _) = bench.probe("fixed", true);
        let error = bench.graph.insert_medium(&stick, &fixed).await.unwrap_err();
        assert!(matches!(error, BlockError::ReadOnly(_)));
        assert!(stick.node().is_none() && fixed.backends().is_empty());
        assert!(!stick.gate().is_closed());
        assert_no_medium(write(&stick, 0).await);
    });
}

#[test]
fn a_drive_that_only_reads_does_not_write() {
    run(async |bench, _| {
        let (_drive, disk) = Drive::new(&bench);
        let (node, watch) = bench.probe("n", false);
        bench.graph.insert_medium(&disk, &node).await.unwrap();
        assert_eq!(node.access(), Access::of_device(true));
        let token = disk.enter().await.unwrap();
        let zeroes = disk.write_zeroes(&token, 0, 512, false).await;
        let discard = disk.discard(&token, 0, 512).await;
        for refused in [write(&disk, 0).await, zeroes, discard] {
            assert_eq!(refused.unwrap_err().errno(), libc::EROFS);
        }
        assert!(watch.log.lock().is_empty());
    });
}

/// The file behind an image can be had by others as soon as it is out of the drive.
#[test]
fn a_file_is_unlocked_and_closed_when_it_is_out() {
    run(async |bench, _| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [1; 4096]).unwrap();
        let file = json!({"driver": "file", "filename": path});
        let options = serde_json::from_value(json!({"driver": "raw", "file": file})).unwrap();
        let stick = bench.graph.add_empty_backend("stick", false).unwrap();
        let other = bench.graph.add_empty_backend("other", false).unwrap();
        bench
            .graph
            .change_medium(&stick, &options, false)
            .await
            .unwrap();
        assert_eq!(stick.len(), 4096);
        let change = bench.graph.change_medium(&other, &options, false).await;
        let text = change.unwrap_err().to_string();
        assert!(text.contains("lock"), "{text}");
        assert!(other.node().is_none());
        assert_eq!(
            bench.graph.nodes().len(),
            2,
            "what was opened is still there"
        );
        bench.graph.remove_medium(&stick).await.unwrap();
        assert_eq!(bench.graph.nodes().len(), 0);
        bench
            .graph
            .change_medium(&other, &options, false)
            .await
            .unwrap();
        // The same file again, in the place of itself.
        bench
            .graph
            .change_medium(&other, &options, false)
            .await
            .unwrap();
        write(&other, 0).await.unwrap();
    });
}

fn moved(open: bool) -> BlockEvent {
    BlockEvent::DeviceTrayMoved {
        device: "cd0".to_owned(),
        id: "drive".to_owned(),
        tray_open: open,
    }
}

#[test]
fn a_locked_tray_opens_when_the_guest_agrees_or_by_force() {
    run(async |bench, events| {
        let (drive, disk) = Drive::new(&bench);
        let node = null(&bench, "n", 512).await;
        bench.graph.insert_medium(&disk, &node).await.unwrap();
        assert_eq!(disk.open_tray(false).unwrap(), Tray::Open);
        assert_eq!(events.take(), []);
        disk.close_tray().unwrap();
        disk.close_tray().unwrap();
        assert_eq!(events.take(), [moved(false)]);
        drive.lock(true);
        drive.take_told();
        assert_eq!(disk.open_tray(false).unwrap(), Tray::Locked);
        let locked = "Device 'cd0' is locked and force was not specified, wait for tray to open \
                      and try again";
        assert_refused(bench.graph.eject(&disk, false).await, locked);
        assert!(!drive.is_tray_open() && disk.node().is_some());
        assert_eq!(drive.take_told(), [Told::Eject(false), Told::Eject(false)]);
        assert_eq!(events.take(), []);
        bench.graph.eject(&disk, true).await.unwrap();
        assert!(drive.is_tray_open() && disk.node().is_none());
        assert_eq!(drive.take_told(), [Told::Eject(true), Told::Medium(None)]);
        assert_eq!(events.take(), [moved(true)]);
        // A drive without a device has no tray.
        let empty = bench.graph.add_empty_backend("cd1", true).unwrap();
        assert_eq!(empty.open_tray(false).unwrap(), Tray::None);
        empty.close_tray().unwrap();
        bench.graph.eject(&empty, false).await.unwrap();
        assert_eq!(events.take(), []);
    });
}

#[test]
fn an_exchange_that_fails_leaves_the_medium() {
    run(async |bench, events| {
        let (drive, disk) = Drive::new(&bench);
        let node = null(&bench, "n", 512).await;
        bench.graph.insert_medium(&disk, &node).await.unwrap();
        disk.close_tray().unwrap();
        events.take();
        let change = async |size: i64, force| {
            let options = json!({"driver": "null-co", "size": size});
            let options = serde_json::from_value(options).unwrap();
            bench.graph.change_medium(&disk, &options, force).await
        };
        drive.lock(true);
        assert!(change(1024, false).await.is_err());
        let missing = json!({"driver": "file", "filename": "/nowhere"});
        let missing = serde_json::from_value(missing).unwrap();
        assert!(
            bench
                .graph
                .change_medium(&disk, &missing, true)
                .await
                .is_err()
        );
        assert_eq!((disk.len(), bench.graph.nodes().len()), (512, 1));
        assert!(!drive.is_tray_open());
        assert_eq!(events.take(), []);
        change(1024, true).await.unwrap();
        assert_eq!((disk.len(), bench.graph.nodes().len()), (1024, 2));
        assert!(!drive.is_tray_open());
        assert_eq!(events.take(), [moved(true), moved(false)]);
        // What the drive had of its own goes with the next exchange.
        change(2048, false).await.unwrap();
        assert_eq!((disk.len(), bench.graph.nodes().len()), (2048, 2));
    });
}

#[test]
fn of_two_operators_one_has_the_drive() {
    run(async |bench, _| {
        let (drive, disk) = Drive::new(&bench);
        let (one, other) = (null(&bench, "a", 512).await, null(&bench, "b", 1024).await);
        let token = disk.enter().await.unwrap();
        let insertions = [
            inserting(&bench, &disk, &one),
            inserting(&bench, &disk, &other),
        ];
        settle().await;
        drop(token);
        let mut results = Vec::new();
        for insertion in insertions {
            results.push(insertion.await.unwrap().is_ok());
        }
        assert_eq!(results.iter().filter(|done| **done).count(), 1);
        assert_eq!(drive.take_told(), [Told::Medium(Some(disk.len()))]);
        assert_eq!(one.backends().len() + other.backends().len(), 1);
        // The tray is closed while a removal waits.
        let token = disk.enter().await.unwrap();
        let refused = removing(&bench, &disk);
        settle().await;
        disk.close_tray().unwrap();
        drop(token);
        assert_refused(refused.await.unwrap(), "Tray of device 'cd0' is not open");
        // The drive goes while a removal waits.
        disk.open_tray(false).unwrap();
        let token = disk.enter().await.unwrap();
        let removing = removing(&bench, &disk);
        settle().await;
        let (graph, gone) = (Arc::clone(&bench.graph), Arc::clone(&disk));
        let going = current::spawn_local(async move { graph.remove_backend(&gone).await });
        settle().await;
        drop(token);
        removing.await.unwrap().unwrap();
        going.await.unwrap();
        assert!(one.backends().is_empty() && other.backends().is_empty());
    });
}

/// Media that exist in the random histories.
const MEDIA: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// The guest reads.
    Read,
    /// The operator puts a medium in.
    Insert(usize),
    /// Or takes it out.
    Remove,
    /// A section of a medium is begun, or (beyond the last) of everything.
    Drain(usize),
    /// One of the open sections ends.
    End(usize),
    /// A medium keeps its requests.
    Hold(usize),
    /// And gives them back.
    Release(usize),
    /// Time passes.
    Wait(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Read),
        3 => (0..MEDIA).prop_map(Step::Insert),
        3 => Just(Step::Remove),
        2 => (0..=MEDIA).prop_map(Step::Drain),
        2 => any::<usize>().prop_map(Step::End),
        1 => (0..MEDIA).prop_map(Step::Hold),
        2 => (0..MEDIA).prop_map(Step::Release),
        2 => (0..4usize).prop_map(Step::Wait),
    ]
}

async fn play(bench: Bench, steps: Vec<Step>) {
    let (drive, disk) = Drive::new(&bench);
    let media: Vec<(Arc<Node>, Arc<Watch>)> = (0..MEDIA)
        .map(|index| bench.probe(&format!("medium{index}"), true))
        .collect();
    let mut reads = Vec::new();
    let mut changes = Vec::new();
    let mut sections = Vec::new();
    for step in steps {
        match step {
            Step::Read => reads.push(reading(&disk, reads.len() as u64)),
            Step::Insert(index) => changes.push(inserting(&bench, &disk, &media[index].0)),
            Step::Remove => changes.push(removing(&bench, &disk)),
            Step::Drain(index) => {
                let graph = Arc::clone(&bench.graph);
                let node = media.get(index).map(|(node, _)| Arc::clone(node));
                sections.push(current::spawn_local(async move {
                    match node {
                        Some(node) => graph.drain(&node, "one").await,
                        None => graph.drain_all("all").await,
                    }
                }));
            }
            Step::End(index) if !sections.is_empty() => {
                let index = index % sections.len();
                sections.remove(index).cancel();
            }
            Step::End(_) => {}
            Step::Hold(index) => media[index].1.hold(),
            Step::Release(index) => media[index].1.release(),
            Step::Wait(turns) => {
                for _ in 0..turns {
                    current::yield_now().await;
                }
            }
        }
    }
    for (_, watch) in &media {
        watch.release();
    }
    for section in sections {
        section.cancel();
    }
    // What is cancelled is dropped in its turn.
    for _ in 0..3 {
        current::yield_now().await;
    }
    let mut done = 0;
    for change in changes {
        let _ = change.await.unwrap();
    }
    for read in reads {
        match read.await.unwrap() {
            Ok(()) => done += 1,
            error => assert_no_medium(error),
        }
    }
    // Each that succeeded has reached one medium, once, in order.
    let mut seen = Vec::new();
    for (_, watch) in &media {
        let log = watch.log.lock();
        assert!(log.is_sorted(), "{log:?}");
        seen.extend(log.iter().copied());
    }
    seen.sort_unstable();
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
    assert_eq!(seen.len(), done);
    // The device was told of every change, and knows what there is now.
    let told = drive.take_told();
    let alternate = told.windows(2).all(|pair| pair[0] != pair[1]);
    assert!(alternate, "{told:?}");
    let present = matches!(told.last(), Some(Told::Medium(Some(_))));
    assert_eq!(disk.node().is_some(), present);
    let users: usize = media.iter().map(|(node, _)| node.backends().len()).sum();
    assert_eq!(users, usize::from(present));
    assert!(!disk.gate().is_closed());
    for (node, watch) in &media {
        let (begun, ended) = watch.told();
        assert_eq!(begun, ended);
        let used = if node.backends().is_empty() {
            Access::NONE
        } else {
            Access::of_device(true)
        };
        assert_eq!(node.access(), used);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn media_come_and_go_in_any_order(steps in prop::collection::vec(step(), 1..60)) {
        run(|bench, _| play(bench, steps));
    }
}
