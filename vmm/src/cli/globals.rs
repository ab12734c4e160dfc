//! `--global`: properties of a kind of device where its `--device` or `--drive` does not say.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::CliError;
use super::options::Raw;
use crate::machine::models::DEVICES;
use crate::qmp::input::Scalars;

const GLOBAL: &str = "--global";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    driver: String,
    property: String,
    value: String,
}

/// All of them, in the order of the command line.
#[derive(Clone, Debug, Default)]
pub(super) struct Globals {
    all: Vec<(String, Options)>,
    /// Kinds of devices that were made.
    made: BTreeSet<String>,
}

impl Globals {
    /// Reads `DRIVER.PROPERTY=VALUE`, or the same as key=value pairs.
    pub(super) fn parse(texts: &[String]) -> Result<Self, CliError> {
        let parsed = texts.iter().map(|text| {
            let short = text.split_once('=').and_then(|(name, value)| {
                let (driver, property) = name.split_once('.')?;
                let owned = (driver.to_owned(), property.to_owned(), value.to_owned());
                (!driver.contains(',')).then_some(owned)
            });
            let options = match short {
                Some((driver, property, value)) => Options {
                    driver,
                    property,
                    value,
                },
                None => Raw::parse(GLOBAL, text, None)?.typed()?,
            };
            Ok((text.clone(), options))
        });
        Ok(Self {
            all: parsed.collect::<Result<_, CliError>>()?,
            made: BTreeSet::new(),
        })
    }

    /// Adds to the properties of a device of kind `driver` those that it does not give itself.
    pub(super) fn apply(&mut self, driver: &str, raw: &mut Raw) {
        self.made.insert(driver.to_owned());
        if let Some(members) = raw.value.as_object_mut() {
            self.complete(driver, members, raw.scalars);
        }
    }

    /// The same for properties that are given in any other way.
    pub(super) fn complete(
        &self,
        driver: &str,
        members: &mut Map<String, Value>,
        scalars: Scalars,
    ) {
        let mut defaults = Map::new();
        // Of several for one property the last one holds.
        for (_, global) in self
            .all
            .iter()
            .filter(|(_, global)| global.driver == driver)
        {
            defaults.insert(global.property.clone(), typed(&global.value, scalars));
        }
        for (property, value) in defaults {
            members.entry(property).or_insert(value);
        }
    }

    /// What is to be said of those that had no effect.
    pub(super) fn warnings(&self) -> Vec<String> {
        let warning = |(text, global): &(String, Options)| {
            let is_known = DEVICES.iter().any(|device| device.name == global.driver);
            if self.made.contains(&global.driver) {
                return None;
            }
            let name = format!("{}.{}", global.driver, global.property);
            Some(if is_known {
                format!("global {name}={} not used", global.value)
            } else {
                format!("global {name} has invalid class name (in {GLOBAL} {text})")
            })
        };
        self.all.iter().filter_map(warning).collect()
    }
}

/// The value as the device's other ones are written: a device that is given as JSON has typed ones.
fn typed(value: &str, scalars: Scalars) -> Value {
    match (scalars, value) {
        (Scalars::Text, text) => text.into(),
        (Scalars::Typed, "on" | "yes" | "true") => true.into(),
        (Scalars::Typed, "off" | "no" | "false") => false.into(),
        (Scalars::Typed, text) => text
            .parse::<u64>()
            .map_or_else(|_| text.into(), Value::from),
    }
}
