//! The engine's part of one `run` or `serve`: its network, its relay, the sweep at the start and the removal
//! at the end.
//!
//! A session is alive while its relay runs. So a sweep tells a dead session from a live one: a network of
//! ours is dead if it has no running relay and no process is about to start one.

mod relay_image;
mod sweep;

use std::collections::VecDeque;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use crate::config::{Pool, RelaySource};
use crate::console::Console;
use crate::docker::cells::{self, Cells};
use crate::docker::network::{CONTAINER_CREDENTIALS, MAGIC, Network, SHARED_NAME};
use crate::docker::relay::{Listens, Tunnel};
use crate::docker::{Engine, EngineError};
use crate::failure::{Reason, Remedy};
use crate::process::Tasks;
use crate::readiness::Listening;
use crate::server::Server;

/// How long the path container - relay - host may take to work at the start.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// A relay that died is replaced within this time; otherwise the session ends with an error.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// How long the engine may take to remove a relay that has ended, before it counts like any other container.
const RELAY_GOES_WITHIN: Duration = Duration::from_secs(5);

/// Ranges for sessions that cannot use the shared range: those of RFC 2544, which are not routed.
const SPARE: [u8; 2] = [198, 18];

/// What a session requests from the engine.
#[derive(Debug)]
pub struct EnginePlan<'a> {
    /// Eight hex digits; they become part of names and labels.
    pub session: &'a str,
    pub pool: Pool,
    /// The range from which each container gets its own network, instead of one shared by all.
    pub cells: Option<Pool>,
    pub relay: &'a RelaySource,
    /// Whether containers can get credentials of AWS.
    pub aws: bool,
    /// The folder of this user's session sockets, `SESSION.sock` each. Its `lock` is held while networks are
    /// swept and made, so that two starts do not sweep each other's.
    pub sockets: &'a Path,
}

/// A session's part of the engine.
#[derive(Debug)]
pub struct MetadataNetwork {
    pub engine: Engine,
    pub network: Network,
    pub pool: Pool,
    /// The relay's address: 169.254.169.254, or a different one if another session uses that.
    pub relay: Ipv4Addr,
    /// Whether the relay also has AWS's address of container credentials.
    pub container_credentials: bool,
    /// The relay's image and container name: reserved, like its id.
    pub image: String,
    pub image_name: String,
    pub relay_name: String,
    /// Pool addresses that are in use already, on a network that was taken over.
    taken: Vec<Ipv4Addr>,
    /// The ranges of the containers' own networks, if they have them, without that of the relay's own
    /// network.
    ranges: Option<VecDeque<Pool>>,
}

impl MetadataNetwork {
    /// The addresses that this session may lease.
    pub fn leasable(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.pool.leasable().filter(|address| !self.taken.contains(address))
    }

    /// Sweeps, makes the network, loads the relay image if it is missing and starts the relay.
    pub async fn open(
        engine: Engine,
        wanted: &EnginePlan<'_>,
        console: &Console,
    ) -> Result<(Self, Tunnel), EngineError> {
        // The lock covers the image too: a session of another build removes older images that are not in use
        // yet.
        let _lock = lock(&wanted.sockets.join("lock")).await?;
        let (image, image_name) = relay_image::ensure(&engine, wanted.relay, console).await?;
        let left = console
            .while_slow(
                "looking whether sessions that do not answer are dead",
                sweep::sweep(&engine, wanted.sockets, console),
            )
            .await?;
        let mut ranges = wanted.cells.map(|range| cell_ranges(range, wanted.session));
        let (network, pool) = match &mut ranges {
            Some(ranges) => own_network(&engine, wanted, ranges, console).await?,
            None => network(&engine, wanted, left, console).await?,
        };
        let taken = engine.addresses_on(&network.id).await?;
        let relay_name = format!("kfp-creds-relay-{}", network.session);
        let container_credentials = wanted.aws && ranges.is_none() && network.keeps_credentials_address;
        if wanted.aws && !container_credentials {
            console.notice(
                "169.254.170.2 is not ours in this session: containers get credentials of AWS from the instance \
                 metadata service (IMDS), at an address in their environment",
            );
        }
        let session = Self {
            relay: pool.relay(),
            container_credentials,
            engine,
            network,
            pool,
            taken,
            ranges,
            image,
            image_name,
            relay_name,
        };
        match session.start_relay().await {
            Ok(tunnel) => Ok((session, tunnel)),
            Err(error) => {
                let _ = session.engine.remove_network(&session.network.id).await;
                Err(error)
            }
        }
    }

    async fn start_relay(&self) -> Result<Tunnel, EngineError> {
        let listens = Listens {
            at: self.relay,
            more: self.container_credentials.then_some(CONTAINER_CREDENTIALS),
            cells: self.ranges.is_some(),
        };
        self.engine.start_relay(&self.image, &self.network, &self.relay_name, listens).await
    }

    /// The networks of one container each, if configured; starts a task that keeps some ready.
    pub fn cells(&self, relay: &Tunnel, listening: Listening, tasks: &Tasks) -> Option<Cells> {
        let ranges = self.ranges.clone()?;
        let (engine, session) = (self.engine.clone(), self.network.session.clone());
        let cells =
            Cells::new(engine, session, ranges.into_iter(), &relay.container, listening, tasks.clone());
        tasks.spawn("cells", cells.clone().keep_ready());
        Some(cells)
    }

    /// Serves the tunnel and replaces the relay whenever it dies, until the session stops. Calls `renewed`
    /// with the id of every relay after the first.
    pub async fn keep_relay(
        self: Arc<Self>,
        server: Arc<Server>,
        first: Tunnel,
        tasks: Tasks,
        console: Console,
        renewed: impl Fn(&str) + Send + 'static,
    ) -> Result<(), EngineError> {
        let mut tunnel = first;
        loop {
            let relay = tunnel.container.clone();
            tokio::select! {
                () = tasks.stop().cancelled() => return Ok(()),
                () = server.clone().serve_tunnel(tunnel.io) => {}
            }
            let died = Instant::now();
            tracing::debug!(relay, "the relay is gone; starting another");
            tunnel = self.replace_relay(&relay, &tasks).await?;
            renewed(&tunnel.container);
            console
                .notice(format!("the relay died and was replaced after {} ms", died.elapsed().as_millis()));
        }
    }

    /// Removes the old relay first: the new one needs its address and its name.
    async fn replace_relay(&self, old: &str, tasks: &Tasks) -> Result<Tunnel, EngineError> {
        let deadline = Instant::now() + BACK_WITHIN;
        loop {
            let attempt = async {
                let _ = self.engine.remove(old).await;
                self.start_relay().await
            };
            // An engine that is shutting down may leave a call unanswered.
            let error = match timeout_at(deadline, attempt).await {
                Ok(Ok(tunnel)) => return Ok(tunnel),
                Ok(Err(error)) => error,
                Err(_) => EngineError::silent("start the relay"),
            };
            if Instant::now() > deadline || tasks.stop().is_cancelled() {
                return Err(error);
            }
            tracing::debug!(%error, "no relay yet");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a request has come all the way from the container network to this process.
    pub async fn wait_ready(&self, server: &Server) -> Result<(), EngineError> {
        let ready = tokio::time::timeout(READY_WITHIN, server.probed()).await;
        ready.map_err(|_| {
            EngineError::Broken(
                "wait for the relay",
                Reason::new(
                    format!("no probe came through in {} s", READY_WITHIN.as_secs()),
                    Remedy::OpenFirewall,
                ),
            )
        })
    }

    /// Removes the network, once the relay has seen the end of its stdin. A network with running containers
    /// stays: without it their packets would go to the default route. Stopped containers are disconnected:
    /// they could not be started again on a network that is gone.
    pub async fn close(&self) -> Result<(), EngineError> {
        let relay = self.relay_name.as_str();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match self.engine.look(relay, &self.network.id).await {
                Err(error) if error.is_gone() => break,
                Err(error) if !self.engine.ping().await => return Err(error),
                Ok(_) | Err(_) => {}
            }
            if Instant::now() > deadline {
                self.engine.remove(relay).await?;
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let networks = match self.ranges {
            None => vec![self.network.clone()],
            Some(_) => {
                let all = self.engine.our_networks().await?;
                all.into_iter().filter(|network| network.session == self.network.session).collect()
            }
        };
        let removals = networks.iter().map(|network| self.remove_network(network));
        join_all(removals).await.into_iter().collect()
    }

    async fn remove_network(&self, network: &Network) -> Result<(), EngineError> {
        let running = detach_stopped(&self.engine, network).await?;
        if running > 0 {
            let why = format!("{running} containers still run on it; the next session removes it");
            return Err(EngineError::Broken("remove our network", why.into()));
        }
        self.engine.remove_ended_network(&network.id, || std::future::ready(())).await
    }
}

/// Disconnects stopped containers from a network of ours, and returns the number of running ones. Waits until
/// the engine has removed an ended relay: Podman keeps the address of a container that is disconnected during
/// its removal for as long as the network exists.
async fn detach_stopped(engine: &Engine, network: &Network) -> Result<usize, EngineError> {
    let deadline = Instant::now() + RELAY_GOES_WITHIN;
    let members = loop {
        let members = engine.containers_on(network).await?;
        if !members.iter().any(|member| member.relay && !member.running) || Instant::now() > deadline {
            break members;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let (running, stopped): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| member.running);
    for member in stopped {
        if let Err(error) = engine.disconnect_container(&network.id, &member.id).await {
            tracing::debug!(%error, container = member.id, "could not detach");
        }
    }
    Ok(running.len())
}

/// An advisory lock on a file of ours: held until dropped or until the process ends.
async fn lock(path: &Path) -> Result<File, EngineError> {
    let path = path.to_owned();
    let locked = tokio::task::spawn_blocking(move || {
        let file = File::create(path)?;
        file.lock()?;
        std::io::Result::Ok(file)
    });
    let broken = |why: String| EngineError::Broken("take the start-up lock", why.into());
    locked.await.map_err(|e| broken(e.to_string()))?.map_err(|e| broken(e.to_string()))
}

/// The ranges in the order in which a session uses them: each session begins elsewhere, so that two seldom
/// try the same range.
fn cell_ranges(range: Pool, session: &str) -> VecDeque<Pool> {
    let mut ranges: VecDeque<Pool> = cells::of(range).collect();
    let start = usize::from_str_radix(session, 16).unwrap_or_default() % ranges.len().max(1);
    ranges.rotate_left(start);
    ranges
}

/// The relay's own network, if every container has its own: no container joins it.
async fn own_network(
    engine: &Engine,
    wanted: &EnginePlan<'_>,
    ranges: &mut VecDeque<Pool>,
    console: &Console,
) -> Result<(Network, Pool), EngineError> {
    let name = format!("{SHARED_NAME}-{}", wanted.session);
    let mut error = EngineError::Broken("make a network", "network.cells has no room for one".into());
    for _ in 0..ranges.len() {
        let Some(range) = ranges.pop_front() else { break };
        match engine.make_cell(&name, range, wanted.session).await {
            Ok(network) => {
                console.notice(
                    "isolation: every container gets a network of its own, on which its clients find the relay by \
                     environment and hosts entries; every client but PHP's follows those",
                );
                return Ok((network, range));
            }
            Err(taken) if taken.is_range_taken() => {
                error = taken;
                ranges.push_back(range);
            }
            // The range may be in use although no holder is visible; a second refusal has another reason.
            Err(refused) if refused.is_refusal() && !error.is_refusal() => error = refused,
            Err(error) => return Err(error),
        }
    }
    Err(error)
}

/// The shared network with the magic address if it is free, else a small network of this session alone.
async fn network(
    engine: &Engine,
    wanted: &EnginePlan<'_>,
    left: Vec<Network>,
    console: &Console,
) -> Result<(Network, Pool), EngineError> {
    let own_name = format!("{SHARED_NAME}-{}", wanted.session);
    let name = if wanted.pool.relay() == MAGIC { SHARED_NAME } else { &own_name };
    let made = match engine.make_network(name, wanted.pool, wanted.session).await {
        // A network of that name exists, with other addresses.
        Err(EngineError::NameTaken(_)) if name != own_name => {
            engine.make_network(&own_name, wanted.pool, wanted.session).await
        }
        made => made,
    };
    let (error, owner) = match made {
        Ok(network) => return Ok((network, wanted.pool)),
        Err(EngineError::RangeTaken(holder)) => {
            let owner = format!("network {holder} holds its range");
            (EngineError::RangeTaken(holder), owner)
        }
        // Without a visible holder, the range may be in use by something outside the engine.
        Err(error) if error.is_refusal() => {
            (error, "something other than a network of the engine holds its range".into())
        }
        Err(error) => return Err(error),
    };
    // Take over the network of a dead session, which stayed because containers still run on it.
    if let Some(network) = left.into_iter().find(|network| wanted.pool.is(&network.subnet)) {
        return Ok((network, wanted.pool));
    }
    for third in 0..=255 {
        let pool = Pool { network: Ipv4Addr::new(SPARE[0], SPARE[1], third, 0), prefix: 24 };
        match engine.make_network(&own_name, pool, wanted.session).await {
            Ok(network) => {
                console.notice(format!(
                    "169.254.169.254 is not ours in this session ({owner}): containers find {} by environment \
                     and hosts entries, which every client but PHP's follows",
                    pool.relay()
                ));
                return Ok((network, pool));
            }
            Err(taken) if taken.is_range_taken() => {}
            // Refused twice without a holder of the range: the engine's first error is returned.
            Err(again) if again.is_refusal() && error.is_refusal() => return Err(error),
            Err(again) => return Err(again),
        }
    }
    Err(error)
}

/// Tests whether `range` is free, by making a network of it and removing it again; the error of
/// [`Engine::make_network`] otherwise. Holds the lock, so that a start by the same user does not collide with
/// it.
pub async fn try_range(engine: &Engine, wanted: &EnginePlan<'_>, range: Pool) -> Result<(), EngineError> {
    let _lock = lock(&wanted.sockets.join("lock")).await?;
    let name = format!("{SHARED_NAME}-{}", wanted.session);
    let made = match wanted.cells {
        Some(_) => engine.make_cell(&name, range, wanted.session).await?,
        None => engine.make_network(&name, range, wanted.session).await?,
    };
    engine.remove_network(&made.id).await
}
