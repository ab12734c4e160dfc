//! Names of jobs: what is well-formed, and which name a job gets.

use std::fmt;
use std::sync::Arc;

use super::error::CreateError;

/// A well-formed job name: a letter, then letters, digits, `-`, `.` and `_`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JobId(Arc<str>);

impl JobId {
    /// Checks `id`.
    ///
    /// # Errors
    /// [`CreateError::InvalidId`].
    pub fn new(id: &str) -> Result<Self, CreateError> {
        let mut characters = id.chars();
        let well_formed = characters
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic())
            && characters.all(|next| next.is_ascii_alphanumeric() || "-._".contains(next));
        if well_formed {
            Ok(Self(id.into()))
        } else {
            Err(CreateError::InvalidId { id: id.to_owned() })
        }
    }

    /// The name a job gets: the operator's, or else that of the backend it works for.
    ///
    /// # Errors
    /// [`CreateError::IdRequired`] if there is neither, [`CreateError::InvalidId`].
    pub fn choose(explicit: Option<&str>, backend: Option<&str>) -> Result<Self, CreateError> {
        match (explicit, backend) {
            (Some(id), _) => Self::new(id),
            (None, Some(name)) if !name.is_empty() => Self::new(name),
            _ => Err(CreateError::IdRequired),
        }
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
