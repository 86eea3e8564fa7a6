//! The differences between two plans.

use super::Plan;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Fields of a plan that are no settings.
const NOT_SETTINGS: [&str; 4] = ["version", "strategy", "samples", "reasons"];

impl Plan {
    /// The settings in which this plan differs from its strategy's, with both values.
    pub(crate) fn edits(&self, of_strategy: &Self) -> Vec<String> {
        self.differences(of_strategy, "strategy")
    }

    /// The settings in which this plan differs from another one, which is called `name`, with both values.
    pub(crate) fn differences(&self, other: &Self, name: &str) -> Vec<String> {
        let value = |plan: &Self| {
            let mut value = serde_json::to_value(plan).unwrap_or_default();
            // Left out of older versions.
            if let Value::Object(fields) = &mut value {
                fields.insert("head_start".into(), serde_json::to_value(plan.head_start).unwrap_or_default());
            }
            value
        };
        let mut found = vec![];
        differences("", &value(self), &value(other), name, &mut found);
        found
    }
}

/// The differences of two values, each with its path.
fn differences(path: &str, new: &Value, old: &Value, name: &str, found: &mut Vec<String>) {
    use Value::{Array, Object};
    let below = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
    match (new, old) {
        _ if new == old || NOT_SETTINGS.contains(&path) => {}
        (Object(a), Object(b)) if a.keys().eq(b.keys()) || is_record(path) => {
            // A setting that has its usual value may be left out.
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let of = |fields: &Map<String, Value>, key: &String| fields.get(key).cloned().unwrap_or_default();
            keys.into_iter().for_each(|key| differences(&below(key), &of(a, key), &of(b, key), name, found));
        }
        (Array(a), Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| {
                differences(&below(&(i + 1).to_string()), a, b, name, found);
            });
        }
        _ if new.is_array() || new.is_object() => found.push(path.to_string()),
        _ => found.push(format!("{path} {} (the {name} has {})", shown(new), shown(old))),
    }
}

/// Whether an object is a record of settings, and not one of several kinds, which have different fields.
fn is_record(path: &str) -> bool {
    ["", "loss", "augment"].contains(&path)
}

fn shown(value: &Value) -> String {
    if value.is_null() { "none".into() } else { value.to_string() }
}
