//! Every state against every state and every verb, against a second, independent notation of QEMU's
//! tables; and every verb on a job in every state.

use std::sync::Arc;

use serde_json::Map;

use super::support::{World, options};
use crate::job::inner::CancelRequest;
use crate::job::*;

/// One letter per state, in the order of `JobState::ALL`.
const LETTERS: &str = "UCRPYSWDXEN";

/// From, then all that may follow.
const TRANSITIONS: &str = "U:C C:RXN R:PYWX P:R Y:SWX S:Y W:DX D:XE X:XE E:N N:";

/// Verb, then the states that accept it.
const VERBS: &str = "cancel:CRPYSWD pause:CRPYS resume:CRPYSWD set-speed:CRPYS change:CRPYS \
                     complete:YS finalize:D dismiss:E";

fn letter(state: JobState) -> char {
    let index = JobState::ALL
        .iter()
        .position(|other| *other == state)
        .unwrap();
    LETTERS.chars().nth(index).unwrap()
}

fn row<'a>(table: &'a str, name: &str) -> &'a str {
    table
        .split_whitespace()
        .find_map(|row| row.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no row {name}"))
}

#[test]
fn every_state_against_every_state() {
    for from in JobState::ALL {
        let next = row(TRANSITIONS, &letter(from).to_string());
        for to in JobState::ALL {
            let expected = if next.contains(letter(to)) {
                Ok(())
            } else {
                Err(IllegalTransition { from, to })
            };
            assert_eq!(from.check(to), expected, "{from} to {to}");
        }
    }
}

#[test]
fn every_verb_against_every_state() {
    for verb in JobVerb::ALL {
        let states = row(VERBS, verb.name());
        for state in JobState::ALL {
            assert_eq!(
                verb.allowed_in(state),
                states.contains(letter(state)),
                "{verb} in {state}"
            );
        }
    }
}

#[test]
fn an_illegal_transition_changes_and_tells_nothing() {
    let world = World::new();
    for from in JobState::ALL {
        for to in JobState::ALL
            .into_iter()
            .filter(|to| from.check(*to).is_err())
        {
            let fake = world.create("job");
            world.events();
            fake.job.lock().state = from;
            let result = fake.job.transition(&mut fake.job.lock(), to);
            assert_eq!(result, Err(IllegalTransition { from, to }));
            assert_eq!(fake.job.state(), from);
            assert!(world.events().is_empty());
            forget(&world, &fake.job);
        }
    }
}

#[test]
fn every_legal_transition_is_told_once() {
    let world = World::new();
    for from in JobState::ALL {
        for to in JobState::ALL
            .into_iter()
            .filter(|to| from.check(*to).is_ok())
        {
            let fake = world.create("job");
            world.events();
            fake.job.lock().state = from;
            fake.job.transition(&mut fake.job.lock(), to).unwrap();
            let told = if from == to {
                vec![]
            } else {
                vec![to.to_string()]
            };
            assert_eq!(world.events(), told, "{from} to {to}");
            forget(&world, &fake.job);
        }
    }
}

/// Gives the verb to the job, prepared so that nothing but its state could stand against it.
fn give(job: &Arc<Job>, verb: JobVerb) -> Result<(), VerbError> {
    job.lock().user_paused = verb == JobVerb::Resume;
    match verb {
        JobVerb::Cancel => job.cancel(true),
        JobVerb::Pause => job.pause(),
        JobVerb::Resume => job.resume(),
        JobVerb::SetSpeed => job.set_speed(1),
        JobVerb::Complete => job.complete(),
        JobVerb::Finalize => job.finalize(),
        JobVerb::Dismiss => job.dismiss(),
        // The scripted driver can't change anything: being asked is being accepted.
        JobVerb::Change => match job.change(&Map::new()) {
            Err(VerbError::CannotChange) => Ok(()),
            other => other,
        },
    }
}

#[test]
fn every_verb_on_a_job_in_every_state() {
    let world = World::new();
    for verb in JobVerb::ALL {
        for state in JobState::ALL {
            let fake = world.create("job");
            fake.job.lock().state = state;
            let result = give(&fake.job, verb);
            if verb.allowed_in(state) {
                assert_eq!(result, Ok(()), "{verb} in {state}");
            } else {
                let error = result.unwrap_err();
                assert_eq!(
                    error.to_string(),
                    format!("Job 'job' in state '{state}' cannot accept command verb '{verb}'")
                );
                assert_eq!(error.class(), ErrorClass::Generic);
                assert!(!fake.job.group().is_finalize_requested());
                let core = fake.job.lock();
                assert!(!core.complete_requested && !core.is_cancelled());
                assert_eq!(core.rate.speed(), options("job").speed);
            }
            forget(&world, &fake.job);
        }
    }
}

/// Whatever is advised is taken, in every state and however the job was told to end; and nothing of use goes unsaid.
#[test]
fn whatever_is_advised_is_taken() {
    let world = World::new();
    let cancels = [
        CancelRequest::None,
        CancelRequest::Soft,
        CancelRequest::Force,
    ];
    let phases = [EndPhase::Work, EndPhase::Held, EndPhase::Switching];
    for (state, cancel, phase) in combinations(&JobState::ALL, &cancels, &phases) {
        for told in 0..4 {
            let (completed, finalized) = (told & 1 > 0, told & 2 > 0);
            let case = format!("{state}, {cancel:?}, {phase:?}, {completed}, {finalized}");
            let fake = world.create_with(super::support::manual("job"), true);
            let job = &fake.job;
            {
                let mut core = job.lock();
                core.state = state;
                core.cancel = cancel;
                core.phase = phase;
                core.complete_requested = completed;
            }
            if finalized {
                job.group().finalize();
            }
            let ways = job.ways_to_end();
            if let Some(WaysToEnd { complete, finalize }) = ways {
                assert_ne!(cancel, CancelRequest::Force, "{case}");
                let is_ready = JobVerb::Complete.allowed_in(state);
                assert!(!complete || JobVerb::Pause.allowed_in(state), "{case}");
                if is_ready {
                    let takes = job.complete();
                    assert_eq!(complete, takes.is_ok() && !completed, "{case}: {takes:?}");
                }
                assert_eq!(finalize, !finalized, "{case}");
                if finalize && state == JobState::Pending {
                    assert_eq!(job.finalize(), Ok(()), "{case}");
                }
            }
            let takes = job.cancel(true);
            let expected = takes.is_ok() && cancel != CancelRequest::Force;
            assert_eq!(ways.is_some(), expected, "{case}: {takes:?}");
            forget(&world, job);
        }
    }
}

/// Each with each with each.
fn combinations<A: Copy, B: Copy, C: Copy>(
    first: &[A],
    second: &[B],
    third: &[C],
) -> Vec<(A, B, C)> {
    let mut all = Vec::new();
    for first in first {
        for second in second {
            all.extend(third.iter().map(|third| (*first, *second, *third)));
        }
    }
    all
}

/// Takes a job whose state a test has bent out of the registry.
fn forget(world: &World, job: &Job) {
    job.lock().state = JobState::Concluded;
    let gone = job.dismiss();
    assert!(gone.is_ok() && world.registry.jobs().is_empty());
}
