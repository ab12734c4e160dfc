//! Jobs on a chain whose disk goes to another device, served in another loop, in each phase and under the guest's
//! writes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::phases::{Kind, PHASES};
use super::*;
use crate::driver::throttle::ThrottleLimits;
use crate::home::Home;

/// Writes to the disk, in the loop that serves it, until it is told to stop.
pub(super) struct Guest {
    writes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    memory: sluice_aio::JoinHandle<Vec<u8>>,
}

impl Guest {
    pub(super) async fn boot(bench: &Bench) -> Self {
        let mut memory = bench.shown().await;
        let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (disk, until) = (Arc::clone(&bench.disk), Arc::clone(&stop));
        let count: Arc<AtomicU64> = Arc::clone(&writes);
        let memory = current::spawn_local(async move {
            for turn in 0_usize.. {
                if until.load(Ordering::SeqCst) {
                    break;
                }
                // Every other one, so that something is left of what is below.
                let at = turn * 37 % (COUNT / 2) * 2 * CLUSTER;
                let value = u8::try_from(turn % 50 + 201).unwrap();
                // Whole clusters, so that it reads nothing.
                guest_write(&disk, at, CLUSTER, value).await;
                memory[at..at + CLUSTER].fill(value);
                count.fetch_add(1, Ordering::SeqCst);
                // Memory is fast: a mirror would never have caught up.
                current::sleep(std::time::Duration::from_millis(1)).await;
            }
            memory
        });
        Self {
            writes,
            stop,
            memory,
        }
    }

    /// Waits until it has written something more.
    pub(super) async fn goes_on(&self) {
        let before = self.writes.load(Ordering::SeqCst);
        while self.writes.load(Ordering::SeqCst) == before {
            current::yield_now().await;
        }
    }

    pub(super) async fn shut_down(self) -> Vec<u8> {
        self.stop.store(true, Ordering::SeqCst);
        self.memory.await.unwrap()
    }
}

fn thread() -> Arc<IoThread> {
    Arc::new(IoThread::spawn("elsewhere", LoopConfig::default()).unwrap())
}

fn kept(thread: &Arc<IoThread>) -> Home {
    Home::kept(thread.context().clone(), Arc::clone(thread) as Arc<_>)
}

#[test]
fn a_job_on_a_chain_moves_in_each_phase() {
    for kind in Kind::ALL {
        for phase in PHASES.into_iter().filter(|phase| kind.has(*phase)) {
            run(60, move |bench| async move {
                let main = current::context();
                let guest = Guest::boot(&bench).await;
                let job = bench.reach(kind, phase, &guest).await;
                let threads = [thread(), thread()];
                for home in [kept(&threads[0]), kept(&threads[1]), Home::from(&main)] {
                    guest.goes_on().await;
                    let changed = bench.graph.set_device_home(&bench.disk, home.clone());
                    changed.await.unwrap();
                    if phase == JobState::Concluded {
                        // It works nowhere, and keeps nothing.
                        continue;
                    }
                    assert_eq!(job.home(), *home.context(), "{kind:?} {phase}");
                    wait_for(&job, phase).await;
                }
                guest.goes_on().await;
                for thread in &threads {
                    assert_eq!(Arc::strong_count(thread), 1, "{kind:?} {phase}");
                }
                let memory = guest.shut_down().await;
                bench.finish(&job, kind, phase).await;
                assert!(bench.shown().await == memory, "{kind:?} {phase}");
                bench.check_shortened(kind);
            });
        }
    }
}

/// A section does not wait for limits: what they hold up is let go, and the job goes on elsewhere under them.
#[test]
fn a_job_moves_although_a_limit_holds_its_requests() {
    for kind in [Kind::Stream, Kind::ActiveCommit] {
        run(61, move |bench| async move {
            let groups = bench.graph.throttle_groups();
            let slow = serde_json::from_value(json!({"bps-total": 1})).unwrap();
            let group = groups.add("slow", slow).unwrap();
            let node = json!({
                "driver": "throttle", "node-name": "limited", "throttle-group": "slow", "file": "debug"
            });
            let before = bench.shown().await;
            bench.graph.remove_backend(&bench.disk).await;
            let node = serde_json::from_value(node).unwrap();
            let node = bench.graph.add_node(&node).await.unwrap();
            let other = bench.graph.add_backend("other", &node).unwrap();
            other.set_context(&bench.context);
            let more = json!({"device": "other"});
            let job = match kind {
                Kind::Stream => bench.stream(&more).await.unwrap(),
                _ => bench.commit(&more).await.unwrap(),
            };
            wait_for(&job, JobState::Running).await;
            yield_often().await;
            let thread = thread();
            let home = kept(&thread);
            let changed = bench.graph.set_device_home(&other, home.clone());
            changed.await.unwrap();
            assert_eq!(job.home(), *home.context());
            // The many small copies of a stream are under its limit again; all that is committed is one.
            assert!(job.state() != JobState::Concluded || kind == Kind::ActiveCommit);
            group.set_limits(ThrottleLimits::default()).unwrap();
            if kind == Kind::ActiveCommit {
                wait_for(&job, JobState::Ready).await;
                job.complete().unwrap();
            }
            assert_eq!(end(&job).await, None);
            assert!(shown_by(&other).await == before);
            let back = bench.graph.set_device_home(&other, (&bench.context).into());
            back.await.unwrap();
            assert_eq!(Arc::strong_count(&thread), 2, "that of `home`");
        });
    }
}
