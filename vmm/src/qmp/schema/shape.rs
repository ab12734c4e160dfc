//! What a value may look like.

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

    /// What it is in JSON, in a schema's words.
    pub const fn json_type(self) -> &'static str {
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
        tag: String,
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
