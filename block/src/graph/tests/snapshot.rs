//! `blockdev-snapshot`: an overlay goes above a disk's image while the guest writes, or nothing
//! changes. And what stands above a backing image.

use std::sync::Arc;

use serde_json::json;
use sluice_aio::{IoBuffer, current};

use super::bench::{Bench, run, settle, write};
use crate::driver::overlay::CLUSTER;
use crate::driver::{Allocation, RequestFlags};
use crate::graph::Graph;
use crate::node::Node;
use crate::permission::{Access, Permissions};

const SIZE: usize = 8 * CLUSTER;

async fn fill(node: &Node, cluster: usize, value: u8) {
    let buffer = IoBuffer::alloc(CLUSTER);
    buffer.fill(0, CLUSTER, value);
    let offset = (cluster * CLUSTER) as u64;
    node.write(offset, buffer, RequestFlags::empty())
        .await
        .unwrap();
}

async fn byte(node: &Node, at: usize) -> u8 {
    let buffer = IoBuffer::alloc(1);
    node.read(at as u64, buffer.clone()).await.unwrap();
    buffer.to_vec()[0]
}

async fn refused(graph: &Graph, node: &Arc<Node>, overlay: &Arc<Node>) -> String {
    graph.snapshot(node, overlay).await.unwrap_err().to_string()
}

#[test]
fn a_disk_writes_to_its_overlay_from_then_on() {
    run(async |bench| {
        let Bench { graph } = &bench;
        let base = graph.add_overlay("base", SIZE, None).unwrap();
        fill(&base, 1, 1).await;
        let disk = graph.add_backend("disk", &base).unwrap();
        let overlay = graph.add_overlay("overlay", SIZE, None).unwrap();
        // A request in flight is waited for, and what comes meanwhile goes to the overlay.
        let token = disk.enter().await.unwrap();
        let taking = {
            let (graph, base) = (Arc::clone(graph), Arc::clone(&base));
            let overlay = Arc::clone(&overlay);
            current::spawn_local(async move { graph.snapshot(&base, &overlay).await })
        };
        settle().await;
        assert!(overlay.backing().is_none(), "under a request");
        disk.write(&token, 2, IoBuffer::copied_from(&[2]))
            .await
            .unwrap();
        let late = {
            let disk = Arc::clone(&disk);
            current::spawn_local(async move { write(&disk, CLUSTER as u64).await })
        };
        settle().await;
        drop(token);
        taking.await.unwrap().unwrap();
        late.await.unwrap().unwrap();
        assert!(Arc::ptr_eq(&disk.node().unwrap(), &overlay));
        assert!(Arc::ptr_eq(&overlay.backing().unwrap(), &base));
        assert_eq!(byte(&base, 2).await, 2, "before");
        assert_eq!(byte(&base, CLUSTER).await, 1, "not after");
        assert_eq!(byte(&overlay, CLUSTER).await, 0);
        assert_eq!(byte(&overlay, CLUSTER + 512).await, 1, "shown from below");
        assert!(base.is_read_only() && !overlay.is_read_only());
        assert_eq!(
            base.access(),
            Access {
                used: Permissions::CONSISTENT_READ,
                shared: Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED,
            }
        );
        let picture = graph.picture();
        let edge = picture.edges.iter().find(|edge| edge.name == "backing");
        let edge = edge.unwrap();
        assert_eq!(picture.vertices[edge.parent].name, "overlay");
        assert_eq!(picture.vertices[edge.child].name, "base");
        // Both stay as long as they are used.
        let error = graph.del_node("base").unwrap_err();
        assert_eq!(error.to_string(), "Block device base is in use");
        graph.remove_backend(&disk).await;
        graph.del_node("overlay").unwrap();
        graph.del_node("base").unwrap();
    });
}

#[test]
fn overlays_that_can_not_be_are_refused() {
    run(async |bench| {
        let Bench { graph } = &bench;
        let base = graph.add_overlay("base", SIZE, None).unwrap();
        let disk = graph.add_backend("disk", &base).unwrap();
        let add = async |options| bench.add(options).await.unwrap();
        let null = add(json!({"driver": "null-co", "node-name": "null"})).await;
        let raw = add(json!({"driver": "raw", "node-name": "raw", "file": "null"})).await;
        let debug =
            json!({"driver": "blkdebug", "node-name": "debug", "image": {"driver": "null-co"}});
        let debug = add(debug).await;
        let full = graph.add_overlay("full", SIZE, Some(&null)).unwrap();
        let used = graph.add_overlay("used", SIZE, None).unwrap();
        graph.add_backend("other", &used).unwrap();
        for (overlay, text) in [
            (&null, "The overlay does not support backing images"),
            (&raw, "The overlay does not support backing images"),
            (&debug, "Filters cannot be used as overlays"),
            (&full, "The overlay already has a backing image"),
            (&used, "The overlay is already in use"),
            (&base, "The overlay is already in use"),
        ] {
            assert_eq!(refused(graph, &base, overlay).await, text);
            assert!(Arc::ptr_eq(&disk.node().unwrap(), &base));
        }
        let gone = graph.add_overlay("gone", SIZE, None).unwrap();
        graph.del_node("gone").unwrap();
        let text = "Failed to find node with node-name='gone'";
        assert_eq!(refused(graph, &base, &gone).await, text);
        let free = graph.add_overlay("free", SIZE, None).unwrap();
        base.block("mirror").unwrap();
        let text = "Node 'base' is busy: block device is in use by block job: mirror";
        assert_eq!(refused(graph, &base, &free).await, text);
        base.unblock();
        // Its new users would write: all is as before.
        free.set_read_only(true);
        let text = "node 'free' is read-only";
        assert_eq!(refused(graph, &base, &free).await, text);
        assert!(Arc::ptr_eq(&disk.node().unwrap(), &base));
        assert!(free.backing().is_none() && free.parents().is_empty());
        assert!(!base.is_read_only());
        assert!(base.access().used.contains(Permissions::WRITE));
        free.set_read_only(false);
        graph.snapshot(&base, &free).await.unwrap();
    });
}

#[test]
fn nothing_becomes_its_own_backing_image() {
    run(async |bench| {
        let Bench { graph } = &bench;
        let overlay = graph.add_overlay("overlay", SIZE, None).unwrap();
        let raw = json!({"driver": "raw", "node-name": "raw", "file": "overlay"});
        let raw = bench.add(raw).await.unwrap();
        let text = "Making 'raw' a child of 'overlay' would create a cycle";
        let said = refused(graph, &raw, &overlay).await;
        assert!(
            said == text || said == "Making 'overlay' a child of 'raw' would create a cycle",
            "{said}"
        );
        assert!(overlay.backing().is_none());
        let text = "Making 'overlay' a child of 'overlay' would create a cycle";
        assert_eq!(refused(graph, &overlay, &overlay).await, text);
    });
}

#[test]
fn nobody_writes_to_a_backing_image_that_a_disk_shows() {
    run(async |bench| {
        let Bench { graph } = &bench;
        let base = graph.add_overlay("base", SIZE, None).unwrap();
        let overlay = graph.add_overlay("overlay", SIZE, Some(&base)).unwrap();
        // As long as nobody reads the overlay anybody may.
        let writer = graph.add_backend("writer", &base).unwrap();
        let text = graph.add_backend("disk", &overlay).unwrap_err().to_string();
        assert!(
            text.contains("(uses node 'base' as 'backing' child)"),
            "{text}"
        );
        graph.remove_backend(&writer).await;
        graph.add_backend("disk", &overlay).unwrap();
        let text = graph.add_backend("writer", &base).unwrap_err().to_string();
        assert!(text.contains("unshared by node 'overlay'"), "{text}");
    });
}

/// A chain of three images of different sizes: what each says, and what all together show.
#[test]
fn status_is_looked_for_down_the_chain() {
    run(async |bench| {
        let Bench { graph } = &bench;
        let base = graph.add_overlay("base", 4 * CLUSTER, None).unwrap();
        for cluster in 0..4 {
            fill(&base, cluster, 1).await;
        }
        let mid = graph.add_overlay("mid", 6 * CLUSTER, Some(&base)).unwrap();
        fill(&mid, 1, 2).await;
        mid.write_zeroes((2 * CLUSTER) as u64, CLUSTER as u64, RequestFlags::empty())
            .await
            .unwrap();
        fill(&mid, 5, 2).await;
        let top = graph.add_overlay("top", SIZE, Some(&mid)).unwrap();
        fill(&top, 3, 3).await;
        // A filter is of the layer that it shows; a format is a layer of its own.
        let filter = json!({"driver": "blkdebug", "node-name": "filter", "image": "top"});
        let filter = bench.add(filter).await.unwrap();
        let raw = json!({"driver": "raw", "node-name": "raw", "file": "filter"});
        let raw = bench.add(raw).await.unwrap();
        let show = async |node: &Node, layer: bool| {
            let (mut shown, mut at) = (String::new(), 0);
            while at < node.len() {
                let len = node.len() - at;
                let status = match layer {
                    true => node.layer_status(at, len).await.unwrap(),
                    false => node.block_status(at, len).await.unwrap(),
                };
                let kind = match status.allocation {
                    Allocation::Data => "d",
                    Allocation::Zero => "z",
                    Allocation::Below => ".",
                };
                assert_eq!(status.len % CLUSTER as u64, 0);
                shown += &kind.repeat(usize::try_from(status.len).unwrap() / CLUSTER);
                at += status.len;
            }
            shown
        };
        assert_eq!(show(&mid, true).await, ".dz..d");
        assert_eq!(show(&mid, false).await, "ddzdzd");
        for node in [&top, &filter] {
            assert_eq!(show(node, true).await, "...d....");
            assert_eq!(show(node, false).await, "ddzdzdzz");
            assert_eq!(node.backing_chain().len(), 2);
        }
        assert_eq!(show(&raw, true).await, "ddzdzdzz");
        assert!(raw.backing().is_none());
        for at in 0..8 {
            let zero = show(&top, false).await.as_bytes()[at] == b'z';
            assert_eq!(byte(&top, at * CLUSTER).await == 0, zero, "{at}");
        }
        // Down to an image, and no further.
        for (last, at, held) in [
            (&base, 0, true),
            (&mid, 0, false),
            (&mid, 1, true),
            (&top, 1, false),
            (&base, 4, false),
            (&base, 6, false),
        ] {
            let (offset, len) = ((at * CLUSTER) as u64, CLUSTER as u64);
            let found = filter.is_held_below(last, offset, len).await.unwrap();
            assert_eq!(found, (held, len), "{at} down to {}", last.name());
        }
    });
}
