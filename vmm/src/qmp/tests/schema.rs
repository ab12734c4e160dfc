//! The schema against the dispatcher.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::harness::{Client, run};
use crate::qmp::schema::schema;
use crate::qmp::{blockdev, session};

/// The entries by name.
fn entries() -> BTreeMap<String, Value> {
    let all = schema();
    let count = all.len();
    let by_name: BTreeMap<_, _> = all
        .into_iter()
        .map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry))
        .collect();
    assert_eq!(by_name.len(), count, "a name is there twice");
    by_name
}

fn commands(entries: &BTreeMap<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    let is_command = |(_, entry): &(&String, &Value)| entry["meta-type"] == "command";
    entries.iter().filter(is_command)
}

/// The members of a command's arguments: names, and whether they may be absent.
fn arguments<'a>(
    entries: &'a BTreeMap<String, Value>,
    command: &Value,
) -> impl Iterator<Item = (&'a str, bool)> {
    let kind = &entries[command["arg-type"].as_str().unwrap()];
    assert_eq!(kind["meta-type"], "object", "{command}");
    kind["members"].as_array().unwrap().iter().map(|member| {
        let name = member["name"].as_str().unwrap();
        (name, member.get("default").is_some())
    })
}

#[test]
fn commands_are_those_that_are_dispatched() {
    let entries = entries();
    let described: Vec<_> = commands(&entries).map(|(name, _)| name.as_str()).collect();
    let mut dispatched: Vec<_> = session::command_names().collect();
    dispatched.sort_unstable();
    assert_eq!(described, dispatched);
}

/// Every type that an entry names is described, and as the kind of thing that belongs there.
#[test]
fn every_type_that_is_named_is_there() {
    let entries = entries();
    let check = |name: &Value| {
        let name = name.as_str().unwrap();
        assert!(entries.contains_key(name), "{name} is missing");
    };
    for entry in entries.values() {
        for member in ["arg-type", "ret-type", "element-type"] {
            entry.get(member).into_iter().for_each(check);
        }
        for list in ["members", "variants"] {
            let items = entry.get(list).and_then(Value::as_array);
            for item in items.into_iter().flatten() {
                item.get("type").into_iter().for_each(check);
            }
        }
        if let Some(tag) = entry.get("tag") {
            let mut members = entry["members"].as_array().unwrap().iter();
            let tag = members.find(|member| member["name"] == *tag).unwrap();
            let words = &entries[tag["type"].as_str().unwrap()]["values"];
            assert_eq!(
                words.as_array().unwrap().len(),
                entry["variants"].as_array().unwrap().len()
            );
        }
    }
}

/// Commands that do something if they are given nothing.
fn is_harmless(name: &str) -> bool {
    !matches!(name, "quit" | "qmp_capabilities")
}

/// The dispatcher is asked: an argument that the schema doesn't have is unexpected, one that it calls mandatory is
/// missing if it is left out.
#[test]
fn arguments_are_those_that_are_read() {
    run(|world| {
        let entries = entries();
        let mut client = world.client();
        let mut mandatory = 0;
        for (name, command) in commands(&entries).filter(|(name, _)| is_harmless(name)) {
            let union = entries[command["arg-type"].as_str().unwrap()]
                .get("tag")
                .is_some();
            let missing = arguments(&entries, command).find(|(_, optional)| !optional);
            let refused = |given: Value, client: &mut Client| {
                let reply = client.execute(&json!({"execute": name, "arguments": given}));
                reply["error"]["desc"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            if let Some((missing, _)) = missing {
                mandatory += 1;
                let said = refused(json!({}), &mut client);
                let all: Vec<_> = arguments(&entries, command)
                    .filter(|(_, optional)| !optional)
                    .map(|(name, _)| format!("Parameter '{name}' is missing"))
                    .collect();
                assert!(all.contains(&said), "{name} without {missing}: {said}");
            }
            if !union {
                let said = refused(json!({"x-nonesuch": 1}), &mut client);
                let expected = "Parameter 'x-nonesuch' is unexpected";
                let missing = said.ends_with("is missing");
                assert!(said == expected || missing, "{name}: {said}");
            }
        }
        assert!(mandatory > 20, "{mandatory}");
    });
}

#[test]
fn nodes_have_the_members_of_their_drivers() {
    let entries = entries();
    let add = &entries["blockdev-add"];
    let nodes = &entries[add["arg-type"].as_str().unwrap()];
    assert_eq!(nodes["tag"], "driver");
    let variants = nodes["variants"].as_array().unwrap();
    let cases: Vec<_> = variants
        .iter()
        .map(|one| one["case"].as_str().unwrap())
        .collect();
    assert_eq!(cases, blockdev::DRIVERS);
    let members = |driver: &str| {
        let variant = variants.iter().find(|one| one["case"] == driver).unwrap();
        &entries[variant["type"].as_str().unwrap()]["members"]
    };
    let find = |driver: &str, name: &str| {
        let mut all = members(driver).as_array().unwrap().iter();
        all.find(|member| member["name"] == name).unwrap().clone()
    };
    assert_eq!(
        find("file", "filename"),
        json!({"name": "filename", "type": "str"})
    );
    assert_eq!(find("raw", "size")["default"], Value::Null);
    // A child is a name, or a node again.
    let child = find("raw", "file");
    let alternatives = &entries[child["type"].as_str().unwrap()];
    assert_eq!(alternatives["meta-type"], "alternate");
    assert_eq!(
        alternatives["members"],
        json!([{"type": "str"}, {"type": add["arg-type"]}])
    );
}
