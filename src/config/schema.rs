//! The keys as a JSON Schema, for editors: `docs/kfp-creds.schema.json`, made from [`KEYS`].
//!
//! JSON Schema draft-07, which editors' TOML plug-ins support. `config check` validates the values.

use serde_json::{Map, Value, json};

use super::keys::{ConfigKey, KEYS, ValueKind};

/// Keys whose values come from a fixed set.
const WORDS: [(&str, &[&str]); 6] = [
    ("aws.credentials", &["default", "environment", "machine", "offline"]),
    ("azure.credentials", &["az", "environment", "machine", "offline"]),
    ("credentials", &["adc", "metadata", "gcloud", "offline"]),
    ("guard.mode", &["deny", "warn", "off"]),
    ("isolation", &["shared", "network"]),
    ("network.attach", &["auto", "link-local", "own", "second"]),
];
/// User-chosen names; see `FOOT` of the reference.
const NAME: &str = "^[A-Za-z0-9_-]+$";

/// The text of `docs/kfp-creds.schema.json`.
pub fn schema() -> String {
    let mut root = object();
    root["$schema"] = "http://json-schema.org/draft-07/schema#".into();
    root["title"] = "kfp-creds.toml".into();
    for key in KEYS {
        place(&mut root, key.path, key);
    }
    format!("{root:#}\n")
}

fn object() -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": {} })
}

/// Inserts `key` below the object `at`, where `path`, the rest of its path, leads.
fn place(at: &mut Value, path: &str, key: &ConfigKey) {
    let Some((first, rest)) = path.split_once('.') else {
        at["properties"][path] = leaf(key);
        if key.default == "must be given" {
            if !at["required"].is_array() {
                at["required"] = json!([]);
            }
            if let Some(required) = at["required"].as_array_mut() {
                required.push(path.into());
            }
        }
        return;
    };
    let list = first.strip_suffix("[]");
    let name = list.unwrap_or(first);
    let entry = &mut at["properties"][name];
    if entry.is_null() {
        *entry = match list {
            Some(_) => json!({ "type": "array", "items": object() }),
            None => object(),
        };
    }
    // `credentials` is a string or a table.
    if entry["type"] == "string" {
        *entry = json!({ "anyOf": [entry.take(), object()] });
    }
    let inside = match (list, entry["anyOf"].is_array()) {
        (Some(_), _) => &mut entry["items"],
        (None, true) => &mut entry["anyOf"][1],
        (None, false) => entry,
    };
    match rest.strip_prefix('*') {
        None => place(inside, rest, key),
        Some(rest) => {
            // Label names are free; other names follow [`NAME`].
            if !path.ends_with("labels.*") && inside["propertyNames"].is_null() {
                inside["propertyNames"] = json!({ "pattern": NAME });
            }
            match rest.strip_prefix('.') {
                None => inside["additionalProperties"] = leaf(key),
                Some(rest) => {
                    if !inside["additionalProperties"].is_object() {
                        inside["additionalProperties"] = object();
                    }
                    place(&mut inside["additionalProperties"], rest, key);
                }
            }
        }
    }
}

fn leaf(key: &ConfigKey) -> Value {
    let mut leaf = Map::new();
    match key.kind {
        ValueKind::Text => leaf.insert("type".into(), "string".into()),
        ValueKind::Flag => leaf.insert("type".into(), "boolean".into()),
        ValueKind::Number => leaf.insert("type".into(), "integer".into()),
        ValueKind::List => {
            leaf.insert("items".into(), json!({ "type": "string" }));
            leaf.insert("type".into(), "array".into())
        }
    };
    if let Some((_, words)) = WORDS.iter().find(|(path, _)| *path == key.path) {
        leaf.insert("enum".into(), json!(words));
    }
    leaf.insert("description".into(), format!("{} Default: {}.", key.says, key.default).into());
    leaf.into()
}
