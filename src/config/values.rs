//! Reads values of the merged table by the paths of their keys: `network.pool`, `rule[1].image`.
//!
//! The types are those of [`KEYS`](super::keys::KEYS): the file was checked against them, and variables and flags were
//! read as such.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::layers::Layers;

impl Layers {
    fn value(&self, path: &str) -> Option<&Value> {
        #[cfg(test)]
        self.note(path);
        value_at(self.table(), path)
    }

    /// Tests compare what was read with the table of keys.
    #[cfg(test)]
    fn note(&self, path: &str) {
        self.read.borrow_mut().insert(pattern(path));
    }

    pub(super) fn text(&self, path: &str) -> Option<String> {
        self.value(path)?.as_str().map(str::to_owned)
    }

    pub(super) fn flag(&self, path: &str) -> Option<bool> {
        self.value(path)?.as_bool()
    }

    pub(super) fn number(&self, path: &str) -> Option<i64> {
        self.value(path)?.as_integer()
    }

    pub(super) fn list(&self, path: &str) -> Option<Vec<String>> {
        let list = self.value(path)?.as_array()?;
        Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// A table of strings under names that the user chose.
    pub(super) fn texts(&self, path: &str) -> BTreeMap<String, String> {
        #[cfg(test)]
        self.note(&format!("{path}.*"));
        let entries = value_at(self.table(), path).and_then(Value::as_table).into_iter().flatten();
        entries.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    }

    pub(super) fn is_table(&self, path: &str) -> bool {
        value_at(self.table(), path).is_some_and(Value::is_table)
    }

    /// Whether there is a value, of whatever kind.
    pub(super) fn is_set(&self, path: &str) -> bool {
        value_at(self.table(), path).is_some()
    }

    /// The names in a table.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let table = value_at(self.table(), path).and_then(Value::as_table);
        table.into_iter().flat_map(Table::keys).cloned().collect()
    }

    /// The paths of the tables in a list of tables: `rule[1]`, `rule[2]`.
    pub(super) fn entries(&self, path: &str) -> Vec<String> {
        let count = value_at(self.table(), path).and_then(Value::as_array).map_or(0, Vec::len);
        (1..=count).map(|number| format!("{path}[{number}]")).collect()
    }
}

pub(super) fn value_at<'a>(root: &'a Table, path: &str) -> Option<&'a Value> {
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
    value
}

/// The path as in `KEYS`.
#[cfg(test)]
fn pattern(path: &str) -> String {
    let steps = path.split('.').enumerate().map(|(at, step)| match step.split_once('[') {
        Some((name, _)) => format!("{name}[]"),
        None if at == 1 && path.starts_with("identity.") => "*".into(),
        None => step.into(),
    });
    steps.collect::<Vec<_>>().join(".")
}
