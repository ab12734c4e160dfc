//! [`ThrottleGroups`]: the groups of a machine by name.

use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// There is no such group.
    #[error("object '{0}' not found")]
    NotFound(String),
    /// The group has members.
    #[error("object '{0}' is in use, can not be deleted")]
    InUse(String),
}

/// The groups of a machine. Any thread.
#[derive(Debug)]
pub struct ThrottleGroups {
    clock: Clock,
    groups: Mutex<BTreeMap<String, Arc<ThrottleGroup>>>,
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

    /// Makes a group.
    ///
    /// # Errors
    /// The name is taken, or the limits contradict each other.
    pub fn add(
        &self,
        name: &str,
        limits: ThrottleLimits,
    ) -> Result<Arc<ThrottleGroup>, ThrottleError> {
        let mut groups = self.groups.lock();
        if groups.contains_key(name) {
            return Err(ThrottleError::Duplicate(name.to_owned()));
        }
        let group = ThrottleGroup::new(name, limits, self.clock.clone())?;
        groups.insert(name.to_owned(), Arc::clone(&group));
        Ok(group)
    }

    /// The group of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<ThrottleGroup>> {
        self.groups.lock().get(name).cloned()
    }

    /// Removes a group that has no members.
    ///
    /// # Errors
    /// [`ThrottleError::NotFound`], [`ThrottleError::InUse`].
    pub fn remove(&self, name: &str) -> Result<(), ThrottleError> {
        let mut groups = self.groups.lock();
        match groups.get(name) {
            None => Err(ThrottleError::NotFound(name.to_owned())),
            Some(group) if group.is_in_use() => Err(ThrottleError::InUse(name.to_owned())),
            Some(_) => {
                groups.remove(name);
                Ok(())
            }
        }
    }
}
