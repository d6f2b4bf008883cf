//! What a look through directories may cost, and what it came to.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use super::Find;
use super::found::Passed;

/// What one look may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Names in directories.
    pub entries: usize,
    /// Bytes of files, counted whether they are read or known from an earlier look.
    pub bytes: u64,
    /// `scan` looks at everything: whole files, archives of every size, packages and version control.
    pub whole: bool,
}

impl Budget {
    /// For a request that somebody waits for.
    pub const REQUEST: Budget = Budget { entries: 200_000, bytes: 256 << 20, whole: false };

    /// For `scan`, which is asked to look at everything.
    pub const WHOLE: Budget = Budget { entries: usize::MAX, bytes: u64::MAX, whole: true };
}

/// What a look came to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// Each with the number of the root that it belongs to.
    pub finds: Vec<(usize, Find)>,
    /// Of each find, the line; `None` where there is none or [`Budget::whole`] is off.
    pub lines: Vec<Option<u32>>,
    /// What was not judged, and why; lower-case fragments.
    pub unverified: Vec<String>,
    /// Published keys, of the files that this look read.
    pub passed: Passed,
    /// The file system did not answer, and what it holds is not known.
    pub hung: bool,
    /// The work: files judged, names met, bytes counted.
    pub files: usize,
    pub entries: usize,
    pub bytes: u64,
}

/// What a look has come to so far, for who waits for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) steps: Arc<AtomicU64>,
    pub(super) found: Arc<Mutex<Vec<(usize, Find)>>>,
}

/// Places of one kind that are told together: the first by name, and how many more.
#[derive(Debug, Default)]
pub(super) struct Places {
    count: usize,
    first: Option<PathBuf>,
}

impl Places {
    pub(super) fn add(&mut self, place: &Path) {
        self.count += 1;
        self.first.get_or_insert_with(|| place.into());
    }

    pub(super) fn told(&self, what: &str) -> Option<String> {
        let first = self.first.as_ref()?.to_string_lossy();
        Some(match self.count - 1 {
            0 => format!("{first} {what}"),
            more => format!("{first} and {more} more {what}"),
        })
    }
}
