//! Remembers the results of earlier scans, so that a later scan of the same tree is cheap and has the same
//! result.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Find, SecretKind};

/// Number of remembered files at which all are forgotten: bounded memory matters more than one slow scan.
const REMEMBERED: usize = 500_000;
const ROOTS: usize = 4096;

/// A file in its present state: another file or other content has another key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct FileState {
    key: u64,
    pub(super) size: u64,
}

impl FileState {
    pub(super) fn of(about: &fs::Metadata) -> Self {
        let mut hasher = DefaultHasher::new();
        (about.dev(), about.ino(), about.size(), about.ctime(), about.ctime_nsec()).hash(&mut hasher);
        Self { key: hasher.finish(), size: about.len() }
    }
}

/// A file without a find.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clean {
    /// What it costs of a budget, in a later scan as in the first.
    pub(super) bytes: u64,
    /// Whether it is an archive that was not opened.
    pub(super) shut: bool,
}

#[derive(Debug, Default)]
struct Remembered {
    clean: HashMap<u64, Clean>,
    /// Finds by root, each with the key of its file at that time.
    finds: HashMap<PathBuf, Vec<(Find, u64)>>,
}

/// Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Remembered>>);

impl Memory {
    pub(super) fn clean(&self, now: FileState) -> Option<Clean> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clean.get(&now.key).copied()
    }

    pub(super) fn keep(&self, now: FileState, bytes: u64, shut: bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.clean.len() >= REMEMBERED {
            known.clean.clear();
        }
        known.clean.insert(now.key, Clean { bytes, shut });
    }

    pub(super) fn keep_finds(&self, root: &Path, finds: Vec<Find>) {
        let finds: Vec<(Find, u64)> =
            finds.into_iter().filter_map(|find| Some((find.clone(), key_of(&find)?))).collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if finds.is_empty() {
            known.finds.remove(root);
            return;
        }
        if known.finds.len() >= ROOTS {
            known.finds.clear();
        }
        known.finds.insert(root.into(), finds);
    }

    /// The finds of an earlier scan whose files are unchanged.
    pub(super) fn finds(&self, root: &Path) -> Vec<Find> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).finds.get(root).cloned();
        let same = |(find, key): (Find, u64)| (key_of(&find) == Some(key)).then_some(find);
        known.into_iter().flatten().filter_map(same).collect()
    }
}

fn key_of(find: &Find) -> Option<u64> {
    if find.kind == SecretKind::EngineSocket {
        return None;
    }
    let file = find.place.split("!/").next()?;
    fs::symlink_metadata(file).ok().map(|about| FileState::of(&about).key)
}
