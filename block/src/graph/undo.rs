//! [`Undo`]: what a command has done to the graph for a job that does not stand yet.

use std::sync::Arc;

use super::Graph;
use super::parent::Parent;
use super::transaction::Transaction;
use crate::driver::Driver;
use crate::error::Result;
use crate::home::Home;
use crate::job::{Job, JobDriver, JobOptions};
use crate::node::Node;

type Step<'a> = Box<dyn FnOnce(&Graph) + Send + 'a>;

/// See the [module](self). Dropped, it undoes its steps in reverse order, inside the sections in which they were
/// made.
pub(crate) struct Undo<'a> {
    graph: &'a Graph,
    steps: Vec<Step<'a>>,
    /// Nodes that are claimed for the job.
    blocked: Vec<Arc<Node>>,
}

impl<'a> Undo<'a> {
    pub(crate) fn new(graph: &'a Graph) -> Self {
        Self {
            graph,
            steps: Vec::new(),
            blocked: Vec::new(),
        }
    }

    /// Has `step` done, too, if the rest fails.
    pub(crate) fn push(&mut self, step: impl FnOnce(&Graph) + Send + 'a) {
        self.steps.push(Box::new(step));
    }

    /// Claims a node for a job, given by its type and id.
    ///
    /// # Errors
    /// Another job has it.
    pub(crate) fn block(&mut self, node: &Arc<Node>, job: &str) -> Result<()> {
        node.block(job)?;
        self.blocked.push(Arc::clone(node));
        let node = Arc::clone(node);
        self.push(move |_| node.unblock());
        Ok(())
    }

    /// Puts a job's filter above `below`, for that job alone until it goes.
    ///
    /// # Errors
    /// Those of [`Graph::insert_filter`].
    pub(crate) fn insert_filter(
        &mut self,
        name: Option<&str>,
        below: &Arc<Node>,
        driver: Box<dyn Driver>,
        job: &str,
    ) -> Result<Arc<Node>> {
        let filter = self.graph.insert_filter(job, name, below, driver)?;
        let (own, below) = (Arc::clone(&filter), Arc::clone(below));
        self.push(move |graph| {
            if let Err(error) = graph.replace_node(&own, &below) {
                tracing::error!(%error, "the job's filter can't be taken out");
            }
            graph.remove_if_unused(&own);
        });
        filter.block(job)?;
        self.blocked.push(Arc::clone(&filter));
        Ok(filter)
    }

    /// Makes the job for which all this was done, and has `attach` put it above its nodes. Then it stands, and its end
    /// undoes what is to be undone.
    ///
    /// # Errors
    /// Its id is taken, or others use the nodes; then all is undone.
    pub(crate) fn create_job(
        mut self,
        options: JobOptions,
        driver: Box<dyn JobDriver>,
        home: Home,
        attach: impl FnOnce(&mut Transaction<'_>, &Parent),
    ) -> Result<Arc<Job>> {
        let job = self.graph.jobs().create(options, driver, home)?;
        let mut change = self.graph.transaction();
        attach(&mut change, &Parent::job(&job));
        if let Err(error) = change.commit() {
            job.discard();
            return Err(error);
        }
        self.steps.clear();
        for node in &self.blocked {
            node.blocker_has_begun(&job);
        }
        Ok(job)
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some(step) = self.steps.pop() {
            step(self.graph);
        }
    }
}
