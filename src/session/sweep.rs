//! What dead sessions left at the engine: found by the labels of networks, and taken away.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::{BACK_WITHIN, detach_stopped};
use crate::docker::network::{Member, Network};
use crate::docker::{Engine, EngineError};
use crate::observe::Voice;

/// How long a session that we cannot ask may be without a relay before it counts as dead. Where containers of it
/// run that would be stopped, it is given all the time that a relay may take to come back.
const GAP: Duration = Duration::from_secs(2);

/// Removes what dead sessions left, and gives the networks that have to stay because containers run on
/// them. Goes by membership of a network that carries our label: labels of containers and images can be
/// copied, labels of networks cannot. What cannot be removed now is no reason not to start.
pub(super) async fn sweep(
    engine: &Engine,
    sockets: &Path,
    voice: &Voice,
) -> Result<Vec<Network>, EngineError> {
    let mut left = vec![];
    let mut alive = vec![];
    let mut sessions: BTreeMap<String, Vec<Network>> = BTreeMap::new();
    for network in engine.our_networks().await? {
        sessions.entry(network.session.clone()).or_default().push(network);
    }
    for (session, networks) in sessions {
        if is_alive(engine, &networks, sockets).await? {
            alive.push(session);
            continue;
        }
        let swept = join_all(networks.iter().map(|network| sweep_network(engine, network))).await;
        let (mut gone, mut stopped) = (0, 0);
        for (network, outcome) in networks.into_iter().zip(swept) {
            match outcome {
                Ok(ended) => (gone, stopped) = (gone + 1, stopped + ended),
                Err(error) => {
                    tracing::debug!(%error, network = network.name, "a network of ours stays for now");
                    left.push(network);
                }
            }
        }
        if gone > 0 {
            let what = if gone == 1 { "its network".into() } else { format!("{gone} of its networks") };
            voice.notice(format!("swept session {session}: {what}, {stopped} of its containers stopped"));
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
    let ours = members.iter().filter(|member| stops(member, network));
    let stops = ours.map(|member| engine.stop(&member.id, 1));
    let stopped = join_all(stops).await.iter().filter(|stopped| stopped.is_ok()).count();
    detach_stopped(engine, network).await?;
    engine.remove_network(&network.id).await.map(|()| stopped)
}

/// Whether a container ends with the session of `network`: those of a `run` do.
fn stops(member: &Member, network: &Network) -> bool {
    let of_a_run = member.mode.as_deref() == Some("run");
    member.running && of_a_run && member.session.as_ref() == Some(&network.session)
}

/// A session is alive while its relay runs. For a moment it may have none: while it starts, and while a relay
/// that died is being replaced. Its socket tells then; where that is another user's, a second look does.
async fn is_alive(engine: &Engine, networks: &[Network], sockets: &Path) -> Result<bool, EngineError> {
    let Some(first) = networks.first() else { return Ok(false) };
    let socket = sockets.join(format!("{}.sock", first.session));
    let began = Instant::now();
    loop {
        let relays = engine.running_relays().await?;
        let mut gap = GAP;
        for network in networks {
            let members = engine.containers_on(network).await?;
            if members.iter().any(|member| member.running && relays.iter().any(|(id, _)| *id == member.id)) {
                return Ok(true);
            }
            if members.iter().any(|member| stops(member, network)) {
                gap = BACK_WITHIN;
            }
        }
        match UnixStream::connect(&socket).await {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(false),
            Err(_) if began.elapsed() > gap => return Ok(false),
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
