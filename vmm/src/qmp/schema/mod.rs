//! `query-qmp-schema`: what the protocol takes, from the very types that read it.
//!
//! Arguments are described by [`shape_of`], which has the deserializers tell what they expect. Unions, whose
//! readers choose a type by a member's value, are described next to those readers, from the same types; a
//! command's arguments refer to them by the name of a newtype. Of replies it is told whether there is one, a list or
//! text, and no more.

mod events;
mod probe;
mod shape;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::commands::{self, Described};
use super::{blockdev, object};
use shape::Types;
pub use shape::{Builtin, Member, Shape};

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
pub(super) fn schema() -> Vec<Value> {
    let mut types = Types::new(named);
    let mut entries = Vec::new();
    for Described {
        name,
        arguments,
        reply,
        out_of_band,
    } in commands::described()
    {
        let mut entry = json!({
            "name": name,
            "meta-type": "command",
            "arg-type": types.name_of(&arguments),
            "ret-type": types.name_of(&reply),
        });
        if out_of_band {
            entry["allow-oob"] = true.into();
        }
        entries.push(entry);
    }
    for (name, data) in events::all() {
        entries.push(json!({
            "name": name,
            "meta-type": "event",
            "arg-type": types.name_of(&data),
        }));
    }
    entries.extend(types.into_entries());
    entries
}
