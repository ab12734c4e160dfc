//! Names, owners and parents: what may be added, attached and deleted, and what is said if not.

use std::sync::Arc;

use serde_json::json;
use sluice_aio::current;

use super::bench::run;
use crate::graph::HeldName;

#[test]
fn names_are_well_formed_and_unique() {
    run(|bench| async move {
        let null = |name: &str| json!({"driver": "null-co", "node-name": name});
        for bad in ["", "1st", "#block", "a b", "a/b", &"#".repeat(32)] {
            let error = bench.add(null(bad)).await.unwrap_err().to_string();
            assert_eq!(error, format!("Invalid node-name: '{bad}'"));
        }
        let long = bench.add(null(&"x".repeat(32))).await;
        assert_eq!(long.unwrap_err().to_string(), "Node name too long");
        let good = "x".repeat(31);
        for name in ["a", "a-b.c_1", &good] {
            bench.add(null(name)).await.unwrap();
            let error = bench.add(null(name)).await.unwrap_err().to_string();
            assert_eq!(error, format!("Duplicate nodes with node-name='{name}'"));
        }
        let error = bench.add(json!({"driver": "null-co"})).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "'node-name' must be specified for the root node"
        );
        // Backends and nodes share the name space of commands.
        let node = bench.graph.node("a").unwrap();
        let error = bench.graph.add_backend("a", &node).unwrap_err().to_string();
        assert_eq!(
            error,
            "Device name 'a' conflicts with an existing node name"
        );
        bench.graph.add_backend("disk", &node).unwrap();
        let error = bench
            .graph
            .add_backend("disk", &node)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "Device with id 'disk' already exists");
        assert!(bench.add(null("disk")).await.is_err());
    });
}

#[test]
fn all_of_a_tree_is_added_or_nothing() {
    run(|bench| async move {
        bench.probe("taken", false);
        let nodes = bench.graph.nodes().len();
        let twice = json!({
            "driver": "blkdebug", "node-name": "same",
            "image": {"driver": "null-co", "node-name": "same"}
        });
        assert!(bench.add(twice).await.is_err());
        let taken = json!({
            "driver": "blkdebug", "node-name": "top",
            "image": {"driver": "null-co", "node-name": "taken"}
        });
        assert!(bench.add(taken).await.is_err());
        let missing = json!({"driver": "raw", "node-name": "top", "file": "nobody"});
        let error = bench.add(missing).await.unwrap_err().to_string();
        assert_eq!(error, "Cannot find device='nobody' nor node-name='nobody'");
        let broken = json!({
            "driver": "raw", "node-name": "top",
            "file": {"driver": "file", "filename": "/nonexistent/image"}
        });
        let error = bench.add(broken).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/image"), "{error}");
        assert_eq!(bench.graph.nodes().len(), nodes);
    });
}

#[test]
fn two_nodes_of_one_name_begun_at_once() {
    run(|bench| async move {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [0; 512]).unwrap();
        let options = json!({"driver": "file", "node-name": "node", "filename": path});
        let options = serde_json::from_value::<crate::BlockdevOptions>(options).unwrap();
        // Both find the name free before either has opened its file.
        let adding: Vec<_> = (0..2)
            .map(|_| {
                let (graph, options) = (Arc::clone(&bench.graph), options.clone());
                current::spawn_local(async move { graph.add_node(&options).await.is_ok() })
            })
            .collect();
        let mut added = 0;
        for task in adding {
            added += usize::from(task.await.unwrap());
        }
        assert_eq!(added, 1);
        assert_eq!(bench.graph.nodes().len(), 1);
    });
}

#[test]
fn nodes_in_use_stay() {
    run(|bench| async move {
        let (node, _) = bench.probe("below", false);
        bench
            .add(json!({"driver": "raw", "node-name": "raw", "file": "below"}))
            .await
            .unwrap();
        let raw = bench.graph.node("raw").unwrap();
        let disk = bench.graph.add_backend("disk", &raw).unwrap();
        for (name, what) in [("below", "Block device below"), ("raw", "Node raw")] {
            let error = bench.graph.del_node(name).unwrap_err().to_string();
            assert_eq!(error, format!("{what} is in use"));
        }
        assert!(bench.graph.del_node("nobody").is_err());
        // There is one writer: neither a second device nor another way to the same bytes.
        let error = bench
            .graph
            .add_backend("second", &raw)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "Permission conflict on node 'raw': permissions 'write' are both required by block \
             device 'disk' (uses node 'raw' as 'root' child) and unshared by block device 'second' \
             (uses node 'raw' as 'root' child)."
        );
        assert!(bench.graph.add_backend("second", &node).is_err());
        let beside = json!({"driver": "raw", "node-name": "beside", "file": "below"});
        let beside = bench.add(beside).await.unwrap();
        let error = bench
            .graph
            .add_backend("second", &beside)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("node 'beside' (uses node 'below' as 'file' child)"),
            "{error}"
        );
        assert_eq!(bench.graph.backends().len(), 1, "a refused disk is there");
        assert!(beside.parents().is_empty());
        bench.graph.remove_backend(&disk).await;
        bench.graph.del_node("raw").unwrap();
        bench.graph.add_backend("second", &beside).unwrap();
        // A node that has gone can't come back by an old handle.
        let error = bench
            .graph
            .add_backend("disk", &raw)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "Failed to find node with node-name='raw'");
    });
}

#[test]
fn implicit_nodes_go_with_their_last_parent() {
    run(|bench| async move {
        let nested = json!({
            "driver": "blkdebug", "node-name": "top",
            "image": {"driver": "raw", "file": {"driver": "null-co"}}
        });
        bench.add(nested.clone()).await.unwrap();
        let names: Vec<_> = bench
            .graph
            .nodes()
            .iter()
            .map(|node| node.name().to_owned())
            .collect();
        assert_eq!(names.len(), 3);
        for name in &names {
            assert_eq!(bench.graph.del_node(name).is_ok(), name == "top", "{name}");
        }
        assert!(bench.graph.nodes().is_empty());
        // A device's own node goes with the device.
        let options = serde_json::from_value(nested).unwrap();
        let node = bench.graph.add_implicit_node(&options).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        bench.graph.remove_backend(&disk).await;
        assert!(bench.graph.nodes().is_empty());
        assert!(bench.graph.backends().is_empty());
    });
}

#[test]
fn a_name_that_is_held_is_nobody_elses() {
    run(|bench| async move {
        let null = |name: &str| json!({"driver": "null-co", "node-name": name});
        bench.add(null("below")).await.unwrap();
        let held = HeldName::new(&bench.graph, "name").unwrap();
        let error = bench.add(null("name")).await.unwrap_err().to_string();
        assert_eq!(error, "Duplicate nodes with node-name='name'");
        let below = bench.graph.node("below").unwrap();
        assert!(bench.graph.add_backend("name", &below).is_err());
        assert!(HeldName::new(&bench.graph, "name").is_err());
        drop(held);
        bench.add(null("name")).await.unwrap();
        for bad in ["name", "1"] {
            assert!(HeldName::new(&bench.graph, bad).is_err());
        }
    });
}

#[test]
fn a_node_never_comes_above_itself() {
    run(|bench| async move {
        let (below, _) = bench.probe("below", false);
        bench
            .add(json!({"driver": "raw", "node-name": "raw", "file": "below"}))
            .await
            .unwrap();
        let raw = bench.graph.node("raw").unwrap();
        let error = bench
            .graph
            .replace_node(&below, &raw)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "Making 'raw' a child of 'raw' would create a cycle");
        assert!(Arc::ptr_eq(&raw.children()[0].1, &below));
    });
}

#[test]
fn windows_lie_within_their_file() {
    run(|bench| async move {
        let raw = |offset: u64, size: Option<u64>| {
            let below = json!({"driver": "null-co", "size": 4096});
            let mut options =
                json!({"driver": "raw", "node-name": "raw", "offset": offset, "file": below});
            if let Some(size) = size {
                options["size"] = json!(size);
            }
            options
        };
        for (offset, size) in [
            (4608, None),
            (0, Some(4608)),
            (4096, Some(512)),
            (0, Some(100)),
        ] {
            assert!(
                bench.add(raw(offset, size)).await.is_err(),
                "{offset} {size:?}"
            );
        }
        let node = bench.add(raw(512, Some(1024))).await.unwrap();
        assert_eq!(node.len(), 1024);
        let buffer = sluice_aio::IoBuffer::alloc(512);
        node.read(512, buffer.clone()).await.unwrap();
        assert!(node.read(1024, buffer.clone()).await.is_err());
        assert!(node.read(u64::MAX, buffer).await.is_err());
    });
}
