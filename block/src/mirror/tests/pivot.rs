//! The switch-over: what is on which side of it, and what happens when it does not come about.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use sluice_aio::{IoBuffer, current};

use super::bench::{BLOCK, SIZE, block_value, common, debug, pattern, run, run_both, write_block};
use crate::driver::DebugEvent;
use crate::driver::blkdebug::InjectError;
use crate::event::BlockEvent;
use crate::job::JobState;
use crate::mirror::SyncMode;
use crate::parting::tests::yield_often;

#[test]
fn a_quiet_disk_is_copied_and_the_root_is_swapped() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        assert_eq!(disk.node().unwrap().driver_name(), "mirror_top");
        assert_eq!(bench.complete().await, None);
        assert_eq!(disk.node().unwrap().name(), "target");
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        let source = bench.graph.node("disk-node").unwrap();
        assert_eq!(source.writer(), None);
        // The right to write went down to the file, under the disk's name.
        let (_, image) = target.children().remove(0);
        let (_, file) = image.children().remove(0);
        for node in [target, image, file] {
            assert_eq!(node.writer().as_deref(), Some("disk"));
        }
        assert!(!disk.gate().is_closed());
    });
}

#[test]
fn nothing_of_a_job_is_left_after_its_end() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let mut arguments = common("disk");
        arguments.auto_dismiss = None;
        bench.mirror_with("target", arguments).await;
        let filter = Arc::downgrade(&disk.node().unwrap());
        let before: Vec<_> = bench
            .graph
            .nodes()
            .iter()
            .map(|node| node.name().to_owned())
            .collect();
        bench.wait_for(JobState::Ready).await;
        let job = bench.job();
        job.complete().unwrap();
        job.concluded().await;
        bench
            .wait_until(|_| (job.state() == JobState::Null).then_some(()))
            .await;
        drop(job);
        assert!(bench.graph.jobs().jobs().is_empty());
        let after: Vec<_> = bench
            .graph
            .nodes()
            .iter()
            .map(|node| node.name().to_owned())
            .collect();
        assert_eq!(after.len() + 1, before.len(), "{before:?} {after:?}");
        // The job's task ends in its own loop.
        while filter.strong_count() > 0 {
            current::yield_now().await;
        }
    });
}

#[test]
fn readiness_is_told_with_all_the_work_done_and_the_end_with_what_it_cost() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.complete().await;
        let events = bench.events();
        let ready = events.iter().find_map(|event| match event {
            BlockEvent::BlockJobReady(report) => Some((report.len, report.offset)),
            _ => None,
        });
        assert_eq!(ready, Some((SIZE, SIZE)));
        let details = events.iter().find_map(|event| match event {
            BlockEvent::BlockJobCompleted { details, error, .. } => {
                assert_eq!(*error, None);
                Some(details.clone())
            }
            _ => None,
        });
        assert_eq!(details.unwrap()["x-bytes-copied"], json!(SIZE));
        let states: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                BlockEvent::JobStatusChange { status, .. } => Some(status.name()),
                _ => None,
            })
            .collect();
        let expected = [
            "created",
            "running",
            "ready",
            "waiting",
            "pending",
            "concluded",
        ];
        // The drained section of the start shows as a pause.
        let seen: Vec<_> = states
            .into_iter()
            .filter(|state| *state != "paused")
            .collect();
        let mut seen: Vec<_> = seen.into_iter().collect();
        seen.dedup();
        assert_eq!(seen, expected);
    });
}

/// The founding case: a write that arrives between "bitmap clean" and "root swapped".
#[test]
fn a_write_inside_the_window_waits_and_lands_on_the_target_alone() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&target)
            .set_break(DebugEvent::PivotClean, "window")
            .unwrap();
        bench.job().complete().unwrap();
        debug(&target).wait_break("window").await.unwrap();
        let write = bench.park_write(&disk, 1 << 20, 0xee).await;
        let before = bench.bytes("disk");
        assert_eq!(before, bench.bytes("target"));
        debug(&target).resume("window").unwrap();
        write.await.unwrap();
        assert_eq!(
            bench.bytes("disk"),
            before,
            "a write reached the old source"
        );
        assert_eq!(block_value(&bench.bytes("target"), 1 << 20), Some(0xee));
        assert_eq!(bench.end().await, None);
    });
}

/// The same without the gate: the mirror must be seen to go wrong, or the test above shows nothing.
#[test]
fn a_device_that_ignores_the_section_loses_its_write() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&target)
            .set_break(DebugEvent::PivotClean, "window")
            .unwrap();
        bench.job().complete().unwrap();
        debug(&target).wait_break("window").await.unwrap();
        let careless = Arc::clone(&disk);
        bench
            .in_guest(move || async move {
                let token = careless.enter_ignoring_sections();
                let buffer = IoBuffer::copied_from(&[0xee; 4096]);
                careless.write(&token, 1 << 20, buffer).await.unwrap();
            })
            .await;
        debug(&target).resume("window").unwrap();
        assert_eq!(bench.end().await, None);
        assert_eq!(block_value(&bench.bytes("disk"), 1 << 20), Some(0xee));
        let lost = block_value(&bench.bytes("target"), 1 << 20);
        assert_ne!(lost, Some(0xee), "the lost write was not lost");
    });
}

/// Writes go on until the pivot has happened, and then some: the guest never lets the bitmap rest.
#[test]
fn a_guest_that_never_stops_writing_is_pivoted_too() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let writer = {
            let disk = Arc::clone(&disk);
            bench.context.call(move || async move {
                let mut last = vec![None; usize::try_from(SIZE / BLOCK).unwrap()];
                let mut after = 0;
                let mut round = 0;
                while after < 100 {
                    let block = round * 7919 % (SIZE / BLOCK);
                    let value = u8::try_from(round % 256).unwrap();
                    write_block(&disk, block * BLOCK, value).await.unwrap();
                    last[usize::try_from(block).unwrap()] = Some(value);
                    after += usize::from(disk.node().unwrap().name() == "target");
                    round += 1;
                }
                last
            })
        };
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        let last = writer.await.unwrap();
        let image = bench.bytes("target");
        let initial = pattern(SIZE);
        for (block, value) in (0u64..).zip(last) {
            let initial = block_value(&initial, block * BLOCK);
            assert_eq!(
                block_value(&image, block * BLOCK),
                value.or(initial),
                "block {block}"
            );
        }
    });
}

#[test]
fn the_old_source_is_left_as_it_was_at_the_pivot() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        let frozen = bench.bytes("disk");
        for block in 0..SIZE / BLOCK {
            bench.write(&disk, block * BLOCK, 0xcc).await;
        }
        assert_eq!(bench.bytes("disk"), frozen);
        assert!(bench.bytes("target").iter().all(|byte| *byte == 0xcc));
    });
}

#[test]
fn a_job_that_waits_to_be_finalised_does_not_hold_the_guest() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let mut arguments = common("disk");
        arguments.auto_finalize = Some(false);
        bench.mirror_with("target", arguments).await;
        bench.wait_for(JobState::Ready).await;
        bench.job().complete().unwrap();
        bench.wait_for(JobState::Pending).await;
        assert!(!disk.gate().is_closed());
        for block in 0..SIZE / BLOCK {
            bench.write(&disk, block * BLOCK, 0xab).await;
        }
        assert!(bench.bytes("disk").iter().all(|byte| *byte == 0xab));
        // What it writes is copied meanwhile, and nothing is left for the end.
        while bench.bytes("target").iter().any(|byte| *byte != 0xab) {
            current::yield_now().await;
        }
        bench.job().finalize().unwrap();
        assert_eq!(bench.end().await, None);
        assert!(bench.bytes("target").iter().all(|byte| *byte == 0xab));
        assert_eq!(disk.node().unwrap().name(), "target");
    });
}

#[test]
fn a_failure_before_the_swap_leaves_the_disk_on_its_source() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&target).inject(InjectError::new(DebugEvent::PivotClean, libc::EIO));
        debug(&target)
            .set_break(DebugEvent::PivotClean, "window")
            .unwrap();
        bench.job().complete().unwrap();
        debug(&target).wait_break("window").await.unwrap();
        let write = bench.park_write(&disk, 0, 0xdd).await;
        debug(&target).resume("window").unwrap();
        write.await.unwrap();
        assert!(bench.end().await.is_some());
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert_eq!(block_value(&bench.bytes("disk"), 0), Some(0xdd));
        assert_ne!(block_value(&bench.bytes("target"), 0), Some(0xdd));
        assert!(!bench.has_node_of("mirror_top"));
        assert!(!disk.gate().is_closed());
        assert_eq!(disk.node().unwrap().writer().as_deref(), Some("disk"));
        assert_eq!(target.writer(), None);
        // And it may be tried again.
        debug(&target).clear_errors();
        bench.job().dismiss().unwrap();
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(0xdd));
    });
}

#[test]
fn a_flush_that_fails_in_the_pivot_fails_the_job_and_not_the_guest() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&target).inject(InjectError::new(DebugEvent::FlushToDisk, libc::ENOSPC));
        bench.job().complete().unwrap();
        assert_eq!(
            bench.end().await.as_deref(),
            Some("No space left on device")
        );
        bench.write(&disk, 0, 1).await;
        assert_eq!(disk.node().unwrap().name(), "disk-node");
    });
}

#[test]
fn an_error_after_the_swap_does_not_fail_the_job() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        debug(&target).inject(InjectError {
            once: true,
            ..InjectError::new(DebugEvent::PivotSwapped, libc::EIO)
        });
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(disk.node().unwrap().name(), "target");
        bench.write(&disk, 0, 9).await;
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(9));
    });
}

/// A section of somebody else is exclusive too: it waits until the pivot is over.
#[test]
fn other_sections_wait_for_the_pivot() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&target)
            .set_break(DebugEvent::PivotClean, "window")
            .unwrap();
        bench.job().complete().unwrap();
        debug(&target).wait_break("window").await.unwrap();
        let graph = Arc::clone(&bench.graph);
        let is_drained = Arc::new(AtomicBool::new(false));
        let drained = Arc::clone(&is_drained);
        let other = current::spawn_local(async move {
            let section = graph.drain_all("stop").await;
            drained.store(true, Ordering::SeqCst);
            let root = graph.backend("disk").and_then(|disk| disk.node()).unwrap();
            (section, root.name().to_owned())
        });
        yield_often().await;
        assert!(!is_drained.load(Ordering::SeqCst));
        debug(&target).resume("window").unwrap();
        let (section, root) = other.await.unwrap();
        assert_eq!(root, "target");
        let write = bench.park_write(&disk, 0, 7).await;
        assert_ne!(block_value(&bench.bytes("target"), 0), Some(7));
        drop(section);
        write.await.unwrap();
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(7));
    });
}

/// A section that was there first outlives the pivot of a job that began inside it.
#[test]
fn a_section_keeps_its_disk_across_the_change_of_root() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        debug(&target)
            .set_break(DebugEvent::PivotClean, "window")
            .unwrap();
        bench.job().complete().unwrap();
        debug(&target).wait_break("window").await.unwrap();
        // Begun while the pivot is on its way, so it covers the gate before the root is swapped.
        let graph = Arc::clone(&bench.graph);
        let root = disk.node().unwrap();
        let section = current::spawn_local(async move { graph.drain(&root, "other").await });
        while disk.gate().stats().holders.len() < 2 {
            current::yield_now().await;
        }
        debug(&target).resume("window").unwrap();
        let section = section.await.unwrap();
        assert_eq!(bench.end().await, None);
        assert!(
            disk.gate().is_closed(),
            "the pivot's end has opened another's section"
        );
        let write = bench.park_write(&disk, 0, 5).await;
        drop(section);
        write.await.unwrap();
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(5));
        assert!(!disk.gate().is_closed());
    });
}

#[test]
fn a_soft_cancel_leaves_a_copy_of_one_moment() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        bench.write(&disk, 0, 0x11).await;
        bench.job().cancel(false).unwrap();
        assert_eq!(bench.end().await, None);
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(target.writer(), None);
        bench.write(&disk, 0, 0x22).await;
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(0x11));
        assert!(!bench.has_node_of("mirror_top"));
    });
}

#[test]
fn with_sync_none_only_new_writes_are_copied() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let mut arguments = common("disk");
        arguments.sync = SyncMode::None;
        bench.mirror_with("target", arguments).await;
        bench.wait_for(JobState::Ready).await;
        bench.write(&disk, 65536, 0x33).await;
        assert_eq!(bench.complete().await, None);
        let image = bench.bytes("target");
        assert_eq!(block_value(&image, 65536), Some(0x33));
        assert_eq!(block_value(&image, 0), Some(0));
    });
}

#[test]
fn a_read_only_disk_can_move_too() {
    run(|bench| async move {
        std::fs::write(bench.path("disk"), pattern(SIZE)).unwrap();
        let node = bench
            .node(json!({
                "driver": "raw", "node-name": "ro", "read-only": true,
                "file": {"driver": "file", "filename": bench.path("disk")}
            }))
            .await;
        let disk = bench.attach("disk", &node);
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(disk.node().unwrap().name(), "target");
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(target.writer(), None, "nobody writes to a read-only disk");
        assert!(target.is_read_only(), "as the image was whose place it has");
    });
}

#[test]
fn a_disk_without_bytes_is_mirrored_at_once() {
    run(|bench| async move {
        let null = |name: &str| json!({"driver": "null-co", "node-name": name, "size": 0});
        let source = bench.node(null("source")).await;
        let disk = bench.attach("disk", &source);
        bench.node(null("target")).await;
        bench.mirror("disk", "target").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(disk.node().unwrap().name(), "target");
    });
}

#[test]
fn a_node_that_nobody_uses_can_be_mirrored() {
    run(|bench| async move {
        std::fs::write(bench.path("idle"), pattern(SIZE)).unwrap();
        bench.image_node("idle").await;
        let target = bench.target("target").await;
        bench.mirror("idle-node", "target").await;
        assert_eq!(bench.complete().await, None);
        assert_eq!(bench.bytes("idle"), bench.bytes("target"));
        assert_eq!(target.writer(), None);
    });
}
