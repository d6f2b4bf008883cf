//! Cloud Storage objects that the inputs of a kfp task name, mounted at `/gcs/BUCKET` before the task is
//! created.
//!
//! The proxy handles neither tokens nor Google APIs. It requests the objects on behalf of the task's
//! identity, mounts the directories that it gets, read-only, and omits objects that it cannot get: the task
//! then fails as it would without kfp-creds. Outputs are not written there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response, StatusCode, Uri};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::engine_client::{Body, EngineClient, Refusal, Reply, full};
use super::json::split_bind;
use super::notices::Notices;
use super::{ProxySettings, podman};
use crate::console::Console;
use crate::docker::Product;
use crate::docker::upstream::EngineConnector;
use crate::inputs::{self, Object};
use crate::json::strings;
use crate::mounts::{self, Mount, Source};
use crate::workload::{Identity, Task};

/// How long a create waits for its inputs.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The fetcher, and the folder of the fetched files.
#[derive(Clone, Debug)]
pub struct Fetching {
    pub ask: mpsc::Sender<Fetch>,
    /// Every mount with a source in this folder was fetched.
    pub folder: PathBuf,
}

/// A request to fetch objects for a container that is about to be created.
#[derive(Debug)]
pub struct Fetch {
    pub identity: Arc<Identity>,
    pub objects: BTreeSet<Object>,
    /// Closed when the create has stopped waiting.
    pub answer: oneshot::Sender<Fetched>,
}

/// The result of a [`Fetch`].
#[derive(Debug, Default)]
pub struct Fetched {
    /// The directory to mount at `/gcs/BUCKET`, by bucket.
    pub buckets: BTreeMap<String, PathBuf>,
    /// Messages for a person about this task.
    pub lines: Vec<String>,
    /// The reason if this session fetches nothing at all.
    pub off: Option<String>,
}

/// Directories of this machine that were mounted into one create.
pub(super) type FetchedDirectories = Vec<PathBuf>;

/// Mounts fetched objects into tasks.
#[derive(Debug)]
pub(super) struct InputMounts {
    fetching: Option<Fetching>,
    product: Product,
    upstream: EngineConnector,
    engine: EngineClient,
    console: Console,
    notices: Notices,
    /// Whether the engine turned out not to see this machine's files, so that nothing is fetched for it.
    not_shared: AtomicBool,
}

impl InputMounts {
    pub(super) fn new(settings: &ProxySettings, engine: EngineClient) -> Self {
        Self {
            fetching: settings.fetching.clone(),
            product: settings.product,
            upstream: settings.upstream.clone(),
            engine,
            console: settings.console.clone(),
            notices: Notices::new(settings.console.clone()),
            not_shared: AtomicBool::default(),
        }
    }

    /// Mounts the objects that a task names and `identity` may read. Waits at most 30 s; then the create is
    /// refused.
    pub(super) async fn bring(
        &self,
        body: &mut Value,
        identity: &Arc<Identity>,
        task: &Task,
    ) -> Result<FetchedDirectories, Refusal> {
        let Some(fetching) = self.fetching.as_ref().filter(|_| task.kfp) else { return Ok(vec![]) };
        let mut named = inputs::of(body);
        for line in named.refused {
            self.console.notice(format!("{task}: {line}"));
        }
        named.objects.retain(|object| self.is_free(body, object, task));
        if named.objects.is_empty() {
            return Ok(vec![]);
        }
        if self.upstream.endpoint().socket().is_none() {
            self.report_not_shared(task);
            return Ok(vec![]);
        }
        if self.not_shared.load(Ordering::Acquire) {
            return Ok(vec![]);
        }
        let fetched = self.fetch(fetching, identity, named.objects, task).await?;
        if let Some(why) = fetched.off {
            self.report_once(task, why);
        }
        for line in fetched.lines {
            self.console.notice(format!("{task}: {line}"));
        }
        let before = body["HostConfig"].clone();
        let places: FetchedDirectories = fetched.buckets.values().cloned().collect();
        let added = match relabels(body) {
            true => bind(body, &fetched.buckets),
            false => {
                let mounts: Vec<Mount> = fetched.buckets.into_iter().map(mount).collect();
                mounts::add(mounts.iter(), body).err()
            }
        };
        let misread = || podman::parsed_differently(body).filter(|_| self.product == Product::Podman);
        if let Some(why) = added.or_else(misread) {
            body["HostConfig"] = before;
            self.console.notice(format!("{task}: what was fetched is not mounted: {why}"));
            return Ok(vec![]);
        }
        Ok(places)
    }

    async fn fetch(
        &self,
        fetching: &Fetching,
        identity: &Arc<Identity>,
        objects: BTreeSet<Object>,
        task: &Task,
    ) -> Result<Fetched, Refusal> {
        let first = objects.first().map(ToString::to_string).unwrap_or_default();
        let (answer, answered) = oneshot::channel();
        let ask = Fetch { identity: identity.clone(), objects, answer };
        let wait = async {
            fetching.ask.send(ask).await.ok()?;
            answered.await.ok()
        };
        match timeout(LONGEST_WAIT, self.console.while_slow("fetching the inputs of a task", wait)).await {
            Ok(fetched) => Ok(fetched.unwrap_or_default()),
            Err(_) => {
                let seconds = LONGEST_WAIT.as_secs();
                Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!(
                        "{task}: fetching {first} and its other inputs takes longer than {seconds} s; downloads that have \
                         begun continue, so try again in this session, or switch fetching off (gcs.fetch = false)"
                    ),
                ))
            }
        }
    }

    /// Whether no other mount occupies the bucket's target.
    fn is_free(&self, body: &Value, object: &Object, task: &Task) -> bool {
        let at = format!("{}/{}", inputs::ROOT, object.bucket());
        let taken = mounts::touches(body, &at);
        if taken {
            let line =
                format!("{task}: {object} is not fetched: the container has a mount of its own at {at}");
            self.console.notice(line);
        }
        !taken
    }

    /// Called with the engine's refusal of a create. If the reason is that the engine does not see the
    /// fetched directories, the proxy repeats the create without them.
    pub(super) async fn without(
        &self,
        reply: Reply,
        (again, uri): (Request<Body>, Uri),
        brought: &FetchedDirectories,
        task: &Task,
    ) -> Result<Reply, Refusal> {
        let (head, text) = reply.into_parts();
        let text = text.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if !brought.iter().any(|place| names(&text, place)) {
            return Ok(Response::from_parts(head, full(text)));
        }
        self.report_not_shared(task);
        self.engine.forward(again, uri, None).await
    }

    /// Reports that the engine does not see this machine's files: it runs elsewhere, or in a virtual machine.
    fn report_not_shared(&self, task: &Task) {
        let at = self.upstream.endpoint();
        self.not_shared.store(true, Ordering::Release);
        let what = "what tasks name in Cloud Storage is not fetched";
        self.report_once(task, format!("{what}: the engine at {at} does not see this machine's files"));
    }

    fn report_once(&self, task: &Task, line: String) {
        self.notices.once(&task.to_string(), line.clone(), &line);
    }
}

fn names(answer: &Bytes, place: &Path) -> bool {
    String::from_utf8_lossy(answer).contains(&*place.to_string_lossy())
}

fn mount((bucket, place): (String, PathBuf)) -> Mount {
    Mount {
        patterns: vec![],
        source: Source::Path(place),
        target: format!("{}/{bucket}", inputs::ROOT),
        writable: false,
    }
}

/// Whether the engine's machine has SELinux: kfp detects it and requests labels on its own binds.
fn relabels(body: &Value) -> bool {
    strings(&body["HostConfig"]["Binds"]).any(|bind| {
        let options = bind.rsplit(':').next().unwrap_or_default();
        bind.matches(':').count() > 1 && options.split(',').any(|option| option == "z" || option == "Z")
    })
}

/// Mounts the buckets as binds, because only binds can request a label. Returns the reason if that is
/// impossible, a lower-case fragment.
fn bind(body: &mut Value, buckets: &BTreeMap<String, PathBuf>) -> Option<String> {
    let binds = body["HostConfig"]["Binds"].as_array_mut()?;
    for (bucket, place) in buckets {
        let place = place.to_string_lossy();
        if place.contains(':') {
            return Some("the folder of caches has a colon in its name, which no bind can have".into());
        }
        binds.push(format!("{place}:{}/{bucket}:ro,z", inputs::ROOT).into());
    }
    None
}

/// Removes the fetched mounts from the body.
pub(super) fn take_out(body: &mut Value, brought: &FetchedDirectories) {
    let ours = |source: &str| brought.iter().any(|place| place.to_string_lossy() == source);
    let Some(host) = body["HostConfig"].as_object_mut() else { return };
    if let Some(Value::Array(mounts)) = host.get_mut("Mounts") {
        mounts.retain(|mount| !ours(mount["Source"].as_str().unwrap_or_default()));
    }
    if let Some(Value::Array(binds)) = host.get_mut("Binds") {
        binds.retain(|bind| !ours(bind.as_str().and_then(split_bind).unwrap_or_default().0));
    }
}

/// The bucket whose objects this bind would mount, if they were fetched.
pub(super) fn bucket_of<'a>(source: &str, target: &'a str, fetched: Option<&Path>) -> Option<&'a str> {
    let (source, bucket) = (Path::new(source), target.strip_prefix("/gcs/")?);
    // The client chooses the target, so it must match the folder, which is named like its bucket.
    let fetched = fetched.is_some_and(|folder| source.starts_with(folder));
    (fetched && source.file_name() == Some(bucket.as_ref())).then_some(bucket)
}
