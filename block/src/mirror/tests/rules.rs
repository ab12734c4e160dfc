//! The gate's rule 11: the block layer's own requests are not held by the sections that hold a
//! device's. A job's copies enter no gate, and its own section does not wait for itself.
//! `docs/gate.md` says which mutant breaks which of these tests.

use sluice_aio::current;

use super::bench::{block_value, debug, run_both};
use crate::job::JobState;

/// A write fails while the pivot drains, so there is something to copy inside the section: with the
/// disk's gate closed, and without standing before it.
#[test]
fn copies_run_inside_the_jobs_own_section() {
    run_both(|bench| async move {
        let (disk, source) = bench.debug_disk("disk").await;
        let target = bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        let sides = [debug(&source), debug(&target)];
        let complete = || bench.job().complete().unwrap();
        let slow = bench.until_the_section(&disk, sides, &complete);
        let slow = slow.await;
        debug(&source).resume("slow").unwrap();
        slow.await.unwrap_err();
        // The guest sends nothing more: whoever is parked is the job itself.
        while bench.job().state() != JobState::Concluded {
            assert_eq!(disk.gate().parked(), 0, "a copy waits for its own section");
            current::yield_now().await;
        }
        assert_eq!(bench.end().await, None);
        assert_eq!(disk.gate().stats().parked, 0);
        assert_eq!(block_value(&bench.bytes("target"), 0), Some(1));
    });
}
