//! The machine's I/O threads by name.
//!
//! Made by `--object iothread` and QMP's `object-add`, looked up by devices when they are created.
//! A device keeps its thread by an `Arc`; a thread that somebody keeps can't be removed. Any
//! thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_aio::event_loop::LoopError;
use sluice_aio::{IoThread, LoopConfig};
use thiserror::Error;

/// Why a thread was not made or not removed. The texts are QEMU's.
#[derive(Debug, Error)]
pub enum IoThreadError {
    /// The name is taken.
    #[error("attempt to add duplicate property '{0}' to object (type 'container')")]
    Duplicate(String),
    /// There is no such thread.
    #[error("object '{0}' not found")]
    NotFound(String),
    /// A device uses it.
    #[error("object '{0}' is in use, can not be deleted")]
    InUse(String),
    /// The system refused it.
    #[error(transparent)]
    Loop(#[from] LoopError),
}

/// See the [module](self).
#[derive(Debug)]
pub struct IoThreads {
    config: LoopConfig,
    threads: Mutex<BTreeMap<String, Arc<IoThread>>>,
}

impl IoThreads {
    /// No threads; those to come get loops of `config`.
    pub const fn new(config: LoopConfig) -> Self {
        Self {
            config,
            threads: Mutex::new(BTreeMap::new()),
        }
    }

    /// Starts a thread named `id`.
    ///
    /// # Errors
    /// [`IoThreadError::Duplicate`], [`IoThreadError::Loop`].
    pub fn add(&self, id: &str) -> Result<Arc<IoThread>, IoThreadError> {
        // The lock is held over the start so that two callers can't both find the name free;
        // nobody on a request path takes it.
        let mut threads = self.threads.lock();
        if threads.contains_key(id) {
            return Err(IoThreadError::Duplicate(id.to_owned()));
        }
        let thread = Arc::new(IoThread::spawn(id, self.config.clone())?);
        threads.insert(id.to_owned(), Arc::clone(&thread));
        Ok(thread)
    }

    /// Takes the thread `id` out of the list. Dropping what is returned ends and joins the thread,
    /// which blocks for a moment: do it off the main loop.
    ///
    /// # Errors
    /// [`IoThreadError::NotFound`], [`IoThreadError::InUse`].
    pub fn remove(&self, id: &str) -> Result<IoThread, IoThreadError> {
        let mut threads = self.threads.lock();
        let thread = threads
            .remove(id)
            .ok_or_else(|| IoThreadError::NotFound(id.to_owned()))?;
        Arc::try_unwrap(thread).map_err(|thread| {
            threads.insert(id.to_owned(), thread);
            IoThreadError::InUse(id.to_owned())
        })
    }

    /// The thread `id`.
    pub fn get(&self, id: &str) -> Option<Arc<IoThread>> {
        self.threads.lock().get(id).cloned()
    }

    /// Names and kernel thread ids, by name.
    pub fn list(&self) -> Vec<(String, u32)> {
        let threads = self.threads.lock();
        threads
            .iter()
            .map(|(id, thread)| (id.clone(), thread.thread_id()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_in_use_stays() {
        let threads = IoThreads::new(LoopConfig::default());
        let user = threads.add("io0").unwrap();
        let again = threads.add("io0").unwrap_err().to_string();
        assert!(again.contains("'io0'"), "{again}");
        let refused = threads.remove("io0").unwrap_err().to_string();
        assert_eq!(refused, "object 'io0' is in use, can not be deleted");
        assert_eq!(threads.list(), [("io0".to_owned(), user.thread_id())]);
        drop(user);
        threads.remove("io0").unwrap();
        assert!(threads.get("io0").is_none());
        let gone = threads.remove("io0").unwrap_err().to_string();
        assert_eq!(gone, "object 'io0' not found");
    }
}
