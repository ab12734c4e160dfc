//! [`FileTarget`]: the target of a job that was given by a file's name. What the file holds is not touched before
//! everything else is certain.

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

/// See the [module](self). Its node goes with its last user. To be [closed](Self::close).
#[must_use = "it is to be closed"]
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

    /// Once it is [empty](Self::make_empty) it reads as zeroes.
    pub(crate) fn is_new(&self) -> bool {
        self.image.is_some()
    }

    /// What the file holds is gone, if it was not to be kept. The last step before the job begins: nothing but the
    /// file system can refuse the command any more.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) async fn make_empty(&self) -> Result<()> {
        match self.image.clone() {
            Some(image) => current::blocking(move || image.make_empty()).await?,
            None => Ok(()),
        }
    }

    /// The job has it, or there is none and a file that was made goes.
    pub(crate) async fn close(self, is_used: bool) {
        self.graph.remove_if_unused(&self.node);
        if !is_used {
            drop(self.node);
            undo(self.image).await;
        }
    }
}

async fn undo(image: Option<Arc<NewImage>>) {
    if let Some(image) = image
        && let Err(error) = current::blocking(move || image.undo()).await
    {
        tracing::warn!(%error, "a file can't be left as it was before a command that failed");
    }
}
