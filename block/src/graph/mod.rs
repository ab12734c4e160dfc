//! [`Graph`]: all nodes and backends of a machine, and every change of how they are connected.
//!
//! Changes are made by plain functions under one lock, inside drained sections where they touch
//! running disks; the request path reads edges without it. No drain is awaited under the lock
//! (rule 9): drain, then lock, change, unlock, then end.

pub(crate) mod bitmaps;
mod build;
mod change;
pub(crate) mod file_target;
mod held_name;
pub(crate) mod home;
mod media;
mod overlay;
pub(crate) mod parent;
pub mod query;
mod reopen;
mod resize;
mod rest;
mod same_file;
pub(crate) mod snapshot;
#[cfg(test)]
mod tests;
mod throttle;
pub(crate) mod transaction;
pub(crate) mod undo;

pub use bitmaps::{BitmapAction, BitmapAdd, BitmapMerge, BitmapSource};
pub(crate) use held_name::HeldName;
pub use overlay::SnapshotSync;
pub use rest::LeftTarget;
pub use snapshot::Snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use sluice_aio::Clock;

use crate::backend::Backend;
use crate::drain::{
    HeldUpSection, HeldUpSections, Section, SectionInner, begin_section, cover_from, enlist,
    sections_at_or_below,
};
use crate::driver::file::FdSets;
use crate::driver::throttle::ThrottleGroups;
use crate::driver::{FileIdentity, Running};
use crate::error::{BlockError, Result};
use crate::event::EventSink;
use crate::job::{Job, JobRegistry};
use crate::node::{Node, Owner};
use crate::options::BlockdevOptions;
use crate::permission::{Access, Permissions};
use parent::Parent;
use transaction::ROOT;

/// See the [module](self). One per machine; any thread may hold it.
pub struct Graph {
    topology: Mutex<Topology>,
    jobs: JobRegistry,
    throttle_groups: ThrottleGroups,
    events: Arc<dyn EventSink>,
    clock: Clock,
    fd_sets: Arc<FdSets>,
    /// Sections that can't begin.
    pub(crate) held_up: HeldUpSections,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Topology {
    /// Every node by name, those with made-up names too.
    nodes: BTreeMap<String, Arc<Node>>,
    backends: Vec<Arc<Backend>>,
    /// Sections over everything that are open now.
    global: Vec<Weak<SectionInner>>,
    /// The machine stands still.
    stopped: bool,
    next_name: u64,
    /// Names that nodes are going to have.
    held_names: BTreeSet<String>,
}

impl Topology {
    fn node(&self, name: &str) -> Result<Arc<Node>> {
        self.nodes
            .get(name)
            .cloned()
            .ok_or_else(|| BlockError::NodeNotFound(name.to_owned()))
    }

    fn contains(&self, node: &Arc<Node>) -> bool {
        self.nodes
            .get(node.name())
            .is_some_and(|present| Arc::ptr_eq(present, node))
    }

    /// # Errors
    /// The node was removed since the caller got hold of it.
    fn check_present(&self, node: &Arc<Node>) -> Result<()> {
        if self.contains(node) {
            return Ok(());
        }
        Err(BlockError::NodeNotFound(node.name().to_owned()))
    }

    fn backends_above(&self, node: &Arc<Node>) -> Vec<Arc<Backend>> {
        let above = |backend: &&Arc<Backend>| {
            let root = backend.node();
            root.is_some_and(|root| transaction::check_acyclic(node, &root).is_err())
        };
        self.backends.iter().filter(above).cloned().collect()
    }

    fn made_up_name(&mut self) -> String {
        loop {
            self.next_name += 1;
            let name = format!("#block{:03}", self.next_name);
            if !self.nodes.contains_key(&name) {
                return name;
            }
        }
    }

    fn made_up_tool(&mut self) -> String {
        self.next_name += 1;
        format!("#tool{:03}", self.next_name)
    }

    fn global_sections(&mut self) -> Vec<Arc<SectionInner>> {
        self.global.retain(|section| section.strong_count() > 0);
        self.global.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Graph {
    /// An empty graph whose jobs and disks tell their events to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn EventSink>, clock: Clock) -> Arc<Self> {
        let limits = clock.clone();
        Self::with_clocks(events, clock, limits)
    }

    /// As [`Graph::new`], where the limits of throttle groups go by a clock of their own: the guest's, if that is
    /// moved by hand.
    pub fn with_clocks(events: Arc<dyn EventSink>, clock: Clock, limits: Clock) -> Arc<Self> {
        let jobs = JobRegistry::new(Arc::clone(&events));
        Arc::new(Self {
            topology: Mutex::default(),
            jobs,
            throttle_groups: ThrottleGroups::new(limits),
            fd_sets: Arc::default(),
            events,
            clock,
            held_up: HeldUpSections::default(),
        })
    }

    /// All jobs.
    #[must_use]
    pub fn jobs(&self) -> &JobRegistry {
        &self.jobs
    }

    /// All throttle groups.
    #[must_use]
    pub fn throttle_groups(&self) -> &ThrottleGroups {
        &self.throttle_groups
    }

    /// Files that somebody else has opened, for paths that mean one of them.
    #[must_use]
    pub fn fd_sets(&self) -> &FdSets {
        &self.fd_sets
    }

    /// Where events go.
    #[must_use]
    pub fn events(&self) -> &Arc<dyn EventSink> {
        &self.events
    }

    /// The clock of the graph's gates and jobs.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    fn topology(&self) -> MutexGuard<'_, Topology> {
        self.topology.lock()
    }

    /// The node of that name.
    ///
    /// # Errors
    /// [`BlockError::NodeNotFound`].
    pub fn node(&self, name: &str) -> Result<Arc<Node>> {
        self.topology().node(name)
    }

    /// All nodes, by name.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.topology().nodes.values().cloned().collect()
    }

    /// All backends, oldest first.
    #[must_use]
    pub fn backends(&self) -> Vec<Arc<Backend>> {
        self.topology().backends.clone()
    }

    /// The backend of that name.
    #[must_use]
    pub fn backend(&self, name: &str) -> Option<Arc<Backend>> {
        self.topology()
            .backends
            .iter()
            .find(|backend| backend.name() == name)
            .cloned()
    }

    /// The node that a command's `device` means: a backend's root, or a node by name.
    ///
    /// # Errors
    /// [`BlockError::DeviceNotFound`], [`BlockError::NoMedium`].
    pub fn device_or_node(&self, name: &str) -> Result<Arc<Node>> {
        match self.backend(name) {
            Some(backend) => {
                let root = backend.node();
                root.ok_or_else(|| BlockError::NoMedium(name.to_owned()))
            }
            None => {
                let node = self.node(name);
                node.map_err(|_| BlockError::DeviceNotFound(name.to_owned()))
            }
        }
    }

    /// Adds a node and all that its options nest; opening happens in worker threads.
    ///
    /// Call it from a task. Either everything is added or nothing.
    ///
    /// # Errors
    /// A name that is missing, malformed or taken; what the media say.
    pub async fn add_node(&self, options: &BlockdevOptions) -> Result<Arc<Node>> {
        if options.node_name().is_none() {
            return Err(BlockError::NodeNameMissing);
        }
        self.build(options, Owner::Monitor, None).await
    }

    /// As [`Graph::add_node`], for a node that belongs to a device or a job: it needs no name and
    /// goes with its last parent.
    ///
    /// # Errors
    /// As [`Graph::add_node`].
    pub async fn add_implicit_node(&self, options: &BlockdevOptions) -> Result<Arc<Node>> {
        self.build(options, Owner::Implicit, None).await
    }

    /// Removes a node that the monitor added and nobody uses.
    ///
    /// # Errors
    /// No such node, not the monitor's, or in use.
    pub fn del_node(&self, name: &str) -> Result<()> {
        let mut change = self.transaction();
        let node = change.topology().node(name)?;
        // In QEMU's order: clients match on the words.
        if !node.backends().is_empty() {
            return Err(BlockError::HasDisk(name.to_owned()));
        }
        node.check_not_blocked()?;
        if node.owner() != Owner::Monitor {
            return Err(BlockError::NotOwned(name.to_owned()));
        }
        if node.work(true).is_some() || !node.parents().is_empty() {
            return Err(BlockError::InUse(name.to_owned()));
        }
        change.remove_node(&node);
        change.commit()
    }

    /// The backends that can send requests to `node`, directly or through other nodes.
    #[must_use]
    pub fn backends_above(&self, node: &Arc<Node>) -> Vec<Arc<Backend>> {
        self.topology().backends_above(node)
    }

    /// Gives a device its disk: a backend named `name` over `root`.
    ///
    /// # Errors
    /// The name is taken; the node has gone, or a job holds it; somebody else writes to it.
    pub fn add_backend(&self, name: &str, root: &Arc<Node>) -> Result<Arc<Backend>> {
        let access = Access::of_device(root.is_read_only());
        self.add_user(name, Some(root), access)
    }

    /// The same for a device that lets others write to the node too.
    ///
    /// # Errors
    /// The name is taken; the node has gone, or a job holds it.
    pub fn add_sharing_backend(&self, name: &str, root: &Arc<Node>) -> Result<Arc<Backend>> {
        let mut access = Access::of_device(root.is_read_only());
        access.shared |= Permissions::WRITE;
        self.add_user(name, Some(root), access)
    }

    /// Gives a device with a removable medium its backend, without a medium at first. With
    /// `read_only` the device never writes; without, it takes no medium that is read-only.
    ///
    /// # Errors
    /// The name is taken.
    pub fn add_empty_backend(&self, name: &str, read_only: bool) -> Result<Arc<Backend>> {
        self.add_user(name, None, Access::of_device(read_only))
    }

    /// The same for an operator's tool, which does `access` with the node and no more. Its name
    /// begins with `#`, as no device's does. A job's filter takes its requests as a guest's.
    ///
    /// # Errors
    /// As [`Graph::add_backend`].
    pub fn add_tool(&self, root: &Arc<Node>, access: Access) -> Result<Arc<Backend>> {
        let name = self.topology().made_up_tool();
        let check = |root: &Node| match root.is_filter_of_job() {
            true => Ok(()),
            false => root.check_not_blocked(),
        };
        self.add_user_if(&name, Some(root), access, check)
    }

    fn add_user(
        &self,
        name: &str,
        root: Option<&Arc<Node>>,
        access: Access,
    ) -> Result<Arc<Backend>> {
        self.add_user_if(name, root, access, Node::check_not_blocked)
    }

    /// The same if `check` has nothing against it, which is asked under the graph's lock.
    fn add_user_if(
        &self,
        name: &str,
        root: Option<&Arc<Node>>,
        access: Access,
        check: impl Fn(&Node) -> Result<()>,
    ) -> Result<Arc<Backend>> {
        let mut change = self.transaction();
        let topology = change.topology();
        if topology
            .backends
            .iter()
            .any(|backend| backend.name() == name)
        {
            return Err(BlockError::DuplicateBackend(name.to_owned()));
        }
        if topology.nodes.contains_key(name) || topology.held_names.contains(name) {
            return Err(BlockError::NameOfNode(name.to_owned()));
        }
        if let Some(root) = root {
            topology.check_present(root)?;
            check(root)?;
        }
        let backend = Backend::new(
            name,
            root.map(Arc::clone),
            access,
            self.clock.clone(),
            Arc::clone(&self.events),
        );
        change.add_backend(&backend);
        change.commit()?;
        Ok(backend)
    }

    /// Takes a backend away: what is parked is cancelled, what runs is awaited.
    pub async fn remove_backend(&self, backend: &Arc<Backend>) {
        backend.destroy();
        for gate in backend.gates() {
            gate.wait_idle().await;
        }
        backend.set_throttle_group(None);
        backend.leave_home();
        self.topology()
            .backends
            .retain(|other| !Arc::ptr_eq(other, backend));
        if let Some(root) = backend.node() {
            backend.set_root(None);
            self.let_go(&root, &Parent::backend(backend), ROOT);
        }
    }

    /// Waits until `node` is idle and keeps everybody above it out until the section ends.
    ///
    /// `holder` says whose section it is. The caller must hold no token of a gate above the node.
    pub async fn drain(&self, node: &Arc<Node>, holder: &str) -> Section {
        self.drain_for(std::slice::from_ref(node), holder, None)
            .await
    }

    /// One section over several nodes: all that is above any of them is kept out from the same instant on.
    pub(crate) async fn drain_nodes(&self, nodes: &[Arc<Node>], holder: &str) -> Section {
        self.drain_for(nodes, holder, None).await
    }

    /// A section of a job on a node that it stands above itself: everybody else is kept out, and
    /// other sections wait for the job as for any that works.
    pub(crate) async fn drain_by_job(
        &self,
        node: &Arc<Node>,
        holder: &str,
        job: &Arc<Job>,
    ) -> Section {
        let nodes = std::slice::from_ref(node);
        self.drain_for(nodes, holder, Some(Arc::clone(job))).await
    }

    async fn drain_for(
        &self,
        nodes: &[Arc<Node>],
        holder: &str,
        own_job: Option<Arc<Job>>,
    ) -> Section {
        let cover = |section: &Arc<SectionInner>| {
            let _topology = self.topology();
            for node in nodes {
                cover_from(node, section);
            }
        };
        begin_section(self, holder, own_job, cover).await
    }

    /// Counts requests to `node` whose job ends without them, until what is returned is dropped. Sections over the node, or over
    /// what is below it, that have not begun hold nobody until then.
    pub(crate) fn orphan_requests(&self, node: &Arc<Node>) -> Running {
        let running = node.orphaned().begin();
        let waiting = {
            let mut topology = self.topology();
            let mut waiting = sections_at_or_below(node);
            waiting.append(&mut topology.global_sections());
            waiting
        };
        for section in waiting {
            section.tell_orphaned();
        }
        running
    }

    /// A section over every disk and job, those made meanwhile included.
    pub async fn drain_all(&self, holder: &str) -> Section {
        begin_section(self, holder, None, |section| self.cover_all(section)).await
    }

    /// The sections over the node that can't begin, and hold nobody meanwhile.
    #[must_use]
    pub fn held_up_over_node(&self, node: &Node) -> Vec<HeldUpSection> {
        self.held_up.over_node(node)
    }

    /// The same over a disk.
    #[must_use]
    pub fn held_up_over_disk(&self, disk: &Backend) -> Vec<HeldUpSection> {
        self.held_up.over_disk(disk)
    }

    /// Has a section cover all that there is, and all that comes while it is open.
    fn cover_all(&self, section: &Arc<SectionInner>) {
        let mut topology = self.topology();
        enlist(&mut topology.global, section);
        for backend in &topology.backends {
            section.cover(backend);
        }
        for job in self.jobs.jobs() {
            section.cover_job(&job);
        }
        for node in topology.nodes.values() {
            section.cover_node(node);
        }
    }

    /// The machine stands still: no request of a guest begins until [`resume`](Self::resume), on a disk that comes
    /// meanwhile either. Those that have begun go on.
    pub fn stop(&self) {
        self.topology().stopped = true;
        for backend in self.backends() {
            backend.stop();
        }
    }

    /// The machine goes on after a stop: every disk does again what an error had halted, before
    /// anything newer.
    pub fn resume(&self) {
        self.topology().stopped = false;
        for backend in self.backends() {
            backend.resume();
        }
    }

    /// The files behind all nodes, to find a path that is in use.
    #[must_use]
    pub fn files_in_use(&self) -> Vec<FileIdentity> {
        self.topology()
            .nodes
            .values()
            .filter_map(|node| node.file_identity())
            .collect()
    }
}
