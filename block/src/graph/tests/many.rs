//! Random graphs, random sections in several threads, random requests and changes of the graph in
//! between, against a model: who stands above what.
//!
//! No request is seen inside a section that covers its disk; none is lost, none comes twice; each
//! disk's come in the order in which they were made; in the end all counts are balanced and the
//! graph is the model's. Every seed is a history of its own; even seeds play in one thread and are
//! the same every time, odd ones have disks and sections in three. One alone:
//! `SLUICE_GRAPH_SEED=42 cargo nextest run -p sluice-block many`.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use event_listener::Event;
use futures_util::FutureExt;
use parking_lot::Mutex;
use sluice_aio::{AioContext, IoBuffer, IoThread, JoinHandle, LoopConfig, current};

use super::bench::{Bench, Watch, pass, run};
use crate::backend::Backend;
use crate::drain::Section;
use crate::driver::{Allocation, BlockFuture, BlockStatus, Driver, RequestFlags, Role};
use crate::graph::Graph;
use crate::node::{Node, Owner};

/// Histories in the suite.
const SEEDS: u64 = 3000;
/// Steps of a history.
const STEPS: u64 = 40;
/// Disks that may ever be, in one history.
const DISKS: usize = 8;
/// A request's offset names its disk and its number.
const NUMBER: u64 = 512;
const OF_DISK: u64 = 1 << 32;

/// SplitMix64: the same numbers for a seed for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// What the bottom of the graph sees, and who claims to be alone.
#[derive(Debug)]
struct Seen {
    /// Sections that cover the disk, by number.
    exclusive: Vec<AtomicUsize>,
    running: Vec<AtomicUsize>,
    log: Mutex<Vec<u64>>,
    broken: Mutex<Vec<String>>,
    holding: AtomicBool,
    released: Event,
}

impl Seen {
    fn new() -> Self {
        let zeroes = || (0..DISKS).map(|_| AtomicUsize::new(0)).collect();
        Self {
            exclusive: zeroes(),
            running: zeroes(),
            log: Mutex::default(),
            broken: Mutex::default(),
            holding: AtomicBool::new(false),
            released: Event::new(),
        }
    }

    fn check(&self, disk: usize, when: &str) {
        if self.exclusive[disk].load(Ordering::SeqCst) > 0 {
            let what = format!("disk {disk}: a request inside a section, {when}");
            self.broken.lock().push(what);
        }
    }

    fn release(&self) {
        self.holding.store(false, Ordering::SeqCst);
        self.released.notify(usize::MAX);
    }
}

#[derive(Debug)]
struct Base(Arc<Seen>);

impl Base {
    fn request(&self, offset: u64) -> BlockFuture<'_, ()> {
        let seen = &self.0;
        BlockFuture::new(async move {
            let disk = usize::try_from(offset / OF_DISK).unwrap();
            seen.running[disk].fetch_add(1, Ordering::SeqCst);
            seen.check(disk, "at its start");
            seen.log.lock().push(offset);
            while seen.holding.load(Ordering::SeqCst) {
                let released = seen.released.listen();
                if seen.holding.load(Ordering::SeqCst) {
                    released.await;
                }
            }
            current::yield_now().await;
            seen.check(disk, "at its end");
            seen.running[disk].fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
    }
}

impl Driver for Base {
    fn format_name(&self) -> &'static str {
        "base"
    }

    fn size(&self) -> u64 {
        1 << 40
    }

    fn read(&self, offset: u64, _: IoBuffer) -> BlockFuture<'_, ()> {
        self.request(offset)
    }

    fn write(&self, offset: u64, _: IoBuffer, _: RequestFlags) -> BlockFuture<'_, ()> {
        self.request(offset)
    }

    fn block_status(&self, _: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        let allocation = Allocation::Data;
        BlockFuture::new(async move { Ok(BlockStatus { allocation, len }) })
    }
}

/// Names only: whom each node stands on, and each disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    below: BTreeMap<String, Vec<String>>,
    roots: BTreeMap<usize, String>,
}

impl Model {
    fn reaches(&self, from: &str, to: &str) -> bool {
        from == to || self.below[from].iter().any(|next| self.reaches(next, to))
    }

    fn disks_above(&self, node: Option<&str>) -> Vec<usize> {
        let above = |root: &String| node.is_none_or(|node| self.reaches(root, node));
        let disks = self.roots.iter().filter(|(_, root)| above(root));
        disks.map(|(disk, _)| *disk).collect()
    }

    fn names(&self) -> Vec<String> {
        self.below.keys().cloned().collect()
    }

    /// A filter that was put in goes with its last parent, and then what is below it may go.
    fn abandoned(&mut self, node: &str) {
        let used = self.below.values().flatten().chain(self.roots.values());
        if !node.starts_with("inserted") || used.into_iter().any(|used| used == node) {
            return;
        }
        for below in self.below.remove(node).unwrap_or_default() {
            self.abandoned(&below);
        }
    }

    /// Everything above `old` stands on `new` from now on.
    fn replace(&mut self, old: &str, new: &str) {
        for (name, below) in &mut self.below {
            if name != new {
                for child in below.iter_mut().filter(|child| *child == old) {
                    new.clone_into(child);
                }
            }
        }
        for root in self.roots.values_mut().filter(|root| *root == old) {
            new.clone_into(root);
        }
    }
}

struct Disk {
    backend: Arc<Backend>,
    context: AioContext,
    made: u64,
}

/// One history.
struct World {
    graph: Arc<Graph>,
    seen: Arc<Seen>,
    /// Locked over every change of the graph, so that both change together.
    model: Mutex<Model>,
    watches: Mutex<Vec<Arc<Watch>>>,
    results: Mutex<Vec<(u64, bool)>>,
    pending: AtomicUsize,
    done: Event,
}

/// A section that says so to [`Seen`].
struct Claimed {
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

impl World {
    fn request(self: &Arc<Self>, number: usize, disk: &mut Disk) {
        let offset = number as u64 * OF_DISK + disk.made * NUMBER;
        disk.made += 1;
        self.pending.fetch_add(1, Ordering::SeqCst);
        let (world, backend) = (Arc::clone(self), Arc::clone(&disk.backend));
        disk.context.spawn(move || async move {
            let result = async {
                let token = backend.enter().await?;
                backend.read(&token, offset, IoBuffer::alloc(512)).await
            };
            let result = result.await;
            world.results.lock().push((offset, result.is_ok()));
            if world.pending.fetch_sub(1, Ordering::SeqCst) == 1 {
                world.done.notify(usize::MAX);
            }
        });
    }

    async fn claim(self: Arc<Self>, node: Option<Arc<Node>>) -> Claimed {
        let section = match &node {
            Some(node) => self.graph.drain(node, "one").await,
            None => self.graph.drain_all("all").await,
        };
        let model = self.model.lock();
        // A node that was removed meanwhile has nobody above it.
        let known = node
            .as_ref()
            .is_none_or(|node| model.below.contains_key(node.name()));
        let disks = match known {
            true => model.disks_above(node.as_ref().map(|node| node.name())),
            false => Vec::new(),
        };
        for disk in &disks {
            if self.seen.running[*disk].load(Ordering::SeqCst) > 0 {
                let what = format!("disk {disk} is busy when its section begins");
                self.seen.broken.lock().push(what);
            }
            self.seen.exclusive[*disk].fetch_add(1, Ordering::SeqCst);
        }
        Claimed {
            section: Some(section),
            disks,
            seen: Arc::clone(&self.seen),
        }
    }

    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.graph.node(name).ok()
    }

    /// Gives a filter another child; refused if that would be a circle, and only then.
    async fn repoint(self: Arc<Self>, filter: String, role: Role, to: String) {
        let (Some(above), Some(new)) = (self.node(&filter), self.node(&to)) else {
            return;
        };
        let Some(old) = above.child(role) else { return };
        let sections = [
            self.graph.drain(&old, "move").await,
            self.graph.drain(&new, "move").await,
        ];
        let mut model = self.model.lock();
        let still = model.below.contains_key(&filter) && model.below.contains_key(&to);
        if !still
            || !above
                .child(role)
                .is_some_and(|child| Arc::ptr_eq(&child, &old))
        {
            return;
        }
        let circle = model.reaches(&to, &filter);
        let mut change = self.graph.transaction();
        let result = change.set_child(&above, role, &new);
        assert_eq!(result.is_err(), circle, "{filter} onto {to}");
        if result.is_ok() {
            change.commit().unwrap();
            let index = usize::from(role == Role::File);
            to.clone_into(&mut model.below.get_mut(&filter).unwrap()[index]);
            model.abandoned(old.name());
        }
        drop((model, sections));
    }

    async fn insert(self: Arc<Self>, below: String, name: String) {
        let Some(node) = self.node(&below) else {
            return;
        };
        let section = self.graph.drain(&node, "insert").await;
        let mut model = self.model.lock();
        if !model.below.contains_key(&below) {
            return;
        }
        let (driver, watch) = pass(&node, None);
        self.graph
            .insert_filter(Some(&name), &node, driver)
            .unwrap();
        self.watches.lock().push(watch);
        model.replace(&below, &name);
        model.below.insert(name, vec![below]);
        drop((model, section));
    }

    /// Takes out a filter that was put in.
    async fn take_out(self: Arc<Self>, filter: String) {
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
        if !model.below.contains_key(&filter) || !now.is_some_and(|now| Arc::ptr_eq(&now, &below)) {
            return;
        }
        self.graph.replace_node(&node, &below).unwrap();
        self.graph.remove_if_unused(&node);
        model.replace(&filter, below.name());
        model.abandoned(&filter);
        drop((model, sections));
    }

    async fn remove(self: Arc<Self>, number: usize, backend: Arc<Backend>) {
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

    fn add_disk(&self, random: &mut Random, number: usize, contexts: &[AioContext]) -> Disk {
        let mut model = self.model.lock();
        let root = random.pick(&model.names());
        let node = self.graph.node(&root).unwrap();
        let backend = self
            .graph
            .add_backend(&format!("disk{number}"), &node)
            .unwrap();
        model.roots.insert(number, root);
        Disk {
            backend,
            context: random.pick(contexts),
            made: 0,
        }
    }

    /// Everything is at rest: what has happened is what should have.
    fn verify(&self, made: &[u64]) {
        assert_eq!(*self.seen.broken.lock(), Vec::<String>::new());
        let results = std::mem::take(&mut *self.results.lock());
        let count: u64 = made.iter().sum();
        assert_eq!(results.len() as u64, count, "a request was lost");
        let log = std::mem::take(&mut *self.seen.log.lock());
        let served: BTreeSet<_> = log.iter().copied().collect();
        assert_eq!(served.len(), log.len(), "a request came twice");
        for (offset, ok) in results {
            assert_eq!(served.contains(&offset), ok, "{offset:#x}");
        }
        for number in 0..DISKS as u64 {
            let mine = log.iter().filter(|offset| **offset / OF_DISK == number);
            assert!(mine.is_sorted(), "disk {number}: out of order");
        }
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
            }
            for above in node.nodes_above() {
                let down = above.children();
                assert!(down.iter().any(|(_, child)| Arc::ptr_eq(child, &node)));
            }
        }
        for backend in self.graph.backends() {
            let number = backend.name().trim_start_matches("disk").parse().unwrap();
            let root = backend.node().unwrap();
            assert_eq!(
                root.backends()
                    .iter()
                    .filter(|other| Arc::ptr_eq(other, &backend))
                    .count(),
                1
            );
            real.roots.insert(number, root.name().to_owned());
            let gate = backend.gate();
            assert!(!gate.is_closed());
            assert_eq!((gate.in_flight(), gate.parked()), (0, 0));
        }
        assert_eq!(real, *model);
        for watch in self.watches.lock().iter() {
            let (begun, ended) = watch.told();
            assert_eq!(begun, ended, "a driver was told of more begins than ends");
        }
    }
}

async fn play(bench: Bench, seed: u64, contexts: Vec<AioContext>) {
    let mut random = Random(seed);
    let world = Arc::new(World {
        graph: Arc::clone(&bench.graph),
        seen: Arc::new(Seen::new()),
        model: Mutex::default(),
        watches: Mutex::default(),
        results: Mutex::default(),
        pending: AtomicUsize::new(0),
        done: Event::new(),
    });
    // A random graph: bases, and filters with one or two children among what is there.
    for index in 0..1 + random.below(3) {
        let name = format!("base{index}");
        let driver = Box::new(Base(Arc::clone(&world.seen)));
        let node = Node::new(name.clone(), driver, true, Owner::Monitor);
        let mut change = bench.graph.transaction();
        change.add_node(&node);
        change.commit().unwrap();
        world.model.lock().below.insert(name, Vec::new());
    }
    for index in 0..random.below(6) {
        let names = world.model.lock().names();
        let mut below = vec![random.pick(&names)];
        if random.below(3) == 0 {
            below.push(random.pick(&names));
        }
        let nodes: Vec<_> = below
            .iter()
            .map(|name| bench.graph.node(name).unwrap())
            .collect();
        let name = format!("filter{index}");
        let (_, watch) = bench.filter(&name, &nodes[0], nodes.get(1));
        world.watches.lock().push(watch);
        world.model.lock().below.insert(name, below);
    }
    let mut disks: BTreeMap<usize, Disk> = BTreeMap::new();
    let mut made = [0; DISKS];
    let mut next_disk = 0;
    let mut next_filter = 0;
    let mut sections: Vec<JoinHandle<Claimed>> = Vec::new();
    let mut changes: Vec<JoinHandle<()>> = Vec::new();
    let start = |world: &Arc<World>| Arc::clone(world);
    for _ in 0..STEPS {
        let numbers: Vec<_> = disks.keys().copied().collect();
        match random.below(24) {
            0..=7 if !numbers.is_empty() => {
                let number = random.pick(&numbers);
                world.request(number, disks.get_mut(&number).unwrap());
            }
            8..=10 => {
                let name = random.pick(&world.model.lock().names());
                let node = (random.below(5) > 0).then(|| world.node(&name)).flatten();
                let (context, world) = (random.pick(&contexts), start(&world));
                sections.push(current::spawn_local(async move {
                    let claim = context.call(move || world.claim(node));
                    claim.await.unwrap()
                }));
            }
            11..=13 if !sections.is_empty() => {
                let index = random.below(sections.len());
                let section = sections.swap_remove(index);
                changes.push(current::spawn_local(async move { drop(section.await) }));
            }
            14 => world.seen.holding.store(true, Ordering::SeqCst),
            15 | 16 => world.seen.release(),
            17 => {
                let model = world.model.lock().clone();
                let filters: Vec<_> = model
                    .below
                    .iter()
                    .filter(|(_, below)| !below.is_empty())
                    .collect();
                if !filters.is_empty() {
                    let (filter, below) = random.pick(&filters);
                    let role = match random.below(below.len()) {
                        0 => Role::Filtered,
                        _ => Role::File,
                    };
                    let to = random.pick(&model.names());
                    let task = start(&world).repoint(filter.clone(), role, to);
                    changes.push(current::spawn_local(task));
                }
            }
            18 => {
                let below = random.pick(&world.model.lock().names());
                let task = start(&world).insert(below, format!("inserted{next_filter}"));
                next_filter += 1;
                changes.push(current::spawn_local(task));
            }
            19 => {
                let task = start(&world).take_out(format!("inserted{}", random.below(next_filter)));
                changes.push(current::spawn_local(task));
            }
            20 if next_disk < DISKS => {
                let disk = world.add_disk(&mut random, next_disk, &contexts);
                disks.insert(next_disk, disk);
                next_disk += 1;
            }
            21 if numbers.len() > 1 => {
                let number = random.pick(&numbers);
                let disk = disks.remove(&number).unwrap();
                made[number] = disk.made;
                changes.push(current::spawn_local(
                    start(&world).remove(number, disk.backend),
                ));
            }
            _ => {
                for _ in 0..random.below(4) {
                    current::yield_now().await;
                }
            }
        }
        if next_disk == 0 {
            let disk = world.add_disk(&mut random, 0, &contexts);
            disks.insert(0, disk);
            next_disk = 1;
        }
    }
    // Everybody goes home.
    world.seen.release();
    for section in sections {
        changes.push(current::spawn_local(async move { drop(section.await) }));
    }
    for change in changes {
        change.await.unwrap();
    }
    while world.pending.load(Ordering::SeqCst) > 0 {
        let done = world.done.listen();
        if world.pending.load(Ordering::SeqCst) > 0 {
            done.await;
        }
    }
    for (number, disk) in &disks {
        made[*number] = disk.made;
    }
    // A task's last reference to a section may end a moment after its result was seen.
    while bench
        .graph
        .nodes()
        .iter()
        .any(|node| !node.drained_by().is_empty())
    {
        current::yield_now().await;
    }
    world.verify(&made);
}

#[test]
fn sections_hold_in_many_histories() {
    let only = std::env::var("SLUICE_GRAPH_SEED").ok();
    let only = only.map(|seed| seed.parse().expect("SLUICE_GRAPH_SEED is a number"));
    let seeds = only.map_or(0..SEEDS, |seed| seed..seed + 1);
    let threads = ["io0", "io1"].map(|name| IoThread::spawn(name, LoopConfig::default()).unwrap());
    for seed in seeds {
        let mut contexts = Vec::new();
        if seed % 2 == 1 {
            contexts.extend(threads.iter().map(|thread| thread.context().clone()));
        }
        let played = std::panic::catch_unwind(AssertUnwindSafe(move || {
            run(async move |bench| {
                contexts.push(current::context());
                play(bench, seed, contexts).await;
            });
        }));
        assert!(
            played.is_ok(),
            "seed {seed}: SLUICE_GRAPH_SEED={seed} plays it alone"
        );
    }
}
