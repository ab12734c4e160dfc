//! [`FdSets`]: files that somebody else has opened, by the names `/dev/fdset/N` (QMP: `add-fd`).
//!
//! A set holds descriptors of one file that was opened in several ways; who opens the name gets a duplicate of that
//! which was opened as he wants. Errors and their texts are QEMU's. Any thread.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::fcntl_dupfd_cloexec;
use sluice_aio::Aside;
use thiserror::Error;

/// What the names begin with.
const PREFIX: &str = "/dev/fdset/";
/// Duplicates get no lower number: those are standard streams.
const FIRST: RawFd = 3;
/// The most descriptors in all sets together: the process needs some itself.
const MOST: usize = 512;
/// The ways of opening a file in which descriptors differ.
const WAYS: OFlags = OFlags::RWMODE.union(OFlags::DIRECT);

/// Why a set can't be changed, or its file not be had.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FdSetError {
    /// What follows the prefix is no number.
    #[error("Could not parse fdset {0}")]
    NoNumber(String),
    /// There is no such set.
    #[error("Failed to find fdset {PREFIX}{0}")]
    NoSet(i64),
    /// None of its descriptors was opened like that.
    #[error("Failed to find file descriptor with matching flags=0x{0:x}")]
    NoMatch(u32),
    /// The process has no descriptor left.
    #[error("Failed to dup() given file descriptor fd={0}")]
    NoDuplicate(RawFd),
    /// A set can't have that number.
    #[error("Parameter 'fdset-id' expects a non-negative value")]
    Negative,
    /// What is to be removed is not there.
    #[error("File descriptor named '{0}' not found")]
    NotFound(String),
    /// There are too many.
    #[error("There are {MOST} file descriptors in sets already; remove some with 'remove-fd'")]
    TooMany,
}

#[derive(Debug)]
struct Member {
    descriptor: Aside<OwnedFd>,
    /// What its giver calls it.
    opaque: Option<String>,
}

/// A descriptor of a set, for queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdInfo {
    /// Its number in this process.
    pub number: RawFd,
    /// What its giver calls it.
    pub opaque: Option<String>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct FdSets(Mutex<BTreeMap<i64, Vec<Member>>>);

impl FdSets {
    /// Adds a descriptor to the set of that number, or to a new one; returns the set's number.
    ///
    /// # Errors
    /// [`FdSetError::Negative`], [`FdSetError::TooMany`]; the descriptor is closed then.
    pub fn add(
        &self,
        set: Option<i64>,
        descriptor: impl Into<Aside<OwnedFd>>,
        opaque: Option<String>,
    ) -> Result<i64, FdSetError> {
        let descriptor = descriptor.into();
        let mut sets = self.0.lock();
        if set.is_some_and(|set| set < 0) {
            return Err(FdSetError::Negative);
        }
        if sets.values().map(Vec::len).sum::<usize>() >= MOST {
            return Err(FdSetError::TooMany);
        }
        let first_free = || (0..).find(|number| !sets.contains_key(number));
        let number = set.or_else(first_free).unwrap_or_default();
        sets.entry(number)
            .or_default()
            .push(Member { descriptor, opaque });
        Ok(number)
    }

    /// Removes a descriptor from a set, or all of them and the set. Files that were opened by it stay open.
    ///
    /// # Errors
    /// [`FdSetError::NotFound`].
    pub fn remove(&self, set: i64, number: Option<i64>) -> Result<(), FdSetError> {
        let mut sets = self.0.lock();
        let Some(members) = sets.get_mut(&set) else {
            let name = match number {
                Some(number) => format!("fdset-id:{set}, fd:{number}"),
                None => format!("fdset-id:{set}"),
            };
            return Err(FdSetError::NotFound(name));
        };
        if let Some(number) = number {
            let is_meant = |member: &Member| i64::from(member.descriptor.as_raw_fd()) == number;
            let index = members.iter().position(is_meant);
            let missing = || FdSetError::NotFound(format!("fdset-id:{set}, fd:{number}"));
            members.remove(index.ok_or_else(missing)?);
        } else {
            members.clear();
        }
        if members.is_empty() {
            sets.remove(&set);
        }
        Ok(())
    }

    /// All sets with their descriptors, the highest number first.
    #[must_use]
    pub fn query(&self) -> Vec<(i64, Vec<FdInfo>)> {
        let sets = self.0.lock();
        let info = |member: &Member| FdInfo {
            number: member.descriptor.as_raw_fd(),
            opaque: member.opaque.clone(),
        };
        let sets = sets.iter().rev();
        sets.map(|(set, members)| (*set, members.iter().map(info).collect()))
            .collect()
    }

    /// A duplicate of the descriptor that was opened to write, if that is wanted, and with O_DIRECT, if that is.
    ///
    /// # Errors
    /// The name is no set's, or none of its descriptors was opened like that.
    pub(super) fn open(
        &self,
        name: &SetName,
        write: bool,
        direct: bool,
    ) -> Result<File, FdSetError> {
        let set = name.number()?;
        let mut wanted = match write {
            true => OFlags::RDWR,
            false => OFlags::RDONLY,
        };
        wanted.set(OFlags::DIRECT, direct);
        let sets = self.0.lock();
        let members = sets.get(&set).ok_or(FdSetError::NoSet(set))?;
        let is_opened_so = |member: &&Member| {
            fcntl_getfl(&member.descriptor).is_ok_and(|flags| flags & WAYS == wanted)
        };
        let member = members.iter().find(is_opened_so);
        let member = member.ok_or(FdSetError::NoMatch(wanted.bits()))?;
        let duplicate = fcntl_dupfd_cloexec(&member.descriptor, FIRST);
        let number = member.descriptor.as_raw_fd();
        let duplicate = duplicate.map_err(|_| FdSetError::NoDuplicate(number))?;
        Ok(File::from(duplicate))
    }
}

/// A path that means a set and no file.
#[derive(Debug)]
pub(super) struct SetName {
    path: String,
}

impl SetName {
    /// The set that a path means; none if it means a file.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let path = path.to_str()?;
        path.starts_with(PREFIX).then(|| Self {
            path: path.to_owned(),
        })
    }

    fn number(&self) -> Result<i64, FdSetError> {
        let digits = self.path.strip_prefix(PREFIX).unwrap_or_default();
        let number = digits.parse().ok().filter(|number| *number >= 0);
        number.ok_or_else(|| FdSetError::NoNumber(self.path.clone()))
    }
}
