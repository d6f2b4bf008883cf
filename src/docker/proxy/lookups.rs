//! Questions to the engine about its objects: containers by name, and whether an object is ours.

use hyper::{Method, StatusCode};
use serde_json::Value;

use super::engine_client::{EngineClient, Refusal, collect};
use super::path::encode;
use super::reserved::{Hit, Reserved, ReservedKind};
use crate::docker::labels::SESSION_LABEL;
use crate::workload::ContainerId;

/// The prefix of our networks' names.
pub(super) const NETWORKS: &str = "kfp-creds";
/// The engine's own networks, which every create names and nobody can replace.
const PREDEFINED: [&str; 5] = ["", "default", "bridge", "host", "none"];

impl EngineClient {
    /// The JSON at `path`; `None` if the engine has no such object, or rejects its name. An error means that the
    /// engine failed: nothing is known of the object, so the client's request must not pass.
    pub(super) async fn look(&self, path: &str) -> Result<Option<Value>, Refusal> {
        let reply = self.ask(Method::GET, path).await?;
        let status = reply.status();
        if status.is_client_error() || status.is_redirection() {
            return Ok(None);
        }
        let body = collect(reply.into_body()).await?;
        match serde_json::from_slice::<Value>(&body) {
            Ok(found) if status.is_success() => Ok(Some(found)),
            Ok(found) if found["message"].as_str().is_some_and(refuses_the_name) => Ok(None),
            _ => Err(Refusal::new(
                StatusCode::BAD_GATEWAY,
                format!("the engine failed while kfp-creds checked this request ({status}); try again"),
            )),
        }
    }
}

/// Whether Podman answers 500 where Docker answers 404 or 400.
fn refuses_the_name(why: &str) -> bool {
    const PARTS: [&str; 7] = [
        "no such container",
        "no such image",
        "no such network",
        "no such object",
        "no such volume",
        "more than one result",
        "invalid reference",
    ];
    PARTS.iter().any(|part| why.contains(part))
}

/// Looks objects up at the engine. References come from clients.
#[derive(Clone, Debug)]
pub(super) struct Lookups {
    engine: EngineClient,
    reserved: Reserved,
}

impl Lookups {
    pub(super) fn new(engine: EngineClient, reserved: Reserved) -> Self {
        Self { engine, reserved }
    }

    /// The engine's record of a container; `None` if it has none of this name or id.
    pub(super) async fn container(&self, reference: &str) -> Result<Option<Value>, Refusal> {
        self.engine.look(&inspect_path("containers", reference)).await
    }

    pub(super) async fn image(&self, reference: &str) -> Result<Option<Value>, Refusal> {
        self.engine.look(&inspect_path("images", reference)).await
    }

    pub(super) async fn volume(&self, name: &str) -> Result<Option<Value>, Refusal> {
        let mut path = String::from("/volumes/");
        encode(name, &mut path);
        self.engine.look(&path).await
    }

    /// The container that the engine means by `reference`. A full id needs no look-up: leased containers
    /// cannot have names of that form.
    pub(super) async fn locate(&self, reference: &str) -> Result<Option<ContainerId>, Refusal> {
        if let Some(id) = ContainerId::parse(reference) {
            return Ok(Some(id));
        }
        let found = self.container(reference).await?;
        Ok(found.and_then(|found| ContainerId::parse(found["Id"].as_str()?)))
    }

    /// Whether `reference` means the relay, its image or a network of a session.
    pub(super) async fn is_ours(&self, kind: ReservedKind, reference: &str) -> Result<bool, Refusal> {
        let hit = self.reserved.hit(kind, reference);
        if kind == ReservedKind::Network && hit != Hit::Sure && !PREDEFINED.contains(&reference) {
            return self.is_network_of_a_session(reference).await;
        }
        if hit != Hit::Prefix {
            return Ok(hit == Hit::Sure);
        }
        let found = match kind {
            ReservedKind::Container => self.container(reference).await?,
            ReservedKind::Image => self.image(reference).await?,
            ReservedKind::Network => return self.is_network_of_a_session(reference).await,
        };
        let id = found.as_ref().and_then(|found| found["Id"].as_str());
        Ok(id.is_some_and(|id| self.reserved.hit(kind, id) == Hit::Sure))
    }

    /// Whether this is a network of a session. Its label shows it, because our proxies let no client set the
    /// label. Containers may not use another session's network either.
    async fn is_network_of_a_session(&self, reference: &str) -> Result<bool, Refusal> {
        let mut path = String::from("/networks/");
        encode(reference, &mut path);
        let found = self.engine.look(&path).await?;
        Ok(found.is_some_and(|found| {
            let ours = found["Id"].as_str().map(|id| self.reserved.hit(ReservedKind::Network, id));
            ours == Some(Hit::Sure) || found["Labels"][SESSION_LABEL].is_string()
        }))
    }
}

/// The path `/{what}/NAME/json`. The name comes from a client: its slashes stay, every other special
/// character is escaped.
fn inspect_path(what: &str, name: &str) -> String {
    let mut path = format!("/{what}");
    for part in name.trim_start_matches('/').split('/') {
        path.push('/');
        encode(part, &mut path);
    }
    path + "/json"
}
