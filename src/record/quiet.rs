//! Refusals repeat: a client that retries, or an attacker that hopes. Each kind is written once a minute,
//! with how often it happened meanwhile.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const EVERY: Duration = Duration::from_secs(60);
/// Callers choose some of the keys; what was said longest ago makes room.
const KEYS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<HashMap<String, (Instant, u64)>>);

impl Quiet {
    /// `Some` when it is to be written now, with how often it was kept back since the last time.
    pub(super) fn due(&self, key: String) -> Option<u64> {
        let now = Instant::now();
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last, kept)) = said.get_mut(&key) {
            if now.duration_since(*last) < EVERY {
                *kept += 1;
                return None;
            }
            *last = now;
            return Some(std::mem::take(kept));
        }
        if said.len() >= KEYS {
            let oldest = said.iter().min_by_key(|(_, (last, _))| *last).map(|(key, _)| key.clone());
            oldest.map(|key| said.remove(&key));
        }
        said.insert(key, (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn once_a_minute_with_what_was_kept_back() {
        let quiet = Quiet::default();
        assert_eq!(quiet.due("a".into()), Some(0));
        assert_eq!((quiet.due("a".into()), quiet.due("a".into())), (None, None));
        assert_eq!(quiet.due("b".into()), Some(0));
        tokio::time::advance(EVERY).await;
        assert_eq!(quiet.due("a".into()), Some(2));
        for n in 0..2 * KEYS {
            quiet.due(n.to_string());
        }
        assert!(quiet.0.lock().unwrap().len() <= KEYS);
    }
}
