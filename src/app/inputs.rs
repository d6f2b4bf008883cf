//! Fetches the Cloud Storage objects that inputs of tasks name, each with a token of the task's own identity.
//!
//! Identities do not share fetched objects. Every task is authorised again, by reading the metadata of each
//! object; only the content is kept, by generation (`contents`).

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::sync::{OnceCell, mpsc};

use super::cache::{self, FetchedObject, InputCache};
use super::contents::{AT_A_TIME, Asking, Contents, WantedObject};
use super::credentials::Credentials;
use crate::config::{Config, Environment, SourceChoice};
use crate::docker::proxy::{Fetch, Fetched, Fetching};
use crate::inputs::{self, Object};
use crate::mint::Mint;
use crate::process::Tasks;
use crate::record::Requestor;
use crate::source::SourceError;
use crate::source::http::client::{Limits, Upstream};
use crate::source::storage::{ObjectMetadata, Storage, StorageReader};
use crate::token::SCOPE_PREFIX;
use crate::workload::Identity;

/// The time limit for a token; a create waits a little longer.
const LONGEST_MINT: Duration = Duration::from_secs(25);
/// The maximal number of objects per task, including those in folders.
const MOST_OBJECTS: usize = 10_000;
/// The maximal number of lines about what one task does not get.
const MOST_LINES: usize = 8;

/// Any of these scopes allows reading objects.
const SCOPES: [&str; 4] =
    ["devstorage.read_only", "devstorage.read_write", "devstorage.full_control", "cloud-platform.read-only"];

/// Fetches objects, and knows which are in the cache.
#[derive(Debug)]
pub(super) struct InputFetcher {
    config: Config,
    env: Environment,
    mint: Arc<Mint>,
    storage: OnceCell<Arc<Storage>>,
    cache: Arc<InputCache>,
    contents: Arc<Contents>,
    tasks: Tasks,
}

impl InputFetcher {
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
            let _ = crate::process::run_blocking(move || cache::sweep(&swept)).await;
        });
        if !config.gcs.fetch {
            return None;
        }
        let (ask, asks) = mpsc::channel(64);
        let folder = root.join(session);
        let cache = Arc::new(InputCache::new(root, session));
        let inputs = Arc::new(Self {
            config: config.clone(),
            env: env.clone(),
            mint: credentials.mint.clone(),
            storage: OnceCell::new(),
            contents: Contents::new(cache.clone(), tasks.clone()),
            cache,
            tasks: tasks.clone(),
        });
        tasks.spawn("inputs", inputs.clone().attend(asks));
        Some((inputs, Fetching { ask, folder }))
    }

    /// Removes all fetched objects. Running containers lose access to them.
    pub(super) async fn close(&self) {
        let cache = self.cache.clone();
        let _ = crate::process::run_blocking(move || cache.remove()).await;
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
                    "objects in Cloud Storage are not fetched: Google accepts no offline token; endpoints.storage can \
                     name an emulator"
                        .into(),
                ),
                ..Fetched::default()
            };
        }
        let got = match self.asking(identity).await {
            Ok((asking, storage)) => self.bring(&asking, &storage, objects).await,
            Err(why) => Got { refused: none_fetched(&objects, &why), ..Got::default() },
        };
        Fetched { buckets: got.buckets, lines: lines(got.refused, got.mounted), off: None }
    }

    async fn asking(&self, identity: &Arc<Identity>) -> Result<(Arc<Asking>, Arc<Storage>), String> {
        let scopes = SCOPES.map(|name| format!("{SCOPE_PREFIX}{name}"));
        if !scopes.iter().any(|scope| identity.scopes.allow(scope)) {
            let name = &identity.name;
            return Err(format!("the identity {name} has no scope for it; add {} to its scopes", scopes[0]));
        }
        // The same request as the container's own will be, so that one token serves both.
        let ask = self.mint.request(identity, None, None);
        let token = self.mint.access(&ask, Some(Requestor::Session(identity)), LONGEST_MINT).await;
        let token = token.map_err(|why| format!("there is no token for it: {why}"))?;
        // At once, because the account can change.
        let principal = self.mint.principal();
        let storage = self.storage.get_or_try_init(|| self.connect()).await;
        let storage = storage.map_err(|why| why.to_string())?.clone();
        let asking = Asking {
            identity: identity.name.clone(),
            ask,
            token,
            account: identity.service_account.clone().or_else(|| principal.email.clone()),
            user_project: self.config.quota_project.clone().or_else(|| principal.quota_project.clone()),
        };
        Ok((Arc::new(asking), storage))
    }

    async fn connect(&self) -> Result<Arc<Storage>, SourceError> {
        let universe = self.mint.principal().universe.clone();
        let endpoint = self.config.endpoints.storage(universe.as_deref());
        let proxies = super::proxies(&self.env);
        // Blocks: it reads the machine's certificate authorities.
        let made =
            crate::process::run_blocking(move || Upstream::through(&proxies, Limits::default(), vec![]))
                .await;
        let upstream = made.unwrap_or_else(|| Err(SourceError::transient("no thread could be started")))?;
        Ok(Arc::new(Storage::new(upstream, endpoint)))
    }

    async fn bring(&self, asking: &Arc<Asking>, storage: &Arc<Storage>, objects: Vec<Object>) -> Got {
        let looks = objects.into_iter().map(|object| async move {
            let found = look(storage, asking.reader(), &object).await;
            (object, found)
        });
        let looked: Vec<_> = stream::iter(looks).buffered(AT_A_TIME).collect().await;
        let (wanted, refused) = fitting(looked, self.config.gcs.max_bytes);
        let mut got = Got { refused, ..Got::default() };
        if wanted.is_empty() {
            return got;
        }
        let cache = self.cache.clone();
        if let Some(Err(why)) = crate::process::run_blocking(move || cache.open()).await {
            got.refused.push(why);
            return got;
        }
        let mut kept = vec![];
        for (WantedObject { bucket, found, .. }, outcome) in
            self.contents.bring(asking, storage, wanted).await
        {
            match outcome {
                Ok(content) => {
                    kept.push(FetchedObject { bucket, name: found.name, size: found.size, content })
                }
                Err(why) => {
                    got.refused.push(format!("{} is not fetched: {why}", cache::uri(&bucket, &found.name)));
                }
            }
        }
        let (cache, count) = (self.cache.clone(), kept.len());
        let mounted = crate::process::run_blocking(move || cache.mount(kept)).await;
        match mounted.unwrap_or_else(|| Err("no thread could be started".into())) {
            Ok(mounted) => {
                got.refused.extend(mounted.left_out);
                Got { buckets: mounted.buckets, mounted: mounted.lines, ..got }
            }
            Err(why) => {
                got.refused.push(format!("{count} objects are not mounted: {why}"));
                got
            }
        }
    }
}

/// What a task gets, and a line for each thing that it does not get.
#[derive(Debug, Default)]
struct Got {
    buckets: BTreeMap<String, PathBuf>,
    mounted: Vec<String>,
    refused: Vec<String>,
}

/// All lines about a task: the first refusals, how many more there are, and what is mounted.
fn lines(mut refused: Vec<String>, mounted: Vec<String>) -> Vec<String> {
    let more = refused.len().saturating_sub(MOST_LINES);
    refused.truncate(MOST_LINES);
    if more > 0 {
        refused.push(format!("{more} more objects or folders are not fetched"));
    }
    refused.extend(mounted);
    refused
}

/// The lines when nothing can be asked for.
fn none_fetched(objects: &[Object], why: &str) -> Vec<String> {
    let [first, more @ ..] = objects else { return vec![] };
    let mut lines = vec![format!("{first} is not fetched: {why}")];
    if !more.is_empty() {
        lines.push(format!("{} more objects or folders are not fetched for the same reason", more.len()));
    }
    lines
}

/// The found objects within the limits of one task, and the refusals. A folder is fetched as a whole, or not
/// at all. An object named both by itself and through its folder counts once.
fn fitting(
    looked: Vec<(Object, Result<Vec<ObjectMetadata>, String>)>,
    limit: u64,
) -> (Vec<WantedObject>, Vec<String>) {
    let (mut wanted, mut refused, mut left) = (vec![], vec![], limit);
    let mut seen = HashSet::new();
    for (object, found) in looked {
        let mut found = match found {
            Ok(found) => found,
            Err(why) => {
                refused.push(format!("{object} is not fetched: {why}"));
                continue;
            }
        };
        let sum = |all: &[ObjectMetadata]| all.iter().fold(0, |sum: u64, one| sum.saturating_add(one.size));
        let whole = sum(&found);
        found.retain(|one| !seen.contains(&(object.bucket().to_owned(), one.name.clone())));
        let bytes = sum(&found);
        if bytes > left || wanted.len() + found.len() > MOST_OBJECTS {
            refused.push(format!(
                "{object} is not fetched: it has {}, and a task gets {} (gcs.max_bytes) and {MOST_OBJECTS} objects at \
                 most",
                cache::size(whole),
                cache::size(limit),
            ));
            continue;
        }
        left -= bytes;
        for found in found {
            let bucket = object.bucket().to_owned();
            seen.insert((bucket.clone(), found.name.clone()));
            wanted.push(WantedObject { asked: found.name == object.name(), bucket, found });
        }
    }
    (wanted, refused)
}

/// The objects of a name: the object itself, else the objects below it.
async fn look(
    storage: &Storage,
    by: StorageReader<'_>,
    object: &Object,
) -> Result<Vec<ObjectMetadata>, String> {
    let (bucket, name) = (object.bucket(), object.name());
    if !object.is_folder()
        && let Some(found) = storage.object(by, bucket, name).await.map_err(|why| why.to_string())?
    {
        return match found.name == name {
            true => Ok(vec![found]),
            false => Err("Cloud Storage sent another object".into()),
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
            return Err("Cloud Storage listed other objects".into());
        }
        if let Some(why) = inputs::unfit(&found.name) {
            return Err(format!("an object in it cannot be a file: {why}"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Object {
        Object::parse(text).unwrap()
    }

    fn found(name: &str, size: u64) -> ObjectMetadata {
        ObjectMetadata { name: name.into(), generation: 1, size, crc32c: None }
    }

    #[test]
    fn mounted_inputs_are_reported_beside_refused_ones() {
        let refused = (0..9).map(|n| format!("refusal {n}")).collect();
        let lines = lines(refused, vec!["1 object of gs://bucket".into()]);
        assert_eq!(lines.len(), 10);
        assert_eq!(
            lines[7..],
            ["refusal 7", "1 more objects or folders are not fetched", "1 object of gs://bucket"]
        );
    }

    #[test]
    fn without_a_token_every_named_object_counts() {
        let objects = ["bucket/a", "bucket/b", "bucket/c"].map(object);
        let why = "there is no token";
        let first = "gs://bucket/a is not fetched: there is no token";
        let more = "2 more objects or folders are not fetched for the same reason";
        assert_eq!(none_fetched(&objects, why), [first, more]);
        assert_eq!(none_fetched(&objects[..1], why), [first]);
    }

    #[test]
    fn an_object_that_is_named_twice_counts_once() {
        let looked = vec![
            (object("bucket/dir/a"), Ok(vec![found("dir/a", 6)])),
            (object("bucket/dir"), Ok(vec![found("dir/a", 6), found("dir/b", 4)])),
            (object("bucket/c"), Ok(vec![found("c", 1)])),
        ];
        let (wanted, refused) = fitting(looked, 10);
        let named: Vec<_> = wanted.iter().map(|one| (one.found.name.as_str(), one.asked)).collect();
        assert_eq!(named, [("dir/a", true), ("dir/b", false)]);
        assert!(refused.len() == 1 && refused[0].starts_with("gs://bucket/c is not fetched"), "{refused:?}");
    }
}
