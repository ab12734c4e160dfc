//! Drained sections against a job.

use super::support::{Step, World, manual};
use crate::job::*;

#[test]
fn a_section_makes_the_job_rest_and_lets_it_go() {
    let mut world = World::new();
    let fake = world.start("job");
    world.events();
    assert!(fake.job.is_busy());
    let quiesced = fake.job.quiesce();
    let idle = fake.job.clone();
    world
        .event_loop
        .run_until(async move { idle.wait_idle().await })
        .unwrap();
    assert_eq!(world.events(), ["paused"]);
    assert!(!fake.job.is_busy());
    assert!(fake.job.block_job_info().paused);
    drop(quiesced);
    world.rest();
    assert_eq!(world.events(), ["running"]);
    assert!(fake.job.is_busy());
}

#[test]
fn sections_and_the_operators_pause_are_counted() {
    let mut world = World::new();
    let fake = world.start("job");
    let first = fake.job.quiesce();
    let second = fake.job.quiesce();
    world.rest();
    fake.job.pause().unwrap();
    world.events();
    drop(first);
    world.rest();
    fake.job.resume().unwrap();
    world.rest();
    assert_eq!(fake.job.state(), JobState::Paused);
    fake.job.pause().unwrap();
    drop(second);
    world.rest();
    assert_eq!(fake.job.state(), JobState::Paused);
    assert!(world.events().is_empty());
    fake.job.resume().unwrap();
    world.rest();
    assert_eq!(world.events(), ["running"]);
}

#[test]
fn an_operator_can_not_resume_what_a_section_has_paused() {
    let mut world = World::new();
    let fake = world.start("job");
    let _quiesced = fake.job.quiesce();
    world.rest();
    assert_eq!(fake.job.state(), JobState::Paused);
    assert_eq!(fake.job.resume(), Err(VerbError::NotPaused));
}

#[test]
fn a_created_job_is_idle_and_starts_after_the_section() {
    let mut world = World::new();
    let fake = world.create("job");
    let quiesced = fake.job.quiesce();
    assert!(!fake.job.is_busy());
    fake.job.start();
    world.rest();
    assert_eq!(world.events(), ["created", "running", "paused"]);
    drop(quiesced);
    world.rest();
    assert_eq!(world.events(), ["running"]);
}

#[test]
fn a_cancelled_job_still_respects_the_section() {
    let mut world = World::new();
    let fake = world.start("job");
    let quiesced = fake.job.quiesce();
    world.rest();
    world.events();
    fake.job.cancel(true).unwrap();
    world.rest();
    assert!(world.events().is_empty() && !fake.job.is_busy());
    drop(quiesced);
    world.rest();
    assert_eq!(
        world.events(),
        ["running", "aborting", "CANCELLED", "concluded", "null"]
    );
}

#[test]
fn a_pending_job_is_idle_and_its_last_steps_wait_for_the_section() {
    let mut world = World::new();
    let fake = world.start_with(manual("job"), true);
    fake.act(&mut world, [Step::Return(Ok(()))]);
    fake.calls();
    let quiesced = fake.job.quiesce();
    assert!(!fake.job.is_busy());
    fake.job.finalize().unwrap();
    world.rest();
    assert!(fake.calls().is_empty() && !fake.job.is_busy());
    drop(quiesced);
    world.rest();
    assert_eq!(fake.calls(), ["prepare", "commit", "clean"]);
}

#[test]
fn a_pending_job_is_not_aborted_inside_a_section() {
    let mut world = World::new();
    let fake = world.start_with(manual("job"), true);
    fake.act(&mut world, [Step::Return(Ok(()))]);
    fake.calls();
    let quiesced = fake.job.quiesce();
    fake.job.cancel(true).unwrap();
    world.rest();
    assert_eq!(fake.calls(), ["on_cancel force"]);
    drop(quiesced);
    world.rest();
    assert_eq!(fake.calls(), ["abort", "clean"]);
}

#[test]
fn a_section_waits_for_last_steps_that_have_begun() {
    let mut world = World::new();
    let fake = world.start("job");
    *fake.script.held_in.lock() = Some("prepare");
    fake.act(&mut world, [Step::Return(Ok(()))]);
    let _quiesced = fake.job.quiesce();
    world.rest();
    assert!(fake.job.is_busy());
    *fake.script.held_in.lock() = None;
    fake.job.kick();
    world.rest();
    assert!(!fake.job.is_busy());
    assert_eq!(fake.job.state(), JobState::Null);
}

/// A job that is to end rests for a section that has not begun for a while, and for one that has begun until its end.
#[test]
fn a_section_begins_over_a_job_at_rest_alone() {
    for begins in [false, true] {
        let mut world = World::new();
        let fake = world.start("job");
        let quiesced = fake.job.quiesce();
        assert!(!quiesced.begin(), "it works");
        world.rest();
        assert!(!fake.job.is_busy());
        if begins {
            assert!(quiesced.begin());
        }
        fake.job.cancel(true).unwrap();
        world.rest();
        for _ in 0..3 {
            world.advance(PATIENCE);
        }
        assert_eq!(fake.job.state() == JobState::Null, !begins);
        drop(quiesced);
        world.rest();
        assert_eq!(fake.job.state(), JobState::Null);
    }
}
