//! Making nodes from options: first everything is opened, then all of it is added at once.

use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use sluice_aio::current;

use super::{Graph, Topology};
use crate::driver::blkdebug::Settings;
use crate::driver::copy_before_write::CopyBeforeWrite;
use crate::driver::copy_on_read::CopyOnRead;
use crate::driver::file::{FileDriver, FileKind, FileOptions, NewImage};
use crate::driver::null::Null;
use crate::driver::raw::Raw;
use crate::driver::throttle::{Throttle, find_group};
use crate::driver::{Blkdebug, Driver, Edge, Role};
use crate::error::{BlockError, Result};
use crate::io::IoPolicy;
use crate::node::{Node, Owner};
use crate::options::{BlockdevOptions, CacheOptions, ChildRef, Common, Discard, FileNode};

/// The longest node name (QEMU: 31 characters).
const MAX_NAME: usize = 31;

/// What children take from their parent unless they say otherwise.
#[derive(Clone, Copy, Default)]
pub(super) struct Inherited {
    pub(super) read_only: bool,
    pub(super) auto_read_only: bool,
    force_share: bool,
    pub(super) discard: Discard,
    cache: CacheOptions,
}

impl Inherited {
    /// Past the page cache.
    pub(super) fn direct(self) -> bool {
        self.cache.direct.unwrap_or(false)
    }

    /// Flushes are ignored.
    pub(super) fn no_flush(self) -> bool {
        self.cache.no_flush.unwrap_or(false)
    }

    pub(super) fn overridden_by(self, common: Common<'_>) -> Self {
        let cache = common.cache.unwrap_or_default();
        Self {
            read_only: common.read_only.unwrap_or(self.read_only),
            auto_read_only: common.auto_read_only.unwrap_or(self.auto_read_only),
            force_share: common.force_share.unwrap_or(self.force_share),
            discard: common.discard.unwrap_or(self.discard),
            cache: CacheOptions {
                direct: cache.direct.or(self.cache.direct),
                no_flush: cache.no_flush.or(self.cache.no_flush),
            },
        }
    }
}

impl Inherited {
    /// # Errors
    /// Options of a node that can't stand together.
    pub(super) fn check(self) -> Result<()> {
        if self.force_share && !self.read_only {
            let text = "force-share=on can only be used with read-only images";
            return Err(BlockError::Refused(text.to_owned()));
        }
        Ok(())
    }
}

/// What a node and all that it nests are being made of.
#[derive(Default)]
struct Opened {
    /// Nodes that were opened but not added yet, children first.
    nodes: Vec<Arc<Node>>,
    /// The file of the first that has one, if it is open already.
    image: Option<Arc<NewImage>>,
}

impl Opened {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.name())
    }
}

impl Graph {
    /// Makes a node; its file is `image` if one is given.
    ///
    /// # Errors
    /// See [`Graph::add_node`].
    pub(super) async fn build(
        &self,
        options: &BlockdevOptions,
        owner: Owner,
        image: Option<Arc<NewImage>>,
    ) -> Result<Arc<Node>> {
        let mut opened = Opened {
            image,
            ..Opened::default()
        };
        let node = self
            .open(options, owner, Inherited::default(), &mut opened)
            .await?;
        // Names may have been taken while files were being opened: this is where it is decided.
        let mut change = self.transaction();
        for (index, node) in opened.nodes.iter().enumerate() {
            change.topology().check_free(node.name())?;
            // A node is named before its children are.
            if opened.names().take(index).any(|name| name == node.name()) {
                return Err(BlockError::DuplicateNode(node.name().to_owned()));
            }
            for (_, child) in node.children() {
                let is_new = opened.nodes.iter().any(|other| Arc::ptr_eq(other, &child));
                if !is_new {
                    change.topology().check_adoptable(&child)?;
                }
            }
        }
        for node in &opened.nodes {
            change.add_node(node);
        }
        change.commit()?;
        Ok(node)
    }

    /// Opens one node and its nested children.
    fn open<'a>(
        &'a self,
        options: &'a BlockdevOptions,
        owner: Owner,
        inherited: Inherited,
        opened: &'a mut Opened,
    ) -> LocalBoxFuture<'a, Result<Arc<Node>>> {
        Box::pin(async move {
            let common = options.common();
            let settings = inherited.overridden_by(common);
            settings.check()?;
            let name = self.choose_name(common.node_name, opened)?;
            let detect_zeroes = common.detect_zeroes.unwrap_or_default();
            let policy = IoPolicy::new(settings.discard, detect_zeroes)?;
            let mut read_only = settings.read_only;
            let driver: Box<dyn Driver> = match options {
                BlockdevOptions::File(file) | BlockdevOptions::HostDevice(file) => {
                    let kind = match options {
                        BlockdevOptions::HostDevice(_) => FileKind::Device,
                        _ => FileKind::Regular,
                    };
                    let image = opened.image.take();
                    let (driver, writable) = self.open_file(file, kind, settings, image).await?;
                    read_only |= !writable;
                    Box::new(driver)
                }
                BlockdevOptions::Raw(raw) => {
                    let child = self.child(&raw.file, settings, opened).await?;
                    read_only |= child.is_read_only();
                    Box::new(Raw::new(
                        Edge::new(Role::File, child),
                        raw.offset,
                        raw.size,
                    )?)
                }
                BlockdevOptions::NullCo(null) => Box::new(Null::co(null)?),
                BlockdevOptions::NullAio(null) => Box::new(Null::aio(null)?),
                BlockdevOptions::Throttle(throttle) => {
                    let group = find_group(&self.throttle_groups, &throttle.throttle_group)?;
                    let child = self.child(&throttle.file, settings, opened).await?;
                    read_only |= child.is_read_only();
                    Box::new(Throttle::new(Edge::new(Role::File, child), group.join()))
                }
                BlockdevOptions::CopyBeforeWrite(copy) => {
                    let child = self.child(&copy.file, settings, opened).await?;
                    read_only |= child.is_read_only();
                    // It is written although the disk may not be.
                    let writable = Inherited {
                        read_only: false,
                        force_share: false,
                        ..settings
                    };
                    let target = self.child(&copy.target, writable, opened).await?;
                    let bitmap = copy.bitmap.as_ref();
                    let marks = bitmap.map(|bitmap| self.marks_of(bitmap)).transpose()?;
                    Box::new(CopyBeforeWrite::new(child, target, copy, marks.as_deref())?)
                }
                BlockdevOptions::CopyOnRead(copy) => {
                    let child = self.child(&copy.file, settings, opened).await?;
                    read_only |= child.is_read_only();
                    let topology = self.topology();
                    let bottom = match &copy.bottom {
                        None => None,
                        Some(name) => {
                            let new = opened.nodes.iter().find(|node| node.name() == name);
                            let known = new.or_else(|| topology.nodes.get(name));
                            Some(known.ok_or_else(|| {
                                BlockError::Refused(format!("Bottom node '{name}' not found"))
                            })?)
                        }
                    };
                    Box::new(CopyOnRead::new(child, bottom)?)
                }
                #[cfg(any(test, feature = "test-hooks"))]
                BlockdevOptions::XOverlay(overlay) => {
                    Box::new(crate::driver::overlay::Overlay::empty(overlay.size))
                }
                BlockdevOptions::Blkdebug(debug) => {
                    let child = self.child(&debug.image, settings, opened).await?;
                    read_only |= child.is_read_only();
                    let image = Edge::new(Role::Filtered, child);
                    let options = debug.clone();
                    let settings = current::blocking(move || Settings::load(&options)).await??;
                    Box::new(Blkdebug::new(image, settings)?)
                }
            };
            let node = Node::new(name, driver, read_only, owner);
            node.set_policy(policy);
            {
                let mut state = node.state.lock();
                state.options = Some(Box::new(options.clone()));
                state.force_share = settings.force_share;
            }
            opened.nodes.push(Arc::clone(&node));
            Ok(node)
        })
    }

    async fn child(
        &self,
        child: &ChildRef,
        settings: Inherited,
        opened: &mut Opened,
    ) -> Result<Arc<Node>> {
        match child {
            ChildRef::Name(name) => {
                let topology = self.topology();
                let missing = |_| BlockError::DeviceNotFound(name.clone());
                let node = topology.node(name).map_err(missing)?;
                topology.check_adoptable(&node)?;
                Ok(node)
            }
            ChildRef::Options(options) => {
                self.open(options, Owner::Implicit, settings, opened).await
            }
        }
    }

    fn choose_name(&self, given: Option<&str>, opened: &Opened) -> Result<String> {
        let mut topology = self.topology();
        let Some(name) = given else {
            loop {
                let name = topology.made_up_name();
                if !opened.names().any(|other| other == name) {
                    return Ok(name);
                }
            }
        };
        topology.check_new_node(name)?;
        if opened.names().any(|other| other == name) {
            return Err(BlockError::DuplicateNode(name.to_owned()));
        }
        Ok(name.to_owned())
    }
}

impl Topology {
    /// # Errors
    /// No operator may give a new node this name.
    pub(super) fn check_new_node(&self, name: &str) -> Result<()> {
        if !is_well_formed(name) {
            return Err(BlockError::InvalidNodeName(name.to_owned()));
        }
        self.check_free(name)?;
        if name.len() > MAX_NAME {
            return Err(BlockError::NodeNameTooLong);
        }
        Ok(())
    }

    /// # Errors
    /// The name belongs to a node or to a backend.
    fn check_free(&self, name: &str) -> Result<()> {
        let taken = self.nodes.contains_key(name)
            || self.held_names.contains(name)
            || self.backends.iter().any(|backend| backend.name() == name);
        if taken {
            return Err(BlockError::DuplicateNode(name.to_owned()));
        }
        Ok(())
    }

    /// # Errors
    /// `node` can't get a new parent: it has gone, or a job holds it.
    pub(super) fn check_adoptable(&self, node: &Arc<Node>) -> Result<()> {
        self.check_present(node)?;
        node.check_not_blocked()
    }
}

/// QEMU's rule for ids: a letter, then letters, digits, `-`, `.`, `_`.
fn is_well_formed(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

impl Graph {
    async fn open_file(
        &self,
        file: &FileNode,
        kind: FileKind,
        settings: Inherited,
        image: Option<Arc<NewImage>>,
    ) -> Result<(FileDriver, bool)> {
        let options = FileOptions {
            path: file.filename.clone(),
            fd_sets: Arc::clone(&self.fd_sets),
            kind,
            read_only: settings.read_only,
            auto_read_only: settings.auto_read_only,
            direct: settings.direct(),
            no_flush: settings.no_flush(),
            unmap: settings.discard == Discard::Unmap,
            engine: file.aio.into(),
            locking: file.locking,
        };
        let open = move || match image {
            Some(image) => FileDriver::open_new(options, &image),
            None => FileDriver::open(options),
        };
        let driver = current::blocking(open).await??;
        let writable = driver.is_writable();
        Ok((driver, writable))
    }
}
