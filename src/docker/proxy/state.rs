//! State that every judgement needs: the engine, the settings, and look-ups of containers, networks and
//! images.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, RwLockWriteGuard, oneshot};
use tokio::time::Instant;

use super::engine_client::{EngineClient, Refusal};
use super::outputs::Outputs;
use super::path::encode;
use super::reserved::{Hit, Kind};
use super::wiring::is_ours;
use super::{LifecycleRequest, Settings};
use crate::docker::labels::SESSION_LABEL;
use crate::guard::memory::Memory;
use crate::json::strings;
use crate::workload::ContainerId;

/// How long an image's environment is cached; a tag can move.
const IMAGE_FRESH: Duration = Duration::from_secs(5);

/// The prefix of our networks' names.
pub(super) const NETWORKS: &str = "kfp-creds";
/// The engine's own networks, which every create names and nobody can replace.
const PREDEFINED: [&str; 5] = ["", "default", "bridge", "host", "none"];

/// What an image adds to the containers created from it.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// Entries `NAME=value`.
    pub(super) env: Vec<String>,
    pub(super) has_entrypoint: bool,
}

/// The proxy of one session. All its listeners share it: what one of them has let pass, such as a create that is not
/// answered yet, decides what another one refuses.
#[derive(Debug)]
pub struct Proxy {
    pub(super) settings: Arc<Settings>,
    pub(super) engine: EngineClient,
    pub(super) outputs: Outputs,
    images: Mutex<HashMap<String, (Instant, Arc<Image>)>>,
    /// Read-locked while a container that will be leased is between the engine's create and its lease. Code
    /// that asks whether a container is leased, to let it be reached into, waits for these first; afterwards
    /// no existing container can become leased.
    arriving: Arc<RwLock<()>>,
    pub(super) memory: Memory,
    /// Lines about mounts and inputs that are reported once per session and were.
    pub(super) said: Mutex<HashSet<String>>,
    /// Whether the engine turned out not to see this machine's files, so that nothing is fetched for it.
    pub(super) not_shared: AtomicBool,
    /// The number of refused BuildKit builds.
    pub(super) refused_builds: AtomicU64,
    /// Images for which it was already reported that tasks run without their `ENTRYPOINT`.
    pub(super) said_entrypoint: Mutex<HashSet<String>>,
    /// Ids of networks that the engine confirmed as a session's.
    pub(super) our_networks: Mutex<HashSet<String>>,
}

impl Proxy {
    pub fn new(settings: Arc<Settings>) -> Self {
        let engine = EngineClient { upstream: settings.upstream.clone(), tasks: settings.tasks.clone() };
        Self {
            settings,
            engine,
            outputs: Outputs::default(),
            images: Mutex::default(),
            arriving: Arc::default(),
            memory: Memory::default(),
            said: Mutex::default(),
            not_shared: AtomicBool::default(),
            refused_builds: AtomicU64::default(),
            said_entrypoint: Mutex::default(),
            our_networks: Mutex::default(),
        }
    }

    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Held from before the engine's create until the lease is in place.
    pub(super) async fn arrive(&self) -> OwnedRwLockReadGuard<()> {
        self.arriving.clone().read_owned().await
    }

    /// Held while the proxy decides what a request may reach into.
    pub(super) async fn none_arriving(&self) -> RwLockWriteGuard<'_, ()> {
        self.arriving.write().await
    }

    /// The container that the engine means by `reference`. A full id needs no look-up: leased containers
    /// cannot have names of that form.
    pub(super) async fn locate(&self, reference: &str) -> Result<Option<ContainerId>, Refusal> {
        if let Some(id) = ContainerId::parse(reference) {
            return Ok(Some(id));
        }
        let found = self.engine.look(&place("containers", reference)).await?;
        Ok(found.and_then(|found| ContainerId::parse(found["Id"].as_str()?)))
    }

    pub(super) async fn is_ours(&self, kind: Kind, reference: &str) -> Result<bool, Refusal> {
        let hit = self.settings.reserved.hit(kind, reference);
        if kind == Kind::Network && hit != Hit::Sure && !PREDEFINED.contains(&reference) {
            return self.is_network_of_a_session(reference).await;
        }
        if hit != Hit::Prefix {
            return Ok(hit == Hit::Sure);
        }
        let path = match kind {
            Kind::Container => place("containers", reference),
            Kind::Image => place("images", reference),
            Kind::Network => return self.is_network_of_a_session(reference).await,
        };
        let found = self.engine.look(&path).await?;
        let id = found.as_ref().and_then(|found| found["Id"].as_str());
        Ok(id.is_some_and(|id| self.settings.reserved.hit(kind, id) == Hit::Sure))
    }

    /// Recognised by its label, which only a session can set through our proxies. Another session's network
    /// is as closed to containers as our own.
    async fn is_network_of_a_session(&self, reference: &str) -> Result<bool, Refusal> {
        let mut path = String::from("/networks/");
        encode(reference, &mut path);
        let found = self.engine.look(&path).await?;
        Ok(found.is_some_and(|found| {
            let ours = found["Id"].as_str().map(|id| self.settings.reserved.hit(Kind::Network, id));
            ours == Some(Hit::Sure) || found["Labels"][SESSION_LABEL].is_string()
        }))
    }

    /// Whether the container holds an identity of this session or belongs to another one. An image can bring
    /// the label alone, so the container must also be on a network of a session.
    pub(super) async fn has_identity(&self, container: &ContainerId) -> Result<bool, Refusal> {
        if self.is_leased(container).await {
            return Ok(true);
        }
        let Some(found) = self.engine.look(&place("containers", container.as_str())).await? else {
            return Ok(false);
        };
        if is_of_a_session(&found) {
            return Ok(true);
        }
        // The engine stores the id of the container whose network is joined.
        let joined =
            found["HostConfig"]["NetworkMode"].as_str().and_then(|mode| mode.strip_prefix("container:"));
        let Some(joined) = joined.and_then(ContainerId::parse) else { return Ok(false) };
        if self.is_leased(&joined).await {
            return Ok(true);
        }
        let found = self.engine.look(&place("containers", joined.as_str())).await?;
        Ok(found.is_some_and(|found| is_of_a_session(&found)))
    }

    /// Whether no key may get into the container: it holds an identity, or it looks like a task of kfp.
    /// Decided from the engine's record of its create, so it does not matter when and through which client it
    /// was created.
    pub(super) async fn is_guarded(&self, container: &ContainerId) -> Result<bool, Refusal> {
        if self.is_leased(container).await {
            return Ok(true);
        }
        let Some(mut found) = self.engine.look(&place("containers", container.as_str())).await? else {
            return Ok(false);
        };
        let mut body = found["Config"].take();
        body["HostConfig"] = found["HostConfig"].take();
        Ok(self.settings.evidence.is_kfp(&(self.settings.recognise)(&body, None)))
    }

    /// Asks `lifecycle`. Without an answer the result is yes, because callers permit access on a no.
    pub(super) async fn is_leased(&self, container: &ContainerId) -> bool {
        let (answer, answered) = oneshot::channel();
        let ask = LifecycleRequest::IsLeased { container: container.clone(), answer };
        self.settings.ask.send(ask).await.is_err() || answered.await.unwrap_or(true)
    }

    /// What an image adds; nothing if the engine does not have the image, because the create will fail.
    pub(super) async fn image(&self, reference: &str) -> Result<Arc<Image>, Refusal> {
        if reference.is_empty() {
            return Ok(Arc::default());
        }
        let now = Instant::now();
        if let Some((_, image)) = self.fresh_images(now).get(reference) {
            return Ok(image.clone());
        }
        let found = self.engine.look(&place("images", reference)).await?;
        let Some(found) = found else { return Ok(Arc::default()) };
        let env = strings(&found["Config"]["Env"]);
        // An image committed from an attached container: by a session that left our variables in it, or past
        // the proxy.
        let committed = found["Config"]["Labels"][SESSION_LABEL].is_string();
        // A variable without a value does not count.
        let counts = |set: &&str| set.contains('=') && !(committed && is_ours(set));
        let image = Arc::new(Image {
            env: env.filter(counts).map(Into::into).collect(),
            has_entrypoint: found["Config"]["Entrypoint"].as_array().is_some_and(|words| !words.is_empty()),
        });
        self.fresh_images(now).insert(reference.into(), (now, image.clone()));
        Ok(image)
    }

    fn fresh_images(
        &self,
        now: Instant,
    ) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, Arc<Image>)>> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.retain(|_, (asked, _)| now.duration_since(*asked) < IMAGE_FRESH);
        images
    }

    pub(super) fn closing(&self) -> Result<(), Refusal> {
        if self.settings.closing.is_set() {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the session is ending and takes no new containers",
            ));
        }
        Ok(())
    }
}

fn is_of_a_session(found: &Value) -> bool {
    let networks = found["NetworkSettings"]["Networks"].as_object();
    let on_ours = networks.is_some_and(|all| all.keys().any(|name| name.starts_with(NETWORKS)));
    on_ours && found["Config"]["Labels"][SESSION_LABEL].is_string()
}

/// The path `/{what}/NAME/json`. The name comes from a client: its slashes stay, everything else is escaped.
fn place(what: &str, name: &str) -> String {
    let mut path = format!("/{what}");
    for part in name.trim_start_matches('/').split('/') {
        path.push('/');
        encode(part, &mut path);
    }
    path + "/json"
}
