//! How drained sections make a job rest.
//!
//! The graph treats a job as a parent of its nodes: it takes a [`Quiesced`] guard for every edge by
//! which a drained section reaches the job, waits until the job is idle, and drops the guard at the
//! section's end. Any thread.

use std::fmt;
use std::sync::Arc;

use super::handle::Job;

/// While it lives the job rests at its next pause point and does not begin its last steps.
///
/// Guards are counted; dropping the last lets the job go on.
#[must_use = "the job goes on when the guard is dropped"]
pub struct Quiesced {
    job: Arc<Job>,
}

impl Job {
    /// Asks the job to rest. It does so at its next pause point: see
    /// [`wait_idle`](Self::wait_idle).
    pub fn quiesce(self: &Arc<Self>) -> Quiesced {
        self.lock().quiescers += 1;
        self.wake();
        Quiesced {
            job: Arc::clone(self),
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
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        self.job.lock().quiescers -= 1;
        self.job.wake();
    }
}

impl fmt::Debug for Quiesced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quiesced({})", self.job.id())
    }
}
