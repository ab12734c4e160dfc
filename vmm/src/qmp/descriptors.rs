//! [`Descriptors`]: what a client has sent along with its messages (SCM_RIGHTS), until a command takes it or the
//! client goes.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use sluice_aio::Aside;

use super::error::QmpError;

/// The most descriptors to which one client gives names.
const MOST_NAMED: usize = 64;

/// What a client has sent along. Everything in it is closed when its client has gone.
#[derive(Debug, Default)]
pub struct Descriptors {
    /// What came last.
    sent: Mutex<Vec<Aside<OwnedFd>>>,
    named: Mutex<BTreeMap<String, Aside<OwnedFd>>>,
}

impl Descriptors {
    /// Keeps what has come, if anything has, in place of what came before and nobody took.
    pub(super) fn receive(&self, sent: &mut Vec<Aside<OwnedFd>>) {
        if !sent.is_empty() {
            *self.sent.lock() = std::mem::take(sent);
        }
    }

    /// The first of those that came last; the others are closed.
    ///
    /// # Errors
    /// None has come.
    pub(super) fn take(&self) -> Result<Aside<OwnedFd>, QmpError> {
        let sent = std::mem::take(&mut *self.sent.lock());
        let first = sent.into_iter().next();
        first.ok_or_else(|| QmpError::generic("No file descriptor supplied via SCM_RIGHTS"))
    }

    /// Gives a descriptor a name, which another may have had.
    ///
    /// # Errors
    /// The name begins like a number, or there are too many; the descriptor is closed then.
    pub(super) fn name(&self, name: String, descriptor: Aside<OwnedFd>) -> Result<(), QmpError> {
        if name.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(QmpError::generic(
                "Parameter 'fdname' expects a name not starting with a digit",
            ));
        }
        let mut named = self.named.lock();
        if named.len() >= MOST_NAMED && !named.contains_key(&name) {
            return Err(QmpError::generic(format!(
                "There are {MOST_NAMED} named file descriptors already; close some with 'closefd'"
            )));
        }
        named.insert(name, descriptor);
        Ok(())
    }

    /// # Errors
    /// None has the name.
    pub(super) fn close(&self, name: &str) -> Result<(), QmpError> {
        let closed = self.named.lock().remove(name);
        closed
            .map(drop)
            .ok_or_else(|| QmpError::generic(format!("File descriptor named '{name}' not found")))
    }
}
