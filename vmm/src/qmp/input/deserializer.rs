//! The deserializer itself.

use std::vec;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde_json::{Map, Number, Value};

use sluice_block::unsigned;

use super::Scalars;
use super::error::InputError;
use super::scalar::{parse_bool, parse_signed, parse_size};

const BOOLEAN: &str = "boolean";
const INTEGER: &str = "integer";
const NUMBER: &str = "number";
const STRING: &str = "string";
const OBJECT: &str = "object";
const ARRAY: &str = "array";
const NULL: &str = "null";

/// A value, the path that leads to it, and how its scalars are written.
pub(super) struct Input {
    value: Value,
    path: String,
    scalars: Scalars,
    /// Whether an `Option` around this value has been passed: a second one takes `null` as none.
    optional: bool,
    /// Whether QEMU's interface declares this number as unsigned.
    unsigned: bool,
}

impl Input {
    /// The input that `path` leads to; empty for the whole.
    pub(super) fn new(value: Value, path: &str, scalars: Scalars) -> Self {
        Self {
            value,
            path: path.to_owned(),
            scalars,
            optional: false,
            unsigned: false,
        }
    }

    fn wrong_type(&self, expected: &str) -> InputError {
        InputError::wrong_type(&self.path, expected)
    }

    fn text(&self) -> Option<&str> {
        match (&self.value, self.scalars) {
            (Value::String(text), Scalars::Text) => Some(text),
            _ => None,
        }
    }

    fn signed(&self) -> Result<i64, InputError> {
        if let Some(text) = self.text() {
            return parse_signed(text).ok_or_else(|| InputError::expects(&self.path, INTEGER));
        }
        self.value.as_i64().ok_or_else(|| self.wrong_type(INTEGER))
    }

    fn unsigned(&self, type_name: &'static str) -> Result<u64, InputError> {
        if let Some(text) = self.text() {
            return parse_size(text).ok_or_else(|| {
                InputError::expects(&self.path, "a non-negative number below 2^64")
            });
        }
        let number = self.value.as_number();
        match number.and_then(|number| Some((number.as_u64(), number.as_i64()?))) {
            Some((Some(value), _)) => Ok(value),
            // QEMU takes a negative number for the unsigned one with the same bits, which is too large for a short type.
            Some((None, _)) if self.unsigned && type_name != unsigned::NAME => {
                Err(InputError::expects(&self.path, type_name))
            }
            Some((None, _)) => Err(InputError::expects(&self.path, "a non-negative value")),
            // What is declared as signed can be half as large, also where it can't be negative.
            None if self.unsigned => number
                .and_then(Number::as_u64)
                .ok_or_else(|| InputError::expects(&self.path, unsigned::NAME)),
            None => Err(self.wrong_type(INTEGER)),
        }
    }

    fn visit_number<'de, V: Visitor<'de>>(
        number: &Number,
        visitor: V,
    ) -> Result<V::Value, InputError> {
        if let Some(value) = number.as_u64() {
            visitor.visit_u64(value)
        } else if let Some(value) = number.as_i64() {
            visitor.visit_i64(value)
        } else {
            visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN))
        }
    }

    fn visit_object<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        known: Option<&'static [&'static str]>,
    ) -> Result<V::Value, InputError> {
        let path = self.path.clone();
        match self.value {
            Value::Object(object) => {
                let mut members = Members::new(object, &path, self.scalars, known);
                let unexpected = members.unexpected.take();
                let value = visitor.visit_map(members).map_err(|e| e.at(&path))?;
                match unexpected {
                    Some(name) => Err(InputError::unexpected(name, known.unwrap_or_default())),
                    None => Ok(value),
                }
            }
            _ => Err(self.wrong_type(OBJECT)),
        }
    }
}

/// Visits integers of every width through the widest one; the visitor checks the range. Unsigned ones have the name
/// that QEMU has for their type.
macro_rules! integers {
    ($($method:ident $read:ident($($type_name:expr)?) $visit:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
            let value = self.$read($($type_name)?)?;
            visitor.$visit(value).map_err(|e: InputError| {
                let error = if self.unsigned { e } else { e.of_signed() };
                error.at(&self.path)
            })
        })*
    };
}

impl<'de> Deserializer<'de> for Input {
    type Error = InputError;

    integers! {
        deserialize_i8 signed() visit_i64
        deserialize_i16 signed() visit_i64
        deserialize_i32 signed() visit_i64
        deserialize_i64 signed() visit_i64
        deserialize_u8 unsigned("uint8_t") visit_u64
        deserialize_u16 unsigned("uint16_t") visit_u64
        deserialize_u32 unsigned("uint32_t") visit_u64
        deserialize_u64 unsigned(unsigned::NAME) visit_u64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        let path = self.path.clone();
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => Self::visit_number(&number, visitor),
            Value::String(text) => visitor.visit_string(text),
            Value::Array(items) => visitor.visit_seq(Items::new(items, &path, self.scalars)),
            Value::Object(object) => {
                visitor.visit_map(Members::new(object, &path, self.scalars, None))
            }
        }
        .map_err(|e: InputError| e.at(&path))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        if let Some(text) = self.text() {
            let value =
                parse_bool(text).ok_or_else(|| InputError::expects(&self.path, "'on' or 'off'"))?;
            return visitor.visit_bool(value);
        }
        match self.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.wrong_type(BOOLEAN)),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        if let Some(text) = self.text() {
            let value = text
                .parse()
                .map_err(|_| InputError::expects(&self.path, NUMBER))?;
            return visitor.visit_f64(value);
        }
        match self.value.as_f64() {
            Some(value) => visitor.visit_f64(value),
            None => Err(self.wrong_type(NUMBER)),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        match self.value {
            Value::String(text) => visitor
                .visit_string(text)
                .map_err(|e: InputError| e.at(&self.path)),
            _ => Err(self.wrong_type(STRING)),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        // A member that is there but null is not an absent one, unless the type makes the
        // difference with an option within the option.
        if self.optional && self.value.is_null() {
            return visitor.visit_none();
        }
        visitor.visit_some(Self {
            optional: true,
            ..self
        })
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            _ => Err(self.wrong_type(NULL)),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, InputError> {
        self.visit_object(visitor, Some(&[]))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, InputError> {
        let path = self.path.clone();
        let input = Self {
            unsigned: self.unsigned || name == unsigned::NAME,
            ..self
        };
        visitor
            .visit_newtype_struct(input)
            .map_err(|e: InputError| e.at(&path))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        let path = self.path.clone();
        match self.value {
            Value::Array(items) => visitor
                .visit_seq(Items::new(items, &path, self.scalars))
                .map_err(|e: InputError| e.at(&path)),
            _ => Err(self.wrong_type(ARRAY)),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, InputError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, InputError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        self.visit_object(visitor, None)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, InputError> {
        self.visit_object(visitor, Some(fields))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, InputError> {
        let path = self.path.clone();
        visitor
            .visit_enum(Choice(self))
            .map_err(|e: InputError| e.at(&path))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InputError> {
        visitor.visit_unit()
    }
}

/// The members of an object: the known ones in the order of the type, which decides which of
/// several errors is reported.
struct Members {
    members: vec::IntoIter<(String, Value)>,
    value: Option<(String, Value)>,
    /// Full name of the first member that the type does not know.
    unexpected: Option<String>,
    prefix: String,
    scalars: Scalars,
}

impl Members {
    fn new(
        mut object: Map<String, Value>,
        path: &str,
        scalars: Scalars,
        known: Option<&'static [&'static str]>,
    ) -> Self {
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path}.")
        };
        let mut unexpected = None;
        let members: Vec<_> = match known {
            None => object.into_iter().collect(),
            Some(known) => {
                let members = known
                    .iter()
                    .filter_map(|&name| object.remove_entry(name))
                    .collect();
                unexpected = object.keys().next().map(|name| format!("{prefix}{name}"));
                members
            }
        };
        Self {
            members: members.into_iter(),
            value: None,
            unexpected,
            prefix,
            scalars,
        }
    }
}

impl<'de> MapAccess<'de> for Members {
    type Error = InputError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, InputError> {
        let Some((name, value)) = self.members.next() else {
            return Ok(None);
        };
        let path = format!("{}{name}", self.prefix);
        self.value = Some((path, value));
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, InputError> {
        let (path, value) = self
            .value
            .take()
            .ok_or_else(|| <InputError as serde::de::Error>::custom("member without a name"))?;
        let input = Input {
            value,
            path: path.clone(),
            scalars: self.scalars,
            optional: false,
            unsigned: false,
        };
        seed.deserialize(input).map_err(|e| e.at(&path))
    }
}

/// The items of an array.
struct Items {
    items: std::iter::Enumerate<vec::IntoIter<Value>>,
    path: String,
    scalars: Scalars,
}

impl Items {
    fn new(items: Vec<Value>, path: &str, scalars: Scalars) -> Self {
        Self {
            items: items.into_iter().enumerate(),
            path: path.to_owned(),
            scalars,
        }
    }
}

impl<'de> SeqAccess<'de> for Items {
    type Error = InputError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, InputError> {
        let Some((index, value)) = self.items.next() else {
            return Ok(None);
        };
        let path = format!("{}[{index}]", self.path);
        let input = Input {
            value,
            path: path.clone(),
            scalars: self.scalars,
            optional: false,
            unsigned: false,
        };
        seed.deserialize(input).map(Some).map_err(|e| e.at(&path))
    }
}

/// An enumeration's value: a name.
struct Choice(Input);

impl<'de> EnumAccess<'de> for Choice {
    type Error = InputError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self), InputError> {
        let Value::String(name) = &self.0.value else {
            return Err(self.0.wrong_type(STRING));
        };
        let variant = seed
            .deserialize(name.as_str().into_deserializer())
            .map_err(|e: InputError| e.at(&self.0.path))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Choice {
    type Error = InputError;

    fn unit_variant(self) -> Result<(), InputError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        self,
        _seed: T,
    ) -> Result<T::Value, InputError> {
        Err(self.0.wrong_type(OBJECT))
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        _len: usize,
        _visitor: V,
    ) -> Result<V::Value, InputError> {
        Err(self.0.wrong_type(ARRAY))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, InputError> {
        Err(self.0.wrong_type(OBJECT))
    }
}
