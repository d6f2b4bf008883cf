//! How Podman differs behind the Docker API.
//!
//! Podman's Docker-compatible networks do not meet our needs: they always have its DNS server, which answers
//! that no outside name exists (our network is internal), and the bridge always has an address, which would
//! direct the host's own route to 169.254.169.254 to us. Networks created by Podman's own API have neither.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::call::segment;
use super::labels::SESSION_LABEL;
use super::{Engine, EngineError};
use crate::json::items;

/// The oldest supported version: 4.x loses the exit codes of removed containers and returns names instead of
/// ids.
pub(super) const OLDEST: u64 = 5;

/// The engine's product.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Product {
    #[default]
    Docker,
    Podman,
}

impl Product {
    /// Recognised by the components in the engine's `/version`; the socket's name proves nothing. The error
    /// completes "the engine at SOCKET …".
    pub(super) fn of<'a>(components: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut components = components;
        let Some((_, version)) = components.find(|(name, _)| name.contains("Podman")) else {
            return Ok(Self::Docker);
        };
        match version.split('.').next().and_then(|major| major.parse::<u64>().ok()) {
            Some(major) if major >= OLDEST => Ok(Self::Podman),
            _ => Err(format!(
                "is Podman {version}: 5.0 is the oldest that works, because earlier ones lose exit codes; update Podman"
            )),
        }
    }

    /// The name used in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

/// The addresses of a network.
pub(super) struct Range {
    pub(super) subnet: String,
    /// First and last of the addresses that the engine may allocate by itself.
    pub(super) own: (Ipv4Addr, Ipv4Addr),
}

impl Engine {
    /// Creates a network without a DNS server and without an address of the host; returns its id.
    pub(super) async fn make_podman_network(
        &self,
        name: &str,
        range: &Range,
        session: &str,
    ) -> Result<String, EngineError> {
        const WHAT: &str = "make the network";
        let body = json!({
            "name": name,
            "driver": "bridge",
            "internal": true,
            "dns_enabled": false,
            "ipv6_enabled": false,
            "subnets": [{
                "subnet": range.subnet,
                "lease_range": { "start_ip": range.own.0, "end_ip": range.own.1 },
            }],
            "labels": { SESSION_LABEL: session },
            "options": { "isolate": "true" },
        });
        let made = self.post(WHAT, "/v5.0.0/libpod/networks/create", &body).await?;
        let id = made["id"].as_str().filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| EngineError::Broken(WHAT, "the answer names no network".into()))?;
        if let Err(error) = verify_created(&made) {
            let _ = self.remove_network(id).await;
            return Err(EngineError::Broken(WHAT, error.into()));
        }
        Ok(id.into())
    }

    /// The name of the network with this id. Podman finds a network's containers by the reference it is
    /// given: removed by its id, a network disappears under running containers (seen on 5.8.6).
    pub(super) async fn network_name(&self, id: &str) -> Result<String, EngineError> {
        const WHAT: &str = "look at our network";
        let found = self.get(WHAT, &format!("/networks/{}", segment(id))).await?;
        let name = found["Name"].as_str().filter(|_| found["Id"] == id).map(Into::into);
        name.ok_or_else(|| EngineError::Broken(WHAT, "the answer is about another network".into()))
    }

    /// The id of the network with this name: Podman's events give names.
    pub(super) async fn network_id(&self, name: &str) -> Option<String> {
        let found = self.get("look at a network", &format!("/networks/{}", segment(name))).await.ok()?;
        found["Id"].as_str().map(Into::into)
    }
}

/// Whether Podman created the network as requested. It silently ignores fields that it does not know, and
/// with an address of the host this network would take over the host's route to its cloud's metadata server.
fn verify_created(made: &Value) -> Result<(), &'static str> {
    if made["internal"] != true {
        return Err("Podman did not make it internal");
    }
    if made["dns_enabled"] != false {
        return Err("Podman put its DNS server on it");
    }
    let gateway = items(&made["subnets"]).any(|subnet| !subnet["gateway"].is_null());
    if gateway {
        return Err("Podman gave the host an address on it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podman_is_recognised_and_old_versions_are_refused() {
        let of = |components: &[(&str, &str)]| Product::of(components.iter().copied());
        assert_eq!(of(&[("Engine", "20.10.24"), ("containerd", "1.6")]), Ok(Product::Docker));
        assert_eq!(of(&[]), Ok(Product::Docker));
        assert_eq!(of(&[("Podman Engine", "5.0.0"), ("Conmon", "2.1")]), Ok(Product::Podman));
        assert_eq!(of(&[("Podman Engine", "6.1.1-dev")]), Ok(Product::Podman));
        for old in ["4.9.5", "", "dev"] {
            let why = of(&[("Podman Engine", old)]).unwrap_err();
            assert!(
                why.starts_with("is Podman") && why.contains("5.0 is the oldest") && !why.contains('\n'),
                "{why}"
            );
        }
    }

    #[test]
    fn a_network_with_a_host_address_or_dns_server_is_rejected() {
        let good = json!({"internal": true, "dns_enabled": false, "subnets": [{"subnet": "10.0.0.0/24"}]});
        assert_eq!(verify_created(&good), Ok(()));
        for (key, value) in [
            ("internal", json!(false)),
            ("dns_enabled", json!(true)),
            ("subnets", json!([{"subnet": "10.0.0.0/24", "gateway": "10.0.0.1"}])),
        ] {
            let mut made = good.clone();
            made[key] = value;
            assert!(verify_created(&made).is_err(), "{key}");
        }
        assert!(verify_created(&json!({})).is_err());
    }
}
