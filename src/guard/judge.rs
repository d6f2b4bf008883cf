//! Judges one file as it is pushed, in windows, so that a key late in a large file is found too.

use std::collections::BTreeSet;

use zeroize::Zeroize;

use super::content::{HEAD, judged};
use super::found::Nesting;
use super::text::is_text;
use super::{SecretKind, what};

/// Overlap of two windows: a key on their border is whole in one of them.
const SHARED: usize = 64 << 10;

/// The state of one file; holds one window at most.
#[derive(Debug, Default)]
pub(super) struct FileJudge {
    window: Vec<u8>,
    /// How much of the window is already judged.
    judged: usize,
    lines: u32,
    found: bool,
    /// Published keys, by their digests: a set, because windows overlap.
    passed: BTreeSet<u64>,
}

impl FileJudge {
    pub(super) fn push(&mut self, name: &str, mut bytes: &[u8], place: &Nesting) {
        // One find per file is enough.
        while !bytes.is_empty() && !self.found {
            let room = HEAD - self.window.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.window.extend_from_slice(now);
            bytes = later;
            if self.window.len() == HEAD {
                self.look(name, place);
                self.slide(place.lines);
            }
        }
    }

    pub(super) fn end(&mut self, name: &str, place: &Nesting) {
        if self.window.len() > self.judged && !self.found {
            self.look(name, place);
        }
        self.window.zeroize();
        self.judged = 0;
        place.pass(name, &std::mem::take(&mut self.passed));
    }

    pub(super) fn unjudged(&self) -> u64 {
        if self.found { 0 } else { self.window.len() as u64 }
    }

    fn look(&mut self, name: &str, place: &Nesting) {
        let (found, passed) = judged(&self.window);
        self.passed.extend(passed);
        if let Some(kind) = found {
            let line = place.lines.then(|| line(&self.window)).flatten();
            place.find(name, kind, line.map(|line| self.lines + line));
            self.found = true;
        }
    }

    fn slide(&mut self, lines: bool) {
        let gone = self.window.len() - SHARED;
        if lines {
            let ends = memchr::memchr_iter(b'\n', &self.window[..gone]).count();
            self.lines = self.lines.saturating_add(u32::try_from(ends).unwrap_or(u32::MAX));
        }
        self.window.copy_within(gone.., 0);
        self.window[SHARED..].zeroize();
        self.window.truncate(SHARED);
        self.judged = SHARED;
    }
}

/// Judges a file that is all here, without copying it. Returns the find, with its line if `lines` is set, and
/// the digests of published keys.
pub(super) fn all(bytes: &[u8], lines: bool) -> (Option<(SecretKind, Option<u32>)>, BTreeSet<u64>) {
    let (mut start, mut passed) = (0, BTreeSet::new());
    loop {
        let window = &bytes[start..bytes.len().min(start + HEAD)];
        let (found, keys) = judged(window);
        passed.extend(keys);
        if let Some(kind) = found {
            let before = || memchr::memchr_iter(b'\n', &bytes[..start]).count();
            let line = lines.then(|| line(window)).flatten();
            let line = line.map(|line| line + u32::try_from(before()).unwrap_or(u32::MAX));
            return (Some((kind, line)), passed);
        }
        if start + HEAD >= bytes.len() {
            return (None, passed);
        }
        start += HEAD - SHARED;
    }
}

/// The line (from 1) on which the find in a text begins: in the shortest beginning that has the find, the
/// last line from which on it is still found.
fn line(text: &[u8]) -> Option<u32> {
    if !is_text(text) {
        return None;
    }
    let ends: Vec<usize> = memchr::memchr_iter(b'\n', text).map(|end| end + 1).chain([text.len()]).collect();
    // How many lines from the beginning are needed to have the find.
    let count = partition(ends.len(), |count| what(&text[..ends[count]]).is_none());
    let end = *ends.get(count)?;
    let start = |line: usize| if line == 0 { 0 } else { ends[line - 1] };
    let first = partition(count + 1, |line| what(&text[start(line)..end]).is_some());
    u32::try_from(first.max(1)).ok()
}

/// How many of the numbers below `end` satisfy `first`; all that do come before those that do not.
fn partition(end: usize, first: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, end);
    while low < high {
        let middle = low + (high - low) / 2;
        if first(middle) { low = middle + 1 } else { high = middle }
    }
    low
}
