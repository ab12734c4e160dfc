//! What a value may look like, and how QEMU's introspection writes that down.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The types that every schema has.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Builtin {
    /// Text.
    Str,
    /// A whole number.
    Int,
    /// A number.
    Number,
    /// True or false.
    Bool,
    /// Nothing.
    Null,
    /// Whatever JSON there is.
    Any,
}

impl Builtin {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Str,
        Self::Int,
        Self::Number,
        Self::Bool,
        Self::Null,
        Self::Any,
    ];

    /// Its name in a schema.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Str => "str",
            Self::Int => "int",
            Self::Number => "number",
            Self::Bool => "bool",
            Self::Null => "null",
            Self::Any => "any",
        }
    }

    const fn json_type(self) -> &'static str {
        match self {
            Self::Str => "string",
            Self::Int => "int",
            Self::Number => "number",
            Self::Bool => "boolean",
            Self::Null => "null",
            Self::Any => "value",
        }
    }
}

/// What a value may look like.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Shape {
    /// One of the types that every schema has.
    Builtin(Builtin),
    /// One of these words.
    Enum(Vec<String>),
    /// Any number of values.
    Array(Box<Self>),
    /// An object with these members.
    Object(Vec<Member>),
    /// An object with these members, and more that depend on the value of one of them.
    Union {
        /// The members that each has.
        members: Vec<Member>,
        /// The one that decides.
        tag: &'static str,
        /// What there is for each of its values.
        variants: Vec<(String, Self)>,
    },
    /// A value of one of these shapes.
    Alternate(Vec<Self>),
    /// A shape that has a name, since it is part of itself.
    Named(&'static str),
}

/// A member of an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// What its value may look like.
    pub shape: Shape,
    /// Whether it may be left out.
    pub optional: bool,
}

impl Shape {
    /// Any text.
    pub const STR: Self = Self::Builtin(Builtin::Str);
    /// Anything.
    pub const ANY: Self = Self::Builtin(Builtin::Any);

    /// How a list of properties calls it.
    pub fn property_type(&self) -> String {
        match self {
            Self::Builtin(builtin) => builtin.name().to_owned(),
            Self::Enum(_) => "enum".to_owned(),
            Self::Array(item) => format!("list<{}>", item.property_type()),
            Self::Object(_) | Self::Union { .. } => "struct".to_owned(),
            Self::Alternate(_) => "any".to_owned(),
            Self::Named(name) => (*name).to_owned(),
        }
    }
}

/// Gathers types and gives each a name. Those that are alike have one.
pub(super) struct Types {
    /// The shapes that have names.
    named: fn(&str) -> Option<Shape>,
    /// The entry of each type, without its name, and the name.
    names: BTreeMap<String, String>,
    /// Named shapes that are entered, or about to be.
    entered: BTreeMap<&'static str, String>,
    entries: Vec<Value>,
    numbers: usize,
}

impl Types {
    /// The builtin types alone. `named` finds shapes by name.
    pub(super) fn new(named: fn(&str) -> Option<Shape>) -> Self {
        let entries = Builtin::ALL.map(|builtin| {
            json!({"name": builtin.name(), "meta-type": "builtin", "json-type": builtin.json_type()})
        });
        Self {
            named,
            names: BTreeMap::new(),
            entered: BTreeMap::new(),
            entries: entries.into(),
            numbers: 0,
        }
    }

    /// All entries.
    pub(super) fn into_entries(self) -> Vec<Value> {
        self.entries
    }

    /// The name of the type of that shape.
    pub(super) fn name_of(&mut self, shape: &Shape) -> String {
        match shape {
            Shape::Builtin(builtin) => builtin.name().to_owned(),
            Shape::Array(item) => {
                let item = self.name_of(item);
                self.enter(
                    Some(format!("[{item}]")),
                    json!({"meta-type": "array", "element-type": item}),
                )
            }
            Shape::Named(name) => {
                if let Some(number) = self.entered.get(name) {
                    return number.clone();
                }
                let number = self.number();
                self.entered.insert(name, number.clone());
                let entry = match (self.named)(name) {
                    Some(shape) => self.entry(&shape),
                    None => json!({"meta-type": "builtin", "json-type": "value"}),
                };
                self.write(number, entry)
            }
            other => {
                let entry = self.entry(other);
                self.enter(None, entry)
            }
        }
    }

    /// A type's entry without its name.
    fn entry(&mut self, shape: &Shape) -> Value {
        match shape {
            Shape::Enum(values) => {
                let members: Vec<_> = values.iter().map(|name| json!({"name": name})).collect();
                json!({"meta-type": "enum", "members": members, "values": values})
            }
            Shape::Object(members) => {
                json!({"meta-type": "object", "members": self.members(members)})
            }
            Shape::Union {
                members,
                tag,
                variants,
            } => {
                let members = self.members(members);
                let variants: Vec<_> = variants
                    .iter()
                    .map(|(case, shape)| json!({"case": case, "type": self.name_of(shape)}))
                    .collect();
                json!({"meta-type": "object", "members": members, "tag": tag, "variants": variants})
            }
            Shape::Alternate(shapes) => {
                let members: Vec<_> = shapes
                    .iter()
                    .map(|shape| json!({"type": self.name_of(shape)}))
                    .collect();
                json!({"meta-type": "alternate", "members": members})
            }
            Shape::Builtin(_) | Shape::Array(_) | Shape::Named(_) => {
                let name = self.name_of(shape);
                json!({"meta-type": "alternate", "members": [{"type": name}]})
            }
        }
    }

    fn members(&mut self, members: &[Member]) -> Vec<Value> {
        let entry = |member: &Member| {
            let mut entry = json!({"name": member.name, "type": self.name_of(&member.shape)});
            if member.optional {
                entry["default"] = Value::Null;
            }
            entry
        };
        members.iter().map(entry).collect()
    }

    fn enter(&mut self, name: Option<String>, entry: Value) -> String {
        if let Some(known) = self.names.get(&entry.to_string()) {
            return known.clone();
        }
        let name = name.unwrap_or_else(|| self.number());
        self.write(name, entry)
    }

    fn write(&mut self, name: String, mut entry: Value) -> String {
        self.names.insert(entry.to_string(), name.clone());
        entry["name"] = name.clone().into();
        self.entries.push(entry);
        name
    }

    fn number(&mut self) -> String {
        self.numbers += 1;
        (self.numbers - 1).to_string()
    }
}
