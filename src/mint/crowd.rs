//! A limit on what one identity has under way: containers choose the names of Azure's resources, and each new name
//! is a request of its own, or a program that runs for seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The number of requests under way, by identity.
#[derive(Debug, Default)]
pub(super) struct Crowd(Mutex<HashMap<String, usize>>);

/// A place in the crowd, given up on drop.
#[derive(Debug)]
pub(super) struct Turn {
    crowd: Arc<Crowd>,
    identity: String,
}

impl Crowd {
    /// `None` if `most` requests of `identity` are under way.
    pub(super) fn enter(self: &Arc<Self>, identity: &str, most: usize) -> Option<Turn> {
        let mut crowd = self.lock();
        let count = crowd.entry(identity.to_owned()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Turn { crowd: self.clone(), identity: identity.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut crowd = self.crowd.lock();
        if let Some(count) = crowd.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                crowd.remove(&self.identity);
            }
        }
    }
}
