//! What can't be backed up, and that trying changes nothing.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use futures_util::future::{Either, select};
use serde_json::{Value, json};
use sluice_aio::current;

use super::bench::*;
use crate::backup::{DriveBackup, drive_backup};
use crate::job::JobState;
use crate::options::NewImageMode;

async fn refused(bench: &Bench, target: &str, sync: &str, more: &Value) -> String {
    let before = bench.graph.nodes().len();
    let common = arguments("disk-disk", sync, more);
    let error = bench.start(common, target).await.unwrap_err();
    assert_eq!(bench.graph.nodes().len(), before);
    assert!(bench.graph.jobs().jobs().is_empty());
    bench.check_clean();
    error.to_string()
}

#[test]
fn what_makes_no_sense_is_refused_with_qemus_words() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        bench.add_bitmap("b");
        let small = json!({"driver": "null-co", "node-name": "small", "size": 512});
        let small = serde_json::from_value(small).unwrap();
        bench.graph.add_node(&small).await.unwrap();
        let full = |more: Value| ("full", more);
        let cases = [
            (
                full(json!({"device": "x"})),
                "Cannot find device='x' nor node-name='x'",
            ),
            (full(json!({"job-id": "0"})), "Invalid job ID '0'"),
            (
                full(json!({"speed": -1})),
                "Parameter 'speed' expects a non-negative value",
            ),
            (
                full(json!({"bitmap": "b"})),
                "Bitmap sync mode must be given when providing a bitmap",
            ),
            (
                full(json!({"bitmap": "x", "bitmap-mode": "always"})),
                "Bitmap 'x' could not be found",
            ),
            (
                full(json!({"bitmap-mode": "always"})),
                "Cannot specify bitmap sync mode without a bitmap",
            ),
            (
                full(json!({"bitmap": "b", "bitmap-mode": "never"})),
                "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode \
                 'full'",
            ),
            (
                ("none", json!({"bitmap": "b", "bitmap-mode": "always"})),
                "sync mode 'none' does not produce meaningful bitmap outputs",
            ),
            (
                ("incremental", json!({})),
                "must provide a valid bitmap name for 'incremental' sync mode",
            ),
            (
                ("bitmap", json!({})),
                "must provide a valid bitmap name for 'bitmap' sync mode",
            ),
            (
                (
                    "incremental",
                    json!({"bitmap": "b", "bitmap-mode": "always"}),
                ),
                "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
            ),
            (
                full(json!({"x-perf": {"max-workers": 0}})),
                "max-workers must be between 1 and 2147483647",
            ),
            (
                full(json!({"x-perf": {"max-chunk": -1}})),
                "max-chunk must be zero (which means no limit) or positive",
            ),
            (
                full(json!({"x-perf": {"max-chunk": 4096}})),
                "Required max-chunk (4096) is less than backup cluster size (65536)",
            ),
            (
                full(json!({"x-perf": {"min-cluster-size": 3}})),
                "Cannot create block-copy-state: min-cluster-size needs to be a power of 2",
            ),
            (
                full(json!({"x-perf": {"min-cluster-size": 1_u64 << 62}})),
                "Cannot create block-copy-state: min-cluster-size too large: 4611686018427387904 > 2147483648; choose 2 \
                 GiB or less",
            ),
            (
                full(json!({"filter-node-name": "target"})),
                "Duplicate nodes with node-name='target'",
            ),
        ];
        for ((sync, more), text) in cases {
            assert_eq!(refused(&bench, "target", sync, &more).await, text);
        }
        let none = json!({});
        let same = refused(&bench, "disk", "full", &none).await;
        let path = bench.path("disk").display().to_string();
        assert_eq!(
            same,
            format!(
                "Source and target cannot be the same: source 'blkdebug::{path}' and target 'blkdebug::{path}' are the same image"
            )
        );
        let size = refused(&bench, "small", "full", &none).await;
        assert!(
            size.starts_with("Source and target image have different sizes"),
            "{size}"
        );
        let missing = refused(&bench, "y", "full", &none).await;
        assert_eq!(missing, "Cannot find device='y' nor node-name='y'");
        let info = bench.graph.node("disk").unwrap().dirty_bitmaps();
        assert!(!info[0].busy);
        bench.write(&disk, 0, 512, 1).await;
    });
}

async fn add(bench: &Bench, options: &Value) {
    let options = serde_json::from_value(options.clone()).unwrap();
    bench.graph.add_node(&options).await.unwrap();
}

/// None is named that was made for the job, and has gone with it.
#[test]
fn a_target_that_others_use_is_refused_by_their_names() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.disk("other").await;
        for options in [
            json!({"driver": "null-co", "node-name": "low", "size": SIZE}),
            json!({"driver": "blkdebug", "node-name": "high", "image": "low"}),
        ] {
            add(&bench, &options).await;
        }
        let none = json!({});
        for name in ["other", "other-disk"] {
            assert_eq!(
                refused(&bench, name, "full", &none).await,
                "Block device other is in use by the disk 'other-disk'; back up to a node that no disk uses"
            );
        }
        // The disk itself, by its own name.
        let path = bench.path("disk").display().to_string();
        assert_eq!(
            refused(&bench, "disk-disk", "full", &none).await,
            format!(
                "Source and target cannot be the same: source 'blkdebug::{path}' and target 'blkdebug::{path}' are the same image"
            )
        );
        for (source, target) in [("low", "high"), ("high", "low")] {
            assert_eq!(
                refused(&bench, target, "full", &json!({"device": source})).await,
                format!(
                    "Source and target cannot be the same: '{source}' and '{target}' stand one on the other; back up to a node of its own"
                )
            );
        }
        // A disk further up.
        let high = bench.graph.node("high").unwrap();
        bench.graph.add_backend("high-disk", &high).unwrap();
        assert_eq!(
            refused(&bench, "low", "full", &none).await,
            "Permission conflict on node 'low': permissions 'write' are both required by block job backup 'job0' (uses node \
             'low' as 'target' child) and unshared by node 'high' (uses node 'low' as 'image' child). Give the job a node \
             that nobody else uses in that way."
        );
    });
}

#[test]
fn a_disk_that_has_a_job_is_refused() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.target("target").await;
        bench.target("other").await;
        let job = bench.backup("none", &json!({})).await;
        let again = arguments("disk-disk", "full", &json!({"job-id": "job1"}));
        let error = bench.start(again, "other").await.unwrap_err().to_string();
        assert_eq!(
            error,
            "Node 'disk-disk' is busy: block device is in use by block job: backup 'job0'"
        );
        let node = bench.graph.node("disk").unwrap();
        let error = bench
            .graph
            .resize(&node, 512)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("is busy"), "{error}");
        job.cancel(true).unwrap();
        end(&job).await;
    });
}

/// Has it come as far as it can by now, which is not the end.
async fn waits<F: Future>(mut future: Pin<&mut F>) {
    let is_pending = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending()));
    assert!(is_pending.await);
}

/// The section in which it is to begin waits for a request.
#[test]
fn a_backup_that_waits_for_its_section_has_its_nodes_already() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.target("other").await;
        let token = disk.enter().await.unwrap();
        let full = |id: &str| arguments("disk-disk", "full", &json!({"job-id": id}));
        {
            let mut starting = pin!(bench.start(full("job0"), "target"));
            waits(starting.as_mut()).await;
        }
        // Nobody waits for it any more, and it has nothing.
        bench.check_clean();
        let mut starting = pin!(bench.start(full("job0"), "target"));
        waits(starting.as_mut()).await;
        let graph = &bench.graph;
        for refused in [
            graph.del_node("target"),
            graph.resize(&target, 512).await,
            bench.start(full("job1"), "other").await,
        ] {
            let error = refused.unwrap_err();
            assert!(error.to_string().contains("is busy"), "{error}");
            assert!(bench.graph.jobs().get("job0").is_none());
            assert_eq!(
                error.way_out(),
                Some(
                    "the job is only beginning, and can't be cancelled yet: wait until its command is answered; \
                     'x-query-block-drains' shows what it waits for"
                )
            );
        }
        drop(token);
        starting.await.unwrap();
        assert_eq!(end(&bench.job("job0")).await, None);
        assert!(bench.bytes("target") == pattern());
    });
}

#[test]
fn a_backup_does_not_begin_when_its_disk_was_unplugged_meanwhile() {
    run(|bench| async move {
        bench.target("target").await;
        let null = json!({"driver": "null-co", "size": bench.bytes("target").len()});
        let null = serde_json::from_value(null).unwrap();
        let node = bench.graph.add_implicit_node(&null).await.unwrap();
        let disk = bench.graph.add_backend("plugged", &node).unwrap();
        let token = disk.enter().await.unwrap();
        let full = arguments("plugged", "full", &json!({}));
        let mut starting = pin!(bench.start(full, "target"));
        waits(starting.as_mut()).await;
        let mut unplugging = pin!(bench.graph.remove_backend(&disk));
        waits(unplugging.as_mut()).await;
        drop(token);
        unplugging.await;
        assert!(bench.graph.node(node.name()).is_err());
        let error = starting.await.unwrap_err().to_string();
        assert_eq!(
            error,
            "Cannot find device='plugged' nor node-name='plugged'"
        );
        assert!(bench.graph.jobs().jobs().is_empty());
        bench.graph.del_node("target").unwrap();
    });
}

/// Refused when the section in which it is to begin has come, or given up before: by the program's end.
#[test]
fn a_drive_backup_that_never_begins_leaves_its_file_as_it_was() {
    run(|bench| async move {
        let content = vec![7; SIZE / 2];
        std::fs::write(bench.path("precious"), &content).unwrap();
        let main = current::context();
        for target in ["precious", "new"] {
            for is_unplugged in [false, true] {
                let null = json!({"driver": "null-co", "size": SIZE});
                let null = serde_json::from_value(null).unwrap();
                let node = bench.graph.add_implicit_node(&null).await.unwrap();
                let disk = bench.graph.add_backend("plugged", &node).unwrap();
                let token = disk.enter().await.unwrap();
                let arguments = DriveBackup {
                    common: arguments("plugged", "full", &json!({})),
                    target: bench.path(target),
                    format: None,
                    mode: NewImageMode::AbsolutePaths,
                };
                let mut starting = Box::pin(drive_backup(&bench.graph, &arguments, &main));
                // It has its file, and waits for the guest's request.
                while !disk.gate().is_closed() {
                    waits(starting.as_mut()).await;
                    current::yield_now().await;
                }
                assert_eq!(bench.path("new").exists(), target == "new");
                let mut unplugging = pin!(bench.graph.remove_backend(&disk));
                waits(unplugging.as_mut()).await;
                if is_unplugged {
                    drop(token);
                    unplugging.await;
                    let error = starting.await.unwrap_err().to_string();
                    assert!(error.contains("'plugged'"), "{error}");
                } else {
                    drop(starting);
                    drop(token);
                    unplugging.await;
                }
                assert!(bench.bytes("precious") == content);
                assert!(!bench.path("new").exists());
            }
        }
    });
}

/// The command is answered when it is, although the job has not written anything.
#[test]
fn a_file_is_emptied_before_the_command_is_answered() {
    run(|bench| async move {
        bench.disk("disk").await;
        for size in [SIZE / 2, SIZE, 2 * SIZE] {
            std::fs::write(bench.path("old"), vec![7; size]).unwrap();
            let arguments = DriveBackup {
                common: arguments("disk-disk", "none", &json!({})),
                target: bench.path("old"),
                format: None,
                mode: NewImageMode::AbsolutePaths,
            };
            drive_backup(&bench.graph, &arguments, &current::context())
                .await
                .unwrap();
            assert!(bench.bytes("old") == vec![0; SIZE]);
            let job = bench.job("job0");
            job.cancel(true).unwrap();
            end(&job).await;
            let _ = job.dismiss();
        }
    });
}

#[test]
fn a_file_is_made_only_when_nothing_else_is_wrong() {
    run(|bench| async move {
        bench.disk("disk").await;
        let drive = |more: &Value, format: Option<&str>| DriveBackup {
            common: arguments("disk-disk", "full", more),
            target: bench.path("new"),
            format: format.map(str::to_owned),
            mode: NewImageMode::AbsolutePaths,
        };
        let main = current::context();
        let wrong = drive(&json!({"speed": -1}), None);
        drive_backup(&bench.graph, &wrong, &main).await.unwrap_err();
        let wrong = drive(&json!({}), Some("qcow2"));
        let error = drive_backup(&bench.graph, &wrong, &main).await.unwrap_err();
        assert!(
            error.to_string().starts_with("Unknown driver 'qcow2'"),
            "{error}"
        );
        assert!(!bench.path("new").exists());
        let before = bench.graph.nodes().len();
        let right = drive(&json!({}), Some("raw"));
        drive_backup(&bench.graph, &right, &main).await.unwrap();
        assert_eq!(end(&bench.job("job0")).await, None);
        assert!(bench.bytes("new") == pattern());
        assert_eq!(
            bench.graph.nodes().len(),
            before,
            "the target's node went with the job"
        );
    });
}

/// What is only found when the target is open, or the filter put in, too.
#[test]
fn a_refused_drive_backup_touches_no_file() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.disk("other").await;
        bench.target("of-other").await;
        let main = current::context();
        let taken = arguments("other-disk", "none", &json!({"job-id": "taken"}));
        bench.start(taken, "of-other").await.unwrap();
        let before = bench.graph.nodes().len();
        let token = disk.enter().await.unwrap();
        // Who is refused anyway does not wait for the guest's request, which holds the guest.
        let refused = async |backup: DriveBackup| {
            let held = async {
                while !disk.gate().is_closed() {
                    current::yield_now().await;
                }
            };
            let started = drive_backup(&bench.graph, &backup, &main);
            match select(pin!(started), pin!(held)).await {
                Either::Left((refused, _)) => refused.unwrap_err().to_string(),
                Either::Right(_) => panic!("{backup:?} holds the guest"),
            }
        };
        for (device, more, words) in [
            (
                "disk-disk",
                json!({"filter-node-name": "of-other"}),
                "Duplicate nodes with node-name",
            ),
            (
                "disk-disk",
                json!({"filter-node-name": "1"}),
                "Invalid node-name",
            ),
            (
                "disk-disk",
                json!({"x-perf": {"min-cluster-size": 1_u64 << 40}}),
                "min-cluster-size too large",
            ),
            (
                "disk-disk",
                json!({"job-id": "taken"}),
                "Job ID 'taken' already in use",
            ),
            (
                "disk-disk",
                json!({"bitmap": "none", "bitmap-mode": "never"}),
                "could not be found",
            ),
            ("other-disk", json!({}), "busy"),
        ] {
            let backup = |target: &str| DriveBackup {
                common: arguments(device, "full", &more),
                target: bench.path(target),
                format: None,
                mode: NewImageMode::AbsolutePaths,
            };
            for size in [SIZE / 2, 2 * SIZE] {
                let content = vec![7; size];
                std::fs::write(bench.path("precious"), &content).unwrap();
                let said = refused(backup("precious")).await;
                assert!(said.contains(words), "{said}");
                assert!(
                    std::fs::read(bench.path("precious")).unwrap() == content,
                    "{said}"
                );
            }
            refused(backup("new")).await;
            assert!(!bench.path("new").exists(), "{more}");
            assert_eq!(bench.graph.nodes().len(), before, "{more}");
        }
        drop(token);
        let job = bench.job("taken");
        job.cancel(true).unwrap();
        end(&job).await;
        // Nothing that was kept for those that were refused is kept any more.
        let right = DriveBackup {
            common: arguments("disk-disk", "full", &json!({"filter-node-name": "filter"})),
            target: bench.path("precious"),
            format: None,
            mode: NewImageMode::AbsolutePaths,
        };
        drive_backup(&bench.graph, &right, &main).await.unwrap();
        assert_eq!(end(&bench.job("job0")).await, None);
        assert!(bench.bytes("precious") == pattern());
    });
}

/// What is written past the filter is not saved first, also if no disk is above it.
#[test]
fn nobody_writes_past_the_filter() {
    run(|bench| async move {
        for options in [
            json!({"driver": "null-co", "node-name": "base", "size": SIZE}),
            json!({"driver": "blkdebug", "node-name": "source", "image": "base"}),
        ] {
            add(&bench, &options).await;
        }
        bench.target("target").await;
        let base = bench.graph.node("base").unwrap();
        let writing = crate::Access {
            used: crate::Permissions::WRITE,
            shared: crate::Permissions::all(),
        };
        let arguments = || arguments("source", "none", &json!({}));
        let writer = bench.graph.add_tool(&base, writing).unwrap();
        let said = bench.start(arguments(), "target").await.unwrap_err();
        let said = said.to_string();
        assert!(
            said.starts_with("Permission conflict on node 'base': permissions 'write'"),
            "{said}"
        );
        bench.graph.remove_backend(&writer).await;
        while !bench.graph.jobs().jobs().is_empty() {
            current::yield_now().await;
        }
        bench.start(arguments(), "target").await.unwrap();
        wait_for(&bench.job("job0"), JobState::Running).await;
        assert!(bench.graph.add_tool(&base, writing).is_err());
        let job = bench.job("job0");
        job.cancel(true).unwrap();
        job.concluded().await;
        assert!(bench.graph.add_tool(&base, writing).is_ok());
    });
}
