//! [`HeldName`]: the name of a node that is going to be there.

use std::sync::Arc;

use super::Graph;
use crate::error::Result;

/// A name that nobody else gets until this is dropped: who then makes the node at once, without waiting for anything,
/// gets it. Not dropped inside a change of the graph.
pub(crate) struct HeldName {
    graph: Arc<Graph>,
    name: String,
}

impl HeldName {
    /// # Errors
    /// It is malformed or taken.
    pub(crate) fn new(graph: &Arc<Graph>, name: &str) -> Result<Self> {
        let mut topology = graph.topology();
        topology.check_new_node(name)?;
        topology.held_names.insert(name.to_owned());
        Ok(Self {
            graph: Arc::clone(graph),
            name: name.to_owned(),
        })
    }
}

impl Drop for HeldName {
    fn drop(&mut self) {
        self.graph.topology().held_names.remove(&self.name);
    }
}
