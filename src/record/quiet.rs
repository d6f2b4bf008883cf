//! Refusals repeat: a client that retries, or an attacker that hopes. Each is written once a minute, with how
//! often it happened meanwhile; what is kept back when the session ends is written then.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::audit::Entry;

const EVERY: Duration = Duration::from_secs(60);
/// Callers choose some of what is told apart; what was said longest ago makes room.
const KEPT: usize = 1024;
/// So many different ones of a caller are told apart within a minute; of more, only by status and route. Else
/// one that asks for ever new audiences would rotate the log away.
const TOLD_APART: usize = 32;

/// Keyed by hashes under a seed of this process: what callers wrote takes no memory here, and they cannot make
/// two of them meet.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    seed: RandomState,
    said: Mutex<HashMap<u64, Said>>,
}

#[derive(Debug)]
struct Said {
    caller: u64,
    last: Instant,
    kept: u64,
    entry: Entry,
}

impl Said {
    /// One entry for all that was kept back: it is one of them itself.
    fn rest(mut self) -> Option<Entry> {
        self.entry.repeats = self.kept.checked_sub(1)?;
        Some(self.entry)
    }
}

impl Quiet {
    /// What is to be written now of `entry`, which is told apart by `what` and `details`.
    pub(super) fn tell(
        &self,
        caller: impl Hash,
        what: impl Hash,
        details: impl Hash,
        entry: Entry,
    ) -> Vec<Entry> {
        let now = Instant::now();
        let caller = self.seed.hash_one(caller);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = self.seed.hash_one((caller, &what, details));
        let recent = |old: &&Said| old.caller == caller && now.duration_since(old.last) < EVERY;
        if !said.contains_key(&key) && said.values().filter(recent).count() >= TOLD_APART {
            key = self.seed.hash_one((caller, what));
        }
        if let Some(old) = said.get_mut(&key) {
            if now.duration_since(old.last) < EVERY {
                old.kept += 1;
                return vec![];
            }
            old.last = now;
            return vec![Entry { repeats: std::mem::take(&mut old.kept), ..entry }];
        }
        let mut due = vec![];
        if said.len() >= KEPT {
            let oldest = said.iter().min_by_key(|(_, old)| old.last).map(|(key, _)| *key);
            due.extend(oldest.and_then(|key| said.remove(&key)).and_then(Said::rest));
        }
        said.insert(key, Said { caller, last: now, kept: 0, entry: entry.clone() });
        due.push(entry);
        due
    }

    /// What was kept back so far.
    pub(super) fn rest(&self) -> Vec<Entry> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.drain().filter_map(|(_, old)| old.rest()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn once_a_minute_with_what_was_kept_back() {
        let quiet = Quiet::default();
        let tell = |caller: usize, details: &str| -> Vec<u64> {
            let told = quiet.tell(caller, "token", details, Entry::default());
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
        // 32 and the one for the others, which has 67 more.
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
