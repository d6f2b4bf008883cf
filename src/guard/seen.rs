//! Budget and result of a scan through directories.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use super::Find;
use super::found::PassedOver;

/// The budget of one scan.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Names in directories.
    pub entries: usize,
    /// Bytes of files, whether read now or known from an earlier scan.
    pub bytes: u64,
    /// Whether to scan everything, as the command `scan` does: whole files, archives of every size, packages
    /// and version control.
    pub whole: bool,
}

impl Budget {
    /// For a request, whose caller waits.
    pub const REQUEST: Budget = Budget { entries: 200_000, bytes: 256 << 20, whole: false };

    /// For the command `scan`, which checks everything.
    pub const WHOLE: Budget = Budget { entries: usize::MAX, bytes: u64::MAX, whole: true };
}

/// The result of a scan.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ScanResult {
    /// Each find with the number of its root.
    pub finds: Vec<(usize, Find)>,
    /// The line of each find; `None` if it has none or [`Budget::whole`] is off.
    pub lines: Vec<Option<u32>>,
    /// What was not judged, and why; lower-case fragments.
    pub unverified: Vec<String>,
    /// Published keys in the files that this scan read.
    pub passed: PassedOver,
    /// Whether the file system did not answer, so that its content is unknown.
    pub hung: bool,
    /// The work done: files judged, names met, bytes counted.
    pub files: usize,
    pub entries: usize,
    pub bytes: u64,
}

/// Progress of a running scan, for the thread that waits for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) steps: Arc<AtomicU64>,
    pub(super) found: Arc<Mutex<Vec<(usize, Find)>>>,
}

/// Places that are reported together: the first one by name, and how many more.
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
