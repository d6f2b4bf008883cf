//! A limit on concurrent requests of one identity: containers choose the names of Azure's resources, and each new
//! name needs another request, or a program that runs for seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The number of unfinished requests, by identity.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<HashMap<String, usize>>);

/// One unfinished request; it counts until this is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    under_way: Arc<UnderWay>,
    identity: String,
}

impl UnderWay {
    /// `None` if `identity` already has `most` unfinished requests.
    pub(super) fn enter(self: &Arc<Self>, identity: &str, most: usize) -> Option<Counted> {
        let mut under_way = self.lock();
        let count = under_way.entry(identity.to_owned()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted { under_way: self.clone(), identity: identity.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut under_way = self.under_way.lock();
        if let Some(count) = under_way.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.identity);
            }
        }
    }
}
