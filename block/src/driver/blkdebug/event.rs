//! [`DebugEvent`]: what a breakpoint or a rule can be set on.
//!
//! The names are QEMU's (`BlkdebugEvent`, qapi/block-core.json), all of them, so that every
//! configuration is understood. Those of formats that Sluice does not have never happen.

use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};
use serde::{Deserialize, Serialize};

/// One event; the names are those of `BlkdebugEvent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DebugEvent {
    /// A qcow2 L1 table is changed.
    L1Update,
    /// A larger L1 table is allocated.
    L1GrowAllocTable,
    /// The larger L1 table is written.
    L1GrowWriteTable,
    /// The larger L1 table is put in place.
    L1GrowActivateTable,
    /// An L2 table is read.
    L2Load,
    /// An L2 table is changed.
    L2Update,
    /// An L2 entry of a compressed cluster is changed.
    L2UpdateCompressed,
    /// An L2 table is read in order to copy it.
    L2AllocCowRead,
    /// A copied L2 table is written.
    L2AllocWrite,
    /// A read reaches the node.
    ReadAio,
    /// A read goes to the backing file.
    ReadBackingAio,
    /// A compressed cluster is read.
    ReadCompressed,
    /// A write reaches the node.
    WriteAio,
    /// A compressed cluster is written.
    WriteCompressed,
    /// A VM's state is read.
    VmstateLoad,
    /// A VM's state is written.
    VmstateSave,
    /// Old data is read in order to copy it.
    CowRead,
    /// Copied old data is written.
    CowWrite,
    /// A refcount table is read.
    ReftableLoad,
    /// A refcount table becomes larger.
    ReftableGrow,
    /// A refcount table is changed.
    ReftableUpdate,
    /// A refcount block is read.
    RefblockLoad,
    /// A refcount block is changed.
    RefblockUpdate,
    /// A part of a refcount block is changed.
    RefblockUpdatePart,
    /// A refcount block is allocated.
    RefblockAlloc,
    /// A new refcount block is entered in its table.
    RefblockAllocHookup,
    /// A new refcount block is written.
    RefblockAllocWrite,
    /// Several new refcount blocks are written.
    RefblockAllocWriteBlocks,
    /// A new refcount table is written.
    RefblockAllocWriteTable,
    /// A new refcount table is put in place.
    RefblockAllocSwitchTable,
    /// A cluster is allocated.
    ClusterAlloc,
    /// A part of a cluster is allocated.
    ClusterAllocBytes,
    /// A cluster is freed.
    ClusterFree,
    /// A flush reaches the node, before it goes to the host.
    FlushToOs,
    /// A flush is about to go to the medium.
    FlushToDisk,
    /// The block around an unaligned write's beginning is about to be read.
    PwritevRmwHead,
    /// It was read.
    PwritevRmwAfterHead,
    /// The block around an unaligned write's end is about to be read.
    PwritevRmwTail,
    /// It was read.
    PwritevRmwAfterTail,
    /// Data is about to be written.
    Pwritev,
    /// Zeroes are about to be written.
    PwritevZero,
    /// A write, of data or of zeroes, has ended.
    PwritevDone,
    /// An image is about to be emptied.
    EmptyImagePrepare,
    /// A smaller L1 table is written.
    L1ShrinkWriteTable,
    /// L2 tables beyond a smaller L1 table are freed.
    L1ShrinkFreeL2Clusters,
    /// Data that was read is about to be copied up.
    CorWrite,
    /// Space for a cluster is allocated.
    ClusterAllocSpace,
    /// The node is opened.
    None,
    /// A discard reaches the node. Sluice's own event.
    Pdiscard,
    /// The node is asked what is allocated. Sluice's own event.
    BlockStatus,
    /// A query asks how much the medium takes. Sluice's own event.
    ActualSize,
    /// A mirror onto this node has found its bitmap clean inside the last section. Sluice's own event.
    PivotClean,
    /// Every mirror of the group has come so far, and this one is about to swap the root: it can't be cancelled any more.
    /// Sluice's own.
    PivotAgreed,
    /// A mirror onto this node has swapped the root and is about to end the section. Sluice's own.
    PivotSwapped,
}

impl DebugEvent {
    /// The event of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name: StrDeserializer<'_, Error> = name.into_deserializer();
        Self::deserialize(name).ok()
    }
}

/// Kinds of requests that an error can be injected in (QEMU's `BlkdebugIOType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoType {
    /// Reads.
    Read,
    /// Writes of data.
    Write,
    /// Writes of zeroes.
    WriteZeroes,
    /// Discards.
    Discard,
    /// Flushes.
    Flush,
    /// Questions for what is allocated; rules that name no type leave them alone.
    BlockStatus,
}

impl IoType {
    /// The type of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name: StrDeserializer<'_, Error> = name.into_deserializer();
        Self::deserialize(name).ok()
    }
}
