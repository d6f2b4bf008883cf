//! One `run` or `serve` as the engine sees it: its network, its relay, and what is swept and left.
//!
//! A session is alive exactly while its relay runs. That is how a sweep tells a dead session from a live
//! neighbour: a network of ours without a running relay on it belongs to nobody.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Pool;
use crate::docker::image::Relay;
use crate::docker::network::{Network, SHARED_NAME};
use crate::docker::relay::Tunnel;
use crate::docker::{Engine, EngineError};
use crate::observe::{Line, Voice};
use crate::process::Tasks;
use crate::server::Server;

/// How long the way container - relay - host may take to stand at the start.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// A relay that died is replaced within this, or the session says that it cannot go on.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// Ranges for sessions that cannot have the shared one: RFC 2544's, which nobody routes.
const SPARE: [u8; 2] = [198, 18];

/// What is wanted of the engine.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Eight hex digits; they become part of names and labels.
    pub session: &'a str,
    /// `run` or `serve`.
    pub mode: &'a str,
    pub pool: Pool,
    /// Held while networks are swept and made, so that two starts do not sweep each other.
    pub lock: &'a Path,
}

/// A session's part of the engine.
#[derive(Debug)]
pub struct Session {
    pub engine: Engine,
    pub network: Network,
    pub pool: Pool,
    /// The relay's address: 169.254.169.254, or another one beside a session that has it.
    pub relay: Ipv4Addr,
    /// The relay's image and container name: reserved, like its id.
    pub image: String,
    pub image_name: String,
    pub relay_name: String,
    /// Addresses of the pool that others hold already, on a network that was taken over.
    taken: Vec<Ipv4Addr>,
}

impl Session {
    /// The addresses that this session may lease.
    pub fn leasable(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.pool.leasable().filter(|address| !self.taken.contains(address))
    }

    /// Sweeps, makes the network, loads the relay image where it is missing and starts the relay.
    pub async fn open(
        engine: Engine,
        wanted: &Wanted<'_>,
        voice: &Voice,
    ) -> Result<(Self, Tunnel), EngineError> {
        // The image as well: a session of another build removes older ones that are not in use yet.
        let _lock = lock(wanted.lock).await?;
        let (image, image_name) = relay_image(&engine, voice).await?;
        sweep(&engine, voice).await?;
        let (network, pool) = network(&engine, wanted, voice).await?;
        let taken = engine.addresses_on(&network.id).await?;
        let relay_name = format!("kfp-creds-relay-{}", wanted.session);
        let session =
            Self { relay: pool.relay(), engine, network, pool, taken, image, image_name, relay_name };
        match session.start_relay().await {
            Ok(tunnel) => Ok((session, tunnel)),
            Err(error) => {
                let _ = session.engine.remove_network(&session.network.id).await;
                Err(error)
            }
        }
    }

    async fn start_relay(&self) -> Result<Tunnel, EngineError> {
        self.engine.start_relay(&self.image, &self.network, self.relay, &self.relay_name).await
    }

    /// Serves the tunnel and replaces the relay whenever it dies, until the session stops. `renewed` is
    /// told the id of every relay after the first.
    pub async fn keep_relay(
        self: Arc<Self>,
        server: Arc<Server>,
        first: Tunnel,
        tasks: Tasks,
        voice: Voice,
        renewed: impl Fn(&str) + Send + 'static,
    ) -> Result<(), EngineError> {
        let mut tunnel = first;
        loop {
            let relay = tunnel.container.clone();
            let died = Instant::now();
            tokio::select! {
                () = tasks.stop().cancelled() => return Ok(()),
                () = server.clone().serve_tunnel(tunnel.io) => {}
            }
            tracing::warn!(relay, "the relay is gone; starting another");
            tunnel = self.replace_relay(&relay, &tasks).await?;
            renewed(&tunnel.container);
            voice.notice(format!("the relay died and was replaced after {} ms", died.elapsed().as_millis()));
        }
    }

    /// The old one has to be gone first: the new one takes its address and its name.
    async fn replace_relay(&self, old: &str, tasks: &Tasks) -> Result<Tunnel, EngineError> {
        let deadline = Instant::now() + BACK_WITHIN;
        loop {
            let _ = self.engine.remove(old).await;
            let error = match self.start_relay().await {
                Ok(tunnel) => return Ok(tunnel),
                Err(error) => error,
            };
            if Instant::now() > deadline || tasks.stop().is_cancelled() {
                return Err(error);
            }
            tracing::debug!(%error, "no relay yet");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a request went the whole way from the container network to this process.
    pub async fn wait_ready(&self, server: &Server) -> Result<(), EngineError> {
        let ready = tokio::time::timeout(READY_WITHIN, server.probed()).await;
        ready.map_err(|_| {
            EngineError::Broken(
                "wait for the relay",
                format!("no probe came through in {} s", READY_WITHIN.as_secs()),
            )
        })
    }

    /// Removes the network, once the relay has seen the end of its stdin. With running containers on it, it
    /// stays: taking it from under them would send their packets to the default route.
    pub async fn close(&self) -> Result<(), EngineError> {
        let relay = self.relay_name.as_str();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !matches!(self.engine.look(relay, &self.network.id).await, Err(error) if error.is_gone()) {
            if Instant::now() > deadline {
                self.engine.remove(relay).await?;
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let left = self.engine.containers_on(&self.network.id).await?;
        let running = left.iter().filter(|(_, running)| *running).count();
        if running > 0 {
            let why = format!("{running} containers still run on it; the next session removes it");
            return Err(EngineError::Broken("remove our network", why));
        }
        self.engine.remove_network(&self.network.id).await
    }
}

/// The image's id and name.
async fn relay_image(engine: &Engine, voice: &Voice) -> Result<(String, String), EngineError> {
    let made = tokio::task::spawn_blocking(Relay::of_this_program).await;
    let broken = |why: String| EngineError::Broken("make the relay image", why);
    let relay = made.map_err(|e| broken(e.to_string()))?.map_err(|e| broken(e.to_string()))?;
    if let Some(id) = engine.find_relay_image(&relay).await? {
        return Ok((id, relay.reference()));
    }
    voice.say(Line::Progress { text: "loading the relay image into the engine (once per build)" });
    Ok((engine.load_relay_image(&relay).await?, relay.reference()))
}

/// An advisory lock on a file of ours: held until dropped, gone when the process is.
async fn lock(path: &Path) -> Result<File, EngineError> {
    let path = path.to_owned();
    let locked = tokio::task::spawn_blocking(move || {
        let file = File::create(path)?;
        file.lock()?;
        std::io::Result::Ok(file)
    });
    let broken = |why: String| EngineError::Broken("take the start-up lock", why);
    locked.await.map_err(|e| broken(e.to_string()))?.map_err(|e| broken(e.to_string()))
}

/// Removes what dead sessions left. Goes by membership of a network that carries our label: labels of
/// containers and images can be copied, labels of networks cannot.
async fn sweep(engine: &Engine, voice: &Voice) -> Result<(), EngineError> {
    let relays = engine.running_relays().await?;
    for network in engine.our_networks().await? {
        let members = engine.containers_on(&network.id).await?;
        if members.iter().any(|(id, running)| *running && relays.iter().any(|(relay, _)| relay == id)) {
            continue; // a live neighbour
        }
        let mut stopped = 0_u32;
        for (id, running) in &members {
            if *running && network.mode == "run" {
                engine.stop(id, 1).await?;
                stopped += 1;
            }
            if !*running || network.mode == "run" {
                engine.disconnect_container(&network.id, id).await?;
            }
        }
        match engine.remove_network(&network.id).await {
            Ok(()) => voice.notice(format!(
                "swept session {}: its network, {stopped} of its containers stopped",
                network.session
            )),
            Err(error) => tracing::debug!(%error, network = network.name, "a network of ours stays for now"),
        }
    }
    Ok(())
}

/// The shared network with the magic address where it can be had, else a small one of our own.
async fn network(
    engine: &Engine,
    wanted: &Wanted<'_>,
    voice: &Voice,
) -> Result<(Network, Pool), EngineError> {
    let made = engine.make_network(SHARED_NAME, wanted.pool, wanted.session, wanted.mode).await;
    let error = match made {
        Ok(network) => return Ok((network, wanted.pool)),
        Err(error) if error.is_overlap() => error,
        Err(error) => return Err(error),
    };
    if let Some(left) = take_over(engine, wanted.pool).await? {
        return Ok((left, wanted.pool));
    }
    let owner = engine.owner_of(wanted.pool).await;
    let owner = owner.map_or_else(|| error.to_string(), |name| format!("network {name} holds its range"));
    let name = format!("{SHARED_NAME}-{}", wanted.session);
    for third in 0..=255 {
        let pool = Pool { network: Ipv4Addr::new(SPARE[0], SPARE[1], third, 0), prefix: 24 };
        match engine.make_network(&name, pool, wanted.session, wanted.mode).await {
            Ok(network) => {
                voice.notice(format!(
                    "169.254.169.254 is not ours in this session ({owner}): containers find {} by environment \
                     and hosts entries, which every client but PHP's follows",
                    pool.relay()
                ));
                return Ok((network, pool));
            }
            Err(error) if error.is_overlap() => {}
            Err(error) => return Err(error),
        }
    }
    Err(error)
}

/// A shared network that a dead session left because containers still run on it.
async fn take_over(engine: &Engine, pool: Pool) -> Result<Option<Network>, EngineError> {
    let relays = engine.running_relays().await?;
    let ours = engine.our_networks().await?.into_iter().find(|n| n.name == SHARED_NAME && pool.is(&n.subnet));
    let Some(network) = ours else { return Ok(None) };
    let members = engine.containers_on(&network.id).await?;
    let alive = members.iter().any(|(id, _)| relays.iter().any(|(relay, _)| relay == id));
    Ok((!alive).then_some(network))
}
