//! The way to the pivot, as long as the guest runs: it leaves little to be done while the guest is held.
//!
//! Until it is made final the job *stays in sync*. Then it *approaches*: what became dirty meanwhile is copied, and the
//! target flushed, with errors judged by the operator's policy. While others of its group are not that far it *stays near*: the guests of all will
//! be held for as long as the last of them copies and flushes then.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::balance::{LAPS_IN_VAIN, LITTLE, is_in_vain};
use super::job::MirrorJob;
use super::work::{IDLE_SLICE, MAX_PASSES};
use crate::job::{JobContext, JobError, here};

/// Bytes that may still be dirty when the pivot's section begins, and as many that may not be flushed; more are copied and
/// flushed before it, while the guest runs.
pub(super) const PIVOT_BACKLOG: u64 = LITTLE;

/// Bytes that may be dirty when the last stretch begins, if the guest makes dirty as much as is copied: it would keep the
/// pivot from ever coming. In the stretch its writes wait for the target, and this bounds for how long.
const STRETCH_BACKLOG: u64 = 64 << 20;

/// How near a mirror is to the pivot.
#[derive(Debug, Default)]
pub(super) struct Nearness {
    /// Bytes of all that were written to the target which it has flushed.
    flushed: AtomicU64,
    /// How often the guest has written so much that the job had to approach once more.
    sent_back: AtomicU32,
    /// Laps led nowhere: the guest keeps as much dirty as it likes, up to [`STRETCH_BACKLOG`].
    laps_in_vain: AtomicBool,
}

impl Nearness {
    /// As much of what was `written` to the target is durable.
    pub(super) fn note_flushed(&self, written: u64) {
        self.flushed.store(written, Ordering::Relaxed);
    }
}

/// Laps over what is dirty, while a guest writes that may undo each of them.
#[derive(Debug, Default)]
struct Laps {
    before: Option<u64>,
    in_vain: u32,
}

impl Laps {
    /// A lap is over, or the first one is to begin, and so many bytes are `left`. Whether that is little, or no more laps
    /// would make it less and it is not too much.
    fn are_enough(&mut self, left: u64) -> bool {
        let before = self.before.replace(left);
        self.in_vain = match before {
            Some(before) if is_in_vain(before, left) => self.in_vain + 1,
            _ => 0,
        };
        left <= PIVOT_BACKLOG || (self.in_vain >= LAPS_IN_VAIN && left <= STRETCH_BACKLOG)
    }
}

impl MirrorJob {
    /// Whether so little is dirty that it can be copied while the guest is held.
    pub(super) fn is_nearly_converged(&self) -> bool {
        self.copier.remaining() <= PIVOT_BACKLOG
    }

    /// Whether so little is not durable that it can be flushed while the guest is held.
    fn is_nearly_flushed(&self) -> bool {
        let flushed = self.nearness.flushed.load(Ordering::Relaxed);
        self.ledger.tally.at_target().saturating_sub(flushed) <= PIVOT_BACKLOG
    }

    /// Goes on copying while the job waits to be made final, or for the work of others.
    pub(super) async fn stay_in_sync(&self, job: &JobContext) -> Result<(), JobError> {
        loop {
            self.copy_until(job, || job.is_called()).await?;
            if job.is_called() {
                return Ok(());
            }
            job.sleep(IDLE_SLICE).await;
        }
    }

    /// Copies until so little is left that the end may begin.
    pub(super) async fn come_near(&self, job: &JobContext) -> Result<(), JobError> {
        let mut laps = Laps::default();
        while !laps.are_enough(self.copier.remaining()) {
            self.pass(job).await?;
        }
        Ok(())
    }

    /// Leaves but little to the section, and the flush in it short.
    pub(super) async fn approach(&self, job: &JobContext) -> Result<(), JobError> {
        let mut laps = Laps::default();
        // One pass in any case: what it copies need not be copied with the guest held.
        for _ in 0..MAX_PASSES {
            self.pass(job).await?;
            let left = self.copier.remaining();
            if laps.are_enough(left) {
                let in_vain = left > PIVOT_BACKLOG;
                self.nearness.laps_in_vain.store(in_vain, Ordering::Relaxed);
                break;
            }
        }
        self.flush_target(job).await
    }

    /// Keeps it so until all of the group have come as near. Returns before that if an error has to be judged, which may
    /// take long, or if the guest writes so much that it is not so any more.
    pub(super) async fn stay_near(&self, job: &JobContext) -> Result<(), JobError> {
        loop {
            job.pause_point().await;
            job.check_cancelled()?;
            let errors = self.account(job);
            let has_failed = !errors.is_empty();
            self.ledger.report_again(errors);
            if job.is_called() || has_failed || self.is_sent_back() {
                return Ok(());
            }
            if self.is_nearly_flushed() {
                self.copy_some(job).await?;
            } else if let Err(error) = here(self.begin_flush(job)).await? {
                self.ledger.report(error);
            }
        }
    }

    /// Whether the job has to approach once more. A guest that never stops writing does not keep the group from its end.
    fn is_sent_back(&self) -> bool {
        let most = match self.nearness.laps_in_vain.load(Ordering::Relaxed) {
            true => STRETCH_BACKLOG,
            false => PIVOT_BACKLOG,
        };
        self.copier.remaining() > most
            && self.nearness.sent_back.fetch_add(1, Ordering::Relaxed) < MAX_PASSES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laps(left: &[u64]) -> Vec<bool> {
        let mut laps = Laps::default();
        left.iter().map(|left| laps.are_enough(*left)).collect()
    }

    #[test]
    fn laps_end_when_little_is_left() {
        assert_eq!(laps(&[PIVOT_BACKLOG]), [true]);
        let left = [1 << 40, 1 << 30, PIVOT_BACKLOG + 1, PIVOT_BACKLOG];
        assert_eq!(laps(&left), [false, false, false, true]);
    }

    #[test]
    fn laps_end_when_they_lead_nowhere() {
        let same = STRETCH_BACKLOG;
        assert_eq!(laps(&[same, same, same]), [false, false, true]);
        // One of the two led somewhere.
        let left = [same, same, same / 2, same / 2, same / 2];
        assert_eq!(laps(&left), [false, false, false, false, true]);
    }

    #[test]
    fn a_guest_does_not_wait_for_much() {
        assert_eq!(laps(&[STRETCH_BACKLOG + 1; 20]), [false; 20]);
    }
}
