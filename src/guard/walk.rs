//! Scans directories: well-known places first, then the walk (`tree`). A request's scan ends if the file
//! system does not answer.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::Guard;
use super::memory::Memory;
use super::seen::Progress;
pub use super::seen::{Budget, ScanResult};
use super::tree::Walk;

/// Scans `roots`: directories or files. Takes at most `most` finds from each.
///
/// Blocks for as long as a dead file server does; where a caller waits, use [`look_within`].
pub fn look(roots: &[PathBuf], guard: &Guard, budget: Budget, memory: &Memory, most: usize) -> ScanResult {
    look_aloud(roots, guard, budget, memory, most, &Progress::default())
}

/// The same, but returns if the file system does not answer one question within `silence`, with the finds so
/// far and marked as hung. A scan that makes progress may take any time.
pub fn look_within(
    silence: Duration,
    roots: &[PathBuf],
    guard: &Guard,
    budget: Budget,
    memory: &Memory,
    most: usize,
) -> ScanResult {
    let progress = Progress::default();
    let (told, roots, guard, memory) = (progress.clone(), roots.to_vec(), guard.clone(), memory.clone());
    let (done, ended) = sync_channel(1);
    // A thread of its own, because one that hangs for good must not occupy a pool's thread.
    let begun = std::thread::Builder::new().name("look".into()).spawn(move || {
        let _ = done.send(look_aloud(&roots, &guard, budget, &memory, most, &told));
    });
    let mut last = 0;
    while begun.is_ok() {
        match ended.recv_timeout(silence) {
            Ok(seen) => return seen,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let steps = progress.steps.load(Ordering::Relaxed);
                if steps == last {
                    break;
                }
                last = steps;
            }
        }
    }
    let finds = progress.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ScanResult {
        lines: vec![None; finds.len()],
        finds,
        unverified: vec![DID_NOT_ANSWER.into()],
        hung: true,
        ..ScanResult::default()
    }
}

/// Why a hanging scan is given up.
pub const DID_NOT_ANSWER: &str = "the file system did not answer";

fn look_aloud(
    roots: &[PathBuf],
    guard: &Guard,
    budget: Budget,
    memory: &Memory,
    most: usize,
    progress: &Progress,
) -> ScanResult {
    let mut walk = Walk::new(roots.len(), &guard.rules, budget, memory, most, progress);
    walk.expect(&guard.made);
    // Checks that need no walk run first, for every root: a walk may hang.
    let mut real = vec![];
    for (number, root) in roots.iter().enumerate() {
        if let Some(root) = walk.root(root)
            && !walk.remembered(number, &root)
        {
            walk.socket(number, &root, guard);
            walk.known(number, &root, guard);
            real.push((number, root));
        }
    }
    for (number, root) in &real {
        if root.is_dir() {
            walk.enter(*number, root.clone());
        } else {
            walk.file(*number, root);
        }
    }
    walk.run();
    for (number, root) in real {
        memory.keep_finds(&root, walk.finds(number));
    }
    walk.finish()
}
