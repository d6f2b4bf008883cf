//! One pass over the config file: positions of keys, unknown keys, wrong types.

use std::ops::Range;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::keys::{ConfigKey, KEYS, ValueKind};
use crate::quote;

/// One pass over a document: offsets of unknown keys and wrong types, and the position of each key.
#[derive(Debug, Default)]
pub(super) struct KeyWalk {
    pub(super) problems: Vec<(usize, String)>,
    pub(super) places: Vec<(String, usize)>,
    pub(super) guarded: Vec<(String, Range<usize>)>,
}

impl KeyWalk {
    /// `pattern` is the place as in [`KEYS`], `path` as in the file.
    pub(super) fn table(&mut self, table: &DeTable<'_>, pattern: &str, path: &str) {
        for (name, value) in table {
            let (name, offset) = (name.get_ref().as_ref(), name.span().start);
            let path = format!("{path}{name}");
            let chosen = format!("{pattern}*");
            // A quoted key that contains a dot is one name, not a path that looks the same.
            if knows(|key| key.starts_with(&chosen)) {
                self.value(&chosen, &path, name, offset, value);
            } else if name.contains(['.', '[', '*']) {
                self.problems.push((offset, unknown(pattern, name)));
            } else {
                self.value(&format!("{pattern}{name}"), &path, name, offset, value);
            }
        }
    }

    fn value(&mut self, pattern: &str, path: &str, name: &str, offset: usize, value: &Spanned<DeValue<'_>>) {
        self.places.push((path.into(), offset));
        let inside = format!("{pattern}.");
        let each = format!("{pattern}[].");
        let mut wrong = |wanted: &str| {
            let but = match (value.get_ref().type_str(), wanted) {
                ("integer", "a whole number") => "and a smaller one".into(),
                ("array", wanted) if wanted.starts_with("a list") => "and nothing else".into(),
                (found, _) => format!("not {}", article(found)),
            };
            let path = quote::name(path);
            self.problems.push((value.span().start, format!("`{path}` has to be {wanted}, {but}")));
        };
        // `credentials` is a string or a table.
        let table = value.get_ref().is_table() && knows(|key| key.starts_with(&inside));
        if let Some(key) = KEYS.iter().find(|key| key.path == pattern).filter(|_| !table) {
            if !fits(key, value.get_ref()) {
                wrong(key.kind.wanted());
            } else if key.guarded {
                self.guarded.push((path.into(), value.span()));
            }
        } else if knows(|key| key.starts_with(&inside)) {
            match value.get_ref().as_table() {
                Some(table) => self.table(table, &inside, &format!("{path}.")),
                None => wrong("a table"),
            }
        } else if knows(|key| key.starts_with(&each)) {
            let tables =
                value.get_ref().as_array().filter(|list| list.iter().all(|v| v.get_ref().is_table()));
            match tables {
                Some(tables) => {
                    for (index, one) in tables.iter().enumerate() {
                        let path = format!("{path}[{}]", index + 1);
                        self.places.push((path.clone(), one.span().start));
                        if let Some(table) = one.get_ref().as_table() {
                            self.table(table, &each, &format!("{path}."));
                        }
                    }
                }
                None => wrong(&format!("a list of tables, each under [[{name}]]")),
            }
        } else {
            let parent = pattern.strip_suffix(name).unwrap_or(pattern);
            self.problems.push((offset, unknown(parent, name)));
        }
    }
}

/// A value of the file for a message; each text in it is quoted or hidden by itself.
pub(super) fn quoted(written: &str) -> String {
    let text = |value: &Value| value.as_str().map(quote::object);
    match toml::from_str::<Table>(&format!("value = {written}")).as_ref().map(|table| table.get("value")) {
        Ok(Some(Value::Array(list))) if list.iter().all(Value::is_str) => {
            format!("[{}]", list.iter().filter_map(text).collect::<Vec<_>>().join(", "))
        }
        Ok(Some(value)) => text(value).unwrap_or_else(|| quote::name(written)),
        _ => quote::name(written),
    }
}

fn knows(matches: impl Fn(&str) -> bool) -> bool {
    KEYS.iter().any(|key| matches(key.path))
}

fn fits(key: &ConfigKey, value: &DeValue<'_>) -> bool {
    match key.kind {
        ValueKind::Text => value.is_str(),
        ValueKind::Flag => value.is_bool(),
        ValueKind::Number => {
            value.as_integer().is_some_and(|n| i64::from_str_radix(n.as_str(), n.radix()).is_ok())
        }
        ValueKind::List => value.as_array().is_some_and(|list| list.iter().all(|one| one.get_ref().is_str())),
    }
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

/// The message for an unknown key; suggests the nearest key here, else the same word at another place.
fn unknown(parent: &str, name: &str) -> String {
    let mut here: Vec<&str> = Vec::new();
    for rest in KEYS.iter().filter_map(|key| key.path.strip_prefix(parent)) {
        let word = rest.split(['.', '[']).next().unwrap_or(rest);
        if !here.contains(&word) {
            here.push(word);
        }
    }
    let length = name.chars().count();
    let allowed = if length < 4 { 1 } else { length.div_ceil(3).max(2) };
    let near = |known: &str| distance(name, known) <= allowed;
    // At another place suggest only the same word, with few typing mistakes.
    let same = |known: &str| distance(name, known) <= length / 5;
    let leaf = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
    let elsewhere = || KEYS.iter().map(|key| key.path).min_by_key(|path| distance(name, leaf(path)));
    let meant = nearest(name, here.iter().copied()).filter(|known| near(known));
    let meant = meant.or_else(|| elsewhere().filter(|path| same(leaf(path))));
    let shown = quote::name(name);
    match meant {
        _ if !name.contains(['[', '*']) && KEYS.iter().any(|key| key.path == name) => {
            format!("unknown key `{shown}`; write it without quotes")
        }
        Some(meant) => format!("unknown key `{shown}`; did you mean `{}`?", meant.replace('*', "NAME")),
        None => format!("unknown key `{shown}`; known here: {}", here.join(", ")),
    }
}

pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|known| distance(name, known))
}

/// Levenshtein distance, ignoring case and with `-` equal to `_`. Very long words count as far apart.
pub(super) fn distance(a: &str, b: &str) -> usize {
    if a.len() > 200 {
        return usize::MAX;
    }
    let fold = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    strsim::levenshtein(&fold(a), &fold(b))
}

/// Line and column of a byte offset, both from 1; the column counts characters.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_the_edits_between_two_keys() {
        for (a, b, expected) in
            [("", "abc", 3), ("project", "projct", 1), ("Quota-Project", "quota_project", 0), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(position("ä = 1\nöö x", "ä = 1\nöö ".len()), (2, 4));
        assert_eq!(position("", 9), (1, 1));
    }
}
