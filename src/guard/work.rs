//! Counts steps of work, so that a test can check that they stay linear in the length of the input.

use std::cell::Cell;

/// Bytes that were examined, counted each time.
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
