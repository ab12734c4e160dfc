//! Finds out what a type's deserializer takes, by having it read.
//!
//! A derived deserializer says what it expects before it is given anything: the names of members, the words
//! of an enumeration, that it wants a number. [`shape_of`] plays the input, writes down what it is asked for
//! and answers with the simplest value of that kind. Whether a member may be left out it learns by leaving it out:
//! the very code that will read commands says so.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

use super::shape::{Builtin, Member, Shape};

/// What `T` can be read from. `is_named` tells of newtypes that stand for a shape with a name.
pub fn shape_of<T: DeserializeOwned>(is_named: fn(&str) -> bool) -> Shape {
    let all = Record::new(is_named, None);
    let read = |record: &Record| T::deserialize(Probe::new(record, String::new())).is_ok();
    read(&all);
    let mut optional = BTreeMap::new();
    for path in all
        .members
        .borrow()
        .iter()
        .flat_map(|(parent, names)| names.iter().map(move |name| join(parent, name)))
    {
        let without = Record::new(is_named, Some(path.clone()));
        let may_be_absent = read(&without);
        optional.insert(path, may_be_absent);
    }
    all.shape("", &optional)
}

/// What was asked for, by path.
struct Record {
    is_named: fn(&str) -> bool,
    /// The member that is left out this time.
    absent: Option<String>,
    kinds: RefCell<BTreeMap<String, Kind>>,
    members: RefCell<BTreeMap<String, &'static [&'static str]>>,
}

#[derive(Clone)]
enum Kind {
    Builtin(Builtin),
    Enum(&'static [&'static str]),
    Array,
    Object,
    Named(&'static str),
}

fn join(parent: &str, name: &str) -> String {
    format!("{parent}/{name}")
}

impl Record {
    fn new(is_named: fn(&str) -> bool, absent: Option<String>) -> Self {
        Self {
            is_named,
            absent,
            kinds: RefCell::default(),
            members: RefCell::default(),
        }
    }

    fn shape(&self, path: &str, optional: &BTreeMap<String, bool>) -> Shape {
        let kind = self.kinds.borrow().get(path).cloned();
        match kind {
            None => Shape::ANY,
            Some(Kind::Builtin(builtin)) => Shape::Builtin(builtin),
            Some(Kind::Named(name)) => Shape::Named(name),
            Some(Kind::Enum(words)) => {
                Shape::Enum(words.iter().map(|word| (*word).to_owned()).collect())
            }
            Some(Kind::Array) => Shape::Array(Box::new(self.shape(&join(path, ITEM), optional))),
            Some(Kind::Object) => {
                let names = self.members.borrow().get(path).copied().unwrap_or_default();
                let member = |name: &&'static str| {
                    let path = join(path, name);
                    Member {
                        name: (*name).to_owned(),
                        optional: optional.get(&path).copied().unwrap_or(false),
                        shape: self.shape(&path, optional),
                    }
                };
                Shape::Object(names.iter().map(member).collect())
            }
        }
    }
}

/// The path of an array's items; no member is called so.
const ITEM: &str = "[]";

/// The input that is read.
struct Probe<'a> {
    record: &'a Record,
    path: String,
}

impl<'a> Probe<'a> {
    const fn new(record: &'a Record, path: String) -> Self {
        Self { record, path }
    }

    fn note(&self, kind: Kind) {
        self.record
            .kinds
            .borrow_mut()
            .insert(self.path.clone(), kind);
    }

    fn note_builtin(&self, builtin: Builtin) {
        self.note(Kind::Builtin(builtin));
    }
}

/// A reader was not satisfied.
#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

/// Numbers of each width get the number 1, which hardly any range excludes.
macro_rules! numbers {
    ($($method:ident $visit:ident $builtin:ident $one:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            self.note_builtin(Builtin::$builtin);
            visitor.$visit($one)
        })*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Refused;

    numbers! {
        deserialize_i8 visit_i8 Int 1;
        deserialize_i16 visit_i16 Int 1;
        deserialize_i32 visit_i32 Int 1;
        deserialize_i64 visit_i64 Int 1;
        deserialize_u8 visit_u8 Int 1;
        deserialize_u16 visit_u16 Int 1;
        deserialize_u32 visit_u32 Int 1;
        deserialize_u64 visit_u64 Int 1;
        deserialize_f32 visit_f32 Number 1.0;
        deserialize_f64 visit_f64 Number 1.0;
        deserialize_bool visit_bool Bool false;
        deserialize_char visit_char Str 'x';
        deserialize_str visit_str Str "x";
        deserialize_string visit_str Str "x";
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.note_builtin(Builtin::Any);
        visitor.visit_str("x")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.note_builtin(Builtin::Null);
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        if !(self.record.is_named)(name) {
            return visitor.visit_newtype_struct(self);
        }
        self.note(Kind::Named(name));
        // What it is read from is described elsewhere: nothing of this is written down.
        let unheard = Record::new(self.record.is_named, None);
        visitor.visit_newtype_struct(Probe::new(&unheard, String::new()))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.note(Kind::Array);
        let item = Probe::new(self.record, join(&self.path, ITEM));
        visitor.visit_seq(One(Some(item)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.note_builtin(Builtin::Any);
        visitor.visit_map(Members {
            probe: self,
            names: [].iter(),
            value: "",
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.note(Kind::Object);
        let mut members = self.record.members.borrow_mut();
        members.insert(self.path.clone(), fields);
        drop(members);
        visitor.visit_map(Members {
            probe: self,
            names: fields.iter(),
            value: "",
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.note(Kind::Enum(variants));
        visitor.visit_enum(First(variants.first().copied().unwrap_or_default()))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_str(visitor)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit_struct tuple tuple_struct ignored_any
    }
}

/// An array of one item.
struct One<'a>(Option<Probe<'a>>);

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refused> {
        self.0.take().map(|item| seed.deserialize(item)).transpose()
    }
}

/// An object with every member that is known but the absent one.
struct Members<'a> {
    probe: Probe<'a>,
    names: std::slice::Iter<'static, &'static str>,
    value: &'static str,
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Refused> {
        let absent = self.probe.record.absent.as_deref();
        let path = &self.probe.path;
        let next = self.names.find(|name| absent != Some(&join(path, name)));
        let Some(name) = next else {
            return Ok(None);
        };
        self.value = name;
        let name: StrDeserializer<'_, Refused> = (*name).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refused> {
        let path = join(&self.probe.path, self.value);
        seed.deserialize(Probe::new(self.probe.record, path))
    }
}

/// The first word of an enumeration.
struct First(&'static str);

impl<'de> EnumAccess<'de> for First {
    type Error = Refused;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Refused> {
        let word: StrDeserializer<'_, Refused> = self.0.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'de> VariantAccess<'de> for First {
    type Error = Refused;

    fn unit_variant(self) -> Result<(), Refused> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Refused> {
        Err(Refused)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Refused> {
        Err(Refused)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Refused> {
        Err(Refused)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Inner {
        in_side: u8,
        #[serde(default)]
        with_default: bool,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Word {
        OneWord,
        Other,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Marked(Value);

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Outer {
        text: String,
        word: Option<Word>,
        list: Vec<Inner>,
        any: Value,
        marked: Option<Vec<Marked>>,
        ratio: Option<f64>,
    }

    fn member(name: &str, shape: Shape, optional: bool) -> Member {
        Member {
            name: name.to_owned(),
            shape,
            optional,
        }
    }

    #[test]
    fn a_type_tells_what_it_is_read_from() {
        let inner = Shape::Object(vec![
            member("in-side", Shape::Builtin(Builtin::Int), false),
            member("with-default", Shape::Builtin(Builtin::Bool), true),
        ]);
        let word = Shape::Enum(vec!["one-word".to_owned(), "other".to_owned()]);
        let marked = Shape::Array(Box::new(Shape::Named("Marked")));
        let expected = Shape::Object(vec![
            member("text", Shape::STR, false),
            member("word", word, true),
            member("list", Shape::Array(Box::new(inner)), false),
            member("any", Shape::ANY, false),
            member("marked", marked, true),
            member("ratio", Shape::Builtin(Builtin::Number), true),
        ]);
        assert_eq!(shape_of::<Outer>(|name| name == "Marked"), expected);
    }
}
