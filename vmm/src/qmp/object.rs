//! Reads the options of a helper object, from `object-add` or from `--object`.
//!
//! The options form a union whose kind stands in the member `qom-type`; each kind is read by its
//! own type, so that errors name the parameter and text from the command line gets the right type.

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_block::driver::throttle::ThrottleLimits;

use super::input::{self, InputError, Scalars};
use super::schema::{self, Member, Shape};
use crate::storage::IoThreadConfig;

/// The types of objects.
pub const KINDS: &[&str] = &["iothread", "throttle-group"];

/// One object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ObjectOptions {
    /// A thread that serves disks.
    IoThread(IoThreadConfig),
    /// Limits that disks share.
    ThrottleGroup(ThrottleGroupObject),
}

/// `throttle-group`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ThrottleGroupObject {
    /// By which nodes refer to it.
    pub id: String,
    /// What it allows.
    #[serde(default)]
    pub limits: ThrottleLimits,
}

impl ObjectOptions {
    /// The object's name.
    pub fn id(&self) -> &str {
        match self {
            Self::IoThread(thread) => &thread.id,
            Self::ThrottleGroup(group) => &group.id,
        }
    }
}

/// The newtype by which commands refer to these options in the schema.
pub const OBJECT_OPTIONS: &str = "ObjectArguments";

/// The options of an object as a command's arguments, to be [`read`].
#[derive(Clone, Debug, Deserialize)]
pub struct ObjectArguments(pub Value);

/// What [`read`] takes.
pub fn shape() -> Shape {
    let member = |name: &str, shape| Member {
        name: name.to_owned(),
        shape,
        optional: false,
    };
    let kinds = KINDS.iter().map(|kind| (*kind).to_owned()).collect();
    let variant = |kind: &&str| {
        let shape = match *kind {
            "iothread" => schema::shape_of::<IoThreadConfig>(),
            "throttle-group" => schema::shape_of::<ThrottleGroupObject>(),
            _ => Shape::ANY,
        };
        // Those that each object has are told of once.
        let members = schema::members_of([shape]).into_iter();
        let mut own: Vec<_> = members.filter(|member| member.name != "id").collect();
        if *kind == "throttle-group" {
            own.extend(single_limits());
        }
        ((*kind).to_owned(), Shape::Object(own))
    };
    Shape::Union {
        members: vec![
            member("qom-type", Shape::Enum(kinds)),
            member("id", Shape::STR),
        ],
        tag: "qom-type".to_owned(),
        variants: KINDS.iter().map(variant).collect(),
    }
}

/// The limits as [`gather_limits`] takes them one by one.
fn single_limits() -> impl Iterator<Item = Member> {
    let limits = schema::members_of([schema::shape_of::<ThrottleLimits>()]).into_iter();
    limits.map(|limit| Member {
        name: format!("{SINGLE}{}", limit.name),
        ..limit
    })
}

/// What a limit that stands alone begins with.
const SINGLE: &str = "x-";

/// Reads `value` as an object's options.
///
/// # Errors
/// An [`InputError`] that names the parameter at fault.
pub fn read(value: Value, scalars: Scalars) -> Result<ObjectOptions, InputError> {
    let Value::Object(mut members) = value else {
        return Err(InputError::wrong_type("arguments", "object"));
    };
    let kind = match members.remove("qom-type") {
        Some(Value::String(kind)) => kind,
        Some(_) => return Err(InputError::wrong_type("qom-type", "string")),
        None => return Err(InputError::missing("qom-type")),
    };
    match kind.as_str() {
        "iothread" => {
            input::from_value(Value::Object(members), scalars).map(ObjectOptions::IoThread)
        }
        "throttle-group" => {
            gather_limits(&mut members, scalars)?;
            input::from_value(Value::Object(members), scalars).map(ObjectOptions::ThrottleGroup)
        }
        _ => Err(InputError::bad_value("qom-type", kind, KINDS)),
    }
}

/// Moves the single properties (`x-bps-total`), which the command line of QEMU has too, to the
/// members of `limits` that they mean.
fn gather_limits(members: &mut Map<String, Value>, scalars: Scalars) -> Result<(), InputError> {
    let single: Vec<String> = members
        .keys()
        .filter(|key| single_limits().any(|limit| limit.name == **key))
        .cloned()
        .collect();
    if single.is_empty() {
        return Ok(());
    }
    let limits = members
        .entry("limits")
        .or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(mut limits) = limits.take() else {
        return Err(InputError::wrong_type("limits", "object"));
    };
    for name in single {
        if let (Some(value), Some(limit)) = (members.remove(&name), name.strip_prefix(SINGLE)) {
            // What is wrong with one is told of it by the name that it was given by.
            let alone = Map::from_iter([(limit.to_owned(), value.clone())]);
            let _: ThrottleLimits = input::from_value(Value::Object(alone), scalars)
                .map_err(|error| error.prefixed(SINGLE))?;
            limits.insert(limit.to_owned(), value);
        }
    }
    members.insert("limits".to_owned(), Value::Object(limits));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_given_together_or_one_by_one() {
        let expected = ObjectOptions::ThrottleGroup(ThrottleGroupObject {
            id: "g".to_owned(),
            limits: ThrottleLimits {
                bps_total: 1 << 20,
                iops_read: 7,
                ..ThrottleLimits::default()
            },
        });
        let typed = json!({"qom-type": "throttle-group", "id": "g",
                           "limits": {"bps-total": 1 << 20, "iops-read": 7}});
        assert_eq!(read(typed, Scalars::Typed), Ok(expected.clone()));
        let text = json!({"qom-type": "throttle-group", "id": "g",
                          "limits": {"bps-total": "1M"}, "x-iops-read": "7"});
        assert_eq!(read(text, Scalars::Text), Ok(expected));
    }

    #[test]
    fn errors_name_the_parameter() {
        let cases = [
            (json!({"id": "a"}), "Parameter 'qom-type' is missing"),
            (
                json!({"qom-type": "secret", "id": "a"}),
                "Parameter 'qom-type' does not accept value 'secret'",
            ),
            (json!({"qom-type": "iothread"}), "Parameter 'id' is missing"),
            (
                json!({"qom-type": "iothread", "id": "a", "poll-max-ns": "1"}),
                "Invalid parameter type for 'poll-max-ns', expected: integer",
            ),
            (
                json!({"qom-type": "throttle-group", "id": "a", "limits": {"bps": 1}}),
                "Parameter 'limits.bps' is unexpected",
            ),
            (
                json!({"qom-type": "throttle-group", "id": "a", "x-bps-total": "1"}),
                "Invalid parameter type for 'x-bps-total', expected: integer",
            ),
            (
                json!({"qom-type": "iothread", "id": "a", "x-bps-total": 1}),
                "Parameter 'x-bps-total' is unexpected",
            ),
        ];
        for (value, expected) in cases {
            let said = read(value.clone(), Scalars::Typed).unwrap_err().to_string();
            assert_eq!(said, expected, "for {value}");
        }
    }
}
