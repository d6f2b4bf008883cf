//! Merges the file (with positions), the environment and the flags into one table.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::DeTable;
use toml::{Table, Value};

use super::document::{KeyWalk, distance, nearest, position, quoted};
use super::keys::{KEYS, ValueKind};
use super::{Environment, Overrides, Problems};
use crate::quote;

/// Keys that belong together: a layer that sets either one clears both of the layers below.
const PAIRS: [[&str; 2]; 2] = [["credentials", "credentials_file"], ["zone", "region"]];

/// The same in `[aws]` and `[azure]`: how credentials are got, and what belongs to one of these ways.
const CLOUDS: [&str; 2] = ["aws", "azure"];
const WAYS: [&str; 4] = ["credentials", "profile", "exec", "token_from"];
const PARTS_OF_WAYS: [&str; 3] = ["pass", "timeout", "token_audience"];

/// All layers as one table, with the origin of each key's last value.
#[derive(Debug, Default)]
pub(super) struct Layers {
    table: Table,
    /// By key path, such as `network.pool`.
    origins: BTreeMap<String, Origin>,
    problems: Vec<(Rank, String)>,
    /// The keys whose values were read.
    #[cfg(test)]
    pub read: std::cell::RefCell<std::collections::BTreeSet<String>>,
}

/// The origin of a key's value.
#[derive(Clone, Debug)]
struct Origin {
    /// `/p/kfp-creds.toml:3:8`, `KFP_CREDS_POOL` or `--project`.
    name: String,
    rank: Rank,
}

/// Problems are sorted in the order of the user's input: file from top to bottom, variables, flags.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
enum Rank {
    #[default]
    Whole,
    File(usize),
    Variable,
    Flag,
}

/// A key that only a trusted file may set, with its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Guarded {
    pub key: String,
    /// 1-based.
    pub line: usize,
    pub value: String,
}

impl ValueKind {
    /// A value from a variable or a flag; `None` if it is not of this kind.
    fn read(self, text: &str) -> Option<Value> {
        match self {
            ValueKind::Text | ValueKind::List => Some(Value::from(text)),
            ValueKind::Number => text.parse::<i64>().ok().map(Value::from),
            ValueKind::Flag => match text {
                "true" | "1" => Some(Value::from(true)),
                "false" | "0" => Some(Value::from(false)),
                _ => None,
            },
        }
    }
}

impl Layers {
    /// Reports a problem with the value of `path`, together with its origin.
    pub(super) fn problem(&mut self, path: &str, what: impl std::fmt::Display) {
        // A part of the path may be a user-chosen name.
        let told = path.split('.').map(quote::name).collect::<Vec<_>>().join(".");
        // An element of a list, and a key that is missing, have the origin of what they belong to.
        let origin = self.origins.get(path).or_else(|| {
            let inside = path.rfind(['.', '[']).and_then(|at| path.get(..at))?;
            self.origins.get(inside).filter(|origin| matches!(origin.rank, Rank::File(_)))
        });
        let (rank, text) = match origin {
            Some(Origin { name, rank: rank @ Rank::File(_) }) => (*rank, format!("{name}: `{told}`: {what}")),
            Some(Origin { name, rank }) => (*rank, format!("{name}: {what}")),
            None => (Rank::Whole, format!("`{told}`: {what}")),
        };
        self.problems.push((rank, text));
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Whether `text` can be a path; reports what it holds instead.
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

    /// Reports a problem with the file as a whole.
    pub(super) fn objection(&mut self, text: String) {
        self.problems.push((Rank::Whole, text));
    }

    /// Fails with all problems so far, if there are any.
    pub(super) fn verdict(&mut self) -> Result<(), Problems> {
        let mut problems = std::mem::take(&mut self.problems);
        problems.sort_by_key(|(rank, _)| *rank);
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Problems(problems.into_iter().map(|(_, text)| text).collect())),
        }
    }

    /// Reads a file. Returns the keys that need trust, for the caller to check.
    pub(super) fn file(&mut self, name: &Path, text: &str) -> Vec<Guarded> {
        let at = |offset: usize| {
            let (line, column) = position(text, offset);
            format!("{}:{line}:{column}", quote::path(name))
        };
        let document = match DeTable::parse(text) {
            Ok(document) => document,
            Err(error) => {
                let offset = error.span().map_or(0, |span| span.start);
                let mut what = quote::complaint(error.message());
                // The parser does not name it.
                if let Some(name) =
                    error.span().and_then(|span| text.get(span)).filter(|_| what == "duplicate key")
                {
                    what = format!("{what} `{}`; keep one", quote::name(name));
                }
                self.problems.push((Rank::File(offset), format!("{}: {what}", at(offset))));
                return Vec::new();
            }
        };
        let mut walk = KeyWalk::default();
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
            // The walk has already reported this problem, with a better message.
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

    /// Overrides values from the environment.
    pub(super) fn environment(&mut self, env: &Environment) {
        let mut layer = Vec::new();
        for key in KEYS {
            let Some(name) = key.variable else { continue };
            let Some(text) = env.variable(name) else { continue };
            match key.kind.read(text) {
                Some(value) => layer.push((key.path, name, value)),
                None => {
                    let what = format!("{name}: {} is not {}", quote::value(text), key.kind.wanted());
                    self.problems.push((Rank::Variable, what));
                }
            }
        }
        self.lay(Rank::Variable, layer);
        let known = || KEYS.iter().filter_map(|key| key.variable).chain(["KFP_CREDS_CONFIG"]);
        for name in env.variables.all().map(|(name, _)| name).filter(|name| name.starts_with("KFP_CREDS_")) {
            if !known().any(|other| other == name)
                && let Some(near) = nearest(name, known()).filter(|near| distance(name, near) <= 2)
            {
                let name = quote::name(name);
                let what = format!("{name}: unknown variable; did you mean {near}?");
                self.problems.push((Rank::Variable, what));
            }
        }
    }

    /// Overrides values from the flags.
    pub(super) fn flags(&mut self, flags: &Overrides) {
        let mut layer = Vec::new();
        for key in KEYS {
            let (Some(flag), Some(text)) = (key.flag, flags.keys.get(key.path)) else { continue };
            layer.extend(key.kind.read(text).map(|value| (key.path, flag.name, value)));
        }
        self.lay(Rank::Flag, layer);
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
        for cloud in CLOUDS {
            let way =
                |path: &str| path.split_once('.').is_some_and(|(of, key)| of == cloud && WAYS.contains(&key));
            if layer.iter().any(|(path, ..)| way(path)) {
                self.clear(cloud, WAYS.iter().chain(&PARTS_OF_WAYS));
            }
        }
        // A `credentials` table replaces a lower layer's word and file, but is merged with a lower table.
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

    fn clear<'a>(&mut self, table: &str, keys: impl Iterator<Item = &'a &'a str>) {
        for key in keys {
            if let Some(Value::Table(table)) = self.table.get_mut(table) {
                table.remove(*key);
            }
            self.origins.remove(&format!("{table}.{key}"));
        }
    }

    /// Whether `[aws]` or `[azure]` is there. A variable that only completes the table, such as a region, enables no
    /// cloud.
    pub(super) fn has_cloud(&self, cloud: &str) -> bool {
        self.is_from_file(cloud) || WAYS.iter().any(|key| self.is_set(&format!("{cloud}.{key}")))
    }

    /// Every key that is set, with its origin, sorted by name.
    pub(super) fn origins(&self) -> impl Iterator<Item = (&str, &str)> {
        self.origins.iter().map(|(path, origin)| (path.as_str(), origin.name.as_str()))
    }

    /// True if the file set `path` and no higher layer changed it.
    pub(super) fn is_from_file(&self, path: &str) -> bool {
        self.origins.get(path).is_some_and(|origin| matches!(origin.rank, Rank::File(_)))
    }
}

/// Keeps the value at `path` if `check` accepts it; reports a problem with any other.
pub(super) fn judged(
    say: &mut Layers,
    path: &str,
    check: impl Fn(&str) -> Result<(), String>,
) -> Option<String> {
    judged_as(say, path, |text| check(text).map(|()| text.to_owned()))
}

pub(super) fn judged_as<T>(
    say: &mut Layers,
    path: &str,
    check: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let value = say.text(path)?;
    accepted(say, path, &value, check)
}

/// The same for a value that is there already, such as one of a list.
pub(super) fn accepted<T>(
    say: &mut Layers,
    path: &str,
    value: &str,
    check: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    match check(value) {
        Ok(good) => Some(good),
        Err(what) => {
            say.problem(path, format_args!("{} {what}", quote::value(value)));
            None
        }
    }
}
