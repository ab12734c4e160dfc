//! Block graph, drained sections and block jobs of Sluice.
//!
//! * [`Graph`] holds all nodes and backends of a machine, and makes every change of their edges.
//! * A [`Node`] is one vertex; its [`Driver`](driver::Driver) does the work.
//! * A [`Backend`] is what a device holds: requests enter its gate, then run on its root node.
//! * [`Graph::drain`] begins a [`Section`]: exclusive access to a node, until it is dropped.
//! * [`job`] is the engine of long operations, [`mirror`] the first of them.
//!
//! # Example
//! ```
//! use std::sync::Arc;
//! use sluice_aio::{Clock, EventLoop, IoBuffer, LoopConfig};
//! use sluice_block::{BlockEvent, EventSink, Graph};
//!
//! struct Quiet;
//! impl EventSink for Quiet {
//!     fn emit(&self, _: BlockEvent) {}
//! }
//!
//! let mut event_loop = EventLoop::new("main", &LoopConfig::default())?;
//! let graph = Graph::new(Arc::new(Quiet), Clock::real());
//! event_loop.run_until(async move {
//!     let options = serde_json::json!({"driver": "null-co", "node-name": "n0", "size": 1 << 20});
//!     let node = graph.add_node(&serde_json::from_value(options).expect("good options")).await;
//!     let backend = graph.add_backend("disk0", &node.expect("a null node opens")).expect("free");
//!     let token = backend.enter().await.expect("the disk is there");
//!     backend.write(&token, 0, IoBuffer::alloc(4096)).await.expect("null takes everything");
//!     drop(token);
//!     let section = graph.drain(&backend.node().expect("it has a root"), "an example").await;
//!     assert!(backend.try_enter().is_none());
//!     drop(section);
//!     assert!(backend.try_enter().is_some());
//! })?;
//! # Ok::<(), sluice_aio::LoopError>(())
//! ```

pub mod backend;
pub mod backup;
pub mod chain;
pub mod dirty;
pub mod drain;
pub mod driver;
pub mod error;
pub mod event;
pub mod graph;
pub mod home;
pub mod io;
pub mod job;
pub mod look;
pub mod mirror;
pub mod node;
pub mod options;
mod parting;
pub mod permission;
mod room;
pub mod transaction;
pub mod unsigned;

pub use backend::Backend;
pub use drain::Section;
pub use error::BlockError;
pub use event::{BlockEvent, EventSink};
pub use graph::Graph;
pub use home::Home;
pub use node::Node;
pub use options::BlockdevOptions;
pub use permission::{Access, Permissions};
