//! [`HeldUpSections`]: the sections that can't begin and hold nobody meanwhile, for people who ask why a command does not answer.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::SectionInner;
use super::begin::HeldUp;
use crate::backend::Backend;
use crate::node::Node;

/// A section that can't begin, and holds nobody until it can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldUpSection {
    /// Whose it is.
    pub holder: String,
    /// Since when it is wanted, on the graph's clock.
    pub since: Duration,
    /// What it waits for, for people.
    pub waits_for: String,
    /// The id of the job that does not come to rest, if it waits for one.
    pub job: Option<String>,
    /// The node whose requests have not returned, if it waits for those of a job that has ended without them.
    pub node: Option<String>,
}

/// One of them, and what it is over.
struct Entry {
    holder: String,
    since: Duration,
    held_up: Arc<HeldUp>,
    nodes: Vec<Weak<Node>>,
    backends: Vec<Weak<Backend>>,
}

impl Entry {
    fn describe(&self) -> HeldUpSection {
        let (job, node) = match &*self.held_up {
            HeldUp::Orphans(node, _) => (None, Some(node.name().to_owned())),
            HeldUp::Job(job) => (Some(job.id().to_owned()), None),
        };
        HeldUpSection {
            holder: self.holder.clone(),
            since: self.since,
            waits_for: self.held_up.to_string(),
            job,
            node,
        }
    }
}

/// Those of one graph. Any thread.
#[derive(Default)]
pub(crate) struct HeldUpSections(Mutex<Vec<Arc<Entry>>>);

impl HeldUpSections {
    /// Shows that `section`, which is wanted `since` then, waits for that, until what is returned is dropped.
    pub(crate) fn show(
        &self,
        section: &SectionInner,
        since: Duration,
        held_up: &Arc<HeldUp>,
    ) -> Shown<'_> {
        let held = section.held.lock();
        let backends = held.backends.iter();
        let entry = Arc::new(Entry {
            holder: section.holder.clone(),
            since,
            held_up: Arc::clone(held_up),
            nodes: held.nodes.iter().map(Arc::downgrade).collect(),
            backends: backends
                .map(|covered| Weak::clone(&covered.backend))
                .collect(),
        });
        drop(held);
        self.0.lock().push(Arc::clone(&entry));
        Shown { list: self, entry }
    }

    /// Those that are to be over the node.
    pub(crate) fn over_node(&self, node: &Node) -> Vec<HeldUpSection> {
        let is_it = |other: &Weak<Node>| std::ptr::eq(other.as_ptr(), node);
        self.those(|entry| entry.nodes.iter().any(is_it))
    }

    /// Those that are to be over the disk.
    pub(crate) fn over_disk(&self, backend: &Backend) -> Vec<HeldUpSection> {
        let is_it = |other: &Weak<Backend>| std::ptr::eq(other.as_ptr(), backend);
        self.those(|entry| entry.backends.iter().any(is_it))
    }

    fn those(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<HeldUpSection> {
        let entries = self.0.lock().clone();
        let wanted = entries.iter().filter(|entry| wanted(entry));
        wanted.map(|entry| entry.describe()).collect()
    }
}

/// One that is shown until this is dropped: it can begin, or nobody wants it any more.
#[must_use = "dropping it takes the section off the list"]
pub(crate) struct Shown<'a> {
    list: &'a HeldUpSections,
    entry: Arc<Entry>,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let mut entries = self.list.0.lock();
        entries.retain(|other| !Arc::ptr_eq(other, &self.entry));
    }
}
