//! Tests of typed input.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Scalars, from_value, parse_size};

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Unmap,
    WriteBlocking,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Inner {
    size: u64,
    #[serde(default)]
    flag: bool,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Outer {
    node_name: String,
    speed: Option<i64>,
    mode: Option<Mode>,
    file: Option<Inner>,
    list: Option<Vec<u8>>,
    #[serde(default, deserialize_with = "sluice_block::unsigned::uint32")]
    granularity: Option<u32>,
    #[serde(default, deserialize_with = "sluice_block::unsigned::uint64")]
    boundary: Option<u64>,
    #[expect(clippy::option_option, reason = "absent, null and given differ")]
    backing: Option<Option<String>>,
}

fn typed(value: Value) -> Result<Outer, String> {
    from_value(value, Scalars::Typed).map_err(|e| e.to_string())
}

fn text(value: Value) -> Result<Outer, String> {
    from_value(value, Scalars::Text).map_err(|e| e.to_string())
}

// The texts were seen from qemu-storage-daemon 10.0.2, but for numbers that can't be negative, which it takes.
#[test]
fn errors_have_qemus_text_and_the_full_path() {
    let cases = [
        (json!({}), "Parameter 'node-name' is missing"),
        (json!({"x": 1}), "Parameter 'node-name' is missing"),
        (
            json!({"node-name": "n", "x": 1}),
            "Parameter 'x' is unexpected",
        ),
        (
            json!({"node-name": 1}),
            "Invalid parameter type for 'node-name', expected: string",
        ),
        (
            json!({"node-name": "n", "speed": "1"}),
            "Invalid parameter type for 'speed', expected: integer",
        ),
        (
            json!({"node-name": "n", "speed": null}),
            "Invalid parameter type for 'speed', expected: integer",
        ),
        (
            json!({"node-name": "n", "speed": 1.5}),
            "Invalid parameter type for 'speed', expected: integer",
        ),
        (
            json!({"node-name": "n", "mode": "x"}),
            "Parameter 'mode' does not accept value 'x'",
        ),
        (
            json!({"node-name": "n", "mode": {}}),
            "Invalid parameter type for 'mode', expected: string",
        ),
        (
            json!({"node-name": "n", "file": []}),
            "Invalid parameter type for 'file', expected: object",
        ),
        (
            json!({"node-name": "n", "file": {}}),
            "Parameter 'file.size' is missing",
        ),
        (
            json!({"node-name": "n", "file": {"size": 1, "y": 2}}),
            "Parameter 'file.y' is unexpected",
        ),
        (
            json!({"node-name": "n", "file": {"size": -1}}),
            "Parameter 'file.size' expects a non-negative value",
        ),
        (
            json!({"node-name": "n", "list": [1, "a"]}),
            "Invalid parameter type for 'list[1]', expected: integer",
        ),
        (
            json!({"node-name": "n", "list": [256]}),
            "Parameter 'list[0]' expects int8_t",
        ),
        (
            json!({"node-name": "n", "file": {"size": 1_u64 << 63}}),
            "Invalid parameter type for 'file.size', expected: integer",
        ),
        (
            json!({"node-name": "n", "granularity": "1"}),
            "Parameter 'granularity' expects uint64",
        ),
        (
            json!({"node-name": "n", "granularity": null}),
            "Parameter 'granularity' expects uint64",
        ),
        (
            json!({"node-name": "n", "granularity": 1_u64 << 32}),
            "Parameter 'granularity' expects uint32_t",
        ),
        (
            json!({"node-name": "n", "granularity": -1}),
            "Parameter 'granularity' expects uint32_t",
        ),
        (
            json!({"node-name": "n", "boundary": true}),
            "Parameter 'boundary' expects uint64",
        ),
        (
            json!({"node-name": "n", "boundary": -1}),
            "Parameter 'boundary' expects a non-negative value",
        ),
        (json!([]), "Invalid parameter type for '', expected: object"),
    ];
    for (value, expected) in cases {
        assert_eq!(typed(value.clone()).unwrap_err(), expected, "for {value}");
    }
}

#[test]
fn null_differs_from_absent_only_where_the_type_says_so() {
    let absent = typed(json!({"node-name": "n"})).unwrap();
    assert_eq!(absent.backing, None);
    let null = typed(json!({"node-name": "n", "backing": null})).unwrap();
    assert_eq!(null.backing, Some(None));
    let named = typed(json!({"node-name": "n", "backing": "b"})).unwrap();
    assert_eq!(named.backing, Some(Some("b".into())));
}

#[test]
fn text_is_read_as_the_type_demands() {
    let outer = text(json!({
        "node-name": "12", "speed": "-5", "mode": "write-blocking",
        "file": {"size": "2k", "flag": "on"}, "list": ["1", "0x10"],
        "granularity": "64k", "boundary": "18446744073709551615",
    }));
    let expected = Outer {
        node_name: "12".into(),
        speed: Some(-5),
        mode: Some(Mode::WriteBlocking),
        file: Some(Inner {
            size: 2048,
            flag: true,
        }),
        list: Some(vec![1, 16]),
        granularity: Some(65536),
        boundary: Some(u64::MAX),
        backing: None,
    };
    assert_eq!(outer.unwrap(), expected);
    let bad_flag = text(json!({"node-name": "n", "file": {"size": "1", "flag": "maybe"}}));
    assert_eq!(
        bad_flag.unwrap_err(),
        "Parameter 'file.flag' expects 'on' or 'off'"
    );
    let bad_size = text(json!({"node-name": "n", "file": {"size": "1X"}}));
    assert_eq!(
        bad_size.unwrap_err(),
        "Parameter 'file.size' expects a non-negative number below 2^64"
    );
}

#[test]
fn sizes() {
    let good = [
        ("0", 0),
        ("512", 512),
        ("0x200", 512),
        ("512b", 512),
        ("1k", 1 << 10),
        ("1K", 1 << 10),
        ("64M", 64 << 20),
        ("2G", 2 << 30),
        ("1.5G", 3 << 29),
        ("0.1k", 102),
        ("15E", 15 << 60),
        ("18446744073709551615", u64::MAX),
    ];
    for (text, bytes) in good {
        assert_eq!(parse_size(text), Some(bytes), "for {text}");
    }
    for text in [
        "", "k", "-1", "+1", "1.5", "1.5b", ".5k", "1.k", "16E", "0x", "1 k", "1kB", "é",
    ] {
        assert_eq!(parse_size(text), None, "for {text}");
    }
}
