//! Changes of edges under running disks (the ideas of QEMU's `test-bdrv-graph-mod` and the graph
//! parts of `test-bdrv-drain`).

use std::sync::Arc;

use sluice_aio::current;

use super::bench::{pass, run, settle, write};
use crate::driver::Role;
use crate::error::BlockError;
use crate::permission::{Access, Permissions};

/// `update-perm-tree`: a filter over a node whose new users conflict is refused, and gone.
#[test]
fn a_filter_that_its_users_can_not_have_leaves_nothing() {
    run(|bench| async move {
        let (disk, node, watch) = bench.disk("disk");
        let mut change = bench.graph.transaction();
        let alone = Access {
            used: Permissions::empty(),
            shared: Permissions::WRITE.complement(),
        };
        let keeper = crate::graph::parent::Parent::Claim("a keeper".into());
        let (driver, _) = pass(&node, None);
        let filter = crate::node::Node::new(
            "filter".to_owned(),
            driver,
            false,
            crate::node::Owner::Monitor,
        );
        change.move_parents(&node, &filter).unwrap();
        change.add_node(&filter);
        change.attach(&filter, keeper, "role", alone);
        assert!(change.commit().is_err());
        assert!(bench.graph.node("filter").is_err());
        assert!(Arc::ptr_eq(&disk.node().unwrap(), &node));
        assert_eq!(node.access(), Access::of_device(false));
        write(&disk, 1).await.unwrap();
        assert_eq!(*watch.log.lock(), [1]);
    });
}

/// `should-update-child`: a filter that is put above a node does not get itself as child, although
/// it has that node below it in two places.
#[test]
fn a_filter_put_in_by_two_edges_does_not_stand_on_itself() {
    run(|bench| async move {
        let (node, _) = bench.probe("node", true);
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let (driver, _) = pass(&node, Some(&node));
        let section = bench.graph.drain(&node, "test").await;
        let filter = bench
            .graph
            .insert_filter("mirror 'j'", Some("filter"), &node, driver)
            .unwrap();
        drop(section);
        assert!(Arc::ptr_eq(&disk.node().unwrap(), &filter));
        for (_, child) in filter.children() {
            assert!(Arc::ptr_eq(&child, &node));
        }
        assert_eq!(node.nodes_above().len(), 2);
        let section = bench.graph.drain(&filter, "test").await;
        bench.graph.replace_node(&filter, &node).unwrap();
        bench.graph.remove_if_unused(&filter);
        drop(section);
        assert!(node.nodes_above().is_empty());
        assert!(Arc::ptr_eq(&disk.node().unwrap(), &node));
    });
}

/// `parallel-perm-update`: a node that is reached by a long way and by a short one is judged when
/// both of its parents have been.
#[test]
fn permissions_come_down_all_ways_before_a_node_is_judged() {
    run(|bench| async move {
        let (low, _) = bench.probe("low", false);
        let (a, _) = bench.filter("a", &low, None);
        let (b, _) = bench.filter("b", &a, None);
        let (c, _) = bench.filter("c", &b, None);
        let (top, _) = bench.filter("top", &low, Some(&c));
        let shares_writing = Access {
            used: Permissions::WRITE,
            shared: Permissions::all(),
        };
        let user = crate::graph::parent::Parent::Claim("a user".into());
        let mut change = bench.graph.transaction();
        change.attach(&top, user.clone(), "role", shares_writing);
        change.commit().unwrap();
        for node in [&top, &c, &b, &a, &low] {
            assert_eq!(node.access(), shares_writing, "{}", node.name());
        }
        bench.graph.let_go(&top, &user, "role");
        for node in [&top, &c, &b, &a, &low] {
            assert_eq!(node.access(), Access::NONE, "{}", node.name());
        }
        // One disk that does not share writing meets itself where both ways join.
        let error = bench.graph.add_backend("disk", &top).unwrap_err();
        assert!(matches!(error, BlockError::Conflict(_)), "{error}");
        assert!(top.parents().is_empty());
    });
}

/// `parallel-exclusive-write`: what the node that is left behind was used for does not stand in
/// the way of its successor.
#[test]
fn the_only_writer_moves_from_one_node_to_another_above_the_same() {
    run(|bench| async move {
        let (low, watch) = bench.probe("low", false);
        let (one, _) = bench.filter("one", &low, None);
        let (two, _) = bench.filter("two", &low, None);
        let disk = bench.graph.add_backend("disk", &one).unwrap();
        let section = bench.graph.drain(&low, "test").await;
        bench.graph.replace_node(&one, &two).unwrap();
        drop(section);
        assert_eq!(one.access(), Access::NONE);
        assert_eq!(two.access(), Access::of_device(false));
        write(&disk, 5).await.unwrap();
        assert_eq!(*watch.log.lock(), [5]);
    });
}

#[test]
fn no_change_closes_a_circle() {
    run(|bench| async move {
        let (low, _) = bench.probe("low", false);
        let (a, _) = bench.filter("a", &low, None);
        let (b, _) = bench.filter("b", &a, None);
        let (c, _) = bench.filter("c", &b, None);
        for (above, below) in [(&a, &a), (&a, &b), (&a, &c), (&b, &c), (&c, &c)] {
            let mut change = bench.graph.transaction();
            let error = change.set_child(above, Role::Filtered, below).unwrap_err();
            let (above, below) = (above.name(), below.name());
            assert_eq!(
                error.to_string(),
                format!("Making '{below}' a child of '{above}' would create a cycle")
            );
        }
        assert!(Arc::ptr_eq(&a.children()[0].1, &low));
        assert!(Arc::ptr_eq(&b.children()[0].1, &a));
    });
}

/// `replace_child/mid-drain`: an edge moves between nodes of which either may be in a section of
/// somebody else. What was under way ends where it began, what comes later goes to the new one, and
/// nothing comes to a drained node. A section covers disks, not ways: one over the old node keeps
/// the disk until it ends, wherever the disk's edge leads by then.
#[test]
fn replace_child_mid_drain() {
    for (old_drained, new_drained) in [(false, false), (false, true), (true, false), (true, true)] {
        run(move |bench| async move {
            let (old, old_watch) = bench.probe("old", true);
            let (new, new_watch) = bench.probe("new", true);
            let (top, top_watch) = bench.filter("top", &old, None);
            let disk = bench.graph.add_backend("disk", &top).unwrap();
            let read = |offset| {
                let disk = Arc::clone(&disk);
                current::spawn_local(async move {
                    let token = disk.enter().await?;
                    let buffer = sluice_aio::IoBuffer::alloc(512);
                    disk.read(&token, offset, buffer).await
                })
            };
            old_watch.hold();
            let pending = read(0);
            settle().await;
            assert!(old_watch.is_running());
            let begin = |node: &Arc<crate::node::Node>, wanted: bool| {
                let (graph, node) = (Arc::clone(&bench.graph), Arc::clone(node));
                current::spawn_local(async move {
                    match wanted {
                        true => Some(graph.drain(&node, "somebody").await),
                        false => None,
                    }
                })
            };
            let (old_section, new_section) = (begin(&old, old_drained), begin(&new, new_drained));
            let moving = {
                let (graph, old, new) = (Arc::clone(&bench.graph), old.clone(), new.clone());
                let (top, watch) = (Arc::clone(&top), Arc::clone(&old_watch));
                current::spawn_local(async move {
                    let sections = [
                        graph.drain(&old, "the move").await,
                        graph.drain(&new, "the move").await,
                    ];
                    assert!(!watch.is_running());
                    let mut change = graph.transaction();
                    change.set_child(&top, Role::Filtered, &new).unwrap();
                    change.commit().unwrap();
                    drop(sections);
                })
            };
            settle().await;
            old_watch.release();
            pending.await.unwrap().unwrap();
            moving.await.unwrap();
            let later = read(512);
            settle().await;
            let held = old_drained || new_drained;
            assert_eq!(disk.gate().is_closed(), held);
            assert_eq!(new_watch.log.lock().is_empty(), held);
            assert_eq!(top.drained_by().is_empty(), !held);
            drop((old_section.await.unwrap(), new_section.await.unwrap()));
            later.await.unwrap().unwrap();
            assert_eq!(*old_watch.log.lock(), [0]);
            assert_eq!(*new_watch.log.lock(), [512]);
            assert!(!disk.gate().is_closed());
            let (begun, ended) = top_watch.told();
            assert_eq!(begun, ended);
            assert!(old.parents().is_empty() && new.parents().len() == 1);
        });
    }
}
