//! Who keeps a gate in memory: its handles, and the tokens that are out, all of them together.
//!
//! A token that counted itself as one more handle would cost a request two more atomic operations
//! than entering and leaving need. Instead the gate's memory has two owners at most: the handles,
//! by way of one [`Owner`] that they share, and, once the last handle has gone while tokens are
//! out, these tokens: the owner then leaves its share to them, the word says so
//! (`ORPHANED`), and the last token frees it. The word changes in one step, so exactly one of the
//! two finds that the other has gone. The loom models check that nothing leaks or is freed twice.
//!
//! Who changes the word so that the other may free the gate must not have the gate borrowed at that
//! moment, not even as an argument: borrowed memory must not be freed. An atomic is the exception, as
//! in the standard library's `Arc`; so these two steps borrow the word alone ([`word`]).
//!
//! Any thread.

#![expect(
    unsafe_code,
    reason = "tokens are counted in the gate's word, not in a reference count"
)]

use std::ops::Deref;
use std::ptr::NonNull;

use super::mechanism::{self, Inner};
use crate::sync::{Arc, AtomicUsize};

/// The handles' share of the gate.
#[derive(Debug)]
pub(super) struct Owner(NonNull<Inner>);

// SAFETY: it is a share of an `Arc<Inner>`, and `Inner` is `Send` and `Sync` (asserted below).
unsafe impl Send for Owner {}
// SAFETY: as above.
unsafe impl Sync for Owner {}

const fn assert_send_and_sync<T: Send + Sync>() {}
const _: () = assert_send_and_sync::<Inner>();

/// The word of a gate, without borrowing the rest of it.
///
/// # Safety
/// The gate is there until the word is changed, or longer.
unsafe fn word<'a>(gate: NonNull<Inner>) -> &'a AtomicUsize {
    // SAFETY: the caller's promise; and the pointer is to a whole gate.
    unsafe { &(*gate.as_ptr()).word }
}

impl Owner {
    pub(super) fn new(inner: Inner) -> Self {
        let inner = Arc::into_raw(Arc::new(inner)).cast_mut();
        // SAFETY: an `Arc` never points to null.
        Self(unsafe { NonNull::new_unchecked(inner) })
    }

    /// What the token that was just counted in the word holds.
    pub(super) fn pass(&self) -> Pass {
        Pass(self.0)
    }

    pub(super) fn issued(&self, pass: &Pass) -> bool {
        self.0 == pass.0
    }
}

impl Deref for Owner {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        // SAFETY: the share lives until `drop`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: the share of `new` lasts until the word says that it is left to the tokens.
        if mechanism::orphan(unsafe { word(self.0) }) {
            // SAFETY: the share of `new`, which no token has been left.
            drop(unsafe { Arc::from_raw(self.0.as_ptr()) });
        }
    }
}

/// A token's hold on the gate: it is counted in the word. Dropping it returns the token.
#[derive(Debug)]
pub(super) struct Pass(NonNull<Inner>);

// SAFETY: as for `Owner`.
unsafe impl Send for Pass {}
// SAFETY: as for `Owner`.
unsafe impl Sync for Pass {}

impl Drop for Pass {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the token is out, so a handle exists or the share was left to the tokens.
        if mechanism::leave_unnoticed(unsafe { word(self.0) }) {
            return;
        }
        self.leave_last();
    }
}

impl Pass {
    /// The last token goes and somebody waits for that, or all handles have gone.
    #[cold]
    fn leave_last(&self) {
        // SAFETY: the token is still out; a share of our own keeps the gate from here on.
        let inner = unsafe {
            Arc::increment_strong_count(self.0.as_ptr());
            Arc::from_raw(self.0.as_ptr())
        };
        if inner.leave() {
            // SAFETY: the share that `Owner` left; there is neither a handle nor a token any more.
            drop(unsafe { Arc::from_raw(self.0.as_ptr()) });
        }
    }
}
