//! Commits of the image that the guest writes to: they become ready, and the disk goes over to the base.

use super::*;
use crate::job::{IoStatus, JobGroup, VerbError};

/// Waits until the job may be completed.
async fn ready(job: &Job) {
    while job.state() != JobState::Ready {
        assert!(
            !matches!(job.state(), JobState::Concluded | JobState::Null),
            "{:?}",
            job.info().error
        );
        current::yield_now().await;
    }
}

impl Bench {
    /// What an image shows by itself.
    async fn image(&self, number: usize) -> Vec<u8> {
        let buffer = IoBuffer::alloc(SIZE);
        self.images[number].read(0, buffer.clone()).await.unwrap();
        buffer.to_vec()
    }

    fn root(&self) -> String {
        self.disk.node().unwrap().name().to_owned()
    }

    /// The disk stands on that image now, to which it may write.
    fn check_pivoted(&self, image: usize) {
        self.check_idle();
        assert_eq!(self.root(), format!("image{image}"));
        assert!(!self.images[image].is_read_only());
    }
}

#[test]
fn a_disk_goes_over_to_its_base() {
    run(20, |bench| async move {
        let mut expected = bench.shown().await;
        let job = bench.commit(&json!({})).await.unwrap();
        assert_eq!(job.kind().name(), "commit");
        for cluster in [0, 7, 63] {
            guest_write(&bench.disk, cluster * CLUSTER, 512, 0xfe).await;
            expected[cluster * CLUSTER..][..512].fill(0xfe);
        }
        ready(&job).await;
        assert!(bench.shown().await == expected);
        assert_eq!(
            bench.chain(),
            ["image2", "image1", "image0"],
            "until it is completed"
        );
        guest_write(&bench.disk, 9 * CLUSTER + 512, 512, 0xfd).await;
        expected[9 * CLUSTER + 512..][..512].fill(0xfd);
        job.complete().unwrap();
        assert_eq!(end(&job).await, None);
        bench.check_pivoted(0);
        assert!(bench.shown().await == expected);
        // From now on it is written to.
        guest_write(&bench.disk, CLUSTER, 512, 0xfc).await;
        expected[CLUSTER..][..512].fill(0xfc);
        assert!(bench.image(0).await == expected);
        // Those that nobody needs can go.
        for name in ["debug", "image3", "image2", "image1"] {
            bench.graph.del_node(name).unwrap();
        }
        assert!(bench.shown().await == expected);
    });
}

#[test]
fn top_and_base_may_be_named() {
    for top in ["debug", "image3"] {
        run(21, move |bench| async move {
            let expected = bench.shown().await;
            let more = json!({"top-node": top, "base-node": "image1"});
            let job = bench.commit(&more).await.unwrap();
            ready(&job).await;
            job.complete().unwrap();
            assert_eq!(end(&job).await, None);
            bench.check_idle();
            // What stands above the top stays.
            let root = if top == "debug" { "image1" } else { "debug" };
            assert_eq!(bench.root(), root);
            assert_eq!(bench.chain(), ["image0"]);
            assert!(bench.shown().await == expected);
            assert!(bench.images[0].is_read_only());
        });
    }
}

#[test]
fn only_what_is_above_the_base_is_copied() {
    run(22, |bench| async move {
        let mut above = [false; COUNT];
        for image in 1..4 {
            for (above, held) in above.iter_mut().zip(bench.held(image).await) {
                *above |= held;
            }
        }
        let job = bench.commit(&json!({})).await.unwrap();
        ready(&job).await;
        // Whole chunks of the dirty bitmap are copied, if anything of them is held above.
        let per_chunk = (64 << 10) / CLUSTER;
        let chunks = above
            .chunks(per_chunk)
            .filter(|chunk| chunk.contains(&true))
            .count();
        let details = job.block_job_info().details;
        let sum: u64 = ["x-bytes-copied", "x-bytes-zeroed"]
            .iter()
            .map(|name| details[*name].as_u64().unwrap())
            .sum();
        assert_eq!(sum, (chunks * per_chunk * CLUSTER) as u64);
        assert!(
            !details.contains_key("actively-synced"),
            "that is a mirror's"
        );
        job.cancel(true).unwrap();
        end(&job).await;
    });
}

#[test]
fn nothing_is_to_be_copied_where_nothing_is_held() {
    run(23, |bench| async move {
        let empty = bench.graph.add_overlay("empty", SIZE, None).unwrap();
        let node = bench.disk.node().unwrap();
        bench.graph.snapshot(&node, &empty).await.unwrap();
        let before = bench.shown().await;
        let job = bench.commit(&json!({"base-node": "debug"})).await.unwrap();
        ready(&job).await;
        let details = job.block_job_info().details;
        assert_eq!(details["x-bytes-copied"], 0);
        assert_eq!(details["x-bytes-skipped"], SIZE as u64);
        job.complete().unwrap();
        assert_eq!(end(&job).await, None);
        assert!(bench.shown().await == before);
    });
}

#[test]
fn what_only_images_between_hold_is_copied_too() {
    run(33, |bench| async move {
        let empty = bench.graph.add_overlay("empty", SIZE, None).unwrap();
        let node = bench.disk.node().unwrap();
        bench.graph.snapshot(&node, &empty).await.unwrap();
        let before = bench.shown().await;
        let job = bench.commit(&json!({})).await.unwrap();
        ready(&job).await;
        job.complete().unwrap();
        assert_eq!(end(&job).await, None);
        assert_eq!(bench.root(), "image0");
        assert!(bench.shown().await == before);
    });
}

#[test]
fn a_cancel_leaves_the_disk_where_it_is() {
    for force in [true, false] {
        for when_ready in [true, false] {
            run(24, move |bench| async move {
                let expected = bench.shown().await;
                let debug = bench.debug();
                let debug = debug.as_blkdebug().unwrap();
                if !when_ready {
                    debug.set_break(DebugEvent::ReadAio, "copy").unwrap();
                }
                let job = bench.commit(&json!({})).await.unwrap();
                if when_ready {
                    ready(&job).await;
                    job.cancel(force).unwrap();
                } else {
                    debug.wait_break("copy").await.unwrap();
                    job.cancel(force).unwrap();
                    debug.resume("copy").unwrap();
                }
                end(&job).await;
                bench.check_clean();
                assert_eq!(bench.chain(), ["image2", "image1", "image0"]);
                assert!(bench.shown().await == expected);
                if when_ready && !force {
                    // It has ended well, and the base has what the disk showed.
                    assert!(bench.image(0).await == expected);
                }
            });
        }
    }
}

#[test]
fn commands_come_when_they_may() {
    run(25, |bench| async move {
        let debug = bench.debug();
        let debug = debug.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::ReadAio, "copy").unwrap();
        let job = bench.commit(&json!({})).await.unwrap();
        debug.wait_break("copy").await.unwrap();
        assert!(matches!(job.complete(), Err(VerbError::WrongState { .. })));
        let options = json!({"copy-mode": "write-blocking"});
        let changed = job.change(options.as_object().unwrap());
        assert_eq!(changed, Err(VerbError::CannotChange));
        debug.resume("copy").unwrap();
        ready(&job).await;
        job.cancel(true).unwrap();
        end(&job).await;
        bench.check_clean();
    });
}

#[test]
fn the_chain_stays_as_it_is_meanwhile() {
    run(26, |bench| async move {
        let job = bench
            .commit(&json!({"filter-node-name": "filter"}))
            .await
            .unwrap();
        ready(&job).await;
        let busy = |error: String| {
            assert!(
                error.contains("block device is in use by block job: commit 'job'"),
                "{error}"
            );
        };
        for name in ["filter", "debug", "image2", "image1", "image0"] {
            let node = bench.graph.node(name).unwrap();
            let resized = bench.graph.resize(&node, 512).await;
            busy(resized.unwrap_err().to_string());
            let over = bench
                .graph
                .add_overlay(&format!("over-{name}"), SIZE, None)
                .unwrap();
            let snapshot = bench.graph.snapshot(&node, &over).await;
            busy(snapshot.unwrap_err().to_string());
        }
        for more in [json!({}), json!({"top-node": "image1"})] {
            let second = bench.commit(&with(more, &json!({"job-id": "two"}))).await;
            busy(second.unwrap_err().to_string());
        }
        let second = bench.stream(&json!({"job-id": "two"})).await;
        busy(second.unwrap_err().to_string());
        job.cancel(true).unwrap();
        end(&job).await;
        bench.check_clean();
    });
}

#[test]
fn a_base_that_another_disk_reads_is_not_written_to() {
    run(27, |bench| async move {
        let base = Arc::clone(&bench.images[0]);
        let other = bench.graph.add_overlay("other", SIZE, Some(&base)).unwrap();
        bench.graph.add_backend("second", &other).unwrap();
        let before = bench.graph.picture();
        let error = bench.commit(&json!({})).await.unwrap_err();
        assert!(error.to_string().contains("conflict"), "{error}");
        assert_eq!(bench.graph.picture(), before);
        bench.check_clean();
    });
}

#[test]
fn a_base_of_another_size_gets_the_disks() {
    const HALF: u64 = SIZE as u64 / 2;
    for size in [HALF, SIZE as u64 * 2] {
        for completed in [true, false] {
            run(28, move |bench| async move {
                let base = Arc::clone(&bench.images[0]);
                bench.graph.set_read_only(&base, false).unwrap();
                base.resize(size).await.unwrap();
                bench.graph.set_read_only(&base, true).unwrap();
                let expected = bench.shown().await;
                let job = bench.commit(&json!({})).await.unwrap();
                ready(&job).await;
                if completed {
                    job.complete().unwrap();
                    assert_eq!(end(&job).await, None);
                    bench.check_pivoted(0);
                    assert_eq!(base.len(), SIZE as u64);
                } else {
                    job.cancel(true).unwrap();
                    end(&job).await;
                    bench.check_clean();
                    // What is beyond the disk's end is kept.
                    assert_eq!(base.len(), size.max(SIZE as u64));
                }
                assert!(bench.shown().await == expected);
            });
        }
    }
}

/// A disk `second` over an empty layer over a file below a fault injector.
async fn over_a_file(
    bench: &Bench,
    path: &std::path::Path,
) -> (Arc<Backend>, Arc<Node>, Arc<Node>) {
    std::fs::write(path, vec![1; SIZE]).unwrap();
    let file = json!({
        "driver": "raw", "node-name": "base",
        "file": {
            "driver": "blkdebug", "node-name": "injector", "image": {"driver": "file", "filename": path}
        }
    });
    let base = bench
        .graph
        .add_node(&serde_json::from_value(file).unwrap())
        .await
        .unwrap();
    let injector = bench.graph.node("injector").unwrap();
    let top = bench.graph.add_overlay("top", SIZE, Some(&base)).unwrap();
    let disk = bench.graph.add_backend("second", &top).unwrap();
    disk.set_context(&bench.context);
    guest_write(&disk, 3 * CLUSTER, 5 * CLUSTER, 2).await;
    (disk, base, injector)
}

#[test]
fn a_full_file_is_the_operators() {
    run(29, |bench| async move {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("base.img");
        let (disk, _, injector) = over_a_file(&bench, &path).await;
        let full = || {
            let rule = InjectError::new(DebugEvent::WriteAio, libc::ENOSPC);
            injector.as_blkdebug().unwrap().inject(rule);
        };
        full();
        let second = json!({"device": "second"});
        let job = bench.commit(&second).await.unwrap();
        assert_eq!(end(&job).await.as_deref(), Some("No space left on device"));
        bench.check_clean();
        assert_eq!(disk.node().unwrap().name(), "top");
        // The guest does not notice.
        guest_write(&disk, 4 * CLUSTER, 512, 3).await;
        let more = with(second, &json!({"on-error": "enospc"}));
        let job = bench.commit(&more).await.unwrap();
        while job.block_job_info().io_status == IoStatus::Ok || job.state() != JobState::Paused {
            current::yield_now().await;
        }
        guest_write(&disk, 5 * CLUSTER, 512, 4).await;
        injector.as_blkdebug().unwrap().clear_errors();
        job.resume().unwrap();
        ready(&job).await;
        // What the guest writes is copied too, or not: then the disk stays where it is.
        full();
        guest_write(&disk, 6 * CLUSTER, 512, 5).await;
        while job.block_job_info().io_status == IoStatus::Ok || job.state() != JobState::Standby {
            current::yield_now().await;
        }
        injector.as_blkdebug().unwrap().clear_errors();
        job.resume().unwrap();
        ready(&job).await;
        job.complete().unwrap();
        assert_eq!(end(&job).await, None);
        bench.check_idle();
        assert_eq!(disk.node().unwrap().name(), "base");
        let mut expected = vec![1; SIZE];
        expected[3 * CLUSTER..8 * CLUSTER].fill(2);
        for (cluster, value) in [(4, 3), (5, 4), (6, 5)] {
            expected[cluster * CLUSTER..][..512].fill(value);
        }
        assert!(std::fs::read(&path).unwrap() == expected);
    });
}

#[test]
fn what_cannot_be_read_is_not_lost() {
    run(30, |bench| async move {
        let debug = bench.debug();
        let debug = debug.as_blkdebug().unwrap();
        debug.inject(InjectError::new(DebugEvent::ReadAio, libc::EIO));
        let job = bench.commit(&json!({})).await.unwrap();
        assert_eq!(end(&job).await.as_deref(), Some("Input/output error"));
        bench.check_clean();
        assert_eq!(bench.chain(), ["image2", "image1", "image0"]);
    });
}

#[test]
fn an_image_in_the_middle_that_a_disk_writes_to_goes_over_with_the_disk() {
    run(31, |bench| async move {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("base.img");
        let (disk, base, _) = over_a_file(&bench, &path).await;
        let top = bench.graph.node("top").unwrap();
        let idle = bench.graph.add_overlay("idle", SIZE, Some(&top)).unwrap();
        let middle = json!({"device": "idle", "top-node": "top"});
        let more = with(middle.clone(), &json!({"backing-file": "f"}));
        assert_eq!(
            bench.commit(&more).await.unwrap_err().to_string(),
            "'backing-file' specified, but 'top' has a writer on it"
        );
        let job = bench.commit(&middle).await.unwrap();
        ready(&job).await;
        guest_write(&disk, 9 * CLUSTER, 512, 7).await;
        job.complete().unwrap();
        assert_eq!(end(&job).await, None);
        bench.check_idle();
        for below in [disk.node(), idle.backing()] {
            assert_eq!(below.unwrap().name(), base.name());
        }
        assert_eq!(
            std::fs::read(&path).unwrap()[9 * CLUSTER..][..512],
            [7; 512]
        );
    });
}

/// Two disks go over to their bases together: if one cannot, the other goes back onto its whole chain.
#[test]
fn a_pivot_is_taken_back_if_another_fails() {
    run(34, |bench| async move {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("base.img");
        let (second, _, injector) = over_a_file(&bench, &path).await;
        let expected = bench.shown().await;
        let job = bench.commit(&json!({})).await.unwrap();
        let other = json!({"device": "second", "job-id": "other", "auto-dismiss": false});
        let other = serde_json::from_value(other).unwrap();
        let main = current::context();
        block_commit(&bench.graph, &other, &main).await.unwrap();
        let other = bench.graph.jobs().get("other").unwrap();
        for job in [&job, &other] {
            ready(job).await;
        }
        guest_write(&second, 20 * CLUSTER, 512, 8).await;
        let debug = injector.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::PivotAgreed, "agreed").unwrap();
        JobGroup::complete(&[Arc::clone(&job), Arc::clone(&other)]).unwrap();
        debug.wait_break("agreed").await.unwrap();
        // The one has switched over when the other finds that it can't.
        while bench.disk.node().unwrap().name() != "image0" {
            current::sleep(std::time::Duration::from_millis(1)).await;
        }
        debug.fail("agreed", libc::ENOSPC).unwrap();
        for job in [&job, &other] {
            end(job).await;
        }
        assert_eq!(second.node().unwrap().name(), "top");
        bench.check_clean();
        assert_eq!(bench.chain(), ["image2", "image1", "image0"]);
        assert!(bench.shown().await == expected);
    });
}

/// A guest that writes where it likes while its images are committed into one another, with cancels.
async fn history(mut bench: Bench) {
    let mut model = bench.shown().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (disk, stopped) = (Arc::clone(&bench.disk), Arc::clone(&stop));
    let mut dice = Dice(bench.dice.0 ^ 0x5eed);
    let guest = current::spawn_local(async move {
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            let len = (dice.roll(20) + 1) * 512;
            let at = dice.roll((SIZE - len) / 512) * 512;
            let value = u8::try_from(dice.roll(255) + 1).unwrap();
            guest_write(&disk, at, len, value).await;
            model[at..at + len].fill(value);
            for _ in 0..dice.roll(4) {
                current::yield_now().await;
            }
        }
        model
    });
    while !bench.chain().is_empty() {
        let chain = bench.chain();
        let base = chain[bench.dice.roll(chain.len())].clone();
        let job = bench.commit(&json!({"base-node": base})).await.unwrap();
        for _ in 0..bench.dice.roll(60) {
            match bench.dice.roll(6) {
                0 => drop(job.pause()),
                1 => {
                    let nodes = bench.graph.nodes();
                    let node = &nodes[bench.dice.roll(nodes.len())];
                    drop(bench.graph.drain(node, "random").await);
                }
                2 => drop(job.complete()),
                _ => drop(job.resume()),
            }
            current::yield_now().await;
        }
        match bench.dice.roll(6) {
            0 => drop(job.cancel(true)),
            1 => drop(job.cancel(false)),
            _ => {}
        }
        while !matches!(job.state(), JobState::Concluded | JobState::Null) {
            drop(job.resume());
            drop(job.complete());
            current::yield_now().await;
        }
        drop(job.dismiss());
        bench.check_idle();
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let model = guest.await.unwrap();
    assert!(bench.shown().await == model);
}

#[test]
fn whatever_is_committed_below_it_the_disk_holds_what_was_written() {
    for seed in 0..40 {
        run_in(seed % 2 == 0, Clock::real(), 200 + seed, history);
    }
}
