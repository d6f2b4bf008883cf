//! From text to one table: the file with its positions, the environment and the flags, laid over each other.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::keys::{KEYS, Key, Kind};
use super::{Overrides, Problems, Surroundings};
use crate::quote;

/// Keys that say one thing together: who says one of them replaces what lower layers said with either.
const PAIRS: [[&str; 2]; 2] = [["credentials", "credentials_file"], ["zone", "region"]];

/// All layers as one table, and for each key who said it last.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub table: Table,
    /// By path, such as `network.pool`.
    origins: BTreeMap<String, Origin>,
    problems: Vec<(Rank, String)>,
}

/// Who said a key.
#[derive(Clone, Debug)]
struct Origin {
    /// `/p/kfp-creds.toml:3:8`, `KFP_CREDS_POOL` or `--project`.
    name: String,
    rank: Rank,
}

/// Problems are told in the order of what the user wrote: file from top to bottom, variables, flags.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
enum Rank {
    #[default]
    Whole,
    File(usize),
    Variable,
    Flag,
}

/// A key of the file that only a trusted file may say, and its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Guarded {
    pub key: String,
    /// 1-based.
    pub line: usize,
    pub value: String,
}

impl Layers {
    /// Says who said `path`, and what is wrong with it.
    pub(super) fn problem(&mut self, path: &str, what: impl std::fmt::Display) {
        // A name in it is the user's.
        let told = path.split('.').map(quote::name).collect::<Vec<_>>().join(".");
        let (rank, text) = match self.origins.get(path) {
            Some(Origin { name, rank: rank @ Rank::File(_) }) => (*rank, format!("{name}: `{told}`: {what}")),
            Some(Origin { name, rank }) => (*rank, format!("{name}: {what}")),
            None => (Rank::Whole, format!("`{told}`: {what}")),
        };
        self.problems.push((rank, text));
    }

    /// Whether `text` can be a path; says what it holds in the place of one.
    pub(super) fn is_path(&mut self, path: &str, text: &str) -> bool {
        let shape = quote::no_path(text);
        if let Some(shape) = shape {
            self.problem(
                path,
                format_args!("holds {shape}, not a path; write it to a file, and name that file"),
            );
        }
        shape.is_none()
    }

    /// A problem of the file as a whole.
    pub(super) fn objection(&mut self, text: String) {
        self.problems.push((Rank::Whole, text));
    }

    /// Everything that is wrong so far, or nothing.
    pub(super) fn verdict(&mut self) -> Result<(), Problems> {
        let mut problems = std::mem::take(&mut self.problems);
        problems.sort_by_key(|(rank, _)| *rank);
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Problems(problems.into_iter().map(|(_, text)| text).collect())),
        }
    }

    /// Reads a file. What it names that needs trust is returned, for the caller to judge.
    pub(super) fn file(&mut self, name: &Path, text: &str) -> Vec<Guarded> {
        let at = |offset: usize| {
            let (line, column) = position(text, offset);
            format!("{}:{line}:{column}", quote::path(name))
        };
        let document = match DeTable::parse(text) {
            Ok(document) => document,
            Err(error) => {
                let offset = error.span().map_or(0, |span| span.start);
                let what = quote::complaint(error.message());
                self.problems.push((Rank::File(offset), format!("{}: {what}", at(offset))));
                return Vec::new();
            }
        };
        let mut walk = Walk::default();
        walk.table(document.get_ref(), "", "");
        let origin = |offset: usize| Origin { name: at(offset), rank: Rank::File(offset) };
        self.origins.extend(walk.places.into_iter().map(|(path, offset)| (path, origin(offset))));
        match toml::from_str(text) {
            Ok(table) => self.table = table,
            Err(error) if walk.problems.is_empty() => self.objection(format!(
                "{}: {}",
                at(error.span().map_or(0, |span| span.start)),
                quote::complaint(error.message())
            )),
            // The walk has said the same in better words.
            Err(_) => {}
        }
        for (offset, what) in walk.problems {
            self.problems.push((Rank::File(offset), format!("{}: {what}", at(offset))));
        }
        walk.guarded.sort_by_key(|(_, span)| span.start);
        let guarded = walk.guarded.into_iter().map(|(key, span)| Guarded {
            line: position(text, span.start).0,
            value: text.get(span).map(quoted).unwrap_or_default(),
            key,
        });
        guarded.collect()
    }

    /// Lays the environment over what is there.
    pub(super) fn environment(&mut self, around: &Surroundings) {
        let mut layer = Vec::new();
        for key in KEYS {
            let Some(name) = key.variable else { continue };
            let Some(text) = around.variable(name) else { continue };
            let value = match key.kind {
                Kind::Text | Kind::List => Some(Value::from(text)),
                Kind::Number => text.parse::<i64>().ok().map(Value::from),
                Kind::Flag => match text {
                    "true" | "1" => Some(Value::from(true)),
                    "false" | "0" => Some(Value::from(false)),
                    _ => None,
                },
            };
            match value {
                Some(value) => layer.push((key.path, name, value)),
                None => {
                    let what = format!("{name}: {} is not {}", quote::value(text), key.kind.wanted());
                    self.problems.push((Rank::Variable, what));
                }
            }
        }
        self.lay(Rank::Variable, layer);
        let known = || KEYS.iter().filter_map(|key| key.variable).chain(["KFP_CREDS_CONFIG"]);
        for name in around.env.keys().filter(|name| name.starts_with("KFP_CREDS_")) {
            if !known().any(|other| other == name)
                && let Some(near) = nearest(name, known()).filter(|near| distance(name, near) <= 2)
            {
                let name = quote::name(name);
                let what = format!("{name}: not a variable that is known; did you mean {near}?");
                self.problems.push((Rank::Variable, what));
            }
        }
    }

    /// Lays the flags over what is there.
    pub(super) fn flags(&mut self, flags: &Overrides) {
        let text = |value: &Option<String>| value.as_deref().map(Value::from);
        let file =
            flags.credentials_file.as_ref().map(|path| Value::from(path.to_string_lossy().into_owned()));
        let log = ["info", "debug", "trace"].get(usize::from(flags.verbose.min(3)).wrapping_sub(1));
        let said = [
            ("credentials", "--offline", flags.offline.then(|| Value::from("offline"))),
            ("credentials_file", "--credentials-file", file),
            ("impersonate", "--impersonate", text(&flags.impersonate)),
            ("project", "--project", text(&flags.project)),
            ("all", "--all", flags.all.then(|| Value::from(true))),
            ("keep", "--keep", flags.keep.then(|| Value::from(true))),
            ("log", "-v", log.map(|level| Value::from(*level))),
        ];
        self.lay(
            Rank::Flag,
            said.into_iter().filter_map(|(path, flag, value)| Some((path, flag, value?))).collect(),
        );
    }

    fn lay(&mut self, rank: Rank, layer: Vec<(&'static str, &'static str, Value)>) {
        for pair in PAIRS {
            if layer.iter().any(|(path, ..)| pair.contains(path)) {
                for path in pair {
                    self.table.remove(path);
                    self.origins.remove(path);
                }
            }
        }
        // A table of an upper layer replaces what a lower one says otherwise, and adds to its table.
        if layer.iter().any(|(path, ..)| path.starts_with("credentials.")) {
            self.table.remove("credentials_file");
            if self.table.get("credentials").is_some_and(Value::is_str) {
                self.table.remove("credentials");
            }
        }
        for (path, from, value) in layer {
            self.origins.insert(path.into(), Origin { name: from.into(), rank });
            match path.split_once('.') {
                None => drop(self.table.insert(path.into(), value)),
                Some((table, key)) => {
                    let entry = self.table.entry(table).or_insert_with(|| Value::Table(Table::new()));
                    match entry {
                        Value::Table(table) => drop(table.insert(key.into(), value)),
                        _ => self.problems.push((rank, format!("{from}: not together with another {table}"))),
                    }
                }
            }
        }
    }

    /// Every key that is set, with its origin, in the order of their names.
    pub(super) fn origins(&self) -> impl Iterator<Item = (&str, &str)> {
        self.origins.iter().map(|(path, origin)| (path.as_str(), origin.name.as_str()))
    }

    /// Did the file say `path`, and nobody after it?
    pub(super) fn is_from_file(&self, path: &str) -> bool {
        self.origins.get(path).is_some_and(|origin| matches!(origin.rank, Rank::File(_)))
    }
}

/// One pass over a document: every unknown key and wrong type with its offset, and where each key stands.
#[derive(Debug, Default)]
struct Walk {
    problems: Vec<(usize, String)>,
    places: Vec<(String, usize)>,
    guarded: Vec<(String, Range<usize>)>,
}

impl Walk {
    /// `pattern` is the place in the words of [`KEYS`], `path` in the words of the file.
    fn table(&mut self, table: &DeTable<'_>, pattern: &str, path: &str) {
        for (name, value) in table {
            let (name, offset) = (name.get_ref().as_ref(), name.span().start);
            let path = format!("{path}{name}");
            let chosen = format!("{pattern}*");
            // A quoted key with a dot in it is one name, not a path that happens to read like one.
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
        // `credentials` is a word or a table.
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

/// A value of the file for a message: each of its texts is judged by itself.
fn quoted(written: &str) -> String {
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

fn fits(key: &Key, value: &DeValue<'_>) -> bool {
    match key.kind {
        Kind::Text => value.is_str(),
        Kind::Flag => value.is_bool(),
        Kind::Number => {
            value.as_integer().is_some_and(|n| i64::from_str_radix(n.as_str(), n.radix()).is_ok())
        }
        Kind::List => value.as_array().is_some_and(|list| list.iter().all(|one| one.get_ref().is_str())),
    }
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

/// The message for a key that nobody knows: the nearest one at its place, else the same word at another place.
fn unknown(parent: &str, name: &str) -> String {
    let mut here: Vec<&str> = Vec::new();
    for rest in KEYS.iter().filter_map(|key| key.path.strip_prefix(parent)) {
        let word = rest.split(['.', '[']).next().unwrap_or(rest);
        if !here.contains(&word) {
            here.push(word);
        }
    }
    let allowed = name.chars().count().div_ceil(3).max(2);
    let near = |known: &str| distance(name, known) <= allowed;
    let leaf = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
    let elsewhere = || KEYS.iter().map(|key| key.path).min_by_key(|path| distance(name, leaf(path)));
    let meant = nearest(name, here.iter().copied()).filter(|known| near(known));
    let meant = meant.or_else(|| elsewhere().filter(|path| near(leaf(path))));
    let shown = quote::name(name);
    match meant {
        _ if !name.contains(['[', '*']) && KEYS.iter().any(|key| key.path == name) => {
            format!("unknown key `{shown}`; write it without quotes")
        }
        Some(meant) => format!("unknown key `{shown}`; did you mean `{}`?", meant.replace('*', "NAME")),
        None => format!("unknown key `{shown}`; known here: {}", here.join(", ")),
    }
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|known| distance(name, known))
}

/// Levenshtein's distance, with `-` and `_` taken for the same and case for nothing. A very long word is far.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 200 {
        return usize::MAX;
    }
    let fold = |c: char| if c == '-' { '_' } else { c.to_ascii_lowercase() };
    let b: Vec<char> = b.chars().map(fold).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().map(fold).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.iter().enumerate() {
            let best = (row[j].min(row[j + 1]) + 1).min(diagonal + usize::from(a != *b));
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[b.len()]
}

/// Line and column of a byte offset, both from 1, the column in characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
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
