//! The downloads of a session: each content once for an identity and its account.
//!
//! The content of an object is reused only for a task that may read the object now: a list of a folder does
//! not show that, so such an object's metadata are asked for first. A download continues when its create is
//! abandoned, so that the next create finds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{self, StreamExt};
use tokio::sync::{Semaphore, oneshot};

use super::cache::{CachedContent, InputCache};
use crate::process::Tasks;
use crate::source::AccessRequest;
use crate::source::flight::Flight;
use crate::source::storage::{ObjectMetadata, Storage, StorageReader};
use crate::token::{AccessToken, MintId};

/// The maximal number of concurrent downloads of the whole session, and of concurrent requests of one create.
pub(super) const AT_A_TIME: usize = 8;

/// An object to fetch, and its name below its bucket.
#[derive(Clone, Debug)]
pub(super) struct WantedObject {
    pub(super) bucket: String,
    pub(super) found: ObjectMetadata,
    /// Whether its own metadata were requested, and not only a list that contains it.
    pub(super) asked: bool,
}

/// The identity and token for the requests of one task.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) identity: String,
    pub(super) ask: AccessRequest,
    pub(super) token: Arc<AccessToken>,
    /// The account that the token belongs to, if it is known.
    pub(super) account: Option<String>,
    pub(super) user_project: Option<String>,
}

impl Asking {
    pub(super) fn reader(&self) -> StorageReader<'_> {
        StorageReader {
            token: &self.token.value,
            account: self.account.as_deref().unwrap_or("the host's account"),
            user_project: self.user_project.as_deref(),
        }
    }
}

/// An object as an identity names it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct ObjectKey {
    identity: String,
    bucket: String,
    name: String,
}

/// One version of an object's content, as one account may read it.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Version {
    generation: u64,
    ask: AccessRequest,
    account: Option<String>,
    /// Set if the account is unknown: then only the same token is certain to belong to the same account.
    token: Option<MintId>,
}

type Flights = HashMap<ObjectKey, Vec<(Version, Flight<CachedContent>)>>;

/// The running and finished downloads.
#[derive(Debug)]
pub(super) struct Contents {
    cache: Arc<InputCache>,
    flights: Mutex<Flights>,
    turns: Arc<Semaphore>,
    tasks: Tasks,
}

pub(super) type FetchOutcome = (WantedObject, Result<Arc<CachedContent>, String>);

impl Contents {
    pub(super) fn new(cache: Arc<InputCache>, tasks: Tasks) -> Arc<Self> {
        let turns = Arc::new(Semaphore::new(AT_A_TIME));
        Arc::new(Self { cache, flights: Mutex::default(), turns, tasks })
    }

    /// The contents of all `wanted` objects, in that order. A separate task fetches them, which continues when the
    /// caller leaves. It requests few permits at once, so that a large folder does not delay later tasks until its
    /// end.
    pub(super) async fn bring(
        self: &Arc<Self>,
        asking: &Arc<Asking>,
        storage: &Arc<Storage>,
        wanted: Vec<WantedObject>,
    ) -> Vec<FetchOutcome> {
        let (done, brought) = oneshot::channel();
        let (own, asking, storage) = (self.clone(), asking.clone(), storage.clone());
        let stop = self.tasks.stop().clone();
        self.tasks.spawn("downloads", async move {
            let each = wanted.into_iter().enumerate().map(|(at, wanted)| {
                let (own, asking, storage) = (own.clone(), asking.clone(), storage.clone());
                async move {
                    let content = own.content(&asking, &storage, &wanted).await;
                    (at, (wanted, content))
                }
            });
            let all = stream::iter(each).buffer_unordered(AT_A_TIME).collect::<Vec<_>>();
            tokio::select! {
                mut all = all => {
                    all.sort_by_key(|(at, _)| *at);
                    let _ = done.send(all.into_iter().map(|(_, outcome)| outcome).collect());
                }
                () = stop.cancelled() => {}
            }
        });
        brought.await.unwrap_or_default()
    }

    async fn content(
        &self,
        asking: &Arc<Asking>,
        storage: &Arc<Storage>,
        wanted: &WantedObject,
    ) -> Result<Arc<CachedContent>, String> {
        let (flight, reused) = self.flight(asking, storage, wanted);
        if reused && !wanted.asked {
            let asked = storage.object(asking.reader(), &wanted.bucket, &wanted.found.name).await;
            if asked.map_err(|why| why.to_string())?.is_none() {
                return Err("there is no such object any more".into());
            }
        }
        flight.outcome().await.map_err(|why| why.to_string())
    }

    /// The download of this content, and whether it was started before.
    fn flight(
        &self,
        asking: &Arc<Asking>,
        storage: &Arc<Storage>,
        wanted: &WantedObject,
    ) -> (Flight<CachedContent>, bool) {
        let key = ObjectKey {
            identity: asking.identity.clone(),
            bucket: wanted.bucket.clone(),
            name: wanted.found.name.clone(),
        };
        let version = Version {
            generation: wanted.found.generation,
            ask: asking.ask.clone(),
            account: asking.account.clone(),
            token: asking.account.is_none().then_some(asking.token.id),
        };
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let known = flights.entry(key).or_default();
        if let Some((_, flight)) =
            known.iter().find(|(one, flight)| *one == version && flight.finished().is_none_or(Result::is_ok))
        {
            return (flight.clone(), true);
        }
        // No later task requests the replaced version. Its file is removed when its last mount has been made.
        known.retain(|(one, flight)| flight.finished().is_none() || one.generation > version.generation);
        let (asking, storage, turns) = (asking.clone(), storage.clone(), self.turns.clone());
        let (wanted, content) = (wanted.clone(), self.cache.place());
        let flight = Flight::new(async move {
            let _turn = turns.acquire().await;
            storage.download(asking.reader(), &wanted.bucket, &wanted.found, content.path()).await?;
            Ok(Arc::new(content))
        });
        known.push((version, flight.clone()));
        (flight, false)
    }
}
