//! Where a job works, and how it goes elsewhere.
//!
//! A job works in the loop of its nodes' device, or where its nodes are at home. When that changes it follows: inside
//! a drained section it rests, and its task goes to the other loop as it is. So what the task holds while it rests
//! may go from thread to thread, which the compiler checks; requests and timers belong to their loop and are kept
//! [`here`], where nobody rests.

use send_wrapper::SendWrapper;
use sluice_aio::AioContext;

use super::handle::Job;
use crate::home::Home;

/// A future of a job's work that stays in the loop in which it is made: it panics if it is polled elsewhere, which
/// means that somebody rests inside of it.
pub(crate) fn here<F: Future>(future: F) -> SendWrapper<F> {
    SendWrapper::new(future)
}

impl Job {
    /// Has the job work in the loop of `home` from now on; the caller has it rest, in a drained section over its
    /// nodes, and waits until it [has arrived](Self::arrived) before that ends. Any thread.
    pub(crate) fn move_to(&self, home: Home) {
        let mut core = self.lock();
        if core.state.has_ended() || core.home == home {
            return;
        }
        debug_assert!(!core.is_busy(), "a job is moved while it works");
        let before = std::mem::replace(&mut core.home, home);
        core.left.push(before);
        drop(core);
        self.wake();
    }

    /// Waits until the job's task is where it is to be, or has ended: nothing of it is left elsewhere.
    pub(crate) async fn arrived(&self) {
        self.wait(|core| (core.is_at_home() || core.state.has_ended()).then_some(()))
            .await;
    }

    /// The job's task is in the loop `here`, and in no other any more.
    pub(super) fn arrive(&self, here: &AioContext) {
        let mut core = self.lock();
        if core.home.context() != here {
            return;
        }
        core.lives_in = here.clone();
        let left = std::mem::take(&mut core.left);
        drop(core);
        // The last reference to a thread ends it, which nobody should wait for under a lock.
        drop(left);
        self.wake();
    }

    /// The job has nothing to do in its loop any more: that may be taken away.
    pub(super) fn leave_home(&self) {
        let mut core = self.lock();
        let unkept = core.home.unkept();
        let home = std::mem::replace(&mut core.home, unkept);
        let left = std::mem::take(&mut core.left);
        drop(core);
        drop((home, left));
    }
}
