//! The host's keys in memory: found once for all sessions, until they end or their files change.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::source::aws::keys::Keys;
use crate::source::aws::lookup::Lookup;
use crate::source::flight::{Flight, Outcome};
use crate::source::http::client::Upstream;
use crate::source::stamp::Stamp;
use crate::source::{Reloaded, SourceError};
use crate::token::Now;

/// Keys with less life left are never used.
const LEAST: Duration = Duration::from_secs(30);
/// If new keys have less life left than wanted, the search is not repeated for this long.
const PAUSE: Duration = Duration::from_secs(60);

/// The keys, and the state of their files.
#[derive(Debug)]
pub(super) struct Host {
    lookup: Arc<Lookup>,
    upstream: Arc<Upstream>,
    last: Mutex<Option<SharedKeys>>,
    seen: Mutex<ReadFiles>,
}

#[derive(Debug)]
struct SharedKeys {
    flight: Flight<Keys>,
    begun: Instant,
}

/// A file with its state; `None` while it does not exist.
type WatchedFile = (PathBuf, Option<Stamp>);

/// The files that the keys depend on, and the settings read from them.
#[derive(Debug)]
struct ReadFiles {
    profiles: Vec<WatchedFile>,
    /// The cached login of SSO, or another issuer's token.
    token: Option<WatchedFile>,
    fingerprint: String,
    region: Option<String>,
    patience: Duration,
}

impl ReadFiles {
    fn of(lookup: &Lookup) -> Result<Self, SourceError> {
        let stamped = |path: PathBuf| {
            let stamp = Stamp::of(&path);
            (path, stamp)
        };
        // Before the files are read, so that no change is missed.
        let profiles = lookup.files().map(stamped).collect();
        let chain = lookup.chain()?;
        let token = chain.as_ref().and_then(|chain| lookup.token_file(chain)).map(stamped);
        let region = lookup.region(chain.as_ref());
        let patience = lookup.patience(chain.as_ref());
        let fingerprint = chain.map(|chain| chain.fingerprint).unwrap_or_default();
        Ok(Self { profiles, token, fingerprint, region, patience })
    }

    fn is_current(&self) -> bool {
        self.profiles.iter().chain(&self.token).all(|(path, stamp)| Stamp::of(path) == *stamp)
    }
}

impl SharedKeys {
    fn is_usable(&self, floor: Duration) -> bool {
        match self.flight.finished() {
            None => true,
            Some(Err(_)) => false,
            Some(Ok(keys)) => keys.expires.is_none_or(|end| {
                let left = end.remaining(Now::read());
                left >= floor || left >= LEAST && self.begun.elapsed() < PAUSE
            }),
        }
    }
}

impl Host {
    /// Fails if the profile that the config names does not exist or has no keys.
    pub(super) fn open(lookup: Lookup, upstream: Arc<Upstream>) -> Result<Self, SourceError> {
        let seen = ReadFiles::of(&lookup)?;
        let lookup = Arc::new(lookup);
        Ok(Self { lookup, upstream, last: Mutex::default(), seen: Mutex::new(seen) })
    }

    pub(super) fn lookup(&self) -> &Lookup {
        &self.lookup
    }

    /// The region of the token service.
    pub(super) fn region(&self) -> Option<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).region.clone()
    }

    /// Extra time for a command, beyond what requests may take.
    pub(super) fn patience(&self) -> Duration {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).patience
    }

    /// Keys with at least `floor` of life left, if there are any.
    pub(super) async fn keys(&self, floor: Duration) -> Outcome<Keys> {
        let flight = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            match last.as_ref().filter(|held| held.is_usable(floor)) {
                Some(held) => held.flight.clone(),
                None => {
                    let (lookup, upstream) = (self.lookup.clone(), self.upstream.clone());
                    let work = async move { lookup.keys(&upstream).await.map(Arc::new) };
                    let flight = Flight::new(work);
                    last.insert(SharedKeys { flight, begun: Instant::now() }).flight.clone()
                }
            }
        };
        flight.outcome().await
    }

    /// Drops keys that AWS no longer accepts; keeps newer ones.
    pub(super) fn forget(&self, keys: &Arc<Keys>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let finished = last.as_ref().and_then(|held| held.flight.finished());
        if finished.is_some_and(|outcome| outcome.as_ref().is_ok_and(|known| Arc::ptr_eq(known, keys))) {
            *last = None;
        }
    }

    /// Checks the files; cheap if none changed. Drops keys that came from changed files.
    pub(super) fn reload(&self) -> Reloaded {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_current() {
            return Reloaded::Same;
        }
        let now = match ReadFiles::of(&self.lookup) {
            Ok(now) => now,
            Err(error) => {
                let seen = &mut *seen;
                seen.profiles
                    .iter_mut()
                    .chain(&mut seen.token)
                    .for_each(|(path, stamp)| *stamp = Stamp::of(path));
                return Reloaded::Broken(error.to_string());
            }
        };
        let before = std::mem::replace(&mut *seen, now);
        let found = match (before.fingerprint == seen.fingerprint, before.token == seen.token) {
            (true, true) => return Reloaded::Same,
            (true, false) => Reloaded::Supplied,
            (false, _) => Reloaded::OtherAccount,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        found
    }
}
