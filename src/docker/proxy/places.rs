//! Chooses where a container with an identity will reach us: at a link-local address on a bridge, on the
//! second network, on a network of its own, or on the host's loopback.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::capabilities::could_forge;
use super::engine_client::{EngineClient, Refusal};
use super::leases::Leases;
use super::lookups::Lookups;
use super::question::{RelayAt, endpoints};
use super::reserved::{Hit, Reserved, ReservedKind};
use super::{Attachment, ProxySettings};
use crate::docker::bridge::{DEFAULT_BRIDGE, ids};
use crate::docker::call::filtered;
use crate::docker::segment::Segment;
use crate::failure::Reason;
use crate::json::{fields, items};
use crate::workload::ContainerId;

/// The engine's names for the default bridge in a create.
const DEFAULT: [&str; 3] = ["", "bridge", "default"];
/// How many containers in a row, of which each joined the network of the next one, are looked up.
const JOINED_IN_A_ROW: usize = 8;

/// A request for the second network: the sender for its answer.
pub type SecondRequest = oneshot::Sender<Result<RelayAt, Reason>>;

/// The second network: created at the start of the session, or when the first container needs it.
#[derive(Clone, Debug)]
pub enum SecondNetwork {
    Open(RelayAt),
    /// Each request is answered once the network and its relay exist.
    OnDemand(mpsc::Sender<SecondRequest>),
}

/// Chooses where one session's containers reach us.
#[derive(Debug)]
pub(super) struct AttachmentChooser {
    settings: Arc<ProxySettings>,
    engine: EngineClient,
    lookups: Lookups,
    leases: Leases,
    reserved: Reserved,
}

impl AttachmentChooser {
    pub(super) fn new(
        settings: Arc<ProxySettings>,
        engine: EngineClient,
        lookups: Lookups,
        leases: Leases,
    ) -> Self {
        let reserved = settings.reserved.clone();
        Self { settings, engine, lookups, leases, reserved }
    }

    /// Where a container with this body, which will get an identity, will reach us, and its relay.
    pub(super) async fn of(&self, body: &Value) -> Result<(Attachment, RelayAt), Refusal> {
        if body["HostConfig"]["NetworkMode"] == "host"
            && let Some(paths) = &self.settings.loopback
        {
            let path =
                paths.take().ok_or_else(|| failed("cannot create a loopback path (no random numbers)"))?;
            let relay = RelayAt { address: Ipv4Addr::LOCALHOST, container_credentials: false };
            return Ok((Attachment::Loopback(path), relay));
        }
        if let Some(cells) = &self.settings.cells {
            let cell = cells.take().await.map_err(|why| failed(&*why))?;
            let relay = RelayAt { address: cell.relay, container_credentials: false };
            return Ok((Attachment::Cell(cell), relay));
        }
        if let Some(segment) = &self.settings.segment
            && asks_for_default_bridge(body)
            && !self.is_shared(segment).await?
            && let Some(address) = segment.take()
        {
            let relay =
                RelayAt { address: segment.relay(), container_credentials: segment.container_credentials() };
            return Ok((Attachment::Linked(address), relay));
        }
        Ok((Attachment::Shared, self.second().await?))
    }

    async fn second(&self) -> Result<RelayAt, Refusal> {
        let requests = match &self.settings.second {
            SecondNetwork::Open(relay) => return Ok(*relay),
            SecondNetwork::OnDemand(requests) => requests,
        };
        let (answer, answered) = oneshot::channel();
        let sent = requests.send(answer).await;
        let ended = || failed("the session has ended");
        sent.map_err(|_| ended())?;
        let relay = answered.await.map_err(|_| ended())?;
        relay.map_err(|why| failed(format!("kfp-creds could not make its second network: {why}")))
    }

    /// Whether a container that runs on the default bridge keeps a new one off the segment. If the segment is
    /// a bridge of ours, any container there does, because the new one may need to reach it. If the segment
    /// is the default bridge itself, only containers that could forge addresses do.
    async fn is_shared(&self, segment: &Segment) -> Result<bool, Refusal> {
        let path = filtered("/containers/json?all=false", "network", DEFAULT_BRIDGE);
        let found = self.engine.look(&path).await?;
        for container in ids(&found.unwrap_or_default()) {
            if !segment.is_default_bridge() {
                return Ok(true);
            }
            let Some(id) = ContainerId::parse(&container) else { return Ok(true) };
            if !self.is_known(&id).await && self.is_able_to_forge(&id).await? {
                return Ok(true);
            }
        }
        Ok(segment.is_default_bridge() && self.has_forger_inside().await?)
    }

    /// Whether the container has an identity of this session, or is the session's relay.
    async fn is_known(&self, id: &ContainerId) -> bool {
        self.reserved.hit(ReservedKind::Container, id.as_str()) == Hit::Sure
            || self.leases.is_leased(id).await
    }

    async fn is_able_to_forge(&self, id: &ContainerId) -> Result<bool, Refusal> {
        let found = self.lookups.container(id.as_str()).await?;
        Ok(found.is_some_and(|found| could_forge(&found["HostConfig"])))
    }

    /// The default bridge, if containers with an identity have their addresses there.
    fn shared_bridge(&self) -> Option<&Segment> {
        self.settings.segment.as_ref().filter(|segment| segment.is_default_bridge())
    }

    /// Whether a client that names `network` means [`Self::shared_bridge`]. The engine also accepts the id, and the
    /// beginning of it.
    fn is_shared_bridge(&self, network: &str) -> bool {
        let named =
            |segment: &Segment| DEFAULT.contains(&network) || segment.network().id.starts_with(network);
        self.shared_bridge().is_some_and(named)
    }

    /// Whether the container is on that bridge, itself or in the network of another one, which may have joined a third
    /// one. A container whose network is not known counts as one that is.
    async fn is_beside_others(&self, mut found: Value) -> Result<bool, Refusal> {
        for _ in 0..JOINED_IN_A_ROW {
            let mode = found["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
            let Some(other) = mode.strip_prefix("container:") else {
                let mut networks = fields(&found["NetworkSettings"]["Networks"]);
                return Ok(networks.any(|(name, _)| self.is_shared_bridge(name)));
            };
            match self.lookups.container(other).await? {
                Some(joined) => found = joined,
                None => return Ok(true),
            }
        }
        Ok(true)
    }

    /// Whether a container that could forge addresses runs in the network of one on the default bridge: the engine
    /// does not list it as a member.
    async fn has_forger_inside(&self) -> Result<bool, Refusal> {
        let running = self.engine.look("/containers/json?all=false").await?.unwrap_or_default();
        let joined = items(&running).filter(|found| {
            found["HostConfig"]["NetworkMode"].as_str().is_some_and(|mode| mode.starts_with("container:"))
        });
        for id in joined.filter_map(|found| ContainerId::parse(found["Id"].as_str()?)) {
            let Some(found) = self.lookups.container(id.as_str()).await? else { continue };
            if could_forge(&found["HostConfig"])
                && !self.is_known(&id).await
                && self.is_beside_others(found).await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Refuses a container that is about to run on the default bridge, if containers with an identity have
    /// their addresses there and it could forge them.
    pub(super) async fn judge_neighbour(&self, id: &ContainerId) -> Result<(), Refusal> {
        if self.shared_bridge().is_none() || self.is_known(id).await {
            return Ok(());
        }
        let Some(found) = self.lookups.container(id.as_str()).await? else { return Ok(()) };
        match could_forge(&found["HostConfig"]) && self.is_beside_others(found).await? {
            true => Err(could_forge_refusal(id.as_str())),
            false => Ok(()),
        }
    }

    /// A privileged exec can forge, whatever its container dropped.
    pub(super) async fn judge_privileged_exec(&self, id: &ContainerId) -> Result<(), Refusal> {
        if self.shared_bridge().is_none() {
            return Ok(());
        }
        let Some(found) = self.lookups.container(id.as_str()).await? else { return Ok(()) };
        match self.is_beside_others(found).await? {
            true => Err(could_forge_refusal(&format!("a privileged exec in {id}"))),
            false => Ok(()),
        }
    }

    /// The same check for the create of a container without an identity. If only its start were refused, the
    /// container would be left behind, and the docker command line would wait for its removal.
    pub(super) fn judge_new_neighbour(&self, body: &Value) -> Result<(), Refusal> {
        let mode = body["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
        let on = self.is_shared_bridge(mode) || endpoints(body).any(|(name, _)| self.is_shared_bridge(name));
        match on && could_forge(&body["HostConfig"]) {
            true => Err(could_forge_refusal("it")),
            false => Ok(()),
        }
    }

    /// Refuses every connect to the default bridge, if containers with an identity have their addresses there: other
    /// containers may be in the network of the one that is connected, and commands that its settings do not show may
    /// run in it.
    pub(super) fn judge_connect(&self, container: &str, network: &str) -> Result<(), Refusal> {
        match self.is_shared_bridge(network) {
            true => Err(Refusal::forbidden(format!(
                "what runs in the network of {container} could forge addresses of containers with an identity on the \
                 default bridge (network.attach = \"link-local\"): name the bridge in its create, or set \
                 network.attach = \"auto\""
            ))),
            false => Ok(()),
        }
    }
}

fn could_forge_refusal(who: &str) -> Refusal {
    Refusal::forbidden(format!(
        "{who} could forge addresses of containers with an identity on the default bridge (network.attach = \
         \"link-local\"): drop its NET_RAW, give it a network of its own, or set network.attach = \"auto\""
    ))
}

/// Whether the create asks for the default bridge, and for nothing that the segment cannot give: fixed
/// addresses, links.
fn asks_for_default_bridge(body: &Value) -> bool {
    let host = &body["HostConfig"];
    DEFAULT.contains(&host["NetworkMode"].as_str().unwrap_or_default())
        && endpoints(body).all(|(name, endpoint)| DEFAULT.contains(&name.as_str()) && is_empty(endpoint))
        && [&host["Links"], &body["MacAddress"]].into_iter().all(is_empty)
}

/// Whether the value, with everything in it, is what a client writes for "not set".
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.iter().all(is_empty),
        Value::Object(_) => fields(value).all(|(_, value)| is_empty(value)),
    }
}

fn failed(why: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_create_with_network_settings_gets_the_second_network() {
        // Bodies of the docker command line and docker-py for a container without network settings.
        for plain in [
            json!({}),
            json!({"HostConfig": {"NetworkMode": "default"}, "NetworkingConfig": null}),
            json!({"HostConfig": {"NetworkMode": "bridge", "Links": []}, "MacAddress": "",
                   "NetworkingConfig": {"EndpointsConfig": {"bridge": {"IPAMConfig": null, "GwPriority": 0,
                       "Aliases": [], "IPAMConfig": {"IPv4Address": ""}}}}}),
        ] {
            assert!(asks_for_default_bridge(&plain), "{plain}");
        }
        for set_up in [
            json!({"HostConfig": {"NetworkMode": "own"}}),
            json!({"HostConfig": {"NetworkMode": "none"}}),
            json!({"HostConfig": {"Links": ["db:db"]}}),
            json!({"MacAddress": "02:42:ac:11:00:02"}),
            json!({"NetworkingConfig": {"EndpointsConfig": {"own": {}}}}),
            json!({"NetworkingConfig": {"EndpointsConfig": {"bridge": {"Aliases": ["db"]}}}}),
            json!({"NetworkingConfig": {"EndpointsConfig": {"bridge": {"GwPriority": 1}}}}),
        ] {
            assert!(!asks_for_default_bridge(&set_up), "{set_up}");
        }
    }
}
