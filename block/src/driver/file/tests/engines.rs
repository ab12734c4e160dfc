//! Which engine serves a file is its node's own choice, whatever others of the same loop have chosen.

use serde_json::{Value, json};
use sluice_aio::{Clock, LoopStats, current};

use super::*;
use crate::graph::Graph;
use crate::node::Node;
use crate::{BlockEvent, EventSink};

struct Silent;

impl EventSink for Silent {
    fn emit(&self, _: BlockEvent) {}
}

/// Options of a node `name`, which asks for an engine or leaves it to the default.
fn options(path: &Path, name: &str, aio: Option<&str>) -> Value {
    let path = path.join(name);
    let mut options =
        json!({"driver": "file", "node-name": name, "filename": path, "discard": "unmap"});
    if let Some(aio) = aio {
        options["aio"] = json!(aio);
    }
    options
}

/// Every operation of a file once; returns how many the ring and how many worker threads were given.
async fn each_once(node: &Node) -> (u64, u64) {
    let stats = || current::context().stats();
    let before: LoopStats = stats();
    let driver = node.driver().as_file().unwrap();
    let data = IoBuffer::copied_from(&[9; BLOCK]);
    driver.write(0, data, RequestFlags::empty()).await.unwrap();
    driver.read(0, IoBuffer::alloc(BLOCK)).await.unwrap();
    driver.discard(0, BLOCK as u64).await.unwrap();
    driver.flush().await.unwrap();
    let after = stats();
    (
        after.operations - before.operations,
        after.thread_operations - before.thread_operations,
    )
}

#[test]
fn each_file_is_served_by_the_engine_that_its_node_names() {
    const ALL: u64 = 4;
    const RING: (u64, u64) = (ALL, 0);
    const THREADS: (u64, u64) = (0, ALL);
    run(async {
        if let Some(why) = current::context().stats().without_ring {
            return println!("SKIPPED: no ring here: {why}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let graph = Graph::new(Arc::new(Silent), Clock::real());
        let mut nodes = Vec::new();
        for (name, aio, expected) in [
            ("ring", Some("io_uring"), RING),
            ("threads", Some("threads"), THREADS),
            ("default", None, RING),
        ] {
            filled(&path, name, 1);
            let options = serde_json::from_value(options(&path, name, aio)).unwrap();
            nodes.push((graph.add_node(&options).await.unwrap(), expected));
        }
        for (node, expected) in nodes.iter().chain(&nodes) {
            assert_eq!(each_once(node).await, *expected, "{}", node.name());
        }
        // Nor is it a choice for ever.
        let other = options(&path, "ring", Some("threads"));
        let other = serde_json::from_value(other).unwrap();
        graph.reopen(&[other]).await.unwrap();
        assert_eq!(each_once(&nodes[0].0).await, THREADS);
    });
}
