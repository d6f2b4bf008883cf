//! Limits repeated refusals, by clients that retry or attackers that try. Each is written once a minute, with
//! the number of its repetitions; repetitions still held back are written when the session ends.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::audit::AuditEntry;

const EVERY: Duration = Duration::from_secs(60);
/// Callers choose some of the values that distinguish refusals; the oldest ones make room.
const KEPT: usize = 1024;
/// How many refusals of one caller are distinguished within a minute; further ones only by status and route.
/// Otherwise a caller that asks for ever new audiences would push older entries out of the log.
const TOLD_APART: usize = 32;

/// Keyed by hashes with a seed of this process: the callers' text takes no memory here, and callers cannot
/// produce collisions.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    seed: RandomState,
    said: Mutex<HashMap<u64, Repeated>>,
}

#[derive(Debug)]
struct Repeated {
    caller: u64,
    last: Instant,
    kept: u64,
    entry: AuditEntry,
}

impl Repeated {
    /// One entry for all repetitions held back; it stands for one of them itself.
    fn rest(mut self) -> Option<AuditEntry> {
        self.entry.repeats = self.kept.checked_sub(1)?;
        Some(self.entry)
    }
}

impl Quiet {
    /// The entries to write now for `entry`; `what` and `details` tell refusals apart.
    pub(super) fn tell(
        &self,
        caller: impl Hash,
        what: impl Hash,
        details: impl Hash,
        entry: AuditEntry,
    ) -> Vec<AuditEntry> {
        let now = Instant::now();
        let caller = self.seed.hash_one(caller);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = self.seed.hash_one((caller, &what, details));
        let recent = |old: &&Repeated| old.caller == caller && now.duration_since(old.last) < EVERY;
        if !said.contains_key(&key) && said.values().filter(recent).count() >= TOLD_APART {
            key = self.seed.hash_one((caller, what));
        }
        if let Some(old) = said.get_mut(&key) {
            if now.duration_since(old.last) < EVERY {
                old.kept += 1;
                return vec![];
            }
            old.last = now;
            return vec![AuditEntry { repeats: std::mem::take(&mut old.kept), ..entry }];
        }
        let mut due = vec![];
        if said.len() >= KEPT {
            let oldest = said.iter().min_by_key(|(_, old)| old.last).map(|(key, _)| *key);
            due.extend(oldest.and_then(|key| said.remove(&key)).and_then(Repeated::rest));
        }
        said.insert(key, Repeated { caller, last: now, kept: 0, entry: entry.clone() });
        due.push(entry);
        due
    }

    /// All entries held back so far.
    pub(super) fn rest(&self) -> Vec<AuditEntry> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.drain().filter_map(|(_, old)| old.rest()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn repeats_are_logged_once_a_minute_with_a_count() {
        let quiet = Quiet::default();
        let tell = |caller: usize, details: &str| -> Vec<u64> {
            let told = quiet.tell(caller, "token", details, AuditEntry::default());
            told.into_iter().map(|entry| entry.repeats).collect()
        };
        assert_eq!(tell(1, "a"), [0]);
        assert_eq!((tell(1, "a"), tell(1, "a")), (vec![], vec![]));
        assert_eq!((tell(1, "b"), tell(2, "a")), (vec![0], vec![0]));
        tokio::time::advance(EVERY).await;
        assert_eq!(tell(1, "a"), [2]);
        for n in 0..100 {
            tell(3, &n.to_string());
        }
        assert_eq!(tell(4, "a"), [0], "what another does is no matter");
        // 32 entries and one for all further ones, which held back 67 more.
        let rest: Vec<u64> = quiet.rest().into_iter().map(|entry| entry.repeats).collect();
        assert_eq!(rest, [66]);
        assert!(quiet.rest().is_empty());
        let mut written = 0;
        for n in 0..2 * KEPT {
            written += tell(n, "").len() + tell(n, "").len();
            assert!(quiet.said.lock().unwrap().len() <= KEPT);
        }
        assert_eq!(written + quiet.rest().len(), 4 * KEPT, "what makes room is written");
    }
}
