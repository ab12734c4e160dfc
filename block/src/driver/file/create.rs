//! Making a raw image, as `drive-mirror` with `mode=absolute-paths` does.
//!
//! 1. It is [opened](NewImage::open), or made, locked, and made long enough. What it holds stays.
//! 2. Once its command, or its transaction, can't be refused any more it is [given](NewImage::give) to the job.
//! 3. Whoever comes first has it [emptied](NewImage::emptied); every request of its node waits for that.
//!
//! Without the second step [all is undone](NewImage::undo): the file has the bytes and the size that it had, or is not
//! there if it was not. Nothing is ever emptied, or left behind, for a command that is refused.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use sluice_aio::{Aside, current};

use super::fdset::SetName;
use super::lock;
use super::open::{aside, check_kind, check_size, identity_of, open_error, unsuitable};
use crate::driver::FileIdentity;
use crate::error::{BlockError, Result};
use crate::io::serialise::{ClaimKind, Serialiser};
use crate::options::Locking;
use crate::permission::Access;

/// As many links are followed to a file that is to be made, as by the kernel.
const MAX_LINKS: usize = 40;

/// What has become of the file.
#[derive(Clone, Copy, Debug)]
enum State {
    /// It is as it was.
    Untouched,
    /// It was not there.
    Made,
    /// It was of this size, in bytes, and holds what it held.
    Grown(u64),
    /// It is the job's.
    Given,
}

/// A regular file that is to be an empty image; open and locked. Any thread; all of its calls but
/// [`emptied`](Self::emptied) and [`give`](Self::give) block. Dropped, it [undoes](Self::undo) what was not undone.
#[derive(Debug)]
pub(crate) struct NewImage {
    file: Arc<Aside<File>>,
    /// Its own, if it was given by a link that led nowhere.
    path: PathBuf,
    /// Bytes that it is to have.
    size: u64,
    state: Mutex<State>,
    /// Whether it reads as zeroes, but for what was written since.
    is_empty: AtomicBool,
    /// Of those who have it emptied one does so, and the others wait.
    emptying: Arc<Serialiser>,
}

impl NewImage {
    /// Opens the file at `path`, or makes it, with room for `size` bytes. What it holds stays.
    ///
    /// # Errors
    /// It is in use here (one of `in_use`) or elsewhere, is no regular file, or can't be made that large; then
    /// everything is as it was.
    pub(crate) fn open(path: &Path, size: u64, in_use: &[FileIdentity]) -> Result<Self> {
        if SetName::of(path).is_some() {
            return Err(unsuitable(
                path,
                "a file that is passed exists already; use it with mode=existing",
            ));
        }
        // A better word than that of the opening, which changes nothing but may fail.
        if let Ok(metadata) = path.metadata() {
            check_kind(&metadata, path)?;
        }
        check_size(size, path)?;
        let (file, own_path, state) = open_or_make(path).map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::NotFound => "; create the directory, or correct the path",
                _ => "",
            };
            open_error(path, error, hint)
        })?;
        let image = Self {
            file: Arc::new(file),
            path: own_path,
            size,
            state: Mutex::new(state),
            is_empty: AtomicBool::new(false),
            emptying: Arc::default(),
        };
        // If that fails it is dropped.
        image.prepare(path, in_use).map(|()| image)
    }

    fn prepare(&self, path: &Path, in_use: &[FileIdentity]) -> Result<()> {
        let failed = |error| open_error(path, error, "");
        let metadata = self.file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(unsuitable(
                path,
                "it is not a regular file, so no image can be created there",
            ));
        }
        let identity = identity_of(&metadata);
        if in_use.contains(&identity) {
            return Err(BlockError::FileInUse {
                path: path.to_string_lossy().into_owned(),
                identity,
            });
        }
        lock::prepare(&self.file, path, Access::of_device(false), Locking::Auto)?;
        if metadata.len() < self.size {
            self.file.set_len(self.size).map_err(failed)?;
            let mut state = self.state.lock();
            if matches!(*state, State::Untouched) {
                *state = State::Grown(metadata.len());
            }
        }
        Ok(())
    }

    /// The file, for a node. It has the locks of a disk until somebody sets others.
    pub(super) fn file(&self) -> Arc<Aside<File>> {
        Arc::clone(&self.file)
    }

    /// Its size once it is [empty](Self::emptied), in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn is_empty(&self) -> bool {
        self.is_empty.load(Ordering::Acquire)
    }

    /// Nothing can be refused any more: from now on nothing is undone, and what the file holds is not wanted.
    pub(crate) fn give(&self) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Given);
        if matches!(before, State::Made) {
            self.is_empty.store(true, Ordering::Release);
        }
    }

    pub(super) fn is_given(&self) -> bool {
        matches!(*self.state.lock(), State::Given)
    }

    /// Waits until it reads as zeroes and takes no room, which whoever comes first has done.
    ///
    /// # Errors
    /// The file system's, and who comes next tries again; `EBUSY` before it was [given](Self::give).
    pub(crate) async fn emptied(self: &Arc<Self>) -> Result<()> {
        let turn = self.emptying.claim_owned(0..1, ClaimKind::Exclusive);
        let turn = turn.await;
        if self.is_empty() {
            return Ok(());
        }
        let image = Arc::clone(self);
        // Whoever does not wait for its end any more does not end it: nobody else may write before.
        let empty = move || {
            let emptied = image.make_empty();
            drop(turn);
            emptied
        };
        current::blocking(empty).await?
    }

    fn make_empty(&self) -> Result<()> {
        let failed = |error| open_error(&self.path, error, "");
        if !self.is_given() {
            return Err(failed(io::Error::from_raw_os_error(libc::EBUSY)));
        }
        self.file.set_len(0).map_err(failed)?;
        self.file.set_len(self.size).map_err(failed)?;
        self.is_empty.store(true, Ordering::Release);
        Ok(())
    }

    /// It is not used after all: what was made goes, and what was there is as it was. Nothing if it was
    /// [given](Self::give).
    pub(crate) fn undo(&self) {
        let mut state = self.state.lock();
        let undone = match *state {
            State::Given => return,
            State::Untouched => Ok(()),
            State::Made => self.as_its_owner(|| self.remove()),
            State::Grown(size) => self.as_its_owner(|| self.file.set_len(size)),
        };
        *state = State::Untouched;
        if let Err(error) = undone {
            let path = self.path.display();
            tracing::warn!(%path, %error, "a file can't be left as it was before a command that failed");
        }
    }

    /// The locks may have gone with the node's last user: what somebody else has by now stays as it is.
    fn as_its_owner(&self, undo: impl FnOnce() -> io::Result<()>) -> Result<()> {
        let access = Access::of_device(false);
        let locked = lock::prepare(&self.file, &self.path, access, Locking::Auto);
        let undone = locked.and_then(|()| Ok(undo()?));
        lock::finish(&self.file, Access::NONE);
        undone
    }

    fn remove(&self) -> io::Result<()> {
        let found = match std::fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            found => found?,
        };
        // Somebody may have put another file there.
        if identity_of(&found) == identity_of(&self.file.metadata()?) {
            std::fs::remove_file(&self.path)?;
        }
        Ok(())
    }
}

/// The command may be dropped in the middle, when the program ends.
impl Drop for NewImage {
    fn drop(&mut self) {
        self.undo();
    }
}

/// Whether this process has made the file is certain: nobody else's is ever removed.
fn open_or_make(path: &Path) -> io::Result<(Aside<File>, PathBuf, State)> {
    let mut path = path.to_owned();
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    for _ in 0..MAX_LINKS {
        match options.open(&path) {
            Ok(file) => return Ok((aside(file, &path), path, State::Untouched)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match options.clone().create_new(true).open(&path) {
            Ok(file) => return Ok((aside(file, &path), path, State::Made)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        // A link to nothing; or by now there is a file.
        if let Ok(to) = path.read_link() {
            path = path.parent().unwrap_or(Path::new("")).join(to);
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}
