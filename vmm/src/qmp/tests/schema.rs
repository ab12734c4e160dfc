//! The schema against the dispatcher.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::harness::{Client, run};
use crate::qmp::schema::schema;
use crate::qmp::{blockdev, session};

/// The entries by name.
fn entries() -> BTreeMap<String, Value> {
    let all = schema();
    let all: Vec<_> = all
        .iter()
        .map(|one| serde_json::to_value(one).unwrap())
        .collect();
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
    let hooks = cases.contains(&"x-overlay");
    assert_eq!(hooks, cfg!(feature = "test-hooks"), "no release has it");
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

/// Each reply and event is held against the schema by the client.
#[test]
fn what_jobs_and_disks_tell_is_in_the_schema() {
    run(|world| {
        let mut client = world.client();
        for name in ["source", "target"] {
            let null = json!({"driver": "null-co", "node-name": name, "size": 1 << 20, "read-zeroes": true});
            client.ok("blockdev-add", null);
        }
        client.ok("stop", json!({}));
        client.ok("cont", json!({}));
        let mirror =
            json!({"device": "source", "target": "target", "sync": "full", "job-id": "job"});
        client.ok("blockdev-mirror", mirror);
        client.wait_event("BLOCK_JOB_READY");
        let jobs = client.ok("query-block-jobs", json!({}));
        assert!(jobs[0]["x-phase"].is_string(), "{jobs}");
        client.ok("query-named-block-nodes", json!({}));
        client.ok("query-blockstats", json!({"query-nodes": true}));
        client.ok("job-complete", json!({"id": "job"}));
        let completed = client.wait_event("BLOCK_JOB_COMPLETED");
        assert!(
            completed["data"]["x-pivot-pause-us"].is_u64(),
            "{completed}"
        );
    });
}

/// What a reply is written from has no part that the schema does not understand; `any` is said where it is meant.
#[test]
fn few_things_may_be_anything() {
    let entries = entries();
    let mut anything = Vec::new();
    for (name, entry) in &entries {
        for member in ["ret-type", "element-type"] {
            if entry.get(member).is_some_and(|kind| kind == "any") {
                anything.push(name.as_str());
            }
        }
    }
    assert_eq!(anything, ["qom-get"]);
    let values = entries.values().flat_map(|entry| {
        let members = entry["members"].as_array().into_iter().flatten();
        members.filter(|member| member["type"] == "any")
    });
    let names: Vec<_> = values.map(|member| member["name"].clone()).collect();
    assert_eq!(names, ["value"], "of qom-set");
}

#[cfg(not(feature = "test-hooks"))]
#[test]
fn nothing_is_announced_that_can_only_fail() {
    run(|world| {
        let mut client = world.client();
        let entries = entries();
        for name in ["node", "overlay"] {
            client.ok(
                "blockdev-add",
                json!({"driver": "null-co", "node-name": name}),
            );
        }
        for (command, arguments) in [
            ("block-stream", json!({"device": "node"})),
            ("block-commit", json!({"device": "node"})),
            (
                "blockdev-snapshot",
                json!({"node": "node", "overlay": "overlay"}),
            ),
            (
                "blockdev-snapshot-sync",
                json!({"node-name": "node", "snapshot-file": "/x", "snapshot-node-name": "y"}),
            ),
        ] {
            assert!(!entries.contains_key(command), "{command} is announced");
            let why = client.generic(command, arguments);
            assert!(why.contains("backing image"), "{command}: {why}");
        }
    });
}
