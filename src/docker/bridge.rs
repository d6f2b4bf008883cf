//! Our own bridge in place of the engine's default bridge.
//!
//! With a second network a container takes 1.33 times as long from create to exit as without us, on this
//! bridge 1.00 times (Engine 28.5.2, `docs/internals/figures.md`). A container that would be alone on the
//! default bridge loses nothing if it gets another bridge with the same outbound access, and on that bridge
//! the relay is its only neighbour besides other containers with an identity.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use bollard::models::{EndpointSettings, NetworkConnectRequest, NetworkCreateRequest};
use bollard::query_parameters::InspectNetworkOptions;
use serde_json::Value;

use super::labels::SESSION_LABEL;
use super::network::{Network, SHARED_NAME};
use super::{Engine, EngineError, Product};
use crate::config::Pool;
use crate::json::{items, strings};

/// The engine's name for the network of containers that name none.
pub const DEFAULT_BRIDGE: &str = "bridge";

/// The suffix in the names of our bridges.
const SUFFIX: &str = "-bridge";

/// Options of the default bridge that decide what its containers can do; our bridge gets the same values.
const TAKEN_OVER: [&str; 3] = [
    "com.docker.network.bridge.enable_ip_masquerade",
    "com.docker.network.bridge.host_binding_ipv4",
    "com.docker.network.driver.mtu",
];

/// Link-local addresses of containers on a bridge. Each bridge is a segment of its own, so every session can
/// use the same ranges: it takes the first one that does not overlap its other ranges.
const RANGES: [Pool; 3] = [
    Pool { network: Ipv4Addr::new(169, 254, 172, 0), prefix: 22 },
    Pool { network: Ipv4Addr::new(169, 254, 176, 0), prefix: 22 },
    Pool { network: Ipv4Addr::new(169, 254, 32, 0), prefix: 22 },
];

/// The name of a session's bridge.
pub fn name_for(session: &str) -> String {
    format!("{SHARED_NAME}-{session}{SUFFIX}")
}

/// Whether our network with this name is a bridge in place of the default one.
pub fn is_named_as_bridge(network: &str) -> bool {
    network.ends_with(SUFFIX)
}

/// The range of link-local addresses on a bridge of a session that uses `others`.
pub fn range_beside(others: &[Pool]) -> Option<Pool> {
    RANGES.into_iter().find(|range| !others.iter().any(|other| other.meets(*range)))
}

/// The engine's default bridge.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DefaultBridge {
    /// The engine's id.
    pub id: String,
    options: HashMap<String, String>,
}

/// The ids of the containers in one of the engine's lists.
pub fn ids(list: &Value) -> Vec<String> {
    items(list).filter_map(|found| Some(found["Id"].as_str()?.into())).collect()
}

/// The link-local addresses of an inspected container on the default bridge, as its create request set them.
fn link_local_on_default(found: &Value) -> impl Iterator<Item = Ipv4Addr> {
    let endpoint = &found["NetworkSettings"]["Networks"][DEFAULT_BRIDGE];
    strings(&endpoint["IPAMConfig"]["LinkLocalIPs"]).filter_map(|address| address.parse().ok())
}

/// A container that a client connected to a network, bypassing the proxy.
#[derive(Clone, Debug)]
pub struct ForeignContainer {
    pub running: bool,
    /// Whether it is connected to the network in question.
    pub connected: bool,
    /// Its addresses there.
    pub addresses: Vec<Ipv4Addr>,
    /// Its `HostConfig`, as the engine reports it.
    pub host: Value,
}

impl Engine {
    /// Looks at a container that may be a stranger on `network` (a network id).
    pub async fn look_at_foreign(
        &self,
        container: &str,
        network: &str,
    ) -> Result<ForeignContainer, EngineError> {
        let mut found = self.inspect(container).await?;
        let endpoint = super::endpoint_on(&found, network);
        Ok(ForeignContainer {
            running: found["State"]["Running"] == true,
            connected: endpoint.is_some(),
            addresses: endpoint.map(super::addresses_at).unwrap_or_default(),
            host: found["HostConfig"].take(),
        })
    }

    /// The default bridge; otherwise the reason why our own bridge cannot replace it.
    pub async fn default_bridge(&self) -> Result<DefaultBridge, String> {
        if self.product == Product::Podman {
            return Err("Podman gives containers no link-local addresses".into());
        }
        let found = self.docker.inspect_network(DEFAULT_BRIDGE, None::<InspectNetworkOptions>).await;
        let found = found.map_err(|error| match EngineError::of("inspect the default bridge", error) {
            error if error.is_gone() => "the engine has no default bridge".to_string(),
            error => error.to_string(),
        })?;
        if found.enable_ipv6 == Some(true) {
            return Err("the default bridge has IPv6".into());
        }
        let options = found.options.unwrap_or_default();
        if options.get("com.docker.network.bridge.enable_icc").is_some_and(|icc| icc == "false") {
            return Err("containers of the default bridge may not reach each other (icc=false)".into());
        }
        let id = found.id.ok_or("the engine does not identify its default bridge")?;
        Ok(DefaultBridge { id, options })
    }

    /// Makes a bridge with the same outbound access as `default`, and without IPv6. The engine chooses the
    /// range of its addresses.
    pub async fn make_bridge(&self, default: &DefaultBridge, session: &str) -> Result<Network, EngineError> {
        let name = name_for(session);
        let options = default.options.iter().filter(|(key, _)| TAKEN_OVER.contains(&key.as_str()));
        let request = NetworkCreateRequest {
            name: name.clone(),
            driver: Some("bridge".into()),
            internal: Some(false),
            enable_ipv6: Some(false),
            options: Some(options.map(|(key, value)| (key.clone(), value.clone())).collect()),
            labels: Some(HashMap::from([(SESSION_LABEL.to_string(), session.to_string())])),
            ..Default::default()
        };
        let made = self.docker.create_network(request).await;
        let id = made.map_err(|e| EngineError::of("make a bridge", e))?.id;
        Ok(Network {
            id,
            name,
            session: session.into(),
            subnet: String::new(),
            keeps_credentials_address: false,
            routed: true,
        })
    }

    /// Whether a container that runs on the default bridge has this link-local address there.
    pub async fn has_on_default_bridge(&self, address: Ipv4Addr) -> Result<bool, EngineError> {
        // Engine 28 leaves the link-local addresses out of its lists.
        let listed = self.list("network", DEFAULT_BRIDGE, false).await?;
        for id in listed.iter().filter_map(|found| found["Id"].as_str()) {
            match self.inspect(id).await {
                Ok(found) if link_local_on_default(&found).any(|other| other == address) => return Ok(true),
                Err(error) if !error.is_gone() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Takes the link-local address from a stopped container on the default bridge.
    pub async fn clear_default_bridge(&self, container: &str) -> Result<(), EngineError> {
        self.disconnect_container(DEFAULT_BRIDGE, container).await?;
        self.return_to_default_bridge(container).await
    }

    /// Connects a stopped container that was on our bridge to the default bridge, so that it can start again
    /// when ours is gone.
    pub(super) async fn return_to_default_bridge(&self, container: &str) -> Result<(), EngineError> {
        let request = NetworkConnectRequest {
            container: container.into(),
            endpoint_config: Some(EndpointSettings::default()),
        };
        let connected = self.docker.connect_network(DEFAULT_BRIDGE, request).await;
        match connected.map_err(|e| EngineError::of("put the container on the default bridge", e)) {
            Err(EngineError::Refused { why, .. }) if why.contains("already exists in network") => Ok(()),
            outcome => super::allow_already_done(outcome),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_overlaps_no_other_range_of_the_session() {
        let pool = |text: &str| {
            let (network, prefix) = text.split_once('/').unwrap();
            Pool { network: network.parse().unwrap(), prefix: prefix.parse().unwrap() }
        };
        let beside = |others: &[&str]| {
            range_beside(&others.iter().map(|other| pool(other)).collect::<Vec<_>>())
                .map(|range| range.to_string())
        };
        assert_eq!(beside(&["169.254.168.0/22", "10.0.0.0/16"]).unwrap(), "169.254.172.0/22");
        assert_eq!(beside(&["169.254.174.0/24"]).unwrap(), "169.254.176.0/22");
        assert_eq!(beside(&["169.254.160.0/19"]).unwrap(), "169.254.32.0/22");
        assert_eq!(beside(&["169.254.0.0/16"]), None);
    }

    #[test]
    fn a_bridge_of_ours_is_recognised_by_its_name() {
        assert!(is_named_as_bridge(&name_for("0badcafe")));
        assert!(!is_named_as_bridge(SHARED_NAME) && !is_named_as_bridge("kfp-creds-0badcafe-7"));
    }
}
