//! What is refused, with its reason, and that a refusal changes nothing.

use std::sync::Arc;

use serde_json::json;
use sluice_aio::current;

use super::bench::{BLOCK, Bench, SIZE, common, pattern, run};
use crate::BlockError;
use crate::graph::BitmapAction;
use crate::job::JobState;
use crate::mirror::{
    BlockdevMirror, CopyMode, DriveMirror, MirrorCommon, blockdev_mirror, drive_mirror,
};
use crate::node::Node;
use crate::options::NewImageMode;
use crate::{Access, Permissions};

fn text(result: Result<(), BlockError>) -> String {
    result.unwrap_err().to_string()
}

async fn to_file(bench: &Bench, arguments: MirrorCommon, name: &str) -> Result<(), BlockError> {
    let arguments = DriveMirror {
        common: arguments,
        target: bench.path(name),
        format: None,
        node_name: None,
        mode: NewImageMode::AbsolutePaths,
        unmap: true,
    };
    drive_mirror(&bench.graph, arguments, &current::context()).await
}

#[test]
fn impossible_mirrors_are_refused_and_change_nothing() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench
            .node(json!({"driver": "null-co", "node-name": "small", "size": 512}))
            .await;
        bench
            .node(json!({
                "driver": "null-co", "node-name": "ro", "read-only": true, "size": SIZE
            }))
            .await;
        let before = bench.bytes("disk");
        assert!(text(bench.start("small", common("disk")).await).contains("different sizes"));
        assert!(text(bench.start("disk-node", common("disk")).await).contains("into itself"));
        assert!(text(bench.start("nobody", common("disk")).await).contains("'nobody'"));
        assert!(text(bench.start("small", common("nobody")).await).contains("'nobody'"));
        assert!(text(bench.start("ro", common("disk")).await).contains("read-only"));
        assert!(text(to_file(&bench, common("disk"), "disk").await).contains("another block node"));
        let nowhere = text(to_file(&bench, common("disk"), "nowhere/x").await);
        let path = bench.path("nowhere/x");
        let words = "No such file or directory; create the directory, or correct the path";
        assert_eq!(
            nowhere,
            format!("Could not open '{}': {words}", path.display())
        );
        // One that no guest sees keeps its node all the same.
        bench.disk("loose").await;
        let loose = text(bench.start("loose", common("disk")).await);
        assert_eq!(
            loose,
            "Block device loose-node is in use by the disk 'loose'; mirror to a node that no disk uses"
        );
        assert_eq!(before, bench.bytes("disk"));
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert!(!disk.gate().is_closed());
        assert!(bench.graph.jobs().jobs().is_empty());
        assert_eq!(bench.graph.node("small").unwrap().writer(), None);
    });
}

#[test]
fn numbers_are_checked_with_qemus_words() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.target("target").await;
        let start = async |change: &dyn Fn(&mut MirrorCommon)| {
            let mut arguments = common("disk");
            change(&mut arguments);
            text(bench.start("target", arguments).await)
        };
        let range = "Parameter 'granularity' expects a value in range [512B, 64MB]";
        assert_eq!(start(&|common| common.granularity = Some(511)).await, range);
        assert_eq!(
            start(&|common| common.granularity = Some(128 << 20)).await,
            range
        );
        let power = "Parameter 'granularity' expects a power of 2";
        assert_eq!(
            start(&|common| common.granularity = Some(65537)).await,
            power
        );
        let buffer = "Invalid parameter 'buf-size'";
        assert_eq!(start(&|common| common.buf_size = Some(-1)).await, buffer);
        let speed = "Parameter 'speed' expects a non-negative value";
        assert_eq!(start(&|common| common.speed = Some(-1)).await, speed);
        let id = "Invalid job ID '4x'";
        assert_eq!(
            start(&|common| common.job_id = Some("4x".to_owned())).await,
            id
        );
        assert_eq!(bench.graph.node("target").unwrap().writer(), None);
    });
}

#[test]
fn the_same_file_by_another_node_is_the_same_disk() {
    run(|bench| async move {
        std::fs::write(bench.path("disk"), pattern(SIZE)).unwrap();
        let node = bench
            .node(json!({
                "driver": "raw", "node-name": "ro", "read-only": true,
                "file": {"driver": "file", "filename": bench.path("disk")}
            }))
            .await;
        bench.attach("disk", &node);
        // Nobody writes through the first node, so no lock stands in the way of the second.
        bench.image_node("disk").await;
        assert!(text(bench.start("disk-node", common("disk")).await).contains("into itself"));
    });
}

#[test]
fn a_node_takes_part_in_one_job_at_a_time() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.disk("other").await;
        bench.target("target").await;
        bench.target("target2").await;
        bench.mirror("disk", "target").await;
        let busy = "in use by block job: mirror 'job0'";
        let mut second = common("disk");
        second.job_id = Some("job1".to_owned());
        assert!(text(bench.start("target2", second.clone()).await).contains(busy));
        second.device = "disk-node".to_owned();
        assert!(text(bench.start("target2", second.clone()).await).contains(busy));
        second.device = "other".to_owned();
        assert!(text(bench.start("target", second.clone()).await).contains(busy));
        // Its nodes can't be deleted or given to others, the filter neither.
        let graph = &bench.graph;
        let filter = graph.backend("disk").unwrap().node().unwrap();
        assert!(graph.del_node("target").is_err());
        assert!(graph.del_node("disk-node").is_err());
        assert!(graph.del_node(filter.name()).is_err());
        let target = graph.node("target").unwrap();
        assert!(
            graph
                .add_backend("thief", &target)
                .unwrap_err()
                .to_string()
                .contains(busy)
        );
        assert!(graph.add_backend("thief", &filter).is_err());
        for below in ["target", "disk-node", filter.name()] {
            let options = json!({"driver": "raw", "node-name": "above", "file": below});
            let options = serde_json::from_value(options).unwrap();
            assert!(graph.add_node(&options).await.is_err(), "above {below}");
        }
        assert_eq!(bench.complete().await, None);
        // The other disk was not touched by what was refused for it.
        assert_eq!(
            graph.backend("other").unwrap().node().unwrap().name(),
            "other-node"
        );
        second.job_id = Some("job1".to_owned());
        bench.start("target2", second).await.unwrap();
    });
}

/// Both are past their checks when they come to claim the node: one of them gets it.
#[test]
fn two_mirrors_of_one_disk_begun_at_once() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        bench.target("target2").await;
        let start = |target: &str, id: &str| {
            let graph = Arc::clone(&bench.graph);
            let mut common = common("disk");
            common.job_id = Some(id.to_owned());
            let arguments = BlockdevMirror {
                common,
                target: target.to_owned(),
                filter_node_name: None,
                target_is_zero: false,
            };
            current::spawn_local(async move {
                blockdev_mirror(&graph, arguments, &current::context()).await
            })
        };
        // A request in flight keeps the first from its section until both have begun.
        let token = disk.enter().await.unwrap();
        let (first, second) = (start("target", "job0"), start("target2", "job1"));
        let second = second.await.unwrap();
        drop(token);
        first.await.unwrap().unwrap();
        assert!(text(second).contains("in use by block job: mirror 'job0'"));
        assert_eq!(bench.graph.node("target2").unwrap().writer(), None);
        assert_eq!(bench.complete().await, None);
        assert_eq!(disk.node().unwrap().name(), "target");
        bench.graph.del_node("target2").unwrap();
    });
}

#[test]
fn a_job_name_that_is_taken_costs_nobody_a_file() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.disk("other").await;
        bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        std::fs::write(bench.path("precious"), b"precious").unwrap();
        let refused = to_file(&bench, common("other"), "precious").await;
        assert_eq!(text(refused), "Job ID 'job0' already in use");
        assert_eq!(bench.bytes("precious"), b"precious");
        // And over an existing node the claim is given back.
        bench.target("target2").await;
        let refused = bench.start("target2", common("other")).await;
        assert_eq!(text(refused), "Job ID 'job0' already in use");
        let other = bench.graph.backend("other").unwrap();
        assert_eq!(other.node().unwrap().name(), "other-node");
        assert!(!other.gate().is_closed());
        assert_eq!(bench.graph.node("target2").unwrap().writer(), None);
        let filters = bench.graph.nodes();
        let filters = filters
            .iter()
            .filter(|node| node.driver_name() == "mirror_top");
        assert_eq!(filters.count(), 1);
    });
}

#[test]
fn a_target_in_use_is_left_alone() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.disk("other").await;
        let before = bench.bytes("other");
        assert!(text(bench.start("other-node", common("disk")).await).contains("in use"));
        assert!(
            text(to_file(&bench, common("disk"), "other").await).contains("another block node")
        );
        // Somebody else's lock, as another process would have it.
        bench.empty_image("foreign", SIZE);
        let foreign = crate::driver::file::FileDriver::open(crate::driver::file::FileOptions::new(
            bench.path("foreign"),
        ))
        .unwrap();
        crate::driver::Driver::prepare_access(&foreign, Access::of_device(false)).unwrap();
        let locked = text(to_file(&bench, common("disk"), "foreign").await);
        assert!(locked.contains("lock"), "{locked}");
        bench.debug_node("foreign").await;
        let locked = text(bench.start("foreign", common("disk")).await);
        assert!(locked.contains("lock"), "{locked}");
        assert_eq!(bench.bytes("other"), before);
    });
}

#[test]
fn a_filters_name_is_a_nodes_name() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let start = async |name: &str| {
            let arguments = BlockdevMirror {
                common: common("disk"),
                target: "target".to_owned(),
                filter_node_name: Some(name.to_owned()),
                target_is_zero: false,
            };
            blockdev_mirror(&bench.graph, arguments, &current::context()).await
        };
        assert!(text(start("target").await).contains("Duplicate"));
        assert!(text(start("disk").await).contains("Duplicate"));
        assert!(text(start("#odd").await).contains("Invalid node-name"));
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert!(!disk.gate().is_closed());
        start("top").await.unwrap();
        assert_eq!(disk.node().unwrap().name(), "top");
        assert_eq!(bench.complete().await, None);
    });
}

#[test]
fn drive_mirror_knows_raw_only() {
    run(|bench| async move {
        bench.disk("disk").await;
        let arguments = DriveMirror {
            common: common("disk"),
            target: bench.path("new"),
            format: Some("qcow2".to_owned()),
            node_name: None,
            mode: NewImageMode::AbsolutePaths,
            unmap: true,
        };
        let refused = drive_mirror(&bench.graph, arguments, &current::context()).await;
        assert!(text(refused).contains("'qcow2'"));
        assert!(!bench.path("new").exists());
    });
}

#[test]
fn targets_that_are_no_disks_are_named() {
    run(|bench| async move {
        bench.disk("disk").await;
        let nodes = bench.graph.nodes().len();
        std::fs::create_dir(bench.path("folder")).unwrap();
        assert!(text(to_file(&bench, common("disk"), "folder").await).contains("folder"));
        assert!(text(to_file(&bench, common("disk"), "no/where").await).contains("no/where"));
        let existing = DriveMirror {
            common: common("disk"),
            target: bench.path("short"),
            format: None,
            node_name: Some("short".to_owned()),
            mode: NewImageMode::Existing,
            unmap: true,
        };
        bench.empty_image("short", 512);
        let refused = drive_mirror(&bench.graph, existing, &current::context()).await;
        assert!(text(refused).contains("different sizes"));
        assert_eq!(
            bench.graph.nodes().len(),
            nodes,
            "a refused target stays in the graph"
        );
    });
}

/// What is only found when the target is open, too.
#[test]
fn a_refused_drive_mirror_touches_no_file() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.disk("other").await;
        bench
            .node(json!({"driver": "null-co", "node-name": "huge", "size": u64::MAX >> 1 & !511}))
            .await;
        let main = current::context();
        let wrong = |common: MirrorCommon, name: &str, words: &'static str| {
            let arguments = |target: &str| DriveMirror {
                common: common.clone(),
                target: bench.path(target),
                format: None,
                node_name: Some(name.to_owned()),
                mode: NewImageMode::AbsolutePaths,
                unmap: true,
            };
            (arguments("precious"), arguments("new"), words)
        };
        let named = |id: &str, device: &str| MirrorCommon {
            job_id: Some(id.to_owned()),
            ..common(device)
        };
        let replaces = |name: &str| MirrorCommon {
            replaces: Some(name.to_owned()),
            ..common("disk")
        };
        bench.target("of-other").await;
        let of_other = BlockdevMirror {
            common: named("taken", "other"),
            target: "of-other".to_owned(),
            filter_node_name: None,
            target_is_zero: false,
        };
        blockdev_mirror(&bench.graph, of_other, &main)
            .await
            .unwrap();
        let before = bench.graph.nodes().len();
        for (onto_old, onto_new, words) in [
            wrong(
                common("disk"),
                "other-node",
                "Duplicate nodes with node-name",
            ),
            wrong(common("disk"), "disk", "Duplicate nodes with node-name"),
            wrong(common("disk"), "1", "Invalid node-name"),
            wrong(
                named("taken", "disk"),
                "good",
                "Job ID 'taken' already in use",
            ),
            wrong(common("other"), "good", "busy"),
            wrong(replaces("nobody"), "good", "nobody"),
            wrong(named("job", "huge"), "good", "large"),
        ] {
            for size in [SIZE / 2, SIZE, 2 * SIZE] {
                let content = vec![7; usize::try_from(size).unwrap()];
                std::fs::write(bench.path("precious"), &content).unwrap();
                let said = text(drive_mirror(&bench.graph, onto_old.clone(), &main).await);
                assert!(said.contains(words), "{said}");
                assert!(
                    std::fs::read(bench.path("precious")).unwrap() == content,
                    "{said}"
                );
            }
            let said = text(drive_mirror(&bench.graph, onto_new, &main).await);
            assert!(said.contains(words), "{said}");
            assert!(!bench.path("new").exists(), "{said}");
            assert_eq!(bench.graph.nodes().len(), before, "{said}");
        }
    });
}

#[test]
fn targets_that_are_no_files_are_refused_by_their_protocol() {
    run(|bench| async move {
        bench.disk("disk").await;
        for mode in [NewImageMode::Existing, NewImageMode::AbsolutePaths] {
            let arguments = DriveMirror {
                common: common("disk"),
                target: "nbd:localhost:10809".into(),
                format: None,
                node_name: None,
                mode,
                unmap: true,
            };
            let refused = drive_mirror(&bench.graph, arguments, &current::context()).await;
            assert!(text(refused).starts_with("Unknown protocol 'nbd'; "));
        }
        let mut name = std::ffi::OsString::from("file:");
        name.push(bench.path("new"));
        let arguments = DriveMirror {
            common: common("disk"),
            target: name.into(),
            format: None,
            node_name: None,
            mode: NewImageMode::AbsolutePaths,
            unmap: true,
        };
        drive_mirror(&bench.graph, arguments, &current::context())
            .await
            .unwrap();
        assert!(bench.path("new").exists());
        bench.wait_for(JobState::Ready).await;
        assert_eq!(bench.complete().await, None);
    });
}

/// All that a start which fails has to leave alone.
fn everything(bench: &Bench) -> String {
    let describe = |node: Arc<Node>| {
        let edges: Vec<_> = node
            .edges_above()
            .iter()
            .map(|edge| (edge.parent.description(), edge.role, edge.access))
            .collect();
        let (access, bitmaps) = (node.access(), node.dirty_bitmaps());
        let (name, blocker) = (node.name(), node.blocker());
        format!("{name} {access:?} {blocker:?} {edges:?} {bitmaps:?}\n")
    };
    bench.graph.nodes().into_iter().map(describe).collect()
}

/// The section that it waits for has come when it turns out that there can be no such filter, or no such job.
#[test]
fn a_start_that_fails_half_way_leaves_all_as_it_was() {
    let shut_down = "Job 'job0' can't be created while the machine shuts down";
    for (file, is_shut_down, reason) in [
        (None, false, "Duplicate nodes with node-name='filter'"),
        (None, true, shut_down),
        (Some("new"), true, shut_down),
        (Some("precious"), true, shut_down),
    ] {
        run(|bench| async move {
            std::fs::write(bench.path("precious"), b"data").unwrap();
            let graph = &bench.graph;
            let disk = bench.disk("disk").await;
            bench.target("target").await;
            let bitmap = serde_json::from_value(json!({"node": "disk", "name": "b"})).unwrap();
            graph.change_bitmap(&BitmapAction::Add(bitmap)).unwrap();
            bench.write(&disk, BLOCK, 0xf1).await;
            let before = everything(&bench);
            let token = disk.enter().await.unwrap();
            let starting = {
                let (graph, file) = (Arc::clone(graph), file.map(|file| bench.path(file)));
                current::spawn_local(async move {
                    let main = current::context();
                    if let Some(target) = file {
                        let arguments = DriveMirror {
                            common: common("disk"),
                            target,
                            format: None,
                            node_name: Some("node-of-new".to_owned()),
                            mode: NewImageMode::AbsolutePaths,
                            unmap: true,
                        };
                        return drive_mirror(&graph, arguments, &main).await;
                    }
                    let arguments = BlockdevMirror {
                        common: common("disk"),
                        target: "target".to_owned(),
                        filter_node_name: Some("filter".to_owned()),
                        target_is_zero: false,
                    };
                    blockdev_mirror(&graph, arguments, &main).await
                })
            };
            while !disk.gate().is_closed() {
                current::yield_now().await;
            }
            assert_ne!(everything(&bench), before, "it has its nodes");
            if is_shut_down {
                graph.jobs().shut_down().await;
            } else {
                let filter = json!({"driver": "null-co", "node-name": "filter", "size": 512});
                bench.node(filter).await;
            }
            drop(token);
            assert_eq!(text(starting.await.unwrap()), reason);
            if !is_shut_down {
                graph.del_node("filter").unwrap();
            }
            assert_eq!(everything(&bench), before);
            assert!(graph.jobs().jobs().is_empty() && !disk.gate().is_closed());
            assert!(!bench.path("new").exists());
            assert_eq!(std::fs::read(bench.path("precious")).unwrap(), b"data");
            // Names and nodes can be had again, and the disk works.
            for name in ["filter", "node-of-new"] {
                let node = json!({"driver": "null-co", "node-name": name, "size": 512});
                bench.node(node).await;
            }
            bench.write(&disk, 0, 0xf2).await;
            graph.del_node("target").unwrap();
        });
    }
}

/// Who could write to the image past the filter would make the copy another one, and nobody would know.
#[test]
fn nobody_writes_past_the_filter() {
    let doing = |used| Access {
        used,
        shared: Permissions::all(),
    };
    let (writing, reading) = (
        doing(Permissions::WRITE),
        doing(Permissions::CONSISTENT_READ),
    );
    for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        run(move |bench| async move {
            std::fs::write(bench.path("image"), pattern(SIZE)).unwrap();
            let file =
                json!({"driver": "file", "node-name": "base", "filename": bench.path("image")});
            bench
                .node(json!({"driver": "raw", "node-name": "source", "file": file}))
                .await;
            bench.target("target").await;
            let base = bench.graph.node("base").unwrap();
            let arguments = || MirrorCommon {
                copy_mode: mode,
                ..common("source")
            };
            let writer = bench.graph.add_tool(&base, writing).unwrap();
            let said = bench.start("target", arguments()).await.unwrap_err();
            let said = said.to_string();
            assert!(
                said.starts_with("Permission conflict on node 'base': permissions 'write'"),
                "{said}"
            );
            bench.graph.remove_backend(&writer).await;
            while !bench.graph.jobs().jobs().is_empty() {
                current::yield_now().await;
            }
            bench.mirror_with("target", arguments()).await;
            bench.wait_for(JobState::Ready).await;
            assert!(bench.graph.add_tool(&base, writing).is_err());
            let reader = bench.graph.add_tool(&base, reading).unwrap();
            bench.graph.remove_backend(&reader).await;
            assert_eq!(bench.complete().await, None);
            assert!(bench.graph.add_tool(&base, writing).is_ok());
        });
    }
}
