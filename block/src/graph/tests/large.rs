//! Many nodes, and deep ones.

use std::sync::Arc;

use serde_json::json;
use sluice_aio::{IoThread, LoopConfig, current};

use super::bench::{run, write};
use crate::graph::transaction::MAX_DEPTH;
use crate::home::Home;

#[test]
fn ten_thousand_nodes_are_added_queried_drained_and_deleted() {
    const NODES: usize = 10_000;
    run(|bench| async move {
        let (low, watch) = bench.probe("low", true);
        for index in 0..NODES / 2 {
            let null = json!({"driver": "null-co", "node-name": format!("n{index}")});
            bench.add(null).await.unwrap();
            let raw = json!({"driver": "raw", "node-name": format!("r{index}"), "file": "low"});
            bench.add(raw).await.unwrap();
        }
        assert_eq!(bench.graph.nodes().len(), NODES + 1);
        assert_eq!(low.parents().len(), NODES / 2);
        let section = bench.graph.drain(&low, "test").await;
        assert_eq!(watch.told(), (1, 0));
        assert_eq!(bench.graph.node("r4999").unwrap().drained_by().len(), 1);
        assert!(bench.graph.node("n4999").unwrap().drained_by().is_empty());
        drop(section);
        drop(bench.graph.drain_all("test").await);
        assert_eq!(watch.told(), (2, 2));
        for index in 0..NODES / 2 {
            bench.graph.del_node(&format!("n{index}")).unwrap();
            bench.graph.del_node(&format!("r{index}")).unwrap();
        }
        assert_eq!(bench.graph.nodes().len(), 1);
        assert!(low.parents().is_empty());
    });
}

/// Queries and moves look at each node and edge a few times, not at each pair of nodes.
#[test]
fn ten_thousand_nodes_are_shown_and_moved_together() {
    const NODES: usize = 10_000;
    run(|bench| async move {
        let (low, _) = bench.probe("low", true);
        // Pairs: a filter above each raw node, and all of them above the one.
        for index in 0..NODES / 2 {
            let raw = json!({"driver": "raw", "node-name": format!("r{index}"), "file": "low"});
            let debug = json!({"driver": "blkdebug", "node-name": format!("d{index}"),
                               "image": format!("r{index}")});
            bench.add(raw).await.unwrap();
            bench.add(debug).await.unwrap();
        }
        let picture = bench.graph.picture();
        assert_eq!(picture.vertices.len(), NODES + 1);
        assert_eq!(picture.edges.len(), NODES);
        for edge in &picture.edges {
            let name = |place: usize| picture.vertices[place].name.as_str();
            let (parent, child) = (name(edge.parent), name(edge.child));
            let expected = match parent.strip_prefix('d') {
                Some(index) => format!("r{index}"),
                None => "low".to_owned(),
            };
            assert_eq!(child, expected, "below {parent}");
        }
        let thread = Arc::new(IoThread::spawn("io0", LoopConfig::default()).unwrap());
        let home = Home::kept(thread.context().clone(), Arc::clone(&thread) as Arc<_>);
        let top = bench.graph.node("d4999").unwrap();
        bench
            .graph
            .set_home(&top, Some(home), &current::context())
            .await
            .unwrap();
        for node in bench.graph.nodes() {
            assert_eq!(
                node.home().unwrap().context().name(),
                "io0",
                "{}",
                node.name()
            );
        }
        bench
            .graph
            .set_home(&low, None, &current::context())
            .await
            .unwrap();
        assert!(top.home().is_none());
    });
}

/// A request's stack grows with its way: the way is bounded, from whichever end it grows.
#[test]
fn a_graph_is_only_so_deep() {
    run(|bench| async move {
        let (low, watch) = bench.probe("node0", false);
        for index in 1..MAX_DEPTH {
            let below = format!("node{}", index - 1);
            let name = format!("node{index}");
            bench
                .add(json!({"driver": "raw", "node-name": name, "file": below}))
                .await
                .unwrap();
        }
        let top = bench.graph.node(&format!("node{}", MAX_DEPTH - 1)).unwrap();
        let one_more = json!({"driver": "raw", "node-name": "more", "file": top.name()});
        let error = bench.add(one_more).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "Node 'more' can't be put above 'node127': the graph would be deeper than 128 nodes"
        );
        assert!(bench.graph.node("more").is_err());
        let disk = bench.graph.add_backend("disk", &top).unwrap();
        write(&disk, 7).await.unwrap();
        assert_eq!(*watch.log.lock(), [7]);
        // In the middle and at the bottom it is the same.
        let section = bench.graph.drain(&low, "test").await;
        for index in [0, 64] {
            let below = bench.graph.node(&format!("node{index}")).unwrap();
            let (driver, _) = super::bench::pass(&below, None);
            let error = bench
                .graph
                .insert_filter("mirror 'j'", Some("filter"), &below, driver)
                .unwrap_err()
                .to_string();
            assert!(error.contains("deeper than 128 nodes"), "{error}");
            assert!(Arc::ptr_eq(
                &below,
                &bench
                    .graph
                    .node(&format!("node{}", index + 1))
                    .unwrap()
                    .children()[0]
                    .1
            ));
        }
        drop(section);
        write(&disk, 8).await.unwrap();
    });
}
