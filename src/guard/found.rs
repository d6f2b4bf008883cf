//! State shared by the readers of one scan: what was found, what could not be scanned, and how much may be
//! decompressed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::SecretKind;
use super::excepted::Exception;

/// Most unscanned places that are named; beyond that only their number is given.
const MOST_UNVERIFIED: usize = 64;
/// Bytes that may be decompressed in any case, and additionally for each byte of input. Deflate reaches 1 032
/// on zeros and real files 20; with zstd and xz a kilobyte may be gigabytes.
pub const UNPACKED: u64 = 1 << 30;
pub const UNPACKED_RATIO: u64 = 200;
/// How many levels of archives are opened inside another archive.
pub const NESTED: u8 = 2;

/// One find in an archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ArchivedFind {
    /// The file's path; inside a further archive `ARCHIVE!/PATH`.
    pub name: String,
    pub kind: SecretKind,
    /// The inner archive that holds it, if that is a layer of an image.
    pub layer: Option<String>,
    /// The line in the file, from 1; `None` if the file has no lines or lines were not requested.
    pub line: Option<u32>,
    pub exception: Exception,
}

/// Deletions (`.wh.NAME`) by layer, and the documents of an image.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) whiteouts: BTreeMap<String, Vec<String>>,
    pub(super) documents: Vec<Value>,
}

/// Published keys that were found and not reported as finds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PassedOver {
    pub keys: usize,
    pub files: usize,
    /// The first of the files.
    pub first: String,
}

impl PassedOver {
    /// The published keys of one file, by their digests.
    pub(super) fn of(name: &str, keys: &BTreeSet<u64>) -> Self {
        match keys.len() {
            0 => Self::default(),
            keys => Self { keys, files: 1, first: name.into() },
        }
    }

    pub fn add(&mut self, other: Self) {
        if self.files == 0 {
            self.first = other.first;
        }
        self.keys += other.keys;
        self.files += other.files;
    }

    /// The note about the keys, for the user.
    pub fn told(&self) -> Option<String> {
        let first = &self.first;
        let keys = match self.keys {
            0 => return None,
            1 => "1 published test key".to_string(),
            keys => format!("{keys} published test keys"),
        };
        let more = match self.files.saturating_sub(1) {
            0 => String::new(),
            1 => " and 1 more file".to_string(),
            more => format!(" and {more} more files"),
        };
        Some(format!("{keys} in {first}{more}: known by digest, not refused"))
    }
}

#[derive(Debug)]
struct FindState {
    finds: Vec<ArchivedFind>,
    unverified: Vec<String>,
    passed: PassedOver,
    more: u64,
    pushed: u64,
    unpacked: u64,
    allowed: u64,
    notes: Notes,
}

impl Default for FindState {
    fn default() -> Self {
        Self {
            finds: vec![],
            unverified: vec![],
            passed: PassedOver::default(),
            more: 0,
            pushed: 0,
            unpacked: 0,
            allowed: UNPACKED,
            notes: Notes::default(),
        }
    }
}

/// Clones share the state.
#[derive(Clone, Debug, Default)]
pub(super) struct Finds(Arc<Mutex<FindState>>);

impl Finds {
    fn state(&self) -> MutexGuard<'_, FindState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, entry: ArchivedFind) {
        let mut state = self.state();
        if !state.finds.contains(&entry) {
            state.finds.push(entry);
        }
    }

    pub(super) fn doubt(&self, what: String) {
        let mut state = self.state();
        if state.unverified.len() < MOST_UNVERIFIED {
            state.unverified.push(what);
        } else {
            state.more += 1;
        }
    }

    pub(super) fn take_finds(&self) -> Vec<ArchivedFind> {
        std::mem::take(&mut self.state().finds)
    }

    pub(super) fn take_unverified(&self) -> Vec<String> {
        let mut state = self.state();
        let mut all = std::mem::take(&mut state.unverified);
        match std::mem::take(&mut state.more) {
            0 => {}
            more => all.push(format!("{more} places more")),
        }
        all
    }

    pub(super) fn take_passed(&self) -> PassedOver {
        std::mem::take(&mut self.state().passed)
    }

    /// Counts bytes of the outermost stream.
    pub(super) fn pushed(&self, bytes: usize) {
        self.state().pushed += bytes as u64;
    }

    /// Counts bytes that came out of a decoder; false if they exceed the limit.
    pub(super) fn unpacked(&self, bytes: usize) -> bool {
        let mut state = self.state();
        state.unpacked += bytes as u64;
        state.unpacked <= state.allowed.saturating_add(state.pushed.saturating_mul(UNPACKED_RATIO))
    }

    /// Sets the limit that replaces [`UNPACKED`].
    pub(super) fn allow(&self, bytes: u64) {
        self.state().allowed = bytes;
    }

    pub(super) fn notes(&self, note: impl FnOnce(&mut Notes)) {
        note(&mut self.state().notes);
    }

    pub(super) fn bytes(&self) -> u64 {
        let state = self.state();
        state.pushed + state.unpacked
    }
}

/// How an archive is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LayerRole {
    /// Files.
    Files,
    /// An image in the format of `docker save` or the OCI layout: archives in it are layers; its documents
    /// hold environment, labels and history.
    Image,
    /// A layer of an image; names of deletions are kept.
    Layer,
}

/// A reader's position in nested archives.
#[derive(Clone, Debug)]
pub(super) struct Nesting {
    pub(super) found: Finds,
    /// Prefix of names: the archives around, each followed by `!/`.
    pub(super) prefix: String,
    pub(super) layer: Option<String>,
    pub(super) role: LayerRole,
    /// How many more levels of archives may be opened.
    pub(super) depth: u8,
    /// Whether line numbers are wanted, which costs a second pass over text with a find.
    pub(super) lines: bool,
}

impl Nesting {
    /// The place of an outermost stream.
    pub(super) fn root(role: LayerRole) -> Self {
        Self {
            found: Finds::default(),
            prefix: String::new(),
            layer: None,
            role,
            depth: NESTED + 1,
            lines: false,
        }
    }

    /// The place inside the archive `name`; `None` if it is nested too deep.
    pub(super) fn inside(&self, name: &str, is_tar: bool) -> Option<Self> {
        let mut inside = self.clone();
        inside.role = LayerRole::Files;
        if self.role == LayerRole::Image && is_tar && !name.is_empty() {
            inside.role = LayerRole::Layer;
            inside.layer = Some(name.into());
            return Some(inside);
        }
        inside.depth = self.depth.checked_sub(1)?;
        if name.is_empty() {
            inside.role = self.role;
        } else {
            inside.prefix = format!("{}{name}!/", self.prefix);
        }
        Some(inside)
    }

    pub(super) fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn find(&self, name: &str, kind: SecretKind, line: Option<u32>) {
        self.find_as(name, kind, line, Exception::Path);
    }

    pub(super) fn find_as(&self, name: &str, kind: SecretKind, line: Option<u32>, exception: Exception) {
        self.found.find(ArchivedFind {
            name: self.full(name),
            kind,
            layer: self.layer.clone(),
            line,
            exception,
        });
    }

    /// Records published keys of a file by their digests.
    pub(super) fn pass(&self, name: &str, keys: &BTreeSet<u64>) {
        if !keys.is_empty() {
            self.found.state().passed.add(PassedOver::of(&self.full(name), keys));
        }
    }

    pub(super) fn doubt(&self, name: &str, why: &str) {
        let layer = self.layer.as_ref().map(|layer| format!("{layer}: ")).unwrap_or_default();
        let name = self.full(name);
        let name = if name.is_empty() { "the archive".into() } else { name };
        self.found.doubt(format!("{layer}{name}: {why}"));
    }
}
