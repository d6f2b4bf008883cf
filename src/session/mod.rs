//! The engine's part of one `run` or `serve`: its networks, their relays, the sweep at the start and the
//! removal at the end.
//!
//! A session is alive while a relay of it runs. So a sweep tells a dead session from a live one: a session is
//! dead if no relay runs on any of its networks and no process is about to start one.

mod networks;
mod relay_image;
mod replacing;
mod sweep;

use std::collections::VecDeque;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::config::{AttachMode, Pool, RelaySource};
use crate::console::Console;
use crate::docker::cells::Cells;
use crate::docker::members::KnownMembers;
use crate::docker::network::{CONTAINER_CREDENTIALS, Network};
use crate::docker::relay::{Listens, ListensOn, Tunnel};
use crate::docker::segment::Segment;
use crate::docker::{Engine, EngineError};
use crate::failure::{Reason, Remedy};
use crate::process::Tasks;
use crate::readiness::Listening;
use crate::server::TunnelEnd;

pub use networks::try_range;
pub use relay_image::LoadedImage;

/// How long the path container - relay - host may take to work at the start.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// A relay that died is replaced within this time; otherwise the session ends with an error.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// How long the engine may take to remove a relay that has ended, before it counts like any other container.
const RELAY_GOES_WITHIN: Duration = Duration::from_secs(5);

/// What a session requests from the engine.
#[derive(Debug)]
pub struct EnginePlan<'a> {
    /// Eight hex digits; they become part of names and labels.
    pub session: &'a str,
    pub pool: Pool,
    /// The range from which each container gets its own network, instead of one shared by all.
    pub cells: Option<Pool>,
    /// How containers that name no network are attached.
    pub attach: AttachMode,
    pub relay: &'a RelaySource,
    /// Whether containers can get credentials of AWS.
    pub aws: bool,
    /// The folder of this user's session sockets, `SESSION.sock` each. Its `lock` is held while networks are
    /// swept and made, so that two starts do not sweep each other's.
    pub sockets: &'a Path,
}

/// One of a session's networks, with its relay: the first one, or the second network.
#[derive(Debug)]
pub struct MetadataNetwork {
    pub engine: Engine,
    pub network: Network,
    pub pool: Pool,
    /// The relay's address: 169.254.169.254, or a different one if that is not in the range of the network.
    pub relay: Ipv4Addr,
    /// Whether the relay also has AWS's address of container credentials.
    pub container_credentials: bool,
    /// Set if containers have link-local addresses on `network`.
    pub segment: Option<Segment>,
    /// The containers that this program put on its networks.
    pub known: KnownMembers,
    /// Where the relay listens.
    pub listening: Listening,
    /// The image and the name of the relay's container: reserved, like its id.
    pub image: LoadedImage,
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

    /// Loads the relay image if it is missing, sweeps, makes the first network and starts its relay.
    pub async fn open(
        engine: Engine,
        wanted: &EnginePlan<'_>,
        console: &Console,
    ) -> Result<(Self, Tunnel), EngineError> {
        // The lock covers the image too: a session of another build removes older images that are not in use
        // yet.
        let lock_file = wanted.sockets.join("lock");
        let _lock = lock(&lock_file).await?;
        let image = LoadedImage::load(&engine, wanted.relay, lock_file, console).await?;
        let left = console
            .while_slow(
                "looking whether sessions that do not answer are dead",
                sweep::sweep(&engine, wanted.sockets, console),
            )
            .await?;
        if let Some(segment) = networks::segment(&engine, wanted, console).await? {
            return Self::on_segment(engine, segment, image).started().await;
        }
        let mut ranges = wanted.cells.map(|range| networks::cell_ranges(range, wanted.session));
        let (network, pool) = match &mut ranges {
            Some(ranges) => networks::own_network(&engine, wanted, ranges, console).await?,
            None => networks::network(&engine, wanted, left, console).await?,
        };
        Self::on_network(engine, (network, pool), ranges, wanted.aws, image, console).await?.started().await
    }

    /// Makes the second network, and starts its relay, for containers that cannot have their address on this
    /// one.
    pub async fn open_second(
        &self,
        wanted: &EnginePlan<'_>,
        console: &Console,
    ) -> Result<(Self, Tunnel), EngineError> {
        let _lock = lock(&wanted.sockets.join("lock")).await?;
        let network = networks::network(&self.engine, wanted, vec![], console).await?;
        let (engine, image) = (self.engine.clone(), self.image.clone());
        let mut second = Self::on_network(engine, network, None, wanted.aws, image, console).await?;
        second.relay_name += "-second";
        second.known = self.known.clone();
        second.started().await
    }

    fn on_segment(engine: Engine, segment: Segment, image: LoadedImage) -> Self {
        let network = segment.network().clone();
        Self {
            relay_name: format!("kfp-creds-relay-{}", network.session),
            relay: segment.relay(),
            container_credentials: segment.container_credentials(),
            pool: segment.range(),
            segment: Some(segment),
            known: KnownMembers::default(),
            listening: Listening::default(),
            taken: vec![],
            ranges: None,
            engine,
            network,
            image,
        }
    }

    async fn on_network(
        engine: Engine,
        (network, pool): (Network, Pool),
        ranges: Option<VecDeque<Pool>>,
        aws: bool,
        image: LoadedImage,
        console: &Console,
    ) -> Result<Self, EngineError> {
        let taken = engine.addresses_on(&network.id).await?;
        let container_credentials = aws && ranges.is_none() && network.keeps_credentials_address;
        if aws && !container_credentials {
            console.notice(
                "169.254.170.2 is not ours in this session: containers get credentials of AWS from the instance \
                 metadata service (IMDS), at an address in their environment",
            );
        }
        let known = KnownMembers::default();
        if !taken.is_empty() {
            // The network of a dead session, on which its containers still run.
            engine.containers_on(&network).await?.iter().for_each(|member| known.add(&member.id));
        }
        Ok(Self {
            relay_name: format!("kfp-creds-relay-{}", network.session),
            relay: pool.relay(),
            container_credentials,
            segment: None,
            known,
            listening: Listening::default(),
            engine,
            network,
            pool,
            taken,
            ranges,
            image,
        })
    }

    /// Starts the first relay; removes the network if that fails.
    async fn started(self) -> Result<(Self, Tunnel), EngineError> {
        match self.start_relay(&self.image).await {
            Ok(tunnel) => Ok((self, tunnel)),
            Err(error) => {
                if self.is_ours() {
                    let _ = self.engine.remove_network(&self.network.id).await;
                }
                Err(error)
            }
        }
    }

    /// Whether the network was made by a session; the default bridge was not.
    fn is_ours(&self) -> bool {
        !self.segment.as_ref().is_some_and(Segment::is_default_bridge)
    }

    async fn start_relay(&self, image: &LoadedImage) -> Result<Tunnel, EngineError> {
        let on = match (&self.segment, &self.ranges) {
            (Some(segment), _) if segment.is_default_bridge() => ListensOn::DefaultBridge,
            (Some(_), _) => ListensOn::OwnBridge,
            (None, Some(_)) => ListensOn::Cells,
            (None, None) => ListensOn::Internal,
        };
        let more = self.container_credentials.then_some(CONTAINER_CREDENTIALS);
        let listens = Listens { at: self.relay, more, on };
        self.engine.start_relay(&image.id, &self.network, &self.relay_name, listens, &self.known).await
    }

    /// The end of its relay's tunnel, for the server.
    fn tunnel_end(&self) -> TunnelEnd {
        // With a network for each container, the relay itself compares a caller with its network.
        let range = self.ranges.is_none().then_some(self.pool);
        TunnelEnd { relay: self.relay, range, listening: self.listening.clone() }
    }

    /// The networks of one container each, if configured; starts a task that keeps some ready.
    pub fn cells(&self, relay: &Tunnel, tasks: &Tasks) -> Option<Cells> {
        let ranges = self.ranges.clone()?;
        let (engine, session) = (self.engine.clone(), self.network.session.clone());
        let listening = self.listening.clone();
        let cells =
            Cells::new(engine, session, ranges.into_iter(), &relay.container, listening, tasks.clone());
        tasks.spawn("cells", cells.clone().keep_ready());
        Some(cells)
    }

    /// Waits until a request has come all the way from the container network to this process.
    pub async fn wait_ready(&self) -> Result<(), EngineError> {
        let ready = tokio::time::timeout(READY_WITHIN, self.listening.wait(self.relay)).await;
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
        if !self.is_ours() {
            return self.leave_default_bridge().await;
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

    /// Takes the link-local addresses from the session's stopped containers on the default bridge: a later
    /// session may give them to others.
    async fn leave_default_bridge(&self) -> Result<(), EngineError> {
        let members = self.engine.containers_of(&self.network.session).await?;
        for member in members.iter().filter(|member| !member.running && !member.relay) {
            self.engine.clear_default_bridge(&member.id).await?;
        }
        Ok(())
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
        if let Err(error) = engine.detach_stopped(network, &member.id).await {
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
