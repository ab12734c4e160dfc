//! Which character devices there are, for `query-chardev`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Backend, ChardevConfig};

/// One of them, as a client sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ChardevInfo {
    /// Its name.
    pub label: String,
    /// Where it leads, in QEMU's notation.
    pub filename: String,
    /// Whether a monitor or the qtest protocol is behind it.
    pub frontend_open: bool,
}

#[derive(Debug)]
struct Record {
    config: ChardevConfig,
    used: AtomicUsize,
    clients: AtomicUsize,
}

/// All of them. Any thread.
#[derive(Debug, Default)]
pub struct Chardevs(Vec<Arc<Record>>);

/// Counts a user or a client as long as it lives.
#[derive(Debug)]
pub struct Attachment {
    record: Option<Arc<Record>>,
    counter: fn(&Record) -> &AtomicUsize,
}

impl Attachment {
    fn new(record: Option<Arc<Record>>, counter: fn(&Record) -> &AtomicUsize) -> Self {
        if let Some(record) = &record {
            counter(record).fetch_add(1, Ordering::Relaxed);
        }
        Self { record, counter }
    }

    /// The character device's name.
    #[must_use]
    pub fn label(&self) -> &str {
        let config = self.record.as_ref().map(|record| &record.config);
        config.map_or("", |config| &config.id)
    }

    /// Counts a client who is connected by this character device.
    #[must_use]
    pub fn client(&self) -> Self {
        Self::new(self.record.clone(), |record| &record.clients)
    }
}

impl Clone for Attachment {
    fn clone(&self) -> Self {
        Self::new(self.record.clone(), self.counter)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(record) = &self.record {
            (self.counter)(record).fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Chardevs {
    /// Those of a command line, as they were opened.
    #[must_use]
    pub fn new(chardevs: &[ChardevConfig]) -> Self {
        let record = |config: &ChardevConfig| Record {
            config: config.clone(),
            used: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
        };
        Self(chardevs.iter().map(|one| Arc::new(record(one))).collect())
    }

    /// Counts a user of the character device `id`.
    #[must_use]
    pub fn attach(&self, id: &str) -> Attachment {
        let found = self.0.iter().find(|record| record.config.id == id);
        Attachment::new(found.cloned(), |record| &record.used)
    }

    /// What they are, in the order of the command line.
    #[must_use]
    pub fn list(&self) -> Vec<ChardevInfo> {
        let info = |record: &Arc<Record>| {
            let connected = record.clients.load(Ordering::Relaxed) > 0;
            let backend = &record.config.backend;
            ChardevInfo {
                label: record.config.id.clone(),
                filename: backend.filename(connected || !matches!(backend, Backend::Socket(_))),
                frontend_open: record.used.load(Ordering::Relaxed) > 0,
            }
        };
        self.0.iter().map(info).collect()
    }
}
