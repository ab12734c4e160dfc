//! Active commit: the mirror of a disk into an image of its own backing chain.
//!
//! What the images above the base hold is copied into it, and what the guest writes meanwhile after that;
//! at the pivot the disk goes over to the base. What is written there while the disk still stands on the
//! upper images is what those hide or show already, so the base's place below them does no harm; but
//! nobody else may read it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::approach::Nearness;
use super::balance::Balance;
use super::checks::DEFAULT_BUF_SIZE;
use super::claim::TARGET_ROLE;
use super::copier::Copier;
use super::filter::MirrorTop;
use super::first::{First, FirstCopy};
use super::granularity;
use super::job::{MirrorJob, Outcome, failed};
use super::ledger::Ledger;
use super::options::CopyMode;
use crate::chain::{Claimed, Work};
use crate::dirty::DirtyBitmap;
use crate::driver::Driver;
use crate::error::{BlockError, Result};
use crate::graph::Graph;
use crate::job::{JobDriver, JobError, OnError};
use crate::node::Node;

/// The chain of which a mirror's target is a part.
#[derive(Debug)]
pub(super) struct OwnChain {
    /// The lowest image above the base.
    pub(super) lowest: Arc<Node>,
    pub(super) claimed: Arc<Claimed>,
}

/// An active commit about to be started.
#[derive(Debug)]
pub(crate) struct ActiveCommit {
    source: Arc<Node>,
    base: Arc<Node>,
    lowest: Arc<Node>,
    on_error: OnError,
    known: DirtyBitmap,
    ledger: Arc<Ledger>,
}

impl ActiveCommit {
    /// What the base is to the job.
    pub(crate) const BASE_ROLE: &str = TARGET_ROLE;

    /// Makes what the filter and the copier go by; `lowest` is the image above `base`.
    ///
    /// # Errors
    /// The disk is too large for a dirty bitmap.
    pub(crate) fn new(
        graph: &Graph,
        source: &Arc<Node>,
        base: &Arc<Node>,
        lowest: Arc<Node>,
        on_error: OnError,
    ) -> Result<Self> {
        let refused = |error: &dyn std::fmt::Display| BlockError::Refused(error.to_string());
        let granularity = granularity::by_default(source.len());
        let bitmap =
            DirtyBitmap::new(source.len(), granularity).map_err(|error| refused(&error))?;
        let known = bitmap.emptied().map_err(|error| refused(&error))?;
        let (target, clock) = (Arc::clone(base), graph.clock().clone());
        Ok(Self {
            source: Arc::clone(source),
            base: Arc::clone(base),
            lowest,
            on_error,
            known,
            ledger: Ledger::new(bitmap, target, CopyMode::Background, clock),
        })
    }
}

impl Work for ActiveCommit {
    fn filter(&self, below: &Arc<Node>) -> Box<dyn Driver> {
        let ledger = Arc::clone(&self.ledger);
        Box::new(MirrorTop::above_its_target(Arc::clone(below), ledger))
    }

    fn job(self, claimed: &Arc<Claimed>) -> Box<dyn JobDriver> {
        let Self {
            source,
            base,
            lowest,
            on_error,
            known,
            ledger,
        } = self;
        let copier = Copier::new(
            Arc::clone(&source),
            Arc::clone(&base),
            Arc::clone(&ledger),
            true,
            known,
            DEFAULT_BUF_SIZE,
        );
        Box::new(MirrorJob {
            graph: Arc::clone(&claimed.graph),
            source,
            filter: Arc::clone(&claimed.filter),
            target: base,
            ledger,
            copier: Arc::new(copier),
            first: First::new(FirstCopy::AboveTarget),
            on_source_error: on_error,
            on_target_error: on_error,
            replaced: None,
            own_chain: Some(OwnChain {
                lowest,
                claimed: Arc::clone(claimed),
            }),
            balance: Mutex::new(Balance::new()),
            nearness: Nearness::default(),
            held: Mutex::default(),
            outcome: Outcome::default(),
        })
    }
}

impl MirrorJob {
    /// Cuts off of a base what is beyond the disk's end, inside the pivot's section: until then a cancel
    /// leaves it as it was.
    pub(super) async fn fit_target(&self) -> std::result::Result<(), JobError> {
        let size = self.source.len();
        if self.own_chain.is_some() && self.target.len() > size {
            self.target.resize(size).await.map_err(failed)?;
        }
        Ok(())
    }
}
