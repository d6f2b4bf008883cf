//! What is known when the body of a create is judged.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use super::Wiring;
use crate::mounts::Mount;
use crate::policy::Decision;
use crate::workload::ContainerId;

/// A container whose network and lease another one may share.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    pub(super) container: ContainerId,
    /// Where its network has the relay.
    pub(super) relay: Ipv4Addr,
}

/// What the engine says a container reference of the body stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Neighbour {
    Ours,
    /// Joining its namespaces would share its identity.
    Leased,
    /// The full id.
    Other(String),
    Missing,
}

/// What is known when a body is judged.
#[derive(Clone, Debug)]
pub(super) struct Question<'a> {
    pub(super) decision: &'a Decision,
    /// `?name=`.
    pub(super) name: Option<&'a str>,
    /// `NAME=value` of the image.
    pub(super) image_env: &'a [String],
    /// By the reference that stands in the body, see `judge::container_references`.
    pub(super) neighbours: &'a HashMap<String, Neighbour>,
    /// References that mean our network, see `judge::network_references`.
    pub(super) our_networks: &'a HashSet<String>,
    pub(super) wiring: &'a Wiring,
    /// What is mounted besides what the request asks for, for this task.
    pub(super) mounts: &'a [&'a Mount],
    pub(super) session: &'a str,
    pub(super) mode: &'a str,
    /// It will be alone with the relay on its network: what it could do to neighbours costs nothing there.
    pub(super) alone: bool,
    /// Where it finds us on the host's network: `127.0.0.1:PORT/SECRET`.
    pub(super) path: Option<&'a str>,
    /// The leased container whose network it joins, where a rule allows that and both have one identity.
    pub(super) joins: Option<&'a Joined>,
}
