//! Changes of edges, made inside drained sections: inserting a filter, swapping a root.

use std::sync::Arc;

use super::Graph;
use super::parent::Parent;
use crate::driver::Driver;
use crate::error::{BlockError, Result};
use crate::job::Job;
use crate::node::{Node, Owner};

impl Graph {
    /// Puts a filter above `below`: all its backends and parent nodes then see the filter. Without
    /// a name given it is an implicit one, which queries do not show.
    ///
    /// The caller holds a section of `below`.
    ///
    /// # Errors
    /// The name is malformed or taken, or the permissions of those above do not allow it: then `job` is named, since there
    /// is no such filter.
    pub(crate) fn insert_filter(
        &self,
        job: &str,
        name: Option<&str>,
        below: &Arc<Node>,
        driver: Box<dyn Driver>,
    ) -> Result<Arc<Node>> {
        let mut change = self.transaction();
        let is_implicit = name.is_none();
        let name = match name {
            Some(name) => {
                change.topology().check_new_node(name)?;
                name.to_owned()
            }
            None => change.topology().made_up_name(),
        };
        let filter = Node::new(name, driver, below.is_read_only(), Owner::Implicit);
        filter.state.lock().implicit_filter = is_implicit;
        change.move_parents(below, &filter)?;
        change.add_node(&filter);
        let done = change.commit();
        done.map_err(|error| error.naming_user(&Parent::node(&filter).description(), job))?;
        Ok(filter)
    }

    /// Points everything above `old` to `new`; `old` keeps its jobs.
    ///
    /// The caller holds sections of both. Refuses what would close a circle.
    ///
    /// # Errors
    /// [`BlockError::Cycle`](crate::BlockError::Cycle), or a conflict of permissions; then nothing
    /// was changed.
    pub(crate) fn replace_node(&self, old: &Arc<Node>, new: &Arc<Node>) -> Result<()> {
        let mut change = self.transaction();
        change.move_parents(old, new)?;
        change.commit()
    }

    /// The same for the filter of a job, which stays and guards nothing any more.
    ///
    /// # Errors
    /// As [`replace_node`](Self::replace_node).
    pub(crate) fn replace_filter(&self, filter: &Arc<Node>, new: &Arc<Node>) -> Result<()> {
        let mut change = self.transaction();
        change.move_parents(filter, new)?;
        change.leave_to_job(filter);
        change.commit()
    }

    /// Makes a node read-only or not.
    ///
    /// # Errors
    /// What is done with it does not allow that.
    pub(crate) fn set_read_only(&self, node: &Arc<Node>, read_only: bool) -> Result<()> {
        let mut change = self.transaction();
        change.set_read_only(node, read_only);
        change.commit()
    }

    /// Takes a job off `node`; an implicit node that nobody uses any more goes too.
    pub(crate) fn remove_job_parent(&self, node: &Arc<Node>, job: &Arc<Job>, role: &'static str) {
        self.let_go(node, &Parent::job(job), role);
    }

    /// Takes a parent off `node`. Using less is never refused.
    pub(crate) fn let_go(&self, node: &Arc<Node>, parent: &Parent, role: &'static str) {
        let mut change = self.transaction();
        change.detach(node, parent, role);
        if let Err(error) = change.commit() {
            tracing::error!(node = node.name(), %error, "a parent can't be taken off its node");
        }
    }

    /// For a job's start that has waited for its section: the node of a disk that was unplugged meanwhile has gone with it.
    ///
    /// # Errors
    /// It has; `device` is what the operator called it.
    pub(crate) fn check_has(&self, node: &Arc<Node>, device: &str) -> Result<()> {
        let is_there = self.transaction().check_present(node);
        is_there.map_err(|_| BlockError::DeviceNotFound(device.to_owned()))
    }

    /// Removes a node that has no parents and is not the monitor's.
    pub(crate) fn remove_if_unused(&self, node: &Arc<Node>) {
        let unused = node.owner() == Owner::Implicit && node.parents().is_empty();
        if !unused {
            return;
        }
        let mut change = self.transaction();
        change.remove_node(node);
        if let Err(error) = change.commit() {
            tracing::error!(node = node.name(), %error, "an unused node can't be removed");
        }
    }
}
