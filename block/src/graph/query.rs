//! What queries ask of the graph: all of it at one moment, for `x-debug-query-block-graph`, and
//! what is below one node, for `query-blockstats`.

use std::collections::HashMap;
use std::sync::Arc;

use super::Graph;
use super::parent::Parent;
use crate::driver::Role;
use crate::node::Node;
use crate::permission::Access;

/// What a vertex of the picture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VertexKind {
    /// A node.
    Driver,
    /// A disk.
    Backend,
    /// A job.
    Job,
}

/// A node, a disk or a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vertex {
    /// Which of them.
    pub kind: VertexKind,
    /// Its name.
    pub name: String,
}

/// An edge between vertices, by their places in the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureEdge {
    /// Who uses.
    pub parent: usize,
    /// Who is used.
    pub child: usize,
    /// What the child is to the parent.
    pub name: &'static str,
    /// What the parent does with the child.
    pub access: Access,
}

/// All vertices and edges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Nodes by name, then disks and jobs as they were met.
    pub vertices: Vec<Vertex>,
    /// By child, oldest parent first.
    pub edges: Vec<PictureEdge>,
}

/// A picture that is being made, with what finds its vertices again.
#[derive(Default)]
struct Sketch {
    picture: Picture,
    /// Where the vertices are: names are unique among those of one kind.
    places: HashMap<(VertexKind, String), usize>,
}

impl Sketch {
    fn place(&mut self, kind: VertexKind, name: &str) -> usize {
        let vertices = &mut self.picture.vertices;
        *self
            .places
            .entry((kind, name.to_owned()))
            .or_insert_with(|| {
                vertices.push(Vertex {
                    kind,
                    name: name.to_owned(),
                });
                vertices.len() - 1
            })
    }
}

impl Graph {
    /// The graph as it is now, with nothing half-changed in it.
    #[must_use]
    pub fn picture(&self) -> Picture {
        let topology = self.topology();
        let mut sketch = Sketch::default();
        for name in topology.nodes.keys() {
            sketch.place(VertexKind::Driver, name);
        }
        for backend in &topology.backends {
            sketch.place(VertexKind::Backend, backend.name());
        }
        for node in topology.nodes.values().map(Arc::clone) {
            let child = sketch.place(VertexKind::Driver, node.name());
            for edge in node.edges_above() {
                let parent = match &edge.parent {
                    Parent::Node(above) => above
                        .upgrade()
                        .map(|above| (VertexKind::Driver, above.name().to_owned())),
                    Parent::Backend(backend) => backend
                        .upgrade()
                        .map(|backend| (VertexKind::Backend, backend.name().to_owned())),
                    Parent::Job(job) => job
                        .upgrade()
                        .map(|job| (VertexKind::Job, job.id().to_owned())),
                    // An operation of a moment.
                    Parent::Claim(_) => None,
                };
                let Some((kind, name)) = parent else { continue };
                let parent = sketch.place(kind, &name);
                sketch.picture.edges.push(PictureEdge {
                    parent,
                    child,
                    name: edge.role,
                    access: edge.access,
                });
            }
        }
        sketch.picture
    }
}

impl Node {
    /// The child that holds the node's bytes: a format's file, or what a filter filters.
    #[must_use]
    pub fn primary_child(&self) -> Option<Arc<Self>> {
        self.child(Role::File)
            .or_else(|| self.child(Role::Filtered))
    }

    /// What a filter filters, or a format's backing image.
    #[must_use]
    pub fn filtered_or_backing(&self) -> Option<Arc<Self>> {
        let driver = self.driver();
        match driver.backing() {
            Some(edge) => edge.node(),
            None if driver.is_filter() => self.primary_child(),
            None => None,
        }
    }
}
