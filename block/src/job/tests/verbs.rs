//! What commands refuse, in QEMU's words.

use super::support::{Step, World, options};
use crate::job::*;

#[track_caller]
fn refused(result: Result<(), VerbError>, text: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), text);
    assert_eq!(error.class(), ErrorClass::Generic);
}

#[test]
fn pausing_twice_and_resuming_what_runs() {
    let mut world = World::new();
    let job = world.start("job").job;
    refused(job.resume(), "Can't resume a job that was not paused");
    job.pause().unwrap();
    refused(job.pause(), "Job is already paused");
    world.rest();
    refused(job.pause(), "Job is already paused");
    job.resume().unwrap();
    refused(job.resume(), "Can't resume a job that was not paused");
}

#[test]
fn cancelling_a_paused_job_needs_force() {
    let mut world = World::new();
    let job = world.start("job").job;
    job.pause().unwrap();
    world.rest();
    refused(
        job.cancel_unless_paused(false),
        "The block job for device 'job' is currently paused",
    );
    assert_eq!(job.state(), JobState::Paused);
    job.cancel_unless_paused(true).unwrap();
    world.rest();
    assert_eq!(job.state(), JobState::Null);
}

#[test]
fn completing_too_early_after_a_cancel_or_against_the_drivers_will() {
    let mut world = World::new();
    let fake = world.start("job");
    refused(
        fake.job.complete(),
        "Job 'job' in state 'running' cannot accept command verb 'complete'",
    );
    fake.act(&mut world, [Step::Ready]);
    *fake.script.refuse_complete.lock() = true;
    refused(fake.job.complete(), "Node name 'n' not found");
    world.rest();
    assert_eq!(fake.job.state(), JobState::Ready);
    *fake.script.refuse_complete.lock() = false;
    fake.job.cancel(false).unwrap();
    refused(
        fake.job.complete(),
        "The active block job 'job' cannot be completed",
    );
}

#[test]
fn completing_twice_is_no_error() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.act(&mut world, [Step::Ready]);
    fake.job.complete().unwrap();
    fake.job.complete().unwrap();
    world.rest();
    assert_eq!(fake.job.state(), JobState::Null);
}

#[test]
fn speeds() {
    let mut world = World::new();
    let job = world
        .start_with(options("job").with_speed(10).unwrap(), true)
        .job;
    assert_eq!(job.block_job_info().speed, 10);
    refused(
        job.set_speed(-1),
        "Parameter 'speed' expects a non-negative value",
    );
    assert_eq!(job.block_job_info().speed, 10);
    job.set_speed(i64::MAX).unwrap();
    job.set_speed(0).unwrap();
    assert_eq!(job.block_job_info().speed, 0);
    let error = options("job").with_speed(-1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Parameter 'speed' expects a non-negative value"
    );
}

#[test]
fn a_new_speed_wakes_the_work() {
    let mut world = World::new();
    let fake = world.start("job");
    let turns = *fake.script.turns.lock();
    fake.job.set_speed(5).unwrap();
    world.rest();
    assert!(*fake.script.turns.lock() > turns);
}

#[test]
fn a_second_finalize_is_no_error_while_the_first_is_at_it() {
    let mut world = World::new();
    let fake = world.start_with(super::support::manual("job"), true);
    *fake.script.held_in.lock() = Some("prepare");
    fake.act(&mut world, [Step::Return(Ok(()))]);
    fake.job.finalize().unwrap();
    world.rest();
    fake.job.finalize().unwrap();
    *fake.script.held_in.lock() = None;
    fake.job.kick();
    world.rest();
    assert_eq!(fake.job.state(), JobState::Concluded);
    assert_eq!(fake.calls(), ["run", "prepare", "commit", "clean"]);
}
