//! What replies and events look like, from the types that they are written from.
//!
//! The serializer's own attributes say it: a JSON Schema made from the type by `schemars` is put in the words of
//! a [`Shape`]. Only what such types give is understood; the rest is [`Shape::ANY`], which the tests notice.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use super::shape::{Builtin, Member, Shape};

/// Records that are part of themselves, by the names of their types.
pub(super) const RECURSIVE: &[&str] = &["ImageRecord", "StatsRecord"];

/// Where a schema keeps the types that it refers to.
const DEFINITIONS: &str = "#/$defs/";
/// How a type refers to itself.
const ITSELF: &str = "#";

/// What a value of `T` is written as.
pub fn shape_of_reply<T: JsonSchema>() -> Shape {
    let schema = schema_of::<T>();
    Reader::of(&schema).shape(schema.as_value())
}

/// The variants of `T`, which is written with its name in the member `tag` and the rest in `content`.
pub(super) fn variants_of<T: JsonSchema>(tag: &str, content: &str) -> Vec<(String, Shape)> {
    let schema = schema_of::<T>();
    let reader = Reader::of(&schema);
    let variants = schema.get("oneOf").and_then(Value::as_array);
    let variant = |variant: &Value| {
        let properties = &variant["properties"];
        let data = match properties.get(content) {
            Some(data) => reader.shape(data),
            None => Shape::Object(Vec::new()),
        };
        Some((properties[tag]["const"].as_str()?.to_owned(), data))
    };
    variants.into_iter().flatten().filter_map(variant).collect()
}

fn schema_of<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<T>()
}

/// Reads a schema, with the types that it refers to.
struct Reader<'a> {
    definitions: Option<&'a Map<String, Value>>,
    /// The name of the type as a whole, by which it is part of itself.
    root: Option<&'a str>,
}

impl<'a> Reader<'a> {
    fn of(schema: &'a Schema) -> Self {
        let definitions = schema.get("$defs").and_then(Value::as_object);
        let root = schema.get("title").and_then(Value::as_str);
        Self { definitions, root }
    }

    fn shape(&self, schema: &Value) -> Shape {
        let Some(schema) = schema.as_object() else {
            return Shape::ANY;
        };
        if let Some(name) = self.reference(schema) {
            if let Some(known) = RECURSIVE.iter().find(|known| **known == name) {
                return Shape::Named(known);
            }
            let definition = self.definitions.and_then(|all| all.get(name));
            return definition.map_or(Shape::ANY, |definition| self.shape(definition));
        }
        if let Some(words) = schema.get("enum").and_then(Value::as_array) {
            return Shape::Enum(words.iter().filter_map(word).collect());
        }
        if let Some(one) = schema.get("const") {
            return Shape::Enum(word(one).into_iter().collect());
        }
        if let Some(shapes) = schema.get("anyOf").and_then(Value::as_array) {
            return alternate(shapes.iter().map(|one| self.shape(one)).collect());
        }
        match schema.get("type") {
            Some(Value::String(kind)) => self.of_type(kind, schema),
            Some(Value::Array(kinds)) => {
                let kinds = kinds.iter().filter_map(Value::as_str);
                alternate(kinds.map(|kind| self.of_type(kind, schema)).collect())
            }
            _ => match schema.get("oneOf").and_then(Value::as_array) {
                Some(_) if tag(schema).is_some() => self.object(schema),
                // The words of an enumeration, each with its meaning.
                Some(words) => {
                    let words = words.iter().flat_map(|one| match self.shape(one) {
                        Shape::Enum(words) => words,
                        _ => Vec::new(),
                    });
                    Shape::Enum(words.collect())
                }
                None => Shape::ANY,
            },
        }
    }

    /// The name of the type that stands for a schema.
    fn reference<'s>(&self, schema: &'s Map<String, Value>) -> Option<&'s str>
    where
        'a: 's,
    {
        match schema.get("$ref")?.as_str()? {
            ITSELF => self.root,
            other => other.strip_prefix(DEFINITIONS),
        }
    }

    fn of_type(&self, kind: &str, schema: &Map<String, Value>) -> Shape {
        Shape::Builtin(match kind {
            "string" => Builtin::Str,
            "integer" => Builtin::Int,
            "number" => Builtin::Number,
            "boolean" => Builtin::Bool,
            "null" => Builtin::Null,
            "array" => {
                let item = schema.get("items").map(|item| self.shape(item));
                return Shape::Array(Box::new(item.unwrap_or(Shape::ANY)));
            }
            "object" => return self.object(schema),
            _ => Builtin::Any,
        })
    }

    fn object(&self, schema: &Map<String, Value>) -> Shape {
        let members = self.members(schema);
        let Some(tag) = tag(schema) else {
            return Shape::Object(members);
        };
        let variants = schema.get("oneOf").and_then(Value::as_array);
        let variant = |variant: &Value| {
            let variant = variant.as_object()?;
            let case = word(&variant.get("properties")?[tag]["const"])?;
            let mut own = self.members(variant);
            own.retain(|member| member.name != tag);
            Some((case, Shape::Object(own)))
        };
        let variants: Vec<_> = variants.into_iter().flatten().filter_map(variant).collect();
        let cases = variants.iter().map(|(case, _)| case.clone()).collect();
        let mut common = vec![Member {
            name: tag.to_owned(),
            shape: Shape::Enum(cases),
            optional: false,
        }];
        common.extend(members);
        Shape::Union {
            members: common,
            tag: tag.to_owned(),
            variants,
        }
    }

    fn members(&self, schema: &Map<String, Value>) -> Vec<Member> {
        let required = schema.get("required").and_then(Value::as_array);
        let is_required = |name: &String| {
            required.is_some_and(|names| names.iter().any(|one| one == name.as_str()))
        };
        let properties = schema.get("properties").and_then(Value::as_object);
        let member = |(name, schema): (&String, &Value)| {
            let optional = !is_required(name);
            let shape = self.shape(schema);
            Member {
                name: name.clone(),
                shape: if optional { present(shape) } else { shape },
                optional,
            }
        };
        properties.into_iter().flatten().map(member).collect()
    }
}

fn word(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// The member by whose value one of several objects is meant.
fn tag(schema: &Map<String, Value>) -> Option<&str> {
    let properties = schema
        .get("oneOf")?
        .get(0)?
        .get("properties")?
        .as_object()?;
    let constant = properties.iter().find(|(_, of)| of.get("const").is_some());
    constant.map(|(name, _)| name.as_str())
}

fn alternate(mut shapes: Vec<Shape>) -> Shape {
    match shapes.len() {
        1 => shapes.remove(0),
        _ => Shape::Alternate(shapes),
    }
}

/// What a member that is left out rather than null is, if it is there.
fn present(shape: Shape) -> Shape {
    match shape {
        Shape::Alternate(mut shapes) => {
            shapes.retain(|shape| *shape != Shape::Builtin(Builtin::Null));
            alternate(shapes)
        }
        shape => shape,
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Serialize, JsonSchema)]
    #[serde(rename_all = "kebab-case")]
    #[expect(dead_code, reason = "only its shape matters")]
    enum Word {
        FirstWord,
        /// With a meaning.
        Other,
    }

    #[derive(Serialize, JsonSchema)]
    struct Inner {
        deep: u128,
    }

    #[derive(Serialize, JsonSchema)]
    #[serde(rename_all = "kebab-case")]
    struct Outer {
        some_text: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        word: Option<Word>,
        maybe_null: Option<bool>,
        #[serde(flatten)]
        inner: Inner,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        list: Vec<f64>,
        any: Value,
    }

    #[derive(Serialize, JsonSchema)]
    struct Tagged {
        name: String,
        #[serde(flatten)]
        kind: Kind,
    }

    #[derive(Serialize, JsonSchema)]
    #[serde(tag = "kind", rename_all = "kebab-case")]
    #[expect(dead_code, reason = "only its shape matters")]
    enum Kind {
        OneThing { size: u8 },
        Nothing {},
    }

    fn member(name: &str, shape: Shape, optional: bool) -> Member {
        Member {
            name: name.to_owned(),
            shape,
            optional,
        }
    }

    fn words(words: &[&str]) -> Shape {
        Shape::Enum(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn a_type_tells_what_it_is_written_as() {
        let null = Shape::Builtin(Builtin::Null);
        let nullable = Shape::Alternate(vec![Shape::Builtin(Builtin::Bool), null]);
        let Shape::Object(mut members) = shape_of_reply::<Outer>() else {
            panic!("not an object");
        };
        members.sort_by(|one, other| one.name.cmp(&other.name));
        let numbers = Shape::Array(Box::new(Shape::Builtin(Builtin::Number)));
        let expected = [
            member("any", Shape::ANY, false),
            member("deep", Shape::Builtin(Builtin::Int), false),
            member("list", numbers, true),
            member("maybe-null", nullable, false),
            member("some-text", Shape::STR, false),
            member("word", words(&["first-word", "other"]), true),
        ];
        assert_eq!(members, expected);
    }

    #[test]
    fn unions_keep_their_cases_apart() {
        let Shape::Union {
            members,
            tag,
            variants,
        } = shape_of_reply::<Tagged>()
        else {
            panic!("not a union");
        };
        assert_eq!(tag, "kind");
        let kinds = words(&["one-thing", "nothing"]);
        let expected = [
            member("kind", kinds, false),
            member("name", Shape::STR, false),
        ];
        assert_eq!(members, expected);
        let size = member("size", Shape::Builtin(Builtin::Int), false);
        let expected = [
            ("one-thing".to_owned(), Shape::Object(vec![size])),
            ("nothing".to_owned(), Shape::Object(Vec::new())),
        ];
        assert_eq!(variants, expected);
    }
}
