//! I/O errors of a job under each policy.

use std::time::Duration;

use rustix::io::Errno;

use super::support::{Step, World};
use crate::event::IoOperation::{Read, Write};
use crate::job::policy::IgnoredErrors;
use crate::job::*;

#[test]
fn report_fails_the_job() {
    let mut world = World::new();
    let fake = world.start("job");
    world.events();
    fake.act(
        &mut world,
        [Step::IoError(OnError::Report, Read, Errno::IO)],
    );
    assert_eq!(
        world.events(),
        [
            "ERROR Read Report",
            "aborting",
            "COMPLETED: Input/output error",
            "concluded",
            "null"
        ]
    );
}

#[test]
fn stop_pauses_until_the_operator_resumes() {
    for (errno, status) in [
        (Errno::IO, IoStatus::Failed),
        (Errno::NOSPC, IoStatus::Nospace),
    ] {
        let mut world = World::new();
        let fake = world.start("job");
        world.events();
        fake.act(&mut world, [Step::IoError(OnError::Stop, Write, errno)]);
        assert_eq!(world.events(), ["ERROR Write Stop", "paused"]);
        let info = fake.job.block_job_info();
        assert_eq!((info.io_status, info.paused), (status, true));
        assert_eq!(fake.job.pause(), Err(VerbError::AlreadyPaused));
        fake.job.resume().unwrap();
        world.rest();
        assert_eq!(world.events(), ["running"]);
        assert_eq!(fake.job.block_job_info().io_status, IoStatus::Ok);
    }
}

#[test]
fn lack_of_room_pauses_but_other_errors_fail_under_enospc() {
    let mut world = World::new();
    let fake = world.start("job");
    world.events();
    fake.act(
        &mut world,
        [Step::IoError(OnError::Enospc, Write, Errno::NOSPC)],
    );
    assert_eq!(world.events(), ["ERROR Write Stop", "paused"]);
    fake.job.resume().unwrap();
    fake.act(
        &mut world,
        [Step::IoError(OnError::Enospc, Write, Errno::IO)],
    );
    let events = world.events();
    assert_eq!(events[..3], ["running", "ERROR Write Report", "aborting"]);
}

#[test]
fn ignored_errors_back_off_and_do_not_flood() {
    let mut world = World::new();
    let fake = world.start("job");
    world.events();
    let error = || Step::IoError(OnError::Ignore, Write, Errno::IO);
    fake.act(&mut world, (0..5).map(|_| error()));
    assert_eq!(world.events(), ["ERROR Write Ignore"]);
    let waits = |first: u64| (0..5).map(move |n| first << n).map(Duration::from_millis);
    assert!(
        fake.script
            .verdicts
            .lock()
            .iter()
            .copied()
            .eq(waits(10).map(ErrorVerdict::RetryAfter))
    );
    world.advance(IgnoredErrors::EVENT_INTERVAL);
    fake.act(&mut world, [Step::IoSuccess, error()]);
    assert_eq!(world.events(), ["ERROR Write Ignore"]);
    assert_eq!(
        fake.script.verdicts.lock().last(),
        Some(&ErrorVerdict::RetryAfter(IgnoredErrors::FIRST_WAIT))
    );
    assert_eq!(fake.job.state(), JobState::Running);
}

#[test]
fn backing_off_lasts_through_kicks_but_not_through_commands() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.calls();
    let back_off = || Step::BackOff(Duration::from_millis(10));
    fake.act(
        &mut world,
        [Step::IoError(OnError::Ignore, Write, Errno::IO), back_off()],
    );
    fake.act(&mut world, []);
    world.advance(Duration::from_millis(9));
    assert!(fake.calls().is_empty());
    world.advance(Duration::from_millis(1));
    assert_eq!(fake.calls(), ["tries again"]);
    fake.act(&mut world, [back_off()]);
    let quiesced = fake.job.quiesce();
    world.rest();
    assert!(
        !fake.job.is_busy(),
        "a drained section does not wait for the time to pass"
    );
    drop(quiesced);
    world.rest();
    assert_eq!(fake.calls(), ["settle", "tries again"]);
    fake.act(&mut world, [back_off()]);
    fake.job.cancel(true).unwrap();
    world.rest();
    assert_eq!(fake.job.state(), JobState::Null);
}

#[test]
fn an_error_of_its_own_does_not_wake_the_work() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.calls();
    let error = Step::IoError(OnError::Ignore, Write, Errno::IO);
    fake.act(&mut world, [error, Step::Sleep(Duration::from_millis(10))]);
    assert!(fake.calls().is_empty());
}
