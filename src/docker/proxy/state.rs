//! What every judgement needs: the engine, the settings, and answers to "which container is that".

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
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
use crate::workload::ContainerId;

/// A tag can move; for this long an image's environment is not asked for again.
const IMAGE_FRESH: Duration = Duration::from_secs(5);

/// What the names of our networks begin with.
pub(super) const NETWORKS: &str = "kfp-creds";
/// The engine's own networks, which every create names and nobody can replace.
const PREDEFINED: [&str; 5] = ["", "default", "bridge", "host", "none"];

/// What an image brings to the containers that are made of it.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// `NAME=value`, each.
    pub(super) env: Vec<String>,
    pub(super) has_entrypoint: bool,
}

#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) settings: Arc<Settings>,
    pub(super) engine: EngineClient,
    pub(super) outputs: Outputs,
    images: Mutex<HashMap<String, (Instant, Arc<Image>)>>,
    /// Read while a container that will be leased is on its way from the engine's create to its lease. Whoever
    /// asks whether something is leased, to let it be reached into, waits for these first: afterwards nothing
    /// that exists becomes leased any more.
    arriving: Arc<RwLock<()>>,
    pub(super) memory: Memory,
    /// What was said not to be verified of mounts.
    pub(super) said: Mutex<HashSet<String>>,
    /// How many builds by BuildKit were refused.
    pub(super) refused_builds: AtomicU64,
    /// Images of which it was said that tasks run without their `ENTRYPOINT`.
    pub(super) said_entrypoint: Mutex<HashSet<String>>,
    /// Ids of networks that the engine said are a session's.
    pub(super) our_networks: Mutex<HashSet<String>>,
}

impl Proxy {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let engine = EngineClient { upstream: settings.upstream.clone(), tasks: settings.tasks.clone() };
        Self {
            settings,
            engine,
            outputs: Outputs::default(),
            images: Mutex::default(),
            arriving: Arc::default(),
            memory: Memory::default(),
            said: Mutex::default(),
            refused_builds: AtomicU64::default(),
            said_entrypoint: Mutex::default(),
            our_networks: Mutex::default(),
        }
    }

    /// Held from before the engine's create until the lease is in place.
    pub(super) async fn arrive(&self) -> OwnedRwLockReadGuard<()> {
        self.arriving.clone().read_owned().await
    }

    /// Held while it is decided what may be reached into.
    pub(super) async fn none_arriving(&self) -> RwLockWriteGuard<'_, ()> {
        self.arriving.write().await
    }

    /// The container that the engine means by `reference`. A full id is one by itself: names of that form
    /// are kept off leased containers.
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

    /// By its label, which nobody but us can set through a proxy of ours: another session's network is as closed
    /// as our own.
    async fn is_network_of_a_session(&self, reference: &str) -> Result<bool, Refusal> {
        let mut path = String::from("/networks/");
        encode(reference, &mut path);
        let found = self.engine.look(&path).await?;
        Ok(found.is_some_and(|found| {
            let ours = found["Id"].as_str().map(|id| self.settings.reserved.hit(Kind::Network, id));
            ours == Some(Hit::Sure) || found["Labels"][SESSION_LABEL].is_string()
        }))
    }

    /// Whether it holds an identity of this session or is a part of another one: the label alone can come from
    /// an image, so the network has to be one of ours as well.
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
        // The engine writes the id of the one that it joins.
        let joined =
            found["HostConfig"]["NetworkMode"].as_str().and_then(|mode| mode.strip_prefix("container:"));
        let Some(joined) = joined.and_then(ContainerId::parse) else { return Ok(false) };
        if self.is_leased(&joined).await {
            return Ok(true);
        }
        let found = self.engine.look(&place("containers", joined.as_str())).await?;
        Ok(found.is_some_and(|found| is_of_a_session(&found)))
    }

    /// Whether no key may get into it: it holds an identity, or it looks like a task of kfp. The engine's own record
    /// has what its create said, so it does not matter when and through whom it was made.
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

    /// Asks `lifecycle`; when nobody answers, yes: the question comes from where a no would open a door.
    pub(super) async fn is_leased(&self, container: &ContainerId) -> bool {
        let (answer, answered) = oneshot::channel();
        let ask = LifecycleRequest::IsLeased { container: container.clone(), answer };
        self.settings.ask.send(ask).await.is_err() || answered.await.unwrap_or(true)
    }

    /// What an image brings; nothing for one that the engine does not have, because the create will fail.
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
        let env = found["Config"]["Env"].as_array().into_iter().flatten().filter_map(Value::as_str);
        // An image that was made of an attached container, by a session that left our variables in it or without us.
        let committed = found["Config"]["Labels"][SESSION_LABEL].is_string();
        // A variable without a value is none.
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

/// `/containers/NAME/json`. The name comes from a client: its slashes stay, everything else is escaped.
fn place(what: &str, name: &str) -> String {
    let mut path = format!("/{what}");
    for part in name.trim_start_matches('/').split('/') {
        path.push('/');
        encode(part, &mut path);
    }
    path + "/json"
}
