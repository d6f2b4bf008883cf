//! The facts needed to judge the body of a create.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::Value;

use super::Wiring;
use crate::docker::segment::SegmentAddress;
use crate::json::fields;
use crate::mounts::Mount;
use crate::policy::Decision;
use crate::secret::Secret;
use crate::workload::{ContainerId, Identity};

/// Where a relay listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RelayAt {
    pub address: Ipv4Addr,
    /// The relay also has AWS's address of container credentials, 169.254.170.2.
    pub container_credentials: bool,
}

/// A container whose network and lease another one may share.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    pub(super) container: ContainerId,
    pub(super) relay: RelayAt,
    pub(super) secret: Option<Arc<Secret<String>>>,
}

/// What a container reference in the body stands for, according to the engine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Neighbour {
    Ours,
    /// The container is leased: joining its namespaces would share its identity.
    Leased,
    /// Another container, by its full id.
    Other(String),
    Missing,
}

/// The facts for judging one body.
#[derive(Clone, Debug)]
pub(super) struct Question<'a> {
    pub(super) decision: &'a Decision,
    /// `?name=`.
    pub(super) name: Option<&'a str>,
    /// Entries `NAME=value` of the image.
    pub(super) image_env: &'a [String],
    /// The containers that the body names, by the reference in the body (`judge::container_references`).
    pub(super) neighbours: &'a HashMap<String, Neighbour>,
    /// References to networks of ours in the body (`judge::network_references`).
    pub(super) our_networks: &'a HashSet<String>,
    pub(super) wiring: &'a Wiring,
    /// Mounts of the config for this task, in addition to those of the request.
    pub(super) mounts: &'a [&'a Mount],
    pub(super) session: &'a str,
    pub(super) mode: &'a str,
    /// The container will be alone with the relay on its network: capabilities to impersonate neighbours are
    /// harmless there.
    pub(super) alone: bool,
    /// Where the container reaches us on the host's network: `127.0.0.1:PORT/SECRET`.
    pub(super) path: Option<&'a str>,
    /// The secret of the container's lease, for the clouds that need one.
    pub(super) secret: Option<&'a str>,
    /// The link-local address that the container gets, and its network.
    pub(super) linked: Option<&'a SegmentAddress>,
    /// The leased container whose network this one joins, if a rule allows that and both have the same
    /// identity.
    pub(super) joins: Option<&'a Joined>,
}

/// What decides, besides the body, whether a container can have an identity at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    /// `?name=`.
    pub(super) name: Option<&'a str>,
    /// The names of the metadata server.
    pub(super) server_names: &'a [String],
    /// The container is on the host's network and reaches us on the loopback.
    pub(super) on_loopback: bool,
    /// The container may join the network of a leased container.
    pub(super) joins: bool,
    /// The container will be alone with the relay on its network.
    pub(super) alone: bool,
}

impl Question<'_> {
    pub(super) fn candidate(&self) -> Candidate<'_> {
        Candidate {
            name: self.name,
            server_names: &self.wiring.names,
            on_loopback: self.path.is_some(),
            joins: self.joins.is_some(),
            alone: self.alone,
        }
    }

    /// The identity that the rules decided on, if any.
    pub(super) fn identity(&self) -> Option<&Identity> {
        match self.decision {
            Decision::Attach(identity, _) => Some(identity),
            Decision::Pass(_) => None,
        }
    }

    pub(super) fn has_google(&self) -> bool {
        self.identity().is_some_and(|identity| identity.google)
    }
}

/// The endpoints of a create, by the network's name or id.
pub(super) fn endpoints(body: &Value) -> impl Iterator<Item = (&String, &Value)> {
    fields(&body["NetworkingConfig"]["EndpointsConfig"])
}

/// Whether this endpoint asks for link-local addresses, which the engine gives to anybody without comparing
/// them: one of them could be another container's, or the relay's.
pub(super) fn asks_for_link_local(endpoint: &Value) -> bool {
    !matches!(&endpoint["IPAMConfig"]["LinkLocalIPs"], Value::Null)
        && endpoint["IPAMConfig"]["LinkLocalIPs"].as_array().is_none_or(|asked| !asked.is_empty())
}
