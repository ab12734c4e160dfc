//! Block graph, drained sections and block jobs of Sluice.

pub mod backend;
pub mod dirty;
pub mod drain;
pub mod driver;
pub mod error;
pub mod event;
pub mod graph;
pub mod job;
pub mod mirror;
pub mod node;
pub mod options;

pub use backend::Backend;
pub use drain::Section;
pub use error::BlockError;
pub use event::{BlockEvent, EventSink};
pub use graph::Graph;
pub use node::Node;
pub use options::BlockdevOptions;
