//! The cache for one kind of token, and the flights that fill it. Not async; no lock outlives a call.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::source::flight::{Flight, Outcome};
use crate::source::http::client::jittered;
use crate::source::{Pending, SourceError};
use crate::token::{AccessToken, AwsSession, AzureToken, Deadline, HandedOut, IdentityToken, Now};

use super::{AHEAD, BACKOFF, FLOOR, ID_TOKEN_REUSE, LEAST_AWS, LONGEST_BACKOFF, REFUSAL_MEMORY};

/// The cache key of a token: the whole request.
pub(super) trait CacheKey: Clone + Debug + Eq + Hash + Send + Sync + 'static {}

impl<K: Clone + Debug + Eq + Hash + Send + Sync + 'static> CacheKey for K {}

/// A token that can be cached.
pub(super) trait Cacheable: Debug + Send + Sync + 'static {
    fn about(&self) -> HandedOut;

    /// A token with less life left is never stored or served.
    const LEAST: Duration = Duration::ZERO;

    /// The error if a new token has less; `left` is its life.
    fn too_short(_left: Duration) -> SourceError {
        SourceError::transient("the token that came has already expired; check this machine's clock")
    }

    fn is_usable(&self, now: Now) -> bool {
        let left = self.about().expires.remaining(now);
        left >= Self::LEAST && !left.is_zero()
    }

    /// For a token with `life` left: how long to serve it, and after how long to renew it ahead.
    fn spans(life: Duration) -> Lifetimes;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    pub(super) served: Duration,
    pub(super) calm: Duration,
}

/// The result of a look-up.
#[derive(Debug)]
pub(super) enum CacheResult<T> {
    /// Serve this token; launch the renewal, if one is due.
    Serve(Arc<T>, Option<InFlight<T>>),
    /// The last mint failed a moment ago, and there is no valid token. Holds the failure and the time of the
    /// next try.
    Failed(SourceError, Instant),
    /// Wait for this flight, and launch it if `new`. `old` is still valid, in case the flight fails.
    Wait { in_flight: InFlight<T>, new: bool, old: Option<Arc<T>> },
}

/// A flight as its callers hold it.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    pub(super) flight: Flight<T>,
    void: Arc<AtomicBool>,
}

impl<T> InFlight<T> {
    /// The cache was cleared meanwhile (account change): use neither the flight's outcome nor an older token.
    pub(super) fn is_void(&self) -> bool {
        self.void.load(Ordering::Acquire)
    }
}

impl<T> Clone for InFlight<T> {
    fn clone(&self) -> Self {
        Self { flight: self.flight.clone(), void: self.void.clone() }
    }
}

impl Cacheable for AccessToken {
    fn about(&self) -> HandedOut {
        self.about()
    }

    /// For short lives: serve until a quarter of the life is left, renew when three eighths are left.
    fn spans(life: Duration) -> Lifetimes {
        Lifetimes { served: life - FLOOR.min(life / 4), calm: life - AHEAD.min(life * 3 / 8) }
    }
}

impl Cacheable for IdentityToken {
    fn about(&self) -> HandedOut {
        self.about()
    }

    /// Not renewed ahead, because every audience would then need an upstream call every four minutes.
    fn spans(life: Duration) -> Lifetimes {
        let served = ID_TOKEN_REUSE.min(life / 2);
        Lifetimes { served, calm: served }
    }
}

impl Cacheable for AwsSession {
    fn about(&self) -> HandedOut {
        self.about()
    }

    const LEAST: Duration = LEAST_AWS;

    fn too_short(left: Duration) -> SourceError {
        SourceError::transient(format!(
            "the session of AWS that came ends in {} s, too soon for its clients; log in again on the host, or set a \
             role, whose sessions begin anew",
            left.as_secs()
        ))
    }

    /// boto asks again before every call when less than 900 s are left, so more is served where the life allows
    /// it. With the shortest life that STS gives, 900 s, a session is served for 240 s.
    fn spans(life: Duration) -> Lifetimes {
        let floor = if life >= 2 * AHEAD { AHEAD } else { LEAST_AWS }.min(life);
        Lifetimes { served: life - floor, calm: life - floor - FLOOR.min((life - floor) / 4) }
    }
}

impl Cacheable for AzureToken {
    fn about(&self) -> HandedOut {
        self.about()
    }

    /// MSAL treats a token with less than 300 s left as expired, and then requests one before every call.
    fn spans(life: Duration) -> Lifetimes {
        AccessToken::spans(life)
    }
}

/// A token that is served from the cache.
#[derive(Debug)]
pub struct Fresh<T> {
    pub token: Arc<T>,
    /// Until then, and while its generation stays the same, another look-up gives the same token and starts nothing.
    pub calm: Deadline,
}

/// Changes with everything but time that can change what a look-up in the caches gives, or whose tokens they hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Generation(Arc<AtomicU64>);

impl Generation {
    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Call this after the change, before anybody is told that it is done.
    pub(super) fn next(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct CachedToken<T> {
    token: Arc<T>,
    served: Deadline,
    calm: Deadline,
}

#[derive(Debug)]
struct CacheEntry<T> {
    cached: Option<CachedToken<T>>,
    in_flight: Option<InFlight<T>>,
    /// The last failure, and until when it is repeated without a new try.
    failure: Option<(SourceError, Instant)>,
    failures: u32,
    used: Instant,
}

impl<T: Cacheable> CacheEntry<T> {
    fn new(now: Now) -> Self {
        Self { cached: None, in_flight: None, failure: None, failures: 0, used: now.mono }
    }

    /// The flight under way. A flight that finished but is still recorded here has panicked.
    fn flying(&self) -> Option<&InFlight<T>> {
        self.in_flight.as_ref().filter(|in_flight| in_flight.flight.finished().is_none())
    }

    fn failure(&self, now: Now) -> Option<&(SourceError, Instant)> {
        self.failure.as_ref().filter(|(_, until)| now.mono < *until)
    }

    fn valid(&self, now: Now) -> Option<&Arc<T>> {
        let cached = self.cached.as_ref()?;
        cached.token.is_usable(now).then_some(&cached.token)
    }

    fn fresh(&self, now: Now) -> Option<&CachedToken<T>> {
        self.cached.as_ref().filter(|cached| !cached.served.is_over(now) && cached.token.is_usable(now))
    }
}

#[derive(Debug)]
pub(super) struct TokenCache<K, T> {
    own: Weak<Self>,
    entries: Mutex<HashMap<K, CacheEntry<T>>>,
    capacity: usize,
    generation: Generation,
}

impl<K: CacheKey, T: Cacheable> TokenCache<K, T> {
    pub(super) fn new(capacity: usize, generation: Generation) -> Arc<Self> {
        Arc::new_cyclic(|own| Self { own: own.clone(), entries: Mutex::default(), capacity, generation })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, CacheEntry<T>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fresh token, and its renewal if one is due. Never starts a flight for a missing token.
    pub(super) fn fresh(
        &self,
        key: &K,
        now: Now,
        work: impl FnOnce() -> Pending<'static, Result<T, SourceError>>,
    ) -> Option<(Fresh<T>, Option<InFlight<T>>)> {
        let mut entries = self.lock();
        let entry = entries.get_mut(key)?;
        entry.used = now.mono;
        self.serve(entry, key, now, work)
    }

    /// Looks `key` up. If there is no fresh token, joins or creates the flight, all under one lock, so that
    /// there is only one. `work` is told whether it makes a renewal, for which no caller waits.
    pub(super) fn look(
        &self,
        key: &K,
        now: Now,
        work: impl Fn(bool) -> Pending<'static, Result<T, SourceError>>,
    ) -> CacheResult<T> {
        let mut entries = self.lock();
        if !entries.contains_key(key) {
            make_room(&mut entries, self.capacity, now);
            entries.insert(key.clone(), CacheEntry::new(now));
        }
        let Some(entry) = entries.get_mut(key) else {
            return CacheResult::Failed(
                SourceError::refused("the token cache is at odds with itself"),
                now.mono,
            );
        };
        entry.used = now.mono;
        if let Some((fresh, renewal)) = self.serve(entry, key, now, || work(true)) {
            return CacheResult::Serve(fresh.token, renewal);
        }
        let old = entry.valid(now).cloned();
        if let Some(in_flight) = entry.flying() {
            return CacheResult::Wait { in_flight: in_flight.clone(), new: false, old };
        }
        match (entry.failure(now), old) {
            (Some(_), Some(old)) => CacheResult::Serve(old, None),
            (Some((error, again)), None) => CacheResult::Failed(error.clone(), *again),
            (None, old) => {
                CacheResult::Wait { in_flight: self.start_flight(entry, key, work(false)), new: true, old }
            }
        }
    }

    fn serve(
        &self,
        entry: &mut CacheEntry<T>,
        key: &K,
        now: Now,
        work: impl FnOnce() -> Pending<'static, Result<T, SourceError>>,
    ) -> Option<(Fresh<T>, Option<InFlight<T>>)> {
        let cached = entry.fresh(now)?;
        let fresh = Fresh { token: cached.token.clone(), calm: cached.calm };
        let due = cached.calm.is_over(now) && entry.flying().is_none() && entry.failure(now).is_none();
        Some((fresh, due.then(|| self.start_flight(entry, key, work()))))
    }

    /// Creates a flight that updates its entry before it finishes, so that later callers find the token.
    fn start_flight(
        &self,
        entry: &mut CacheEntry<T>,
        key: &K,
        work: Pending<'static, Result<T, SourceError>>,
    ) -> InFlight<T> {
        let void = Arc::new(AtomicBool::new(false));
        let (cache, key, own) = (self.own.clone(), key.clone(), void.clone());
        let flight = Flight::new(async move {
            let outcome = work.await.and_then(alive).map(Arc::new);
            if let Some(cache) = cache.upgrade() {
                cache.settle(&key, &own, &outcome);
            }
            outcome
        });
        let in_flight = InFlight { flight, void };
        entry.in_flight = Some(in_flight.clone());
        in_flight
    }

    /// Only the entry's own flight may update it: forgotten tokens must not come back.
    fn settle(&self, key: &K, own: &Arc<AtomicBool>, outcome: &Outcome<T>) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(key) else { return };
        if !entry.in_flight.as_ref().is_some_and(|in_flight| Arc::ptr_eq(&in_flight.void, own)) {
            return;
        }
        entry.in_flight = None;
        let now = Now::read();
        match outcome {
            Ok(token) => {
                let Lifetimes { served, calm } = T::spans(token.about().expires.remaining(now));
                let (served, calm) = (Deadline::after(now, served), Deadline::after(now, calm));
                entry.cached = Some(CachedToken { token: token.clone(), served, calm });
                entry.failure = None;
                entry.failures = 0;
                self.generation.next();
            }
            Err(error) => {
                let pause = match error {
                    SourceError::Transient(why) => {
                        let doubled = BACKOFF.saturating_mul(1 << entry.failures.min(8));
                        jittered(doubled.min(LONGEST_BACKOFF)).max(why.pause.unwrap_or_default())
                    }
                    SourceError::Absent(_) | SourceError::Refused(_) => REFUSAL_MEMORY,
                };
                entry.failure = Some((error.clone(), now.mono + pause));
                entry.failures = entry.failures.saturating_add(1);
            }
        }
    }

    /// Drops entries. Their flights no longer update the cache, but their waiters still get the outcome.
    pub(super) fn forget(&self, which: impl Fn(&K) -> bool) {
        self.lock().retain(|key, _| !which(key));
        self.generation.next();
    }

    /// Drops everything and voids flights under way: they belong to a previous account.
    pub(super) fn void_all(&self) {
        self.void(|_| true);
    }

    /// The same for only these keys.
    pub(super) fn void(&self, which: impl Fn(&K) -> bool) {
        for (_, entry) in self.lock().extract_if(|key, _| which(key)) {
            if let Some(in_flight) = entry.in_flight {
                in_flight.void.store(true, Ordering::Release);
            }
        }
        self.generation.next();
    }

    pub(super) fn forget_failures(&self) {
        for entry in self.lock().values_mut() {
            entry.failure = None;
            entry.failures = 0;
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}

/// Rejects a token that has expired or ends too soon: the next look asks for another.
fn alive<T: Cacheable>(token: T) -> Result<T, SourceError> {
    let now = Now::read();
    if token.is_usable(now) { Ok(token) } else { Err(T::too_short(token.about().expires.remaining(now))) }
}

/// Removes expired entries first, then the least recently used one.
fn make_room<K: CacheKey, T: Cacheable>(entries: &mut HashMap<K, CacheEntry<T>>, capacity: usize, now: Now) {
    if entries.len() < capacity {
        return;
    }
    entries.retain(|_, entry| {
        entry.valid(now).is_some() || entry.flying().is_some() || entry.failure(now).is_some()
    });
    if entries.len() >= capacity {
        let oldest = entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
        oldest.map(|key| entries.remove(&key));
    }
}
