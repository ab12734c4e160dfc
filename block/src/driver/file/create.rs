//! Making a raw image, as `drive-mirror` with `mode=absolute-paths` does. The file that is there keeps what it holds
//! until nothing can be refused any more, and one that was made for nothing goes again.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::fdset::SetName;
use super::lock;
use super::open::{check_kind, check_size, identity_of, open_error, unsuitable};
use crate::driver::FileIdentity;
use crate::error::{BlockError, Result};
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
    /// What it held is gone.
    Emptied,
}

/// A regular file that is to be an empty image; open and locked. Its calls block, and may be made from any thread.
#[derive(Debug)]
pub(crate) struct NewImage {
    file: Arc<File>,
    /// Its own, if it was given by a link that led nowhere.
    path: PathBuf,
    /// Bytes that it is to have.
    size: u64,
    state: Mutex<State>,
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
        };
        match image.prepare(path, in_use) {
            Ok(()) => Ok(image),
            Err(error) => {
                image.undo();
                Err(error)
            }
        }
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
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Its size once it is [empty](Self::make_empty), in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Has it read as zeroes and take no room. What it held is gone.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn make_empty(&self) -> Result<()> {
        let failed = |error| open_error(&self.path, error, "");
        let mut state = self.state.lock();
        if matches!(*state, State::Made) {
            return Ok(());
        }
        self.file.set_len(0).map_err(failed)?;
        *state = State::Emptied;
        self.file.set_len(self.size).map_err(failed)
    }

    /// It is not used after all: what was made goes, and what was there is as it was unless it was emptied.
    pub(crate) fn undo(&self) {
        let undone = match *self.state.lock() {
            State::Untouched | State::Emptied => Ok(()),
            State::Made => self.remove(),
            State::Grown(size) => self.file.set_len(size),
        };
        if let Err(error) = undone {
            let path = self.path.display();
            tracing::warn!(%path, %error, "a file can't be left as it was before a command that failed");
        }
    }

    fn remove(&self) -> io::Result<()> {
        let found = std::fs::symlink_metadata(&self.path)?;
        // Somebody may have put another file there.
        if identity_of(&found) == identity_of(&self.file.metadata()?) {
            std::fs::remove_file(&self.path)?;
        }
        Ok(())
    }
}

/// Whether this process has made the file is certain: nobody else's is ever removed.
fn open_or_make(path: &Path) -> io::Result<(File, PathBuf, State)> {
    let mut path = path.to_owned();
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    for _ in 0..MAX_LINKS {
        match options.open(&path) {
            Ok(file) => return Ok((file, path, State::Untouched)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match options.clone().create_new(true).open(&path) {
            Ok(file) => return Ok((file, path, State::Made)),
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
