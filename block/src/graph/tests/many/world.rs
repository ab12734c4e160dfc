//! One history's graph, its guests, and the changes that are made to it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_listener::Event;
use futures_util::FutureExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_aio::{AioContext, IoBuffer};

use super::model::{Model, Random};
use super::seen::{Base, Kind, Seen};
use super::{LANES, NUMBER, OF_DISK, OF_LANE};
use crate::backend::Backend;
use crate::drain::Section;
use crate::driver::Role;
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::tests::bench::{Bench, Watch, pass};
use crate::home::Home;
use crate::io::{DetectZeroes, IoPolicy};
use crate::node::{Node, Owner};
use crate::options::{BlockdevOptions, Discard};
use crate::permission::{Access, Permissions};

pub(super) struct Disk {
    pub(super) backend: Arc<Backend>,
    /// Requests that each lane's guest has made.
    pub(super) made: Vec<u64>,
}

/// One history.
pub(super) struct World {
    pub(super) graph: Arc<Graph>,
    pub(super) seen: Arc<Seen>,
    /// Locked over every change of the graph, so that both change together.
    pub(super) model: Mutex<Model>,
    watches: Mutex<Vec<Arc<Watch>>>,
    results: Mutex<Vec<(u64, Kind, bool)>>,
    pub(super) pending: AtomicUsize,
    pub(super) done: Event,
}

/// A section that says so to [`Seen`].
pub(super) struct Claimed {
    section: Option<Section>,
    disks: Vec<usize>,
    seen: Arc<Seen>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        for disk in &self.disks {
            self.seen.exclusive[*disk].fetch_sub(1, Ordering::SeqCst);
        }
        drop(self.section.take());
    }
}

/// Discards reach the bottom.
fn unmaps(node: &Node) {
    let policy = IoPolicy::new(Discard::Unmap, DetectZeroes::Off).unwrap();
    node.set_policy(policy);
}

fn raw(name: &str, file: &str) -> Value {
    json!({"driver": "raw", "node-name": name, "file": file, "discard": "unmap"})
}

fn options(value: Value) -> BlockdevOptions {
    serde_json::from_value(value).unwrap()
}

impl World {
    pub(super) fn new(bench: &Bench) -> Arc<Self> {
        Arc::new(Self {
            graph: Arc::clone(&bench.graph),
            seen: Arc::new(Seen::new()),
            model: Mutex::default(),
            watches: Mutex::default(),
            results: Mutex::default(),
            pending: AtomicUsize::new(0),
            done: Event::new(),
        })
    }

    pub(super) fn add_base(&self, name: String) {
        let driver = Box::new(Base(Arc::clone(&self.seen)));
        let node = Node::new(name.clone(), driver, false, Owner::Monitor);
        unmaps(&node);
        let mut change = self.graph.transaction();
        change.add_node(&node);
        change.commit().unwrap();
        self.model.lock().below.insert(name, Vec::new());
    }

    pub(super) fn add_filter(&self, bench: &Bench, name: String, below: Vec<String>) {
        let node = |name: &String| self.graph.node(name).unwrap();
        let beside = below.get(1).map(node);
        let (filter, watch) = bench.filter(&name, &node(&below[0]), beside.as_ref());
        unmaps(&filter);
        self.watches.lock().push(watch);
        self.model.lock().below.insert(name, below);
    }

    /// A node that can be reopened.
    pub(super) async fn add_raw(&self, name: String, below: String) {
        let options = options(raw(&name, &below));
        self.graph.add_node(&options).await.unwrap();
        self.model.lock().below.insert(name, vec![below]);
    }

    pub(super) fn add_disk(&self, random: &mut Random, number: usize) -> Disk {
        let mut model = self.model.lock();
        let root = random.pick(&model.names());
        let node = self.graph.node(&root).unwrap();
        // Guests of one cluster file system: others may write too.
        let access = Access {
            used: Permissions::CONSISTENT_READ | Permissions::WRITE,
            shared: Permissions::all(),
        };
        let name = format!("disk{number}");
        let backend = self.graph.add_user(&name, Some(&node), access).unwrap();
        model.roots.insert(number, root);
        Disk {
            backend,
            made: vec![0; LANES],
        }
    }

    /// A guest of the lane makes a request, in the lane's loop.
    pub(super) fn request(
        self: &Arc<Self>,
        number: usize,
        disk: &mut Disk,
        lane: usize,
        context: &AioContext,
        kind: Kind,
    ) {
        let place = number as u64 * OF_DISK + lane as u64 * OF_LANE;
        let offset = place + disk.made[lane] * NUMBER;
        disk.made[lane] += 1;
        self.pending.fetch_add(1, Ordering::SeqCst);
        let (world, backend) = (Arc::clone(self), Arc::clone(&disk.backend));
        context.spawn(move || async move {
            let result = world.make(number, &backend, offset, kind).await;
            world.results.lock().push((offset, kind, result.is_ok()));
            if world.pending.fetch_sub(1, Ordering::SeqCst) == 1 {
                world.done.notify(usize::MAX);
            }
        });
    }

    async fn make(&self, disk: usize, backend: &Backend, offset: u64, kind: Kind) -> Result<()> {
        let token = backend.enter().await?;
        self.seen.begins(disk);
        let result = match kind {
            Kind::Read => backend.read(&token, offset, IoBuffer::alloc(512)).await,
            Kind::Write => backend.write(&token, offset, IoBuffer::alloc(512)).await,
            Kind::Zeroes => backend.write_zeroes(&token, offset, 512, true).await,
            Kind::Discard => backend.discard(&token, offset, 512).await,
            Kind::Flush => backend.flush(&token).await,
        };
        self.seen.ends(disk);
        result
    }

    pub(super) async fn claim(self: Arc<Self>, node: Option<Arc<Node>>) -> Claimed {
        let section = match &node {
            Some(node) => self.graph.drain(node, "one").await,
            None => self.graph.drain_all("all").await,
        };
        let model = self.model.lock();
        // A node that was removed meanwhile has nobody above it.
        let known = node.as_ref().is_none_or(|node| model.knows(node.name()));
        let disks = match known {
            true => model.disks_above(node.as_ref().map(|node| node.name())),
            false => Vec::new(),
        };
        for disk in &disks {
            self.seen.claim(*disk);
        }
        Claimed {
            section: Some(section),
            disks,
            seen: Arc::clone(&self.seen),
        }
    }

    pub(super) fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.graph.node(name).ok()
    }

    /// Whether the nodes connected with `node` in `model` can have one home, as those with disks on
    /// them have.
    fn has_one_home(&self, model: &Model, node: &str) -> bool {
        let roots = model.roots_among(&model.connected(node)).into_iter();
        let mut homes = roots.map(|root| self.node(&root).unwrap().home());
        let first = homes.next();
        homes.all(|home| Some(&home) == first.as_ref())
    }

    /// Gives a filter another child; refused if that would be a circle or bring disks of two homes
    /// together, and only then.
    pub(super) async fn repoint(self: Arc<Self>, filter: String, role: Role, to: String) {
        let (Some(above), Some(new)) = (self.node(&filter), self.node(&to)) else {
            return;
        };
        let Some(old) = above.child(role) else { return };
        let sections = [
            self.graph.drain(&old, "move").await,
            self.graph.drain(&new, "move").await,
        ];
        let mut model = self.model.lock();
        let still = model.knows(&filter) && model.knows(&to);
        let now = above.child(role);
        if !still || !now.is_some_and(|child| Arc::ptr_eq(&child, &old)) {
            return;
        }
        let mut after = model.clone();
        let fits = after.point(&filter, usize::from(role == Role::File), &to);
        let one_home = self.has_one_home(&after, &filter);
        let mut change = self.graph.transaction();
        let result = change.set_child(&above, role, &new);
        assert_eq!(result.is_ok(), fits, "{filter} onto {to}");
        if fits {
            assert_eq!(change.commit().is_ok(), one_home, "{filter} onto {to}");
            if one_home {
                after.abandoned(old.name());
                *model = after;
            }
        }
        drop((model, sections));
    }

    pub(super) async fn insert(self: Arc<Self>, below: String, name: String) {
        let Some(node) = self.node(&below) else {
            return;
        };
        let section = self.graph.drain(&node, "insert").await;
        let mut model = self.model.lock();
        if !model.knows(&below) {
            return;
        }
        let (driver, watch) = pass(&node, None);
        let filter = self
            .graph
            .insert_filter("mirror 'j'", Some(&name), &node, driver);
        unmaps(&filter.unwrap());
        self.watches.lock().push(watch);
        model.replace(&below, &name);
        model.below.insert(name, vec![below]);
        drop((model, section));
    }

    /// Takes out a filter that was put in.
    pub(super) async fn take_out(self: Arc<Self>, filter: String) {
        let Some(node) = self.node(&filter) else {
            return;
        };
        let Some(below) = node.child(Role::Filtered) else {
            return;
        };
        let sections = [
            self.graph.drain(&node, "take out").await,
            self.graph.drain(&below, "take out").await,
        ];
        let mut model = self.model.lock();
        let now = node.child(Role::Filtered);
        if !model.knows(&filter) || !now.is_some_and(|now| Arc::ptr_eq(&now, &below)) {
            return;
        }
        self.graph.replace_node(&node, &below).unwrap();
        self.graph.remove_if_unused(&node);
        model.replace(&filter, below.name());
        model.abandoned(&filter);
        drop((model, sections));
    }

    /// Reopens nodes with other children, all or none. With `never` the last of them is to be
    /// read-only as well, which a disk above it does not allow.
    pub(super) async fn reopen(self: Arc<Self>, changes: Vec<(String, String)>, never: bool) {
        let mut sections = Vec::new();
        for name in changes.iter().flat_map(|(node, to)| [node, to]) {
            let Some(node) = self.node(name) else { return };
            for node in node.children().into_iter().map(|(_, child)| child) {
                sections.push(self.graph.drain(&node, "reopen").await);
            }
            sections.push(self.graph.drain(&node, "reopen").await);
        }
        let mut model = self.model.lock();
        if !changes
            .iter()
            .all(|(node, to)| model.knows(node) && model.knows(to))
        {
            return;
        }
        let mut after = model.clone();
        let mut fits = true;
        let mut left = Vec::new();
        for (node, to) in &changes {
            let old = after.below[node][0].clone();
            if old != *to {
                fits = fits && after.point(node, 0, to);
                left.push(old);
            }
        }
        fits = fits
            && changes
                .iter()
                .all(|(node, _)| self.has_one_home(&after, node));
        let last = &changes.last().unwrap().0;
        let never = never && fits && !after.disks_above(Some(last)).is_empty();
        let mut list: Vec<_> = changes.iter().map(|(node, to)| raw(node, to)).collect();
        if never {
            fits = false;
            list.last_mut().unwrap()["read-only"] = Value::Bool(true);
        }
        let list: Vec<_> = list.into_iter().map(options).collect();
        let reopening = std::pin::pin!(self.graph.reopen(&list));
        // If it is not done at once, somebody has changed the graph since and there is more to wait
        // for: it is given up.
        if let Some(result) = reopening.now_or_never() {
            assert_eq!(result.is_ok(), fits, "{changes:?}: {result:?}");
            if fits {
                left.iter().for_each(|old| after.abandoned(old));
                *model = after;
            }
        }
        drop((model, sections));
    }

    /// Gives all that is connected with a node another home; refused if a disk stands on any of them,
    /// and only then.
    pub(super) async fn move_home(self: Arc<Self>, name: String, home: AioContext) {
        let mut sections = Vec::new();
        let connected = {
            let model = self.model.lock();
            model.knows(&name).then(|| model.connected(&name))
        };
        for name in connected.unwrap_or_default() {
            let Some(node) = self.node(&name) else { return };
            sections.push(self.graph.drain(&node, "home").await);
        }
        let model = self.model.lock();
        let Some(node) = self.node(&name).filter(|_| model.knows(&name)) else {
            return;
        };
        let connected = model.connected(&name);
        let free = model.roots_among(&connected).is_empty();
        let main = home;
        let home = Home::from(&main);
        let moving = std::pin::pin!(self.graph.set_home(&node, Some(home.clone()), &main));
        if let Some(result) = moving.now_or_never() {
            assert_eq!(result.is_ok(), free, "{name}");
            let now = |name: &String| self.node(name).unwrap().home();
            assert!(
                !free
                    || connected
                        .iter()
                        .all(|name| now(name).as_ref() == Some(&home))
            );
        }
        drop((model, sections));
    }

    pub(super) async fn remove(self: Arc<Self>, number: usize, backend: Arc<Backend>) {
        // Not locked while it is awaited: nobody else removes this disk, but its root may change.
        backend.gate().destroy();
        backend.gate().wait_idle().await;
        let mut model = self.model.lock();
        let removing = std::pin::pin!(self.graph.remove_backend(&backend));
        let removed = removing.now_or_never();
        assert!(removed.is_some(), "its gate is idle and stays so");
        let root = model.roots.remove(&number).unwrap();
        model.abandoned(&root);
    }

    /// Everything is at rest: what has happened is what should have.
    pub(super) fn verify(&self, made: u64) {
        assert_eq!(*self.seen.broken.lock(), Vec::<String>::new());
        let results = std::mem::take(&mut *self.results.lock());
        assert_eq!(results.len() as u64, made, "a request was lost");
        let log = std::mem::take(&mut *self.seen.log.lock());
        let is_flush = |kind: &Kind| *kind == Kind::Flush;
        let (flushes, moves): (Vec<_>, Vec<_>) =
            results.into_iter().partition(|(_, kind, _)| is_flush(kind));
        let flushes = flushes.iter().filter(|(_, _, ok)| *ok).count();
        // A reopen flushes what it takes a child from.
        assert!(self.seen.flushes.load(Ordering::SeqCst) >= flushes);
        let served = moves.iter().filter(|(_, _, ok)| *ok).count();
        assert_eq!(served, log.len(), "a request came twice");
        for (offset, kind, ok) in moves {
            let is_served = Seen::is_served(&log, offset, kind);
            assert_eq!(is_served, ok, "{kind:?} at {offset:#x}");
        }
        let lanes: BTreeSet<_> = log.iter().map(|(offset, _)| offset / OF_LANE).collect();
        for lane in lanes {
            let mine = log.iter().filter(|(offset, _)| offset / OF_LANE == lane);
            assert!(mine.map(|(offset, _)| offset).is_sorted(), "out of order");
        }
        self.verify_graph();
        for watch in self.watches.lock().iter() {
            let (begun, ended) = watch.told();
            assert_eq!(begun, ended, "a driver was told of more begins than ends");
        }
    }

    /// The graph is the model's, seen from above and from below, and nothing in it is held.
    fn verify_graph(&self) {
        let model = self.model.lock();
        let mut real = Model::default();
        for node in self.graph.nodes() {
            assert!(node.drained_by().is_empty(), "{} is drained", node.name());
            let below = node.children();
            let names = below.iter().map(|(_, child)| child.name().to_owned());
            real.below.insert(node.name().to_owned(), names.collect());
            for (_, child) in &below {
                let back = child.nodes_above();
                assert!(back.iter().any(|above| Arc::ptr_eq(above, &node)));
                assert!(child.home() == node.home(), "connected in two homes");
            }
            for above in node.nodes_above() {
                let down = above.children();
                assert!(down.iter().any(|(_, child)| Arc::ptr_eq(child, &node)));
            }
        }
        for backend in self.graph.backends() {
            let number = backend.name().trim_start_matches("disk").parse().unwrap();
            let root = backend.node().unwrap();
            let backends = root.backends();
            let here = backends.iter().filter(|other| Arc::ptr_eq(other, &backend));
            assert_eq!(here.count(), 1);
            real.roots.insert(number, root.name().to_owned());
            let gate = backend.gate();
            assert!(!gate.is_closed());
            assert_eq!((gate.in_flight(), gate.parked()), (0, 0));
        }
        assert_eq!(real, *model);
    }
}
