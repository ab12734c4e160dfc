//! [`Transaction`]: a change of the graph that happens as a whole or not at all.
//!
//! Steps are made at once and remembered; [`Transaction::commit`] then checks what they amount to:
//! the permissions of every node that is touched or stands below one that is, parents before
//! children, and the locks that follow from them. If anything is refused, or the transaction is
//! dropped, all steps are undone in reverse order. The graph's lock is held from beginning to end,
//! so nobody who changes the graph sees a state in between; requests read edges without that lock,
//! which is why edges of running disks are changed inside drained sections only. Nothing is awaited
//! here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::MutexGuard;

use super::parent::{Parent, ParentEdge, check_resizable, cumulative};
use super::{Graph, Topology};
use crate::backend::Backend;
use crate::drain::{cover_above, sections_at_or_below};
use crate::driver::Role;
use crate::error::{BlockError, Result};
use crate::home::Home;
use crate::node::{Node, Owner};
use crate::permission::{Access, Permissions};

/// The most nodes on a way from a disk down to a file. A request's stack grows with its way.
pub(crate) const MAX_DEPTH: usize = 128;

type Undo = Box<dyn FnOnce(&mut Topology)>;

/// See the [module](self).
pub(crate) struct Transaction<'g> {
    topology: MutexGuard<'g, Topology>,
    undo: Vec<Undo>,
    /// Nodes whose parents have changed.
    touched: Vec<Arc<Node>>,
    /// Nodes that get another size, each with the operation that changes it.
    resized: Vec<(Arc<Node>, &'static str)>,
    /// Nodes that have lost a parent: implicit ones go with their last.
    abandoned: Vec<Arc<Node>>,
    /// New edges between nodes, the upper one first.
    pub(super) joined: Vec<(Arc<Node>, Arc<Node>)>,
    /// Nodes that this change adds, by address.
    added: HashSet<*const Node>,
    /// What nodes had as their home. Dropped after the lock: the last reference to a thread ends it.
    left: Vec<Option<Home>>,
}

impl Graph {
    /// Begins a change; see [`Transaction`].
    pub(crate) fn transaction(&self) -> Transaction<'_> {
        Transaction {
            topology: self.topology(),
            undo: Vec::new(),
            touched: Vec::new(),
            resized: Vec::new(),
            abandoned: Vec::new(),
            joined: Vec::new(),
            added: HashSet::new(),
            left: Vec::new(),
        }
    }
}

impl Transaction<'_> {
    pub(super) fn topology(&mut self) -> &mut Topology {
        &mut self.topology
    }

    /// # Errors
    /// [`BlockError::NodeNotFound`], if the node was removed since the caller got hold of it.
    pub(crate) fn check_present(&self, node: &Arc<Node>) -> Result<()> {
        self.topology.check_present(node)
    }

    /// Puts `parent` above `node`. The sections that cover the node cover it from now on.
    pub(crate) fn attach(
        &mut self,
        node: &Arc<Node>,
        parent: Parent,
        role: &'static str,
        access: Access,
    ) {
        self.cover(node, &parent);
        if let Parent::Node(above) = &parent
            && let Some(above) = above.upgrade()
        {
            self.joined.push((above, Arc::clone(node)));
        }
        let edge = ParentEdge {
            parent: parent.clone(),
            role,
            access,
        };
        node.state.lock().parents.push(edge);
        self.touched.push(Arc::clone(node));
        let node = Arc::clone(node);
        self.undo.push(Box::new(move |_| {
            take_edge(&node, &parent, role);
        }));
    }

    /// Takes `parent` off `node`; nothing if it is not there.
    pub(crate) fn detach(&mut self, node: &Arc<Node>, parent: &Parent, role: &'static str) {
        let Some((index, edge)) = take_edge(node, parent, role) else {
            return;
        };
        self.touched.push(Arc::clone(node));
        self.abandoned.push(Arc::clone(node));
        let node = Arc::clone(node);
        self.undo.push(Box::new(move |_| {
            node.state.lock().parents.insert(index, edge);
        }));
    }

    /// Changes what `parent` does with `node`.
    pub(crate) fn set_access(&mut self, node: &Arc<Node>, parent: &Parent, access: Access) {
        let index = node
            .state
            .lock()
            .parents
            .iter()
            .position(|edge| edge.parent.is_same(parent));
        if let Some(index) = index {
            self.set_access_at(node, index, access);
        }
    }

    /// Nobody but its job is above this filter any more, so nothing is left that it would have to see.
    pub(crate) fn leave_to_job(&mut self, filter: &Arc<Node>) {
        let index = {
            let state = filter.state.lock();
            state.parents.iter().position(ParentEdge::is_above_filter)
        };
        if let Some(index) = index {
            self.set_access_at(filter, index, Access::NONE);
        }
    }

    fn set_access_at(&mut self, node: &Arc<Node>, index: usize, access: Access) {
        let before = {
            let mut state = node.state.lock();
            std::mem::replace(&mut state.parents[index].access, access)
        };
        self.touched.push(Arc::clone(node));
        let node = Arc::clone(node);
        self.undo.push(Box::new(move |_| {
            node.state.lock().parents[index].access = before;
        }));
    }

    /// Makes a new node known, and known to its children.
    pub(crate) fn add_node(&mut self, node: &Arc<Node>) {
        for section in self.topology.global_sections() {
            section.cover_node(node);
        }
        self.added.insert(Arc::as_ptr(node));
        let name = node.name().to_owned();
        self.topology.nodes.insert(name.clone(), Arc::clone(node));
        self.undo.push(Box::new(move |topology| {
            topology.nodes.remove(&name);
        }));
        for (role, child) in node.children() {
            self.attach(&child, Parent::node(node), role, Access::NONE);
        }
        self.touched.push(Arc::clone(node));
    }

    /// Removes a node without parents, and the implicit ones below it.
    pub(crate) fn remove_node(&mut self, node: &Arc<Node>) {
        if !self.topology.contains(node) {
            // It has gone before, and its name may belong to somebody else by now.
            return;
        }
        self.topology.nodes.remove(node.name());
        let again = Arc::clone(node);
        self.undo.push(Box::new(move |topology| {
            topology.nodes.insert(again.name().to_owned(), again);
        }));
        for (role, child) in node.children() {
            self.detach(&child, &Parent::node(node), role);
        }
    }

    /// Makes a new backend known and puts it above its root.
    pub(super) fn add_backend(&mut self, backend: &Arc<Backend>) {
        self.topology.backends.push(Arc::clone(backend));
        if self.topology.stopped {
            backend.stop();
        }
        let gone = Arc::clone(backend);
        self.undo.push(Box::new(move |topology| {
            topology.backends.retain(|other| !Arc::ptr_eq(other, &gone));
        }));
        match backend.node() {
            Some(root) => self.attach(&root, Parent::backend(backend), ROOT, backend.access()),
            // There is nothing below it whose sections could cover it.
            None => {
                for section in self.topology.global_sections() {
                    section.cover(backend);
                }
            }
        }
    }

    /// Points the disks and nodes above `from` to `to`; jobs and claims stay.
    ///
    /// The caller holds sections of both.
    ///
    /// # Errors
    /// [`BlockError::Cycle`].
    pub(crate) fn move_parents(&mut self, from: &Arc<Node>, to: &Arc<Node>) -> Result<()> {
        self.move_edges(from, to, from.edges_above())
    }

    /// The same for some of the edges above `from`.
    ///
    /// # Errors
    /// [`BlockError::Cycle`].
    pub(crate) fn move_edges(
        &mut self,
        from: &Arc<Node>,
        to: &Arc<Node>,
        edges: Vec<ParentEdge>,
    ) -> Result<()> {
        for edge in edges {
            if !edge.parent.follows() {
                continue;
            }
            match &edge.parent {
                Parent::Backend(backend) => {
                    if let Some(backend) = backend.upgrade() {
                        self.change_root(&backend, Some(to));
                    }
                }
                Parent::Node(above) => {
                    if let Some(above) = above.upgrade() {
                        check_acyclic(&above, to)?;
                        self.point(&above, edge.role, from, to)?;
                    }
                }
                Parent::Job(_) | Parent::Claim(_) => {}
            }
            self.detach(from, &edge.parent, edge.role);
            self.attach(to, edge.parent, edge.role, edge.access);
        }
        Ok(())
    }

    /// Gives `above` another child in the place of the one it has there.
    ///
    /// The caller holds sections of both children.
    ///
    /// # Errors
    /// [`BlockError::Cycle`].
    pub(crate) fn set_child(
        &mut self,
        above: &Arc<Node>,
        role: Role,
        to: &Arc<Node>,
    ) -> Result<()> {
        check_acyclic(above, to)?;
        let Some(from) = above.child(role) else {
            return Ok(());
        };
        self.point(above, role.name(), &from, to)?;
        self.detach(&from, &Parent::node(above), role.name());
        self.attach(to, Parent::node(above), role.name(), Access::NONE);
        // What it does with the new child follows from what is done with it.
        self.touched.push(Arc::clone(above));
        Ok(())
    }

    /// Gives an overlay without a backing image one.
    ///
    /// The caller holds sections of both.
    ///
    /// # Errors
    /// [`BlockError::Cycle`].
    pub(crate) fn set_backing(&mut self, overlay: &Arc<Node>, image: &Arc<Node>) -> Result<()> {
        check_acyclic(overlay, image)?;
        let set = |overlay: &Node, image| {
            if let Some(edge) = overlay.driver().backing() {
                edge.set(image);
            }
        };
        set(overlay, Some(Arc::clone(image)));
        let again = Arc::clone(overlay);
        self.undo.push(Box::new(move |_| set(&again, None)));
        let role = Role::Backing.name();
        self.attach(image, Parent::node(overlay), role, Access::NONE);
        // What it does with the image follows from what is done with it.
        self.touched.push(Arc::clone(overlay));
        Ok(())
    }

    /// Takes the backing image off an overlay, if it has one.
    ///
    /// The caller holds sections of both.
    pub(crate) fn clear_backing(&mut self, overlay: &Arc<Node>) {
        let Some(edge) = overlay.driver().backing() else {
            return;
        };
        let Some(image) = edge.node() else { return };
        edge.set(None);
        let (again, below) = (Arc::clone(overlay), Arc::clone(&image));
        self.undo.push(Box::new(move |_| {
            if let Some(edge) = again.driver().backing() {
                edge.set(Some(below));
            }
        }));
        self.detach(&image, &Parent::node(overlay), Role::Backing.name());
    }

    /// Marks a node as read-only or not; what its parents do is checked against that.
    pub(crate) fn set_read_only(&mut self, node: &Arc<Node>, read_only: bool) {
        let before = node.is_read_only();
        node.set_read_only(read_only);
        self.touched.push(Arc::clone(node));
        let node = Arc::clone(node);
        self.undo
            .push(Box::new(move |_| node.set_read_only(before)));
    }

    /// Says that the node has another size after this change, which `operation` makes: those above it must share
    /// resizing. What is below it keeps its size.
    pub(super) fn resizes(&mut self, node: &Arc<Node>, operation: &'static str) {
        self.resized.push((Arc::clone(node), operation));
        self.touched.push(Arc::clone(node));
    }

    /// Whether this change adds the node.
    pub(super) fn adds(&self, node: &Arc<Node>) -> bool {
        self.added.contains(&Arc::as_ptr(node))
    }

    /// Gives one node another home.
    pub(super) fn set_home(&mut self, node: &Arc<Node>, home: Option<Home>) {
        let before = std::mem::replace(&mut node.state.lock().home, home);
        self.left.push(before.clone());
        let node = Arc::clone(node);
        self.undo
            .push(Box::new(move |_| node.state.lock().home = before));
    }

    /// Points `backend` to another node, or to none. The caller holds its section.
    pub(super) fn change_root(&mut self, backend: &Arc<Backend>, to: Option<&Arc<Node>>) {
        let from = backend.node();
        backend.set_root(to.map(Arc::clone));
        let backend = Arc::clone(backend);
        self.undo.push(Box::new(move |_| backend.set_root(from)));
    }

    /// # Errors
    /// Somebody relies on where the edge leads.
    fn point(
        &mut self,
        above: &Arc<Node>,
        role: &'static str,
        from: &Arc<Node>,
        to: &Arc<Node>,
    ) -> Result<()> {
        if above.is_frozen(role) {
            let from = from.name();
            return Err(BlockError::Refused(format!(
                "Cannot change '{role}' link to '{from}'"
            )));
        }
        set_edge(above, role, from, to);
        let (above, from, to) = (Arc::clone(above), Arc::clone(from), Arc::clone(to));
        self.undo
            .push(Box::new(move |_| set_edge(&above, role, &to, &from)));
        Ok(())
    }

    /// What covers `node` covers a new parent too, before it can send anything.
    fn cover(&mut self, node: &Arc<Node>, parent: &Parent) {
        let mut sections = sections_at_or_below(node);
        if !matches!(parent, Parent::Node(_)) {
            sections.extend(self.topology.global_sections());
        }
        for section in sections {
            match parent {
                Parent::Node(above) => {
                    if let Some(above) = above.upgrade() {
                        cover_above(&above, &section);
                    }
                }
                Parent::Backend(backend) => {
                    if let Some(backend) = backend.upgrade() {
                        section.cover(&backend);
                    }
                }
                Parent::Job(job) => {
                    if let Some(job) = job.upgrade() {
                        section.cover_job(&job);
                    }
                }
                Parent::Claim(_) => {}
            }
        }
    }

    /// Makes the change final.
    ///
    /// # Errors
    /// [`BlockError::Conflict`], [`BlockError::ReadOnly`], a graph that is too deep, homes that can't
    /// become one, or a lock that somebody else stands against. Then all is as before the transaction.
    pub(crate) fn commit(self) -> Result<()> {
        self.commit_with(|| {})
    }

    /// The same; `finally` makes its own part of the change under the lock, once nothing can be
    /// refused any more.
    pub(crate) fn commit_with(mut self, finally: impl FnOnce()) -> Result<()> {
        self.remove_abandoned();
        for (above, below) in &self.joined {
            check_depth(above, below)?;
        }
        self.share_homes()?;
        let plan = self.plan()?;
        apply(&plan)?;
        self.undo.clear();
        finally();
        Ok(())
    }

    fn remove_abandoned(&mut self) {
        // Removing one may abandon those below it.
        while let Some(node) = self.abandoned.pop() {
            let unused = node.state.lock().parents.is_empty();
            if node.owner() == Owner::Implicit && unused {
                self.remove_node(&node);
            }
        }
    }

    /// What each node will be used for, parents before children.
    fn plan(&mut self) -> Result<Vec<Planned>> {
        let mut plan = Vec::new();
        for node in parents_first(&self.touched) {
            let (before, access) = {
                let state = node.state.lock();
                let sum = cumulative(node.name(), &state.parents)?;
                let resized = self.resized.iter();
                for (_, operation) in resized.filter(|(other, _)| Arc::ptr_eq(other, &node)) {
                    check_resizable(node.name(), &state.parents, operation)?;
                }
                (state.access, sum)
            };
            if node.is_read_only() && access.used.intersects(Permissions::CHANGES) {
                let name = node.name().to_owned();
                return Err(if before.used.intersects(Permissions::CHANGES) {
                    BlockError::ReadOnlyInUse(name)
                } else {
                    BlockError::ReadOnly(name)
                });
            }
            for (role, child) in node.children_by_role() {
                let below = node.driver().child_access(role, access);
                self.pass_down(&node, role, &child, below);
            }
            // Whatever those above ask, a disk that stands on this very node included.
            let access = if node.state.lock().force_share {
                Access {
                    shared: Permissions::all(),
                    ..access
                }
            } else {
                access
            };
            plan.push(Planned {
                node,
                before,
                access,
            });
        }
        Ok(plan)
    }

    fn pass_down(&mut self, node: &Arc<Node>, role: Role, child: &Arc<Node>, mut access: Access) {
        let parent = Parent::node(node);
        let index = {
            let state = child.state.lock();
            if state.force_share {
                access.shared = Permissions::all();
            }
            state.parents.iter().position(|other| {
                other.parent.is_same(&parent) && other.role == role.name() && other.access != access
            })
        };
        if let Some(index) = index {
            self.set_access_at(child, index, access);
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        while let Some(undo) = self.undo.pop() {
            undo(&mut self.topology);
        }
    }
}

/// The role of a backend's root.
pub(crate) const ROOT: &str = "root";

/// What one node will be used for.
struct Planned {
    node: Arc<Node>,
    before: Access,
    access: Access,
}

/// Takes the locks of all, then gives back those that are not needed any more.
fn apply(plan: &[Planned]) -> Result<()> {
    let changed = || {
        plan.iter()
            .filter(|planned| planned.before != planned.access)
    };
    for (taken, planned) in changed().enumerate() {
        if let Err(error) = planned.node.driver().prepare_access(planned.access) {
            for planned in changed().take(taken + 1) {
                planned.node.driver().finish_access(planned.before);
            }
            return Err(error);
        }
    }
    for planned in changed() {
        planned.node.driver().finish_access(planned.access);
        planned.node.state.lock().access = planned.access;
    }
    Ok(())
}

fn take_edge(node: &Arc<Node>, parent: &Parent, role: &'static str) -> Option<(usize, ParentEdge)> {
    let mut state = node.state.lock();
    let index = state
        .parents
        .iter()
        .rposition(|edge| edge.parent.is_same(parent) && edge.role == role)?;
    Some((index, state.parents.remove(index)))
}

fn set_edge(above: &Node, role: &'static str, from: &Arc<Node>, to: &Arc<Node>) {
    if let Some(edge) = above.driver().backing()
        && role == Role::Backing.name()
    {
        edge.set(Some(Arc::clone(to)));
    }
    for edge in above.driver().children() {
        if edge.role().name() == role && Arc::ptr_eq(&edge.node(), from) {
            edge.set(Arc::clone(to));
        }
    }
}

/// # Errors
/// [`BlockError::Cycle`], if `above` is `below` or stands below it.
pub(super) fn check_acyclic(above: &Arc<Node>, below: &Arc<Node>) -> Result<()> {
    if parents_first(std::slice::from_ref(below))
        .iter()
        .any(|node| Arc::ptr_eq(node, above))
    {
        return Err(BlockError::Cycle {
            child: below.name().to_owned(),
            parent: above.name().to_owned(),
        });
    }
    Ok(())
}

/// # Errors
/// The longest way through the edge from `above` to `below` is longer than [`MAX_DEPTH`].
fn check_depth(above: &Arc<Node>, below: &Arc<Node>) -> Result<()> {
    let up = longest(above, &Node::nodes_above, &mut HashMap::new());
    let down = longest(below, &nodes_below, &mut HashMap::new());
    if up + down > MAX_DEPTH {
        return Err(BlockError::Refused(format!(
            "Node '{}' can't be put above '{}': the graph would be deeper than {MAX_DEPTH} nodes",
            above.name(),
            below.name()
        )));
    }
    Ok(())
}

fn nodes_below(node: &Node) -> Vec<Arc<Node>> {
    let children = node.children_by_role().into_iter();
    children.map(|(_, child)| child).collect()
}

/// Nodes on the longest way from `node`, which is one of them.
fn longest(
    node: &Arc<Node>,
    next: &impl Fn(&Node) -> Vec<Arc<Node>>,
    known: &mut HashMap<*const Node, usize>,
) -> usize {
    if let Some(known) = known.get(&Arc::as_ptr(node)) {
        return *known;
    }
    let further = next(node);
    let further = further.iter().map(|node| longest(node, next, known)).max();
    let length = 1 + further.unwrap_or(0);
    known.insert(Arc::as_ptr(node), length);
    length
}

/// `tops` and everything below them, each once and after all of its parents that are among them.
pub(super) fn parents_first(tops: &[Arc<Node>]) -> Vec<Arc<Node>> {
    fn visit(node: &Arc<Node>, seen: &mut HashSet<*const Node>, order: &mut Vec<Arc<Node>>) {
        if !seen.insert(Arc::as_ptr(node)) {
            return;
        }
        for child in nodes_below(node) {
            visit(&child, seen, order);
        }
        order.push(Arc::clone(node));
    }
    let (mut seen, mut order) = (HashSet::new(), Vec::new());
    for top in tops {
        visit(top, &mut seen, &mut order);
    }
    order.reverse();
    order
}
