//! How much is done: steps are counted, so that a test can hold them to the length of what is judged.

use std::cell::Cell;

/// Bytes that were looked at, each time they were.
#[derive(Debug, Default)]
pub(super) struct Work(Cell<u64>);

impl Work {
    pub(super) fn add(&self, steps: usize) {
        self.0.set(self.0.get() + steps as u64);
    }

    #[cfg(test)]
    pub(super) fn steps(&self) -> u64 {
        self.0.get()
    }
}
