//! What every judgement needs: the engine, the settings, and answers to "which container is that".

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::logs::Outputs;
use super::path::encode;
use super::reserved::{Hit, Kind};
use super::wire::{Engine, Refusal};
use super::{Ask, Settings};
use crate::workload::ContainerId;

/// A tag can move; for this long an image's environment is not asked for again.
const IMAGE_FRESH: Duration = Duration::from_secs(5);

type ImageEnv = Arc<[String]>;

#[derive(Debug)]
pub(super) struct Room {
    pub(super) settings: Arc<Settings>,
    pub(super) engine: Engine,
    pub(super) outputs: Outputs,
    images: Mutex<HashMap<String, (Instant, ImageEnv)>>,
}

impl Room {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let engine = Engine { socket: settings.upstream.clone(), tasks: settings.tasks.clone() };
        Self { settings, engine, outputs: Outputs::default(), images: Mutex::default() }
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
        if hit != Hit::Prefix {
            return Ok(hit == Hit::Sure);
        }
        let path = match kind {
            Kind::Container => place("containers", reference),
            Kind::Image => place("images", reference),
            Kind::Network => {
                let mut path = String::from("/networks/");
                encode(reference, &mut path);
                path
            }
        };
        let found = self.engine.look(&path).await?;
        let id = found.as_ref().and_then(|found| found["Id"].as_str());
        Ok(id.is_some_and(|id| self.settings.reserved.hit(kind, id) == Hit::Sure))
    }

    /// Asks `lifecycle`; when nobody answers, yes: the question comes from where a no would open a door.
    pub(super) async fn is_leased(&self, container: &ContainerId) -> bool {
        let (answer, answered) = oneshot::channel();
        let ask = Ask::IsLeased { container: container.clone(), answer };
        self.settings.ask.send(ask).await.is_err() || answered.await.unwrap_or(true)
    }

    /// The environment that an image brings; empty for one that the engine does not have, because the
    /// create will fail.
    pub(super) async fn image_env(&self, reference: &str) -> Result<ImageEnv, Refusal> {
        if reference.is_empty() {
            return Ok(Arc::new([]));
        }
        let now = Instant::now();
        if let Some((_, env)) = self.fresh_images(now).get(reference) {
            return Ok(env.clone());
        }
        let found = self.engine.look(&place("images", reference)).await?;
        let Some(found) = found else { return Ok(Arc::new([])) };
        let env = found["Config"]["Env"].as_array().into_iter().flatten();
        let env: ImageEnv = env.filter_map(Value::as_str).map(Into::into).collect();
        self.fresh_images(now).insert(reference.into(), (now, env.clone()));
        Ok(env)
    }

    fn fresh_images(&self, now: Instant) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, ImageEnv)>> {
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

/// `/containers/NAME/json`. The name comes from a client: its slashes stay, everything else is escaped.
fn place(what: &str, name: &str) -> String {
    let mut path = format!("/{what}");
    for part in name.trim_start_matches('/').split('/') {
        path.push('/');
        encode(part, &mut path);
    }
    path + "/json"
}
