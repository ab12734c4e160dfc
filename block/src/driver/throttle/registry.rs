//! [`ThrottleGroups`]: the groups of a machine by name, whoever has made them.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sluice_aio::Clock;

use super::group::ThrottleGroup;
use super::limits::{LimitsError, ThrottleLimits};

/// Why a group was not made or not removed. The texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThrottleError {
    /// The limits contradict each other.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The name is taken.
    #[error("attempt to add duplicate property '{0}' to object (type 'container')")]
    Duplicate(String),
    /// The name is that of a group which is no object, but has members.
    #[error("A group with this name already exists")]
    Exists,
    /// There is no such group.
    #[error("object '{0}' not found")]
    NotFound(String),
    /// The group has members.
    #[error("object '{0}' is in use, can not be deleted")]
    InUse(String),
}

/// A group, and what keeps it.
#[derive(Debug)]
enum Entry {
    /// Made by `object-add`: it stays until it is removed.
    Object(Arc<ThrottleGroup>),
    /// Made because a disk wanted to join it: it goes with its last member.
    Implicit(Weak<ThrottleGroup>),
}

impl Entry {
    fn group(&self) -> Option<Arc<ThrottleGroup>> {
        match self {
            Self::Object(group) => Some(Arc::clone(group)),
            Self::Implicit(group) => group.upgrade(),
        }
    }
}

/// The groups of a machine, of which no two that are alive have one name. Any thread.
#[derive(Debug)]
pub struct ThrottleGroups {
    clock: Clock,
    groups: Mutex<BTreeMap<String, Entry>>,
}

impl ThrottleGroups {
    /// No groups; those to come run on `clock`.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            groups: Mutex::default(),
        }
    }

    /// The names of the groups that stay until they are removed.
    #[must_use]
    pub fn object_names(&self) -> Vec<String> {
        let groups = self.groups.lock();
        let objects = groups
            .iter()
            .filter(|(_, entry)| matches!(entry, Entry::Object(_)));
        objects.map(|(name, _)| name.clone()).collect()
    }

    /// Makes a group that stays until it is [removed](Self::remove).
    ///
    /// # Errors
    /// The name is taken, or the limits contradict each other.
    pub fn add(
        &self,
        name: &str,
        limits: ThrottleLimits,
    ) -> Result<Arc<ThrottleGroup>, ThrottleError> {
        let mut groups = self.groups.lock();
        match groups.get(name) {
            Some(Entry::Object(_)) => return Err(ThrottleError::Duplicate(name.to_owned())),
            Some(implicit) if implicit.group().is_some() => return Err(ThrottleError::Exists),
            _ => {}
        }
        let group = ThrottleGroup::new(name, limits, self.clock.clone())?;
        groups.insert(name.to_owned(), Entry::Object(Arc::clone(&group)));
        Ok(group)
    }

    /// The group of that name, however it was made.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<ThrottleGroup>> {
        self.groups.lock().get(name).and_then(Entry::group)
    }

    /// The same if it is an object: if [`add`](Self::add) has made it.
    #[must_use]
    pub fn object(&self, name: &str) -> Option<Arc<ThrottleGroup>> {
        match self.groups.lock().get(name) {
            Some(Entry::Object(group)) => Some(Arc::clone(group)),
            _ => None,
        }
    }

    /// The group of that name, or a new one without limits, which goes with its last member.
    #[must_use]
    pub fn get_or_make(&self, name: &str) -> Arc<ThrottleGroup> {
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(name).and_then(Entry::group) {
            return group;
        }
        groups.retain(|_, entry| entry.group().is_some());
        let group = ThrottleGroup::unlimited(name, self.clock.clone());
        groups.insert(name.to_owned(), Entry::Implicit(Arc::downgrade(&group)));
        group
    }

    /// Removes an object that has no members.
    ///
    /// # Errors
    /// [`ThrottleError::NotFound`], [`ThrottleError::InUse`].
    pub fn remove(&self, name: &str) -> Result<(), ThrottleError> {
        let mut groups = self.groups.lock();
        match groups.get(name) {
            Some(Entry::Object(group)) if group.is_in_use() => {
                Err(ThrottleError::InUse(name.to_owned()))
            }
            Some(Entry::Object(_)) => {
                groups.remove(name);
                Ok(())
            }
            Some(Entry::Implicit(_)) | None => Err(ThrottleError::NotFound(name.to_owned())),
        }
    }
}
