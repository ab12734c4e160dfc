//! Claims of jobs to a node, from several threads.

use std::sync::Barrier;
use std::thread;

use sluice_aio::current;

use super::bench::run;
use super::jobs::{Fails, spawn};

/// How often each thread tries.
const TRIES: usize = 100_000;

/// The first job ends in its own thread just as another one asks for the node: whoever is not refused has it.
#[test]
fn who_is_not_refused_a_node_has_claimed_it() {
    run(async |bench| {
        let (_, node, _) = bench.disk("disk");
        let began = Barrier::new(2);
        thread::scope(|scope| {
            for job in ["mirror 'one'", "backup 'two'"] {
                let (node, began) = (&node, &began);
                scope.spawn(move || {
                    began.wait();
                    for _ in 0..TRIES {
                        if node.block(job).is_ok() {
                            let holder = node.blocker();
                            assert_eq!(holder.as_deref(), Some(job));
                            node.unblock();
                        }
                    }
                });
            }
        });
        assert!(node.check_not_blocked().is_ok());
    });
}

/// A job says of its own claims that it has begun, not of those that somebody else has.
#[test]
fn a_job_that_begins_speaks_for_its_own_claims() {
    run(async |bench| {
        let (_, node, _) = bench.disk("disk");
        let home = current::context();
        let (job, ..) = spawn(&bench, &home, &node, Fails::Never, None);
        let way_out = || node.check_not_blocked().unwrap_err().way_out().unwrap();
        node.block("mirror 'other'").unwrap();
        node.blocker_has_begun(&job);
        assert!(way_out().starts_with("the job is only beginning"));
        node.unblock();
        node.block(&job.kind().named(job.id())).unwrap();
        node.blocker_has_begun(&job);
        assert!(way_out().contains("'job-cancel'"), "{}", way_out());
        node.unblock();
        job.discard();
        job.concluded().await;
    });
}
