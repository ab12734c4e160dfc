//! [`Permissions`] and [`Access`]: what a user of a node does with it, and what it lets others do.
//!
//! Every edge of the graph carries an [`Access`]. A node's own is the sum of its parents': all that
//! any of them uses, and only what all of them share. Two parents of which one uses what the other
//! does not share can't stand above one node; the graph refuses the change that would bring them
//! together. At a file the sum becomes locks that other processes respect.

use bitflags::bitflags;

bitflags! {
    /// What can be done with a node (QEMU's `BlockPermission`, qapi/block-core.json). The bits are
    /// the offsets of the lock bytes in QEMU's `file` driver.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Permissions: u8 {
        /// Reading, and seeing what was written last.
        const CONSISTENT_READ = 1;
        /// Changing the contents.
        const WRITE = 1 << 1;
        /// Writing what can be read there already, such as a copy from below.
        const WRITE_UNCHANGED = 1 << 2;
        /// Changing the size.
        const RESIZE = 1 << 3;
    }
}

impl Permissions {
    /// What a read-only node can't do for anybody.
    pub const CHANGES: Self = Self::WRITE.union(Self::WRITE_UNCHANGED).union(Self::RESIZE);

    /// The name of each permission in `self`, as QMP spells it.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.iter().map(|permission| match permission {
            Self::CONSISTENT_READ => "consistent-read",
            Self::WRITE => "write",
            Self::WRITE_UNCHANGED => "write-unchanged",
            _ => "resize",
        })
    }

    /// The same for messages: `consistent read, write`.
    #[must_use]
    pub fn text(self) -> String {
        let names: Vec<_> = self.names().map(|name| name.replace('-', " ")).collect();
        names.join(", ")
    }
}

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What it does.
    pub used: Permissions,
    /// What others may do at the same time.
    pub shared: Permissions,
}

impl Access {
    /// Nothing is done and everything shared: an edge that nobody uses.
    pub const NONE: Self = Self {
        used: Permissions::empty(),
        shared: Permissions::all(),
    };

    /// A job's on its filter: the disk keeps its size while the job lasts; all else goes on.
    pub(crate) const OF_JOB_FILTER: Self = Self {
        used: Permissions::empty(),
        shared: Permissions::RESIZE.complement(),
    };

    /// An operation's that changes the size of a node.
    pub(crate) const OF_RESIZE: Self = Self {
        used: Permissions::RESIZE,
        shared: Permissions::all(),
    };

    /// A device's, as QEMU's disks have it: nobody else may write, but the operator may resize.
    #[must_use]
    pub const fn of_device(read_only: bool) -> Self {
        let read = Permissions::CONSISTENT_READ;
        Self {
            used: if read_only {
                read
            } else {
                read.union(Permissions::WRITE)
            },
            shared: read
                .union(Permissions::WRITE_UNCHANGED)
                .union(Permissions::RESIZE),
        }
    }

    /// What an overlay does with its backing image, given what is done with the overlay: it reads
    /// what the overlay does not hold. Others may write only where those above can do with that.
    #[must_use]
    pub(crate) fn of_backing(self) -> Self {
        let mut shared = Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED;
        if self.shared.contains(Permissions::WRITE) {
            shared |= Permissions::WRITE | Permissions::RESIZE;
        }
        Self {
            used: self.used & Permissions::CONSISTENT_READ,
            shared,
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            used: self.used | other.used,
            shared: self.shared & other.shared,
        }
    }

    /// Whether `other` does nothing, and keeps others from nothing, that is not so with this.
    #[must_use]
    pub(crate) fn covers(self, other: Self) -> bool {
        self.used.contains(other.used) && other.shared.contains(self.shared)
    }

    /// What others may not do.
    #[must_use]
    pub fn unshared(self) -> Permissions {
        self.shared.complement()
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::NONE
    }
}
