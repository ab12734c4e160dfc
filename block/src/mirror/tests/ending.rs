//! The end of a mirror in each of its phases: what may be asked, by the table in docs/jobs.md, and what becomes of errors.
//! Time is the test's.

use std::sync::Arc;

use sluice_aio::current;

use super::bench::{BLOCK, Bench, block_value, common, copy_mode, debug, run_both_by_hand, tick};
use super::group::{ready, root};
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::driver::blkdebug::InjectError;
use crate::event::BlockEvent;
use crate::job::tests::page::table;
use crate::job::{EndPhase, IoStatus, Job, JobGroup, JobState, OnError, VerbError};
use crate::mirror::CopyMode;
use crate::node::Node;
use crate::parting::tests::{hold, lose_patience, wait_held, way_out, yield_often};

async fn wait_copied(bench: &Bench, offset: u64, value: u8) {
    while block_value(&bench.bytes("first-copy"), offset) != Some(value) {
        tick(bench).await;
    }
}

/// A mirror of the disk `first`, alone or with one of the disk `second`, in some phase of its end.
struct Ending {
    bench: Bench,
    disk: Arc<Backend>,
    job: Arc<Job>,
    /// The disks and jobs that succeed together, the first among them.
    all: Vec<(Arc<Backend>, Arc<Job>)>,
    /// Whose requests hang; let go, the jobs end.
    hung: Vec<Arc<Node>>,
}

impl Ending {
    async fn begin(bench: Bench, count: usize, by_hand: bool) -> Self {
        let mut all = Vec::new();
        for name in ["first", "second"].into_iter().take(count) {
            let disk = bench.disk(name).await;
            let job = if by_hand {
                bench.target(&format!("{name}-copy")).await;
                let mut arguments = common(name);
                arguments.job_id = Some(name.to_owned());
                arguments.auto_finalize = Some(false);
                bench
                    .start(&format!("{name}-copy"), arguments)
                    .await
                    .unwrap();
                let job = bench.graph.jobs().get(name).unwrap();
                let is_ready = |_: &[_]| (job.state() == JobState::Ready).then_some(());
                bench.wait_until(is_ready).await;
                job
            } else {
                ready(&bench, name, CopyMode::Background).await
            };
            all.push((disk, job));
        }
        let (disk, job) = all[0].clone();
        Self {
            bench,
            disk,
            job,
            all,
            hung: Vec::new(),
        }
    }

    /// A mirror of that one disk, which is ready.
    async fn of(bench: Bench, disk: Arc<Backend>) -> Self {
        let job = ready(&bench, disk.name(), CopyMode::Background).await;
        let all = vec![(Arc::clone(&disk), Arc::clone(&job))];
        Self {
            bench,
            disk,
            job,
            all,
            hung: Vec::new(),
        }
    }

    fn target(&self, index: usize) -> Arc<Node> {
        let name = ["first-copy", "second-copy"][index];
        self.bench.graph.node(name).unwrap()
    }

    fn complete(&self) {
        let jobs: Vec<_> = self.all.iter().map(|(_, job)| Arc::clone(job)).collect();
        match &jobs[..] {
            [job] => job.complete().unwrap(),
            _ => JobGroup::complete(&jobs).unwrap(),
        }
    }

    async fn wait_phase(&self, phase: EndPhase) {
        while self.job.end_phase() != phase {
            current::yield_now().await;
        }
    }

    /// The next write to that target hangs, and one of its guest's brings it about.
    async fn hang_copy(&mut self, index: usize) {
        let target = self.target(index);
        hold(&target, DebugEvent::WriteAio);
        self.bench.write(&self.all[index].0, 0, 0xf1).await;
        while !debug(&target).is_suspended("hang") {
            tick(&self.bench).await;
        }
        self.hung.push(target);
    }

    /// The jobs are to complete, and the target's last flush before the section is held as `stretch`.
    async fn to_the_last_stretch(&self) {
        let target = self.target(0);
        let complete = || self.complete();
        self.bench
            .to_the_last_stretch(debug(&target), &complete)
            .await;
    }

    /// The target's flush inside the drained section hangs, once the jobs complete.
    async fn hang_in_section(&mut self, index: usize) {
        let target = self.target(index);
        let debug = debug(&target);
        self.bench
            .to_the_last_stretch(debug, &|| self.complete())
            .await;
        hold(&target, DebugEvent::FlushToDisk);
        debug.resume("stretch").unwrap();
        wait_held(&target).await;
        self.hung.push(Arc::clone(&target));
    }

    /// In the phase of that name, with a target that hangs.
    async fn reach(bench: Bench, phase: &str) -> Self {
        match phase {
            "waiting for the work of others" => {
                let mut ending = Self::begin(bench, 2, false).await;
                ending.hang_copy(1).await;
                ending.complete();
                ending.wait_phase(EndPhase::Waiting).await;
                ending.hang_copy(0).await;
                ending
            }
            "waiting to be finalised" => {
                let mut ending = Self::begin(bench, 1, true).await;
                ending.complete();
                ending.wait_phase(EndPhase::Pending).await;
                ending.hang_copy(0).await;
                ending
            }
            "catching up" => {
                let mut ending = Self::begin(bench, 1, true).await;
                ending.complete();
                ending.wait_phase(EndPhase::Pending).await;
                ending.hang_copy(0).await;
                ending.job.finalize().unwrap();
                ending.wait_phase(EndPhase::CatchingUp).await;
                ending
            }
            "waiting until others have caught up" => {
                let mut ending = Self::begin(bench, 2, false).await;
                let second = ending.target(1);
                hold(&second, DebugEvent::FlushToDisk);
                ending.complete();
                wait_held(&second).await;
                ending.hung.push(second);
                ending.wait_phase(EndPhase::CaughtUp).await;
                ending.hang_copy(0).await;
                ending
            }
            "in the last drained section" => {
                let mut ending = Self::begin(bench, 1, false).await;
                ending.hang_in_section(0).await;
                assert_eq!(ending.job.end_phase(), EndPhase::Holding);
                ending
            }
            "waiting until others have come so far" => {
                let mut ending = Self::begin(bench, 2, false).await;
                ending.hang_in_section(1).await;
                ending.wait_phase(EndPhase::Held).await;
                ending
            }
            "the root is swapped" => {
                let mut ending = Self::begin(bench, 1, false).await;
                let target = ending.target(0);
                hold(&target, DebugEvent::PivotSwapped);
                ending.complete();
                wait_held(&target).await;
                assert_eq!(root(&ending.disk), "first-copy");
                ending.hung.push(target);
                ending
            }
            other => panic!("what is {other}?"),
        }
    }

    fn give(&self, verb: &str) -> Result<(), VerbError> {
        let job = &self.job;
        match verb {
            "cancel" => job.cancel(true),
            "pause" => job.pause(),
            "resume" => job.resume(),
            "set-speed" => job.set_speed(1 << 30),
            "change" => job.change(&copy_mode(CopyMode::Background)),
            "complete" => job.complete(),
            "finalize" => job.finalize(),
            "dismiss" => job.dismiss(),
            other => panic!("what is {other}?"),
        }
    }

    fn let_go(&mut self) {
        for target in self.hung.drain(..) {
            debug(&target).resume("hang").unwrap();
        }
    }

    /// What hangs comes back, and all pivot with all that the guest has written.
    async fn ends_well(mut self) {
        self.let_go();
        if self.job.end_phase() == EndPhase::Pending {
            // Anybody who waits for the verb may have been given it.
            let _ = self.job.finalize();
        }
        for (disk, job) in &self.all {
            job.concluded().await;
            assert_eq!(job.info().error, None);
            assert_eq!(root(disk), format!("{}-copy", disk.name()));
            let copy = format!("{}-copy", disk.name());
            assert_eq!(self.bench.bytes(disk.name()), self.bench.bytes(&copy));
        }
    }

    /// Nothing comes back, and yet all end, on their sources.
    async fn ends_without_target(mut self) {
        for (disk, _) in &self.all {
            self.bench.write(disk, BLOCK, 0xc1).await;
        }
        for (disk, job) in &self.all {
            lose_patience(&self.bench.clock, &self.bench.context, job).await;
            assert_eq!(root(disk), format!("{}-node", disk.name()));
            let bytes = self.bench.bytes(disk.name());
            assert_eq!(block_value(&bytes, BLOCK), Some(0xc1));
        }
        assert!(!self.bench.has_node_of("mirror_top"));
        let cancelled = |event: &BlockEvent| matches!(event, BlockEvent::BlockJobCancelled(_));
        assert!(self.bench.events().iter().any(cancelled));
        self.let_go();
    }
}

/// Who wants a node of the job is advised what the job takes, and of that what is of use.
#[test]
fn in_every_phase_what_is_advised_is_what_the_job_takes() {
    let (heads, rows) = table("phase");
    let cancel = heads.iter().position(|head| head == "cancel").unwrap();
    for (phase, cells) in rows {
        let expected = match (cells[cancel].as_str(), phase.as_str()) {
            ("refused", _) => "the job is ending already: wait until it is gone",
            (_, "waiting to be finalised") => {
                "wait for the job's end, or end it: by 'job-finalize' when it is pending, or by 'job-cancel'"
            }
            _ => "wait for the job's end, or end it by 'job-cancel'",
        };
        run_both_by_hand(|bench| {
            let phase = phase.clone();
            async move {
                let ending = Ending::reach(bench, &phase).await;
                assert_eq!(way_out(&ending.target(0)), Some(expected), "{phase}");
                ending.ends_well().await;
            }
        });
    }
}

/// A ready job that waits for its target is not to be completed once more, nor after a cancel.
#[test]
fn a_ready_job_that_ends_is_not_to_be_completed() {
    for soft in [false, true] {
        run_both_by_hand(|bench| async move {
            let mut ending = Ending::begin(bench, 1, false).await;
            ending.hang_copy(0).await;
            let target = ending.target(0);
            assert!(way_out(&target).unwrap().contains("'job-complete'"));
            match soft {
                true => ending.job.cancel(false).unwrap(),
                false => ending.complete(),
            }
            yield_often().await;
            assert_eq!(ending.job.state(), JobState::Ready);
            assert_eq!(
                way_out(&target),
                Some("wait for the job's end, or end it by 'job-cancel'")
            );
            ending.job.cancel(true).unwrap();
            ending.ends_without_target().await;
        });
    }
}

#[test]
fn in_every_phase_the_guest_is_held_or_not() {
    let (heads, rows) = table("phase");
    let (status, guest) = (0, 1);
    assert_eq!(&heads[..2], ["status", "the guest"]);
    for (phase, cells) in rows {
        let phase = &phase;
        run_both_by_hand(|bench| {
            let (phase, cells) = (phase.clone(), cells.clone());
            async move {
                let ending = Ending::reach(bench, &phase).await;
                assert_eq!(ending.job.state().name(), cells[status], "{phase}");
                match cells[guest].as_str() {
                    "runs" => ending.bench.write(&ending.disk, BLOCK, 0xf2).await,
                    "is held" => {
                        let parked = ending.bench.park_write(&ending.disk, BLOCK, 0xf2).await;
                        current::spawn_local(async move { parked.await.unwrap() }).detach();
                    }
                    other => panic!("what is {other}?"),
                }
                let all = ending.all.clone();
                let mut ending = ending;
                ending.let_go();
                if ending.job.end_phase() == EndPhase::Pending {
                    ending.job.finalize().unwrap();
                }
                for (disk, job) in &all {
                    job.concluded().await;
                    assert_eq!(root(disk), format!("{}-copy", disk.name()), "{phase}");
                }
                wait_copied(&ending.bench, BLOCK, 0xf2).await;
            }
        });
    }
}

#[test]
fn every_verb_in_every_phase() {
    let (heads, rows) = table("phase");
    for (phase, cells) in &rows {
        let verbs = heads[2..].iter().zip(&cells[2..]);
        let (ending, others): (Vec<_>, Vec<_>) = verbs
            .map(|(verb, answer)| (verb.clone(), answer.clone()))
            .partition(|(_, answer)| answer == "ends it");
        for (verb, _) in ending {
            run_both_by_hand(|bench| {
                let (phase, verb) = (phase.clone(), verb.clone());
                async move {
                    let ending = Ending::reach(bench, &phase).await;
                    ending.give(&verb).unwrap();
                    ending.ends_without_target().await;
                }
            });
        }
        run_both_by_hand(|bench| {
            let (phase, others) = (phase.clone(), others.clone());
            async move {
                let ending = Ending::reach(bench, &phase).await;
                for (verb, answer) in others {
                    let given = ending.give(&verb).err().map(|error| error.to_string());
                    let refused = format!(
                        "Job 'first' in state '{}' cannot accept command verb '{verb}'",
                        ending.job.state()
                    );
                    let expected = match answer.as_str() {
                        "now" => None,
                        "refused" => Some(refused),
                        "not paused" => Some("Can't resume a job that was not paused".to_owned()),
                        other => panic!("what is {other}?"),
                    };
                    assert_eq!(given, expected, "{verb}: {phase}");
                }
                ending.ends_well().await;
            }
        });
    }
}

/// `block-job-cancel` without force is by force in these states.
#[test]
fn a_cancel_without_force_ends_it_too() {
    run_both_by_hand(|bench| async move {
        let ending = Ending::reach(bench, "in the last drained section").await;
        ending.job.cancel_unless_paused(false).unwrap();
        ending.ends_without_target().await;
    });
}

/// The guests' own writes hang at the target, so that the section can't even begin.
#[test]
fn a_section_that_waits_for_the_target_is_given_up() {
    run_both_by_hand(|bench| async move {
        let mut ending = Ending::begin(bench, 1, false).await;
        let mode = copy_mode(CopyMode::WriteBlocking);
        ending.job.change(&mode).unwrap();
        let target = ending.target(0);
        debug(&target)
            .set_break(DebugEvent::FlushToDisk, "flush")
            .unwrap();
        ending.complete();
        debug(&target).wait_break("flush").await.unwrap();
        hold(&target, DebugEvent::WriteAio);
        let write = ending.bench.begin_write(&ending.disk, 0, 0xf1);
        wait_held(&target).await;
        debug(&target).resume("flush").unwrap();
        ending.wait_phase(EndPhase::Holding).await;
        while !ending.disk.gate().is_closed() {
            current::yield_now().await;
        }
        ending.job.cancel(true).unwrap();
        write.await.unwrap();
        ending.hung.push(target);
        ending.ends_without_target().await;
    });
}

/// What a guest's write has marked while the section began, for its source failed it, hangs on its way to the target.
#[test]
fn a_copy_in_the_section_is_given_up() {
    run_both_by_hand(|bench| async move {
        let (disk, source) = bench.debug_disk("first").await;
        let mut ending = Ending::of(bench, disk).await;
        let target = ending.target(0);
        let sides = [debug(&source), debug(&target)];
        let complete = || ending.complete();
        let write = ending
            .bench
            .until_the_section(&ending.disk, sides, &complete);
        let write = write.await;
        hold(&target, DebugEvent::WriteAio);
        debug(&source).resume("slow").unwrap();
        write.await.unwrap_err();
        wait_held(&target).await;
        ending.hung.push(target);
        assert_eq!(ending.job.end_phase(), EndPhase::Holding);
        ending.job.cancel(true).unwrap();
        ending.ends_without_target().await;
    });
}

fn written_to_both(job: &Job) -> u64 {
    let details = job.block_job_info().details;
    details["x-bytes-written-to-both"].as_u64().unwrap()
}

/// So the section of a mirror in the background has nothing to copy.
#[test]
fn in_the_last_stretch_writes_go_to_both_sides() {
    run_both_by_hand(|bench| async move {
        let ending = Ending::begin(bench, 1, false).await;
        let (bench, disk, target) = (&ending.bench, &ending.disk, ending.target(0));
        debug(&target)
            .set_break(DebugEvent::FlushToDisk, "approach")
            .unwrap();
        ending.complete();
        debug(&target).wait_break("approach").await.unwrap();
        bench.write(disk, 0, 0xf1).await;
        assert_eq!(
            written_to_both(&ending.job),
            0,
            "the guest waits for nothing yet"
        );
        let flush = DebugEvent::FlushToDisk;
        debug(&target).set_break(flush, "stretch").unwrap();
        debug(&target).resume("approach").unwrap();
        debug(&target).wait_break("stretch").await.unwrap();
        assert_eq!(block_value(&bench.bytes("first-copy"), 0), Some(0xf1));
        bench.write(disk, BLOCK, 0xf2).await;
        assert_eq!(block_value(&bench.bytes("first-copy"), BLOCK), Some(0xf2));
        assert_eq!(written_to_both(&ending.job), BLOCK);
        assert_eq!(
            ending.job.block_job_info().details["x-copy-mode"],
            "background"
        );
        debug(&target).resume("stretch").unwrap();
        ending.ends_well().await;
    });
}

/// A write that went to the source alone leaves a mark when it ends: the section begins after that.
#[test]
fn the_section_waits_for_marks_to_come() {
    run_both_by_hand(|bench| async move {
        let (disk, source) = bench.debug_disk("first").await;
        let ending = Ending::of(bench, disk).await;
        debug(&source)
            .set_break(DebugEvent::WriteAio, "slow")
            .unwrap();
        let write = ending.bench.begin_write(&ending.disk, 0, 0xf1);
        debug(&source).wait_break("slow").await.unwrap();
        ending.complete();
        ending.wait_phase(EndPhase::Holding).await;
        yield_often().await;
        assert!(!ending.disk.gate().is_closed());
        ending.bench.write(&ending.disk, BLOCK, 0xf2).await;
        let target = ending.target(0);
        debug(&target)
            .set_break(DebugEvent::FlushToDisk, "stretch")
            .unwrap();
        debug(&source).resume("slow").unwrap();
        write.await.unwrap();
        debug(&target).wait_break("stretch").await.unwrap();
        assert!(!ending.disk.gate().is_closed());
        assert_eq!(
            block_value(&ending.bench.bytes("first-copy"), 0),
            Some(0xf1)
        );
        debug(&target).resume("stretch").unwrap();
        ending.ends_well().await;
    });
}

/// Who waits in the last stretch waits for a target that may hang: a cancel ends that, as everywhere.
#[test]
fn the_last_stretch_is_given_up() {
    run_both_by_hand(|bench| async move {
        let mut ending = Ending::begin(bench, 1, false).await;
        let target = ending.target(0);
        ending.to_the_last_stretch().await;
        hold(&target, DebugEvent::WriteAio);
        let write = ending.bench.begin_write(&ending.disk, 0, 0xf1);
        wait_held(&target).await;
        ending.job.cancel(true).unwrap();
        write.await.unwrap();
        debug(&target).resume("stretch").unwrap();
        ending.hung.push(target);
        ending.ends_without_target().await;
    });
}

/// An error in the last stretch ends it, so that the guest waits for nobody while an operator thinks.
#[test]
fn an_error_ends_the_last_stretch() {
    run_both_by_hand(|bench| async move {
        let (ending, target) = with_policy(bench, OnError::Stop, false).await;
        ending.to_the_last_stretch().await;
        debug(&target).fail("stretch", libc::EIO).unwrap();
        stopped(&ending.bench, &ending.job).await;
        hold(&target, DebugEvent::WriteAio);
        ending.bench.write(&ending.disk, BLOCK, 0xf2).await;
        assert_eq!(written_to_both(&ending.job), 0);
        let mut ending = ending;
        ending.job.resume().unwrap();
        wait_held(&target).await;
        ending.hung.push(target);
        ending.ends_well().await;
    });
}

async fn stopped(bench: &Bench, job: &Job) -> IoStatus {
    loop {
        let info = job.block_job_info();
        if info.paused && info.io_status != IoStatus::Ok {
            return info.io_status;
        }
        tick(bench).await;
    }
}

/// A mirror of `first` with that policy for its target.
async fn with_policy(bench: Bench, policy: OnError, by_hand: bool) -> (Ending, Arc<Node>) {
    let disk = bench.disk("first").await;
    let target = bench.target("first-copy").await;
    let mut arguments = common("first");
    arguments.job_id = Some("first".to_owned());
    arguments.on_target_error = policy;
    arguments.auto_finalize = Some(!by_hand);
    bench.start("first-copy", arguments).await.unwrap();
    let job = bench.graph.jobs().get("first").unwrap();
    let is_ready = |_: &[_]| (job.state() == JobState::Ready).then_some(());
    bench.wait_until(is_ready).await;
    let all = vec![(Arc::clone(&disk), Arc::clone(&job))];
    let ending = Ending {
        bench,
        disk,
        job,
        all,
        hung: Vec::new(),
    };
    (ending, target)
}

#[test]
fn a_job_that_is_pending_stops_for_a_full_target_and_goes_on() {
    run_both_by_hand(|bench| async move {
        let (ending, target) = with_policy(bench, OnError::Enospc, true).await;
        ending.complete();
        ending.wait_phase(EndPhase::Pending).await;
        debug(&target).inject(InjectError::new(DebugEvent::WriteAio, libc::ENOSPC));
        ending.bench.write(&ending.disk, 0, 0xf1).await;
        assert_eq!(stopped(&ending.bench, &ending.job).await, IoStatus::Nospace);
        assert_eq!(ending.job.state(), JobState::Pending);
        assert_eq!(ending.bench.error_events(), 1);
        // It may be finalised already, and is once it was resumed.
        ending.job.finalize().unwrap();
        ending.bench.write(&ending.disk, BLOCK, 0xf2).await;
        yield_often().await;
        assert!(!ending.disk.gate().is_closed());
        debug(&target).clear_errors();
        ending.job.resume().unwrap();
        ending.job.concluded().await;
        let image = ending.bench.bytes("first-copy");
        assert_eq!(block_value(&image, BLOCK), Some(0xf2));
        ending.ends_well().await;
    });
}

#[test]
fn a_job_that_is_pending_ends_with_an_error_that_is_to_be_reported() {
    run_both_by_hand(|bench| async move {
        let (ending, target) = with_policy(bench, OnError::Enospc, true).await;
        ending.complete();
        ending.wait_phase(EndPhase::Pending).await;
        debug(&target).inject(InjectError::new(DebugEvent::WriteAio, libc::EIO));
        ending.bench.write(&ending.disk, 0, 0xf1).await;
        while ending.job.state() != JobState::Concluded {
            tick(&ending.bench).await;
        }
        let error = ending.job.info().error;
        assert_eq!(error.as_deref(), Some("Input/output error"));
        assert_eq!(root(&ending.disk), "first-node");
    });
}

/// An error in the section ends the section, not the job: the guest goes on while the operator makes room.
#[test]
fn an_error_in_the_section_lets_the_guest_go_on_and_is_judged() {
    run_both_by_hand(|bench| async move {
        let (mut ending, target) = with_policy(bench, OnError::Enospc, false).await;
        ending.hang_in_section(0).await;
        let parked = ending.bench.park_write(&ending.disk, 0, 0xf1).await;
        debug(&target).fail("hang", libc::ENOSPC).unwrap();
        ending.hung.clear();
        parked.await.unwrap();
        assert_eq!(stopped(&ending.bench, &ending.job).await, IoStatus::Nospace);
        assert_eq!(ending.job.state(), JobState::Pending);
        assert_eq!(ending.bench.error_events(), 1);
        ending.bench.write(&ending.disk, BLOCK, 0xf2).await;
        let filter = ending.disk.node().unwrap();
        assert_eq!(filter.driver_name(), "mirror_top");
        ending.job.resume().unwrap();
        ending.ends_well().await;
    });
}

/// With `ignore` nobody need do anything.
#[test]
fn an_error_in_the_section_that_is_ignored_is_tried_again() {
    run_both_by_hand(|bench| async move {
        let (mut ending, target) = with_policy(bench, OnError::Ignore, false).await;
        ending.hang_in_section(0).await;
        debug(&target).fail("hang", libc::EIO).unwrap();
        ending.hung.clear();
        lose_patience(&ending.bench.clock, &ending.bench.context, &ending.job).await;
        assert_eq!(ending.bench.error_events(), 1);
        ending.ends_well().await;
    });
}

/// One of a group meets an error in its section: the others' guests are not held while it is judged.
#[test]
fn a_group_retreats_together() {
    run_both_by_hand(|bench| async move {
        let mut ending = Ending::begin(bench, 1, false).await;
        let disk = ending.bench.disk("second").await;
        let target = ending.bench.target("second-copy").await;
        let mut arguments = common("second");
        arguments.job_id = Some("second".to_owned());
        arguments.on_target_error = OnError::Stop;
        ending.bench.start("second-copy", arguments).await.unwrap();
        let job = ending.bench.graph.jobs().get("second").unwrap();
        let is_ready = |_: &[_]| (job.state() == JobState::Ready).then_some(());
        ending.bench.wait_until(is_ready).await;
        ending.all.push((disk, Arc::clone(&job)));
        ending.hang_in_section(1).await;
        ending.wait_phase(EndPhase::Held).await;
        let parked = ending.bench.park_write(&ending.disk, 0, 0xf1).await;
        debug(&target).fail("hang", libc::EIO).unwrap();
        ending.hung.clear();
        parked.await.unwrap();
        assert_eq!(stopped(&ending.bench, &job).await, IoStatus::Failed);
        for (disk, _) in &ending.all {
            ending.bench.write(disk, BLOCK, 0xf2).await;
        }
        job.resume().unwrap();
        ending.ends_well().await;
    });
}

/// All catch up before the first guest is held.
#[test]
fn a_slow_member_does_not_hold_the_guests_of_others() {
    run_both_by_hand(|bench| async move {
        let phase = "waiting until others have caught up";
        let mut ending = Ending::reach(bench, phase).await;
        // What the first target's copies wait for is no part of it.
        debug(&ending.target(0)).resume("hang").unwrap();
        ending.hung.pop();
        for round in 0..20 {
            yield_often().await;
            ending.bench.write(&ending.disk, BLOCK, round).await;
        }
        wait_copied(&ending.bench, BLOCK, 19).await;
        assert!(!ending.disk.gate().is_closed());
        ending.ends_well().await;
    });
}

/// Once it was finalised a job does not wait for its speed limit.
#[test]
fn the_speed_limit_does_not_hold_up_the_end() {
    run_both_by_hand(|bench| async move {
        let (ending, _) = with_policy(bench, OnError::Report, true).await;
        ending.job.set_speed(1).unwrap();
        ending.complete();
        ending.wait_phase(EndPhase::Pending).await;
        ending.bench.write(&ending.disk, 0, 0xf1).await;
        wait_copied(&ending.bench, 0, 0xf1).await;
        // That has used up what may be copied for a long time.
        ending.bench.write(&ending.disk, 1 << 20, 0xf2).await;
        for _ in 0..10 {
            tick(&ending.bench).await;
        }
        let image = ending.bench.bytes("first-copy");
        assert_ne!(block_value(&image, 1 << 20), Some(0xf2));
        ending.ends_well().await;
    });
}
