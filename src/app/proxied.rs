//! What the proxy of a session is given.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::host::Host;
use super::reload;
use crate::config::Config;
use crate::docker::proxy::{
    Ask, Clients, Closing, Exits, Kind, Reserved, Rulebook, Settings, Wiring, Writable,
};
use crate::docker::relay::{NAMES, Tunnel};
use crate::kfp;
use crate::observe::Voice;
use crate::process::Tasks;
use crate::record::Recorder;
use crate::server::views::UNKNOWN_PROJECT;
use crate::session::Session;

/// What the proxy is given, but for what is ours and what containers are told.
pub(super) fn settings(
    config: &Config,
    session: &Session,
    ask: mpsc::Sender<Ask>,
    voice: &Voice,
    tasks: &Tasks,
) -> Settings {
    Settings {
        upstream: session.engine.upstream().clone(),
        product: session.engine.product(),
        socket: PathBuf::new(),
        guard: Arc::new(config.guard.clone()),
        session: session.network.session.clone(),
        mode: "serve",
        rules: Rulebook::new(reload::rules(config)),
        writable: Writable::default(),
        recognise: kfp::read,
        client_proxies: config.client_proxies.of(session.engine.upstream().endpoint()),
        evidence: kfp::Evidence::default(),
        voice: voice.clone(),
        wiring: Wiring { relay: session.relay, names: vec![], project: None, quota_project: None },
        reserved: Reserved::default(),
        exits: Exits::default(),
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

/// What containers are given so that their clients find us.
pub(super) fn wiring(session: &Session, host: &Host, config: &Config) -> Wiring {
    Wiring {
        relay: session.relay,
        names: NAMES.map(String::from).to_vec(),
        // A stand-in would make clients ask Google about a project of that name.
        project: Some(host.project(config)).filter(|project| project != UNKNOWN_PROJECT),
        quota_project: host.quota_project(config),
    }
}

pub(super) fn reserve(session: &Session, tunnel: &Tunnel) -> Reserved {
    let reserved = Reserved::default();
    reserved.put(Kind::Container, &tunnel.container, &session.relay_name);
    reserved.put(Kind::Network, &session.network.id, &session.network.name);
    reserved.put(Kind::Image, &session.image, &session.image_name);
    reserved
}
