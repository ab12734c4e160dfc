//! `query-qmp-schema`: what the protocol takes, from the very types that read it.
//!
//! Arguments are described by [`shape_of`], which has the deserializers tell what they expect. Unions, whose
//! readers choose a type by a member's value, are described next to those readers, from the same types; a
//! command's arguments refer to them by the name of a newtype. Replies and events are described by [`shape_of_reply`],
//! from what writes them.

mod events;
mod probe;
mod reply;
mod shape;
mod types;

use serde::de::DeserializeOwned;

use super::commands::{self, Described};
use super::{blockdev, object};
pub use reply::shape_of_reply;
pub use shape::{Builtin, Member, Shape};
use types::Types;
pub(super) use types::{SchemaInfo, SchemaKind};

/// What `T` can be read from.
pub fn shape_of<T: DeserializeOwned>() -> Shape {
    probe::shape_of::<T>(|name| named(name).is_some())
}

/// The shapes that have readers of their own, by the newtypes that stand for them.
fn named(name: &str) -> Option<Shape> {
    match name {
        blockdev::NODE_OPTIONS => Some(blockdev::shape()),
        object::OBJECT_OPTIONS => Some(object::shape()),
        _ => commands::named_shape(name),
    }
}

/// The members of one of several objects.
pub fn members_of(shapes: impl IntoIterator<Item = Shape>) -> Vec<Member> {
    let members = shapes.into_iter().flat_map(|shape| match shape {
        Shape::Object(members) => members,
        _ => Vec::new(),
    });
    members.collect()
}

/// The schema, in QEMU's form.
pub(super) fn schema() -> Vec<SchemaInfo> {
    let mut types = Types::new(named);
    let mut entries = Vec::new();
    for Described {
        name,
        arguments,
        reply,
        out_of_band,
    } in commands::described()
    {
        entries.push(SchemaInfo {
            name: name.to_owned(),
            kind: SchemaKind::Command {
                arg_type: types.name_of(&arguments),
                ret_type: types.name_of(&reply),
                allow_oob: out_of_band.then_some(true),
            },
        });
    }
    for (name, data) in events::all() {
        entries.push(SchemaInfo {
            name,
            kind: SchemaKind::Event {
                arg_type: types.name_of(&data),
            },
        });
    }
    entries.extend(types.into_entries());
    entries
}
