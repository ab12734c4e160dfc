//! Options of block nodes, as `blockdev-add` and `--blockdev` take them.
//!
//! The names are those of QEMU's `BlockdevOptions` (qapi/block-core.json) for what is implemented;
//! anything else is refused by its name. Values are typed: text from a command line is converted
//! before it comes here.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_aio::EngineKind;

use crate::driver::Role;
use crate::driver::blkdebug::{Delay, InjectError, SetState};
use crate::driver::file::FileKind;
use crate::io::DetectZeroes;
use crate::unsigned;

/// One node with everything below it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub enum BlockdevOptions {
    /// A regular file.
    File(FileNode),
    /// A block device.
    #[serde(rename = "host_device")]
    HostDevice(FileNode),
    /// A format without a header.
    Raw(RawNode),
    /// No storage.
    NullCo(NullNode),
    /// No storage, and requests that never end where they begin.
    NullAio(NullNode),
    /// Breakpoints and errors for tests.
    Blkdebug(Box<BlkdebugNode>),
    /// Limits of rates.
    Throttle(ThrottleNode),
    /// Old data saved before it is overwritten.
    CopyBeforeWrite(CopyBeforeWriteNode),
    /// What is read from a backing image is copied up.
    CopyOnRead(CopyOnReadNode),
    /// A layer in memory. No release has it.
    #[cfg(any(test, feature = "test-hooks"))]
    XOverlay(OverlayNode),
}

/// Whether a command that takes a path (`drive-mirror`, `drive-backup`, `blockdev-snapshot-sync`) makes the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NewImageMode {
    /// It exists already.
    Existing,
    /// It is created, or emptied if it exists.
    #[default]
    AbsolutePaths,
}

/// What to do with discards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// Ignore them, and keep zeroes allocated.
    #[default]
    Ignore,
    /// Pass them on.
    Unmap,
}

/// Whether a file is locked against other programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Locking {
    /// As the file system can.
    #[default]
    Auto,
    /// A file system that can't is an error.
    On,
    /// Others do as they like.
    Off,
}

/// Which engine serves a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AioOption {
    /// Worker threads.
    Threads,
    /// The kernel's ring; the default, unlike QEMU's.
    #[default]
    IoUring,
}

impl From<AioOption> for EngineKind {
    fn from(option: AioOption) -> Self {
        match option {
            AioOption::Threads => Self::Threads,
            AioOption::IoUring => Self::IoUring,
        }
    }
}

/// Cache mode of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CacheOptions {
    /// Bypass the page cache.
    pub direct: Option<bool>,
    /// Ignore flushes.
    pub no_flush: Option<bool>,
}

/// A child: an existing node by name, or a new one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum ChildRef {
    /// The name of a node.
    Name(String),
    /// Options of a node to make.
    Options(Box<BlockdevOptions>),
}

/// What can be done with a node (QEMU's `BlockPermission`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BlockPermission {
    /// Reading, and seeing what was written last.
    ConsistentRead,
    /// Changing the contents.
    Write,
    /// Writing what can be read there already.
    WriteUnchanged,
    /// Changing the size.
    Resize,
}

/// Declares a driver's options: the common ones and its own.
macro_rules! node_options {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $name {
            /// The node's name.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub node_name: Option<String>,
            /// Refuse writes; inherited from the parent if not given.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub read_only: Option<bool>,
            /// If write access is refused by the medium, go on without it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub auto_read_only: Option<bool>,
            /// Others may do with the node and its image what they like; inherited from the parent if not
            /// given. Only for nodes that are read-only.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub force_share: Option<bool>,
            /// What to do with discards; inherited from the parent if not given.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub discard: Option<Discard>,
            /// What to do with writes of nothing but zeroes.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub detect_zeroes: Option<DetectZeroes>,
            /// Cache mode; inherited from the parent if not given.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub cache: Option<CacheOptions>,
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $name {
            fn common(&self) -> Common<'_> {
                Common {
                    node_name: self.node_name.as_deref(),
                    read_only: self.read_only,
                    auto_read_only: self.auto_read_only,
                    force_share: self.force_share,
                    discard: self.discard,
                    detect_zeroes: self.detect_zeroes,
                    cache: self.cache,
                }
            }
        }
    };
}

node_options! {
    /// Options of `file` and `host_device`.
    FileNode {
        /// The file.
        filename: PathBuf,
        /// The engine.
        #[serde(default)]
        aio: AioOption,
        /// Whether other programs are kept from conflicting use.
        #[serde(default)]
        locking: Locking,
    }
}

node_options! {
    /// Options of `raw`.
    RawNode {
        /// What holds the bytes.
        file: ChildRef,
        /// First byte of the window.
        #[serde(default)]
        offset: u64,
        /// Bytes of the window; all the rest if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    }
}

node_options! {
    /// Options of `null-co` and `null-aio`.
    NullNode {
        /// Bytes.
        #[serde(default = "default_null_size")]
        size: u64,
        /// Time that each request takes, in nanoseconds.
        #[serde(default, deserialize_with = "unsigned::uint64")]
        latency_ns: u64,
        /// Whether reads give zeroes, or leave the reader's memory alone.
        #[serde(default)]
        read_zeroes: bool,
    }
}

node_options! {
    /// Options of `blkdebug`.
    BlkdebugNode {
        /// The node to stand in front of.
        image: ChildRef,
        /// A file with rules.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        config: Option<PathBuf>,
        /// Alignment that requests need, in bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        align: Option<u64>,
        /// The most bytes of one read or write.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_transfer: Option<u32>,
        /// Alignment that writes of zeroes should have.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opt_write_zero: Option<u32>,
        /// The most bytes of one write of zeroes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_write_zero: Option<u32>,
        /// Alignment that discards should have.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opt_discard: Option<u32>,
        /// The most bytes of one discard.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_discard: Option<u32>,
        /// Errors to inject.
        #[serde(default)]
        inject_error: Vec<InjectError>,
        /// Changes of the rules' state.
        #[serde(default)]
        set_state: Vec<SetState>,
        /// Delays to add.
        #[serde(default)]
        x_delay: Vec<Delay>,
        /// Permissions to use on the image whether or not the parents do.
        #[serde(default)]
        take_child_perms: Vec<BlockPermission>,
        /// Permissions on the image that others do not get.
        #[serde(default)]
        unshare_child_perms: Vec<BlockPermission>,
    }
}

node_options! {
    /// Options of `throttle`.
    ThrottleNode {
        /// The group whose limits hold.
        throttle_group: String,
        /// What is limited.
        file: ChildRef,
    }
}

/// What a failed copy before a write means (QEMU's `OnCbwError`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCbwError {
    /// The guest's write fails.
    #[default]
    BreakGuestWrite,
    /// The old data is given up.
    BreakSnapshot,
}

node_options! {
    /// Options of `copy-before-write`.
    CopyBeforeWriteNode {
        /// The disk.
        file: ChildRef,
        /// Where its old data goes.
        target: ChildRef,
        /// Who suffers if the copy fails.
        #[serde(default)]
        on_cbw_error: OnCbwError,
        /// Seconds after which a copy has failed; 0 is never.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "unsigned::uint32")]
        cbw_timeout: Option<u32>,
        /// What is to be saved; everything if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bitmap: Option<BitmapRef>,
        /// The least bytes that are copied together; a power of two.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "unsigned::uint64")]
        min_cluster_size: Option<u64>,
    }
}

/// A dirty bitmap by name (QEMU's `BlockDirtyBitmap`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BitmapRef {
    /// The node that has it.
    pub node: String,
    /// Its name.
    pub name: String,
}

node_options! {
    /// Options of `copy-on-read`.
    CopyOnReadNode {
        /// What is read, and copied to.
        file: ChildRef,
        /// The lowest image whose data is copied; all data is if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bottom: Option<String>,
    }
}

#[cfg(any(test, feature = "test-hooks"))]
node_options! {
    /// Options of `x-overlay`, an empty layer whose contents are lost with it. `blockdev-snapshot` gives it a
    /// backing image.
    OverlayNode {
        /// Bytes.
        size: u64,
    }
}

/// QEMU's default size of a null disk: 1 GiB.
fn default_null_size() -> u64 {
    1 << 30
}

/// Options that every driver has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Common<'a> {
    pub(crate) node_name: Option<&'a str>,
    pub(crate) read_only: Option<bool>,
    pub(crate) auto_read_only: Option<bool>,
    pub(crate) force_share: Option<bool>,
    pub(crate) discard: Option<Discard>,
    pub(crate) detect_zeroes: Option<DetectZeroes>,
    pub(crate) cache: Option<CacheOptions>,
}

impl BlockdevOptions {
    pub(crate) fn common(&self) -> Common<'_> {
        match self {
            Self::File(node) | Self::HostDevice(node) => node.common(),
            Self::Raw(node) => node.common(),
            Self::NullCo(node) | Self::NullAio(node) => node.common(),
            Self::Blkdebug(node) => node.common(),
            Self::Throttle(node) => node.common(),
            Self::CopyBeforeWrite(node) => node.common(),
            Self::CopyOnRead(node) => node.common(),
            #[cfg(any(test, feature = "test-hooks"))]
            Self::XOverlay(node) => node.common(),
        }
    }

    /// The child that all requests go to, with its role.
    pub(crate) fn child(&self) -> Option<(Role, &ChildRef)> {
        match self {
            Self::File(_) | Self::HostDevice(_) | Self::NullCo(_) | Self::NullAio(_) => None,
            Self::Raw(node) => Some((Role::File, &node.file)),
            Self::Throttle(node) => Some((Role::File, &node.file)),
            Self::CopyBeforeWrite(node) => Some((Role::File, &node.file)),
            Self::CopyOnRead(node) => Some((Role::File, &node.file)),
            Self::Blkdebug(node) => Some((Role::Filtered, &node.image)),
            #[cfg(any(test, feature = "test-hooks"))]
            Self::XOverlay(_) => None,
        }
    }

    /// The node's name, if one is given.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        self.common().node_name
    }

    /// A plain `raw` node over a node of the file's kind, the way `drive-mirror` makes them.
    #[must_use]
    pub fn raw_file(node_name: Option<String>, filename: PathBuf, kind: FileKind) -> Self {
        let file = FileNode {
            node_name: None,
            read_only: None,
            auto_read_only: None,
            force_share: None,
            discard: None,
            detect_zeroes: None,
            cache: None,
            filename,
            aio: AioOption::default(),
            locking: Locking::default(),
        };
        Self::Raw(RawNode {
            node_name,
            read_only: None,
            auto_read_only: None,
            force_share: None,
            discard: None,
            detect_zeroes: None,
            cache: None,
            file: ChildRef::Options(Box::new(match kind {
                FileKind::Regular => Self::File(file),
                FileKind::Device => Self::HostDevice(file),
            })),
            offset: 0,
            size: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<BlockdevOptions, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn nested_options_and_references_are_told_apart() {
        let nested = r#"{"driver":"raw","node-name":"a",
            "file":{"driver":"file","filename":"x","cache":{"direct":true}}}"#;
        let BlockdevOptions::Raw(raw) = parse(nested).unwrap() else {
            panic!("not raw")
        };
        assert!(matches!(raw.file, ChildRef::Options(_)));
        let named = r#"{"driver":"raw","file":"b"}"#;
        let BlockdevOptions::Raw(raw) = parse(named).unwrap() else {
            panic!("not raw")
        };
        assert_eq!(raw.file, ChildRef::Name("b".to_owned()));
    }

    #[test]
    fn unknown_members_are_named() {
        let error = parse(r#"{"driver":"null-co","sise":1}"#).unwrap_err();
        assert!(error.to_string().contains("sise"), "{error}");
        let error = parse(r#"{"driver":"qcow9"}"#).unwrap_err();
        assert!(error.to_string().contains("qcow9"), "{error}");
    }
}
