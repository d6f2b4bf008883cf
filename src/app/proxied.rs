//! The settings of a session's proxy.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::credentials::Credentials;
use super::reload;
use crate::config::Config;
use crate::console::Console;
use crate::docker::proxy::{
    Clients, Closing, ExitCodes, LifecycleRequest, LiveRules, ProxySettings, RelayAt, Reserved, ReservedKind,
    SecondNetwork, Wiring, Writable,
};
use crate::docker::relay::{NAMES, Tunnel};
use crate::docker::segment::Segment;
use crate::kfp;
use crate::process::Tasks;
use crate::record::Recorder;
use crate::server::views::UNKNOWN_PROJECT;
use crate::session::MetadataNetwork;

/// The proxy's settings, without reserved objects and without the containers' wiring.
pub(super) fn settings(
    config: &Config,
    metadata: &MetadataNetwork,
    ask: mpsc::Sender<LifecycleRequest>,
    console: &Console,
    tasks: &Tasks,
) -> ProxySettings {
    ProxySettings {
        upstream: metadata.engine.upstream().clone(),
        product: metadata.engine.product(),
        socket: PathBuf::new(),
        guard: Arc::new(config.guard.clone()),
        host_root: config.host_root.clone(),
        session: metadata.network.session.clone(),
        mode: "serve",
        rules: LiveRules::new(reload::rules(config)),
        writable: Writable::default(),
        recognise: kfp::read,
        client_proxies: config.client_proxies.of(metadata.engine.upstream().endpoint()),
        evidence: kfp::Evidence::default(),
        console: console.clone(),
        wiring: Wiring {
            at: RelayAt { address: metadata.relay, container_credentials: false },
            names: vec![],
            project: None,
            quota_project: None,
            aws_region: None,
        },
        reserved: Reserved::default(),
        exits: ExitCodes::default(),
        closing: Closing::default(),
        clients: Clients::default(),
        created: Arc::default(),
        cells: None,
        segment: None,
        second: SecondNetwork::Open(RelayAt { address: metadata.relay, container_credentials: false }),
        loopback: None,
        recorder: Recorder::default(),
        fetching: None,
        ask,
        tasks: tasks.clone(),
    }
}

/// The variables and hosts entries by which clients in containers find the relay.
pub(super) fn wiring(metadata: &MetadataNetwork, credentials: &Credentials, config: &Config) -> Wiring {
    Wiring {
        at: RelayAt { address: metadata.relay, container_credentials: metadata.container_credentials },
        names: NAMES.map(String::from).to_vec(),
        // With a stand-in, clients would ask Google about a project of that name.
        project: Some(credentials.project(config)).filter(|project| project != UNKNOWN_PROJECT),
        quota_project: credentials.quota_project(config),
        aws_region: config.aws.as_ref().and_then(|aws| aws.region.clone()),
    }
}

pub(super) fn reserved(metadata: &MetadataNetwork, tunnel: &Tunnel) -> Reserved {
    let reserved = Reserved::default();
    reserved.put(ReservedKind::Image, &metadata.image.id, &metadata.image.name);
    reserve(&reserved, metadata, tunnel);
    reserved
}

/// Reserves a network of ours and its relay; the default bridge is everybody's.
pub(super) fn reserve(reserved: &Reserved, metadata: &MetadataNetwork, tunnel: &Tunnel) {
    reserved.put(ReservedKind::Container, &tunnel.container, &metadata.relay_name);
    if !metadata.segment.as_ref().is_some_and(Segment::is_default_bridge) {
        reserved.put(ReservedKind::Network, &metadata.network.id, &metadata.network.name);
    }
}
