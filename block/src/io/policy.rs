//! [`IoPolicy`]: what a node's options say about the requests that pass through it.
//!
//! Kept in one atomic word, so that a reopen can change it under running requests; the data path
//! reads it once per request.

use std::sync::atomic::{AtomicU8, Ordering};

use bitflags::bitflags;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{BlockError, Result};
use crate::options::Discard;

/// What to do with writes of nothing but zeroes (`detect-zeroes`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DetectZeroes {
    /// Write them like any data; nobody looks.
    #[default]
    Off,
    /// Make them writes of zeroes.
    On,
    /// Make them writes of zeroes that may become holes; needs `discard=unmap`.
    Unmap,
}

impl DetectZeroes {
    /// The name in options and queries.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Unmap => "unmap",
        }
    }
}

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Bits: u8 {
        const UNMAP = 1;
        const DETECT = 1 << 1;
        const DETECT_UNMAP = 1 << 2;
    }
}

/// What a node makes of the discards and zeroes that it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoPolicy(Bits);

impl IoPolicy {
    /// Everything passes as it is: for filters that the graph puts in by itself.
    pub const PASS: Self = Self(Bits::UNMAP);

    /// The policy that options ask for.
    ///
    /// # Errors
    /// `detect-zeroes=unmap` without `discard=unmap`.
    pub fn new(discard: Discard, detect_zeroes: DetectZeroes) -> Result<Self> {
        let mut bits = Bits::empty();
        bits.set(Bits::UNMAP, discard == Discard::Unmap);
        match detect_zeroes {
            DetectZeroes::Off => {}
            DetectZeroes::On => bits |= Bits::DETECT,
            DetectZeroes::Unmap if discard == Discard::Unmap => {
                bits |= Bits::DETECT | Bits::DETECT_UNMAP;
            }
            DetectZeroes::Unmap => {
                return Err(BlockError::Refused(
                    "setting detect-zeroes to unmap is not allowed without setting discard \
                     operation to unmap"
                        .to_owned(),
                ));
            }
        }
        Ok(Self(bits))
    }

    /// Whether discards pass and zeroes may become holes.
    #[must_use]
    pub fn unmaps(self) -> bool {
        self.0.contains(Bits::UNMAP)
    }

    /// What happens to writes of zeroes only.
    #[must_use]
    pub fn detect_zeroes(self) -> DetectZeroes {
        if self.0.contains(Bits::DETECT_UNMAP) {
            DetectZeroes::Unmap
        } else if self.0.contains(Bits::DETECT) {
            DetectZeroes::On
        } else {
            DetectZeroes::Off
        }
    }

    pub(super) fn detects(self) -> bool {
        self.0.contains(Bits::DETECT)
    }
}

/// A policy that may change under those who read it.
#[derive(Debug)]
pub(crate) struct PolicyCell(AtomicU8);

impl PolicyCell {
    pub(crate) fn new(policy: IoPolicy) -> Self {
        Self(AtomicU8::new(policy.0.bits()))
    }

    pub(crate) fn get(&self) -> IoPolicy {
        IoPolicy(Bits::from_bits_truncate(self.0.load(Ordering::Relaxed)))
    }

    pub(crate) fn set(&self, policy: IoPolicy) {
        self.0.store(policy.0.bits(), Ordering::Relaxed);
    }
}
