//! How QEMU's introspection writes types down, and the gathering of those that a schema refers to.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::shape::{Builtin, Member, Shape};

/// An entry of the schema (QEMU's `SchemaInfo`).
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in crate::qmp) struct SchemaInfo {
    /// Of commands and events their own names; types have made-up ones.
    pub(in crate::qmp) name: String,
    #[serde(flatten)]
    pub(in crate::qmp) kind: SchemaKind,
}

/// What an entry tells of.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "meta-type", rename_all = "lowercase")]
pub(in crate::qmp) enum SchemaKind {
    /// A type that JSON has.
    #[serde(rename_all = "kebab-case")]
    Builtin { json_type: &'static str },
    /// One of several words.
    Enum {
        members: Vec<EnumMember>,
        /// The same words, as older clients look for them.
        values: Vec<String>,
    },
    /// A list.
    #[serde(rename_all = "kebab-case")]
    Array { element_type: String },
    /// An object.
    Object {
        members: Vec<ObjectMember>,
        #[serde(skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        variants: Option<Vec<ObjectVariant>>,
    },
    /// A value of one of several types.
    Alternate { members: Vec<AlternateMember> },
    /// A command.
    #[serde(rename_all = "kebab-case")]
    Command {
        arg_type: String,
        ret_type: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        allow_oob: Option<bool>,
    },
    /// An event.
    #[serde(rename_all = "kebab-case")]
    Event { arg_type: String },
}

/// A word.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in crate::qmp) struct EnumMember {
    name: String,
}

/// A member of an object.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in crate::qmp) struct ObjectMember {
    name: String,
    r#type: String,
    /// There, and null, if the member may be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<()>,
}

/// What an object has besides if its tag has a certain value.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in crate::qmp) struct ObjectVariant {
    case: String,
    r#type: String,
}

/// One of several types.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in crate::qmp) struct AlternateMember {
    r#type: String,
}

/// Gathers types and gives each a name. Those that are alike have one.
pub(super) struct Types {
    /// The shapes that have names.
    named: fn(&str) -> Option<Shape>,
    /// Each type as it is written, and its name.
    names: BTreeMap<String, String>,
    /// Named shapes that are entered, or about to be.
    entered: BTreeMap<&'static str, String>,
    entries: Vec<SchemaInfo>,
    numbers: usize,
}

impl Types {
    /// The builtin types alone. `named` finds shapes by name.
    pub(super) fn new(named: fn(&str) -> Option<Shape>) -> Self {
        let entries = Builtin::ALL.map(|builtin| SchemaInfo {
            name: builtin.name().to_owned(),
            kind: SchemaKind::Builtin {
                json_type: builtin.json_type(),
            },
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
    pub(super) fn into_entries(self) -> Vec<SchemaInfo> {
        self.entries
    }

    /// The name of the type of that shape.
    pub(super) fn name_of(&mut self, shape: &Shape) -> String {
        match shape {
            Shape::Builtin(builtin) => builtin.name().to_owned(),
            Shape::Array(item) => {
                let element_type = self.name_of(item);
                let name = format!("[{element_type}]");
                self.enter(Some(name), SchemaKind::Array { element_type })
            }
            Shape::Named(name) => {
                if let Some(number) = self.entered.get(name) {
                    return number.clone();
                }
                let number = self.number();
                self.entered.insert(name, number.clone());
                let kind = match (self.named)(name) {
                    Some(shape) => self.kind(&shape),
                    None => SchemaKind::Builtin {
                        json_type: Builtin::Any.json_type(),
                    },
                };
                self.write(number, kind)
            }
            other => {
                let kind = self.kind(other);
                self.enter(None, kind)
            }
        }
    }

    fn kind(&mut self, shape: &Shape) -> SchemaKind {
        match shape {
            Shape::Enum(values) => SchemaKind::Enum {
                members: values
                    .iter()
                    .map(|name| EnumMember { name: name.clone() })
                    .collect(),
                values: values.clone(),
            },
            Shape::Object(members) => SchemaKind::Object {
                members: self.members(members),
                tag: None,
                variants: None,
            },
            Shape::Union {
                members,
                tag,
                variants,
            } => SchemaKind::Object {
                members: self.members(members),
                tag: Some(tag.clone()),
                variants: Some(
                    variants
                        .iter()
                        .map(|(case, shape)| ObjectVariant {
                            case: case.clone(),
                            r#type: self.name_of(shape),
                        })
                        .collect(),
                ),
            },
            Shape::Alternate(shapes) => self.alternate(shapes),
            Shape::Builtin(_) | Shape::Array(_) | Shape::Named(_) => {
                self.alternate(std::slice::from_ref(shape))
            }
        }
    }

    fn alternate(&mut self, shapes: &[Shape]) -> SchemaKind {
        let member = |shape| AlternateMember {
            r#type: self.name_of(shape),
        };
        SchemaKind::Alternate {
            members: shapes.iter().map(member).collect(),
        }
    }

    fn members(&mut self, members: &[Member]) -> Vec<ObjectMember> {
        let member = |member: &Member| ObjectMember {
            name: member.name.clone(),
            r#type: self.name_of(&member.shape),
            default: member.optional.then_some(()),
        };
        members.iter().map(member).collect()
    }

    fn enter(&mut self, name: Option<String>, kind: SchemaKind) -> String {
        if let Some(known) = self.names.get(&written(&kind)) {
            return known.clone();
        }
        let name = name.unwrap_or_else(|| self.number());
        self.write(name, kind)
    }

    fn write(&mut self, name: String, kind: SchemaKind) -> String {
        self.names.insert(written(&kind), name.clone());
        self.entries.push(SchemaInfo {
            name: name.clone(),
            kind,
        });
        name
    }

    fn number(&mut self) -> String {
        self.numbers += 1;
        (self.numbers - 1).to_string()
    }
}

/// What types that are alike have in common.
fn written(kind: &SchemaKind) -> String {
    // The words are those of the entry itself; text is all that is compared.
    format!("{kind:?}")
}
