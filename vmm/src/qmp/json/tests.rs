//! Tests of the stream framer and the parser.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Framer, JsonError, Limits, parse};

fn frames(bytes: &[u8]) -> Vec<Result<Value, JsonError>> {
    let mut framer = Framer::default();
    framer.push(bytes);
    parsed(&mut framer)
}

/// What is complete.
fn parsed(framer: &mut Framer) -> Vec<Result<Value, JsonError>> {
    let texts = std::iter::from_fn(|| framer.pop());
    texts.map(|text| parse(&text?)).collect()
}

fn error_of(text: &str) -> String {
    parse(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn messages_need_no_separator() {
    let frames = frames(br#"{"execute":"a"}{"execute":"b"}[1] {"c":"}{"}"#);
    let expected = [
        json!({"execute": "a"}),
        json!({"execute": "b"}),
        json!([1]),
        json!({"c": "}{"}),
    ];
    assert_eq!(frames, expected.map(Ok));
}

#[test]
fn a_message_may_arrive_in_any_pieces() {
    let text = br#" {"execute": 'it\'s', "n": [-1, 2.5e3, true, null, "\u00e9\ud83d\ude00"]} "#;
    let whole = frames(text);
    let mut framer = Framer::default();
    for byte in text {
        framer.push(&[*byte]);
    }
    let pieces = parsed(&mut framer);
    assert_eq!(pieces, whole);
    let expected = json!({"execute": "it's", "n": [-1, 2500.0, true, null, "é😀"]});
    assert_eq!(whole, [Ok(expected)]);
}

#[test]
fn integers_keep_64_bits() {
    assert_eq!(parse(b"18446744073709551615").unwrap(), json!(u64::MAX));
    assert_eq!(parse(b"-9223372036854775808").unwrap(), json!(i64::MIN));
    assert_eq!(parse(b"-0").unwrap(), json!(0));
    assert_eq!(parse(b"-0.0").unwrap(), json!(-0.0));
}

// The texts were seen from qemu-storage-daemon 10.0.2, but for the last five, which a stream can't have.
#[test]
fn syntax_errors_say_what_is_wrong() {
    let cases = [
        ("{\"a\": foo}", "invalid keyword 'foo'"),
        ("{\"a\": }", "expecting value"),
        ("{a: 1}", "invalid keyword 'a'"),
        ("{1: 1}", "key is not a string in object"),
        ("{\"a\": 1,}", "expecting value"),
        ("{\"a\" 1}", "missing : in object pair"),
        ("{\"a\": 1 2}", "expected separator in dict"),
        ("[1 2]", "expected separator in list"),
        ("[0x1]", "expected separator in list"),
        ("{\"a\":1,\"a\":2}", "duplicate key"),
        ("[01]", "stray '01'"),
        ("[-]", "stray '-]'"),
        ("[1.]", "stray '1.]'"),
        ("[1e+]", "stray '1e+]'"),
        ("[+1]", "stray '+'"),
        ("{\"a\": @x}", "stray '@'"),
        ("{\"a\": True}", "stray 'T'"),
        ("\"a\tb\"", "stray '\"a\t'"),
        ("\"é\x7f\n", "stray '\"é\x7f\n'"),
        (r#""\u12""#, "\\u12\" is not a valid Unicode character"),
        (r#""\u12G4""#, "\\u12G4 is not a valid Unicode character"),
        (r#""\ud800""#, "\\ud800 is not a valid Unicode character"),
        (
            r#""\ud800\u0041""#,
            "\\ud800 is not a valid Unicode character",
        ),
        (r#""\udc00""#, "\\udc00 is not a valid Unicode character"),
        (r#""\q""#, "invalid escape sequence in string"),
        // QEMU shows no byte here.
        ("\"\0", "stray '\"\\x00'"),
        ("[1e999]", "invalid number '1e999'"),
        ("", "expecting value"),
        ("[1", "premature EOI"),
        ("\"a", "stray '\"a'"),
        ("{} {}", "expecting at most one value"),
    ];
    for (text, expected) in cases {
        let expected = format!("JSON parse error, {expected}");
        assert_eq!(error_of(text), expected, "for {text}");
    }
    assert_eq!(
        parse(b"\"\xc3\"").unwrap_err().to_string(),
        "JSON parse error, invalid UTF-8 sequence in string"
    );
    assert_eq!(
        parse(b"\"\xff\"").unwrap_err().to_string(),
        "JSON parse error, stray '\"\\xff'"
    );
}

#[test]
fn a_stray_token_is_shown_with_a_bound() {
    let text = format!("\"{}\n", "x".repeat(1 << 20));
    assert!(error_of(&text).len() < 2000);
    let [Err(error)] = &frames(text.as_bytes())[..] else {
        panic!("not one error");
    };
    assert!(error.to_string().len() < 2000);
}

// Seen from qemu-storage-daemon 10.0.2.
#[test]
fn garbage_between_messages_has_one_error_up_to_the_next_bracket_or_line() {
    let cases: [(&[u8], &[&str]); 9] = [
        (b"// foo bar\n", &["stray '/'"]),
        (b"@\"x\" y\n", &["stray '@'"]),
        (b"\0\0", &["stray '\\x00'", "stray '\\x00'"]),
        (b"%d {", &["stray '%'"]),
        (b"a-b\n", &["invalid keyword 'a'", "stray '-b'"]),
        (b"\"a\rb\"\n", &["stray '\"a\r'"]),
        (b"{\"a\": \"b\nc\"}", &["stray '\"b\n'", "expecting value"]),
        (b"{\"a\": \x01 1}", &["stray '\x01'", "expecting value"]),
        (b"[[}", &["expecting value"]),
    ];
    for (text, expected) in cases {
        let said = frames(text)
            .into_iter()
            .map(|frame| frame.unwrap_err().to_string());
        let expected: Vec<_> = expected
            .iter()
            .map(|error| format!("JSON parse error, {error}"))
            .collect();
        assert_eq!(
            said.collect::<Vec<_>>(),
            expected,
            "for {}",
            text.escape_ascii()
        );
    }
}

#[test]
fn a_message_is_refused_before_its_end_and_only_once() {
    let mut framer = Framer::default();
    framer.push(b"{\"a\": @");
    assert_eq!(framer.pop(), Some(Err(JsonError::syntax("stray '@'"))));
    framer.push(b"@, \"}\": [{\"execute\": \"quit\"}, +]}{}");
    assert_eq!(framer.pop(), Some(Ok(b"{}".to_vec())));
    assert_eq!(framer.pop(), None);
}

#[test]
fn one_error_per_bad_message_then_the_next_is_understood() {
    let frames = frames(b"{\"a\": foo, \"b\": {\"execute\": \"quit\"}} } {\"execute\":\"x\"}");
    assert_eq!(frames.len(), 3, "{frames:?}");
    assert!(frames[0].is_err());
    assert!(
        frames[1].is_err(),
        "a lone closing brace is an error of its own"
    );
    assert_eq!(frames[2], Ok(json!({"execute": "x"})));
}

#[test]
fn a_control_character_spoils_only_its_message() {
    let frames = frames(b"{\"a\": \"\x01\", \"b\": {\"execute\": \"quit\"}}{\"execute\":\"x\"}");
    let expected = JsonError::syntax("stray '\"\x01'");
    assert_eq!(frames, [Err(expected), Ok(json!({"execute": "x"}))]);
}

#[test]
fn reset_byte_and_line_end_in_string_resynchronise() {
    for spoiler in [
        &b"{\"a\": [\"open \xff"[..],
        b"{\"a\": [\"open \n",
        b"{\"a\": [1,\xfe",
    ] {
        let mut stream = spoiler.to_vec();
        stream.extend_from_slice(b"{\"execute\":\"x\"}");
        let frames = frames(&stream);
        assert_eq!(frames.len(), 2, "{frames:?}");
        assert!(frames[0].is_err());
        assert_eq!(frames[1], Ok(json!({"execute": "x"})));
    }
}

#[test]
fn limits_refuse_the_message_and_keep_no_more_memory() {
    let limits = Limits {
        bytes: 64,
        tokens: 16,
        nesting: 4,
    };
    let cases: [(Vec<u8>, JsonError); 3] = [
        (
            [&b"{\"a\":\""[..], &[b'x'; 1000], b"\"}"].concat(),
            JsonError::Size,
        ),
        (
            [b"[", b"1,".repeat(20).as_slice(), b"1]"].concat(),
            JsonError::Tokens,
        ),
        (
            [b"[".repeat(6), b"]".repeat(6)].concat(),
            JsonError::Nesting,
        ),
    ];
    for (message, expected) in cases {
        let mut framer = Framer::new(limits);
        for byte in &message {
            framer.push(&[*byte]);
            assert!(framer.pending_bytes() <= limits.bytes);
        }
        framer.push(b"{}");
        assert_eq!(framer.pop(), Some(Err(expected)));
        assert_eq!(framer.pop(), Some(Ok(b"{}".to_vec())));
        assert_eq!(framer.pop(), None);
    }
}

#[test]
fn full_nesting_is_accepted_and_one_more_is_not() {
    let nesting = Limits::default().nesting;
    let nested = |n: usize| [b"[".repeat(n), b"]".repeat(n)].concat();
    assert!(frames(&nested(nesting))[0].is_ok());
    assert_eq!(frames(&nested(nesting + 1)), [Err(JsonError::Nesting)]);
    assert_eq!(parse(&nested(nesting + 1)), Err(JsonError::Nesting));
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(".*", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_serde_json_writes_is_read_back(value in json_value()) {
        let text = serde_json::to_vec(&value).unwrap();
        prop_assert_eq!(parse(&text), Ok(value));
    }

    #[test]
    fn any_bytes_are_survived_and_cut_alike_in_any_pieces(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        piece in 1_usize..20,
    ) {
        let mut framer = Framer::default();
        for chunk in bytes.chunks(piece) {
            framer.push(chunk);
        }
        let pieces = parsed(&mut framer);
        prop_assert_eq!(pieces, frames(&bytes));
    }

    #[test]
    fn json_like_noise_is_survived(text in r#"[\[\]{}:,"'\\a-f0-9 \n]{0,80}"#) {
        frames(text.as_bytes());
        let _ = parse(text.as_bytes());
        // Whatever came before, a reset byte makes the next message understood.
        let last = frames(&[text.as_bytes(), b"\xff{}"].concat()).pop();
        prop_assert_eq!(last, Some(Ok(json!({}))));
    }
}
