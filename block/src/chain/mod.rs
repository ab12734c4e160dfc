//! Jobs on a backing chain: *stream* pulls the data of lower images up into an image, *commit* pushes
//! that of upper images down into a base. What is not needed any more leaves the chain at the end.
//!
//! A guest goes on meanwhile. What it writes is in the topmost image, which a stream never overwrites
//! (a copy-on-read filter keeps copies and writes apart) and a commit does not touch.

mod claimed;
mod job;
mod start;
#[cfg(test)]
mod tests;
mod walk;

pub(crate) use claimed::Claimed;
pub(crate) use start::Work;
pub use start::{BlockCommit, BlockStream, CommitError, block_commit, block_stream};
