//! `blockdev-reopen`: nodes go on with other options, all of those named or none.
//!
//! First everything that can fail outside of the graph is made ready (files opened for writing),
//! then the nodes are drained, and one transaction changes read-only flags and children together.
//! What an option list leaves out gets its default, as when a node is added. Options that a driver
//! keeps from its opening on are refused by name.

use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use serde_json::{Map, Value};

use super::Graph;
use super::bitmaps::below_implicit_filters;
use super::build::Inherited;
use super::transaction::parents_first;
use crate::driver::{Edge, Reopened, Reopening, Role};
use crate::error::{BlockError, Result};
use crate::io::IoPolicy;
use crate::node::Node;
use crate::options::{BlockdevOptions, ChildRef, Discard};

/// Members that are no driver's own and may change, or are compared elsewhere.
const COMMON: &[&str] = &[
    "driver",
    "node-name",
    "read-only",
    "auto-read-only",
    "active",
    "cache",
    "discard",
    "detect-zeroes",
];

/// One node's part, ready to be made.
struct Plan {
    node: Arc<Node>,
    /// The options from which this plan was made: if they have changed since, it is void.
    before: BlockdevOptions,
    options: BlockdevOptions,
    policy: IoPolicy,
    reopened: Reopened,
    /// The new child, if another is asked for.
    child: Option<(Role, Arc<Node>)>,
}

impl Plan {
    /// # Errors
    /// The node would show other bytes, or the same from elsewhere, and a job relies on what it shows: that another
    /// child holds the same can't be known. `resized` says whether it is of another size afterwards.
    fn check_jobs(&self, resized: bool) -> Result<()> {
        if resized || self.child.is_some() || self.reopened.moves {
            self.node.check_may_show_other_data()?;
        }
        Ok(())
    }
}

impl Graph {
    /// Changes the options of existing nodes, found by their `node-name`.
    ///
    /// Call it from a task that holds no token of a disk above the nodes. Either all is changed or
    /// nothing.
    ///
    /// # Errors
    /// No such node, an option that can't change, a child that can't be had, a conflict with
    /// those who use the nodes, or a flush that fails.
    pub async fn reopen(&self, list: &[BlockdevOptions]) -> Result<()> {
        let mut plans = Vec::new();
        for options in list {
            let name = options
                .node_name()
                .ok_or_else(|| BlockError::Refused("node-name not specified".to_owned()))?;
            let node = self.node(name)?;
            self.plan(node, options, Inherited::default(), &mut plans)
                .await?;
        }
        let mut changed = Vec::new();
        for plan in &plans {
            changed.push(Arc::clone(&plan.node));
            changed.extend(plan.child.as_ref().map(|(_, to)| Arc::clone(to)));
        }
        let _section = self.drain_nodes(&changed, "reopen").await;
        flush_before(&plans).await?;
        self.make(plans)
    }

    /// Checks the options of one node and of the children described with it, and makes ready what
    /// they need.
    fn plan<'a>(
        &'a self,
        node: Arc<Node>,
        options: &'a BlockdevOptions,
        inherited: Inherited,
        plans: &'a mut Vec<Plan>,
    ) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if plans.iter().any(|plan| Arc::ptr_eq(&plan.node, &node)) {
                return Err(BlockError::Refused(format!(
                    "Node '{}' is given more than once",
                    node.name()
                )));
            }
            let before = node.state.lock().options.clone();
            let Some(before) = before.map(|before| *before) else {
                return Err(BlockError::FixedOption("driver".to_owned()));
            };
            check_fixed(&before, options, node.driver().changeable_options())?;
            let settings = inherited.overridden_by(options.common());
            settings.check()?;
            let child = match options.child() {
                None => None,
                Some((role, child)) => {
                    let child_there = node
                        .child(role)
                        .ok_or_else(|| BlockError::FixedOption(child_option(options).to_owned()))?;
                    // The operator does not know of a job's filter, which stays where it is.
                    let present = below_implicit_filters(Arc::clone(&child_there));
                    match child {
                        ChildRef::Name(name)
                            if [&present, &child_there]
                                .iter()
                                .any(|node| name == node.name()) =>
                        {
                            None
                        }
                        ChildRef::Name(name) => {
                            node.check_may_show_other_data()?;
                            let missing = |_| BlockError::ChildNotFound(name.clone());
                            let to = self.node(name).map_err(missing)?;
                            self.topology().check_adoptable(&to)?;
                            Some((role, to))
                        }
                        ChildRef::Options(nested) => {
                            if nested
                                .node_name()
                                .is_some_and(|name| name != present.name())
                            {
                                let option = format!("{}.node-name", child_option(options));
                                return Err(BlockError::FixedOption(option));
                            }
                            self.plan(present, nested, settings, plans).await?;
                            None
                        }
                    }
                }
            };
            let detect_zeroes = options.common().detect_zeroes.unwrap_or_default();
            let policy = IoPolicy::new(settings.discard, detect_zeroes)?;
            let below = match &child {
                Some((_, to)) => Some(Arc::clone(to)),
                None => node.primary_child(),
            };
            let below = below.map_or(0, |below| len_after(&below, plans));
            let wanted = Reopening {
                options,
                read_only: settings.read_only,
                auto_read_only: settings.auto_read_only,
                direct: settings.direct(),
                no_flush: settings.no_flush(),
                unmap: settings.discard == Discard::Unmap,
                groups: &self.throttle_groups,
                child_size: below,
            };
            let reopened = node.driver().prepare_reopen(wanted).await?;
            plans.push(Plan {
                node: Arc::clone(&node),
                before,
                options: options.clone(),
                policy,
                reopened,
                child,
            });
            let resized = len_after(&node, plans) != node.len();
            let plan = plans.last();
            plan.map_or(Ok(()), |plan| plan.check_jobs(resized))
        })
    }

    fn make(&self, plans: Vec<Plan>) -> Result<()> {
        let mut change = self.transaction();
        for plan in &plans {
            change.check_present(&plan.node)?;
            if plan.node.state.lock().options.as_deref() != Some(&plan.before) {
                return Err(BlockError::Refused(format!(
                    "Node '{}' was reopened by somebody else meanwhile",
                    plan.node.name()
                )));
            }
            let resized = len_after(&plan.node, &plans) != plan.node.len();
            // Again: a job may have taken it while the sections waited for its requests.
            plan.check_jobs(resized)?;
            if resized {
                change.resizes(&plan.node, "the command blockdev-reopen");
            }
        }
        for plan in &plans {
            if let Some((role, to)) = &plan.child {
                change.check_present(to)?;
                change.set_child(&plan.node, *role, to)?;
            }
            let read_only = is_read_only_after(&plan.node, &plans);
            change.set_read_only(&plan.node, read_only);
        }
        change.commit_with(|| {
            for plan in plans {
                plan.node.set_policy(plan.policy);
                plan.node.driver().commit_reopen(plan.reopened);
                plan.node.refresh_limits();
                plan.node.state.lock().options = Some(Box::new(plan.options));
            }
        })
    }
}

/// Makes durable what was written to nodes that shall not be written any more, or go on with another
/// opening of their file, and to those below them: nobody flushes a read-only node, or a child that its
/// parent has left, and a file's failed write-back is told to the opening that wrote. Inside the nodes'
/// sections, so nothing is written between this and the change.
///
/// # Errors
/// The first failure; the graph is as it was.
async fn flush_before(plans: &[Plan]) -> Result<()> {
    let ends = |plan: &&Plan| {
        let closes = !plan.node.is_read_only() && is_read_only_after(&plan.node, plans);
        closes || plan.child.is_some() || plan.reopened.exchanges
    };
    let tops: Vec<_> = plans
        .iter()
        .filter(ends)
        .map(|plan| Arc::clone(&plan.node))
        .collect();
    // Those below by themselves too: a node may flush only one of its children, and none if it is
    // read-only itself.
    for node in parents_first(&tops) {
        node.flush()
            .await
            .map_err(|error| BlockError::flushing(&error))?;
    }
    Ok(())
}

/// Bytes of a node after the change. Before any step of it was made.
fn len_after(node: &Arc<Node>, plans: &[Plan]) -> u64 {
    let Some(plan) = plans.iter().find(|plan| Arc::ptr_eq(&plan.node, node)) else {
        return node.len();
    };
    let Some(filtered) = node.driver().filtered().map(Edge::node) else {
        return node.len();
    };
    let below = match &plan.child {
        // As it is: if its own size changes too, that is asked of all who will be above it. A circle is found later.
        Some((_, to)) => to.len(),
        None => len_after(&filtered, plans),
    };
    plan.reopened.change.len(below).unwrap_or(below)
}

/// A node can be written if it shall be and everything below it can.
fn is_read_only_after(node: &Arc<Node>, plans: &[Plan]) -> bool {
    let plan = plans.iter().find(|plan| Arc::ptr_eq(&plan.node, node));
    let Some(plan) = plan else {
        return node.is_read_only();
    };
    let children = node.driver().children();
    plan.reopened.read_only
        || children
            .iter()
            .any(|edge| is_read_only_after(&edge.node(), plans))
}

/// # Errors
/// [`BlockError::FixedOption`] names the first that differs and is not one of those that may.
fn check_fixed(
    before: &BlockdevOptions,
    after: &BlockdevOptions,
    changeable: &[&str],
) -> Result<()> {
    let (before, after) = (members(before), members(after));
    if before.get("driver") != after.get("driver") {
        return Err(BlockError::FixedOption("driver".to_owned()));
    }
    let names = before.keys().chain(after.keys());
    for name in names {
        let may_change = [COMMON, CHILDREN, changeable]
            .iter()
            .any(|names| names.contains(&name.as_str()));
        if !may_change && before.get(name) != after.get(name) {
            return Err(BlockError::FixedOption(name.clone()));
        }
    }
    Ok(())
}

/// Options that name children.
const CHILDREN: &[&str] = &["file", "image"];

fn child_option(options: &BlockdevOptions) -> &'static str {
    let members = members(options);
    CHILDREN
        .iter()
        .find(|name| members.contains_key(**name))
        .copied()
        .unwrap_or("driver")
}

fn members(options: &BlockdevOptions) -> Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(members)) => members,
        // Options are structs of plain values: there is nothing that JSON can't hold.
        _ => Map::new(),
    }
}
