//! One `run` or `serve` as the engine sees it: its network, its relay, and what is swept and left.
//!
//! A session is alive while its relay runs. That is how a sweep tells a dead session from a live neighbour: a
//! network of ours without a running relay on it, and without somebody who is about to start one, is nobody's.

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use crate::config::Pool;
use crate::docker::image::Relay;
use crate::docker::network::{MAGIC, Member, Network, SHARED_NAME};
use crate::docker::relay::Tunnel;
use crate::docker::{Engine, EngineError};
use crate::observe::{Line, Voice};
use crate::process::Tasks;
use crate::server::Server;

/// How long the way container - relay - host may take to stand at the start.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// A relay that died is replaced within this, or the session says that it cannot go on.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// How long a session that we cannot ask may be without a relay before it counts as dead.
const GAP: Duration = Duration::from_secs(2);

/// How long the engine may take to give up the endpoints of what has ended (seen: up to 4 s on 20.10 with a
/// pending name look-up).
const ENDPOINTS_WITHIN: Duration = Duration::from_secs(8);
const MISCOUNTED_AFTER: Duration = Duration::from_secs(1);

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
    /// Where sessions of this user listen, each at `SESSION.sock`.
    pub sockets: &'a Path,
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
        let left = sweep(&engine, wanted.sockets, voice).await?;
        let (network, pool) = network(&engine, wanted, left, voice).await?;
        let taken = engine.addresses_on(&network.id).await?;
        let relay_name = format!("kfp-creds-relay-{}", network.session);
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
            tokio::select! {
                () = tasks.stop().cancelled() => return Ok(()),
                () = server.clone().serve_tunnel(tunnel.io) => {}
            }
            let died = Instant::now();
            tracing::debug!(relay, "the relay is gone; starting another");
            tunnel = self.replace_relay(&relay, &tasks).await?;
            renewed(&tunnel.container);
            voice.notice(format!("the relay died and was replaced after {} ms", died.elapsed().as_millis()));
        }
    }

    /// The old one has to be gone first: the new one takes its address and its name.
    async fn replace_relay(&self, old: &str, tasks: &Tasks) -> Result<Tunnel, EngineError> {
        let deadline = Instant::now() + BACK_WITHIN;
        loop {
            let attempt = async {
                let _ = self.engine.remove(old).await;
                self.start_relay().await
            };
            // An engine on its way down may leave a call without an answer.
            let error = match timeout_at(deadline, attempt).await {
                Ok(Ok(tunnel)) => return Ok(tunnel),
                Ok(Err(error)) => error,
                Err(_) => EngineError::Broken("start the relay", "the engine does not answer".into()),
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
    /// stays: taking it from under them would send their packets to the default route. Stopped ones are taken
    /// off it: connected to a network that is gone they could not be started again.
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
        let running = detach_stopped(&self.engine, &self.network).await?;
        if running > 0 {
            let why = format!("{running} containers still run on it; the next session removes it");
            return Err(EngineError::Broken("remove our network", why));
        }
        self.remove_network().await
    }

    /// A container that has ended, and the relay itself, may hold their endpoints for a moment longer: the
    /// engine gives them up behind the `die` event. It also miscounts at times (seen on 20.10 under load): it
    /// lists nobody on the network and does not remove it, until it restarts.
    async fn remove_network(&self) -> Result<(), EngineError> {
        let began = Instant::now();
        let mut listed = began;
        loop {
            match self.engine.remove_network(&self.network.id).await {
                Err(error) if error.is_in_use() && began.elapsed() < ENDPOINTS_WITHIN => {}
                outcome => return outcome,
            }
            if !self.engine.addresses_on(&self.network.id).await?.is_empty() {
                listed = Instant::now();
            } else if listed.elapsed() > MISCOUNTED_AFTER {
                let why =
                    "the engine counts somebody there whom it does not list; the next session uses it again";
                return Err(EngineError::Broken("remove our network", why.into()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Takes what does not run off a network of ours, and says how many run.
async fn detach_stopped(engine: &Engine, network: &Network) -> Result<usize, EngineError> {
    let (running, stopped): (Vec<_>, Vec<_>) =
        engine.containers_on(network).await?.into_iter().partition(|member| member.running);
    for member in stopped {
        if let Err(error) = engine.disconnect_container(&network.id, &member.id).await {
            tracing::debug!(%error, container = member.id, "could not detach");
        }
    }
    Ok(running.len())
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

/// Removes what dead sessions left, and gives the networks that have to stay because containers run on
/// them. Goes by membership of a network that carries our label: labels of containers and images can be
/// copied, labels of networks cannot. What cannot be removed now is no reason not to start.
async fn sweep(engine: &Engine, sockets: &Path, voice: &Voice) -> Result<Vec<Network>, EngineError> {
    let mut left = vec![];
    let mut alive = vec![];
    for network in engine.our_networks().await? {
        if is_alive(engine, &network, sockets).await? {
            alive.push(network.session);
            continue;
        }
        match sweep_network(engine, &network).await {
            Ok(stopped) => voice.notice(format!(
                "swept session {}: its network, {stopped} of its containers stopped",
                network.session
            )),
            Err(error) => {
                tracing::debug!(%error, network = network.name, "a network of ours stays for now");
                left.push(network);
            }
        }
    }
    let held =
        |session: &str| alive.iter().chain(left.iter().map(|network| &network.session)).any(|s| s == session);
    for socket in dead_sockets(sockets).await {
        if socket.file_stem().and_then(OsStr::to_str).is_some_and(|session| !held(session)) {
            let _ = std::fs::remove_file(&socket);
        }
    }
    Ok(left)
}

/// Stops what a dead `run` left and removes its network; how many were stopped.
async fn sweep_network(engine: &Engine, network: &Network) -> Result<usize, EngineError> {
    let members = engine.containers_on(network).await?;
    let ours = |member: &&Member| member.running && member.session.as_ref() == Some(&network.session);
    let stops = members.iter().filter(ours).filter(|_| network.mode == "run");
    let stops = stops.map(|member| engine.stop(&member.id, 1));
    let stopped = join_all(stops).await.iter().filter(|stopped| stopped.is_ok()).count();
    detach_stopped(engine, network).await?;
    engine.remove_network(&network.id).await.map(|()| stopped)
}

/// A session is alive while its relay runs. For a moment it may have none: while it starts, and while a relay
/// that died is being replaced. Its socket tells then; where that is another user's, a second look does.
async fn is_alive(engine: &Engine, network: &Network, sockets: &Path) -> Result<bool, EngineError> {
    let socket = sockets.join(format!("{}.sock", network.session));
    let deadline = Instant::now() + GAP;
    loop {
        let relays = engine.running_relays().await?;
        let members = engine.containers_on(network).await?;
        if members.iter().any(|member| member.running && relays.iter().any(|(id, _)| *id == member.id)) {
            return Ok(true);
        }
        match UnixStream::connect(&socket).await {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(false),
            Err(_) if Instant::now() > deadline => return Ok(false),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Sockets on which nobody listens.
async fn dead_sockets(folder: &Path) -> Vec<PathBuf> {
    let mut dead = vec![];
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let socket = path.extension().is_some_and(|extension| extension == "sock" || extension == "ctl");
        if socket && UnixStream::connect(&path).await.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
        {
            dead.push(path);
        }
    }
    dead
}

/// The shared network with the magic address where it can be had, else a small one of our own.
async fn network(
    engine: &Engine,
    wanted: &Wanted<'_>,
    left: Vec<Network>,
    voice: &Voice,
) -> Result<(Network, Pool), EngineError> {
    let own_name = format!("{SHARED_NAME}-{}", wanted.session);
    let name = if wanted.pool.relay() == MAGIC { SHARED_NAME } else { &own_name };
    let made = engine.make_network(name, wanted.pool, wanted.session, wanted.mode).await;
    let error = match made {
        Ok(network) => return Ok((network, wanted.pool)),
        Err(error) if error.is_overlap() => error,
        Err(error) => return Err(error),
    };
    // One that a dead session left, because containers still run on it, is taken over.
    if let Some(network) = left.into_iter().find(|network| wanted.pool.is(&network.subnet)) {
        return Ok((network, wanted.pool));
    }
    let owner = engine.owner_of(wanted.pool).await;
    let owner = owner.map_or_else(|| error.to_string(), |name| format!("network {name} holds its range"));
    for third in 0..=255 {
        let pool = Pool { network: Ipv4Addr::new(SPARE[0], SPARE[1], third, 0), prefix: 24 };
        match engine.make_network(&own_name, pool, wanted.session, wanted.mode).await {
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
