//! Turns loosely typed input into typed options, with QEMU's error texts.
//!
//! A [`serde`] deserializer over [`serde_json::Value`] that knows where it is, so that every error
//! names the parameter by its full path (`file.driver`, `bitmaps[0]`). It serves QMP arguments and
//! JSON on the command line ([`Scalars::Typed`]), and key=value options, where every scalar is text
//! and its meaning follows from the type asked for ([`Scalars::Text`]: `on`/`off` for booleans,
//! decimal, hexadecimal or suffixed sizes for integers).
//!
//! For a struct, what is missing is reported before what is unexpected, as QEMU does; unknown
//! members are refused whether or not the type says `deny_unknown_fields`. Pure functions; any
//! thread.

mod deserializer;
mod error;
mod scalar;
#[cfg(test)]
mod tests;

pub use error::InputError;
pub use scalar::parse_size;

use deserializer::Input;
use serde::Deserialize;
use serde_json::Value;

/// How scalars are written in the input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scalars {
    /// As JSON has them.
    Typed,
    /// All as text.
    Text,
}

/// Reads a `T` out of `value`.
///
/// # Errors
/// An [`InputError`] that names the parameter at fault.
pub fn from_value<'de, T: Deserialize<'de>>(
    value: Value,
    scalars: Scalars,
) -> Result<T, InputError> {
    from_value_at(value, "", scalars)
}

/// As [`from_value`], for a part of the input that `path` leads to.
///
/// # Errors
/// As [`from_value`].
pub(super) fn from_value_at<'de, T: Deserialize<'de>>(
    value: Value,
    path: &str,
    scalars: Scalars,
) -> Result<T, InputError> {
    T::deserialize(Input::new(value, path, scalars)).map_err(|error| error.at(path))
}
