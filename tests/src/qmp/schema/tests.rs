use serde_json::json;

use super::*;

/// Every kind of type, a command that returns them all, and an event.
fn schema() -> Schema {
    Schema::new(&json!([
        {"name": "str", "meta-type": "builtin", "json-type": "string"},
        {"name": "int", "meta-type": "builtin", "json-type": "int"},
        {"name": "null", "meta-type": "builtin", "json-type": "null"},
        {"name": "any", "meta-type": "builtin", "json-type": "value"},
        {"name": "word", "meta-type": "enum", "values": ["a", "b"], "members": [{"name": "a"}, {"name": "b"}]},
        {"name": "[int]", "meta-type": "array", "element-type": "int"},
        {"name": "either", "meta-type": "alternate", "members": [{"type": "int"}, {"type": "null"}]},
        {"name": "of-a", "meta-type": "object", "members": [{"name": "own", "type": "str"}]},
        {"name": "of-b", "meta-type": "object", "members": []},
        {"name": "all", "meta-type": "object", "tag": "word", "members": [
            {"name": "word", "type": "word"},
            {"name": "list", "type": "[int]"},
            {"name": "either", "type": "either"},
            {"name": "rest", "type": "any", "default": null},
        ], "variants": [{"case": "a", "type": "of-a"}, {"case": "b", "type": "of-b"}]},
        {"name": "ask", "meta-type": "command", "arg-type": "of-b", "ret-type": "all"},
        {"name": "HAPPENED", "meta-type": "event", "arg-type": "of-a"},
    ]))
}

fn said(value: &Value) -> Result<(), String> {
    schema().check_reply("ask", &json!({"return": value}))
}

#[test]
fn what_the_schema_says_is_accepted() {
    for good in [
        json!({"word": "a", "own": "x", "list": [1, -2], "either": null, "rest": [{}]}),
        json!({"word": "b", "list": [], "either": u64::MAX}),
    ] {
        said(&good).unwrap();
    }
    let time = json!({"seconds": 1, "microseconds": 2});
    let event = json!({"event": "HAPPENED", "data": {"own": "x"}, "timestamp": time});
    schema().check_event(&event).unwrap();
    let error = json!({"error": {"class": "GenericError", "desc": "x"}});
    schema().check_reply("unknown", &error).unwrap();
}

#[test]
fn whatever_it_does_not_say_is_noticed() {
    let good = json!({"word": "b", "list": [1], "either": 1});
    let with = |name: &str, value: Value| {
        let mut bad = good.clone();
        bad[name] = value;
        bad
    };
    let without = json!({"word": "b", "list": [1]});
    for (bad, expected) in [
        (json!([]), "ask: [] is not an object"),
        (without, "ask: member 'either' is missing"),
        (with("more", json!(1)), "ask: member 'more' is unexpected"),
        // A member of another variant.
        (with("own", json!("x")), "ask: member 'own' is unexpected"),
        (with("word", json!("a")), "ask: member 'own' is missing"),
        (
            with("word", json!("c")),
            "ask.word: \"c\" is not one of [\"a\",\"b\"]",
        ),
        (with("list", json!(1)), "ask.list: 1 is not a list"),
        (
            with("list", json!([1, "x"])),
            "ask.list[1]: \"x\" is not int",
        ),
        (with("list", json!([1.5])), "ask.list[0]: 1.5 is not int"),
        (
            with("either", json!("x")),
            "ask.either: \"x\" is not any of the alternatives",
        ),
    ] {
        assert_eq!(said(&bad).unwrap_err(), expected);
    }
    let unlisted = schema().check_reply("other", &json!({"return": {}}));
    assert_eq!(
        unlisted.unwrap_err(),
        "other has an answer, and is not in the schema"
    );
    for error in [
        json!({"class": "OtherError", "desc": "x"}),
        json!({"class": "GenericError", "desc": ""}),
        json!({"class": "GenericError", "desc": "x", "more": 1}),
    ] {
        assert!(
            schema()
                .check_reply("ask", &json!({"error": error}))
                .is_err()
        );
    }
}

#[test]
fn events_are_held_against_it_too() {
    let time = json!({"seconds": 1, "microseconds": 2});
    for (bad, expected) in [
        (
            json!({"event": "OTHER", "timestamp": time}),
            "is not in the schema",
        ),
        (
            json!({"event": "HAPPENED", "timestamp": time}),
            "member 'own' is missing",
        ),
        (
            json!({"event": "HAPPENED", "data": {"own": "x"}}),
            "no seconds in its time",
        ),
        (
            json!({"event": "HAPPENED", "data": {"own": "x"}, "timestamp": time, "more": 1}),
            "member 'more' is unexpected",
        ),
    ] {
        let said = schema().check_event(&bad).unwrap_err();
        assert!(said.ends_with(expected), "{said}");
    }
}
