//! The networks and relays of a session: the first ones, and the second network, which is made when the first
//! container needs it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;

use super::credentials::Credentials;
use super::host_loopback;
use super::proxied::reserve;
use crate::config::{AttachMode, Config, Pool, RelaySource};
use crate::console::Console;
use crate::docker::proxy::{ProxySettings, RelayAt, ReservedKind, SecondNetwork, SecondRequest};
use crate::docker::relay::Tunnel;
use crate::docker::{Engine, EngineError};
use crate::failure::{Failure, Reason};
use crate::lifecycle::{Granting, Lifecycle, SessionNetworks};
use crate::process::Tasks;
use crate::server::Server;
use crate::server::views::Views;
use crate::session::{EnginePlan, LoadedImage, MetadataNetwork};

/// What callers see, with the addresses at which they ask.
pub(super) fn views(
    config: &Config,
    credentials: &Credentials,
    metadata: &MetadataNetwork,
    bound: Option<&host_loopback::Bound>,
) -> Views {
    let loopback = bound.map(|bound| bound.paths.at().to_string());
    Views { loopback, ..credentials.views(config, Some(metadata.relay.to_string())) }
}

/// Opens the first network of a new session, with its relay.
pub(super) async fn open(
    engine: Engine,
    config: &Config,
    (session, sockets): (&str, &Path),
    console: &Console,
) -> Result<(Arc<MetadataNetwork>, Tunnel), Failure> {
    let plan = EnginePlan {
        session,
        pool: config.pool,
        cells: config.cells,
        attach: config.attach,
        relay: &config.relay,
        aws: config.policy.has_aws(),
        sockets,
    };
    let (metadata, tunnel) = MetadataNetwork::open(engine, &plan, console).await?;
    Ok((Arc::new(metadata), tunnel))
}

/// Serves the tunnels of a session's relays.
#[derive(Clone, Debug)]
pub(super) struct RelayKeeper {
    pub(super) proxy: Arc<ProxySettings>,
    pub(super) server: Arc<Server>,
    /// Told if a relay does not come back.
    pub(super) failing: mpsc::Sender<Failure>,
    pub(super) tasks: Tasks,
    pub(super) console: Console,
}

impl RelayKeeper {
    /// Serves a relay's tunnel, and those of its replacements, until the session stops.
    pub(super) async fn keep(self, metadata: Arc<MetadataNetwork>, tunnel: Tunnel) {
        let (proxy, name) = (self.proxy, metadata.relay_name.clone());
        let renewed = move |id: &str, image: &LoadedImage| {
            proxy.recorder.metrics().relay_replaced();
            proxy.reserved.put(ReservedKind::Image, &image.id, &image.name);
            proxy.reserved.put(ReservedKind::Container, id, &name);
            proxy.cells.iter().for_each(|cells| cells.renewed(id));
        };
        if let Err(error) = metadata.keep_relay(self.server, tunnel, self.tasks, self.console, renewed).await
        {
            let failure = Failure::Engine(format!("the relay does not come back: {error}").into());
            let _ = self.failing.try_send(failure);
        }
    }
}

/// What the second network needs of the config.
#[derive(Debug)]
pub(super) struct SecondPlan {
    pool: Pool,
    relay: RelaySource,
    aws: bool,
    sockets: PathBuf,
}

impl SecondPlan {
    pub(super) fn of(config: &Config, sockets: &Path) -> Self {
        let (relay, aws) = (config.relay.clone(), config.policy.has_aws());
        Self { pool: config.pool, relay, aws, sockets: sockets.into() }
    }
}

/// Makes the second network of a session whose first one is a bridge.
#[derive(Debug)]
pub(super) struct SecondOpener {
    pub(super) first: Arc<MetadataNetwork>,
    pub(super) second: Arc<OnceLock<Arc<MetadataNetwork>>>,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) wanted: SecondPlan,
    pub(super) keeper: RelayKeeper,
}

impl SecondOpener {
    /// Answers requests one after the other until the session stops. A failed attempt is repeated with the next
    /// request.
    pub(super) async fn attend(self, mut asked: mpsc::Receiver<SecondRequest>) {
        let stop = self.keeper.tasks.stop().clone();
        loop {
            let answer = tokio::select! {
                () = stop.cancelled() => return,
                answer = asked.recv() => answer,
            };
            let Some(answer) = answer else { return };
            let relay = self.ready().await;
            let _ = answer.send(relay.map_err(|error| Reason::new(error.to_string(), error.remedy())));
        }
    }

    /// The relay of the second network, once it answers.
    async fn ready(&self) -> Result<RelayAt, EngineError> {
        let second = match self.second.get() {
            Some(open) => open.clone(),
            None => self.open().await?,
        };
        second.wait_ready().await?;
        Ok(relay_at(&second))
    }

    async fn open(&self) -> Result<Arc<MetadataNetwork>, EngineError> {
        let SecondPlan { pool, relay, aws, sockets } = &self.wanted;
        let plan = EnginePlan {
            session: &self.first.network.session,
            pool: *pool,
            cells: None,
            attach: AttachMode::Second,
            relay,
            aws: *aws,
            sockets,
        };
        let keeper = &self.keeper;
        let (opened, tunnel) = self.first.open_second(&plan, &keeper.console).await?;
        let opened = Arc::new(opened);
        reserve(&keeper.proxy.reserved, &opened, &tunnel);
        // From here on the end of the session removes it.
        let _ = self.second.set(opened.clone());
        keeper.tasks.spawn("second relay", keeper.clone().keep(opened.clone(), tunnel));
        self.lifecycle.open_second(opened.network.clone(), relay_at(&opened), opened.leasable());
        Ok(opened)
    }
}

fn relay_at(metadata: &MetadataNetwork) -> RelayAt {
    RelayAt { address: metadata.relay, container_credentials: metadata.container_credentials }
}

/// How the proxy gets the second network; with the requests for it, if it is not the session's only one.
pub(super) fn second_network(
    metadata: &MetadataNetwork,
) -> (SecondNetwork, Option<mpsc::Receiver<SecondRequest>>) {
    if metadata.segment.is_none() {
        return (SecondNetwork::Open(relay_at(metadata)), None);
    }
    let (asking, asked) = mpsc::channel(64);
    (SecondNetwork::OnDemand(asking), Some(asked))
}

/// The lifecycle of the containers on a session's networks.
pub(super) fn lifecycle(
    metadata: &MetadataNetwork,
    granting: Granting,
    console: &Console,
    tasks: &Tasks,
) -> Arc<Lifecycle> {
    let networks = SessionNetworks {
        engine: metadata.engine.clone(),
        session: metadata.network.session.clone(),
        segment: metadata.segment.clone(),
        known: metadata.known.clone(),
    };
    let lifecycle = Lifecycle::new(networks, granting, console.clone(), tasks.clone());
    if metadata.segment.is_none() {
        lifecycle.open_second(metadata.network.clone(), relay_at(metadata), metadata.leasable());
    }
    lifecycle
}
