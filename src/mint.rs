//! (request) -> token: one cache, one call upstream per key, whatever the concurrency.
//!
//! A key is the whole request: account, effective scopes, lifetime and, where tokens are not shared, the
//! holder. Per key there is at most one *flight*, a task of its own: callers wait for it as long as they
//! were told to and leave without disturbing it. The lock is held for look-ups only, never across an
//! await, so no key waits for another.
//!
//! A token that is still valid beats every error and every delay.

mod shelf;

use std::sync::Arc;
use std::time::Duration;

use crate::mint::shelf::{Found, Keep, Shelf};
use crate::process::Tasks;
use crate::source::flight::{Flight, Outcome};
use crate::source::{AccessRequest, IdentityRequest, Principal, Reloaded, Source, SourceError};
use crate::token::{AccessToken, Deadline, IdentityToken, Now, Scopes};
use crate::workload::{ContainerId, Identity};

/// Access tokens are served while this much is left. Clients refresh at up to 360 s before the end and
/// would otherwise ask again on every call (facts on client thresholds: protocol specification 9.1).
const FLOOR: Duration = Duration::from_secs(600);

/// With less than this left a request is still answered from the cache but starts a renewal, so that no
/// caller ever waits at the floor. Only requests do so: what nobody uses is not renewed.
const AHEAD: Duration = Duration::from_secs(900);

/// ID tokens are reused this long: Go's `idtoken` counts an hour from the fetch without reading `exp`.
const ID_TOKEN_REUSE: Duration = Duration::from_secs(240);

/// A refusal is repeated this long without asking again: long enough to spare Google a retry loop, short
/// enough that a role that was just granted is noticed. A new login drops it at once.
const REFUSAL_MEMORY: Duration = Duration::from_secs(4);

/// After a transient failure: the first pause, doubled up to the last one, jittered.
const BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(8);

/// Entries per kind of token. A container can make keys at will (audiences); the oldest make room.
const ENTRIES: usize = 4096;

/// Why a caller got no token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MintFailure {
    /// Trying again will not help; the text says what a person can do.
    #[error("{0}")]
    Refused(Arc<str>),
    /// May work in a moment.
    #[error("{0}")]
    Transient(Arc<str>),
    /// The caller's time was up; the call upstream goes on and its token will be there.
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

/// Makes and reuses tokens of one source.
#[derive(Debug)]
pub struct Mint {
    source: Arc<dyn Source>,
    tasks: Tasks,
    access: Arc<Shelf<AccessRequest, AccessToken>>,
    identity: Arc<Shelf<IdentityRequest, IdentityToken>>,
}

impl Mint {
    pub fn new(source: Arc<dyn Source>, tasks: Tasks) -> Arc<Self> {
        let (access, identity) = (Arc::new(Shelf::new(ENTRIES)), Arc::new(Shelf::new(ENTRIES)));
        Arc::new(Self { source, tasks, access, identity })
    }

    /// Who the source says it is.
    pub fn principal(&self) -> Principal {
        self.source.principal()
    }

    /// What `identity` asks for on behalf of `container`; all its scopes unless a narrower set is given.
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
            holder: self.holder(identity, container),
        }
    }

    /// Whom a token belongs to: nobody, where containers of an identity may share it.
    pub fn holder(&self, identity: &Identity, container: Option<&ContainerId>) -> Option<ContainerId> {
        container.filter(|_| identity.isolate || self.source.per_container()).cloned()
    }

    /// The fresh token of the cache, if there is one; the hot path, without an await. Starts the renewal
    /// where that is due.
    pub fn cached(&self, ask: &AccessRequest) -> Option<Arc<AccessToken>> {
        match self.access.look(ask, Now::read(), || access_flight(&self.source, &self.access, ask)) {
            Found::Fresh(token, renewal) => {
                self.launch(renewal);
                Some(token)
            }
            // `look` may have made a flight that this caller does not wait for.
            Found::Wait { flight, new: true, .. } => {
                self.launch(Some(flight));
                None
            }
            _ => None,
        }
    }

    /// A token for `ask`. The caller is held for `wait` at most.
    pub async fn access(&self, ask: &AccessRequest, wait: Duration) -> Result<Arc<AccessToken>, MintFailure> {
        self.serve(&self.access, ask, wait, || access_flight(&self.source, &self.access, ask)).await
    }

    /// An ID token for `ask`. The caller is held for `wait` at most.
    pub async fn identity(
        &self,
        ask: &IdentityRequest,
        wait: Duration,
    ) -> Result<Arc<IdentityToken>, MintFailure> {
        self.serve(&self.identity, ask, wait, || identity_flight(&self.source, &self.identity, ask)).await
    }

    /// Drops what was made for one container only. A flight under way ends unseen.
    pub fn forget_holder(&self, id: &ContainerId) {
        self.access.retain(|ask| ask.holder.as_ref() != Some(id));
        self.identity.retain(|ask| ask.holder.as_ref() != Some(id));
    }

    pub fn forget_all(&self) {
        self.access.retain(|_| false);
        self.identity.retain(|_| false);
    }

    /// Lets the source look at its files, and drops from the cache what the outcome makes void. To be
    /// called about once a second.
    pub fn reload(&self) -> Reloaded {
        let outcome = self.source.reload();
        match outcome {
            Reloaded::Same | Reloaded::Broken(_) => {}
            Reloaded::Renewed => self.forget_failures(),
            Reloaded::OtherAccount => self.forget_all(),
        }
        outcome
    }

    /// The machine slept (the wall clock ran ahead of the monotonic one): connections are dead and old
    /// failures say nothing. What expired meanwhile is noticed by [`Deadline`] itself.
    pub fn woke(&self) {
        self.source.reconnect();
        self.forget_failures();
    }

    fn forget_failures(&self) {
        self.access.forget_failures();
        self.identity.forget_failures();
    }

    async fn serve<K: shelf::Key, T: Keep>(
        &self,
        shelf: &Arc<Shelf<K, T>>,
        ask: &K,
        wait: Duration,
        start: impl Fn() -> Flight<T>,
    ) -> Result<Arc<T>, MintFailure> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let (flight, old) = match shelf.look(ask, Now::read(), &start) {
                Found::Fresh(token, renewal) => {
                    self.launch(renewal);
                    return Ok(token);
                }
                Found::Failed(error) => return Err(error.into()),
                Found::Wait { flight, new, old } => {
                    if new {
                        self.launch(Some(flight.clone()));
                    }
                    (flight, old)
                }
            };
            let old = |failure| match old {
                Some(token) if !token.expires().remaining(Now::read()).is_zero() => Ok(token),
                _ => Err(failure),
            };
            match tokio::time::timeout_at(until, flight.clone().outcome()).await {
                // Dropped meanwhile (another account logged in): what landed is not to be served.
                Ok(_) if shelf.was_dropped(ask, &flight) => {}
                Ok(Ok(token)) => return Ok(token),
                Ok(Err(error)) => return old(error.into()),
                Err(_) => return old(MintFailure::Slow),
            }
        }
    }

    /// Drives a flight to its end, whoever waits or leaves.
    fn launch<T: Keep>(&self, flight: Option<Flight<T>>) {
        let Some(flight) = flight else { return };
        let stop = self.tasks.stop().clone();
        self.tasks.spawn("mint", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = flight.outcome() => {}
            }
        });
    }
}
