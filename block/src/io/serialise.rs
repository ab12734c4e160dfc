//! [`Serialiser`]: keeps requests apart that must not overlap, without a lock held across an await.
//!
//! A request *claims* its range and goes on when no earlier claim stands in its way. Two claims
//! stand in each other's way if they overlap and at least one of them is exclusive. So ordinary
//! writes (shared) run side by side as a disk lets them, while a read-modify-write or a copy of old
//! data (exclusive) has its range for itself. Who came first goes first: a newcomer waits for those
//! that still wait before it, so that nobody starves.
//!
//! A node makes one for its driver's alignment; a filter that copies data has its own. Any thread
//! may claim. Do not claim twice for one request: the second would wait for the first.

use std::future::poll_fn;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use smallvec::SmallVec;

/// Whether others may work on the range at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimKind {
    /// Together with other shared claims.
    Shared,
    /// Alone.
    Exclusive,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    range: Range<u64>,
    kind: ClaimKind,
    /// Earlier claims in the way of this one that have not ended.
    blockers: usize,
    waker: Option<Waker>,
}

impl Entry {
    fn conflicts(&self, range: &Range<u64>, kind: ClaimKind) -> bool {
        let overlap = self.range.start < range.end && range.start < self.range.end;
        overlap && (self.kind == ClaimKind::Exclusive || kind == ClaimKind::Exclusive)
    }
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    /// In order of arrival, and so of `id`. As many as there are requests in flight: searching
    /// them all is cheaper than keeping a tree.
    list: Vec<Entry>,
    /// How many of them wait for others. Mostly none does, and nobody need be looked for.
    waiting: usize,
}

impl Entries {
    fn position(&self, id: u64) -> Option<usize> {
        self.list.binary_search_by_key(&id, |entry| entry.id).ok()
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Serialiser {
    entries: Mutex<Entries>,
}

impl Serialiser {
    /// Waits until nothing earlier is in the way of `range`; dropping the future gives up the
    /// place.
    pub(crate) async fn claim(&self, range: Range<u64>, kind: ClaimKind) -> Claim<&Self> {
        claim(self, range, kind).await
    }

    /// As [`claim`](Self::claim), for a claim that may outlive the request which made it.
    pub(crate) async fn claim_owned(
        self: &Arc<Self>,
        range: Range<u64>,
        kind: ClaimKind,
    ) -> Claim<Arc<Self>> {
        claim(Arc::clone(self), range, kind).await
    }

    /// Puts a claim behind those that are there; its number, and whether it need not wait.
    fn register(&self, range: Range<u64>, kind: ClaimKind) -> (u64, bool) {
        let mut entries = self.entries.lock();
        let id = entries.next;
        entries.next += 1;
        let in_the_way = entries
            .list
            .iter()
            .filter(|earlier| earlier.conflicts(&range, kind));
        let blockers = in_the_way.count();
        entries.list.push(Entry {
            id,
            range,
            kind,
            blockers,
            waker: None,
        });
        entries.waiting += usize::from(blockers > 0);
        (id, blockers == 0)
    }

    fn end(&self, id: u64) {
        let mut entries = self.entries.lock();
        let Some(index) = entries.position(id) else {
            return;
        };
        let ended = entries.list.remove(index);
        if ended.blockers > 0 {
            // It was given up.
            entries.waiting -= 1;
        }
        if entries.waiting == 0 {
            return;
        }
        let Entries { list, waiting, .. } = &mut *entries;
        let mut woken = SmallVec::<[Waker; 4]>::new();
        for later in list.iter_mut().skip(index) {
            if later.conflicts(&ended.range, ended.kind) {
                later.blockers -= 1;
                if later.blockers == 0 {
                    *waiting -= 1;
                    woken.extend(later.waker.take());
                }
            }
        }
        drop(entries);
        for waker in woken {
            waker.wake();
        }
    }
}

async fn claim<S: Deref<Target = Serialiser>>(
    serialiser: S,
    range: Range<u64>,
    kind: ClaimKind,
) -> Claim<S> {
    let (id, is_free) = serialiser.register(range, kind);
    let claim = Claim { serialiser, id };
    if is_free {
        return claim;
    }
    poll_fn(|cx| {
        let mut entries = claim.serialiser.entries.lock();
        let position = entries.position(claim.id);
        match position.and_then(|index| entries.list.get_mut(index)) {
            Some(entry) if entry.blockers > 0 => {
                entry.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    })
    .await;
    claim
}

/// A range that was claimed; dropping it lets the next ones go on.
#[derive(Debug)]
#[must_use = "dropping the claim ends it"]
pub(crate) struct Claim<S: Deref<Target = Serialiser>> {
    serialiser: S,
    id: u64,
}

impl<S: Deref<Target = Serialiser>> Drop for Claim<S> {
    fn drop(&mut self) {
        self.serialiser.end(self.id);
    }
}
