//! Whole lives: the order of states and events for every way in which a job can end.

use std::time::Duration;

use rustix::io::Errno;

use super::support::{Step, World, manual, options};
use crate::event::BlockEvent;
use crate::job::*;

const EIO: JobError = JobError::Errno(Errno::IO);

#[test]
fn success() {
    let mut world = World::new();
    let fake = world.start("job");
    assert_eq!(world.events(), ["created", "running"]);
    fake.act(&mut world, [Step::Return(Ok(()))]);
    assert_eq!(
        world.events(),
        ["waiting", "pending", "COMPLETED", "concluded", "null"]
    );
    assert_eq!(fake.calls(), ["run", "prepare", "commit", "clean"]);
    assert!(world.registry.jobs().is_empty());
}

#[test]
fn a_mirror_that_gets_ready_and_is_completed() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.act(&mut world, [Step::Ready]);
    assert_eq!(world.events(), ["created", "running", "ready", "READY"]);
    fake.job.complete().unwrap();
    world.rest();
    assert_eq!(
        world.events(),
        ["waiting", "pending", "COMPLETED", "concluded", "null"]
    );
}

#[test]
fn failure_of_the_work() {
    let mut world = World::new();
    let fake = world.start("job");
    world.events();
    fake.act(&mut world, [Step::Return(Err(EIO))]);
    assert_eq!(
        world.events(),
        [
            "aborting",
            "COMPLETED: Input/output error",
            "concluded",
            "null"
        ]
    );
    assert_eq!(fake.calls(), ["run", "abort", "clean"]);
}

#[test]
fn failure_when_ready() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.act(&mut world, [Step::Ready]);
    world.events();
    fake.act(&mut world, [Step::Return(Err(EIO))]);
    assert_eq!(
        world.events(),
        [
            "aborting",
            "COMPLETED: Input/output error",
            "concluded",
            "null"
        ]
    );
}

#[test]
fn failure_of_the_last_step() {
    let mut world = World::new();
    let fake = world.start("job");
    *fake.script.fails_in.lock() = Some(("prepare", EIO));
    world.events();
    fake.act(&mut world, [Step::Return(Ok(()))]);
    assert_eq!(
        world.events(),
        [
            "waiting",
            "pending",
            "aborting",
            "COMPLETED: Input/output error",
            "concluded",
            "null"
        ]
    );
    assert_eq!(fake.calls(), ["run", "prepare", "abort", "clean"]);
}

#[test]
fn cancel_while_running() {
    for force in [false, true] {
        let mut world = World::new();
        let fake = world.start("job");
        world.events();
        fake.job.cancel_unless_paused(force).unwrap();
        world.rest();
        assert_eq!(
            world.events(),
            ["aborting", "CANCELLED", "concluded", "null"]
        );
        assert_eq!(fake.calls(), ["run", "on_cancel force", "abort", "clean"]);
    }
}

#[test]
fn soft_cancel_when_ready_ends_well() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.act(&mut world, [Step::Ready]);
    world.events();
    fake.job.cancel(false).unwrap();
    world.rest();
    assert_eq!(
        world.events(),
        ["waiting", "pending", "COMPLETED", "concluded", "null"]
    );
    assert_eq!(
        fake.calls(),
        ["run", "on_cancel soft", "prepare", "commit", "clean"]
    );
}

#[test]
fn forced_cancel_when_ready() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.act(&mut world, [Step::Ready]);
    world.events();
    fake.job.cancel(true).unwrap();
    world.rest();
    assert_eq!(
        world.events(),
        ["aborting", "CANCELLED", "concluded", "null"]
    );
}

#[test]
fn a_soft_cancel_does_not_take_back_a_forced_one() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.act(&mut world, [Step::Ready]);
    world.events();
    fake.job.cancel(true).unwrap();
    fake.job.cancel(false).unwrap();
    world.rest();
    assert_eq!(
        world.events(),
        ["aborting", "CANCELLED", "concluded", "null"]
    );
}

#[test]
fn a_kind_without_soft_cancel_is_aborted_when_ready() {
    let mut world = World::new();
    let fake = world.start_with(options("job"), false);
    fake.act(&mut world, [Step::Ready]);
    world.events();
    fake.job.cancel(false).unwrap();
    world.rest();
    assert_eq!(
        world.events(),
        ["aborting", "CANCELLED", "concluded", "null"]
    );
}

/// Until then its creator may want it to be as if it had never been, and does itself what `clean` would do.
#[test]
fn a_cancel_before_the_start_waits_for_the_creators_word() {
    let mut world = World::new();
    let fake = world.create_with(options("job"), true);
    world.rest();
    fake.job.cancel(true).unwrap();
    world.rest();
    assert_eq!(world.events(), ["created"]);
    assert_eq!(fake.calls(), ["on_cancel force"]);
    fake.job.start();
    world.rest();
    assert_eq!(
        world.events(),
        ["aborting", "CANCELLED", "concluded", "null"]
    );
    assert_eq!(fake.calls(), ["abort", "clean"]);
}

#[test]
fn a_cancelled_job_that_is_discarded_vanishes() {
    let mut world = World::new();
    let fake = world.create_with(options("job"), true);
    world.rest();
    fake.job.cancel(true).unwrap();
    world.rest();
    fake.job.discard();
    world.rest();
    assert_eq!(world.events(), ["created", "null"]);
    assert_eq!(fake.calls(), ["on_cancel force"]);
    assert!(world.registry.jobs().is_empty());
}

#[test]
fn a_discarded_job_vanishes() {
    let mut world = World::new();
    let fake = world.create("job");
    fake.job.discard();
    world.rest();
    assert_eq!(world.events(), ["created", "null"]);
    assert!(fake.calls().is_empty() && world.registry.jobs().is_empty());
}

#[test]
fn manual_finalize_and_dismiss() {
    let mut world = World::new();
    let fake = world.start_with(manual("job"), true);
    world.events();
    fake.act(&mut world, [Step::Return(Ok(()))]);
    assert_eq!(world.events(), ["waiting", "pending", "PENDING"]);
    assert_eq!(fake.calls(), ["run"]);
    fake.job.finalize().unwrap();
    world.rest();
    assert_eq!(world.events(), ["COMPLETED", "concluded"]);
    assert_eq!(fake.calls(), ["prepare", "commit", "clean"]);
    assert_eq!(world.registry.jobs().len(), 1);
    fake.job.dismiss().unwrap();
    assert_eq!(world.events(), ["null"]);
    assert!(world.registry.jobs().is_empty());
}

#[test]
fn a_failed_job_can_be_looked_at_until_it_is_dismissed() {
    let mut world = World::new();
    let fake = world.start_with(manual("job"), true);
    world.events();
    fake.act(&mut world, [Step::Return(Err(EIO))]);
    assert_eq!(
        world.events(),
        ["aborting", "COMPLETED: Input/output error", "concluded"]
    );
    let info = serde_json::to_value(fake.job.info()).unwrap();
    assert_eq!(info["error"], "Input/output error");
    assert_eq!(info["status"], "concluded");
}

#[test]
fn cancel_while_pending() {
    for force in [false, true] {
        let mut world = World::new();
        let fake = world.start_with(manual("job"), true);
        fake.act(&mut world, [Step::Return(Ok(()))]);
        world.events();
        fake.job.cancel(force).unwrap();
        world.rest();
        assert_eq!(world.events(), ["aborting", "CANCELLED", "concluded"]);
        assert_eq!(fake.calls(), ["run", "on_cancel force", "abort", "clean"]);
    }
}

#[test]
fn too_late_to_cancel_once_the_last_step_has_begun() {
    let mut world = World::new();
    let fake = world.start("job");
    *fake.script.held_in.lock() = Some("prepare");
    fake.act(&mut world, [Step::Return(Ok(()))]);
    assert_eq!(
        fake.job.cancel(true).unwrap_err().to_string(),
        "Job 'job' in state 'pending' cannot accept command verb 'cancel'"
    );
    world.events();
    *fake.script.held_in.lock() = None;
    fake.job.kick();
    world.rest();
    assert_eq!(world.events(), ["COMPLETED", "concluded", "null"]);
}

#[test]
fn pause_and_resume_while_running_and_when_ready() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.act(&mut world, []);
    for (step, rest, work) in [
        (None, "paused", "running"),
        (Some(Step::Ready), "standby", "ready"),
    ] {
        fake.act(&mut world, step);
        world.events();
        fake.calls();
        fake.job.pause().unwrap();
        world.rest();
        assert_eq!(world.events(), [rest]);
        assert_eq!(fake.calls(), ["settle"]);
        assert!(!fake.job.is_busy());
        let turns = *fake.script.turns.lock();
        fake.act(&mut world, []);
        assert_eq!(
            *fake.script.turns.lock(),
            turns,
            "a kick does not end a pause"
        );
        fake.job.resume().unwrap();
        world.rest();
        assert_eq!(world.events(), [work]);
    }
}

#[test]
fn a_job_paused_before_its_start_rests_before_its_work() {
    let mut world = World::new();
    let fake = world.create("job");
    fake.job.pause().unwrap();
    fake.job.start();
    world.rest();
    assert_eq!(world.events(), ["created", "running", "paused"]);
    assert_eq!(fake.calls(), ["settle"]);
    fake.job.resume().unwrap();
    world.rest();
    assert_eq!(world.events(), ["running"]);
    assert_eq!(fake.calls(), ["run"]);
}

#[test]
fn forced_cancel_ends_a_pause() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.job.pause().unwrap();
    world.rest();
    world.events();
    fake.job.cancel(true).unwrap();
    world.rest();
    assert_eq!(
        world.events(),
        ["running", "aborting", "CANCELLED", "concluded", "null"]
    );
}

#[test]
fn complete_in_standby_takes_effect_after_the_pause() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.act(&mut world, [Step::Ready]);
    fake.job.pause().unwrap();
    world.rest();
    world.events();
    fake.job.complete().unwrap();
    world.rest();
    assert!(world.events().is_empty());
    fake.job.resume().unwrap();
    world.rest();
    assert_eq!(
        world.events(),
        [
            "ready",
            "waiting",
            "pending",
            "COMPLETED",
            "concluded",
            "null"
        ]
    );
}

#[test]
fn the_end_carries_progress_and_details() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.job.progress().add_done(10);
    fake.job.progress().set_remaining(2);
    let log = world.log();
    log.take();
    fake.act(&mut world, [Step::Return(Ok(()))]);
    let completed = log
        .take()
        .into_iter()
        .find(|event| matches!(event, BlockEvent::BlockJobCompleted { .. }))
        .unwrap();
    assert_eq!(
        serde_json::to_value(completed).unwrap()["data"],
        serde_json::json!({
            "type": "mirror", "device": "job", "len": 12, "offset": 10, "speed": 0,
            "x-pivot-pause-us": 5,
        })
    );
}

#[test]
fn sleeps_end_by_time_or_by_a_kick() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.calls();
    let sleep = || Step::Sleep(Duration::from_secs(1));
    fake.act(&mut world, [sleep()]);
    assert!(fake.calls().is_empty());
    world.advance(Duration::from_millis(999));
    assert!(fake.calls().is_empty());
    world.advance(Duration::from_millis(1));
    assert_eq!(fake.calls(), ["woke Elapsed"]);
    fake.act(&mut world, [sleep()]);
    fake.job.kick();
    world.rest();
    assert_eq!(fake.calls(), ["woke Kicked"]);
    // A pause interrupts a sleep, or a drained section would have to wait for it.
    fake.act(&mut world, [sleep()]);
    fake.job.pause().unwrap();
    world.rest();
    assert_eq!(fake.calls(), ["settle"]);
    assert_eq!(fake.job.state(), JobState::Paused);
    fake.job.resume().unwrap();
    world.rest();
    assert_eq!(fake.calls(), ["woke Kicked"]);
}

#[test]
fn a_kick_that_comes_before_the_sleep_is_not_lost() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.job.kick();
    fake.job.kick();
    fake.act(&mut world, []);
    let turns = *fake.script.turns.lock();
    fake.job.kicker().kick();
    world.rest();
    assert_eq!(*fake.script.turns.lock(), turns + 1);
}
