//! What can be wrong with input, in QEMU's words.

use std::fmt;

use serde::de;

/// Input that does not fit its type. Displays as one line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InputError {
    fault: Fault,
    /// What the type would have accepted, where that is a short list.
    alternatives: &'static [&'static str],
    /// Whether `fault` names the parameter by its full path already.
    located: bool,
}

/// The kinds of misfit; the parameter's name is empty until the error is located.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Fault {
    Missing(String),
    Unexpected(String),
    Type { name: String, expected: String },
    Value { name: String, value: String },
    Expects { name: String, expected: String },
    Other { name: String, text: String },
}

impl Fault {
    fn name_mut(&mut self) -> &mut String {
        match self {
            Self::Missing(name)
            | Self::Unexpected(name)
            | Self::Type { name, .. }
            | Self::Value { name, .. }
            | Self::Expects { name, .. }
            | Self::Other { name, .. } => name,
        }
    }
}

impl InputError {
    /// The parameter must be given.
    pub(in crate::qmp) fn missing(name: impl Into<String>) -> Self {
        Self::located(Fault::Missing(name.into()))
    }

    /// The parameter's value is none of `known`.
    pub(in crate::qmp) fn bad_value(
        name: impl Into<String>,
        value: impl Into<String>,
        known: &'static [&'static str],
    ) -> Self {
        Self {
            alternatives: known,
            ..Self::located(Fault::Value {
                name: name.into(),
                value: value.into(),
            })
        }
    }

    /// The parameter's value has the wrong JSON type.
    pub(in crate::qmp) fn wrong_type(name: impl Into<String>, expected: &str) -> Self {
        Self::located(Fault::Type {
            name: name.into(),
            expected: expected.into(),
        })
    }

    /// The parameter's text can't be read as what it must be.
    pub(super) fn expects(name: impl Into<String>, expected: &str) -> Self {
        Self::located(Fault::Expects {
            name: name.into(),
            expected: expected.into(),
        })
    }

    /// The object has a member that its type does not know.
    pub(super) fn unexpected(name: impl Into<String>, known: &'static [&'static str]) -> Self {
        Self {
            alternatives: known,
            ..Self::located(Fault::Unexpected(name.into()))
        }
    }

    /// The names or values that would have been accepted in the place of the one at fault; empty
    /// if that is not a list.
    pub const fn alternatives(&self) -> &'static [&'static str] {
        self.alternatives
    }

    /// The member that its type does not know, if that is what is wrong with the input itself and not with a part
    /// of it.
    pub fn unexpected_member(&self) -> Option<&str> {
        match &self.fault {
            Fault::Unexpected(name) if !name.contains(['.', '[']) => Some(name),
            _ => None,
        }
    }

    /// The same error of the parameter whose name begins with `prefix`.
    pub(in crate::qmp) fn prefixed(mut self, prefix: &str) -> Self {
        self.fault.name_mut().insert_str(0, prefix);
        self
    }

    /// The same error of a number that QEMU's interface declares as signed, whatever reads it here.
    pub(super) fn of_signed(mut self) -> Self {
        if let Fault::Expects { expected, .. } = &mut self.fault
            && INTEGERS.iter().any(|(_, name)| name == expected)
        {
            *expected = expected.trim_start_matches('u').to_owned();
        }
        self
    }

    const fn located(fault: Fault) -> Self {
        Self {
            fault,
            alternatives: &[],
            located: true,
        }
    }

    const fn unlocated(fault: Fault) -> Self {
        Self {
            fault,
            alternatives: &[],
            located: false,
        }
    }

    /// Fills in where the error is, if it came from a type's own code, which can't know. `path` is
    /// the value being read when it arose.
    pub(super) fn at(mut self, path: &str) -> Self {
        if self.located {
            return self;
        }
        let member = |inner: &str| match (path, inner) {
            ("", inner) => inner.to_owned(),
            (path, "") => path.to_owned(),
            (path, inner) => format!("{path}.{inner}"),
        };
        match &mut self.fault {
            Fault::Missing(name)
            | Fault::Unexpected(name)
            | Fault::Type { name, .. }
            | Fault::Value { name, .. }
            | Fault::Expects { name, .. }
            | Fault::Other { name, .. } => *name = member(name),
        }
        self.located = true;
        self
    }
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            Fault::Missing(name) => write!(f, "Parameter '{name}' is missing"),
            Fault::Unexpected(name) => write!(f, "Parameter '{name}' is unexpected"),
            Fault::Type { name, expected } => write!(
                f,
                "Invalid parameter type for '{name}', expected: {expected}"
            ),
            Fault::Value { name, value } => {
                write!(f, "Parameter '{name}' does not accept value '{value}'")
            }
            Fault::Expects { name, expected } => {
                write!(f, "Parameter '{name}' expects {expected}")
            }
            Fault::Other { name, text } if name.is_empty() => f.write_str(text),
            Fault::Other { name, text } => write!(f, "Parameter '{name}': {text}"),
        }
    }
}

impl std::error::Error for InputError {}

impl de::Error for InputError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::unlocated(Fault::Other {
            name: String::new(),
            text: text.to_string(),
        })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::unlocated(Fault::Missing(field.into()))
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self {
            alternatives: known,
            ..Self::unlocated(Fault::Unexpected(field.into()))
        }
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self {
            alternatives: known,
            ..Self::unlocated(Fault::Value {
                name: String::new(),
                value: variant.into(),
            })
        }
    }

    fn invalid_type(_found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::unlocated(Fault::Type {
            name: String::new(),
            expected: expected.to_string(),
        })
    }

    fn invalid_value(_found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = expected.to_string();
        let ranges = INTEGERS.iter().find(|(rust, _)| *rust == expected);
        Self::unlocated(Fault::Expects {
            name: String::new(),
            expected: ranges.map_or(expected, |(_, name)| (*name).to_owned()),
        })
    }
}

/// What types of integers are called by serde, and by QEMU in its errors about numbers out of range.
const INTEGERS: [(&str, &str); 6] = [
    ("i8", "int8_t"),
    ("i16", "int16_t"),
    ("i32", "int32_t"),
    ("u8", "uint8_t"),
    ("u16", "uint16_t"),
    ("u32", "uint32_t"),
];
