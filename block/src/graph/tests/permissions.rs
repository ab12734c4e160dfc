//! Who may do what with a node, decided by all that stand above it, and that a refusal changes
//! nothing: neither edges nor access nor locks.

use std::sync::Arc;

use serde_json::json;

use super::bench::{Bench, run};
use crate::driver::file::{FileDriver, FileOptions};
use crate::driver::{Driver, Role};
use crate::error::BlockError;
use crate::graph::parent::Parent;
use crate::node::Node;
use crate::permission::{Access, Permissions};

fn access(used: Permissions, shared: Permissions) -> Access {
    Access { used, shared }
}

fn claim(text: &str) -> Parent {
    Parent::Claim(text.into())
}

/// Everything that a refused change must leave alone.
fn picture(bench: &Bench) -> Vec<String> {
    let describe = |node: Arc<Node>| {
        let edges: Vec<_> = node
            .edges_above()
            .iter()
            .map(|edge| {
                format!(
                    "{} {} {:?}",
                    edge.parent.description(),
                    edge.role,
                    edge.access
                )
            })
            .collect();
        let children: Vec<_> = node
            .children()
            .iter()
            .map(|(role, child)| format!("{role}={}", child.name()))
            .collect();
        format!(
            "{} {:?} {} {edges:?} {children:?}",
            node.name(),
            node.access(),
            node.is_read_only()
        )
    };
    let mut picture: Vec<_> = bench.graph.nodes().into_iter().map(describe).collect();
    picture.extend(bench.graph.backends().iter().map(|backend| {
        let root = backend.node();
        format!(
            "{} on {:?}",
            backend.name(),
            root.map(|node| node.name().to_owned())
        )
    }));
    picture
}

/// Every pair of what one user does and another does not share is refused, whoever comes first, and
/// every other pair is not.
#[test]
fn two_users_of_a_node_agree_or_the_second_is_refused() {
    run(|bench| async move {
        let (node, _) = bench.probe("node", false);
        for used in Permissions::all().iter() {
            for unshared in Permissions::all().iter() {
                let user = access(used, Permissions::all());
                let keeper = access(Permissions::empty(), unshared.complement());
                for (first, second) in [(user, keeper), (keeper, user)] {
                    let mut change = bench.graph.transaction();
                    change.attach(&node, claim("the first"), "role", first);
                    change.commit().unwrap();
                    let before = picture(&bench);
                    let mut change = bench.graph.transaction();
                    change.attach(&node, claim("the second"), "role", second);
                    let result = change.commit();
                    assert_eq!(result.is_err(), used == unshared, "{used:?} {unshared:?}");
                    if let Err(error) = result {
                        assert!(matches!(error, BlockError::Conflict(_)), "{error}");
                        assert!(error.to_string().contains(&used.text()), "{error}");
                        assert_eq!(picture(&bench), before);
                    }
                    bench.graph.let_go(&node, &claim("the second"), "role");
                    bench.graph.let_go(&node, &claim("the first"), "role");
                    assert_eq!(node.access(), Access::NONE);
                }
            }
        }
    });
}

#[test]
fn access_is_passed_down_and_summed_up() {
    run(|bench| async move {
        let (below, _) = bench.probe("below", false);
        let (middle, _) = bench.filter("middle", &below, None);
        let (top, _) = bench.filter("top", &middle, None);
        let (beside, _) = bench.filter("beside", &below, None);
        assert_eq!(below.access(), Access::NONE, "nobody uses it");
        let disk = bench.graph.add_backend("disk", &top).unwrap();
        for node in [&top, &middle, &below] {
            assert_eq!(node.access(), Access::of_device(false));
        }
        assert_eq!(beside.access(), Access::NONE);
        // Whoever reads and lets others write gets on with the disk, by any way; who does not, not.
        let read = Permissions::CONSISTENT_READ;
        let mut change = bench.graph.transaction();
        change.attach(
            &beside,
            claim("patient"),
            "role",
            access(read, Permissions::all()),
        );
        change.commit().unwrap();
        assert_eq!(below.access(), Access::of_device(false));
        let before = picture(&bench);
        let mut change = bench.graph.transaction();
        change.attach(&beside, claim("strict"), "role", access(read, read));
        let refused = change.commit().unwrap_err().to_string();
        assert_eq!(
            refused,
            "Permission conflict on node 'below': permissions 'write' are both required by node \
             'middle' (uses node 'below' as 'image' child) and unshared by node 'beside' (uses node \
             'below' as 'image' child)."
        );
        assert_eq!(picture(&bench), before);
        bench.graph.remove_backend(&disk).await;
        for node in [&top, &middle] {
            assert_eq!(node.access(), Access::NONE);
        }
        assert_eq!(below.access(), access(read, Permissions::all()));
    });
}

/// `force-share` gives up what those above ask of others, for the nodes opened with it; one that is only
/// named keeps to its own word.
#[test]
fn what_is_shared_by_force_is_shared_whatever_those_above_ask() {
    run(|bench| async move {
        let options = json!({"driver": "raw", "node-name": "raw", "read-only": true,
            "force-share": true, "file": {"driver": "null-co", "node-name": "file"}});
        let raw = bench.add(options).await.unwrap();
        bench.graph.add_backend("disk", &raw).unwrap();
        let shared = access(Permissions::CONSISTENT_READ, Permissions::all());
        for name in ["raw", "file"] {
            assert_eq!(bench.graph.node(name).unwrap().access(), shared, "{name}");
        }
        let edges = bench.graph.node("file").unwrap().edges_above();
        assert_eq!(edges[0].access, shared, "as queries show it");
        let (named, _) = bench.probe("named", true);
        let options = json!({"driver": "raw", "node-name": "above", "read-only": true,
            "force-share": true, "file": "named"});
        let above = bench.add(options).await.unwrap();
        bench.graph.add_backend("other", &above).unwrap();
        assert_eq!(above.access(), shared);
        assert_eq!(named.access(), Access::of_device(true));
    });
}

#[test]
fn a_read_only_node_takes_no_writer() {
    run(|bench| async move {
        let (node, _) = bench.probe("node", true);
        for used in Permissions::CHANGES.iter() {
            let mut change = bench.graph.transaction();
            change.attach(&node, claim("a writer"), "role", access(used, used));
            let error = change.commit().unwrap_err();
            assert!(matches!(error, BlockError::ReadOnly(_)), "{error}");
            assert!(node.parents().is_empty());
        }
        bench.graph.add_backend("disk", &node).unwrap();
        assert_eq!(node.access(), Access::of_device(true));
        bench.graph.add_backend("another", &node).unwrap();
    });
}

/// A transaction that fails at its end takes back every step that was made.
#[test]
fn all_steps_of_a_refused_change_are_undone() {
    run(|bench| async move {
        let (low, _) = bench.probe("low", false);
        let (other, _) = bench.probe("other", true);
        let (top, _) = bench.filter("top", &low, None);
        let (upper, _) = bench.filter("upper", &top, None);
        bench.graph.add_backend("disk", &upper).unwrap();
        let nested = json!({"driver": "raw", "node-name": "above", "file": {"driver": "null-co"}});
        let above = bench.add(nested).await.unwrap();
        let before = picture(&bench);
        let mut change = bench.graph.transaction();
        // An implicit node goes with its parent, and comes back.
        change.remove_node(&above);
        change.set_child(&upper, Role::Filtered, &low).unwrap();
        change.move_parents(&low, &other).unwrap();
        change.attach(&top, claim("somebody"), "role", Access::NONE);
        change.set_read_only(&top, true);
        let error = change.commit().unwrap_err();
        assert!(matches!(error, BlockError::ReadOnly(_)), "{error}");
        assert_eq!(picture(&bench), before);
        // Given up halfway.
        let mut change = bench.graph.transaction();
        change.remove_node(&above);
        change.move_parents(&low, &other).unwrap();
        drop(change);
        assert_eq!(picture(&bench), before);
    });
}

/// As another process sees it: which of the lock bytes are taken.
fn would_be_refused(path: &std::path::Path, used: Permissions, shared: Permissions) -> bool {
    let other = FileDriver::open(FileOptions::new(path)).unwrap();
    other.prepare_access(access(used, shared)).is_err()
}

#[test]
fn the_locks_of_a_file_are_the_access_of_all_above_it() {
    run(|bench| async move {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [0; 512]).unwrap();
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        let file = bench.add(file).await.unwrap();
        let (top, _) = bench.filter("top", &file, None);
        let conflicts = |own: Access| {
            for permission in Permissions::all().iter() {
                let none = Permissions::empty();
                assert_eq!(
                    would_be_refused(&path, permission, Permissions::all()),
                    own.unshared().contains(permission),
                    "{permission:?} used by another"
                );
                assert_eq!(
                    would_be_refused(&path, none, permission.complement()),
                    own.used.contains(permission),
                    "{permission:?} not shared by another"
                );
            }
        };
        conflicts(Access::NONE);
        let disk = bench.graph.add_backend("disk", &top).unwrap();
        conflicts(Access::of_device(false));
        // A refused change has left the locks as they were.
        assert!(bench.graph.add_backend("second", &top).is_err());
        conflicts(Access::of_device(false));
        bench.graph.remove_backend(&disk).await;
        conflicts(Access::NONE);
        // Two nodes of one process on one file are two users.
        let again = json!({"driver": "file", "node-name": "again", "filename": path});
        let again = bench.add(again).await.unwrap();
        bench.graph.add_backend("disk", &file).unwrap();
        let error = bench
            .graph
            .add_backend("two", &again)
            .unwrap_err()
            .to_string();
        assert!(error.contains("Failed to get \"write\" lock"), "{error}");
        assert_eq!(again.access(), Access::NONE);
        conflicts(Access::of_device(false));
    });
}

/// The second of two files can't be had: the first is as it was.
#[test]
fn locks_are_taken_for_all_files_of_a_change_or_for_none() {
    run(|bench| async move {
        let directory = tempfile::tempdir().unwrap();
        let mut nodes = Vec::new();
        for name in ["one", "two"] {
            let path = directory.path().join(name);
            std::fs::write(&path, [0; 512]).unwrap();
            let file = json!({"driver": "file", "node-name": name, "filename": path});
            nodes.push((bench.add(file).await.unwrap(), path));
        }
        // Whichever is asked for first.
        for refused in 0..2 {
            let foreign = FileDriver::open(FileOptions::new(&nodes[refused].1)).unwrap();
            foreign.prepare_access(Access::of_device(false)).unwrap();
            let mut change = bench.graph.transaction();
            for (node, _) in &nodes {
                change.attach(node, claim("a writer"), "role", Access::of_device(false));
            }
            let error = change.commit().unwrap_err().to_string();
            assert!(error.contains("lock"), "{error}");
            drop(foreign);
            for (node, path) in &nodes {
                assert_eq!(node.access(), Access::NONE);
                assert!(
                    !would_be_refused(path, Permissions::WRITE, Permissions::empty()),
                    "a lock of {} is left",
                    node.name()
                );
            }
        }
    });
}
