//! The settings of a session's proxy.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::credentials::Credentials;
use super::reload;
use crate::config::Config;
use crate::console::Console;
use crate::docker::proxy::{
    Clients, Closing, ExitCodes, Kind, LifecycleRequest, LiveRules, Reserved, Settings, Wiring, Writable,
};
use crate::docker::relay::{NAMES, Tunnel};
use crate::kfp;
use crate::process::Tasks;
use crate::record::Recorder;
use crate::server::views::UNKNOWN_PROJECT;
use crate::session::MetadataNetwork;

/// The proxy's settings, without reserved objects and without the containers' wiring.
pub(super) fn settings(
    config: &Config,
    session: &MetadataNetwork,
    ask: mpsc::Sender<LifecycleRequest>,
    console: &Console,
    tasks: &Tasks,
) -> Settings {
    Settings {
        upstream: session.engine.upstream().clone(),
        product: session.engine.product(),
        socket: PathBuf::new(),
        guard: Arc::new(config.guard.clone()),
        session: session.network.session.clone(),
        mode: "serve",
        rules: LiveRules::new(reload::rules(config)),
        writable: Writable::default(),
        recognise: kfp::read,
        client_proxies: config.client_proxies.of(session.engine.upstream().endpoint()),
        evidence: kfp::Evidence::default(),
        console: console.clone(),
        wiring: Wiring { relay: session.relay, names: vec![], project: None, quota_project: None },
        reserved: Reserved::default(),
        exits: ExitCodes::default(),
        closing: Closing::default(),
        clients: Clients::default(),
        created: Arc::default(),
        cells: None,
        loopback: None,
        recorder: Recorder::default(),
        fetching: None,
        ask,
        tasks: tasks.clone(),
    }
}

/// The variables and hosts entries by which clients in containers find the relay.
pub(super) fn wiring(session: &MetadataNetwork, credentials: &Credentials, config: &Config) -> Wiring {
    Wiring {
        relay: session.relay,
        names: NAMES.map(String::from).to_vec(),
        // With a stand-in, clients would ask Google about a project of that name.
        project: Some(credentials.project(config)).filter(|project| project != UNKNOWN_PROJECT),
        quota_project: credentials.quota_project(config),
    }
}

pub(super) fn reserve(session: &MetadataNetwork, tunnel: &Tunnel) -> Reserved {
    let reserved = Reserved::default();
    reserved.put(Kind::Container, &tunnel.container, &session.relay_name);
    reserved.put(Kind::Network, &session.network.id, &session.network.name);
    reserved.put(Kind::Image, &session.image, &session.image_name);
    reserved
}
