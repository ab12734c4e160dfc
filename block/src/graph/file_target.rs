//! [`FileTarget`]: the target of a job that was given by a file's name. What the file holds is not touched before
//! everything else is certain: not before the job itself stands, and whatever its transaction does besides is done.

use std::path::Path;
use std::sync::Arc;

use sluice_aio::current;

use super::Graph;
use crate::driver::file::{FileKind, NewImage, path_of};
use crate::error::{BlockError, Result};
use crate::node::{Node, Owner};
use crate::options::{BlockdevOptions, Discard, NewImageMode};

/// What a command says of its target.
pub(crate) struct Wanted<'a> {
    /// The file's name, as QEMU takes it.
    pub(crate) file: &'a Path,
    /// The only one that can be had is `raw`.
    pub(crate) format: Option<&'a str>,
    pub(crate) mode: NewImageMode,
    /// For the node.
    pub(crate) node_name: Option<String>,
    /// Zeroes are given back to the host.
    pub(crate) unmap: bool,
}

impl Wanted<'_> {
    /// Looks at no file.
    ///
    /// # Errors
    /// The format, or the protocol, is none that can be had by `command`.
    pub(crate) fn check(&self, command: &str) -> Result<()> {
        path_of(self.file)?;
        match self.format {
            None | Some("raw") => Ok(()),
            Some(format) => Err(BlockError::Refused(format!(
                "Unknown driver '{format}'; targets of {command} can only be 'raw' yet"
            ))),
        }
    }
}

/// See the [module](self). To be [given](Self::give) to the job, if there is one, and [ended](Self::end). Dropped, its
/// node goes if nobody uses it.
#[must_use = "it is to be ended"]
pub(crate) struct FileTarget {
    pub(crate) node: Arc<Node>,
    graph: Arc<Graph>,
    /// The file, if it is to be emptied.
    image: Option<Arc<NewImage>>,
}

impl FileTarget {
    /// Opens the file, or makes it, for a source of `size` bytes, and adds its node. What it holds stays.
    ///
    /// # Errors
    /// What the file system says; the node's name is malformed or taken. Then everything is as it was.
    pub(crate) async fn open(graph: &Arc<Graph>, wanted: Wanted<'_>, size: u64) -> Result<Self> {
        let path = path_of(wanted.file)?;
        let image = match wanted.mode {
            NewImageMode::Existing => None,
            NewImageMode::AbsolutePaths => {
                let (path, in_use) = (path.clone(), graph.files_in_use());
                let open = move || NewImage::open(&path, size, &in_use);
                Some(Arc::new(current::blocking(open).await??))
            }
        };
        let kind = match image {
            Some(_) => FileKind::Regular,
            None => {
                let path = path.clone();
                current::blocking(move || FileKind::of(&path)).await?
            }
        };
        let mut options = BlockdevOptions::raw_file(wanted.node_name, path, kind);
        if let (BlockdevOptions::Raw(raw), true) = (&mut options, wanted.unmap) {
            raw.discard = Some(Discard::Unmap);
        }
        match graph.build(&options, Owner::Implicit, image.clone()).await {
            Ok(node) => Ok(Self {
                node,
                graph: Arc::clone(graph),
                image,
            }),
            Err(error) => {
                undo(image).await;
                Err(error)
            }
        }
    }

    /// Once it is [given](Self::give) it reads as zeroes.
    pub(crate) fn is_new(&self) -> bool {
        self.image.is_some()
    }

    /// Nothing can be refused any more: it is the job's, and what it holds is gone if it was not to be kept. Nothing waits
    /// for that here, where guests are held; its requests do.
    pub(crate) fn give(&self) {
        if let Some(image) = &self.image {
            image.give();
        }
    }

    /// Outside of any section. The job has it, and it is empty; or there is none, and the file is as it was.
    pub(crate) async fn end(&self, is_used: bool) {
        if is_used {
            self.empty().await;
        } else {
            undo(self.image.clone()).await;
        }
    }

    /// Before the command is answered: a job may make no request for long. One that has ended makes none, and its locks
    /// are gone.
    async fn empty(&self) {
        if let Some(image) = &self.image
            && !self.node.parents().is_empty()
            && let Err(error) = image.emptied().await
        {
            tracing::warn!(%error, "a target can't be made empty, so its job's requests will fail");
        }
    }
}

/// The command may be dropped in the middle, when the program ends.
impl Drop for FileTarget {
    fn drop(&mut self) {
        if let Some(image) = &self.image {
            image.undo();
        }
        self.graph.remove_if_unused(&self.node);
    }
}

async fn undo(image: Option<Arc<NewImage>>) {
    if let Some(image) = image
        && let Err(error) = current::blocking(move || image.undo()).await
    {
        tracing::warn!(%error, "a file can't be left as it was before a command that failed");
    }
}
