//! A mirror whose disk goes to another device, served in another loop, in each phase and under the guest's writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sluice_aio::{IoThread, LoopConfig, current};

use super::bench::{BLOCK, Bench, SIZE, block_value, common, pattern, run_both, write_block};
use crate::backend::Backend;
use crate::home::Home;
use crate::job::{Job, JobState};

/// Writes to the disk, in the guest's loop, until it is told to stop; what it wrote last is the guest's memory.
struct Guest {
    writes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    memory: std::pin::Pin<Box<dyn Future<Output = Vec<u8>>>>,
}

impl Guest {
    fn boot(bench: &Bench, disk: &Arc<Backend>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writes = Arc::new(AtomicU64::new(0));
        let (disk, until) = (Arc::clone(disk), Arc::clone(&stop));
        let count = Arc::clone(&writes);
        let memory = bench.context.call(move || async move {
            let mut memory = pattern(SIZE);
            let mut turn = 0_u64;
            while !until.load(Ordering::SeqCst) {
                turn += 1;
                let at = turn * 37 % (SIZE / BLOCK) * BLOCK;
                let value = u8::try_from(turn % 100 + 150).unwrap();
                write_block(&disk, at, value).await.unwrap();
                let (from, len) = (
                    usize::try_from(at).unwrap(),
                    usize::try_from(BLOCK).unwrap(),
                );
                memory[from..from + len].fill(value);
                count.fetch_add(1, Ordering::SeqCst);
                current::yield_now().await;
            }
            memory
        });
        let memory = Box::pin(async move { memory.await.unwrap() });
        Self {
            writes,
            stop,
            memory,
        }
    }

    /// Waits until it has written something more.
    async fn goes_on(&self) {
        let before = self.writes.load(Ordering::SeqCst);
        while self.writes.load(Ordering::SeqCst) == before {
            current::yield_now().await;
        }
    }

    async fn shut_down(self) -> Vec<u8> {
        self.stop.store(true, Ordering::SeqCst);
        self.memory.await
    }
}

fn thread() -> Arc<IoThread> {
    Arc::new(IoThread::spawn("elsewhere", LoopConfig::default()).unwrap())
}

/// Brings the job to a phase in which it stays.
async fn enter(bench: &Bench, job: &Arc<Job>, phase: JobState) {
    match phase {
        JobState::Running => bench.wait_for(JobState::Running).await,
        JobState::Paused => {
            bench.wait_for(JobState::Running).await;
            job.pause().unwrap();
            bench.wait_for(JobState::Paused).await;
        }
        _ => {
            job.set_speed(0).unwrap();
            bench.wait_for(JobState::Ready).await;
        }
    }
    match phase {
        JobState::Standby => {
            job.pause().unwrap();
            bench.wait_for(JobState::Standby).await;
        }
        JobState::Pending => {
            job.complete().unwrap();
            bench.wait_for(JobState::Pending).await;
        }
        _ => {}
    }
}

/// From a phase to the job's end.
async fn leave(bench: &Bench, job: &Arc<Job>, phase: JobState) {
    if phase != JobState::Pending {
        job.set_speed(0).unwrap();
    }
    if matches!(phase, JobState::Paused | JobState::Standby) {
        job.resume().unwrap();
    }
    if phase != JobState::Pending {
        bench.wait_for(JobState::Ready).await;
        job.complete().unwrap();
        bench.wait_for(JobState::Pending).await;
    }
    job.finalize().unwrap();
    assert_eq!(bench.end().await, None);
}

#[test]
fn a_mirror_moves_in_each_phase() {
    let phases = [
        JobState::Running,
        JobState::Paused,
        JobState::Ready,
        JobState::Standby,
        JobState::Pending,
    ];
    for phase in phases {
        run_both(move |bench| async move {
            let main = current::context();
            let disk = bench.disk("disk").await;
            bench.target("target").await;
            let mut arguments = common("disk");
            arguments.auto_finalize = Some(false);
            // Slow, until it is told otherwise.
            arguments.speed = Some(1);
            let job = bench.mirror_with("target", arguments).await;
            let guest = Guest::boot(&bench, &disk);
            enter(&bench, &job, phase).await;
            let threads = [thread(), thread()];
            let kept = |thread: &Arc<IoThread>| {
                Home::kept(thread.context().clone(), Arc::clone(thread) as Arc<_>)
            };
            let homes = [kept(&threads[0]), kept(&threads[1]), Home::from(&main)];
            for home in homes {
                guest.goes_on().await;
                let changed = bench.graph.set_device_home(&disk, home.clone());
                changed.await.unwrap();
                assert_eq!(job.home(), *home.context(), "{phase}");
                bench
                    .wait_until(|_| (job.state() == phase).then_some(()))
                    .await;
            }
            guest.goes_on().await;
            for thread in &threads {
                assert_eq!(Arc::strong_count(thread), 1, "{phase}");
            }
            leave(&bench, &job, phase).await;
            let memory = guest.shut_down().await;
            assert_eq!(disk.node().unwrap().name(), "target");
            assert!(
                bench.bytes("target") == memory,
                "{phase}: not what the guest wrote"
            );
            // A job that has concluded works nowhere, and keeps nothing.
            let thread = thread();
            let moved = bench.graph.set_device_home(&disk, kept(&thread));
            moved.await.unwrap();
            assert_eq!(job.home(), main);
            assert_eq!(job.state(), JobState::Concluded);
        });
    }
}

#[test]
fn a_job_goes_with_its_device_and_home_when_that_goes() {
    run_both(|bench| async move {
        let main = current::context();
        let disk = bench.disk("disk").await;
        bench.target("target").await;
        let job = bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        let thread = thread();
        let home = Home::kept(thread.context().clone(), Arc::clone(&thread) as Arc<_>);
        let given = bench.graph.set_device_home(&disk, home);
        given.await.unwrap();
        assert_eq!(job.home(), *thread.context());
        bench.write(&disk, 0, 200).await;
        bench.graph.remove_backend(&disk).await;
        drop(disk);
        bench.graph.bring_jobs_home(&main).await;
        assert_eq!(job.home(), main);
        assert_eq!(Arc::strong_count(&thread), 1);
        assert_eq!(bench.complete().await, None);
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(200));
    });
}
