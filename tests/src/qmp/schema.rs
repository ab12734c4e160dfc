//! Holds what a machine says against what its schema says that it says.

use std::collections::BTreeMap;

use serde_json::Value;

/// The classes that an error may have.
const ERROR_CLASSES: [&str; 5] = [
    "GenericError",
    "CommandNotFound",
    "DeviceNotActive",
    "DeviceNotFound",
    "KVMMissingCap",
];

/// The answer to `query-qmp-schema`, ready to be looked up in. Any thread.
#[derive(Debug)]
pub struct Schema {
    entries: BTreeMap<String, Value>,
}

impl Schema {
    /// The schema of which `answer` is the list of entries.
    #[must_use]
    pub fn new(answer: &Value) -> Self {
        let entries = answer.as_array().into_iter().flatten();
        let named = |entry: &Value| Some((entry["name"].as_str()?.to_owned(), entry.clone()));
        Self {
            entries: entries.filter_map(named).collect(),
        }
    }

    /// Checks the reply to a command: its value, or the form of its error.
    ///
    /// # Errors
    /// What of it the schema does not allow, and where that is.
    pub fn check_reply(&self, command: &str, reply: &Value) -> Result<(), String> {
        if let Some(error) = reply.get("error") {
            let class = error["class"].as_str().unwrap_or_default();
            let words = error["desc"].as_str().unwrap_or_default();
            let known = ERROR_CLASSES.contains(&class) && !words.is_empty();
            let members = error.as_object().map_or(0, serde_json::Map::len);
            return match known && members == 2 {
                true => Ok(()),
                false => Err(format!("{command}: {error} is no error")),
            };
        }
        let entry = self.entries.get(command);
        let entry = entry.filter(|entry| entry["meta-type"] == "command");
        let Some(entry) = entry else {
            // One that clients are not told of can do nothing but refuse.
            return Err(format!("{command} has an answer, and is not in the schema"));
        };
        self.check(command, &entry["ret-type"], &reply["return"])
    }

    /// Checks an event as it came.
    ///
    /// # Errors
    /// As [`Self::check_reply`].
    pub fn check_event(&self, event: &Value) -> Result<(), String> {
        let name = event["event"].as_str().unwrap_or_default();
        let entry = self.entries.get(name);
        let entry = entry.filter(|entry| entry["meta-type"] == "event");
        let Some(entry) = entry else {
            return Err(format!("event {event} is not in the schema"));
        };
        let members = event.as_object().into_iter().flatten();
        for (member, _) in members {
            if !["event", "data", "timestamp"].contains(&member.as_str()) {
                return Err(format!("event {name}: member '{member}' is unexpected"));
            }
        }
        for member in ["seconds", "microseconds"] {
            if !event["timestamp"][member].is_i64() {
                return Err(format!("event {name}: no {member} in its time"));
            }
        }
        let nothing = Value::Object(serde_json::Map::new());
        let data = event.get("data").unwrap_or(&nothing);
        self.check(name, &entry["arg-type"], data)
    }

    fn check(&self, place: &str, kind: &Value, value: &Value) -> Result<(), String> {
        let name = kind.as_str().unwrap_or_default();
        let wrong = |what: &str| Err(format!("{place}: {value} is not {what}"));
        let Some(entry) = self.entries.get(name) else {
            return Err(format!("{place}: type {kind} is missing"));
        };
        let list = |member: &str| entry[member].as_array().into_iter().flatten();
        match entry["meta-type"].as_str().unwrap_or_default() {
            "builtin" => {
                let fits = match entry["json-type"].as_str().unwrap_or_default() {
                    "string" => value.is_string(),
                    "int" => value.is_i64() || value.is_u64(),
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    "value" => true,
                    _ => false,
                };
                if fits { Ok(()) } else { wrong(name) }
            }
            "enum" => match list("members").any(|word| word["name"] == *value) {
                true => Ok(()),
                false => wrong(&format!("one of {}", entry["values"])),
            },
            "array" => {
                let Some(items) = value.as_array() else {
                    return wrong("a list");
                };
                items.iter().enumerate().try_for_each(|(index, item)| {
                    self.check(&format!("{place}[{index}]"), &entry["element-type"], item)
                })
            }
            "alternate" => {
                let mut kinds = list("members");
                match kinds.any(|one| self.check(place, &one["type"], value).is_ok()) {
                    true => Ok(()),
                    false => wrong("any of the alternatives"),
                }
            }
            "object" => self.check_object(place, entry, value),
            other => Err(format!("{place}: {name} is of unknown kind {other}")),
        }
    }

    fn check_object(&self, place: &str, entry: &Value, value: &Value) -> Result<(), String> {
        let Some(present) = value.as_object() else {
            return Err(format!("{place}: {value} is not an object"));
        };
        let members = self.members(entry, value);
        for member in &members {
            let name = member["name"].as_str().unwrap_or_default();
            match present.get(name) {
                Some(value) => self.check(&format!("{place}.{name}"), &member["type"], value)?,
                None if member.get("default").is_some() => {}
                None => return Err(format!("{place}: member '{name}' is missing")),
            }
        }
        for name in present.keys() {
            if !members.iter().any(|member| member["name"] == **name) {
                return Err(format!("{place}: member '{name}' is unexpected"));
            }
        }
        Ok(())
    }

    /// The members of an object's type, those of its variant among them.
    fn members<'a>(&'a self, entry: &'a Value, value: &Value) -> Vec<&'a Value> {
        let mut members: Vec<_> = entry["members"].as_array().into_iter().flatten().collect();
        if let Some(tag) = entry["tag"].as_str() {
            let mut variants = entry["variants"].as_array().into_iter().flatten();
            let variant = variants.find(|variant| variant["case"] == value[tag]);
            let of = variant.and_then(|variant| self.entries.get(variant["type"].as_str()?));
            if let Some(of) = of {
                members.extend(self.members(of, value));
            }
        }
        members
    }
}

#[cfg(test)]
mod tests;
