//! [`Node`]: one vertex of the block graph.
//!
//! Its requests are in [`crate::io`]. Who stands above it is kept as a list of parents, for draining
//! and for the graph's changes; the request path never looks at it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::drain::{Cover, PastSections, SectionInner};
use crate::driver::{Background, BackingEdge, Blkdebug, Driver, FileIdentity, ImageInfo, Role};
use crate::error::{BlockError, Result};
use crate::graph::parent::{Blocker, ParentEdge};
use crate::home::Home;
use crate::io::NodeIo;
use crate::look::Looks;
use crate::options::BlockdevOptions;
use crate::permission::Access;

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
    pub(crate) parents: Vec<ParentEdge>,
    /// Open sections on this very node.
    pub(crate) sections: Vec<Weak<SectionInner>>,
    /// Sections that cover the node now, and what is known of those that did.
    pub(crate) covered_by: Vec<Cover>,
    pub(crate) past_sections: PastSections,
    /// What all parents together do with the node, as far as it was granted.
    pub(crate) access: Access,
    /// What others do with the node and its image is not this node's business, whatever its parents ask.
    pub(crate) force_share: bool,
    /// The loop for work on the node, if it is not the main one.
    pub(crate) home: Option<Home>,
    /// As the node was opened or last reopened; none for a filter that a job has put in.
    pub(crate) options: Option<Box<BlockdevOptions>>,
    /// The job that forbids others to use the node.
    pub(crate) blocker: Option<Blocker>,
    /// A filter that nobody has named.
    pub(crate) implicit_filter: bool,
}

/// See the [module](self). Shared between threads; requests run in their submitter's loop.
#[derive(Debug)]
pub struct Node {
    name: String,
    driver: Box<dyn Driver>,
    read_only: AtomicBool,
    owner: Owner,
    pub(crate) io: NodeIo,
    left_behind: Arc<Background>,
    orphaned: Arc<Background>,
    pub(crate) looks: Looks,
    pub(crate) state: Mutex<NodeState>,
}

impl Node {
    pub(crate) fn new(
        name: String,
        driver: Box<dyn Driver>,
        read_only: bool,
        owner: Owner,
    ) -> Arc<Self> {
        let io = NodeIo::new(driver.limits());
        Arc::new(Self {
            name,
            driver,
            read_only: AtomicBool::new(read_only),
            owner,
            io,
            left_behind: Arc::default(),
            orphaned: Arc::default(),
            looks: Looks::default(),
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
        self.read_only.load(Ordering::Relaxed)
    }

    /// Inside a section: no request is under way.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Relaxed);
    }

    /// Who may delete the node.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The medium, for queries. Asks no file system.
    #[must_use]
    pub fn info(&self) -> ImageInfo {
        self.driver.info()
    }

    /// # Errors
    /// `target`, to which all of this node is to be copied, is shorter or longer.
    pub(crate) fn check_same_size(&self, target: &Node) -> Result<()> {
        if self.len() == target.len() {
            return Ok(());
        }
        Err(BlockError::Refused(format!(
            "Source and target image have different sizes: '{}' has {} bytes, '{}' has {}",
            self.info().filename,
            self.len(),
            target.info().filename,
            target.len()
        )))
    }

    /// Children with the names of their roles, in order; a backing image is the last.
    #[must_use]
    pub fn children(&self) -> Vec<(&'static str, Arc<Node>)> {
        let children = self.children_by_role().into_iter();
        children.map(|(role, node)| (role.name(), node)).collect()
    }

    pub(crate) fn children_by_role(&self) -> Vec<(Role, Arc<Node>)> {
        let edges = self.driver.children().into_iter();
        let backing = self.driver.backing().and_then(BackingEdge::node);
        edges
            .map(|edge| (edge.role(), edge.node()))
            .chain(backing.map(|node| (Role::Backing, node)))
            .collect()
    }

    /// The fault injector of this node, if its driver is `blkdebug`.
    #[must_use]
    pub fn as_blkdebug(&self) -> Option<&Blkdebug> {
        self.driver.as_blkdebug()
    }

    /// Requests to this node which whoever sent them has not waited for; sections over the node do.
    pub(crate) fn left_behind(&self) -> &Arc<Background> {
        &self.left_behind
    }

    /// Those of them whose job has ended, which may never return.
    pub(crate) fn orphaned(&self) -> &Arc<Background> {
        &self.orphaned
    }

    /// Something that goes on here although the requests that began it have ended; or, if `left` counts too, have
    /// nobody who waits for them.
    pub(crate) fn work(&self, left: bool) -> Option<&Arc<Background>> {
        let own = left.then_some([&self.left_behind, &self.orphaned]);
        let own = own.into_iter().flatten();
        let mut all = own.chain(self.driver.background());
        all.find(|work| work.running() > 0)
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    pub(crate) fn file_identity(&self) -> Option<FileIdentity> {
        self.driver.file_identity()
    }

    /// The files behind this node, with those of the nodes below it.
    pub(crate) fn files(&self) -> Vec<FileIdentity> {
        let below = self.children();
        let mut files: Vec<_> = below.iter().flat_map(|(_, child)| child.files()).collect();
        files.extend(self.file_identity());
        files
    }
}
