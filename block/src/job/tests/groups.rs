//! Jobs that succeed together: every outcome of one and of two, in both orders.

use std::sync::Arc;

use rustix::io::Errno;

use super::support::*;
use crate::job::*;

/// Two jobs of one group, begun, whose work has nothing to do yet.
fn pair(world: &mut World, make: fn(&str) -> JobOptions) -> [Fake; 2] {
    let group = Arc::new(JobGroup::default());
    let fakes = ["one", "two"].map(|id| {
        let mut options = make(id);
        options.group = Some(Arc::clone(&group));
        world.create_with(options, false)
    });
    for fake in &fakes {
        fake.job.start();
    }
    world.rest();
    for fake in &fakes {
        assert_eq!(fake.job.state(), JobState::Running);
    }
    world.events();
    fakes
}

fn kept(id: &str) -> JobOptions {
    JobOptions {
        auto_dismiss: false,
        ..options(id)
    }
}

fn ok() -> Step {
    Step::Return(Ok(()))
}

fn failure() -> Step {
    Step::Return(Err(JobError::Errno(Errno::IO)))
}

fn errors(fakes: &[Fake; 2]) -> [Option<String>; 2] {
    let of = |fake: &Fake| {
        assert_eq!(fake.job.state(), JobState::Concluded);
        fake.job.info().error
    };
    [of(&fakes[0]), of(&fakes[1])]
}

const FAILED: &str = "Input/output error";
const CANCELLED: &str = "Operation canceled";

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn one_alone_ends_as_it_would() {
    let mut world = World::new();
    let fake = world.start_with(kept("one"), false);
    fake.act(&mut world, [ok()]);
    assert_eq!(fake.job.info().error, None);
    let fake = world.start_with(kept("two"), false);
    fake.act(&mut world, [failure()]);
    assert_eq!(fake.job.info().error, some(FAILED));
    let fake = world.start_with(kept("three"), false);
    fake.job.cancel(true).unwrap();
    world.rest();
    assert_eq!(fake.job.info().error, some(CANCELLED));
}

#[test]
fn none_begins_before_all_may() {
    let mut world = World::new();
    let group = Arc::new(JobGroup::default());
    let [one, two] = ["one", "two"].map(|id| {
        let mut options = kept(id);
        options.group = Some(Arc::clone(&group));
        world.create_with(options, false)
    });
    one.job.start();
    world.rest();
    assert_eq!(one.job.state(), JobState::Created);
    two.job.start();
    world.rest();
    assert_eq!(one.job.state(), JobState::Running);
    assert_eq!(two.job.state(), JobState::Running);
}

#[test]
fn one_that_is_done_waits_for_the_other() {
    for first in 0..2 {
        let mut world = World::new();
        let fakes = pair(&mut world, kept);
        fakes[first].act(&mut world, [ok()]);
        assert_eq!(fakes[first].job.state(), JobState::Waiting);
        assert!(!fakes[first].job.is_busy());
        assert_eq!(world.events(), ["waiting"]);
        fakes[1 - first].act(&mut world, [ok()]);
        assert_eq!(errors(&fakes), [None, None]);
        for fake in &fakes {
            assert_eq!(fake.calls()[1..], ["prepare", "commit", "clean"]);
        }
    }
}

#[test]
fn if_one_fails_the_other_is_cancelled() {
    for fails in 0..2 {
        for other_is_done in [false, true] {
            let mut world = World::new();
            let fakes = pair(&mut world, kept);
            if other_is_done {
                fakes[1 - fails].act(&mut world, [ok()]);
            }
            fakes[fails].act(&mut world, [failure()]);
            let mut expected = [some(CANCELLED), some(CANCELLED)];
            expected[fails] = some(FAILED);
            assert_eq!(errors(&fakes), expected);
            assert!(world.events().contains(&"CANCELLED".to_owned()));
            for fake in &fakes {
                assert!(!fake.calls().iter().any(|call| call == "commit"));
            }
        }
    }
}

#[test]
fn if_one_is_cancelled_all_are() {
    for other_is_done in [false, true] {
        let mut world = World::new();
        let fakes = pair(&mut world, kept);
        if other_is_done {
            fakes[1].act(&mut world, [ok()]);
        }
        fakes[0].job.cancel(true).unwrap();
        world.rest();
        assert_eq!(errors(&fakes), [some(CANCELLED), some(CANCELLED)]);
    }
}

#[test]
fn a_cancel_that_meets_a_failure_ends_both() {
    let mut world = World::new();
    let fakes = pair(&mut world, kept);
    fakes[0].script.steps.lock().push_back(failure());
    fakes[0].job.kick();
    fakes[1].job.cancel(true).unwrap();
    world.rest();
    let errors = errors(&fakes);
    assert_eq!(errors[1], some(CANCELLED));
    assert!(errors[0].is_some());
}

#[test]
fn a_paused_job_is_cancelled_with_the_other() {
    let mut world = World::new();
    let fakes = pair(&mut world, kept);
    fakes[1].job.pause().unwrap();
    world.rest();
    assert_eq!(fakes[1].job.state(), JobState::Paused);
    fakes[0].act(&mut world, [failure()]);
    assert_eq!(errors(&fakes), [some(FAILED), some(CANCELLED)]);
}

/// The steps of the end, and how far one that is done with that comes while the other is in it.
const STEPS: [(&str, EndPhase); 5] = [
    ("tend", EndPhase::Waiting),
    ("catch_up", EndPhase::CaughtUp),
    ("keep_up", EndPhase::Held),
    ("hold", EndPhase::Held),
    ("prepare", EndPhase::Switching),
];

fn assert_none_final(fakes: &[Fake; 2], step: &str) {
    for fake in fakes {
        let calls = fake.calls();
        assert!(!calls.iter().any(|call| call == "commit"), "{step}");
        assert_eq!(calls.last().unwrap(), "clean");
        // Who has not come to its end had nothing to hold.
        let has_held = step == "tend" || *fake.script.released.lock() > 0;
        assert!(has_held, "{step}: held for good");
    }
}

#[test]
fn the_last_step_of_one_fails_and_none_is_final() {
    for (step, _) in STEPS {
        for fails in 0..2 {
            let mut world = World::new();
            let fakes = pair(&mut world, kept);
            let error = JobError::Errno(Errno::IO);
            *fakes[fails].script.fails_in.lock() = Some((step, error));
            fakes[0].act(&mut world, [ok()]);
            fakes[1].act(&mut world, [ok()]);
            let mut expected = [some(CANCELLED), some(CANCELLED)];
            expected[fails] = some(FAILED);
            assert_eq!(errors(&fakes), expected, "{step}");
            assert_none_final(&fakes, step);
        }
    }
}

#[test]
fn whoever_is_cancelled_in_whichever_step_none_is_final() {
    for (step, other_comes_to) in STEPS {
        for (slow, cancelled) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut world = World::new();
            let fakes = pair(&mut world, kept);
            *fakes[slow].script.held_in.lock() = Some(step);
            fakes[1 - slow].act(&mut world, [ok()]);
            if step != "tend" {
                fakes[slow].act(&mut world, [ok()]);
            }
            let other = fakes[1 - slow].job.end_phase();
            assert_eq!(other, other_comes_to, "{step}");
            let answer = fakes[cancelled].job.cancel(true);
            world.rest();
            if step == "prepare" {
                assert!(answer.is_err());
                *fakes[slow].script.held_in.lock() = None;
                fakes[slow].job.kick();
                world.rest();
                assert_eq!(errors(&fakes), [None, None]);
                continue;
            }
            answer.unwrap();
            let expected = [some(CANCELLED), some(CANCELLED)];
            assert_eq!(errors(&fakes), expected, "{step}");
            assert_none_final(&fakes, step);
        }
    }
}

/// One that had caught up has more to do again before the other has caught up: nobody is held meanwhile.
#[test]
fn one_that_falls_behind_is_waited_for() {
    for behind in 0..2 {
        let mut world = World::new();
        let fakes = pair(&mut world, kept);
        let (first, second) = (&fakes[behind], &fakes[1 - behind]);
        *second.script.held_in.lock() = Some("catch_up");
        first.act(&mut world, [ok()]);
        second.act(&mut world, [ok()]);
        assert_eq!(first.job.end_phase(), EndPhase::CaughtUp);
        *first.script.held_in.lock() = Some("catch_up");
        *first.script.falls_behind.lock() = true;
        first.job.kick();
        world.rest();
        assert_eq!(first.job.end_phase(), EndPhase::CatchingUp);
        *second.script.held_in.lock() = None;
        second.job.kick();
        world.rest();
        assert_eq!(second.job.end_phase(), EndPhase::CaughtUp);
        *first.script.held_in.lock() = None;
        first.job.kick();
        world.rest();
        assert_eq!(errors(&fakes), [None, None]);
    }
}

#[test]
fn to_finalise_one_is_to_finalise_all() {
    let mut world = World::new();
    let group = Arc::new(JobGroup::default());
    let make = |mut options: JobOptions| {
        options.group = Some(Arc::clone(&group));
        options.auto_dismiss = false;
        world.create_with(options, false)
    };
    let fakes = [make(manual("one")), make(options("two"))];
    for fake in &fakes {
        fake.job.start();
    }
    world.rest();
    for fake in &fakes {
        fake.act(&mut world, [ok()]);
    }
    for fake in &fakes {
        assert_eq!(fake.job.state(), JobState::Pending);
        assert!(!fake.job.is_busy());
    }
    let pending = world
        .events()
        .into_iter()
        .filter(|event| event == "PENDING");
    assert_eq!(pending.count(), 1);
    fakes[1].job.finalize().unwrap();
    world.rest();
    assert_eq!(errors(&fakes), [None, None]);
}

#[test]
fn a_pending_group_can_still_be_cancelled() {
    let mut world = World::new();
    let fakes = pair(&mut world, manual);
    for fake in &fakes {
        fake.act(&mut world, [ok()]);
    }
    fakes[0].job.cancel(true).unwrap();
    world.rest();
    assert_eq!(errors(&fakes), [some(CANCELLED), some(CANCELLED)]);
}

#[test]
fn sections_are_respected_by_a_group() {
    let mut world = World::new();
    let fakes = pair(&mut world, kept);
    fakes[0].act(&mut world, [ok()]);
    let held = fakes[0].job.quiesce();
    fakes[1].act(&mut world, [ok()]);
    world.rest();
    assert_eq!(fakes[0].job.state(), JobState::Waiting);
    assert!(!fakes[0].job.is_busy());
    drop(held);
    world.rest();
    assert_eq!(errors(&fakes), [None, None]);
}

#[test]
fn one_that_will_not_begin_is_not_waited_for() {
    let mut world = World::new();
    let group = Arc::new(JobGroup::default());
    let [one, two] = ["one", "two"].map(|id| {
        let mut options = kept(id);
        options.group = Some(Arc::clone(&group));
        world.create_with(options, false)
    });
    one.job.start();
    two.job.discard();
    world.rest();
    assert_eq!(one.job.state(), JobState::Running);
    one.act(&mut world, [ok()]);
    assert_eq!(one.job.info().error, None);
}
