//! A look through directories: what is known comes first, then the walk (`tree`). Where somebody waits, a file system
//! that does not answer ends it.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::Guard;
use super::memory::Memory;
use super::seen::Progress;
pub use super::seen::{Budget, Seen};
use super::tree::Walk;

/// Looks through `roots`: directories or files. At most `most` finds are taken of each.
///
/// Blocks, and for as long as a dead file server likes: where somebody waits, [`look_within`] is for that.
pub fn look(roots: &[PathBuf], guard: &Guard, budget: Budget, memory: &Memory, most: usize) -> Seen {
    look_aloud(roots, guard, budget, memory, most, &Progress::default())
}

/// The same, and back when the file system does not answer one question within `silence`: then with what was found
/// until then, and marked. How long a look takes that goes on does not matter.
pub fn look_within(
    silence: Duration,
    roots: &[PathBuf],
    guard: &Guard,
    budget: Budget,
    memory: &Memory,
    most: usize,
) -> Seen {
    let progress = Progress::default();
    let (told, roots, guard, memory) = (progress.clone(), roots.to_vec(), guard.clone(), memory.clone());
    let (done, ended) = sync_channel(1);
    // A thread of its own: one that hangs for good takes no other's place.
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
    Seen {
        lines: vec![None; finds.len()],
        finds,
        unverified: vec![DID_NOT_ANSWER.into()],
        hung: true,
        ..Seen::default()
    }
}

/// Why a look that hangs is given up.
pub const DID_NOT_ANSWER: &str = "the file system did not answer";

fn look_aloud(
    roots: &[PathBuf],
    guard: &Guard,
    budget: Budget,
    memory: &Memory,
    most: usize,
    progress: &Progress,
) -> Seen {
    let mut walk = Walk::new(roots.len(), &guard.rules, budget, memory, most, progress);
    walk.expect(&guard.made);
    // What needs no walk comes first, root by root: a walk may come to where it hangs.
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
