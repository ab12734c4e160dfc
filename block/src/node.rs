//! [`Node`]: one vertex of the block graph.
//!
//! A node checks what every driver relies on (range, read-only) and passes the request to its
//! driver. Who stands above it is kept as a list of parents, for draining and for the graph's
//! changes; the request path never looks at it.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sluice_aio::IoBuffer;

use crate::backend::Backend;
use crate::drain::SectionInner;
use crate::driver::{
    Blkdebug, BlockStatus, DebugEvent, Driver, FileIdentity, ImageInfo, RequestFlags,
};
use crate::error::{BlockError, Result};
use crate::job::Job;

/// Something above a node that can send it requests.
#[derive(Clone, Debug)]
pub(crate) enum Parent {
    /// Another node, which gets its requests from above.
    Node(Weak<Node>),
    /// A device's or an export's handle.
    Backend(Weak<Backend>),
    /// A job, which copies from it or to it.
    Job(Weak<Job>),
}

/// Where a node came from, which decides who may delete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// `blockdev-add` or `--blockdev`.
    Monitor,
    /// Made together with a node or a job; goes with its last parent.
    Implicit,
}

#[derive(Debug, Default)]
pub(crate) struct NodeState {
    pub(crate) parents: Vec<Parent>,
    /// Open sections on this very node.
    pub(crate) sections: Vec<Weak<SectionInner>>,
    /// Who may write.
    pub(crate) writer: Option<String>,
    /// The job (its type) that forbids others to use the node.
    blocker: Option<&'static str>,
}

/// See the [module](self). Shared between threads; requests run in their submitter's loop.
#[derive(Debug)]
pub struct Node {
    name: String,
    driver: Box<dyn Driver>,
    read_only: bool,
    owner: Owner,
    pub(crate) state: Mutex<NodeState>,
}

impl Node {
    pub(crate) fn new(
        name: String,
        driver: Box<dyn Driver>,
        read_only: bool,
        owner: Owner,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            driver,
            read_only,
            owner,
            state: Mutex::default(),
        })
    }

    /// The node's name, unique in its graph; made up (`#block…`) if nobody gave one.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver's name, such as `raw`.
    #[must_use]
    pub fn driver_name(&self) -> &'static str {
        self.driver.format_name()
    }

    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.driver.size()
    }

    /// Whether the node has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Who may delete the node.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The medium, for queries. May ask the file system; not for the request path.
    #[must_use]
    pub fn info(&self) -> ImageInfo {
        self.driver.info()
    }

    /// Children with the names of their roles, in order.
    #[must_use]
    pub fn children(&self) -> Vec<(&'static str, Arc<Node>)> {
        self.driver
            .children()
            .into_iter()
            .map(|edge| (edge.role().name(), edge.node()))
            .collect()
    }

    /// The fault injector of this node, if its driver is `blkdebug`.
    #[must_use]
    pub fn as_blkdebug(&self) -> Option<&Blkdebug> {
        self.driver.as_blkdebug()
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    pub(crate) fn file_identity(&self) -> Option<FileIdentity> {
        self.driver.file_identity()
    }

    /// Reads `buffer.len()` bytes from byte `offset`.
    ///
    /// # Errors
    /// Out of range, or the medium's.
    pub async fn read(&self, offset: u64, buffer: IoBuffer) -> Result<()> {
        self.check_range(offset, buffer.len() as u64)?;
        self.driver.read(offset, buffer).await
    }

    /// Writes `buffer` at byte `offset`.
    ///
    /// # Errors
    /// Read-only, out of range, or the medium's.
    pub async fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> Result<()> {
        self.check_write(offset, buffer.len() as u64)?;
        self.driver.write(offset, buffer, flags).await
    }

    /// Makes `len` bytes from `offset` read as zeroes.
    ///
    /// # Errors
    /// As [`Node::write`].
    pub async fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.driver.write_zeroes(offset, len, flags).await
    }

    /// Gives up the contents of `len` bytes from `offset`.
    ///
    /// # Errors
    /// As [`Node::write`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        self.driver.discard(offset, len).await
    }

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// The medium's.
    pub async fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.driver.flush().await
    }

    /// What the first part of a range holds; `len` must not be zero.
    ///
    /// # Errors
    /// Out of range, or the medium's.
    pub async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        self.check_range(offset, len)?;
        self.driver.block_status(offset, len).await
    }

    /// Lets a fault injector below stop at `event`.
    ///
    /// # Errors
    /// What the injector was told to inject.
    pub async fn debug_event(&self, event: DebugEvent) -> Result<()> {
        self.driver.debug_event(event).await
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(BlockError::ReadOnly(self.name.clone()));
        }
        self.check_range(offset, len)
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.driver.size();
        if offset.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(BlockError::OutOfRange {
            node: self.name.clone(),
            offset,
            len,
            size,
        })
    }

    /// Takes the right to write for `user`, or gives it back.
    ///
    /// # Errors
    /// The node is read-only, or somebody else writes to it, in this process or in another.
    pub(crate) fn set_writer(&self, user: Option<&str>) -> Result<()> {
        let mut state = self.state.lock();
        if let (Some(_), Some(present)) = (user, &state.writer) {
            return Err(BlockError::Conflict {
                user: present.clone(),
                role: "root",
                node: self.name.clone(),
            });
        }
        if user.is_some() && self.read_only {
            return Err(BlockError::ReadOnly(self.name.clone()));
        }
        if user.is_none() && state.writer.is_none() {
            return Ok(());
        }
        self.driver.set_writer(user)?;
        state.writer = user.map(str::to_owned);
        Ok(())
    }

    /// Renames the holder of the right to write, here and below; nothing if nobody holds it.
    pub(crate) fn pass_writer(&self, user: &str) {
        match &mut self.state.lock().writer {
            Some(writer) => user.clone_into(writer),
            None => return,
        }
        for (_, child) in self.children() {
            child.pass_writer(user);
        }
    }

    /// Who may write now.
    #[must_use]
    pub fn writer(&self) -> Option<String> {
        self.state.lock().writer.clone()
    }

    /// Claims the node for a job of this type: others are refused until [`Node::unblock`].
    ///
    /// # Errors
    /// Another job has it.
    pub(crate) fn block(&self, job: &'static str) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(present) = state.blocker {
            return Err(BlockError::Busy {
                node: self.name.clone(),
                job: present,
            });
        }
        state.blocker = Some(job);
        Ok(())
    }

    /// Ends a job's claim.
    pub(crate) fn unblock(&self) {
        self.state.lock().blocker = None;
    }

    /// # Errors
    /// A job runs on the node.
    pub(crate) fn check_not_blocked(&self) -> Result<()> {
        match self.state.lock().blocker {
            Some(job) => Err(BlockError::Busy {
                node: self.name.clone(),
                job,
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn parents(&self) -> Vec<Parent> {
        self.state.lock().parents.clone()
    }

    pub(crate) fn has_node_above(&self) -> bool {
        self.parents()
            .iter()
            .any(|parent| matches!(parent, Parent::Node(above) if above.strong_count() > 0))
    }

    /// The files behind this node, with those of the nodes below it.
    pub(crate) fn files(&self) -> Vec<FileIdentity> {
        let below = self.children();
        let mut files: Vec<_> = below.iter().flat_map(|(_, child)| child.files()).collect();
        files.extend(self.file_identity());
        files
    }

    /// The backends whose root is this node.
    #[must_use]
    pub fn backends(&self) -> Vec<Arc<Backend>> {
        self.parents()
            .iter()
            .filter_map(|parent| match parent {
                Parent::Backend(backend) => backend.upgrade(),
                _ => None,
            })
            .collect()
    }
}
