//! What can go wrong in the block layer, with the context that a message needs.

use std::io;
use std::sync::Arc;

use crate::driver::FileIdentity;
use crate::job::{CreateError, WaysToEnd};
use crate::parting::NOT_RETURNED;

/// Result of block-layer calls.
pub type Result<T> = std::result::Result<T, BlockError>;

/// Why a request, a node or a change of the graph failed.
///
/// The texts follow QEMU's where QEMU has one, since clients match on them.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The medium below failed.
    #[error("{}", io_text(.0))]
    Io(#[from] io::Error),
    /// A request reaches past the end or overflows.
    #[error("request of {len} bytes at {offset} is beyond the end of node '{node}' ({size} bytes)")]
    OutOfRange {
        /// The node that was asked.
        node: String,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The node's size in bytes.
        size: u64,
    },
    /// A write to a read-only node.
    #[error("node '{0}' is read-only")]
    ReadOnly(String),
    /// A node with writers can't become read-only.
    #[error("Read-only block node '{0}' cannot support read-write users")]
    ReadOnlyInUse(String),
    /// An option that a node keeps from its opening to its end.
    #[error("Cannot change the option '{0}'")]
    FixedOption(String),
    /// The request was parked, or its loop was, when its disk went away.
    #[error("the request was cancelled: {0}")]
    Cancelled(#[from] sluice_aio::Cancelled),
    /// A file can't be opened.
    #[error("Could not open '{path}': {}{hint}", io_text(.source))]
    Open {
        /// The file.
        path: String,
        /// The kernel's word.
        source: io::Error,
        /// What would help, with its separator; may be empty.
        hint: &'static str,
    },
    /// A file exists, but can't serve as a disk.
    #[error("Could not open '{path}': {reason}")]
    Unsuitable {
        /// The file.
        path: String,
        /// What is wrong with it and what would help.
        reason: String,
    },
    /// A file is to be emptied that another node has.
    #[error("Could not open '{path}': it is the file of another block node; choose another target")]
    FileInUse {
        /// The file, as it was named.
        path: String,
        /// Which one it is.
        identity: FileIdentity,
    },
    /// A job is to copy to a file that another has by another node.
    #[error(
        "Could not use '{path}' for {user}: it is the file of another block node, which is in use by block job: {job}"
    )]
    FileOfJob {
        /// The file, as it was named.
        path: String,
        /// Who is refused, by its type and id.
        user: String,
        /// Who has it, by its type and id.
        job: Arc<str>,
        /// How far that is.
        with: BusyFor,
    },
    /// A filename begins with a protocol that there is not.
    #[error(
        "Unknown protocol '{protocol}'; write './{name}' if it is a file, or else make a node by 'blockdev-add' and \
         use the command that takes nodes, as 'blockdev-mirror' does"
    )]
    UnknownProtocol {
        /// What stands before the colon.
        protocol: String,
        /// All of it.
        name: String,
    },
    /// A node name is not well-formed.
    #[error("Invalid node-name: '{0}'")]
    InvalidNodeName(String),
    /// A node name is well-formed, but too long.
    #[error("Node name too long")]
    NodeNameTooLong,
    /// A node name is taken.
    #[error("Duplicate nodes with node-name='{0}'")]
    DuplicateNode(String),
    /// A top-level node without a name.
    #[error("'node-name' must be specified for the root node")]
    NodeNameMissing,
    /// No such node.
    #[error("Failed to find node with node-name='{0}'")]
    NodeNotFound(String),
    /// No such disk, neither by device nor by node.
    #[error("Cannot find device='{0}' nor node-name='{0}'")]
    DeviceNotFound(String),
    /// No such node to become a child of one that is reopened, which can't be named by its disk.
    #[error("Cannot find device='' nor node-name='{0}'")]
    ChildNotFound(String),
    /// A disk's drive is empty.
    #[error("Device '{0}' has no medium")]
    NoMedium(String),
    /// A backend's name is taken.
    #[error("Device with id '{0}' already exists")]
    DuplicateBackend(String),
    /// A backend can't have the name of a node, or commands could not tell them apart.
    #[error("Device name '{0}' conflicts with an existing node name")]
    NameOfNode(String),
    /// The node has users.
    #[error("Block device {0} is in use")]
    InUse(String),
    /// A disk stands on the node.
    #[error("Node {0} is in use")]
    HasDisk(String),
    /// The node was not created by the monitor.
    #[error("Node {0} is not owned by the monitor")]
    NotOwned(String),
    /// A disk stands on a node that is to be copied to.
    #[error(
        "Block device {node} is in use by the disk '{disk}'; {copy} to a node that no disk uses"
    )]
    UsedByDisk {
        /// The node.
        node: String,
        /// The disk.
        disk: String,
        /// What is to be done, a verb.
        copy: &'static str,
    },
    /// A node can't be put above another one.
    #[error("{why}")]
    Overlay {
        /// The upper one.
        node: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A job holds the node.
    #[error("Node '{node}' is busy: block device is in use by block job: {job}")]
    Busy {
        /// The node.
        node: String,
        /// The job's type and id.
        job: Arc<str>,
        /// How far it is.
        with: BusyFor,
    },
    /// A job has the name, or is going to have it.
    #[error("Job ID '{id}' already in use")]
    JobIdInUse {
        /// The name.
        id: String,
        /// That job has ended, and waits to be dismissed.
        has_ended: bool,
    },
    /// An action of a transaction can't have what another one of it has, which is undone with it.
    #[error("{0}")]
    OfTransaction(Box<BlockError>, Contested),
    /// One user of a node does what another does not allow.
    #[error(transparent)]
    Conflict(#[from] Box<PermissionConflict>),
    /// A dirty bitmap can't be used, or not like this.
    #[error(transparent)]
    Bitmap(#[from] crate::dirty::NamedBitmapError),
    /// The edge would close a circle.
    #[error("Making '{child}' a child of '{parent}' would create a cycle")]
    Cycle {
        /// The lower node.
        child: String,
        /// The upper node.
        parent: String,
    },
    /// Anything else that an operator asked for and can't have.
    #[error("{0}")]
    Refused(String),
}

/// What two actions of a transaction can't both have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contested {
    /// Something of which there may be another: a target, a name.
    Own,
    /// The disk that the action is about.
    Disk,
    /// Room for bitmaps of a node.
    Room,
}

impl Contested {
    fn way_out(self) -> &'static str {
        match self {
            Self::Own => {
                "another action of the same transaction has it, which was undone: give each its own, or begin one when the other has ended"
            }
            Self::Room => {
                "other actions of the same transaction have some of that room, which were undone, also those that remove bitmaps: add fewer, or remove bitmaps by a command before"
            }
            Self::Disk => {
                "another action of the same transaction has it, which was undone: a disk has one job at a time, so begin one when the other has ended; a second copy of the same instant can be made of the first one's target then"
            }
        }
    }
}

/// How far the job is that keeps others from a node, and so what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusyFor {
    /// It is not there yet.
    BeginningJob,
    /// It can be made to end.
    Job(WaysToEnd),
    /// It is at its end already.
    EndingJob,
}

impl BusyFor {
    fn way_out(self) -> &'static str {
        match self {
            Self::BeginningJob => {
                "the job is only beginning, and can't be cancelled yet: wait until its command is answered; \
                 'x-query-block-drains' shows what it waits for"
            }
            Self::Job(ways) => match (ways.complete, ways.finalize) {
                (false, false) => "wait for the job's end, or end it by 'job-cancel'",
                (false, true) => {
                    "wait for the job's end, or end it: by 'job-finalize' when it is pending, or by 'job-cancel'"
                }
                (true, false) => {
                    "wait for the job's end, or end it: by 'job-complete' when it is ready, or by 'job-cancel'"
                }
                (true, true) => {
                    "wait for the job's end, or end it: by 'job-complete' when it is ready, 'job-finalize' when it is pending, or by 'job-cancel'"
                }
            },
            Self::EndingJob => "the job is ending already: wait until it is gone",
        }
    }
}

/// Two users of a node who can't have it together.
#[derive(Debug, thiserror::Error)]
#[error(
    "Permission conflict on node '{node}': permissions '{permissions}' are both required by {user} \
     (uses node '{node}' as '{role}' child) and unshared by {keeper} (uses node '{node}' as \
     '{keeper_role}' child).{hint}"
)]
pub struct PermissionConflict {
    /// The node.
    pub node: String,
    /// What one does and the other does not share.
    pub permissions: String,
    /// Who does it.
    pub user: String,
    /// What the node is to it.
    pub role: &'static str,
    /// Who does not share it.
    pub keeper: String,
    /// What the node is to that one.
    pub keeper_role: &'static str,
    /// What would help, with its separator; may be empty.
    pub hint: &'static str,
}

impl BlockError {
    /// What was written could not be made durable, so what was asked for is refused: with the C library's
    /// text, as QMP clients know it.
    pub(crate) fn flushing(error: &Self) -> Self {
        let errno = rustix::io::Errno::from_raw_os_error(error.errno());
        Self::Refused(format!("Error flushing drive: {}", errno_text(errno)))
    }

    /// Whether the driver can't do such a request at all, so that another way is to be tried.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Io(source) if source.raw_os_error() == Some(libc::EOPNOTSUPP))
    }

    /// The same of the disk or node that the operator has named: the root of a disk may be a job's filter, whose name
    /// nobody gave. From any thread.
    #[must_use]
    pub fn naming(self, name: &str) -> Self {
        match self {
            Self::Busy { job, with, .. } => Self::Busy {
                node: name.to_owned(),
                job,
                with,
            },
            other => other,
        }
    }

    /// The same of a node that is not there, and called `user` in it: the `job` wanted it.
    pub(crate) fn naming_user(self, user: &str, job: &str) -> Self {
        match self {
            Self::Conflict(mut conflict) => {
                for name in [&mut conflict.user, &mut conflict.keeper] {
                    if name == user {
                        *name = format!("block job {job}");
                        conflict.hint = " Give the job a node that nobody else uses in that way.";
                    }
                }
                Self::Conflict(conflict)
            }
            other => other,
        }
    }

    /// What can be done about it, for people; none where the text says it itself. From any thread.
    #[must_use]
    pub fn way_out(&self) -> Option<&'static str> {
        match self {
            Self::Busy { job, .. } | Self::FileOfJob { job, .. } if job.ends_with(NOT_RETURNED) => {
                Some("it is free when they have")
            }
            Self::Busy { with, .. } | Self::FileOfJob { with, .. } => Some(with.way_out()),
            Self::JobIdInUse { has_ended, .. } => Some(match has_ended {
                true => {
                    "the job of that name has ended: let it go by 'job-dismiss', or choose another 'job-id'"
                }
                false => "choose another 'job-id', or wait until the job of that name is gone",
            }),
            Self::OfTransaction(_, contested) => Some(contested.way_out()),
            _ => None,
        }
    }

    /// The errno that a guest or an error policy would see.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io(source) | Self::Open { source, .. } => {
                source.raw_os_error().unwrap_or(libc::EIO)
            }
            Self::OutOfRange { .. } => libc::EINVAL,
            Self::ReadOnly(_) => libc::EROFS,
            Self::NoMedium(_) => libc::ENOMEDIUM,
            Self::OfTransaction(error, _) => error.errno(),
            Self::Cancelled(_) => libc::ECANCELED,
            Self::Busy { .. } | Self::InUse(_) | Self::HasDisk(_) | Self::Conflict(_) => {
                libc::EBUSY
            }
            Self::NodeNotFound(_) | Self::DeviceNotFound(_) | Self::ChildNotFound(_) => {
                libc::ENOENT
            }
            _ => libc::EINVAL,
        }
    }
}

impl From<CreateError> for BlockError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::IdInUse { id, has_ended } => Self::JobIdInUse { id, has_ended },
            other => Self::Refused(other.to_string()),
        }
    }
}

/// The text without the number that the standard library puts behind it.
fn io_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => errno_text(rustix::io::Errno::from_raw_os_error(errno)),
        None => error.to_string(),
    }
}

/// The C library's text for `errno`, which is what QMP clients know. From any thread.
#[must_use]
pub fn errno_text(errno: rustix::io::Errno) -> String {
    let text = io::Error::from(errno).to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}
