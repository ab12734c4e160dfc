//! [`Edge`] and [`BackingEdge`]: the ways from a driver to the nodes below it.
//!
//! Requests read an edge without a lock; the graph re-points it inside a drained section, under its
//! own lock. An edge may be *frozen* by somebody who relies on where it leads: then the graph
//! refuses to re-point it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use sluice_aio::IoBuffer;
use sluice_aio::current::Transfer;

use crate::node::Node;

/// Role of an edge, as in QEMU's graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The protocol node below a format (`file`).
    File,
    /// The node that a filter filters (`image` or `file` by driver; `filtered` in the design).
    Filtered,
    /// Where a filter copies data to (`target`).
    Target,
    /// The image that shows where a format holds nothing itself (`backing`).
    Backing,
}

impl Role {
    /// The edge's name in queries.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Filtered => "image",
            Self::Target => "target",
            Self::Backing => "backing",
        }
    }
}

/// How many rely on where an edge leads.
#[derive(Debug, Default)]
struct Frozen(AtomicUsize);

impl Frozen {
    fn freeze(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn thaw(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_frozen(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// The way from a driver to a child. Re-pointed only inside a drained section of the child.
#[derive(Debug)]
pub struct Edge {
    role: Role,
    target: ArcSwap<Node>,
    frozen: Frozen,
}

impl Edge {
    /// An edge to `target`.
    #[must_use]
    pub fn new(role: Role, target: Arc<Node>) -> Self {
        Self {
            role,
            target: ArcSwap::new(target),
            frozen: Frozen::default(),
        }
    }

    /// Its role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The node below, now.
    #[must_use]
    pub fn node(&self) -> Arc<Node> {
        self.target.load_full()
    }

    /// The size in bytes of the node below, now.
    pub(crate) fn len(&self) -> u64 {
        self.target.load().len()
    }

    /// [`Node::transfer`] of the node below, of which nobody holds on to anything then.
    pub(crate) fn transfer(&self, offset: u64, buffer: IoBuffer) -> Result<Transfer, IoBuffer> {
        self.target.load().transfer(offset, buffer)
    }

    pub(crate) fn set(&self, target: Arc<Node>) {
        self.target.store(target);
    }
}

/// The way from a format to its backing image, of which there may be none.
#[derive(Debug, Default)]
pub struct BackingEdge {
    target: ArcSwapOption<Node>,
    frozen: Frozen,
}

impl BackingEdge {
    /// The backing image, now.
    #[must_use]
    pub fn node(&self) -> Option<Arc<Node>> {
        self.target.load_full()
    }

    pub(crate) fn set(&self, target: Option<Arc<Node>>) {
        self.target.store(target);
    }
}

impl Node {
    /// The edge by which this node shows what is below it: a filter's to what it filters, a
    /// format's to its backing image.
    fn chain_link(&self) -> Option<(&Frozen, Role, Arc<Node>)> {
        let driver = self.driver();
        if let Some(edge) = driver.filtered().filter(|_| driver.is_filter()) {
            return Some((&edge.frozen, edge.role, edge.node()));
        }
        let edge = driver.backing()?;
        Some((&edge.frozen, Role::Backing, edge.node()?))
    }

    /// Whether the edge of that role must stay as it is.
    pub(crate) fn is_frozen(&self, role: &str) -> bool {
        self.chain_link()
            .is_some_and(|(frozen, present, _)| present.name() == role && frozen.is_frozen())
    }
}

/// The edges of a backing chain from one node down to another, which stay as they are until this is
/// dropped.
#[derive(Debug)]
pub(crate) struct FrozenChain {
    nodes: Vec<Arc<Node>>,
}

impl FrozenChain {
    /// Freezes the edges from `top` down to `bottom`; none if `bottom` is not in the chain. Called
    /// under the graph's lock.
    pub(crate) fn new(top: &Arc<Node>, bottom: &Arc<Node>) -> Option<Self> {
        let mut nodes = Vec::new();
        let mut node = Arc::clone(top);
        while !Arc::ptr_eq(&node, bottom) {
            let (_, _, below) = node.chain_link()?;
            nodes.push(std::mem::replace(&mut node, below));
        }
        for node in &nodes {
            if let Some((frozen, ..)) = node.chain_link() {
                frozen.freeze();
            }
        }
        Some(Self { nodes })
    }

    /// Freezes the edge that leads to the chain's upper end as well; it goes together with it.
    pub(crate) fn freeze_edge(&self, edge: &Edge) {
        edge.frozen.freeze();
    }
}

impl Drop for FrozenChain {
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Some((frozen, ..)) = node.chain_link() {
                frozen.thaw();
            }
        }
    }
}
