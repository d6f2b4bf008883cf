//! Fetches the Cloud Storage objects that inputs of tasks name, each with a token of the task's own identity.
//!
//! Identities do not share fetched objects. Every task is authorised again, by reading the metadata of each
//! object; only the content is kept, by generation. A download continues when its create is abandoned, so
//! that the next create finds it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{OnceCell, Semaphore, mpsc};

use super::cache::{self, Cache, Kept};
use super::credentials::{self, Credentials};
use crate::config::{Config, Environment, SourceChoice};
use crate::docker::proxy::{Fetch, Fetched, Fetching};
use crate::inputs::{self, Object};
use crate::mint::Mint;
use crate::process::Tasks;
use crate::record::Who;
use crate::source::flight::Flight;
use crate::source::http::client::{Limits, Upstream};
use crate::source::storage::{Found, Reader, Storage};
use crate::source::{AccessRequest, SourceError};
use crate::token::{AccessToken, SCOPE_PREFIX};
use crate::workload::Identity;

/// The time limit for a token; a create waits a little longer.
const LONGEST_MINT: Duration = Duration::from_secs(25);
/// The maximal number of objects per task, including those in folders.
const MOST_OBJECTS: usize = 10_000;
/// The maximal number of concurrent requests and downloads of the whole session.
const AT_A_TIME: usize = 8;
/// The maximal number of lines about one task.
const MOST_LINES: usize = 8;

/// Any of these scopes allows reading objects.
const SCOPES: [&str; 4] =
    ["devstorage.read_only", "devstorage.read_write", "devstorage.full_control", "cloud-platform.read-only"];

/// Fetches objects, and knows which are in the cache.
#[derive(Debug)]
pub(super) struct Inputs {
    config: Config,
    env: Environment,
    mint: Arc<Mint>,
    storage: OnceCell<Result<Arc<Storage>, SourceError>>,
    cache: Arc<Cache>,
    flights: Mutex<HashMap<Key, Flight<PathBuf>>>,
    turns: Arc<Semaphore>,
    tasks: Tasks,
}

/// One content, as one identity may read it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    identity: String,
    ask: AccessRequest,
    bucket: String,
    name: String,
    generation: u64,
}

/// An object to fetch, and its name below its bucket.
#[derive(Debug)]
struct Wanted {
    bucket: String,
    found: Found,
}

/// The identity and token for the requests of one task.
#[derive(Clone, Debug)]
struct Asking {
    identity: String,
    ask: AccessRequest,
    token: Arc<AccessToken>,
    account: String,
    user_project: Option<String>,
}

impl Asking {
    fn reader(&self) -> Reader<'_> {
        Reader {
            token: &self.token.value,
            account: &self.account,
            user_project: self.user_project.as_deref(),
        }
    }
}

impl Inputs {
    /// Removes the folders of dead sessions and starts answering the proxy; `None` if the config fetches
    /// nothing.
    pub(super) fn start(
        config: &Config,
        env: &Environment,
        credentials: &Credentials,
        session: &str,
        tasks: &Tasks,
    ) -> Option<(Arc<Self>, Fetching)> {
        let root = cache::root(env);
        let swept = root.clone();
        tasks.spawn("sweep of inputs", async move {
            let _ = crate::process::aside(move || cache::sweep(&swept)).await;
        });
        if !config.gcs.fetch {
            return None;
        }
        let (ask, asks) = mpsc::channel(64);
        let folder = root.join(session);
        let inputs = Arc::new(Self {
            config: config.clone(),
            env: env.clone(),
            mint: credentials.mint.clone(),
            storage: OnceCell::new(),
            cache: Arc::new(Cache::new(root, session)),
            flights: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_A_TIME)),
            tasks: tasks.clone(),
        });
        tasks.spawn("inputs", inputs.clone().attend(asks));
        Some((inputs, Fetching { ask, folder }))
    }

    /// Removes all fetched objects. Running containers lose access to them.
    pub(super) async fn close(&self) {
        let cache = self.cache.clone();
        let _ = crate::process::aside(move || cache.remove()).await;
    }

    async fn attend(self: Arc<Self>, mut asks: mpsc::Receiver<Fetch>) {
        let stop = self.tasks.stop().clone();
        loop {
            let Fetch { identity, objects, mut answer } = tokio::select! {
                ask = asks.recv() => match ask {
                    Some(ask) => ask,
                    None => return,
                },
                () = stop.cancelled() => return,
            };
            let (own, stop) = (self.clone(), stop.clone());
            self.tasks.spawn("fetch", async move {
                let fetched = tokio::select! {
                    fetched = own.fetch(&identity, objects.into_iter().collect()) => fetched,
                    () = answer.closed() => return,
                    () = stop.cancelled() => return,
                };
                let _ = answer.send(fetched);
            });
        }
    }

    async fn fetch(&self, identity: &Arc<Identity>, objects: Vec<Object>) -> Fetched {
        if self.config.source == SourceChoice::Offline && self.config.endpoints.storage.is_none() {
            return Fetched {
                off: Some(
                    "what tasks name in Cloud Storage is not fetched: Google takes no offline token; endpoints.storage can \
                     name an emulator"
                        .into(),
                ),
                ..Fetched::default()
            };
        }
        let mut lines = vec![];
        let buckets = match self.asking(identity).await {
            Ok((asking, storage)) => self.bring(&asking, &storage, objects, &mut lines).await,
            Err(why) => {
                let first = objects.first().map(ToString::to_string).unwrap_or_default();
                lines.push(format!("{first} is not fetched: {why}"));
                BTreeMap::new()
            }
        };
        let more = lines.len().saturating_sub(MOST_LINES);
        lines.truncate(MOST_LINES);
        if more > 0 {
            lines.push(format!("{more} more objects or folders are not fetched"));
        }
        Fetched { buckets, lines, off: None }
    }

    async fn asking(&self, identity: &Arc<Identity>) -> Result<(Asking, Arc<Storage>), String> {
        let scopes = SCOPES.map(|name| format!("{SCOPE_PREFIX}{name}"));
        if !scopes.iter().any(|scope| identity.scopes.allow(scope)) {
            let name = &identity.name;
            return Err(format!("the identity {name} has no scope for it; add {} to its scopes", scopes[0]));
        }
        // The same request as the container's own will be, so that one token serves both.
        let ask = self.mint.request(identity, None, None);
        let token = self.mint.access(&ask, Some(Who::Session(identity)), LONGEST_MINT).await;
        let token = token.map_err(|why| format!("there is no token for it: {why}"))?;
        let storage =
            self.storage.get_or_init(|| self.connect()).await.clone().map_err(|why| why.to_string())?;
        let principal = self.mint.principal();
        let account = identity.service_account.clone().or_else(|| principal.email.clone());
        let asking = Asking {
            identity: identity.name.clone(),
            ask,
            token,
            account: account.unwrap_or_else(|| "the host's account".into()),
            user_project: self.config.quota_project.clone().or_else(|| principal.quota_project.clone()),
        };
        Ok((asking, storage))
    }

    async fn connect(&self) -> Result<Arc<Storage>, SourceError> {
        let universe = self.mint.principal().universe.clone();
        let endpoint = self.config.endpoints.storage(universe.as_deref());
        let proxies = credentials::proxies(&self.env);
        // Blocks: it reads the machine's certificate authorities.
        let made =
            crate::process::aside(move || Upstream::through(&proxies, Limits::default(), vec![])).await;
        let upstream = made.unwrap_or_else(|| Err(SourceError::transient("no thread can be had")))?;
        Ok(Arc::new(Storage::new(upstream, endpoint)))
    }

    async fn bring(
        &self,
        asking: &Asking,
        storage: &Arc<Storage>,
        objects: Vec<Object>,
        lines: &mut Vec<String>,
    ) -> BTreeMap<String, PathBuf> {
        let wanted = self.plan(asking, storage, objects, lines).await;
        if wanted.is_empty() {
            return BTreeMap::new();
        }
        let cache = self.cache.clone();
        if let Some(Err(why)) = crate::process::aside(move || cache.open()).await {
            lines.push(why);
            return BTreeMap::new();
        }
        let flights: Vec<_> = wanted.iter().map(|one| self.flight(asking, storage, one)).collect();
        let landed = join_all(flights.into_iter().map(Flight::outcome)).await;
        let mut kept = vec![];
        for (wanted, outcome) in wanted.into_iter().zip(landed) {
            match outcome {
                Ok(content) => {
                    let Wanted { bucket, found } = wanted;
                    kept.push(Kept {
                        bucket,
                        name: found.name,
                        size: found.size,
                        content: content.to_path_buf(),
                    });
                }
                Err(why) => lines.push(format!("{} is not fetched: {why}", uri(&wanted))),
            }
        }
        let (cache, count) = (self.cache.clone(), kept.len());
        let mounted = crate::process::aside(move || cache.mount(kept)).await;
        match mounted.unwrap_or_else(|| Err("no thread can be had".into())) {
            Ok(mounted) => {
                lines.extend(mounted.lines);
                mounted.buckets
            }
            Err(why) => {
                lines.push(format!("{count} objects are not mounted: {why}"));
                BTreeMap::new()
            }
        }
    }

    /// All objects that the names stand for, within the limits of one task. A folder is fetched as a whole,
    /// or not at all.
    async fn plan(
        &self,
        asking: &Asking,
        storage: &Storage,
        objects: Vec<Object>,
        lines: &mut Vec<String>,
    ) -> Vec<Wanted> {
        let looks = objects.into_iter().map(|object| async move {
            let found = look(storage, asking.reader(), &object).await;
            (object, found)
        });
        let looked: Vec<_> = stream::iter(looks).buffered(AT_A_TIME).collect().await;
        let (mut wanted, mut left, limit) = (vec![], self.config.gcs.max_bytes, self.config.gcs.max_bytes);
        for (object, found) in looked {
            let found = match found {
                Ok(found) => found,
                Err(why) => {
                    lines.push(format!("{object} is not fetched: {why}"));
                    continue;
                }
            };
            let bytes = found.iter().fold(0, |all: u64, one| all.saturating_add(one.size));
            if bytes > left || wanted.len() + found.len() > MOST_OBJECTS {
                lines.push(format!(
                    "{object} is not fetched: it has {}, and a task gets {} (gcs.max_bytes) and {MOST_OBJECTS} objects at \
                     most",
                    cache::size(bytes),
                    cache::size(limit),
                ));
                continue;
            }
            left -= bytes;
            wanted.extend(found.into_iter().map(|found| Wanted { bucket: object.bucket().into(), found }));
        }
        // An object named both by itself and through its folder counts once.
        let mut seen = std::collections::HashSet::new();
        wanted.retain(|one| seen.insert((one.bucket.clone(), one.found.name.clone())));
        wanted
    }

    /// The download of this content; started unless it is running or done.
    fn flight(&self, asking: &Asking, storage: &Arc<Storage>, wanted: &Wanted) -> Flight<PathBuf> {
        let key = Key {
            identity: asking.identity.clone(),
            ask: asking.ask.clone(),
            bucket: wanted.bucket.clone(),
            name: wanted.found.name.clone(),
            generation: wanted.found.generation,
        };
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key)
            && flight.landed().is_none_or(Result::is_ok)
        {
            return flight.clone();
        }
        let (asking, storage, turns) = (asking.clone(), storage.clone(), self.turns.clone());
        let (bucket, found, place) = (key.bucket.clone(), wanted.found.clone(), self.cache.place());
        let flight = Flight::new(async move {
            let _turn = turns.acquire().await;
            let outcome = storage.download(asking.reader(), &bucket, &found, &place).await;
            if outcome.is_err() {
                let _ = std::fs::remove_file(&place);
            }
            outcome.map(|()| Arc::new(place))
        });
        flights.insert(key, flight.clone());
        let (driven, stop) = (flight.clone(), self.tasks.stop().clone());
        self.tasks.spawn("download", async move {
            tokio::select! {
                _ = driven.outcome() => {}
                () = stop.cancelled() => {}
            }
        });
        flight
    }
}

/// The objects of a name: the object itself, else the objects below it.
async fn look(storage: &Storage, by: Reader<'_>, object: &Object) -> Result<Vec<Found>, String> {
    let (bucket, name) = (object.bucket(), object.name());
    if !object.is_folder()
        && let Some(found) = storage.object(by, bucket, name).await.map_err(|why| why.to_string())?
    {
        return match found.name == name {
            true => Ok(vec![found]),
            false => Err("Cloud Storage answered about another object".into()),
        };
    }
    let prefix = format!("{name}/");
    let mut all = storage.list(by, bucket, &prefix, MOST_OBJECTS).await.map_err(|why| why.to_string())?;
    // Web consoles mark a folder by an empty object of its name.
    all.retain(|found| !(found.name.ends_with('/') && found.size == 0));
    if all.is_empty() {
        return Err("there is no object and no folder of this name".into());
    }
    for found in &all {
        if !found.name.starts_with(&prefix) {
            return Err("Cloud Storage answered about other objects".into());
        }
        if let Some(why) = inputs::unfit(&found.name) {
            return Err(format!("an object in it cannot be a file: {why}"));
        }
    }
    Ok(all)
}

fn uri(wanted: &Wanted) -> String {
    crate::quote::path(std::path::Path::new(&format!("gs://{}/{}", wanted.bucket, wanted.found.name)))
}
