//! Numbers that QEMU's interface declares as unsigned.
//!
//! Whoever reads one from text of some other type is told of it in other words than for the numbers that are
//! declared as `int`, though most of those can't be negative either: `Parameter 'granularity' expects uint64`, and
//! `Invalid parameter type for 'size', expected: integer`. For serde, such a number is a newtype called [`NAME`], by
//! which a deserializer may know it; for any other it is just a number. Used by types of arguments and options.

use serde::{Deserialize, Deserializer};

/// What the newtype is called towards a deserializer.
pub const NAME: &str = "uint64";

/// A number that is declared as unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename = "uint64")]
pub struct Unsigned<T>(pub T);

/// For serde's `deserialize_with`: a field that is declared as `uint64` or `size`, optional or not.
///
/// # Errors
/// Those of the deserializer.
pub fn uint64<'de, T: From<u64>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Unsigned::<u64>::deserialize(deserializer).map(|number| number.0.into())
}

/// For serde's `deserialize_with`: an optional field that is declared as `uint32`, whatever holds it.
///
/// # Errors
/// Those of the deserializer.
pub fn uint32<'de, T: From<u32>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Unsigned::<u32>::deserialize(deserializer).map(|number| Some(number.0.into()))
}
