//! Backups in transactions: one instant, all or none, and jobs that succeed together.

use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, select};
use serde_json::{Value, json};
use sluice_aio::{IoBuffer, current};

use super::bench::*;
use crate::backend::Backend;
use crate::backup::{BlockdevBackup, DriveBackup};
use crate::driver::DebugEvent;
use crate::graph::{BitmapAction, BitmapAdd};
use crate::options::NewImageMode;
use crate::transaction::{Action, CompletionMode, transact};

fn backup(device: &str, target: &str, more: &Value) -> Action {
    let mut common = arguments(device, "full", more);
    common.job_id = Some(format!("of-{device}"));
    Action::BlockdevBackup(Box::new(BlockdevBackup {
        common,
        target: target.to_owned(),
    }))
}

/// A copy of all of the disk to a file.
fn drive_backup(
    bench: &Bench,
    device: &str,
    target: &str,
    mode: NewImageMode,
    more: &Value,
) -> Action {
    Action::DriveBackup(Box::new(DriveBackup {
        common: arguments(device, "full", more),
        target: bench.path(target),
        format: None,
        mode,
    }))
}

async fn two_disks(bench: &Bench) -> [Arc<Backend>; 2] {
    let disks = [bench.disk("journal").await, bench.disk("data").await];
    for name in ["journal-copy", "data-copy"] {
        bench.target(name).await;
    }
    disks
}

fn both(more: &Value) -> [Action; 2] {
    [
        backup("journal-disk", "journal-copy", more),
        backup("data-disk", "data-copy", more),
    ]
}

async fn act(bench: &Bench, actions: &[Action], mode: CompletionMode) -> Result<(), String> {
    let done = transact(&bench.graph, actions, mode, &current::context()).await;
    done.map_err(|error| error.to_string())
}

async fn write_record(disk: &Backend, record: u32) {
    let token = disk.enter().await.unwrap();
    let buffer = IoBuffer::alloc(512);
    buffer.copy_from_slice(0, &record.to_le_bytes());
    disk.write(&token, 0, buffer).await.unwrap();
}

/// A guest that writes each record to its journal, and when that has ended to its data: what a
/// database does. On the copies there may be one record that is in the journal alone, and none that
/// is in the data alone.
#[test]
fn copies_of_several_disks_are_of_one_instant() {
    for in_thread in [false, true] {
        run_with(in_thread, sluice_aio::Clock::real(), |bench| async move {
            let [journal, data] = two_disks(&bench).await;
            let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let stopped = Arc::clone(&stop);
            let guest = bench.context.call(move || async move {
                // What both disks begin with.
                let mut record = u32::from_le_bytes([1; 4]);
                while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
                    record += 1;
                    write_record(&journal, record).await;
                    write_record(&data, record).await;
                    current::yield_now().await;
                }
                record
            });
            let mut last = 0;
            for round in 0..20 {
                settle().await;
                let mode = CompletionMode::Grouped;
                act(&bench, &both(&json!({})), mode).await.unwrap();
                for id in ["of-journal-disk", "of-data-disk"] {
                    let job = bench.job(id);
                    assert_eq!(end(&job).await, None);
                    job.dismiss().unwrap();
                }
                let record = |name: &str| {
                    let bytes = bench.bytes(name);
                    u32::from_le_bytes(bytes[..4].try_into().unwrap())
                };
                let (first, second) = (record("journal-copy"), record("data-copy"));
                assert!(
                    first == second || first == second + 1,
                    "round {round}: {first} in the journal, {second} in the data"
                );
                assert!(first >= last);
                last = first;
            }
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            assert!(guest.await.unwrap() > last);
            bench.check_clean();
        });
    }
}

#[test]
fn a_transaction_waits_for_what_runs() {
    run(|bench| async move {
        let [journal, _] = two_disks(&bench).await;
        let node = bench.graph.node("journal").unwrap();
        debug(&node)
            .set_break(DebugEvent::WriteAio, "write")
            .unwrap();
        let writing = current::spawn_local(bench.begin_write(&journal, 0, 512, 0xaa));
        debug(&node).wait_break("write").await.unwrap();
        let graph = Arc::clone(&bench.graph);
        let acting = current::spawn_local(async move {
            let actions = both(&json!({}));
            let mode = CompletionMode::Individual;
            transact(&graph, &actions, mode, &current::context()).await
        });
        settle().await;
        assert!(
            bench.graph.jobs().jobs().is_empty(),
            "a write is on its way"
        );
        debug(&node).resume("write").unwrap();
        writing.await.unwrap().unwrap();
        acting.await.unwrap().unwrap();
        assert_eq!(end(&bench.job("of-journal-disk")).await, None);
        assert_eq!(bench.bytes("journal-copy")[0], 0xaa);
    });
}

#[test]
fn if_one_of_a_group_fails_the_other_is_cancelled() {
    for grouped in [false, true] {
        run_both(move |bench| async move {
            let [journal, _] = two_disks(&bench).await;
            let add = json!({"node": "journal", "name": "b"});
            let add: BitmapAdd = serde_json::from_value(add).unwrap();
            bench.graph.change_bitmap(&BitmapAction::Add(add)).unwrap();
            bench.write(&journal, 0, 512, 0xaa).await;
            let copy = bench.graph.node("data-copy").unwrap();
            inject(&copy, DebugEvent::WriteAio, libc::EIO);
            let with_bitmap = json!({"bitmap": "b", "bitmap-mode": "on-success"});
            let actions = [
                backup("journal-disk", "journal-copy", &with_bitmap),
                backup("data-disk", "data-copy", &json!({})),
            ];
            let mode = match grouped {
                true => CompletionMode::Grouped,
                false => CompletionMode::Individual,
            };
            act(&bench, &actions, mode).await.unwrap();
            let failed = end(&bench.job("of-data-disk")).await;
            assert_eq!(failed.as_deref(), Some("Input/output error"));
            let other = end(&bench.job("of-journal-disk")).await;
            let expected = grouped.then_some("Operation canceled");
            assert_eq!(other.as_deref(), expected);
            let info = &bench.graph.node("journal").unwrap().dirty_bitmaps()[0];
            assert_eq!(info.count, if grouped { CLUSTER as u64 } else { 0 });
            assert!(!info.busy);
            bench.check_clean();
        });
    }
}

#[test]
fn backups_that_were_prepared_are_taken_back() {
    run_both(|bench| async move {
        let [journal, _] = two_disks(&bench).await;
        let add = json!({"node": "journal", "name": "b"});
        let add: BitmapAdd = serde_json::from_value(add).unwrap();
        bench.graph.change_bitmap(&BitmapAction::Add(add)).unwrap();
        bench.write(&journal, 0, 512, 0xaa).await;
        let before = bench.graph.picture();
        let with_bitmap = json!({"bitmap": "b", "bitmap-mode": "on-success"});
        let actions = [
            backup("journal-disk", "journal-copy", &with_bitmap),
            drive_backup(
                &bench,
                "data-disk",
                "new",
                NewImageMode::AbsolutePaths,
                &json!({"job-id": "drive"}),
            ),
            Action::Abort,
        ];
        let error = act(&bench, &actions, CompletionMode::Individual).await;
        assert_eq!(error.unwrap_err(), "Transaction aborted using Abort action");
        assert_eq!(bench.graph.picture(), before);
        assert!(!bench.path("new").exists());
        assert!(bench.graph.jobs().jobs().is_empty());
        let info = &bench.graph.node("journal").unwrap().dirty_bitmaps()[0];
        assert_eq!((info.count, info.busy), (CLUSTER as u64, false));
        assert_eq!(bench.events(), ["created", "created", "null", "null"]);
        bench.check_clean();
        bench.write(&journal, CLUSTER, 512, 0xaa).await;
        assert!(
            bench
                .bytes("journal-copy")
                .iter()
                .all(|byte| *byte == UNTOUCHED)
        );
        // Names and nodes are free again.
        act(&bench, &actions[..2], CompletionMode::Individual)
            .await
            .unwrap();
        assert_eq!(end(&bench.job("of-journal-disk")).await, None);
        assert_eq!(end(&bench.job("drive")).await, None);
        assert!(bench.bytes("new") == pattern());
    });
}

/// All files are opened before the first is emptied.
#[test]
fn if_one_action_is_refused_no_file_is_touched() {
    run(|bench| async move {
        two_disks(&bench).await;
        let content = vec![7; SIZE / 2];
        std::fs::write(bench.path("precious"), &content).unwrap();
        let drive = |disk: &str, target: &str, id: &str| {
            let more = json!({"job-id": id, "filter-node-name": id});
            drive_backup(&bench, disk, target, NewImageMode::AbsolutePaths, &more)
        };
        let before = bench.graph.picture();
        for (second, words) in [
            (drive("data-disk", "new", "one"), "'one'"),
            (drive("data-disk", "no/where", "two"), "no/where"),
            (drive("data-disk", "precious", "two"), "another block node"),
            (drive("journal-disk", "new", "two"), "is busy"),
        ] {
            let actions = [drive("journal-disk", "precious", "one"), second];
            let error = act(&bench, &actions, CompletionMode::Individual).await;
            let error = error.unwrap_err();
            assert!(error.contains(words), "{error}");
            assert!(bench.bytes("precious") == content, "{error}");
            assert!(!bench.path("new").exists(), "{error}");
            assert_eq!(bench.graph.picture(), before);
        }
        bench.check_clean();
    });
}

/// Whichever it is, and although all backups stand already.
#[test]
fn if_a_later_action_fails_all_files_are_as_they_were() {
    run_both(|bench| async move {
        let [journal, _] = two_disks(&bench).await;
        let add: BitmapAdd =
            serde_json::from_value(json!({"node": "journal", "name": "b"})).unwrap();
        let add = BitmapAction::Add(add);
        bench.graph.change_bitmap(&add).unwrap();
        let drive = |disk: &str, target: &str| {
            let more = json!({"job-id": disk});
            drive_backup(&bench, disk, target, NewImageMode::AbsolutePaths, &more)
        };
        let before = bench.graph.picture();
        for (last, words) in [
            (Action::Abort, "aborted"),
            (Action::Bitmap(add), "already exists"),
            (backup("journal-disk", "no-target", &json!({})), "no-target"),
            (backup("data-disk", "data-copy", &json!({})), "is busy"),
        ] {
            for size in [SIZE / 2, SIZE, 2 * SIZE] {
                let content = vec![7; size];
                std::fs::write(bench.path("precious"), &content).unwrap();
                let targets = [("precious", "new"), ("new", "precious")];
                for (one, other) in targets {
                    let actions = [
                        drive("journal-disk", one),
                        drive("data-disk", other),
                        last.clone(),
                    ];
                    let error = act(&bench, &actions, CompletionMode::Individual).await;
                    let error = error.unwrap_err();
                    assert!(error.contains(words), "{error}");
                    assert!(bench.bytes("precious") == content, "{error}");
                    assert!(!bench.path("new").exists(), "{error}");
                    assert_eq!(bench.graph.picture(), before);
                }
            }
        }
        bench.check_clean();
        bench.write(&journal, 0, 512, 0xaa).await;
        // Both can be had when nothing fails.
        let actions = [drive("journal-disk", "precious"), drive("data-disk", "new")];
        act(&bench, &actions, CompletionMode::Individual)
            .await
            .unwrap();
        for (id, target) in [("journal-disk", "precious"), ("data-disk", "new")] {
            assert_eq!(end(&bench.job(id)).await, None);
            assert!(bench.bytes(target) == bench.bytes(id.trim_end_matches("-disk")));
        }
    });
}

#[test]
fn one_disk_is_backed_up_once_in_a_transaction() {
    run(|bench| async move {
        two_disks(&bench).await;
        let mut twice = both(&json!({}));
        twice[1] = backup("journal-disk", "data-copy", &json!({}));
        let error = act(&bench, &twice, CompletionMode::Individual).await;
        assert!(error.unwrap_err().contains("is busy"));
        assert!(bench.graph.jobs().jobs().is_empty());
        bench.check_clean();
    });
}

/// Another client cancels the job while the transaction takes it back.
#[test]
fn a_job_may_be_cancelled_while_its_transaction_fails() {
    run_both(|bench| async move {
        let disks = two_disks(&bench).await;
        let mut actions = both(&json!({})).to_vec();
        actions.push(Action::Abort);
        for _ in 0..50 {
            let graph = Arc::clone(&bench.graph);
            let cancels = async move {
                loop {
                    if let Some(job) = graph.jobs().get("of-journal-disk") {
                        // Too late if it has vanished meanwhile.
                        let _ = job.cancel(true);
                    }
                    current::yield_now().await;
                }
            };
            let fails = act(&bench, &actions, CompletionMode::Individual);
            match select(pin!(fails), pin!(cancels)).await {
                Either::Left((failed, _)) => failed.unwrap_err(),
                Either::Right((never, _)) => never,
            };
            assert!(bench.graph.jobs().jobs().is_empty());
            for disk in &disks {
                assert!(!disk.gate().is_closed());
                write_record(disk, 1).await;
            }
        }
        act(&bench, &both(&json!({})), CompletionMode::Individual)
            .await
            .unwrap();
        for id in ["of-journal-disk", "of-data-disk"] {
            let job = bench.graph.jobs().get(id).unwrap();
            assert_eq!(end(&job).await, None);
        }
    });
}

/// What one action has another can't have. The job that has it is not there any more when somebody reads that.
#[test]
fn what_another_action_has_is_refused_by_that() {
    run(|bench| async move {
        two_disks(&bench).await;
        let add = serde_json::from_value(json!({"node": "journal", "name": "b"})).unwrap();
        bench.graph.change_bitmap(&BitmapAction::Add(add)).unwrap();
        std::fs::write(bench.path("precious"), vec![7; SIZE]).unwrap();
        let named = |device: &str, target: &str, more: &Value| {
            let mut backup = backup(device, target, &json!({}));
            if let Action::BlockdevBackup(backup) = &mut backup {
                backup.common = arguments(device, "full", more);
            }
            backup
        };
        let drive = |device: &str, target: &str, more: &Value| {
            drive_backup(&bench, device, target, NewImageMode::AbsolutePaths, more)
        };
        let bitmap = json!({"job-id": "one", "bitmap": "b", "bitmap-mode": "always"});
        let in_bitmap =
            serde_json::from_value(json!({"node": "journal-disk", "name": "b"})).unwrap();
        let (one, two) = (json!({"job-id": "one"}), json!({"job-id": "two"}));
        let filter = |id: &str| json!({"job-id": id, "filter-node-name": "filter"});
        let disk_of_one =
            "Node 'journal-disk' is busy: block device is in use by block job: backup 'one'";
        let bitmap_of_one =
            "Bitmap 'b' is currently in use by another operation and cannot be used";
        let file_of_one = format!(
            "Could not use '{}' for backup 'two': it is the file of another block node, which is in use by block job: \
             backup 'one'",
            bench.path("precious").display()
        );
        let filter_of_one = "Duplicate nodes with node-name='filter'";
        let cases = [
            (
                named("journal-disk", "journal-copy", &one),
                named("data-disk", "journal-copy", &two),
                "Node 'journal-copy' is busy: block device is in use by block job: backup 'one'",
            ),
            (
                named("journal-disk", "journal-copy", &bitmap),
                named("journal-disk", "data-copy", &two),
                disk_of_one,
            ),
            (
                named("journal-disk", "journal-copy", &bitmap),
                Action::Bitmap(BitmapAction::Clear(in_bitmap)),
                bitmap_of_one,
            ),
            (
                named("journal-disk", "journal-copy", &one),
                named("data-disk", "data-copy", &one),
                "Job ID 'one' already in use",
            ),
            (
                named("journal-disk", "journal-copy", &filter("one")),
                named("data-disk", "data-copy", &filter("two")),
                filter_of_one,
            ),
            (
                drive("journal-disk", "precious", &one),
                drive("journal-disk", "new", &two),
                disk_of_one,
            ),
            (
                drive("journal-disk", "precious", &one),
                drive("data-disk", "new", &one),
                "Job ID 'one' already in use",
            ),
            (
                drive("journal-disk", "precious", &filter("one")),
                drive("data-disk", "new", &filter("two")),
                filter_of_one,
            ),
            (
                drive("journal-disk", "precious", &one),
                drive("data-disk", "precious", &two),
                &file_of_one,
            ),
        ];
        for (first, second, text) in cases {
            let actions = [first, second];
            let mode = CompletionMode::Individual;
            let error = transact(&bench.graph, &actions, mode, &current::context()).await;
            let error = error.unwrap_err();
            assert_eq!(error.to_string(), text);
            // Of a disk there is no other one.
            let expected = match text == disk_of_one {
                true => {
                    "another action of the same transaction has it, which was undone: a disk has one job at a time, so \
                     begin one when the other has ended; a second copy of the same instant can be made of the first \
                     one's target then"
                }
                false => {
                    "another action of the same transaction has it, which was undone: give each its own, or begin one \
                     when the other has ended"
                }
            };
            assert_eq!(error.way_out(), Some(expected));
            assert!(bench.graph.jobs().jobs().is_empty());
            bench.check_clean();
        }
        // What somebody else has is told as ever.
        bench
            .start(arguments("data-disk", "none", &two), "data-copy")
            .await
            .unwrap();
        let actions = [
            named("journal-disk", "journal-copy", &one),
            named("data-disk", "journal-copy", &json!({"job-id": "three"})),
        ];
        let mode = CompletionMode::Individual;
        let error = transact(&bench.graph, &actions, mode, &current::context()).await;
        let error = error.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Node 'data-disk' is busy: block device is in use by block job: backup 'two'"
        );
        assert!(error.way_out().unwrap().contains("'job-cancel'"));
        let job = bench.job("two");
        job.cancel(true).unwrap();
        end(&job).await;
    });
}

/// Two backups to one file would each write over what the other has saved there. By whatever names, and nodes, the file is
/// meant, the second is refused, and no file is touched.
#[test]
fn two_backups_never_have_one_file() {
    run(|bench| async move {
        two_disks(&bench).await;
        bench.disk("third").await;
        let (kept, other) = (vec![7; SIZE], vec![8; SIZE / 2]);
        std::fs::write(bench.path("precious"), &kept).unwrap();
        std::fs::write(bench.path("other"), &other).unwrap();
        std::os::unix::fs::symlink("precious", bench.path("link")).unwrap();
        std::fs::hard_link(bench.path("precious"), bench.path("hard")).unwrap();
        for name in ["node", "node-of-link"] {
            let path = bench.path(if name == "node" { "precious" } else { "link" });
            let file = format!("file-of-{name}");
            let file = json!({"driver": "file", "node-name": file, "filename": path});
            let options = json!({"driver": "raw", "node-name": name, "file": file});
            let options = serde_json::from_value(options).unwrap();
            bench.graph.add_node(&options).await.unwrap();
        }
        let common = |device: &str, id: &str| arguments(device, "full", &json!({"job-id": id}));
        let drive = |device: &str, id: &str, target: &str, mode| {
            drive_backup(&bench, device, target, mode, &json!({"job-id": id}))
        };
        let existing = |device, id, target| drive(device, id, target, NewImageMode::Existing);
        let named = |device: &str, id: &str, target: &str| {
            Action::BlockdevBackup(Box::new(BlockdevBackup {
                common: common(device, id),
                target: target.to_owned(),
            }))
        };
        let (journal, data) = ("journal-disk", "data-disk");
        // The actions, the file as it is named where that is refused, who wants it, and who has it.
        let mut cases = vec![
            (
                existing(journal, "one", "precious"),
                named(data, "two", "node"),
                "precious",
                "two",
                "one",
            ),
            (
                named(journal, "one", "node"),
                existing(data, "two", "hard"),
                "precious",
                "one",
                "two",
            ),
            (
                named(journal, "one", "node"),
                named(data, "two", "node-of-link"),
                "link",
                "two",
                "one",
            ),
        ];
        // What stands on the node itself.
        let file = "file-of-node";
        let above = json!({"driver": "raw", "node-name": "above", "file": file});
        let above = serde_json::from_value(above).unwrap();
        bench.graph.add_node(&above).await.unwrap();
        for (first, second) in [("node", "above"), (file, "above"), ("above", file)] {
            cases.push((
                named(journal, "one", first),
                named(data, "two", second),
                "precious",
                "two",
                "one",
            ));
        }
        for name in ["precious", "link", "hard"] {
            cases.push((
                existing(journal, "one", "precious"),
                existing(data, "two", name),
                name,
                "two",
                "one",
            ));
        }
        for (first, second, name, user, holder) in cases {
            let mut actions = vec![first, second];
            // Only nodes that were named are compared when the files have been emptied.
            if actions
                .iter()
                .any(|action| matches!(action, Action::DriveBackup(_)))
            {
                actions.push(drive(
                    "third-disk",
                    "three",
                    "other",
                    NewImageMode::AbsolutePaths,
                ));
            }
            let mode = CompletionMode::Individual;
            let error = transact(&bench.graph, &actions, mode, &current::context()).await;
            let error = error.unwrap_err();
            let path = bench.path(name);
            assert_eq!(
                error.to_string(),
                format!(
                    "Could not use '{}' for backup '{user}': it is the file of another block node, which is in use by \
                     block job: backup '{holder}'",
                    path.display()
                )
            );
            let way_out = error.way_out().unwrap();
            assert!(
                way_out.starts_with("another action of the same transaction has it"),
                "{way_out}"
            );
            assert!(bench.bytes("precious") == kept && bench.bytes("other") == other);
            assert!(bench.graph.jobs().jobs().is_empty());
            bench.check_clean();
        }

        // One that runs already is nobody's fault but its own.
        bench.start(common(journal, "one"), "node").await.unwrap();
        for second in [
            existing(data, "two", "hard"),
            drive(data, "two", "hard", NewImageMode::AbsolutePaths),
            named(data, "two", "node-of-link"),
        ] {
            let mode = CompletionMode::Individual;
            let error = transact(&bench.graph, &[second], mode, &current::context()).await;
            let error = error.unwrap_err();
            assert!(
                error
                    .to_string()
                    .ends_with("in use by block job: backup 'one'"),
                "{error}"
            );
            assert!(error.way_out().unwrap().contains("'job-cancel'"));
        }
        assert_eq!(end(&bench.job("one")).await, None);
        bench.check_clean();
    });
}

/// Windows into one file are no two copies to one place.
#[test]
fn two_backups_may_have_parts_of_one_file() {
    run(|bench| async move {
        two_disks(&bench).await;
        std::fs::write(bench.path("both"), vec![0; 2 * SIZE]).unwrap();
        for options in [
            json!({"driver": "file", "node-name": "both", "filename": bench.path("both")}),
            json!({"driver": "raw", "node-name": "first", "file": "both", "size": SIZE}),
            json!({"driver": "raw", "node-name": "second", "file": "both", "offset": SIZE, "size": SIZE}),
        ] {
            let options = serde_json::from_value(options).unwrap();
            bench.graph.add_node(&options).await.unwrap();
        }
        let actions = [
            backup("journal-disk", "first", &json!({})),
            backup("data-disk", "second", &json!({})),
        ];
        act(&bench, &actions, CompletionMode::Individual)
            .await
            .unwrap();
        for id in ["of-journal-disk", "of-data-disk"] {
            assert_eq!(end(&bench.job(id)).await, None);
        }
        let both = bench.bytes("both");
        assert!(both[..SIZE] == pattern() && both[SIZE..] == pattern());
    });
}
