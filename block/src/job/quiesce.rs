//! How drained sections make a job rest.
//!
//! The graph treats a job as a parent of its nodes: it takes a [`Quiesced`] guard for every edge by
//! which a drained section reaches the job, waits until the job is idle, and drops the guard at the
//! section's end. Any thread.
//!
//! A section may not begin for a long time: it waits for all that is in flight, for a target that hangs too. A job that is to
//! end rests for such a one only for a while ([`PATIENCE`]). The section, which has not begun, then waits for the end of the job.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_aio::current;

use super::handle::Job;
use super::inner::{Core, Patience};

/// How long a job that is to end waits for what may never come: a section that has not begun, or its target.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// While it lives the job rests at its next pause point and does not begin its last steps.
///
/// Guards are counted; dropping the last lets the job go on.
#[must_use = "the job goes on when the guard is dropped"]
pub struct Quiesced {
    job: Arc<Job>,
    /// Whether its section has begun.
    has_begun: Mutex<bool>,
}

impl Quiesced {
    /// The section begins, if the job rests: whatever comes, it does so until the section's end. False if the
    /// job works again.
    pub(crate) fn begin(&self) -> bool {
        let (mut core, mut has_begun) = (self.job.lock(), self.has_begun.lock());
        if core.is_busy() {
            return false;
        }
        if !std::mem::replace(&mut *has_begun, true) {
            core.begun_sections += 1;
        }
        true
    }

    /// The section has not begun after all.
    pub(crate) fn put_off(&self) {
        let (mut core, mut has_begun) = (self.job.lock(), self.has_begun.lock());
        if std::mem::take(&mut *has_begun) {
            core.begun_sections -= 1;
        }
    }
}

impl Job {
    /// Asks the job to rest. It does so at its next pause point: see
    /// [`wait_idle`](Self::wait_idle).
    pub fn quiesce(self: &Arc<Self>) -> Quiesced {
        self.lock().quiescers += 1;
        self.wake();
        Quiesced {
            job: Arc::clone(self),
            has_begun: Mutex::new(false),
        }
    }

    /// Whether the job may have requests in flight on its nodes, or start some.
    ///
    /// False before the job begins, at rest, while it waits for an operator, and after its end. A
    /// job that begins a drained section itself is left out of that section; see
    /// [`Graph::drain`](crate::Graph::drain).
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.lock().is_busy()
    }

    /// Waits until the job is not busy. Only with a [`Quiesced`] guard in hand does it stay so.
    pub async fn wait_idle(&self) {
        self.wait(|core| (!core.is_busy()).then_some(())).await;
    }

    /// Rests until `ready`, which asks whether the job may work, returns something. Once it is to end
    /// that does not last for ever.
    pub(super) async fn rest_until<T>(
        self: &Arc<Self>,
        mut ready: impl FnMut(&mut Core) -> Option<T>,
    ) -> T {
        loop {
            let rested = self.wait(|core| {
                if let Some(found) = ready(core) {
                    return Some(Some(found));
                }
                let loses = core.has_to_end() && core.patience == Patience::Whole;
                loses.then(|| {
                    core.patience = Patience::Lasting;
                    None
                })
            });
            if let Some(found) = rested.await {
                return found;
            }
            let job = Arc::clone(self);
            // Where the job rests no timer of its own can be: it may go to another loop.
            current::spawn_local(async move {
                current::sleep(PATIENCE).await;
                job.lock().patience = Patience::Lost;
                job.wake();
            })
            .detach();
        }
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        self.put_off();
        self.job.lock().quiescers -= 1;
        self.job.wake();
    }
}

impl fmt::Debug for Quiesced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quiesced({})", self.job.id())
    }
}
