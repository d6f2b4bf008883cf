//! Maps a request to a token: one cache, and at most one upstream call per key at a time.
//!
//! The key is the whole request: account, effective scopes, lifetime and, if tokens are not shared, the
//! holder. Per key there is at most one *flight*, which is its own task: callers wait for it up to their time
//! limit and leave without disturbing it. The lock is held for look-ups only, never across an await, so no
//! key waits for another.
//!
//! A token that is still valid takes precedence over every error and every delay.

mod cache;
mod clouds;
#[cfg(test)]
mod clouds_tests;
#[cfg(test)]
mod forgetting_tests;
mod log;
mod sessions;
#[cfg(test)]
mod tests;
mod under_way;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::failure::Reason;
pub use cache::Fresh;
pub use clouds::Arriving;
pub use log::Health;
use log::MintLog;
pub use sessions::MadeSession;
use sessions::Sessions;

use crate::mint::cache::{CacheKey, CacheResult, Cacheable, Generation, InFlight, TokenCache};
use crate::mint::under_way::UnderWay;
use crate::process::Tasks;
use crate::record::{For, Recorder, Requestor};
use crate::source::aws::{AwsRequest, AwsSource};
use crate::source::azure::{AzureRequest, AzureSource};
use crate::source::{AccessRequest, IdentityRequest, Pending, Reloaded, Source, SourceError};
use crate::token::{AccessToken, AwsSession, AzureToken, IdentityToken, Now, Scopes, TokenKind};
use crate::workload::{ContainerId, Grant, Identity};

/// Access tokens are served while at least this much is left. Clients refresh between 225 s (Python, Go,
/// Java) and 360 s (.NET) before the end; a client that gets less asks again on every call.
const FLOOR: Duration = Duration::from_secs(600);

/// With less than this left, a request is still answered from the cache but starts a renewal, so that no
/// caller waits at the floor. Only requests start renewals: unused tokens are not renewed.
const AHEAD: Duration = Duration::from_secs(900);

/// ID tokens are reused this long: Go's `idtoken` counts an hour from the fetch without reading `exp`.
const ID_TOKEN_REUSE: Duration = Duration::from_secs(240);

/// A session with less left is not handed out: boto would take its expiry for later than it is, and go on with
/// expired credentials (recorded for 1.44.8: 300 s left, expired credentials for 5 340 s).
const LEAST_AWS: Duration = Duration::from_secs(660);

/// A refusal is repeated for this long without a new request: long enough to spare Google a retry loop, short
/// enough to notice a newly granted role. A new login drops it at once.
const REFUSAL_MEMORY: Duration = Duration::from_secs(4);

/// Pauses after transient failures: the first one, doubled up to the longest, with jitter.
const BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Entries per kind of token: containers can create any number of keys (audiences, enforced scopes).
const ENTRIES: usize = 4096;

/// Why a caller got no token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MintFailure {
    /// A retry will not help; the text tells the user what to do.
    #[error("{0}")]
    Refused(Reason),
    /// A retry in a moment may work.
    #[error("{0}")]
    Transient(Reason),
    /// The caller's time limit passed; the upstream call goes on, and its token will be cached.
    #[error("the token is still being made; try again")]
    Slow,
}

impl From<SourceError> for MintFailure {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Absent(why) | SourceError::Refused(why) => Self::Refused(why),
            SourceError::Transient(why) => Self::Transient(why),
        }
    }
}

/// The source of each cloud's tokens.
#[derive(Clone, Debug)]
pub struct Sources {
    pub google: Arc<dyn Source>,
    pub aws: Option<Arc<dyn AwsSource>>,
    pub azure: Option<Arc<dyn AzureSource>>,
}

/// Mints and caches the tokens of one session's sources.
#[derive(Debug)]
pub struct Mint {
    sources: Sources,
    tasks: Tasks,
    access: Arc<TokenCache<AccessRequest, AccessToken>>,
    identity: Arc<TokenCache<IdentityRequest, IdentityToken>>,
    aws: Arc<TokenCache<AwsRequest, AwsSession>>,
    sessions: Arc<Sessions>,
    azure: Arc<TokenCache<AzureRequest, AzureToken>>,
    kept: clouds::Retained,
    /// The requests to Azure that have not finished.
    under_way: Arc<UnderWay>,
    generation: Generation,
    log: Arc<MintLog>,
}

impl Mint {
    /// Uses only Google's source.
    pub fn new(source: Arc<dyn Source>, tasks: Tasks, recorder: Recorder) -> Arc<Self> {
        Self::of_clouds(Sources { google: source, aws: None, azure: None }, tasks, recorder)
    }

    /// Reports every upstream call to `recorder`.
    pub fn of_clouds(sources: Sources, tasks: Tasks, recorder: Recorder) -> Arc<Self> {
        let generation = Generation::default();
        let log = Arc::new(MintLog { recorder, generation: generation.clone(), ..MintLog::default() });
        log.ask_who(&*sources.google);
        Arc::new(Self {
            sources,
            tasks,
            access: TokenCache::new(ENTRIES, generation.clone()),
            identity: TokenCache::new(ENTRIES, generation.clone()),
            aws: TokenCache::new(ENTRIES, generation.clone()),
            sessions: Arc::default(),
            azure: TokenCache::new(ENTRIES, generation.clone()),
            kept: clouds::Retained::default(),
            under_way: Arc::default(),
            generation,
            log,
        })
    }

    /// The token request of `identity` for `container`; with all its scopes unless a narrower set is given.
    pub fn request(
        &self,
        identity: &Identity,
        container: Option<&ContainerId>,
        scopes: Option<Scopes>,
    ) -> AccessRequest {
        AccessRequest {
            service_account: identity.service_account.clone(),
            scopes: scopes.unwrap_or_else(|| identity.scopes.clone()),
            lifetime: identity.lifetime.as_secs(),
            subject: identity.subject.clone(),
            boundary: identity.boundary.clone(),
            holder: self.holder(identity, container),
        }
    }

    /// The container that a token belongs to; `None` if the identity's containers may share it.
    pub fn holder(&self, identity: &Identity, container: Option<&ContainerId>) -> Option<ContainerId> {
        container.filter(|_| self.apart(identity)).cloned()
    }

    fn apart(&self, identity: &Identity) -> bool {
        identity.isolate || self.sources.google.per_container()
    }

    /// Whether tokens for `ask` have exactly the requested scopes.
    pub fn narrows(&self, ask: &AccessRequest) -> bool {
        self.sources.google.narrows(ask)
    }

    /// The fresh cached token, if any: the hot path, without an await. Starts a due renewal on behalf of
    /// `who`, and does nothing else.
    pub fn cached(
        &self,
        ask: &AccessRequest,
        who: Option<Requestor<'_>>,
        now: Now,
    ) -> Option<Fresh<AccessToken>> {
        let (fresh, renewal) = self.access.fresh(ask, now, || self.access_work(ask, who, true))?;
        self.launch(renewal);
        Some(fresh)
    }

    /// Ensures that a token for `ask` is cached or on its way before `who` requests it.
    pub fn ahead(&self, ask: &AccessRequest, who: Requestor<'_>) {
        match self.access.look(ask, Now::read(), |_| self.access_work(ask, Some(who), true)) {
            CacheResult::Serve(_, renewal) => self.launch(renewal),
            CacheResult::Wait { in_flight, new, .. } => self.launch(new.then_some(in_flight)),
            CacheResult::Failed(..) => {}
        }
    }

    /// A token for `ask`. The caller waits for `wait` at most; the upstream call goes on without it. Calls
    /// made for it are recorded under `who`.
    pub async fn access(
        &self,
        ask: &AccessRequest,
        who: Option<Requestor<'_>>,
        wait: Duration,
    ) -> Result<Arc<AccessToken>, MintFailure> {
        self.serve(&self.access, ask, wait, |renewal| self.access_work(ask, who, renewal)).await
    }

    /// The same for an ID token.
    pub async fn identity(
        &self,
        ask: &IdentityRequest,
        who: Option<Requestor<'_>>,
        wait: Duration,
    ) -> Result<Arc<IdentityToken>, MintFailure> {
        self.serve(&self.identity, ask, wait, |renewal| self.identity_work(ask, who, renewal)).await
    }

    /// Drops tokens that none of `live` can request; each is overwritten when the last caller that waits for
    /// it leaves. Flights end without updating the cache. Call this in one step with the end of a lease: a
    /// token minted ahead for the next lease is then either kept or begun after this.
    pub fn forget_all_but(&self, live: &[Grant]) {
        let mut identities: Vec<&Arc<Identity>> = live.iter().map(|grant| &grant.identity).collect();
        identities.sort_by_key(|identity| Arc::as_ptr(identity));
        identities.dedup_by_key(|identity| Arc::as_ptr(identity));
        let holders: HashSet<&ContainerId> = live.iter().map(|grant| &grant.container).collect();
        let asks =
            |holder: &Option<ContainerId>, account: &Option<String>, can: &dyn Fn(&Identity) -> bool| {
                let asks = |of: &Identity| self.apart(of) == holder.is_some() && has(of, account) && can(of);
                holder.as_ref().is_none_or(|holder| holders.contains(holder))
                    && identities.iter().any(|identity| asks(identity))
            };
        self.access.forget(|ask| {
            !asks(&ask.holder, &ask.service_account, &|identity| {
                ask.lifetime == identity.lifetime.as_secs()
                    && ask.subject == identity.subject
                    && ask.boundary == identity.boundary
                    && ask.scopes.iter().all(|scope| identity.scopes.allow(scope))
            })
        });
        self.identity.forget(|ask| {
            !asks(&ask.holder, &ask.service_account, &|identity| {
                identity.audiences.is_empty() || identity.audiences.contains(&ask.audience)
            })
        });
        self.forget_clouds_but(&holders, &identities);
    }

    /// Disables `account` at its provider and drops its tokens, which are invalid then.
    pub async fn disable(&self, account: &str) -> Result<(), SourceError> {
        self.sources.google.disable(account).await?;
        self.access.forget(|ask| ask.service_account.as_deref() == Some(account));
        self.identity.forget(|ask| ask.service_account.as_deref() == Some(account));
        Ok(())
    }

    /// Drops everything; waiting callers get a newly requested token.
    pub fn forget_all(&self) {
        self.forget_google();
        self.aws.void_all();
        self.azure.void_all();
    }

    fn forget_google(&self) {
        self.access.void_all();
        self.identity.void_all();
    }

    /// Lets the source check its files, and drops cached tokens that became invalid. To be called about once
    /// a second.
    pub fn reload(&self) -> Reloaded {
        let outcome = self.sources.google.reload();
        self.log.ask_who(&*self.sources.google);
        match outcome {
            Reloaded::Same | Reloaded::Broken(_) => {}
            Reloaded::Renewed | Reloaded::Supplied => {
                self.access.forget_failures();
                self.identity.forget_failures();
                self.generation.next();
            }
            Reloaded::OtherAccount => self.forget_google(),
        }
        outcome
    }

    /// Call after the machine slept (the wall clock ran ahead of the monotonic one): connections are dead and
    /// old failures outdated. [`crate::token::Deadline`] itself handles tokens that expired meanwhile.
    pub fn woke(&self) {
        self.sources.google.reconnect();
        self.access.forget_failures();
        self.identity.forget_failures();
        self.clouds_woke();
    }

    fn access_work(
        &self,
        ask: &AccessRequest,
        who: Option<Requestor<'_>>,
        ahead: bool,
    ) -> Pending<'static, Result<AccessToken, SourceError>> {
        let (source, ask, log) = (self.sources.google.clone(), ask.clone(), self.log.clone());
        let account = ask.service_account.as_deref();
        let making = log.recorder.making(who, For::Scopes(&ask.scopes), account, ahead);
        Box::pin(async move {
            log.of_google(TokenKind::Access, making, &*source, source.access_token(&ask)).await
        })
    }

    fn identity_work(
        &self,
        ask: &IdentityRequest,
        who: Option<Requestor<'_>>,
        ahead: bool,
    ) -> Pending<'static, Result<IdentityToken, SourceError>> {
        let (source, ask, log) = (self.sources.google.clone(), ask.clone(), self.log.clone());
        let account = ask.service_account.as_deref();
        let making = log.recorder.making(who, For::Audience(&ask.audience), account, ahead);
        Box::pin(async move {
            log.of_google(TokenKind::Identity, making, &*source, source.identity_token(&ask)).await
        })
    }

    async fn serve<K: CacheKey, T: Cacheable>(
        &self,
        cache: &TokenCache<K, T>,
        ask: &K,
        wait: Duration,
        work: impl Fn(bool) -> Pending<'static, Result<T, SourceError>>,
    ) -> Result<Arc<T>, MintFailure> {
        let until = Instant::now() + wait;
        loop {
            let (in_flight, old) = match cache.look(ask, Now::read(), &work) {
                CacheResult::Serve(token, renewal) => {
                    self.launch(renewal);
                    return Ok(token);
                }
                CacheResult::Failed(SourceError::Transient(why), again) => {
                    // During a back-off callers wait too, because the next try may return a token. If upstream
                    // asked for a longer pause they are told how long, at once.
                    if why.pause.is_some() && again >= until {
                        let left = again.saturating_duration_since(Instant::now());
                        return Err(MintFailure::Transient(why.after(Some(left))));
                    }
                    sleep_until(again.min(until)).await;
                    if again < until {
                        continue;
                    }
                    return Err(MintFailure::Transient(why));
                }
                CacheResult::Failed(error, _) => return Err(error.into()),
                CacheResult::Wait { in_flight, new, old } => {
                    self.launch(new.then(|| in_flight.clone()));
                    (in_flight, old)
                }
            };
            let failure = match timeout_at(until, in_flight.flight.clone().outcome()).await {
                Ok(_) if in_flight.is_void() => continue,
                Ok(Ok(token)) => return Ok(token),
                Ok(Err(error)) => error.into(),
                Err(_) => MintFailure::Slow,
            };
            let valid = |token: &Arc<T>| !in_flight.is_void() && token.is_usable(Now::read());
            return old.filter(valid).ok_or(failure);
        }
    }

    /// Drives a flight to its end, even if all its waiters leave.
    fn launch<T: Cacheable>(&self, in_flight: Option<InFlight<T>>) {
        let Some(in_flight) = in_flight else { return };
        let stop = self.tasks.stop().clone();
        self.tasks.spawn("mint", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = in_flight.flight.outcome() => {}
            }
        });
    }
}

fn has(identity: &Identity, account: &Option<String>) -> bool {
    identity.service_account == *account
        || account.as_ref().is_some_and(|account| identity.others.contains(account))
}
