//! Finds what on an image contradicts the writer's log.

use std::fmt;

use sluice_writer::{
    SECTOR_SIZE,
    stamp::{Stamp, StampError},
};

use super::{
    history::{DiskHistory, WriteState},
    image::{Image, ImageError, LISTED, sectors},
};

/// One sector that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// An acknowledged write is not there, nor a newer one.
    Lost {
        /// The sector.
        sector: u64,
        /// The newest acknowledged write of it.
        acknowledged: u64,
        /// The write that is there instead; `None` if the sector is not stamped at all.
        found: Option<u64>,
    },
    /// The sector is torn or damaged.
    Damaged {
        /// The sector.
        sector: u64,
        /// What is wrong with it.
        error: StampError,
    },
    /// The sector holds what belongs elsewhere.
    Misplaced {
        /// The sector.
        sector: u64,
        /// Where its content belongs.
        found: Stamp,
    },
    /// The sector holds a write that the log does not know.
    NeverSubmitted {
        /// The sector.
        sector: u64,
        /// The write's number.
        seq: u64,
    },
    /// A sector that was never written is not what the image held before.
    Changed {
        /// The sector.
        sector: u64,
    },
    /// After a pivot, the new image holds an older write than the old one.
    Reverted {
        /// The sector.
        sector: u64,
        /// The write on the old image.
        old: u64,
        /// The write on the new image; `None` if the sector is not stamped at all.
        new: Option<u64>,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |seq: &Option<u64>| match seq {
            Some(seq) => format!("write {seq}"),
            None => "no write of the guest".to_owned(),
        };
        match self {
            Self::Lost {
                sector,
                acknowledged,
                found,
            } => {
                let found = number(found);
                write!(
                    f,
                    "sector {sector}: write {acknowledged} was acknowledged, {found} is there"
                )
            }
            Self::Damaged { sector, error } => write!(f, "sector {sector} is damaged: {error}"),
            Self::Misplaced { sector, found } => write!(
                f,
                "sector {sector} holds sector {} of disk {} (write {})",
                found.sector, found.disk, found.seq
            ),
            Self::NeverSubmitted { sector, seq } => {
                write!(
                    f,
                    "sector {sector} holds write {seq}, which was never submitted to it"
                )
            }
            Self::Changed { sector } => {
                write!(
                    f,
                    "sector {sector} changed although the guest never wrote it"
                )
            }
            Self::Reverted { sector, old, new } => {
                let new = number(new);
                write!(
                    f,
                    "sector {sector}: write {old} is on the old image, {new} on the new one"
                )
            }
        }
    }
}

/// What was found: all of it counted, some of it listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    count: u64,
    listed: Vec<Violation>,
}

impl Findings {
    fn add(&mut self, violation: Violation) {
        self.count += 1;
        if self.listed.len() < LISTED {
            self.listed.push(violation);
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The first few.
    #[must_use]
    pub fn listed(&self) -> &[Violation] {
        &self.listed
    }

    /// Whether nothing was found.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// How far the log has got relative to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    /// The writer was still running when the image was frozen: the image may hold writes that are
    /// not in `history`.
    Behind,
    /// The log is complete, or newer than the image: every write on the image is in it.
    Complete,
}

/// Checks that `image` holds every write that `acknowledged` knows to have been acknowledged, and
/// only writes that `submitted` knows, each whole and in its place.
///
/// The two histories are the same one at the end of a run. For an image that was frozen earlier
/// (the old source), `acknowledged` is the history as of that time and `submitted` the final one.
///
/// # Errors
/// The image can't be read.
pub fn acknowledged_writes(
    image: &Image,
    acknowledged: &DiskHistory,
    submitted: &DiskHistory,
    log: LogState,
) -> Result<Findings, ImageError> {
    let mut findings = Findings::default();
    image.chunks(|first, bytes| {
        for (sector, bytes) in (first..).zip(sectors(bytes)) {
            if let Some(violation) = judge_sector(sector, bytes, acknowledged, submitted, log) {
                findings.add(violation);
            }
        }
    })?;
    Ok(findings)
}

fn judge_sector(
    sector: u64,
    bytes: &[u8; SECTOR_SIZE],
    acknowledged: &DiskHistory,
    submitted: &DiskHistory,
    log: LogState,
) -> Option<Violation> {
    let newest = at(acknowledged.acknowledged(), sector);
    match Stamp::decode(bytes) {
        Err(StampError::NoMagic) => (newest != 0).then_some(Violation::Lost {
            sector,
            acknowledged: newest,
            found: None,
        }),
        Err(error) => Some(Violation::Damaged { sector, error }),
        Ok(found) if found.disk != u32::from(submitted.number()) || found.sector != sector => {
            Some(Violation::Misplaced { sector, found })
        }
        Ok(found) if found.seq < newest => Some(Violation::Lost {
            sector,
            acknowledged: newest,
            found: Some(found.seq),
        }),
        Ok(found) => {
            let is_known = submitted
                .write(found.seq)
                .is_some_and(|write| write.first <= sector && sector < write.first + write.sectors);
            (!is_known && log == LogState::Complete).then_some(Violation::NeverSubmitted {
                sector,
                seq: found.seq,
            })
        }
    }
}

/// Checks a pivot that nobody could look at while it happened: the old image `source` has been
/// untouched since, `target` has gone on. Every sector must be the same on both, or hold a newer
/// write on `target`.
///
/// # Errors
/// An image can't be read, or they are not of the same size.
pub fn only_newer_writes(source: &Image, target: &Image) -> Result<Findings, ImageError> {
    let mut findings = Findings::default();
    source.chunks_with(target, |first, old, new| {
        if old == new {
            return;
        }
        for (sector, (old, new)) in (first..).zip(sectors(old).iter().zip(sectors(new))) {
            if old == new {
                continue;
            }
            let old = Stamp::decode(old).map(|stamp| stamp.seq).unwrap_or(0);
            match Stamp::decode(new) {
                Ok(new) if new.seq > old => {}
                Ok(new) => findings.add(Violation::Reverted {
                    sector,
                    old,
                    new: Some(new.seq),
                }),
                Err(StampError::NoMagic) if old == 0 => {
                    findings.add(Violation::Changed { sector });
                }
                Err(StampError::NoMagic) => {
                    findings.add(Violation::Reverted {
                        sector,
                        old,
                        new: None,
                    });
                }
                Err(error) => findings.add(Violation::Damaged { sector, error }),
            }
        }
    })?;
    Ok(findings)
}

/// The acknowledged writes of which at least one sector is `Lost` on `image`: number, and how many
/// of its sectors. Only for a report; [`acknowledged_writes`] is the verdict.
///
/// # Errors
/// The image can't be read.
pub fn lost_writes(image: &Image, history: &DiskHistory) -> Result<Vec<(u64, u64)>, ImageError> {
    let mut lost = std::collections::BTreeMap::new();
    image.chunks(|first, bytes| {
        for (sector, bytes) in (first..).zip(sectors(bytes)) {
            let newest = at(history.acknowledged(), sector);
            let found = Stamp::decode(bytes).map(|stamp| stamp.seq).unwrap_or(0);
            let was_acknowledged = history
                .write(newest)
                .is_some_and(|write| matches!(write.state, WriteState::Acknowledged { .. }));
            if was_acknowledged && found < newest {
                *lost.entry(newest).or_insert(0) += 1;
            }
        }
    })?;
    Ok(lost.into_iter().collect())
}

fn at(sectors: &[u64], sector: u64) -> u64 {
    usize::try_from(sector)
        .ok()
        .and_then(|sector| sectors.get(sector))
        .copied()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
