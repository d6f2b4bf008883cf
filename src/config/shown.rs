//! `config show`: every key that is set, its value and its origin.

use toml::{Table, Value};

use super::layers::Layers;
use crate::quote;

/// One line for each value: key, value, origin. A value that could be a secret is not shown.
pub(super) fn text(layers: &Layers) -> String {
    let mut lines = String::new();
    for (path, origin) in layers.origins() {
        let Some(value) = value_at(&layers.table, path) else { continue };
        let key = path.split('.').map(quote::name).collect::<Vec<_>>().join(".");
        let shown = shown(value);
        lines.push_str(&quote::one_line(&format!("{key:<32}  {shown:<40}  {origin}")));
        lines.push('\n');
    }
    if lines.is_empty() {
        lines.push_str("nothing is set: every key has its default (docs/CONFIG.md)\n");
    }
    lines
}

/// The value at `network.pool` or `rule[1].image`. `None` for a table, whose keys have lines of their own.
fn value_at<'a>(root: &'a Table, path: &str) -> Option<&'a Value> {
    let mut value = None;
    let mut table = Some(root);
    for step in path.split('.') {
        let (name, number) = match step.trim_end_matches(']').split_once('[') {
            Some((name, number)) => (name, Some(number.parse::<usize>().ok()?)),
            None => (step, None),
        };
        let found = table?.get(name)?;
        let found = match number {
            Some(number) => found.as_array()?.get(number.checked_sub(1)?)?,
            None => found,
        };
        (value, table) = (Some(found), found.as_table());
    }
    let tables = |value: &Value| value.as_array().is_some_and(|all| all.iter().any(Value::is_table));
    value.filter(|value| !value.is_table() && !tables(value))
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
