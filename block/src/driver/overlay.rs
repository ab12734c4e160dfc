//! `x-overlay`: a format with a backing image, in memory, that tests stack up. Clusters are written
//! as a whole; the node above sees to parts of them. No release has it.

use std::collections::BTreeMap;
#[cfg(test)]
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use sluice_aio::IoBuffer;

use super::{Allocation, BackingEdge, BlockFuture, BlockStatus, Driver, Limits, RequestFlags};
#[cfg(test)]
use crate::error::Result;
#[cfg(test)]
use crate::graph::Graph;
#[cfg(test)]
use crate::node::{Node, Owner};

/// Bytes of a cluster, by which requests are aligned.
const ALIGNMENT: u32 = 4096;
/// The same.
pub(crate) const CLUSTER: usize = ALIGNMENT as usize;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Overlay {
    size: AtomicU64,
    /// What this layer holds, by the cluster's number; `None` for zeroes.
    clusters: Mutex<BTreeMap<u64, Option<Vec<u8>>>>,
    backing: BackingEdge,
}

impl Overlay {
    /// A layer of `size` bytes that holds nothing, over nothing.
    pub(crate) fn empty(size: u64) -> Self {
        Self {
            size: AtomicU64::new(size),
            clusters: Mutex::default(),
            backing: BackingEdge::default(),
        }
    }
}

fn clusters(offset: u64, len: u64) -> std::ops::Range<u64> {
    let cluster = CLUSTER as u64;
    offset / cluster..(offset + len).div_ceil(cluster)
}

impl Driver for Overlay {
    fn format_name(&self) -> &'static str {
        "x-overlay"
    }

    fn backing(&self) -> Option<&BackingEdge> {
        Some(&self.backing)
    }

    fn cluster_size(&self) -> u64 {
        CLUSTER as u64
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: ALIGNMENT,
            ..Limits::default()
        }
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            for (index, number) in clusters(offset, buffer.len() as u64).enumerate() {
                let part = buffer.slice(index * CLUSTER, CLUSTER);
                let held = self.clusters.lock().get(&number).cloned();
                part.fill(0, part.len(), 0);
                match (held, self.backing.node()) {
                    (Some(Some(bytes)), _) => {
                        part.copy_from_slice(0, &bytes[..part.len()]);
                    }
                    (None, Some(below)) => {
                        let start = number * CLUSTER as u64;
                        let rest = below.len().saturating_sub(start);
                        let rest = usize::try_from(rest).unwrap_or(CLUSTER).min(CLUSTER);
                        let part = part.slice(0, rest);
                        if !part.is_empty() {
                            below.read(start, part).await?;
                        }
                    }
                    _ => {}
                }
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, buffer: IoBuffer, _flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let mut held = self.clusters.lock();
            for (index, number) in clusters(offset, buffer.len() as u64).enumerate() {
                let mut bytes = buffer.slice(index * CLUSTER, CLUSTER).to_vec();
                bytes.resize(CLUSTER, 0);
                held.insert(number, Some(bytes));
            }
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let zeroes = clusters(offset, len).map(|number| (number, None));
            self.clusters.lock().extend(zeroes);
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        self.write_zeroes(offset, len, RequestFlags::empty())
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        BlockFuture::new(async { Ok(()) })
    }

    fn truncate(&self, size: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.size.store(size, Ordering::Relaxed);
            // What is cut off is gone: should the image grow again, there are zeroes.
            let kept = size.div_ceil(CLUSTER as u64);
            self.clusters.lock().retain(|number, _| *number < kept);
            Ok(())
        })
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        let held = self.clusters.lock();
        let kind = |number| match held.get(&number) {
            Some(Some(_)) => Allocation::Data,
            None if self.backing.node().is_some() => Allocation::Below,
            _ => Allocation::Zero,
        };
        let mut numbers = clusters(offset, len);
        let allocation = kind(numbers.start);
        let other = numbers.find(|number| kind(*number) != allocation);
        let end = other.map_or(offset + len, |number| number * CLUSTER as u64);
        let len = end.min(offset + len) - offset;
        BlockFuture::new(async move { Ok(BlockStatus { allocation, len }) })
    }
}

#[cfg(test)]
impl Graph {
    /// Adds an empty overlay of `size` bytes over `backing`.
    pub(crate) fn add_overlay(
        &self,
        name: &str,
        size: usize,
        backing: Option<&Arc<Node>>,
    ) -> Result<Arc<Node>> {
        let overlay = Overlay::empty(size as u64);
        overlay.backing.set(backing.cloned());
        let node = Node::new(name.to_owned(), Box::new(overlay), false, Owner::Monitor);
        let mut change = self.transaction();
        change.add_node(&node);
        change.commit()?;
        Ok(node)
    }
}
