//! The mirror job: copies a disk while its guest writes, and pivots to the copy.
//!
//! # What it promises
//! When `block-job-complete` has succeeded, the target held exactly what the source held at the
//! moment of the pivot, every write that the guest was told had ended before is in it, and every
//! later one goes to it alone. A target's error never fails a guest's write.
//!
//! # How
//! 1. starting: inside a drained section of the source the filter is put above it; from
//!    then on every write is recorded. With `sync=full` the target is made zeroes where the source is, and all the
//!    rest is marked dirty.
//! 2. the job runs in the loop that serves the source's device: it keeps up to 16
//!    copies running until nothing is dirty (or, under a guest that never stops writing, until
//!    little is), flushes the target, and is *ready*.
//! 3. After `complete`, as soon as little is dirty, the work ends and the job waits for its
//!    finalize verb, if that was asked for; the guest is not held meanwhile.
//! 4. The pivot: a drained section on the filter; whatever is dirty is copied inside it; the
//!    target is flushed; every parent of the filter is pointed to the target; the section ends, and
//!    the guest's postponed requests run against the target.
//!
//! On a cancel or a failure the filter is taken out, in a section too, and the source stays.
//!
//! An active commit is the same with an image below the source for a target.

mod active;
mod approach;
mod balance;
mod checks;
mod claim;
mod copier;
mod filter;
mod first;
mod granularity;
mod hang;
mod job;
mod ledger;
mod options;
mod pivot;
mod replaced;
mod start;
#[cfg(test)]
mod tests;
mod twofold;
mod work;

pub(crate) use active::ActiveCommit;
pub use options::{BlockdevMirror, CopyMode, DriveMirror, MirrorCommon, SyncMode};
pub use start::{blockdev_mirror, drive_mirror};
