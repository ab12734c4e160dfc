//! Messages that are made from QEMU's own schema: each argument of each command that both have, of another type.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Findings, Pair, command};

/// Commands that are not asked for: `device_add`'s arguments are not in QEMU's schema.
const LEFT_OUT: &[&str] = &["device_add"];

/// How deep arguments are changed.
const DEEPEST: usize = 4;

/// What one of them can be asked for, by the schema's names for types.
struct Schema(BTreeMap<String, Value>);

impl Schema {
    fn of(told: &Value) -> Self {
        let entry = |entry: &Value| (entry["name"].as_str().unwrap().to_owned(), entry.clone());
        Self(told.as_array().unwrap().iter().map(entry).collect())
    }

    fn commands(&self) -> BTreeSet<&str> {
        let commands = self
            .0
            .iter()
            .filter(|(_, entry)| entry["meta-type"] == "command");
        commands.map(|(name, _)| name.as_str()).collect()
    }

    fn members(&self, name: &Value) -> Vec<&Value> {
        let members = self.entry(name)["members"].as_array();
        members.into_iter().flatten().collect()
    }

    fn entry(&self, name: &Value) -> &Value {
        &self.0[name.as_str().unwrap()]
    }

    /// A value of that type with nothing in it that may be absent.
    fn least(&self, name: &Value) -> Value {
        let entry = self.entry(name);
        match entry["meta-type"].as_str().unwrap() {
            "enum" => entry["members"][0]["name"].clone(),
            "array" => json!([]),
            "alternate" => json!("zz"),
            "object" => Value::Object(self.least_members(self.members(name))),
            _ => match entry["json-type"].as_str().unwrap() {
                "string" => json!("zz"),
                "boolean" => json!(false),
                "null" => json!(null),
                _ => json!(1),
            },
        }
    }

    fn least_members(&self, members: Vec<&Value>) -> Map<String, Value> {
        let needed = members
            .into_iter()
            .filter(|member| member.get("default").is_none());
        needed
            .map(|member| {
                let name = member["name"].as_str().unwrap().to_owned();
                (name, self.least(&member["type"]))
            })
            .collect()
    }

    /// Values that no value of that type is, and such with one of these within. `known` tells which branches of unions
    /// both have.
    fn wrong(&self, name: &Value, depth: usize, known: &Self) -> Vec<Value> {
        let entry = self.entry(name);
        let others = |values: Value| values.as_array().unwrap().clone();
        match entry["meta-type"].as_str().unwrap() {
            "enum" => others(json!(["zz", 1, null])),
            "array" => {
                let elements = self.wrong(&entry["element-type"], depth + 1, known);
                let mut wrong = others(json!([1, "x", {}, null]));
                wrong.extend(elements.into_iter().map(|element| json!([element])));
                wrong
            }
            "alternate" => others(json!([1.5, [], true])),
            "object" => {
                let mut wrong = others(json!([1, [], "x", null]));
                wrong.extend(self.wrong_objects(name, depth, known));
                wrong
            }
            _ => match entry["json-type"].as_str().unwrap() {
                "string" => others(json!([1, null, {}])),
                "int" => others(json!(["x", 1.5, null, true, {}, 1e30])),
                "boolean" => others(json!(["true", 1, null])),
                "number" => others(json!(["x"])),
                "null" => others(json!([1])),
                _ => Vec::new(),
            },
        }
    }

    /// Objects of that type in which one member is wrong, missing or unknown.
    fn wrong_objects(&self, name: &Value, depth: usize, known: &Self) -> Vec<Value> {
        if depth > DEEPEST {
            return Vec::new();
        }
        let entry = self.entry(name);
        let common = self.members(name);
        let mut shapes = Vec::new();
        if let Some(tag) = entry["tag"].as_str() {
            for variant in entry["variants"].as_array().unwrap() {
                let case = variant["case"].as_str().unwrap();
                if !known.has_case(tag, case) {
                    continue;
                }
                let own = self.members(&variant["type"]);
                let members: Vec<_> = common.iter().copied().chain(own).collect();
                let mut least = self.least_members(members.clone());
                least.insert(tag.to_owned(), json!(case));
                shapes.push((least, members));
            }
        } else {
            shapes.push((self.least_members(common.clone()), common));
        }
        let mut objects = Vec::new();
        for (least, members) in shapes {
            let with = |name: &str, value: Value| {
                let mut object = least.clone();
                object.insert(name.to_owned(), value);
                Value::Object(object)
            };
            objects.push(with("bogus", json!(1)));
            for member in members {
                let name = member["name"].as_str().unwrap();
                let mut without = least.clone();
                if without.remove(name).is_some() {
                    objects.push(Value::Object(without));
                }
                let wrong = self.wrong(&member["type"], depth + 1, known).into_iter();
                objects.extend(wrong.map(|value| with(name, value)));
            }
        }
        objects
    }

    /// Whether some union with that tag has that branch.
    fn has_case(&self, tag: &str, case: &str) -> bool {
        self.0.values().any(|entry| {
            let variants = entry["variants"].as_array();
            entry["tag"] == tag
                && variants.is_some_and(|all| all.iter().any(|variant| variant["case"] == case))
        })
    }
}

pub(super) fn compare_all(pair: &Pair) {
    let mut ours = pair.ours.talk();
    let mut theirs = pair.theirs.talk();
    let mut schemas = [&mut ours, &mut theirs].map(|talk| {
        talk.negotiate();
        Schema::of(&talk.execute("query-qmp-schema"))
    });
    let [known, schema] = &mut schemas;
    let mut findings = Findings::default();
    for name in schema.commands().intersection(&known.commands()) {
        if LEFT_OUT.contains(name) {
            continue;
        }
        let arguments = &schema.0[*name]["arg-type"];
        for arguments in schema.wrong_objects(arguments, 0, known) {
            let message = command(name, &arguments).to_string();
            let said = [&mut ours, &mut theirs].map(|talk| talk.ask(message.as_bytes()));
            findings.compare(message.as_bytes(), &said[0], &said[1]);
        }
    }
    assert!(
        findings.compared > 1000,
        "only {} messages",
        findings.compared
    );
    findings.judge();
}
