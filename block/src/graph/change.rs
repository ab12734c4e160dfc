//! Changes of edges, made inside drained sections: inserting a filter, swapping a root.

use std::sync::{Arc, Weak};

use super::{Graph, Topology, build};
use crate::drain::{cover_above, sections_at_or_below};
use crate::driver::Driver;
use crate::error::{BlockError, Result};
use crate::job::Job;
use crate::node::{Node, Owner, Parent};

impl Graph {
    /// Puts a filter above `below`: all its backends and parent nodes then see the filter.
    ///
    /// The caller holds a section of `below`.
    ///
    /// # Errors
    /// The name is malformed or taken.
    pub(crate) fn insert_filter(
        &self,
        name: Option<&str>,
        below: &Arc<Node>,
        driver: Box<dyn Driver>,
    ) -> Result<Arc<Node>> {
        let mut topology = self.topology();
        let name = match name {
            Some(name) => {
                topology.check_new_node(name)?;
                name.to_owned()
            }
            None => topology.made_up_name(),
        };
        let filter = Node::new(name, driver, below.is_read_only(), Owner::Implicit);
        filter.state.lock().writer = below.writer();
        move_parents(below, &filter, |parent| !matches!(parent, Parent::Job(_)));
        build::add(&mut topology, &filter);
        Ok(filter)
    }

    /// Points everything above `old` to `new`; `old` keeps its jobs.
    ///
    /// The caller holds sections of both. Refuses what would close a circle.
    ///
    /// # Errors
    /// [`BlockError::Cycle`]; then nothing was changed.
    pub(crate) fn replace_node(&self, old: &Arc<Node>, new: &Arc<Node>) -> Result<()> {
        let _topology = self.topology();
        for parent in old.parents() {
            if let Parent::Node(above) = &parent
                && let Some(above) = above.upgrade()
                && is_at_or_below(&above, new)
            {
                return Err(BlockError::Cycle {
                    child: new.name().to_owned(),
                    parent: above.name().to_owned(),
                });
            }
        }
        move_parents(old, new, |parent| !matches!(parent, Parent::Job(_)));
        // A parent that came from an undrained node is covered by the sections of the new one.
        for section in sections_at_or_below(new) {
            cover_above(new, &section);
        }
        Ok(())
    }

    /// Registers a job as parent of `node`: it rests while the node is drained.
    pub(crate) fn add_job_parent(&self, node: &Arc<Node>, job: &Arc<Job>) {
        let mut topology = self.topology();
        for section in sections_at_or_below(node)
            .into_iter()
            .chain(topology.global_sections())
        {
            section.cover_job(job);
        }
        node.state
            .lock()
            .parents
            .push(Parent::Job(Arc::downgrade(job)));
    }

    /// Takes a job off `node`; an implicit node that nobody uses any more goes too.
    pub(crate) fn remove_job_parent(&self, node: &Arc<Node>, job: &Arc<Job>) {
        let mut topology = self.topology();
        drop_parent(&mut topology, node, &Parent::Job(Arc::downgrade(job)));
    }

    /// Removes a node that has no parents and is not the monitor's.
    pub(crate) fn remove_if_unused(&self, node: &Arc<Node>) {
        let mut topology = self.topology();
        remove_if_unused(&mut topology, node);
    }
}

/// Moves those parents of `from` that `which` picks to `to`, keeping their order.
fn move_parents(from: &Arc<Node>, to: &Arc<Node>, which: impl Fn(&Parent) -> bool) {
    let (moving, staying): (Vec<_>, Vec<_>) = std::mem::take(&mut from.state.lock().parents)
        .into_iter()
        .partition(which);
    from.state.lock().parents = staying;
    for parent in &moving {
        match parent {
            Parent::Backend(backend) => {
                if let Some(backend) = backend.upgrade() {
                    backend.set_root(Some(Arc::clone(to)));
                }
            }
            Parent::Node(above) => {
                if let Some(above) = above.upgrade() {
                    for edge in above.driver().children() {
                        if Arc::ptr_eq(&edge.node(), from) {
                            edge.set(Arc::clone(to));
                        }
                    }
                }
            }
            Parent::Job(_) => {}
        }
    }
    to.state.lock().parents.extend(moving);
}

fn is_at_or_below(node: &Arc<Node>, top: &Arc<Node>) -> bool {
    Arc::ptr_eq(node, top)
        || top
            .children()
            .iter()
            .any(|(_, child)| is_at_or_below(node, child))
}

fn is_same(one: &Parent, other: &Parent) -> bool {
    match (one, other) {
        (Parent::Node(one), Parent::Node(other)) => Weak::ptr_eq(one, other),
        (Parent::Backend(one), Parent::Backend(other)) => Weak::ptr_eq(one, other),
        (Parent::Job(one), Parent::Job(other)) => Weak::ptr_eq(one, other),
        _ => false,
    }
}

/// Takes one parent off `node`, and the node out of the graph if it was only there for it.
pub(super) fn drop_parent(topology: &mut Topology, node: &Arc<Node>, parent: &Parent) {
    {
        let mut state = node.state.lock();
        if let Some(index) = state
            .parents
            .iter()
            .position(|other| is_same(other, parent))
        {
            state.parents.remove(index);
        }
    }
    remove_if_unused(topology, node);
}

fn remove_if_unused(topology: &mut Topology, node: &Arc<Node>) {
    if node.owner() == Owner::Implicit && node.parents().is_empty() {
        remove_node(topology, node);
    }
}

/// Removes a node without parents, and the implicit ones below it.
pub(super) fn remove_node(topology: &mut Topology, node: &Arc<Node>) {
    if !topology.contains(node) {
        // It has gone before, and its name may belong to somebody else by now.
        return;
    }
    topology.nodes.remove(node.name());
    for (_, child) in node.children() {
        drop_parent(topology, &child, &Parent::Node(Arc::downgrade(node)));
    }
}
