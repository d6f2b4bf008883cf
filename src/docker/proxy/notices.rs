//! Lines that a session prints once, however often their reason recurs: every task of a pipeline has the same
//! mounts and images.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use crate::console::Console;

/// Most reasons that are remembered; the line of an older one is printed again. Pipelines cause a few, by
/// their mounts and images, but a client that creates containers can cause any number.
const REMEMBERED: usize = 1024;

#[derive(Debug)]
pub(super) struct Notices {
    console: Console,
    seed: RandomState,
    /// Hashes of the reasons, the newest last.
    printed: Mutex<VecDeque<u64>>,
}

impl Notices {
    pub(super) fn new(console: Console) -> Self {
        Self { console, seed: RandomState::new(), printed: Mutex::default() }
    }

    /// Prints `line`, unless one with this reason was printed before. `who` names the container that the line
    /// is about.
    pub(super) fn once(&self, who: &str, reason: String, line: &str) {
        let reason = self.seed.hash_one(reason);
        let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        if printed.contains(&reason) {
            return;
        }
        if printed.len() >= REMEMBERED {
            printed.pop_front();
        }
        printed.push_back(reason);
        drop(printed);
        self.console.notice(format!("{who}: {line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::OutputForm;

    #[test]
    fn the_number_of_remembered_reasons_is_bounded() {
        let notices = Notices::new(Console::new(OutputForm::Quiet, std::io::sink()));
        for number in 0..REMEMBERED * 3 {
            notices.once("a", format!("reason {number}"), "line");
            notices.once("b", format!("reason {number}"), "line");
        }
        assert_eq!(notices.printed.lock().unwrap().len(), REMEMBERED);
    }
}
