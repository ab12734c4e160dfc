//! Putting a medium into a backend and taking it out: the root of a running device changes.
//!
//! Every change is made in the same order: park (a drained section keeps the device's requests
//! out), change (one transaction, which takes or gives back the permissions), tell the device, and
//! let go. What was parked then finds the new medium, or none and fails with `ENOMEDIUM`.
//!
//! The operator's commands come here from tasks of the main loop; any task that holds no token of
//! the backend may call.

use std::sync::Arc;

use super::Graph;
use super::parent::Parent;
use super::transaction::{ROOT, Transaction};
use crate::backend::{Backend, Tray};
use crate::drain::{Section, SectionInner, begin_section, cover_from};
use crate::error::{BlockError, Result};
use crate::node::Node;
use crate::options::BlockdevOptions;

/// The holder of a medium's section.
const INSERTION: &str = "insertion of a medium";
/// The same.
const REMOVAL: &str = "removal of a medium";

impl Graph {
    /// Makes `node` the medium of `backend`, which has none, inside a section of its own; the device
    /// is told before that ends.
    ///
    /// # Errors
    /// The backend's medium can't be changed, its tray is closed, or it has a medium; the node has
    /// gone, a job or another device has it, or its permissions do not allow it. Then nothing was
    /// changed.
    pub async fn insert_medium(&self, backend: &Arc<Backend>, node: &Arc<Node>) -> Result<()> {
        check_changeable(backend)?;
        let section = self.drain_medium(backend, INSERTION).await;
        // The guest may have closed the tray while its requests were awaited.
        check_changeable(backend)?;
        let mut change = self.transaction();
        change.check_has_backend(backend)?;
        if backend.node().is_some() {
            let name = backend.name();
            return Err(refused(format!(
                "There already is a medium in device '{name}'"
            )));
        }
        change.check_present(node)?;
        check_not_busy(node)?;
        if !node.backends().is_empty() {
            let name = node.name();
            return Err(refused(format!("Node '{name}' is already in use")));
        }
        change.insert_root(backend, node);
        change.commit()?;
        tell(backend, true);
        drop(section);
        Ok(())
    }

    /// Takes the medium out of `backend` inside a section of its own; the device is told before that
    /// ends. Nothing happens if there is none. A node that nobody else has and that is not the
    /// monitor's goes.
    ///
    /// # Errors
    /// The backend's medium can't be changed or its tray is closed; a job has the medium. Then it
    /// stays.
    pub async fn remove_medium(&self, backend: &Arc<Backend>) -> Result<()> {
        check_changeable(backend)?;
        if let Some(root) = backend.node() {
            check_not_busy(&root)?;
        }
        let section = self.drain_medium(backend, REMOVAL).await;
        check_changeable(backend)?;
        let Some(root) = backend.node() else {
            return Ok(());
        };
        if !root.is_read_only()
            && let Err(error) = root.flush().await
        {
            // It can't be kept in the drive for that: the operator may want to replace it.
            tracing::warn!(disk = backend.name(), %error, "a medium is removed without a flush");
        }
        let mut change = self.transaction();
        let Some(root) = backend.node() else {
            return Ok(());
        };
        // A job may have begun while requests were awaited.
        check_not_busy(&root)?;
        change.remove_root(backend, &root);
        change.commit()?;
        tell(backend, false);
        drop(section);
        Ok(())
    }

    /// Opens another medium, exchanges it for the one in `backend` and closes the tray.
    ///
    /// # Errors
    /// The medium can't be opened; the guest has locked the tray and `force` was not given; those of
    /// [`Graph::remove_medium`] and [`Graph::insert_medium`]. If only the last refuses, the drive is
    /// left open and empty.
    pub async fn change_medium(
        &self,
        backend: &Arc<Backend>,
        options: &BlockdevOptions,
        force: bool,
    ) -> Result<()> {
        let medium = self.add_implicit_node(options).await?;
        let result = self.exchange(backend, &medium, force).await;
        if result.is_err() {
            self.remove_if_unused(&medium);
        }
        result
    }

    async fn exchange(
        &self,
        backend: &Arc<Backend>,
        medium: &Arc<Node>,
        force: bool,
    ) -> Result<()> {
        self.eject(backend, force).await?;
        self.insert_medium(backend, medium).await?;
        backend.close_tray()
    }

    /// Opens the tray, if there is one, and takes the medium out. The tray stays closed if a job has the medium.
    ///
    /// # Errors
    /// The guest has locked the tray and `force` was not given, though it was asked; those of
    /// [`Graph::remove_medium`].
    pub async fn eject(&self, backend: &Arc<Backend>, force: bool) -> Result<()> {
        if let Some(root) = backend.node() {
            check_not_busy(&root)?;
        }
        if backend.open_tray(force)? == Tray::Locked {
            let name = backend.name();
            return Err(refused(format!(
                "Device '{name}' is locked and force was not specified, wait for tray to open and \
                 try again"
            )));
        }
        self.remove_medium(backend).await
    }

    /// A section that keeps `backend` from its medium, if there is one, and from any that comes.
    async fn drain_medium(&self, backend: &Arc<Backend>, holder: &str) -> Section {
        let cover = |section: &Arc<SectionInner>| {
            let _topology = self.topology();
            section.cover(backend);
            if let Some(root) = backend.node() {
                cover_from(&root, section);
            }
        };
        begin_section(self, holder, None, cover).await
    }
}

impl Transaction<'_> {
    /// # Errors
    /// The backend was removed since the caller got hold of it.
    fn check_has_backend(&mut self, backend: &Arc<Backend>) -> Result<()> {
        let backends = &self.topology().backends;
        if backends.iter().any(|other| Arc::ptr_eq(other, backend)) {
            return Ok(());
        }
        Err(refused(format!("Device '{}' not found", backend.name())))
    }

    /// Puts `backend`, which has no root, above `node`. The caller holds its section.
    fn insert_root(&mut self, backend: &Arc<Backend>, node: &Arc<Node>) {
        self.attach(node, Parent::backend(backend), ROOT, backend.access());
        self.change_root(backend, Some(node));
    }

    /// Takes `backend` off `root`. The caller holds a section of both.
    fn remove_root(&mut self, backend: &Arc<Backend>, root: &Arc<Node>) {
        self.change_root(backend, None);
        self.detach(root, &Parent::backend(backend), ROOT);
    }
}

/// # Errors
/// The medium of `backend` can't be changed, or its tray is closed.
fn check_changeable(backend: &Backend) -> Result<()> {
    backend.check_removable()?;
    match backend.removable_device() {
        Some(device) if !device.is_tray_open() => {
            let name = backend.name();
            Err(refused(format!("Tray of device '{name}' is not open")))
        }
        _ => Ok(()),
    }
}

/// # Errors
/// A job has `node` or one below it.
fn check_not_busy(node: &Arc<Node>) -> Result<()> {
    // What is below first: it is the disk that a job was asked to copy.
    for (_, child) in node.children() {
        check_not_busy(&child)?;
    }
    node.check_not_blocked()
}

fn tell(backend: &Backend, present: bool) {
    if let Some(device) = backend.removable_device() {
        device.medium_changed(present);
    }
}

fn refused(text: String) -> BlockError {
    BlockError::Refused(text)
}
