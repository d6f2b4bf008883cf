//! `config show`: every key that is set, its value and its origin.

use toml::Value;

use super::layers::Layers;
use super::values::value_at;
use crate::quote;

/// One line for each value: key, value, origin. A value that could be a secret is not shown.
pub(super) fn text(layers: &Layers) -> String {
    let mut lines = String::new();
    for (path, origin) in layers.origins() {
        // The keys of a table have lines of their own.
        let tables = |value: &Value| value.as_array().is_some_and(|all| all.iter().any(Value::is_table));
        let value = value_at(layers.table(), path).filter(|value| !value.is_table() && !tables(value));
        let Some(value) = value else { continue };
        let key = path.split('.').map(quote::name).collect::<Vec<_>>().join(".");
        let shown = shown(value);
        lines.push_str(&quote::one_line(&format!("{key:<32}  {shown:<40}  {origin}")));
        lines.push('\n');
    }
    if lines.is_empty() {
        lines.push_str("nothing is set: every key has its default (docs/reference/config.md)\n");
    }
    lines
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quote::object(text),
        Value::Array(all) => format!("[{}]", all.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(_) | Value::Table(_) => "…".into(),
    }
}
