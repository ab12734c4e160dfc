//! The job engine: states, verbs, events and the life of long block operations.
//!
//! A kind of job implements [`JobDriver`]. [`JobRegistry::create`] makes a [`Job`] of it, whose
//! work is one `async fn` in an event loop; operators give their commands on the [`Job`] from any
//! thread, drained sections make it rest ([`Job::quiesce`]), and the work itself sees a
//! [`JobContext`]. What follows what is data: see [`JobState::check`] and [`JobVerb::allowed_in`].

mod awaited;
mod context;
mod details;
mod driver;
mod end;
mod error;
mod group;
mod handle;
mod home;
mod id;
mod info;
mod inner;
mod lifecycle;
mod policy;
mod progress;
mod quiesce;
mod ratelimit;
mod registry;
mod state;
mod verbs;

pub use awaited::{Awaited, AwaitedOperation, AwaitedRequest};
pub(crate) use awaited::{Requests, Waiter};
pub use context::{JobContext, Wakeup};
pub use details::{FirstCopyPhase, JobDetails};
pub use driver::JobDriver;
pub use error::{CreateError, ErrorClass, IoFailure, JobError, VerbError};
pub use group::JobGroup;
pub use handle::{Job, JobKicker};
pub(crate) use home::here;
pub use id::JobId;
pub use info::{BlockJobInfo, JobInfo};
pub use policy::{ErrorVerdict, IoSide, IoStatus, OnError};
pub use progress::Progress;
pub(crate) use quiesce::PATIENCE;
pub use quiesce::Quiesced;
pub use ratelimit::RateLimit;
pub use registry::{JobOptions, JobRegistry};
pub use state::{IllegalTransition, JobKind, JobState, JobVerb};
pub use verbs::WaysToEnd;

#[cfg(test)]
pub(crate) use end::EndPhase;

#[cfg(test)]
pub(crate) mod tests;
