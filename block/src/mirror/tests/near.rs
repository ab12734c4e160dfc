//! Mirrors of a group that have caught up, and wait until others have: they stay near to the pivot, and their guests run.
//! Time is the test's.

use std::sync::Arc;

use super::bench::{Bench, block_value, common, pattern, run_both_by_hand, tick};
use super::busy::Busy;
use super::group::root;
use crate::backend::Backend;
use crate::driver::blkdebug::InjectError;
use crate::driver::{Blkdebug, DebugEvent};
use crate::job::{EndPhase, IoStatus, Job, JobGroup, JobState, OnError};
use crate::mirror::work::MAX_PASSES;
use crate::node::Node;
use crate::parting::tests::{hold, wait_held};

/// Bytes of a disk, and of what is copied as a whole.
const LARGE: u64 = 8 << 20;
const CHUNK: u64 = 1 << 20;
/// As many chunks are more than may be left to the section.
const MANY: u64 = 5;

struct Member {
    disk: Arc<Backend>,
    target: Arc<Node>,
    job: Arc<Job>,
}

impl Member {
    async fn begin(bench: &Bench, name: &str) -> Self {
        let disk = bench.disk_with(name, &pattern(LARGE)).await;
        let copy = format!("{name}-copy");
        bench.empty_image(&copy, LARGE);
        let target = bench.debug_node(&copy).await;
        let mut arguments = common(name);
        arguments.job_id = Some(name.to_owned());
        arguments.granularity = Some(CHUNK);
        arguments.on_target_error = OnError::Stop;
        bench.start(&copy, arguments).await.unwrap();
        let job = bench.graph.jobs().get(name).unwrap();
        let is_ready = |_: &[_]| (job.state() == JobState::Ready).then_some(());
        bench.wait_until(is_ready).await;
        Self { disk, target, job }
    }

    fn debug(&self) -> &Blkdebug {
        self.target.as_blkdebug().unwrap()
    }

    async fn wait_phase(&self, bench: &Bench, phase: EndPhase) {
        while self.job.end_phase() != phase {
            tick(bench).await;
        }
    }

    /// Its guest writes to many chunks.
    async fn write_much(&self, bench: &Bench, value: u8) {
        for chunk in 0..MANY {
            bench.write(&self.disk, chunk * CHUNK, value).await;
        }
    }

    /// The same, and all of their copies hang at the target.
    async fn hang_much(&self, bench: &Bench, value: u8) {
        let debug = self.debug();
        for tag in tags() {
            debug.set_break(DebugEvent::WriteAio, &tag).unwrap();
        }
        self.write_much(bench, value).await;
        while !tags().all(|tag| debug.is_suspended(&tag)) {
            tick(bench).await;
        }
    }

    fn let_go_much(&self) {
        for tag in tags() {
            self.debug().resume(&tag).unwrap();
        }
    }

    fn is_held(&self) -> bool {
        self.disk.gate().is_closed()
    }
}

fn tags() -> impl Iterator<Item = String> {
    (0..MANY).map(|chunk| format!("copy {chunk}"))
}

/// The first of two has caught up; the flush of the other hangs.
async fn waiting(bench: &Bench) -> [Member; 2] {
    let members = [
        Member::begin(bench, "first").await,
        Member::begin(bench, "second").await,
    ];
    hold(&members[1].target, DebugEvent::FlushToDisk);
    let jobs = [&members[0], &members[1]].map(|member| Arc::clone(&member.job));
    JobGroup::complete(&jobs).unwrap();
    wait_held(&members[1].target).await;
    members[0].wait_phase(bench, EndPhase::CaughtUp).await;
    members
}

async fn end_well(bench: &Bench, members: &[Member; 2]) {
    for Member { disk, job, .. } in members {
        while job.state() != JobState::Concluded {
            tick(bench).await;
        }
        assert_eq!(job.info().error, None);
        let copy = format!("{}-copy", disk.name());
        assert_eq!(root(disk), copy);
        assert!(bench.bytes(disk.name()) == bench.bytes(&copy));
    }
}

/// An operator has to make room: that may take long, and nobody is held meanwhile.
#[test]
fn one_that_an_error_stops_is_waited_for() {
    run_both_by_hand(|bench| async move {
        let members = waiting(&bench).await;
        let [first, second] = &members;
        let full = InjectError::new(DebugEvent::WriteAio, libc::ENOSPC);
        first.debug().inject(full);
        bench.write(&first.disk, 0, 0xf1).await;
        while first.job.block_job_info().io_status != IoStatus::Nospace {
            tick(&bench).await;
        }
        second.debug().resume("hang").unwrap();
        second.wait_phase(&bench, EndPhase::CaughtUp).await;
        for round in 0..20 {
            bench.write(&second.disk, 0, round).await;
            tick(&bench).await;
        }
        assert_eq!(second.job.end_phase(), EndPhase::CaughtUp);
        assert!(!first.is_held() && !second.is_held());
        first.debug().clear_errors();
        first.job.resume().unwrap();
        end_well(&bench, &members).await;
        assert_eq!(block_value(&bench.bytes("second-copy"), 0), Some(19));
    });
}

/// The guests of both would wait for what the first has to copy by then.
#[test]
fn one_whose_guest_has_written_much_is_waited_for() {
    run_both_by_hand(|bench| async move {
        let members = waiting(&bench).await;
        let [first, second] = &members;
        first.hang_much(&bench, 0xf1).await;
        first.wait_phase(&bench, EndPhase::CatchingUp).await;
        second.debug().resume("hang").unwrap();
        second.wait_phase(&bench, EndPhase::CaughtUp).await;
        for round in 0..20 {
            bench.write(&second.disk, 0, round).await;
            tick(&bench).await;
        }
        assert_eq!(second.job.end_phase(), EndPhase::CaughtUp);
        assert!(!first.is_held() && !second.is_held());
        first.let_go_much();
        end_well(&bench, &members).await;
    });
}

/// But not for ever.
#[test]
fn one_whose_guest_never_stops_is_taken_as_it_is() {
    run_both_by_hand(|bench| async move {
        let members = waiting(&bench).await;
        let [first, second] = &members;
        for round in 0..MAX_PASSES {
            first
                .hang_much(&bench, u8::try_from(round).unwrap() + 1)
                .await;
            first.wait_phase(&bench, EndPhase::CatchingUp).await;
            first.let_go_much();
            first.wait_phase(&bench, EndPhase::CaughtUp).await;
        }
        first.hang_much(&bench, 0xf1).await;
        second.debug().resume("hang").unwrap();
        second.wait_phase(&bench, EndPhase::Held).await;
        assert_eq!(first.job.end_phase(), EndPhase::Holding);
        assert!(second.is_held());
        first.let_go_much();
        end_well(&bench, &members).await;
    });
}

/// One that has come near with much dirty, because more laps would lead nowhere, is as near while it stays so.
#[test]
fn one_whose_guest_undoes_each_lap_is_not_sent_back_again_and_again() {
    run_both_by_hand(|bench| async move {
        let members = waiting(&bench).await;
        let [first, second] = &members;
        let mut guest = Busy::new(&bench, &first.disk, &first.target);
        let copied = || first.job.progress().current();
        let before = copied();
        for phase in [EndPhase::CatchingUp, EndPhase::CaughtUp] {
            while first.job.end_phase() != phase {
                guest.write().await;
                guest.let_go().await;
            }
        }
        // Laps enough to come near once or twice.
        assert!(copied() - before < 20 * LARGE);
        for _ in 0..20 {
            guest.write().await;
            guest.let_go().await;
            assert_eq!(first.job.end_phase(), EndPhase::CaughtUp);
        }
        second.debug().resume("hang").unwrap();
        for Member { job, .. } in &members {
            while job.state() != JobState::Concluded {
                guest.let_go().await;
            }
        }
        end_well(&bench, &members).await;
    });
}

/// What is written in a long wait does not have to be flushed with the guests held.
#[test]
fn what_is_written_meanwhile_is_flushed() {
    run_both_by_hand(|bench| async move {
        let members = waiting(&bench).await;
        let [first, second] = &members;
        let debug = first.debug();
        debug.set_break(DebugEvent::FlushToDisk, "again").unwrap();
        for round in 0.. {
            // One after the other, so that it never has to catch up once more.
            let (offset, value) = (u64::from(round) % MANY * CHUNK, round + 1);
            bench.write(&first.disk, offset, value).await;
            let is_copied = || block_value(&bench.bytes("first-copy"), offset) == Some(value);
            while !is_copied() && !debug.is_suspended("again") {
                tick(&bench).await;
            }
            if debug.is_suspended("again") {
                break;
            }
        }
        assert_eq!(first.job.end_phase(), EndPhase::CaughtUp);
        assert!(!first.is_held() && !second.is_held());
        bench.write(&first.disk, 0, 0xf2).await;
        debug.resume("again").unwrap();
        second.debug().resume("hang").unwrap();
        end_well(&bench, &members).await;
        assert_eq!(block_value(&bench.bytes("first-copy"), 0), Some(0xf2));
    });
}
