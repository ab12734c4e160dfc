//! Guests that never stop writing do not keep a mirror in the background from its end. Time is the test's.

use std::sync::Arc;

use super::bench::{BLOCK, Bench, block_value, common, debug, pattern, run_both_by_hand, tick};
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::job::{EndPhase, Job, JobState};
use crate::node::Node;
use crate::parting::tests::yield_often;

/// Bytes of the disk, and of what is copied as a whole.
const LARGE: u64 = 8 << 20;
const CHUNK: u64 = 1 << 20;
/// As many chunks the guest writes to: some may be copied meanwhile, and more are dirty yet than may be left to the section.
const MANY: u64 = LARGE / CHUNK;
/// How often is looked for what must come.
const LOOKS: u8 = 100;

/// A mirror that is ready, in the background.
async fn ready(bench: &Bench, granularity: u64) -> (Arc<Backend>, Arc<Node>, Arc<Job>) {
    let disk = bench.disk_with("disk", &pattern(LARGE)).await;
    bench.empty_image("copy", LARGE);
    let target = bench.debug_node("copy").await;
    let mut arguments = common("disk");
    arguments.granularity = Some(granularity);
    let job = bench.mirror_with("copy", arguments).await;
    bench.wait_for(JobState::Ready).await;
    (disk, target, job)
}

/// A guest that writes the same again and again, to a target at which each copy hangs until the guest has written once more.
pub(super) struct Busy<'a> {
    bench: &'a Bench,
    disk: Arc<Backend>,
    target: Arc<Node>,
    tags: Vec<String>,
    /// How often it has written.
    rounds: u32,
}

impl<'a> Busy<'a> {
    pub(super) fn new(bench: &'a Bench, disk: &Arc<Backend>, target: &Arc<Node>) -> Self {
        Self {
            bench,
            disk: Arc::clone(disk),
            target: Arc::clone(target),
            tags: Vec::new(),
            rounds: 0,
        }
    }

    pub(super) async fn write(&mut self) {
        self.rounds += 1;
        let value = u8::try_from(self.rounds % 251).unwrap();
        for chunk in 0..MANY {
            let tag = format!("copy {} {chunk}", self.rounds);
            let hang = debug(&self.target).set_break(DebugEvent::WriteAio, &tag);
            hang.unwrap();
            self.tags.push(tag);
        }
        for chunk in 0..MANY {
            self.bench.write(&self.disk, chunk * CHUNK, value).await;
        }
    }

    /// Lets all copies end that hang, and the job go on.
    pub(super) async fn let_go(&mut self) {
        let debug = debug(&self.target);
        self.tags.retain(|tag| {
            let hangs = debug.is_suspended(tag);
            if hangs {
                debug.resume(tag).unwrap();
            }
            !hangs
        });
        tick(self.bench).await;
    }
}

/// Each lap leaves as much dirty as it began with.
#[test]
fn a_guest_that_undoes_each_lap_does_not_keep_the_end_away() {
    run_both_by_hand(|bench| async move {
        let (disk, target, job) = ready(&bench, CHUNK).await;
        let mut guest = Busy::new(&bench, &disk, &target);
        guest.write().await;
        tick(&bench).await;
        job.complete().unwrap();
        let before = job.progress().current();
        while job.end_phase() == EndPhase::Work {
            let copied = job.progress().current() - before;
            assert!(copied < 20 * LARGE, "the job is at its work still");
            guest.write().await;
            guest.let_go().await;
        }
        while job.state() != JobState::Concluded {
            guest.let_go().await;
        }
        assert_eq!(job.info().error, None);
        assert!(bench.bytes("disk") == bench.bytes("copy"));
    });
}

/// In the last stretch a guest's write waits for the copy that holds its place. So it must not hold much.
#[test]
fn in_the_last_stretch_copies_are_small() {
    const SMALL: u64 = 64 << 10;
    run_both_by_hand(|bench| async move {
        let (disk, target, job) = ready(&bench, SMALL).await;
        let flush = DebugEvent::FlushToDisk;
        debug(&target).set_break(flush, "approach").unwrap();
        job.complete().unwrap();
        debug(&target).wait_break("approach").await.unwrap();
        // 1 MiB in a row, which elsewhere is one copy.
        for chunk in 0..CHUNK / SMALL {
            bench.write(&disk, chunk * SMALL, 0xf1).await;
        }
        let debug = debug(&target);
        debug.set_break(DebugEvent::WriteAio, "first").unwrap();
        debug.set_break(flush, "stretch").unwrap();
        debug.resume("approach").unwrap();
        debug.wait_break("first").await.unwrap();
        // The other end: nobody but the copy that hangs could keep it from ending.
        let write = bench.begin_write(&disk, CHUNK - BLOCK, 0xf2);
        for _ in 0..LOOKS {
            yield_often().await;
            if block_value(&bench.bytes("copy"), CHUNK - BLOCK) == Some(0xf2) {
                break;
            }
        }
        let written = block_value(&bench.bytes("copy"), CHUNK - BLOCK);
        assert_eq!(written, Some(0xf2), "the write waits for a copy elsewhere");
        write.await.unwrap();
        debug.resume("first").unwrap();
        debug.wait_break("stretch").await.unwrap();
        debug.resume("stretch").unwrap();
        while job.state() != JobState::Concluded {
            tick(&bench).await;
        }
        assert_eq!(job.info().error, None);
        assert!(bench.bytes("disk") == bench.bytes("copy"));
    });
}
