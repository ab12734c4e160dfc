//! The commands on named dirty bitmaps. Each is *prepared*, which does it, and can be undone until it is
//! final: a [transaction](crate::transaction) prepares several. The checks, their order and their
//! texts are those of QEMU's commands.

use std::fmt;
use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Graph;
use crate::dirty::{
    BitmapInfo, DirtyBitmap, Granularity, NamedBitmap, NamedBitmapError, NewBitmap,
};
use crate::error::{BlockError, Result};
use crate::node::Node;
use crate::options::BitmapRef;
use crate::unsigned;

/// The least granularity in bytes that is chosen by itself.
const LEAST_DEFAULT: u64 = 4 << 10;
/// The largest, and that of a node without clusters.
const DEFAULT_GRANULARITY: u64 = 64 << 10;

/// Arguments of `block-dirty-bitmap-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitmapAdd {
    /// The node, or a disk.
    pub node: String,
    /// The bitmap's name, unique on its node.
    pub name: String,
    /// Bytes that one bit stands for; by the node's clusters if not given.
    #[serde(default, deserialize_with = "unsigned::uint32")]
    pub granularity: Option<u32>,
    /// Keep it in the image; no driver can.
    #[serde(default)]
    pub persistent: bool,
    /// Record nothing at first.
    #[serde(default)]
    pub disabled: bool,
}

/// Arguments of `block-dirty-bitmap-merge`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitmapMerge {
    /// The node of the bitmap that is merged into.
    pub node: String,
    /// The bitmap that is merged into.
    pub target: String,
    /// What is merged.
    pub bitmaps: Vec<BitmapSource>,
}

/// A bitmap to be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapSource {
    /// One of the same node.
    Local(String),
    /// One of any node.
    External(BitmapRef),
}

/// Not derived: that tries one after the other, and what is wrong with the members of a reference is lost.
impl<'de> Deserialize<'de> for BitmapSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = BitmapSource;

            /// QEMU's name of the type, which its errors tell.
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("BlockDirtyBitmapOrStr")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> std::result::Result<BitmapSource, E> {
                Ok(BitmapSource::Local(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                members: A,
            ) -> std::result::Result<BitmapSource, A::Error> {
                let members = MapAccessDeserializer::new(members);
                BitmapRef::deserialize(members).map(BitmapSource::External)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// A command on bitmaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapAction {
    /// A new one, clean.
    Add(BitmapAdd),
    /// It goes.
    Remove(BitmapRef),
    /// Nothing is dirty any more.
    Clear(BitmapRef),
    /// Writes are recorded from now on.
    Enable(BitmapRef),
    /// No writes are recorded any more.
    Disable(BitmapRef),
    /// What any of several has marked is marked in another.
    Merge(BitmapMerge),
}

impl BitmapAction {
    /// The node that has the bitmap that is changed, or a disk.
    #[must_use]
    pub fn node(&self) -> &str {
        match self {
            Self::Add(add) => &add.node,
            Self::Merge(merge) => &merge.node,
            Self::Remove(bitmap)
            | Self::Clear(bitmap)
            | Self::Enable(bitmap)
            | Self::Disable(bitmap) => &bitmap.node,
        }
    }
}

/// What was done, with what is needed to undo it.
#[derive(Debug)]
#[must_use = "it is to be made final or undone"]
pub(crate) struct BitmapChange {
    node: Arc<Node>,
    bitmap: Arc<NamedBitmap>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Added,
    /// It goes when the change is final.
    Leaving,
    /// The marks of before.
    Marks(Arc<DirtyBitmap>),
    /// Whether it was recording.
    Recording(bool),
}

impl BitmapChange {
    pub(crate) fn commit(self) {
        if let Kind::Leaving = self.kind {
            self.node.io.bitmaps.remove(&self.bitmap);
            self.bitmap.release();
        }
    }

    /// Whether it is what `error` complains of, which is about one of `bitmaps`.
    pub(crate) fn explains(&self, error: &BlockError, bitmaps: &[Arc<NamedBitmap>]) -> bool {
        let is_cause = match error {
            // Nobody else gets it until the change is final.
            BlockError::Bitmap(NamedBitmapError::Busy(_)) => matches!(self.kind, Kind::Leaving),
            BlockError::Bitmap(NamedBitmapError::Exists(_)) => matches!(self.kind, Kind::Added),
            // One that leaves has its room until the change is final.
            BlockError::Bitmap(error) if error.is_no_room() => {
                matches!(self.kind, Kind::Added | Kind::Leaving)
            }
            _ => false,
        };
        is_cause
            && bitmaps
                .iter()
                .any(|bitmap| Arc::ptr_eq(bitmap, &self.bitmap))
    }

    /// As if it had never been. Inside a section of the node, which has been open since the change was
    /// prepared: what was recorded since is lost with it.
    pub(crate) fn undo(self) {
        match self.kind {
            Kind::Added => self.node.io.bitmaps.remove(&self.bitmap),
            Kind::Leaving => self.bitmap.release(),
            Kind::Marks(before) => self.bitmap.replace(before),
            Kind::Recording(before) => self.bitmap.bits().set_recording(before),
        }
    }
}

impl Graph {
    /// The bitmap called `name` on a node, or on a disk, if there is one.
    pub(crate) fn bitmap_of(&self, node: &str, name: &str) -> Option<Arc<NamedBitmap>> {
        let node = below_implicit_filters(self.device_or_node(node).ok()?);
        node.io.bitmaps.get(name)
    }

    /// All bitmaps on a node, or on a disk.
    pub(crate) fn bitmaps_of(&self, node: &str) -> Vec<Arc<NamedBitmap>> {
        let node = self.device_or_node(node).map(below_implicit_filters);
        node.map_or_else(|_| Vec::new(), |node| node.io.bitmaps.all().to_vec())
    }

    /// Does one command.
    ///
    /// # Errors
    /// What QEMU refuses; then nothing has changed.
    pub fn change_bitmap(&self, action: &BitmapAction) -> Result<()> {
        self.prepare_bitmap(action)?.commit();
        Ok(())
    }

    /// Does one command so that it can be undone.
    ///
    /// # Errors
    /// As [`Graph::change_bitmap`].
    pub(crate) fn prepare_bitmap(&self, action: &BitmapAction) -> Result<BitmapChange> {
        match action {
            BitmapAction::Add(add) => self.add_bitmap(add),
            BitmapAction::Remove(bitmap) => {
                let (node, bitmap) = self.find_bitmap(bitmap)?;
                bitmap.check_idle()?;
                bitmap.occupy();
                let kind = Kind::Leaving;
                Ok(BitmapChange { node, bitmap, kind })
            }
            BitmapAction::Clear(bitmap) => {
                let (node, bitmap) = self.find_usable(bitmap)?;
                let (bits, before) = with_copy(&bitmap)?;
                bits.clear_all();
                let kind = Kind::Marks(before);
                Ok(BitmapChange { node, bitmap, kind })
            }
            BitmapAction::Enable(bitmap) => self.set_recording(bitmap, true),
            BitmapAction::Disable(bitmap) => self.set_recording(bitmap, false),
            BitmapAction::Merge(merge) => self.merge_bitmaps(merge),
        }
    }

    fn add_bitmap(&self, add: &BitmapAdd) -> Result<BitmapChange> {
        let node = below_implicit_filters(self.device_or_node(&add.node)?);
        if add.name.is_empty() {
            return Err(NamedBitmapError::NameEmpty.into());
        }
        let granularity = match add.granularity {
            Some(bytes) => bytes.into(),
            None => match node.driver().cluster_size() {
                0 | 1 => DEFAULT_GRANULARITY,
                cluster => cluster.clamp(LEAST_DEFAULT, DEFAULT_GRANULARITY),
            },
        };
        let granularity = Granularity::of_named(granularity).map_err(NamedBitmapError::from)?;
        if add.persistent {
            return Err(NamedBitmapError::NotStored(node.name().to_owned()).into());
        }
        let new = NewBitmap {
            node: &add.node,
            name: &add.name,
            granularity,
            disabled: add.disabled,
        };
        let bitmap = node.io.bitmaps.add(node.len(), &new)?;
        let kind = Kind::Added;
        Ok(BitmapChange { node, bitmap, kind })
    }

    fn set_recording(&self, bitmap: &BitmapRef, recording: bool) -> Result<BitmapChange> {
        let (node, bitmap) = self.find_usable(bitmap)?;
        let bits = bitmap.bits();
        let kind = Kind::Recording(bits.is_recording());
        bits.set_recording(recording);
        Ok(BitmapChange { node, bitmap, kind })
    }

    fn merge_bitmaps(&self, merge: &BitmapMerge) -> Result<BitmapChange> {
        let (node, bitmap) = self.find_bitmap(&BitmapRef {
            node: merge.node.clone(),
            name: merge.target.clone(),
        })?;
        let mut sources = Vec::new();
        for source in &merge.bitmaps {
            let source = match source {
                BitmapSource::Local(name) => node.io.bitmaps.find(name)?,
                BitmapSource::External(source) => self.find_bitmap(source)?.1,
            };
            bitmap.check_usable()?;
            source.check_usable()?;
            let (into, from) = (bitmap.bits().size(), source.bits().size());
            if into != from {
                return Err(NamedBitmapError::Sizes {
                    target: into,
                    source_size: from,
                }
                .into());
            }
            sources.push(source.bits());
        }
        bitmap.check_usable()?;
        let (bits, before) = with_copy(&bitmap)?;
        for source in sources {
            bits.merge(&source);
        }
        let kind = Kind::Marks(before);
        Ok(BitmapChange { node, bitmap, kind })
    }

    /// The bitmap, and the node that has it.
    ///
    /// # Errors
    /// There is no such node, or it has no such bitmap.
    pub fn find_bitmap(&self, bitmap: &BitmapRef) -> Result<(Arc<Node>, Arc<NamedBitmap>)> {
        let BitmapRef { node, name } = bitmap;
        let found = self.device_or_node(node);
        let found = found.map_err(|_| BlockError::Refused(format!("Node '{node}' not found")))?;
        let node = below_implicit_filters(found);
        let bitmap = node.io.bitmaps.find(name)?;
        Ok((node, bitmap))
    }

    /// The same for one that is to be used.
    ///
    /// # Errors
    /// [`find_bitmap`](Self::find_bitmap)'s; something works from it, or it is inconsistent.
    fn find_usable(&self, bitmap: &BitmapRef) -> Result<(Arc<Node>, Arc<NamedBitmap>)> {
        let (node, bitmap) = self.find_bitmap(bitmap)?;
        bitmap.check_usable()?;
        Ok((node, bitmap))
    }

    /// The marks of a bitmap, as they are now.
    ///
    /// # Errors
    /// There is none such, or it can't be used now.
    pub(super) fn marks_of(&self, bitmap: &BitmapRef) -> Result<Arc<DirtyBitmap>> {
        Ok(self.find_usable(bitmap)?.1.bits())
    }
}

impl Node {
    /// What queries tell of the node's dirty bitmaps, the oldest first.
    #[must_use]
    pub fn dirty_bitmaps(&self) -> Vec<BitmapInfo> {
        let all = self.io.bitmaps.all();
        all.iter().map(|bitmap| bitmap.info()).collect()
    }
}

/// The marks, to be changed, and a copy of how they are.
fn with_copy(bitmap: &NamedBitmap) -> Result<(Arc<DirtyBitmap>, Arc<DirtyBitmap>)> {
    let bits = bitmap.bits();
    let copy = bits.resized(bits.size()).map_err(NamedBitmapError::from)?;
    Ok((bits, Arc::new(copy)))
}

/// The node that an operator means: a filter that a job has put in without a name is passed over.
pub(crate) fn below_implicit_filters(mut node: Arc<Node>) -> Arc<Node> {
    while node.is_implicit_filter() {
        let Some(below) = node.primary_child() else {
            break;
        };
        node = below;
    }
    node
}
