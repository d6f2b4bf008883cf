//! File metadata that reveals a change without reading the file.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

impl Stamp {
    /// `None` if there is no file.
    pub fn of(path: &Path) -> Option<Self> {
        Self::of_opened(&fs::metadata(path).ok()?)
    }

    pub fn of_opened(about: &Metadata) -> Option<Self> {
        Some(Self { modified: about.modified().ok()?, length: about.len(), inode: about.ino() })
    }
}
