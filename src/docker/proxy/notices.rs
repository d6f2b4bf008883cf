//! Lines that a session prints once, however often their reason recurs: every task of a pipeline has the same mounts
//! and images.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::console::Console;

#[derive(Debug)]
pub(super) struct Notices {
    console: Console,
    printed: Mutex<HashSet<String>>,
}

impl Notices {
    pub(super) fn new(console: Console) -> Self {
        Self { console, printed: Mutex::default() }
    }

    /// Prints `line`, unless one with this reason was printed before. `who` is the container it is about.
    pub(super) fn once(&self, who: &str, reason: String, line: &str) {
        if self.printed.lock().unwrap_or_else(PoisonError::into_inner).insert(reason) {
            self.console.notice(format!("{who}: {line}"));
        }
    }
}
