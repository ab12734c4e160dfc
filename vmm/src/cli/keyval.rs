//! The `key=value,key=value` notation of command line options.
//!
//! Pairs are separated by commas; a comma within a value is written twice. A dot in a key goes one
//! level down (`file.driver=file`), and keys `0`, `1`, … make a list (`bitmaps.0=a`). For options
//! that have an *implied key* the first piece may be a bare value (`virtio-blk-pci,drive=d0`). The
//! result is a tree whose leaves are all text; [`crate::qmp::input`] gives them their types.

use serde_json::{Map, Value};
use thiserror::Error;

/// The most levels that a key may have; no option comes near it.
const DEEPEST_KEY: usize = 32;

/// Why an option's value is not in the notation.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum KeyvalError {
    /// A piece between two commas is not `key=value`.
    #[error("Expected '=' after parameter '{0}'")]
    NoValue(String),
    /// The key is empty, or has a part that is neither a name nor a list index.
    #[error("Invalid parameter '{0}'")]
    InvalidKey(String),
    /// The same key occurs twice.
    #[error("Parameter '{0}' is given twice")]
    Twice(String),
    /// The key is used both for a value and for a group, or both for a group and for a list.
    #[error("Parameters '{0}.*' used inconsistently")]
    Inconsistent(String),
    /// A list lacks an item before its last one.
    #[error("Parameter '{0}' is missing")]
    Gap(String),
}

/// Parses `text`. `implied_key` is the key of a first piece that is a bare value.
///
/// # Errors
/// [`KeyvalError`], naming the key at fault.
pub fn parse(text: &str, implied_key: Option<&str>) -> Result<Value, KeyvalError> {
    let mut root = Map::new();
    let mut rest = text;
    let mut implied_key = implied_key;
    while !rest.is_empty() {
        let key_end = rest.find(['=', ',']).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(key_end);
        let (key, value_text) = match (tail.strip_prefix('='), implied_key.take()) {
            (Some(value), _) => (head, value),
            (None, Some(implied)) => (implied, rest),
            (None, None) => return Err(KeyvalError::NoValue(head.to_owned())),
        };
        let (value, after) = take_value(value_text);
        put(&mut root, key, value)?;
        rest = after;
    }
    lists_in_place(Value::Object(root), "")
}

/// `text` with the key `from` called `to`; JSON stays as it is.
pub fn rename_key(text: &str, from: &str, to: &str) -> String {
    let renamed = pieces(text).map(|piece| match piece.strip_prefix(from) {
        Some(rest) if rest.starts_with('=') => format!("{to}{rest}"),
        _ => piece.to_owned(),
    });
    renamed.collect::<Vec<_>>().join(",")
}

/// Whether `text` has keys that lie in the group `name`.
pub fn has_group(text: &str, name: &str) -> bool {
    pieces(text).any(|piece| {
        let rest = piece.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with('.') && rest.contains('='))
    })
}

/// What stands between the commas. A comma that is written twice gives an empty piece, so that joining the
/// pieces gives the text again.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
}

/// Splits off the value at the head of `text`, up to a single comma, and returns it unescaped
/// together with what follows the comma.
fn take_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some(comma) = rest.find(',') {
        value.push_str(&rest[..comma]);
        rest = &rest[comma + 1..];
        match rest.strip_prefix(',') {
            Some(escaped) => {
                value.push(',');
                rest = escaped;
            }
            None => return (value, rest),
        }
    }
    value.push_str(rest);
    (value, "")
}

fn is_index(fragment: &str) -> bool {
    let digits = !fragment.is_empty() && fragment.bytes().all(|b| b.is_ascii_digit());
    digits && (fragment == "0" || !fragment.starts_with('0'))
}

fn is_name(fragment: &str) -> bool {
    fragment.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && fragment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Stores `value` under the dotted `key`.
fn put(root: &mut Map<String, Value>, key: &str, value: String) -> Result<(), KeyvalError> {
    let fragments: Vec<&str> = key.split('.').collect();
    let valid = fragments.len() <= DEEPEST_KEY
        && fragments.iter().all(|f| is_name(f) || is_index(f))
        && fragments.first().is_some_and(|first| is_name(first));
    let Some((last, groups)) = fragments.split_last().filter(|_| valid) else {
        return Err(KeyvalError::InvalidKey(key.to_owned()));
    };
    let mut map = root;
    let mut path_length = 0;
    for group in groups {
        path_length += group.len();
        let entry = map
            .entry(*group)
            .or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(inner) = entry else {
            return Err(KeyvalError::Inconsistent(key[..path_length].to_owned()));
        };
        map = inner;
        path_length += 1; // the dot
    }
    match map.get(*last) {
        None => {
            map.insert((*last).to_owned(), Value::String(value));
            Ok(())
        }
        Some(Value::Object(_)) => Err(KeyvalError::Inconsistent(key.to_owned())),
        Some(_) => Err(KeyvalError::Twice(key.to_owned())),
    }
}

/// Turns every group whose keys are all list indices into a list.
fn lists_in_place(value: Value, path: &str) -> Result<Value, KeyvalError> {
    let Value::Object(map) = value else {
        return Ok(value);
    };
    let join = |key: &str| match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    let indices = map.keys().filter(|key| is_index(key)).count();
    if indices == 0 {
        let members = map.into_iter().map(|(key, value)| {
            let value = lists_in_place(value, &join(&key))?;
            Ok((key, value))
        });
        return members.collect::<Result<_, _>>().map(Value::Object);
    }
    if indices < map.len() {
        return Err(KeyvalError::Inconsistent(path.to_owned()));
    }
    let mut map = map;
    let items = (0..indices).map(|index| {
        let key = index.to_string();
        let item = map
            .remove(&key)
            .ok_or_else(|| KeyvalError::Gap(join(&key)))?;
        lists_in_place(item, &join(&key))
    });
    items.collect::<Result<_, _>>().map(Value::Array)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn pairs_groups_lists_and_escapes() {
        let cases = [
            ("", None, json!({})),
            ("a=1,b=2", None, json!({"a": "1", "b": "2"})),
            ("a=", None, json!({"a": ""})),
            ("a=1,", None, json!({"a": "1"})),
            ("a=x,,y,,,b=z", None, json!({"a": "x,y,", "b": "z"})),
            ("a=b=c", None, json!({"a": "b=c"})),
            (
                "raw,file.driver=file",
                Some("driver"),
                json!({"driver": "raw", "file": {"driver": "file"}}),
            ),
            ("driver=raw", Some("driver"), json!({"driver": "raw"})),
            ("a,,b", Some("path"), json!({"path": "a,b"})),
            ("b.1=y,b.0=x", None, json!({"b": ["x", "y"]})),
            (
                "b.0.c=x,b.1.c=y",
                None,
                json!({"b": [{"c": "x"}, {"c": "y"}]}),
            ),
        ];
        for (text, implied, expected) in cases {
            assert_eq!(parse(text, implied), Ok(expected), "for {text}");
        }
    }

    #[test]
    fn errors_name_the_key() {
        let cases = [
            ("a", "Expected '=' after parameter 'a'"),
            ("a=1,b,c=2", "Expected '=' after parameter 'b'"),
            ("=1", "Invalid parameter ''"),
            ("a..b=1", "Invalid parameter 'a..b'"),
            ("0=1", "Invalid parameter '0'"),
            ("a b=1", "Invalid parameter 'a b'"),
            ("a.01=1", "Invalid parameter 'a.01'"),
            ("a=1,a=2", "Parameter 'a' is given twice"),
            ("a=1,a.b=2", "Parameters 'a.*' used inconsistently"),
            ("x.a.b=2,x.a=1", "Parameters 'x.a.*' used inconsistently"),
            ("a.0=1,a.b=2", "Parameters 'a.*' used inconsistently"),
            ("a.1=1", "Parameter 'a.0' is missing"),
            ("x.a.0=1,x.a.2=1", "Parameter 'x.a.1' is missing"),
        ];
        for (text, expected) in cases {
            assert_eq!(
                parse(text, None).unwrap_err().to_string(),
                expected,
                "for {text}"
            );
        }
    }

    /// Writes a tree back in the notation.
    fn print(value: &Value) -> String {
        fn walk(value: &Value, path: &str, out: &mut Vec<String>) {
            let join = |key: &str| {
                if path.is_empty() {
                    key.to_owned()
                } else {
                    format!("{path}.{key}")
                }
            };
            match value {
                Value::Object(map) => map.iter().for_each(|(k, v)| walk(v, &join(k), out)),
                Value::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        walk(item, &join(&index.to_string()), out);
                    }
                }
                Value::String(text) => out.push(format!("{path}={}", text.replace(',', ",,"))),
                _ => unreachable!("the notation has only text"),
            }
        }
        let mut out = Vec::new();
        walk(value, "", &mut out);
        out.join(",")
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = ".{0,12}".prop_map(Value::from);
        let object = |inner| {
            prop::collection::btree_map("[a-z][a-z0-9_-]{0,6}", inner, 1..5)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        };
        let nested = leaf.prop_recursive(3, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(Value::from),
                object(inner),
            ]
        });
        prop::collection::btree_map("[a-z][a-z0-9_-]{0,6}", nested, 0..5)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(tree in tree()) {
            prop_assert_eq!(parse(&print(&tree), None), Ok(tree));
        }

        #[test]
        fn any_text_is_survived(text in ".{0,60}", noise in "[ab0-2.,=]{0,40}") {
            let _ = parse(&text, Some("implied"));
            let _ = parse(&noise, None);
        }
    }
}
