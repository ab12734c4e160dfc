//! The machine's I/O threads by name.
//!
//! Made by `--object iothread` and QMP's `object-add`, looked up by devices when they are created.
//! A device keeps its thread by an `Arc`; a thread that somebody keeps can't be removed. Any
//! thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_aio::event_loop::LoopError;
use sluice_aio::{AioContext, IoThread, LoopConfig, Polling};
use thiserror::Error;

use crate::storage::IoThreadConfig;

/// Why a thread was not made, changed or removed. The texts are QEMU's.
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
    /// The value of the property of that name is negative.
    #[error("{0} value must be in range [0, {max}]", max = i64::MAX)]
    OutOfRange(&'static str),
    /// The limits of the thread pool contradict each other or are too large.
    #[error("bad thread-pool-min/thread-pool-max values")]
    ThreadPool,
    /// Threads have no property of that name.
    #[error("Property 'iothread.{0}' not found")]
    NoProperty(String),
    /// The system refused it.
    #[error(transparent)]
    Loop(#[from] LoopError),
}

/// The most worker threads that an I/O thread may be asked to keep: they are all started with it, while
/// the client waits. (Those up to `thread-pool-max` come as they are needed.)
const MAX_KEPT_WORKERS: usize = 1024;

impl IoThreadConfig {
    /// The loop that the properties ask for; what they do not concern is as in `base`.
    ///
    /// # Errors
    /// [`IoThreadError::OutOfRange`], [`IoThreadError::ThreadPool`].
    pub fn loop_config(&self, base: &LoopConfig) -> Result<LoopConfig, IoThreadError> {
        let natural =
            |name, value| u64::try_from(value).map_err(|_| IoThreadError::OutOfRange(name));
        let threads = |name, value| {
            let value = natural(name, value)?;
            // Beyond this QEMU refuses them too.
            i32::try_from(value)
                .ok()
                .and_then(|value| usize::try_from(value).ok())
                .ok_or(IoThreadError::ThreadPool)
        };
        let min = threads("thread-pool-min", self.thread_pool_min)?;
        let max = threads("thread-pool-max", self.thread_pool_max)?;
        if max == 0 || min > max || min > MAX_KEPT_WORKERS {
            return Err(IoThreadError::ThreadPool);
        }
        Ok(LoopConfig {
            thread_pool_min: min,
            thread_pool_max: max,
            polling: Polling {
                max: Duration::from_nanos(natural("poll-max-ns", self.poll_max_ns)?),
                grow: natural("poll-grow", self.poll_grow)?,
                shrink: natural("poll-shrink", self.poll_shrink)?,
            },
            max_batch: natural("aio-max-batch", self.aio_max_batch)?,
            ..base.clone()
        })
    }

    /// The property of that name.
    fn property(&mut self, name: &str) -> Option<&mut i64> {
        match name {
            "poll-max-ns" => Some(&mut self.poll_max_ns),
            "poll-grow" => Some(&mut self.poll_grow),
            "poll-shrink" => Some(&mut self.poll_shrink),
            "aio-max-batch" => Some(&mut self.aio_max_batch),
            "thread-pool-min" => Some(&mut self.thread_pool_min),
            "thread-pool-max" => Some(&mut self.thread_pool_max),
            _ => None,
        }
    }
}

/// The names of the properties.
pub const PROPERTIES: [&str; 6] = [
    "poll-max-ns",
    "poll-grow",
    "poll-shrink",
    "aio-max-batch",
    "thread-pool-min",
    "thread-pool-max",
];

#[derive(Debug)]
struct Entry {
    thread: Arc<IoThread>,
    config: IoThreadConfig,
}

/// A thread that is in no list any more; ends when it is dropped.
#[derive(Debug)]
pub struct Removed(Entry);

/// See the [module](self).
#[derive(Debug)]
pub struct IoThreads {
    base: LoopConfig,
    threads: Mutex<BTreeMap<String, Entry>>,
}

impl IoThreads {
    /// No threads; those to come get loops like `base` in all that their properties leave open.
    pub const fn new(base: LoopConfig) -> Self {
        Self {
            base,
            threads: Mutex::new(BTreeMap::new()),
        }
    }

    /// Starts a thread.
    ///
    /// # Errors
    /// [`IoThreadError::Duplicate`], [`IoThreadError::Loop`], or as
    /// [`IoThreadConfig::loop_config`].
    pub fn add(&self, config: &IoThreadConfig) -> Result<Arc<IoThread>, IoThreadError> {
        let loop_config = config.loop_config(&self.base)?;
        // The lock is held over the start so that two callers can't both find the name free;
        // nobody on a request path takes it.
        let mut threads = self.threads.lock();
        if threads.contains_key(&config.id) {
            return Err(IoThreadError::Duplicate(config.id.clone()));
        }
        let thread = Arc::new(IoThread::spawn(&config.id, loop_config)?);
        let entry = Entry {
            thread: Arc::clone(&thread),
            config: config.clone(),
        };
        threads.insert(config.id.clone(), entry);
        Ok(thread)
    }

    /// Takes the thread `id` out of the list. Dropping what is returned ends and joins the thread,
    /// which blocks for a moment: do it off the main loop.
    ///
    /// # Errors
    /// [`IoThreadError::NotFound`], [`IoThreadError::InUse`].
    pub fn remove(&self, id: &str) -> Result<Removed, IoThreadError> {
        let mut threads = self.threads.lock();
        let entry = threads
            .remove(id)
            .ok_or_else(|| IoThreadError::NotFound(id.to_owned()))?;
        // Others get hold of it under the lock only.
        if Arc::strong_count(&entry.thread) > 1 {
            threads.insert(id.to_owned(), entry);
            return Err(IoThreadError::InUse(id.to_owned()));
        }
        Ok(Removed(entry))
    }

    /// Puts a thread back that can't be ended now. Its name is free still: objects come and go in one
    /// loop's tasks, one after the other.
    pub fn restore(&self, Removed(entry): Removed) {
        let id = entry.config.id.clone();
        self.threads.lock().insert(id, entry);
    }

    /// The thread `id`.
    pub fn get(&self, id: &str) -> Option<Arc<IoThread>> {
        let threads = self.threads.lock();
        threads.get(id).map(|entry| Arc::clone(&entry.thread))
    }

    /// The properties and kernel thread ids of all, by name.
    pub fn list(&self) -> Vec<(IoThreadConfig, u32)> {
        let threads = self.threads.lock();
        threads
            .values()
            .map(|entry| (entry.config.clone(), entry.thread.thread_id()))
            .collect()
    }

    /// The loops of all, by name.
    pub fn contexts(&self) -> Vec<AioContext> {
        let threads = self.threads.lock();
        threads
            .values()
            .map(|entry| entry.thread.context().clone())
            .collect()
    }

    /// The value of a property.
    ///
    /// # Errors
    /// [`IoThreadError::NotFound`], [`IoThreadError::NoProperty`].
    pub fn property(&self, id: &str, name: &str) -> Result<i64, IoThreadError> {
        let mut threads = self.threads.lock();
        let entry = threads
            .get_mut(id)
            .ok_or_else(|| IoThreadError::NotFound(id.to_owned()))?;
        let value = entry.config.property(name);
        let value = value.ok_or_else(|| IoThreadError::NoProperty(name.to_owned()))?;
        Ok(*value)
    }

    /// Changes a property of a running thread.
    ///
    /// # Errors
    /// As [`IoThreads::property`]; [`IoThreadError::OutOfRange`], [`IoThreadError::ThreadPool`].
    pub fn set_property(&self, id: &str, name: &str, value: i64) -> Result<(), IoThreadError> {
        let mut threads = self.threads.lock();
        let entry = threads
            .get_mut(id)
            .ok_or_else(|| IoThreadError::NotFound(id.to_owned()))?;
        let mut config = entry.config.clone();
        let slot = config.property(name);
        *slot.ok_or_else(|| IoThreadError::NoProperty(name.to_owned()))? = value;
        let loop_config = config.loop_config(&self.base)?;
        let context = entry.thread.context();
        let (min, max) = (loop_config.thread_pool_min, loop_config.thread_pool_max);
        context
            .set_thread_pool(min, max)
            .map_err(|_| IoThreadError::ThreadPool)?;
        context.set_polling(&loop_config.polling);
        context.set_max_batch(loop_config.max_batch);
        entry.config = config;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sluice_aio::{EngineKind, IoBuffer, current};

    use super::*;

    #[test]
    fn a_thread_in_use_stays() {
        let threads = IoThreads::new(LoopConfig::default());
        let config = IoThreadConfig::new("io0");
        let user = threads.add(&config).unwrap();
        let again = threads.add(&config).unwrap_err().to_string();
        assert!(again.contains("'io0'"), "{again}");
        let refused = threads.remove("io0").unwrap_err().to_string();
        assert_eq!(refused, "object 'io0' is in use, can not be deleted");
        assert_eq!(threads.list(), [(config, user.thread_id())]);
        drop(user);
        let removed = threads.remove("io0").unwrap();
        assert!(threads.get("io0").is_none());
        // It could not be ended after all.
        threads.restore(removed);
        assert_eq!(threads.list()[0].0, IoThreadConfig::new("io0"));
        threads.remove("io0").unwrap();
        assert!(threads.get("io0").is_none());
        let gone = threads.remove("io0").unwrap_err().to_string();
        assert_eq!(gone, "object 'io0' not found");
    }

    #[test]
    fn properties_reach_the_loop() {
        let config = IoThreadConfig {
            poll_max_ns: 5000,
            poll_grow: 3,
            poll_shrink: 4,
            aio_max_batch: 7,
            thread_pool_min: 1,
            thread_pool_max: 2,
            ..IoThreadConfig::new("io0")
        };
        let made = config.loop_config(&LoopConfig::default()).unwrap();
        let polling = Polling {
            max: Duration::from_micros(5),
            grow: 3,
            shrink: 4,
        };
        assert_eq!((made.polling, made.max_batch), (polling, 7));
        assert_eq!((made.thread_pool_min, made.thread_pool_max), (1, 2));
        let threads = IoThreads::new(LoopConfig::default());
        let thread = threads.add(&config).unwrap();
        assert_eq!(thread.context().polling(), polling);
        threads.set_property("io0", "poll-max-ns", 0).unwrap();
        assert_eq!(thread.context().polling().max, Duration::ZERO);
        assert_eq!(threads.property("io0", "poll-max-ns").unwrap(), 0);
        assert_eq!(threads.property("io0", "poll-grow").unwrap(), 3);
        if let Some(why) = thread.context().stats().without_ring {
            return println!("SKIPPED: no ring here: {why}");
        }
        assert_eq!(batches(&thread, 5), 1);
        threads.set_property("io0", "aio-max-batch", 1).unwrap();
        assert_eq!(batches(&thread, 5), 5);
    }

    /// The batches in which the ring gets so many reads that are prepared in one step.
    fn batches(thread: &IoThread, reads: usize) -> u64 {
        let (sender, done) = std::sync::mpsc::channel();
        let before = thread.context().stats().batches;
        thread.context().spawn(move || async move {
            let file = Arc::new(tempfile::tempfile().unwrap().into());
            let begin = || {
                let buffer = IoBuffer::alloc(512);
                current::read_at(EngineKind::IoUring, &file, 0, buffer)
            };
            let begun: Vec<_> = (0..reads).map(|_| begin()).collect();
            for read in begun {
                read.await.unwrap();
            }
            sender.send(()).unwrap();
        });
        done.recv().unwrap();
        thread.context().stats().batches - before
    }

    #[test]
    fn bad_values_are_refused_in_qemus_words() {
        let bad = |change: fn(&mut IoThreadConfig)| {
            let mut config = IoThreadConfig::new("io0");
            change(&mut config);
            let refused = config.loop_config(&LoopConfig::default());
            refused.unwrap_err().to_string()
        };
        let range = "value must be in range [0, 9223372036854775807]";
        assert_eq!(bad(|c| c.poll_max_ns = -1), format!("poll-max-ns {range}"));
        assert_eq!(bad(|c| c.poll_grow = -1), format!("poll-grow {range}"));
        assert_eq!(
            bad(|c| c.aio_max_batch = i64::MIN),
            format!("aio-max-batch {range}")
        );
        let pool = "bad thread-pool-min/thread-pool-max values";
        assert_eq!(bad(|c| c.thread_pool_min = 65), pool);
        assert_eq!(bad(|c| c.thread_pool_max = 0), pool);
        assert_eq!(bad(|c| c.thread_pool_max = 1 << 31), pool);
        let hoard = |c: &mut IoThreadConfig| {
            c.thread_pool_max = i64::from(i32::MAX);
            c.thread_pool_min = 1025;
        };
        assert_eq!(bad(hoard), pool);
        let mut greedy = IoThreadConfig::new("io0");
        hoard(&mut greedy);
        greedy.thread_pool_min = 1024;
        let made = greedy.loop_config(&LoopConfig::default()).unwrap();
        assert_eq!(made.thread_pool_min, 1024);
    }
}
