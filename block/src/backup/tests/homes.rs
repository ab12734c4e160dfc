//! A backup whose disk goes to another device, served in another loop, in each phase and under the guest's writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;
use sluice_aio::{IoThread, LoopConfig, current};

use super::bench::*;
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::driver::throttle::ThrottleLimits;
use crate::home::Home;
use crate::job::{Job, JobState};

/// Writes to the disk, in the guest's loop, until it is told to stop.
struct Guest {
    writes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: sluice_aio::JoinHandle<()>,
}

impl Guest {
    fn boot(bench: &Bench, disk: &Arc<Backend>) -> Self {
        let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (until, count): (_, Arc<AtomicU64>) = (Arc::clone(&stop), Arc::clone(&writes));
        let (disk, context) = (Arc::clone(disk), bench.context.clone());
        let task = current::spawn_local(async move {
            for turn in 0_usize.. {
                if until.load(Ordering::SeqCst) {
                    break;
                }
                // Not everywhere: a job would have nothing left to copy.
                let at = turn * 37 % (SIZE / CLUSTER / 2) * CLUSTER;
                write_in(&context, &disk, at, 512, 0xa0).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                current::yield_now().await;
            }
        });
        Self { writes, stop, task }
    }

    /// Waits until it has written something more.
    async fn goes_on(&self) {
        let before = self.writes.load(Ordering::SeqCst);
        while self.writes.load(Ordering::SeqCst) == before {
            current::yield_now().await;
        }
    }

    async fn shut_down(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
    }
}

fn thread() -> Arc<IoThread> {
    Arc::new(IoThread::spawn("elsewhere", LoopConfig::default()).unwrap())
}

fn kept(thread: &Arc<IoThread>) -> Home {
    Home::kept(thread.context().clone(), Arc::clone(thread) as Arc<_>)
}

/// Brings a slow job to a phase in which it stays.
async fn enter(job: &Job, phase: JobState) {
    wait_for(job, JobState::Running).await;
    match phase {
        JobState::Paused => job.pause().unwrap(),
        JobState::Running => {}
        _ => job.set_speed(0).unwrap(),
    }
    if phase == JobState::Concluded {
        wait_for(job, JobState::Pending).await;
        job.finalize().unwrap();
        job.concluded().await;
    }
    if phase != JobState::Concluded {
        wait_for(job, phase).await;
    }
}

/// From a phase to the job's good end.
async fn leave(job: &Job, phase: JobState) {
    if phase == JobState::Paused {
        job.resume().unwrap();
    }
    if !matches!(phase, JobState::Pending | JobState::Concluded) {
        job.set_speed(0).unwrap();
        wait_for(job, JobState::Pending).await;
    }
    if phase != JobState::Concluded {
        job.finalize().unwrap();
    }
    assert_eq!(end(job).await, None, "{phase}");
}

#[test]
fn a_backup_moves_in_each_phase() {
    let phases = [
        JobState::Running,
        JobState::Paused,
        JobState::Pending,
        JobState::Concluded,
    ];
    for phase in phases {
        run_both(|bench| async move {
            let main = current::context();
            let disk = bench.disk("disk").await;
            bench.target("target").await;
            bench.add_bitmap("b");
            let clusters = SIZE / CLUSTER;
            for cluster in 0..clusters {
                bench.write(&disk, cluster * CLUSTER, 512, 0x77).await;
            }
            let start = bench.bytes("disk");
            let perf = json!({"max-workers": 1, "max-chunk": CLUSTER});
            let more = json!({
                "bitmap": "b", "bitmap-mode": "on-success", "auto-finalize": false, "speed": 1, "x-perf": perf
            });
            let job = bench.backup("bitmap", &more).await;
            let guest = Guest::boot(&bench, &disk);
            enter(&job, phase).await;
            let threads = [thread(), thread()];
            for home in [kept(&threads[0]), kept(&threads[1]), Home::from(&main)] {
                guest.goes_on().await;
                let changed = bench.graph.set_device_home(&disk, home.clone());
                changed.await.unwrap();
                if phase != JobState::Concluded {
                    assert_eq!(job.home(), *home.context(), "{phase}");
                    wait_for(&job, phase).await;
                }
            }
            guest.goes_on().await;
            for thread in &threads {
                assert_eq!(Arc::strong_count(thread), 1, "{phase}");
            }
            leave(&job, phase).await;
            guest.shut_down().await;
            bench.check_clean();
            assert!(bench.bytes("target") == start, "{phase}");
            // What the guest has written meanwhile is marked.
            assert!(!bench.marked("b").is_empty(), "{phase}");
        });
    }
}

/// Old data is being saved for a guest's write: the disk goes elsewhere when that has ended.
#[test]
fn a_backup_moves_after_what_it_saves() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        let job = bench.backup("none", &json!({})).await;
        debug(&target)
            .set_break(DebugEvent::WriteAio, "save")
            .unwrap();
        let write = bench.begin_write(&disk, 0, 512, 0xa0);
        debug(&target).wait_break("save").await.unwrap();
        let thread = thread();
        let moved = Arc::new(AtomicBool::new(false));
        let (graph, own) = (Arc::clone(&bench.graph), Arc::clone(&disk));
        let (home, is_moved) = (kept(&thread), Arc::clone(&moved));
        let moving = current::spawn_local(async move {
            graph.set_device_home(&own, home).await.unwrap();
            is_moved.store(true, Ordering::SeqCst);
        });
        settle().await;
        assert!(!moved.load(Ordering::SeqCst), "old data is on its way");
        debug(&target).resume("save").unwrap();
        write.await.unwrap();
        moving.await.unwrap();
        assert_eq!(job.home(), *thread.context());
        // It saves there.
        write_in(thread.context(), &disk, CLUSTER, 512, 0xa1)
            .await
            .unwrap();
        job.cancel(true).unwrap();
        job.concluded().await;
        assert_eq!(
            bench.bytes("target")[..2 * CLUSTER],
            pattern()[..2 * CLUSTER]
        );
        bench.check_clean();
    });
}

/// A section does not wait for limits: what they hold up is let go, and the job goes on elsewhere under them.
#[test]
fn a_backup_moves_although_a_limit_holds_its_copies() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let slow = serde_json::from_value(json!({"bps-write": 1})).unwrap();
        let group = bench.graph.throttle_groups().add("slow", slow).unwrap();
        let limited = json!({
            "driver": "throttle", "node-name": "limited", "throttle-group": "slow", "file": "target"
        });
        let limited = serde_json::from_value(limited).unwrap();
        bench.graph.add_node(&limited).await.unwrap();
        let perf = json!({"max-workers": 2, "max-chunk": CLUSTER});
        let common = arguments("disk-disk", "full", &json!({"x-perf": perf}));
        bench.start(common, "limited").await.unwrap();
        let job = bench.job("job0");
        wait_for(&job, JobState::Running).await;
        settle().await;
        // One of the guest's waits for a copy that is held up.
        let write = bench.begin_write(&disk, SIZE - CLUSTER, 512, 0xa0);
        settle().await;
        let thread = thread();
        let moved = bench.graph.set_device_home(&disk, kept(&thread));
        moved.await.unwrap();
        write.await.unwrap();
        assert_eq!(job.home(), *thread.context());
        wait_for(&job, JobState::Running).await;
        group.set_limits(ThrottleLimits::default()).unwrap();
        assert_eq!(end(&job).await, None);
        assert!(bench.bytes("target") == pattern());
        bench.check_clean();
    });
}

/// The machine is stopped while limits hold the guest's requests and the job's, its disk goes to one thread and to another, and
/// the machine goes on.
#[test]
fn a_stopped_machines_backup_moves_under_limits_and_goes_on() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let graph = &bench.graph;
        let slow = |value| serde_json::from_value::<ThrottleLimits>(value).unwrap();
        let few = slow(json!({"bps-write": 1}));
        let group = graph.throttle_groups().add("slow", few).unwrap();
        let limited = json!({
            "driver": "throttle", "node-name": "limited", "throttle-group": "slow", "file": "target"
        });
        let limited = serde_json::from_value(limited).unwrap();
        graph.add_node(&limited).await.unwrap();
        let few = slow(json!({"bps-total": 1}));
        graph.set_io_throttle(&disk, None, few).await.unwrap();
        let perf = json!({"max-workers": 2, "max-chunk": CLUSTER});
        let common = arguments("disk-disk", "full", &json!({"x-perf": perf}));
        bench.start(common, "limited").await.unwrap();
        let job = bench.job("job0");
        wait_for(&job, JobState::Running).await;
        let last = SIZE / CLUSTER - 1;
        let writes = [last - 2, last - 1, last].map(|cluster| {
            let value = u8::try_from(cluster).unwrap();
            bench.begin_write(&disk, cluster * CLUSTER, 512, value)
        });
        settle().await;
        assert!(disk.gate().in_flight() > 0, "held up by the limits");
        let places = [thread(), thread()];
        assert!(graph.come_to_rest("stop").await.is_empty());
        for place in &places {
            graph.set_device_home(&disk, kept(place)).await.unwrap();
            assert_eq!(job.home(), *place.context());
        }
        graph.resume();
        let none = ThrottleLimits::default();
        graph.set_io_throttle(&disk, None, none).await.unwrap();
        group.set_limits(none).unwrap();
        for write in writes {
            write.await.unwrap();
        }
        assert_eq!(end(&job).await, None);
        assert!(bench.bytes("target") == pattern());
        for cluster in [last - 2, last - 1, last] {
            let value = u8::try_from(cluster).unwrap();
            let written = &bench.bytes("disk")[cluster * CLUSTER..][..512];
            assert_eq!(written, [value; 512]);
        }
        bench.check_clean();
    });
}
